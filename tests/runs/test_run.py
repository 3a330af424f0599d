"""Runs and their folders: interrupted or killed, they go on as if nothing had happened, and nothing else goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amount import named, pairs_of
from run_cases import SETTINGS, TINY, contents, interrupt, kill, log, open_run, saved, weights

from flowmaps.runs.folder import RunFolder
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import Evaluation, Network, Recipe
from flowmaps.runs.run import Run
from flowmaps.storage import checkpoints, models
from flowmaps.training import log as journal
from flowmaps.training.failures import CHECKPOINTS
from flowmaps.training.log import read_log

CASES = [("lmd", "linear", False), ("lsd", "trigonometric", False), ("pfmm", "linear", False), ("emd", "linear", True)]
CASES += [("progressive_distillation", "linear", False)]  # its target follows the map


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(map(str, c)))
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    method, path, learned = request.param
    recipe = replace(TINY, method=method, interpolant=path, learned_weight=learned)
    folder = tmp_path_factory.mktemp("unbroken") / method
    list(open_run(recipe, folder).train())
    return recipe, folder


@pairs_of(stop=named([interrupt, kill]), after=named([0, 2, 3, 4, 5, 8]))
def test_a_resumed_run_is_bit_identical(
    unbroken: tuple[Recipe, Path], tmp_path: Path, after: int, stop: Callable[[Run, int], None]
):
    recipe, expected = unbroken
    stop(open_run(recipe, tmp_path / "run"), after)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    steps = [step for _, step in open_run(recipe, tmp_path / "run", resume=True).train()]
    assert len(steps) == 9 - after if stop is interrupt else 9 - after <= len(steps) <= 9
    assert weights(tmp_path / "run") == weights(expected)
    assert log(tmp_path / "run") == log(expected)
    assert not (tmp_path / "run" / CHECKPOINTS).exists()


def test_a_run_interrupted_again_and_again(unbroken: tuple[Recipe, Path], tmp_path: Path):
    recipe, expected = unbroken
    interrupt(open_run(recipe, tmp_path / "run"), 1)
    for stop in (interrupt, kill, interrupt):
        stop(open_run(recipe, tmp_path / "run", resume=True), 2)
    list(open_run(recipe, tmp_path / "run", resume=True).train())
    assert weights(tmp_path / "run") == weights(expected)
    assert log(tmp_path / "run") == log(expected)


def test_a_run_killed_while_its_result_is_written(unbroken: tuple[Recipe, Path], tmp_path: Path, monkeypatch):
    """The weights are there and the card is not yet: the run has not finished."""
    recipe, expected = unbroken
    run, write = open_run(recipe, tmp_path / "run"), models.write_atomically

    def fail(path: Path, content: bytes | str) -> Path:
        if Path(path) == tmp_path / "run" / "config.json":
            raise OSError("no space left")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(models, "write_atomically", fail)
        with pytest.raises(
            ValueError, match=r"cannot be written: no space left\. The last checkpoint, map-\S+, is intact"
        ):
            list(run.train())
    list(open_run(recipe, tmp_path / "run", resume=True).train())
    assert weights(tmp_path / "run") == weights(expected)


def test_the_stages_of_a_run(unbroken: tuple[Recipe, Path]):
    recipe, folder = unbroken
    names = [(stage.name, stage.steps) for stage in resolve(recipe).stages]
    two = {"lsd": [("map", 9)], "pfmm": [("strip", 5), ("map", 4)]}
    assert names == two.get(recipe.method, [("teacher", 4), ("map", 5)])
    logged = [(line["stage"], line["step"]) for line in log(folder)]
    assert logged == [(n, k) for n, last in names for k in range(1, last + 1) if k % 2 == 0 or k == last]
    for line in log(folder):
        assert {"stage", "step", "loss", "norm", "rate"} < set(line)
    opened = RunFolder.open(folder)
    assert opened.recipe == recipe
    assert (opened.load_teacher() is None) is (recipe.method in ("lsd", "pfmm"))


def test_the_map_starts_from_its_teacher(tmp_path: Path):
    recipe = replace(TINY, method="lmd", optimiser=replace(SETTINGS, learning_rate=1e-12))
    list(open_run(recipe, tmp_path / "run").train())
    first, last = (models.load(tmp_path / "run" / name) for name in ("teacher", "."))
    for a, b in zip(first.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_the_seed_decides_everything(tmp_path: Path):
    made = {}
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        torch.manual_seed(hash(name) % 1000)  # the state of the process does not matter
        list(open_run(replace(TINY, method="psd", seed=seed), tmp_path / name).train())
        made[name] = weights(tmp_path / name)
    assert made["a"] == made["b"]
    assert made["a"] != made["c"]


def test_resuming_another_recipe_is_refused(tmp_path: Path):
    recipe = replace(TINY, method="lsd")
    interrupt(open_run(recipe, tmp_path / "run"), 2)
    before = contents(tmp_path / "run")
    for change, words in [
        ({"method": "esd"}, "begun with --method lsd, got esd"),
        ({"seed": 3}, "begun with --seed 0, got 3"),
        (
            {"optimiser": replace(SETTINGS, learning_rate=0.5)},
            "begun with --optimiser.learning-rate 0.01, got 0.5",
        ),
        ({"network": Network(width=9, depth=2)}, "begun with --network.width 8, got 9"),
    ]:
        with pytest.raises(ValueError, match=words):
            open_run(replace(recipe, **change), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before
    free = {
        "log_every": 1,
        "checkpoint_every": 50,
        "evaluation": Evaluation(samples=200),
        "max_skipped_steps": 3,
        "keep_checkpoints": 1,
    }
    list(open_run(replace(recipe, **free), tmp_path / "run", resume=True).train())


def test_resuming_with_other_data_is_refused(tmp_path: Path):
    """The file that the run began with was written anew: other points, another scaling."""
    data = tmp_path / "a.npy"
    np.save(data, np.random.default_rng(0).normal(size=(40, 2)))
    recipe = replace(TINY, method="lsd", data=str(data))
    interrupt(open_run(recipe, tmp_path / "run"), 2)
    np.save(data, np.random.default_rng(1).normal(size=(40, 2)))
    with pytest.raises(ValueError, match=r"a.npy has changed since the run began"):
        open_run(recipe, tmp_path / "run", resume=True)


def test_a_finished_or_missing_run_is_not_resumed(unbroken: tuple[Recipe, Path], tmp_path: Path):
    recipe, folder = unbroken
    with pytest.raises(ValueError, match="has finished training: there is nothing to resume"):
        open_run(recipe, folder, resume=True)
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        open_run(recipe, tmp_path / "nowhere", resume=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no config.json"):
        open_run(recipe, tmp_path / "empty", resume=True)


def test_a_log_that_was_cut_short_is_still_read(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_log(tmp_path) == [{"step": 1}, {"step": 2}]
    assert read_log(tmp_path / "nowhere") == []


# stopped, resumed from another checkpoint ----------------------------------------------------------------------------


def test_a_run_that_is_asked_to_stop_saves_and_ends(unbroken: tuple[Recipe, Path], tmp_path: Path):
    """After the step at hand, with the lock given back; and it goes on as if nothing had happened."""
    recipe, expected = unbroken
    run, asked = open_run(recipe, tmp_path / "run"), iter([False, True])
    steps = list(run.train(lambda: next(asked)))
    assert run.trainer is not None
    assert (len(steps), run.at, run.trainer.stopped) == (2, (resolve(recipe).stages[0].name, 2), "stop")
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    again = open_run(recipe, tmp_path / "run", resume=True)
    assert len(list(again.train())) == 7
    assert again.trainer is not None
    assert again.trainer.stopped is None
    assert weights(tmp_path / "run") == weights(expected)
    assert log(tmp_path / "run") == log(expected)


def test_a_run_goes_on_from_an_earlier_checkpoint(unbroken: tuple[Recipe, Path], tmp_path: Path):
    """Also from one of an earlier stage; the log is cut back to it, and what comes after is the same again."""
    recipe, expected = unbroken
    kept = replace(recipe, checkpoint_every=2, keep_checkpoints=9)
    kill(open_run(kept, tmp_path / "run"), 8)
    every = saved(tmp_path / "run")
    assert len(every) >= 3
    for name in ("previous", every[0]):
        run = open_run(kept, tmp_path / "run", resume_from=name)
        next(steps := run.train())
        assert saved(tmp_path / "run")  # nothing is lost while it goes on
        steps.close()
    list(open_run(kept, tmp_path / "run", resume_from=every[0]).train())
    assert weights(tmp_path / "run") == weights(expected)
    assert log(tmp_path / "run") == log(expected)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path):
    interrupt(open_run(replace(TINY, method="lsd"), tmp_path / "run"), 2)
    with pytest.raises(ValueError, match=r"has no checkpoint map-7: there is map-00000002\."):
        open_run(replace(TINY, method="lsd"), tmp_path / "run", resume_from="map-7")


def test_checkpoints_that_are_kept_outlive_the_run(tmp_path: Path):
    recipe = replace(TINY, method="lsd", checkpoint_every=2, keep_checkpoints_every=4)
    list(open_run(recipe, tmp_path / "run").train())
    assert saved(tmp_path / "run") == ["map-00000004", "map-00000008"]


def test_a_checkpoint_says_what_wrote_it(tmp_path: Path):
    interrupt(open_run(replace(TINY, method="lsd"), tmp_path / "run"), 2)
    about = checkpoints.read(tmp_path / "run" / CHECKPOINTS, "map-00000002")[1]
    assert journal.versions().items() <= about.items()
    assert journal.versions()["torch"] == torch.__version__


def test_a_stored_average_is_there_before_the_checkpoint_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that is killed between the two goes on from the checkpoint, and takes no step before it again."""
    settings = replace(TINY.optimiser, ema_widths=(0.1,))
    recipe = replace(TINY, method="lsd", optimiser=settings, checkpoint_every=3, store_averages_every=3)
    seen, save = [], checkpoints.save

    def saved_after(folder: Path, name: str, *given: Any, **kept: Any) -> Path:
        step = int(name.split("-")[1])
        seen.append((step, (folder.parent / "averages" / f"map-width-0.1-{step:08}.safetensors").exists()))
        return save(folder, name, *given, **kept)

    monkeypatch.setattr(checkpoints, "save", saved_after)
    for _ in open_run(recipe, tmp_path / "run").train():
        pass
    assert seen == [(3, True), (6, True), (9, True)]


def test_a_run_killed_at_its_very_end_is_cleared_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(checkpoints, "clear", lambda *_: None)  # as one killed between its card and that
    for _ in open_run(TINY, folder).train():
        pass
    assert (folder / CHECKPOINTS).exists()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has finished training"):
        open_run(TINY, folder, resume=True)
    assert not (folder / CHECKPOINTS).exists()
    assert (folder / "weights.safetensors").exists()
