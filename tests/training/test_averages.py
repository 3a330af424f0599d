"""Averages of the weights: their profiles are what the mathematics says, sharded or not; they are written as named."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from flowmaps.storage.models import load_tensors
from flowmaps.training import averages
from flowmaps.training.averages import MAX_WIDTH, Averages, exponent, relative_width

WIDTHS = (0.01, 0.05, 0.1, 0.2, MAX_WIDTH)
NAMES = ["weight", "bias"]


def profile_by_steps(steps: int, name: str) -> Tensor:
    """The weight of each step in an average: what it makes of parameters that are the step's unit vector."""
    kind, value = name.split("-")
    decays, widths = ((float(value),), ()) if kind == "decay" else ((0.5,), (float(value),))
    kept = Averages([torch.zeros(steps, dtype=torch.float64)], decays, widths)
    for step, parameter in enumerate(torch.eye(steps, dtype=torch.float64), 1):
        kept.update([parameter], step)
    return kept.values[name][0]


def follow(trajectory: Callable[[float], float], steps: int, width: float) -> float:
    """The power-function average of theta(step / steps)."""
    value = torch.zeros((), dtype=torch.float64)
    kept = Averages([value], [0.5], [width])
    for step in range(1, steps + 1):
        kept.update([value.fill_(trajectory(step / steps))], step)
    return kept.values[f"width-{width:g}"][0].item()


@pytest.mark.parametrize("width", [1e-6, *WIDTHS])
def test_the_exponent_has_its_width(width: float) -> None:
    assert relative_width(exponent(width)) == pytest.approx(width, rel=1e-12)


def test_the_widest_is_the_mean_of_all_steps() -> None:
    assert exponent(MAX_WIDTH) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(
        profile_by_steps(40, "width-0.288675"), torch.full((40,), 1 / 40).double(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 6.94, 16.97])
def test_the_width_is_the_deviation_of_the_profile(gamma: float) -> None:
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    weight = (gamma + 1) * tau**gamma / 200_000
    mean = (weight * tau).sum()
    deviation = (weight * (tau - mean) ** 2).sum().sqrt().item()
    assert weight.sum().item() == pytest.approx(1, rel=1e-8)
    assert relative_width(gamma) == pytest.approx(deviation, rel=1e-8)
    assert exponent(deviation) == pytest.approx(gamma, abs=1e-5)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_a_step_has_the_integral_of_the_profile_over_it(width: float) -> None:
    steps, power = 300, exponent(width) + 1
    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** power
    profile = profile_by_steps(steps, f"width-{width:g}")
    torch.testing.assert_close(profile, edges.diff(), rtol=1e-10, atol=1e-15)
    count = torch.arange(1, steps + 1, dtype=torch.float64)
    deviation = (profile @ (count - profile @ count) ** 2).sqrt().item()
    assert deviation == pytest.approx(width * steps, rel=1e-3)  # in steps


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
@pytest.mark.parametrize("power", [1, 2])
def test_a_trajectory_is_averaged_as_the_integral_says(width: float, power: int) -> None:
    gamma = exponent(width)
    limit = (gamma + 1) / (gamma + power + 1)  # of tau^power, over [0, 1]
    errors = [abs(follow(lambda tau: tau**power, steps, width) - limit) for steps in (200, 400)]
    assert errors[1] < 0.005
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)  # first order in 1 / steps


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_a_decay_warms_up(decay: float) -> None:
    parameters = torch.randn(30, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept, wanted = Averages([parameters[0]], [decay]), parameters[0].clone()
    for step in range(1, 30):
        kept.update([parameters[step]], step)
        now = min(decay, step / (step + 9))
        wanted = now * wanted + (1 - now) * parameters[step]
    torch.testing.assert_close(kept.main[0], wanted, rtol=1e-12, atol=1e-12)


def test_values_are_in_order_and_stay_where_they_are() -> None:
    parameters = [nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(2))]
    kept = Averages(parameters, [0.9999, 0.5], [0.05, 0.1])
    assert list(kept.values) == ["decay-0.9999", "decay-0.5", "width-0.05", "width-0.1"]
    assert kept.main is kept.values["decay-0.9999"]
    places = [value.data_ptr() for values in kept.values.values() for value in values]
    assert len({*places, *(p.data_ptr() for p in parameters)}) == 10  # none is the parameter itself
    kept.update([torch.zeros_like(p) for p in parameters], 1)
    assert [value.data_ptr() for values in kept.values.values() for value in values] == places
    assert not any(value.requires_grad for values in kept.values.values() for value in values)
    assert [values[1][0].item() for values in kept.values.values()] == pytest.approx([0.1, 0.1, 0, 0])


