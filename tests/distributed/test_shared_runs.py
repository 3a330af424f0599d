"""Runs of several processes: one folder, whoever writes it, and a checkpoint that any number of them goes on from."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_runs import PICTURES, RUN, Told, chosen, run, saved
from together import together

from flowmaps.runs.folder import RunFolder
from flowmaps.storage import models
from flowmaps.training.log import read_log

STOP = 40
"""The step of the map after which runs are stopped, between two checkpoints."""
WAYS: dict[str, tuple[int, bool]] = {"one": (1, False), "copies": (2, False), "shares": (2, True)}
"""Processes, and whether they share the weights out."""
PAIRS = [("copies", "one"), ("one", "shares"), ("shares", "one"), ("shares", "copies"), ("shares", "shares")]


def go(way: str, folder: Path, **options: Any) -> list[Told]:
    number, shard = WAYS[way]
    return together(number, run, dataclasses.replace(RUN, fsdp=shard), folder, *options.values())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Told]]]:
    """Runs to their end."""
    folder = tmp_path_factory.mktemp("unbroken")
    return {way: (folder / way, go(way, folder / way)) for way in WAYS}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Told]]]:
    """Runs that one process asked to stop."""
    folder = tmp_path_factory.mktemp("stopped")
    return {way: (folder / way, go(way, folder / way, resume=False, stop=("map", STOP))) for way in WAYS}


def losses(folder: Path, stage: str = "map") -> np.ndarray:
    return np.array([line["loss"] for line in read_log(folder) if line["stage"] == stage])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("way", WAYS)
def test_a_run_writes_one_folder(unbroken: dict[str, tuple[Path, list[Told]]], way: str):
    """The same files and lines as one process alone; each step is taken once by each process."""
    folder, told = unbroken[way]
    assert not any(one.error for one in told)
    assert names(folder) == names(unbroken["one"][0])
    taken = [("teacher", k + 1) for k in range(RUN.teacher_steps)] + [("map", k + 1) for k in range(RUN.steps)]
    assert all(one.taken == taken for one in told)
    assert [(line["stage"], line["step"]) for line in read_log(folder)] == taken
    assert {"weights.safetensors", "teacher/weights.safetensors", "log.jsonl"} < set(names(folder))
    assert not (folder / "checkpoints").exists()
    opened = RunFolder.open(folder)
    recipe, teacher = opened.recipe, opened.load_teacher()
    assert recipe.fsdp is WAYS[way][1]
    assert teacher is not None


def test_copies_and_shares_leave_the_same_map(unbroken: dict[str, tuple[Path, list[Told]]]):
    """To the rounding of float32, which the steps let grow, in its weights, teacher and log."""
    for part in (".", "teacher"):
        one, copies, shares = (models.load(unbroken[way][0] / part).state_dict() for way in WAYS)
        floats = [name for name, value in copies.items() if value.is_floating_point()]
        near = max(float((shares[name] - copies[name]).abs().max()) for name in floats)
        assert near < 1e-4
        assert max(float((one[name] - copies[name]).abs().max()) for name in floats) > 100 * near  # it has other rows
    np.testing.assert_allclose(losses(unbroken["shares"][0]), losses(unbroken["copies"][0]), rtol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_one_process_stops_all_after_the_same_step(stopped: dict[str, tuple[Path, list[Told]]], way: str):
    """At the step that was asked for or the next one, with a checkpoint of it."""
    folder, told = stopped[way]
    ends = {one.taken[-1] for one in told}
    assert all(one.stopped and not one.error for one in told)
    assert ends == {("map", STOP + (WAYS[way][0] > 1))}
    assert saved(folder)[-1] == f"map-{ends.pop()[1]:08}"
    last = folder / "checkpoints" / saved(folder)[-1]
    assert sorted(path.name for path in last.iterdir()) == ["state.safetensors", "state.sha256"]
    assert not (folder / "weights.safetensors").exists()


@pytest.mark.parametrize("before, after", PAIRS)
def test_a_run_goes_on_with_another_number_of_processes(
    stopped: dict[str, tuple[Path, list[Told]]],
    unbroken: dict[str, tuple[Path, list[Told]]],
    tmp_path: Path,
    before: str,
    after: str,
):
    """From the same step, with the same weights, averages and moments to the bit, and on the same curve.

    Losses of a step are independent draws about a mean that moves slowly. The means of two runs over the 50 steps after
    the break therefore differ by a few times (v / 50 + v' / 50)^{1/2}, v and v' the variances of a step's loss.
    """
    folder, told = stopped[before]
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    again = go(after, copied, resume=True)
    last = told[0].taken[-1][1]
    for one in again:
        assert one.error == ""
        assert one.taken == [("map", k + 1) for k in range(last, RUN.steps)]
        assert one.restored.keys() == told[0].last.keys()
        for name, value in told[0].last.items():
            np.testing.assert_array_equal(one.restored[name], value, err_msg=name)
    curve = losses(copied)
    assert len(curve) == RUN.steps
    assert names(copied) == names(unbroken["one"][0])
    expected, found = losses(unbroken["one"][0])[last : last + 50], curve[last : last + 50]
    noise = math.sqrt((expected.var() + found.var()) / 50)
    assert abs(found.mean() - expected.mean()) < 4 * noise
    if before == after:  # nothing has changed
        mine, theirs = curve, losses(unbroken[before][0])
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_a_network_of_images_goes_on_with_another_number_of_processes(tmp_path: Path):
    """Three processes with uneven shares, then one, then two with a copy each; its target that follows too."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8))
    recipe, folder = dataclasses.replace(PICTURES, data=str(tmp_path / "x.npy")), tmp_path / "run"
    told = together(3, run, dataclasses.replace(recipe, fsdp=True), folder, False, ("map", 2))
    assert any(name.startswith("target.") for name in told[0].last)
    for number, stop in ((1, ("map", 5)), (2, None)):
        again = together(number, run, recipe, folder, True, stop)
        for one in again:
            assert one.error == ""
            assert one.taken[0][1] == told[0].taken[-1][1] + 1
            for name, value in told[0].last.items():
                np.testing.assert_array_equal(one.restored[name], value, err_msg=name)
        told = again
    assert told[0].taken[-1] == ("map", PICTURES.steps)
    assert models.load(folder) is not None


def test_all_processes_take_the_precision_that_the_first_one_chooses():
    said = "precision float32: a step of 16 rows takes 2 s in bfloat16, 1 s in float32"
    assert together(2, chosen) == [("float32", said)] * 2


@pytest.mark.parametrize("way", WAYS)
def test_between_steps_the_map_has_its_averages(unbroken: dict[str, tuple[Path, list[Told]]], way: str):
    """All of them in each process, and the weights are as before afterwards."""
    assert [one.averaged for one in unbroken[way][1]] == [(0.0, 0.0)] * WAYS[way][0]


@pytest.mark.parametrize("shard", [False, True])
def test_a_run_whose_data_go_bad_in_one_process_ends_in_all(tmp_path: Path, shard: bool):
    """After as many steps as its patience, at the same step, naming where; the last checkpoint is from before."""
    recipe = dataclasses.replace(RUN, fsdp=shard, max_skipped_steps=4, checkpoint_every=5)
    told = together(2, run, recipe, tmp_path / "run", False, None, 8)
    for one in told:
        assert "the gradient was not finite for 4 steps in a row" in one.error
        assert "32 of 32 rows" in one.error
        assert "(process 1 of 2)" in one.error
        assert one.taken[-1] in (("teacher", 11), ("teacher", 12))
    assert f"The last checkpoint, {saved(tmp_path / 'run')[-1]}, is intact" in told[0].error


@pytest.mark.parametrize("change, words", [
    ({}, "already exists and is not empty: choose another --out"),
    ({"optimiser": dataclasses.replace(RUN.optimiser, batch=63)}, "--optimiser.batch must be a multiple of 2"),
    ({"optimiser": dataclasses.replace(RUN.optimiser, batch=2)}, "must be a multiple of 2 and at least 4"),
    ({"data": "nowhere.npy"}, "nowhere.npy"),
    ({"device": "cuda:7"}, "--device"),
])  # fmt: skip
@pytest.mark.parametrize("shard", [False, True])
def test_what_cannot_run_is_refused_by_all_processes_at_once(tmp_path: Path, change: dict, words: str, shard: bool):
    """With one line, the same in each, and nobody waits for another."""
    if not change:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "note.txt").write_text("mine")
    told = together(2, run, dataclasses.replace(RUN, fsdp=shard, **change), tmp_path / "run")
    assert {one.error for one in told} == {told[0].error}
    assert words in told[0].error
    assert "\n" not in told[0].error
    assert max(one.seconds for one in told) < 20
    assert sorted(path.name for path in tmp_path.rglob("*")) == (["note.txt", "run"] if not change else [])
