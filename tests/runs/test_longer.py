"""Runs that are made longer, and runs that start from the weights of another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_cases import SETTINGS, TINY, contents, interrupt, kill, log, open_run, weights

from flowmaps.cli.commands import notes
from flowmaps.runs.folder import RunFolder
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import Network, Recipe
from flowmaps.runs.run import Run
from flowmaps.storage import models

CONSTANT = replace(TINY, method="lsd", optimiser=replace(SETTINGS, decay="constant"))


def train(recipe: Recipe, folder: Path, **options: bool) -> Path:
    list(open_run(recipe, folder, **options).train())
    return folder


def longer(recipe: Recipe, steps: int = 8) -> Recipe:
    return replace(recipe, steps=recipe.steps + steps)


@pytest.mark.parametrize("begin", ["finished", "interrupted", "killed"])
@pytest.mark.parametrize("method", ["lsd", "lmd"])
def test_a_run_of_a_constant_rate_can_be_made_longer(method: str, begin: str, tmp_path: Path):
    """It is then the longer run, to the bit."""
    recipe = replace(CONSTANT, method=method)
    train(longer(recipe), tmp_path / "long")
    run = open_run(recipe, tmp_path / "run")
    {"finished": lambda: list(run.train()), "interrupted": lambda: interrupt(run, 7), "killed": lambda: kill(run, 7)}[
        begin
    ]()
    train(longer(recipe), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "long")
    last = {"finished": [("map", resolve(recipe).stages[-1].steps)]}.get(begin, [])  # the last step is logged too
    lines = [line for line in log(tmp_path / "run") if (line["stage"], line["step"]) not in last]
    assert lines == log(tmp_path / "long")
    opened = RunFolder.open(tmp_path / "run")
    assert opened.recipe.steps == longer(recipe).steps
    assert opened.finished


def test_a_run_whose_rate_falls_cannot_be_made_longer(tmp_path: Path):
    recipe = replace(TINY, method="lsd")
    interrupt(open_run(recipe, tmp_path / "run"), 4)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="the number of steps cannot change from 9 to 17: its learning rate falls"):
        train(longer(recipe), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    train(recipe, tmp_path / "run", resume=True)
    words = r"has finished 9 steps and cannot be made longer: its learning rate fell .*decay cosine.*--from-run"
    with pytest.raises(ValueError, match=words):
        open_run(longer(recipe), tmp_path / "run", resume=True)


def test_a_stage_that_has_not_begun_may_be_of_any_length(tmp_path: Path):
    """Whatever its schedules are: here a learning rate that falls."""
    recipe = replace(TINY, method="lmd")
    train(longer(recipe), tmp_path / "long")
    interrupt(open_run(recipe, tmp_path / "run"), 2)
    train(longer(recipe), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "long")


def test_a_method_with_a_schedule_cannot_be_made_longer(tmp_path: Path):
    """The strip of fmm grows with the share of the steps that are taken."""
    recipe = replace(CONSTANT, method="fmm")
    interrupt(open_run(recipe, tmp_path / "run"), 4)
    with pytest.raises(ValueError, match="its objective has a schedule that runs to the last step"):
        train(longer(recipe), tmp_path / "run", resume=True)


# from another run -----------------------------------------------------------------------------------------------------

STILL = replace(SETTINGS, learning_rate=1e-12)
"""Settings that leave the weights where they are."""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(replace(TINY, method="lsd", seed=5), tmp_path_factory.mktemp("other") / "run")


def same(one: Path, other: Path) -> None:
    for a, b in zip(models.load(one).parameters(), models.load(other).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["psd", "lmd", "easy_consistency_tuning", "pfmm"])
def test_a_map_starts_from_another_runs_weights(method: str, other: Path, tmp_path: Path):
    """Also where a teacher is trained first; where a trained velocity or a strip would be, it stands for them."""
    recipe = replace(TINY, method=method, optimiser=STILL, from_run=str(other))
    names = {"psd": ["map"], "lmd": ["teacher", "map"], "easy_consistency_tuning": ["map"], "pfmm": ["map"]}[method]
    assert [stage.name for stage in resolve(recipe).stages] == names
    train(recipe, tmp_path / "run")
    if method != "easy_consistency_tuning":  # whose jumps are along the velocity first: its weights of t - s are reset
        same(tmp_path / "run", other)
    assert RunFolder.open(tmp_path / "run").recipe.from_run == str(other)


def test_a_run_from_another_one_is_resumed_to_the_bit(other: Path, tmp_path: Path):
    """Also where it was killed before its first checkpoint."""
    recipe = replace(TINY, method="psd", from_run=str(other))
    train(recipe, tmp_path / "a")
    kill(open_run(recipe, tmp_path / "b"), 2)
    train(recipe, tmp_path / "b", resume=True)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def refused(recipe: Recipe, folder: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Run.open(recipe, folder, say=lambda text: None)
    assert not folder.exists()


def test_a_run_of_another_kind_is_no_start(other: Path, tmp_path: Path):
    recipe = replace(TINY, method="psd", from_run=str(other))
    refused(replace(recipe, network=Network(width=9, depth=2)), tmp_path / "a", r"the network of the run to start from")
    refused(replace(recipe, interpolant="trigonometric"), tmp_path / "a", "was trained on the path linear")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(50, 2)))
    refused(replace(recipe, data=str(tmp_path / "data.npy")), tmp_path / "a", "was trained on other data")
    refused(replace(recipe, from_run=str(tmp_path / "nowhere")), tmp_path / "a", "there is no folder")
    interrupt(open_run(replace(TINY, method="lsd"), tmp_path / "half"), 2)
    refused(replace(recipe, from_run=str(tmp_path / "half")), tmp_path / "a", "the run did not finish")


# a longer run that is interrupted -------------------------------------------------------------------------------------


def test_a_longer_run_that_is_interrupted_goes_on(tmp_path: Path):
    """Its folder has the map of before all the while, which it says, and no checkpoint is lost."""
    train(longer(CONSTANT), tmp_path / "long")
    train(CONSTANT, tmp_path / "run")
    for after in (2, 3):
        interrupt(open_run(longer(CONSTANT), tmp_path / "run", resume=True), after)
        opened = RunFolder.open(tmp_path / "run")
        assert (opened.finished, opened.trained_steps) == (False, 9)
        assert any("that of 9 steps" in words for words in notes(opened))
    train(longer(CONSTANT), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "long")
    assert RunFolder.open(tmp_path / "run").finished


def test_a_longer_run_killed_between_its_weights_and_its_card_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(longer(CONSTANT), tmp_path / "long")
    train(CONSTANT, tmp_path / "run")
    run, write = open_run(longer(CONSTANT), tmp_path / "run", resume=True), models.write_atomically

    def fail(path: Path, content: bytes | str) -> Path:
        if Path(path) == tmp_path / "run" / "config.json":
            raise OSError("no space left")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(models, "write_atomically", fail)
        with pytest.raises(ValueError, match="cannot be written: no space left"):
            list(run.train())
    train(longer(CONSTANT), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "long")


def test_a_run_that_trains_is_not_touched_by_another_resume(tmp_path: Path):
    train(CONSTANT, tmp_path / "run")
    run = open_run(longer(CONSTANT), tmp_path / "run", resume=True)
    steps = run.train()
    next(steps)
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="another run is writing into"):
        open_run(longer(CONSTANT), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before
    steps.close()
    train(longer(CONSTANT), tmp_path / "run", resume=True)


def test_the_steps_of_a_teacher_that_is_trained_stay(tmp_path: Path):
    recipe = replace(CONSTANT, method="lmd")
    interrupt(open_run(recipe, tmp_path / "run"), 6)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="the stage teacher has ended after 4 steps, got 7: give 4"):
        train(replace(recipe, teacher_steps=7), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    train(recipe, tmp_path / "run", resume=True)


@pytest.mark.parametrize("method", ["psd", "lmd"])
@pytest.mark.parametrize("after", [1, 6])
def test_a_run_goes_on_without_the_run_that_it_started_from(method: str, after: int, tmp_path: Path):
    """Killed before its first checkpoint, or with a stage to come, whatever became of the other run."""
    train(replace(TINY, method="lsd", seed=5), tmp_path / "other")
    recipe = replace(TINY, method=method, from_run=str(tmp_path / "other"))
    train(recipe, tmp_path / "whole")
    (kill if after == 1 else interrupt)(open_run(recipe, tmp_path / "run"), after)
    models.save(models.load(tmp_path / "whole"), tmp_path / "other", overwrite=True)
    train(recipe, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_strip_that_has_ended_says_that_the_run_cannot_be_made_longer(tmp_path: Path):
    recipe = replace(CONSTANT, method="pfmm")
    interrupt(open_run(recipe, tmp_path / "run"), 7)
    with pytest.raises(ValueError, match=r"a run of pfmm cannot be made longer once its strip has ended.*--from-run"):
        train(longer(recipe), tmp_path / "run", resume=True)
    train(recipe, tmp_path / "run", resume=True)


def test_a_run_whose_data_have_no_checksum_may_be_a_start(other: Path, tmp_path: Path):
    card = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(card | {"data_sha256": None}))
    train(replace(TINY, method="psd", from_run=str(other)), tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").finished