@pytest.mark.parametrize(
    "decays, widths, words",
    [
        ((), (0.1,), "got no decay: give one at least"),
        ((0.9, 1.0), (), "a decay is at least 0 and less than 1, got 1: try 0.999"),
        ((-0.1,), (), "got -0.1"),
        ((0.9,), (0.0,), "a relative width is more than 0 and at most 0.288675 (the mean of all steps), got 0: try"),
        ((0.9,), (0.2887,), "at most 0.288675 (the mean of all steps), got 0.2887"),
        ((0.9,), (math.nan,), "got nan"),
        ((0.9, 0.99, 0.9), (), "two averages have the decay 0.9 (of which six digits count): leave one"),
        ((0.9,), (0.1, 0.10000001), "two averages have the width 0.1 (of"),
    ],
)
def test_averages_that_cannot_be(decays: tuple[float, ...], widths: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Averages([torch.zeros(1)], decays, widths)


def test_files_are_named_and_say_what_they_are(tmp_path: Path) -> None:
    parameters = [torch.ones(5, 3), torch.ones(2)]
    kept = Averages(parameters, [0.999, 0.99, 0.5], [0.05, 0.1])
    kept.update([torch.zeros_like(p) for p in parameters], 1)
    averages.store(tmp_path, "map", 1000, NAMES, kept)
    averages.finish(tmp_path, "map", NAMES, kept)
    wanted = {
        "map-width-0.05-00001000": {"step": 1000, "width": 0.05},
        "map-width-0.1-00001000": {"step": 1000, "width": 0.1},
        "map-decay-0.99": {"decay": 0.99},  # the first decay's is the map
        "map-decay-0.5": {"decay": 0.5},
    }
    assert {path.name for path in (tmp_path / "averages").iterdir()} == {f"{name}.safetensors" for name in wanted}
    for name, said in wanted.items():
        tensors, about = load_tensors(tmp_path / "averages" / f"{name}.safetensors")
        assert about == said
        assert tensors["weight"].shape == (5, 3)
        torch.testing.assert_close(tensors["bias"], torch.full((2,), 0.1 if "decay" in name else 0.0))


def averaged(model: nn.Module, folder: Path) -> None:
    """Move a model, storing its averages."""
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    kept = Averages(parameters, [0.9, 0.8], [0.05, 0.2])
    for step in range(1, 4):
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1 + 0.3 * step)
        kept.update(parameters, step)
    averages.store(folder, "map", 3, names, kept)
    averages.finish(folder, "map", names, kept)


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))  # shards of unequal size, and an empty one


def sharded(rank: int, port: int, folder: Path) -> None:
    """One of two processes; an error ends it and with it the test."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    model = layers()
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    averaged(model, folder / "two")
    (folder / "file").touch()
    with pytest.raises(OSError):  # of the first, in both
        averaged(model, folder / "file")
    dist.destroy_process_group()


@pytest.mark.slow
def test_shards_are_averaged_as_the_whole(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(sharded, (port, tmp_path), nprocs=2, start_method="forkserver")
    averaged(layers(), tmp_path / "one")
    files = sorted(path.name for path in (tmp_path / "one" / "averages").iterdir())
    assert len(files) == 3
    assert files == sorted(path.name for path in (tmp_path / "two" / "averages").iterdir())
    for name in files:
        one, two = (load_tensors(tmp_path / kind / "averages" / name) for kind in ("one", "two"))
        assert one[1] == two[1]
        torch.testing.assert_close(two[0], one[0])
