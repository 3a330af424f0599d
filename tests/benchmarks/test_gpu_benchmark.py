"""The benchmark on a GPU, part by part, tried without one: what travels, what is refused, what is reported."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpu_cases import MIB, Part, card, found, gpu_report, gpu_speed, gpu_weights

from flowmaps.runs import run as runs
from flowmaps.runs.folder import RunFolder, open_source
from flowmaps.runs.recipes import Optimiser
from flowmaps.storage import models as checkpoint
from flowmaps.training.log import read_log
from flowmaps.training.optimisers import schedule

ROW = {"sampler", "nfe", "fd", "fd_name", "seconds", "seconds_per_10000", "samples"}


def state(folder: Path) -> dict[str, torch.Tensor]:
    return gpu_weights.read_state(folder)[0]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for the rounding to bf16, of 8 bits."""
    return bool(((one - other).abs() <= 2**-8 * other.abs()).all())


def test_all_parts_in_turn(tmp_path: Path, part: Part, capsys: pytest.CaptureFixture):
    """The first is cut short, and the machine is lost after it; the others finish what they begin."""
    results = tmp_path / "results"
    part(minutes=0)
    assert "next: teacher" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "runs")
    for following in ("lmd", "measure-lmd", "lsd", "measure-lsd"):
        part()
        printed = capsys.readouterr().out
        assert f"next: {following} " in printed
        assert ("goes on from the weights packed at step 1" in printed) == (following == "lmd")
    shutil.rmtree(tmp_path / "runs")  # what is measured then is unpacked
    part()
    assert "nothing is due" in capsys.readouterr().out
    before = found(results)
    part()
    part("teacher")
    assert found(results) == before  # nothing is done twice
    assert [(p["part"], p["number"], p["first"], p["last"], p["steps"]) for p in before["parts"]] == [
        ("teacher", 1, 0, 1, 9),
        ("teacher", 2, 1, 9, 9),
        ("lmd", 1, 0, 5, 5),
        ("lsd", 1, 0, 5, 5),
    ]
    check_parts(before["parts"])
    check_rows(before["measured"], results)
    assert gpu_weights.check_files(results) < MIB
    kept = {path.name for path in (results / "weights").glob("*.safetensors")}
    assert kept == {f"{name}-ema-1.safetensors" for name in ("teacher-0000009", "lmd-0000005", "lsd-0000005")}


def check_parts(parts: list[dict]) -> None:
    for entry in parts:
        assert set(entry) == set(gpu_report.PART)
        assert entry["seconds"] > 0
        assert entry["peak_bytes"] > 1e4
        assert entry["ceiling"] > 1e9
        assert "bash benchmarks/gpu_cifar10.sh" in entry["command"]
    assert parts[0]["mfu"] is None  # of one step there is no median
    for entry in parts[1:]:
        assert 0 < entry["mfu"] < 1
        expected = entry["images_per_second"] / entry["batch"] * entry["operations"] / entry["ceiling"]
        assert math.isclose(entry["mfu"], expected)
    teacher, lmd = parts[0]["operations"], parts[2]["operations"]
    assert lmd > 2 * teacher  # a tangent, and the teacher itself


def check_rows(measured: dict, results: Path) -> None:
    page = (results / "README.md").read_text()
    for name in ("lmd", "lsd"):
        rows = measured[name]["rows"]
        assert [row.get("solver") or row["steps"] for row in rows] == ["dopri5", "heun2", 1, 2, 4, 8]
        for row in rows:
            assert set(row) >= ROW
            assert math.isclose(row["seconds_per_10000"], 100 * row["seconds"])
            assert f"{row['fd']:.2f}" in page
        assert measured[name]["samples"] == 100
        assert measured[name]["pictures"] == [f"{name}-{picture}.png" for picture in gpu_report.PICTURES]
        for picture in measured[name]["pictures"]:
            assert (results / picture).stat().st_size > 1000
            assert f"({picture})" in page
        assert measured[name]["command"] in page
    assert "its own velocity, dopri5" in page


