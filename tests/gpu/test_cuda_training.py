"""Training on the device: without waiting for it, in half precision, and from one device to the other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cuda_cases
import pytest
import torch
from cuda_cases import DEVICE
from run_cases import Spoiled, everything
from torch import Tensor

import flowmaps as fm
from flowmaps.data import Board
from flowmaps.objectives import Objective
from flowmaps.system.devices import pick_device
from flowmaps.training import Optimiser, Settings, Trainer
from flowmaps.training.distributed import Placement
from flowmaps.training.loop import train
from flowmaps.training.state import State, begin

pytestmark = cuda_cases.gpu

METHODS = {"lsd": fm.methods.lsd, "esd": fm.methods.esd, "psd": fm.methods.psd, "meanflow": fm.methods.meanflow}


def objective(name: str = "lsd", width: int = 8) -> Objective:
    torch.manual_seed(0)
    return METHODS[name](fm.maps.AverageVelocity(fm.nn.MLP(2, width=width, depth=3, time_frequencies=2)))


def quiet(text: str) -> None:
    """Say nothing."""


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    """Context in which an operation that waits for the device is an error; on the CPU none does."""
    if DEVICE.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# steps without waiting ------------------------------------------------------------------------------------------------


@cuda_cases.needs_cuda
def test_a_synchronisation_is_noticed():
    value = torch.ones(3, device=DEVICE)
    with no_synchronisation(), pytest.raises(RuntimeError, match="synchronizing"):
        value.sum().item()


def begun(name: str, settings: Optimiser, precision: torch.dtype = torch.float32) -> State:
    state = begin(objective(name).to(DEVICE), settings, precision=precision)
    assert state.checks_gradient_on_host is (DEVICE.type != "cuda")
    return state


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_without_a_finite_gradient_is_skipped_without_waiting(name: str, precision: torch.dtype):
    """Weights and moments stay as they were, to the bit, and the next step changes them."""
    if DEVICE.type != "cuda" and precision == torch.float16:
        pytest.skip("float16 is for CUDA")
    settings = Optimiser(batch=18, learning_rate=1e-2, warmup=0, ema_decays=(0.5,), ema_widths=(0.1,))
    state, bad, kept = begun(name, settings, precision), 4, [dict[str, Tensor]()]
    steps = train(state, Spoiled((bad,)), settings, steps=20, device=DEVICE)
    next(steps)  # libraries are loaded, moments are made
    kept.append(everything(state))
    with no_synchronisation():
        for _ in range(5):
            next(steps)
            kept.append(everything(state))
    steps.close()
    state.guard.read_norms()
    assert state.step == 6
    if precision != torch.float16:  # whose loss scale may be too large at first
        assert state.guard.skipped == 1
    names = [key for key in kept[bad] if key.startswith(("parameter.", "optimiser."))]
    assert any(key.startswith("optimiser.") for key in names)
    assert all(torch.equal(kept[bad][key], kept[bad - 1][key]) for key in names)
    assert all(bool(value.isfinite().all()) for value in kept[-1].values())
    if precision != torch.float16:
        assert not all(torch.equal(kept[bad + 1][key], kept[bad][key]) for key in names)


def test_the_trainer_does_not_wait_between_the_steps_of_its_log():
    rows = torch.randn(101, 2, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        objective(),
        rows,
        steps=100,
        optimiser=Optimiser(batch=24, accumulate=3),
        settings=Settings(log_every=100),
        placement=Placement(DEVICE),
        say=quiet,
    )
    steps = iter(trainer)
    next(steps)
    with no_synchronisation():
        taken = [next(steps) for _ in range(5)]
    steps.close()
    assert all(step.loss.value.device.type == DEVICE.type for step in taken)
    assert all(bool(step.norm.isfinite()) for step in taken)
    assert trainer.skipped == 0


def test_a_target_follows_without_waiting():
    torch.manual_seed(0)
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(2, width=8, depth=2))
    loss = fm.methods.shortcut(flow_map, target=fm.maps.Target(flow_map, decay=0.9)).to(DEVICE)
    settings = Optimiser(batch=18, learning_rate=1e-2, warmup=0)
    state = begin(loss, settings)
    assert state.has_moving_targets
    steps = train(state, Board(), settings, steps=20, device=DEVICE)
    next(steps)
    before = everything(state)
    with no_synchronisation():
        for _ in range(3):
            next(steps)
    steps.close()
    after = everything(state)
    targets = [key for key in after if key.startswith("target.")]
    assert targets
    assert not all(torch.equal(after[key], before[key]) for key in targets)


# precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision, kind",
    [("float32", "adam"), ("bfloat16", "adam"), ("float16", "adam"), ("float16", "radam"), ("bfloat16", "muon")],
)
def test_the_loss_falls(precision: str, kind: Any):
    """With the loss scale of float16, and with optimisers for which the host waits."""
    if DEVICE.type != "cuda" and precision == "float16":
        pytest.skip("float16 is for CUDA")
    rows = 3 + 0.1 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        objective("lsd", 16),
        rows,
        steps=60,
        optimiser=Optimiser(kind=kind, batch=64, learning_rate=1e-2, warmup=5, decay="constant"),
        settings=Settings(precision=precision, log_every=20),  # type: ignore[arg-type]
        placement=Placement(DEVICE),
        say=quiet,
    )
    losses = torch.stack([step.loss.value.float() for step in trainer]).tolist()
    assert all(math.isfinite(loss) for loss in losses)
    assert trainer.skipped <= 3
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10]), (losses[:10], losses[-10:])
    assert all(p.dtype == torch.float32 for p in trainer.finish().parameters())


# from one device to the other -----------------------------------------------------------------------------------------

ROWS = torch.randn(101, 2, generator=torch.Generator().manual_seed(0))


def trainer_on(device: torch.device, folder: Path, kind: Any) -> Trainer:
    optimiser = Optimiser(kind=kind, batch=18, learning_rate=1e-2, ema_decays=(0.5,))
    settings = Settings(checkpoint_every=3, log_every=1)
    return Trainer(
        objective(),
        ROWS,
        folder,
        steps=8,
        optimiser=optimiser,
        settings=settings,
        placement=Placement(device),
        say=quiet,
    )


@pytest.mark.parametrize("kind", ["adam", "radam", "muon"])
@pytest.mark.parametrize("towards", ["cpu", "device"])
def test_a_checkpoint_is_restored_on_the_other_device(tmp_path: Path, towards: str, kind: Any):
    """Weights, averages and moments to the bit, each on the device where training goes on."""
    first, second = (DEVICE, torch.device("cpu")) if towards == "cpu" else (torch.device("cpu"), DEVICE)
    one = trainer_on(first, tmp_path, kind)
    for step in one:
        if step.number == 6:
            one.save()
            break
    kept = everything(one._state)
    other = trainer_on(second, tmp_path, kind)
    assert other.resume()
    assert other.step == 6
    found = everything(other._state)
    assert found.keys() == kept.keys()
    for name, value in found.items():
        assert torch.equal(value.cpu(), kept[name].cpu()), name
        if not name.endswith(".step"):  # which an optimiser may keep on the CPU
            assert value.device.type == second.type, name
    assert [step.number for step in other] == [7, 8]
    assert all(bool(value.isfinite().all()) for value in other._state.tensors().values())
    assert all(p.device.type == second.type for p in other.finish().parameters())


@pytest.mark.parametrize("towards", ["cpu", "device"])
def test_fit_goes_on_on_the_other_device(tmp_path: Path, towards: str):
    """Stopped on one, ended on the other; the folder opens, and has the map that was returned."""
    names = [str(DEVICE), "cpu"] if towards == "cpu" else ["cpu", str(DEVICE)]
    settings: dict[str, Any] = {"steps": 8, "batch": 18, "checkpoint_every": 3, "log_every": 1, "say": quiet}
    asked = iter(range(1, 100))
    fm.fit(objective(), ROWS, tmp_path, device=names[0], stop=lambda: next(asked) >= 5, **settings)
    assert not (tmp_path / "weights.safetensors").exists()
    said: list[str] = []
    flow_map = fm.fit(objective(), ROWS, tmp_path, device=names[1], **{**settings, "say": said.append})
    assert any("going on from map-00000005" in line for line in said)
    assert all(p.device.type == pick_device(names[1]).type for p in flow_map.parameters())
    loaded = fm.load(tmp_path)
    for (name, value), other in zip(flow_map.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(value.cpu(), other.cpu()), name
    x0 = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    jump = fm.samplers.Jump(steps=2)
    found = jump(loaded.to(DEVICE), x0.to(DEVICE))
    assert found.device.type == DEVICE.type
    assert cuda_cases.distance([found], [jump(flow_map.cpu(), x0)]) < 1e-4