def test_a_state_survives_packing_to_the_precision_of_bf16(tmp_path: Path, part: Part):
    part(minutes=0)
    part(minutes=0)
    before = state(tmp_path / "runs" / "teacher")
    sets = gpu_weights.read_shards(tmp_path / "results" / "weights", "teacher")
    for prefix, kind in (("average.decay-0.9999/", "ema"), ("parameter.", "raw")):
        own = {name.removeprefix(prefix): value for name, value in before.items() if name.startswith(prefix)}
        assert set(sets[kind]) == set(own)
        assert all(value.dtype == torch.float32 and close(value, own[name]) for name, value in sets[kind].items())
    assert any((sets["ema"][name] != sets["raw"][name]).any() for name in sets["raw"])  # two kinds of weights


def test_a_finished_map_survives_packing(tmp_path: Path, part: Part):
    """It is the same function but for rounding, and a second packing changes nothing."""
    part()
    folder = tmp_path / "runs" / "teacher"
    first, packed = checkpoint.load(folder), card(tmp_path / "results", "teacher")
    part("lmd", minutes=0)  # takes the packed teacher
    second = checkpoint.load(folder)
    for one, other in zip(second.parameters(), first.parameters(), strict=True):
        assert close(one, other)
    for one, other in zip(second.buffers(), first.buffers(), strict=True):
        assert torch.equal(one, other)
    assert gpu_weights.pack(folder, tmp_path / "again")["files"] == packed["files"]
    given = checkpoint.load(tmp_path / "runs" / "lmd" / "teacher")
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), second.parameters(), strict=True))


def test_where_the_run_is_still_there_it_goes_on_exactly(tmp_path: Path, part: Part):
    for _ in range(4):  # the fourth finds no step left to take
        part(minutes=0, lengths=(3, 2, 2))
    shards = card(tmp_path / "results", "teacher")["files"]
    shutil.rmtree(tmp_path / "results")
    shutil.rmtree(tmp_path / "runs")
    part(lengths=(3, 2, 2))
    assert card(tmp_path / "results", "teacher")["files"] == shards


@pytest.mark.parametrize("lost", [False, True])
def test_the_rate_warms_up_again_after_packing_only(tmp_path: Path, part: Part, lost: bool):
    part(minutes=0)
    part(minutes=0)
    if lost:
        shutil.rmtree(tmp_path / "runs")
    part(minutes=0)
    part(minutes=0)  # in the same warm-up
    folder = tmp_path / "runs" / "teacher"
    recipe = RunFolder.open(folder).recipe
    ages = (0, 1, 0, 1) if lost else (0, 1, 2, 3)
    expected = [schedule(recipe.optimiser, age, step / 9) for step, age in enumerate(ages)]
    assert isinstance(recipe.optimiser, Optimiser)
    assert [line["step"] for line in read_log(folder)] == [1, 2, 3, 4]
    assert [line["rate"] for line in read_log(folder)] == pytest.approx(expected)


def test_operations_are_those_of_forward_and_backward(tmp_path: Path, part: Part):
    """Three times those of forward, less the gradient to the image; in proportion to the batch, attention included."""
    part(minutes=0)
    folder, device = tmp_path / "runs" / "teacher", torch.device("cpu")
    recipe = RunFolder.open(folder).recipe
    source = open_source(recipe)
    eight = gpu_speed.operations(recipe, source, folder, device)
    net = gpu_speed.fresh(recipe, source, folder, device).flow_map
    x, time = torch.zeros(8, 3, 8, 8), torch.zeros(8)
    context = gpu_speed.sdpa_kernel(gpu_speed.SDPBackend.MATH)
    with context, torch.no_grad(), gpu_speed.FlopCounterMode(display=False) as counter:
        net.velocity(x, time)
    assert 2.5 * counter.get_total_flops() < eight < 3 * counter.get_total_flops()
    assert any("bmm" in str(name) for name in counter.get_flop_counts()["Global"])  # of the attention
    large = dataclasses.replace(recipe, optimiser=dataclasses.replace(recipe.optimiser, batch=40))
    assert gpu_speed.operations(large, source, folder, device) == 5 * eight


def test_an_interrupted_part_packs_what_it_reached(tmp_path: Path, part: Part, monkeypatch: pytest.MonkeyPatch):
    def interrupted(run: runs.Run, stop: Callable[[], bool]) -> None:
        with contextlib.closing(run.train()) as steps:
            next(steps)
            next(steps)
            raise KeyboardInterrupt

    monkeypatch.setattr("flowmaps.cli.commands.follow", interrupted)
    part()
    assert card(tmp_path / "results", "teacher")["step"] == 2
    assert [entry["last"] for entry in found(tmp_path / "results")["parts"]] == [2]
