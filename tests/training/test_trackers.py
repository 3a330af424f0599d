"""Trackers: they are told what the log is told, and no trouble of theirs is the training's."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowmaps.cli import commands
from flowmaps.runs import recipes
from flowmaps.runs.recipes import Recipe
from flowmaps.runs.run import Run
from flowmaps.storage import checkpoints
from flowmaps.training import trackers

RECIPE = dataclasses.replace(
    recipes.checkerboard(),
    network=recipes.plane.Network(width=8, depth=2),
    optimiser=recipes.fields.Optimiser(batch=16),
    steps=8,
    teacher_steps=4,
    show_every=0,
    log_every=2,
    checkpoint_every=2,
    keep_checkpoints=9,
    compile=False,
    device="cpu",
)


def tracked(*names: str, **changes: Any) -> Recipe:
    return dataclasses.replace(RECIPE, track=names, **changes)


def follow(folder: Path, recipe: Recipe, steps: int = 99, **options: Any) -> list[str]:
    """Train so many steps, with a line of the log for each other one; what is said."""
    said: list[str] = []
    run = Run.open(recipe, folder, say=said.append, **options)
    left = iter(range(steps - 1))
    commands.follow(run, lambda: next(left, None) is None)
    return said


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tracked" / "tensorboard"), {"scalars": 0, "images": 0})
    return found.Reload()


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    found = events(folder)
    pairs = {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert all(len(dict(pair)) == len(pair) for pair in pairs.values())  # no step twice
    return {name: dict(pair) for name, pair in pairs.items()}


def expected(folder: Path, before: dict[str, int]) -> dict[str, dict[int, float]]:
    """What log.jsonl says, in the words of trackers."""
    found: dict[str, dict[int, float]] = {}
    for text in (folder / "log.jsonl").read_text().splitlines():
        line = json.loads(text)
        stage, step = line.pop("stage"), line.pop("step")
        for name, value in line.items():
            found.setdefault(f"{stage}/{name}", {})[before[stage] + step] = pytest.approx(value, rel=1e-6)
    return found


# TensorBoard ---------------------------------------------------------------------------------------------------------


def test_tensorboard_has_the_log_and_the_pictures(tmp_path: Path):
    """Stages follow one another, and a run that is resumed at an earlier step leaves nothing of the later ones."""
    folder, recipe = tmp_path / "run", tracked("tensorboard", show_every=4)
    follow(folder, recipe, steps=4 + 7)
    assert max(scalars(folder)["map/loss"]) == 4 + 6
    (folder / "log.jsonl").open("a").write('{"stage": "map", "step": 99, "loss": 0.0, "seconds": 0.0}\n')
    follow(folder, recipe, resume_from="map-00000004")
    assert scalars(folder) == expected(folder, {"teacher": 0, "map": 4})
    assert {"teacher/loss", "teacher/diagonal", "map/loss", "map/lagrangian", "map/norm"} < set(scalars(folder))
    found = events(folder)
    for stage, steps in {"teacher": [4], "map": [4 + 4, 4 + 8]}.items():
        shown = found.Images(f"{stage}/samples")
        assert [image.step for image in shown] == steps
        picture = imread(folder / "previews" / f"{stage}-00000004.png")
        assert (shown[0].height, shown[0].width) == picture.shape[:2]
    (text,) = {event.tensor_proto.string_val[0].decode() for event in found.Tensors("recipe/text_summary")}
    assert json.loads(text.strip("`\n"))["method"] == "lmd"


def test_a_run_that_ended_before_a_checkpoint_leaves_nothing_to_tensorboard(tmp_path: Path):
    """It begins anew, and so does what is shown of it."""
    folder, recipe = tmp_path / "run", tracked("tensorboard", checkpoint_every=100)
    run = Run.open(recipe, folder, say=lambda text: None)
    left = iter(range(3))

    def killed() -> bool:
        if next(left, None) is None:
            shutil.copytree(folder, tmp_path / "left")
            return True
        return False

    commands.follow(run, killed)
    shutil.rmtree(folder)
    (tmp_path / "left").rename(folder)
    assert not (folder / "checkpoints").exists()
    assert list(scalars(folder)["teacher/loss"]) == [2, 4]
    follow(folder, dataclasses.replace(recipe, log_every=3), resume=True)
    assert scalars(folder) == expected(folder, {"teacher": 0, "map": 4})
    assert list(scalars(folder)["teacher/loss"]) == [3, 4]


def test_a_save_that_was_killed_between_its_names_is_gone_on_from(tmp_path: Path):
    """What stood under a name that is saved again is found under another, with the same steps before it."""
    folder, recipe = tmp_path / "run", tracked("tensorboard")
    follow(folder, recipe, steps=4 + 5)
    last = folder / "checkpoints" / checkpoints.names(folder / "checkpoints")[-1]
    last.rename(last.with_name(f"{last.name}{checkpoints.BEFORE}"))
    assert checkpoints.find(folder / "checkpoints") == "map-00000005.before"
    follow(folder, recipe, resume=True)
    assert scalars(folder) == expected(folder, {"teacher": 0, "map": 4})
    assert list(scalars(folder)["map/loss"]) == [4 + 2, 4 + 4, 4 + 6, 4 + 8]


def test_nothing_is_left_without_trackers(tmp_path: Path):
    from accelerate import PartialState

    before = dict(PartialState._shared_state)
    follow(tmp_path / "run", RECIPE)
    assert not (tmp_path / "run" / "tracked").exists()
    assert before == PartialState._shared_state


def test_the_training_does_not_notice(tmp_path: Path):
    follow(tmp_path / "plain", RECIPE)
    follow(tmp_path / "run", tracked("tensorboard"))
    names = ("weights.safetensors", "teacher/weights.safetensors")
    assert all((tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes() for name in names)


# the others, by modules that keep what they are told -----------------------------------------------------------------


class Kept:
    """A run of wandb or trackio."""

    def __init__(self, **options: Any) -> None:
        self.options, self.told, self.ended = options, [], False

    def log(self, values: dict, step: int | None = None) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.ended = True


@pytest.fixture(params=["wandb", "trackio"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in the place of wandb or trackio, whose runs are kept; accelerate's own class speaks to it."""
    module: Any = ModuleType(request.param)
    module.__spec__ = ModuleSpec(request.param, None, origin="here")
    module.runs = []

    def init(**options: Any) -> Kept:
        module.runs.append(Kept(**options))
        return module.runs[-1]

    module.init, module.Image = init, lambda path: SimpleNamespace(path=path)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def test_a_run_goes_on_under_its_name(tmp_path: Path, module: Any):
    folder, recipe = tmp_path / "run", tracked(module.__name__, show_every=4)
    follow(folder, recipe, steps=4 + 4)
    follow(folder, recipe, resume=True)
    first, second = module.runs
    assert first.ended
    assert second.ended
    key = (folder / "tracked" / "id").read_text()
    assert key in first.options.get("id", first.options["name"])
    assert {"resume": "allow", "project": "flowmaps"}.items() <= first.options.items()
    assert first.options["config"]["network"]["width"] == 8
    assert first.options == second.options
    told = [(step, values) for run in module.runs for step, values in run.told]
    steps = [step for step, _ in told]
    assert steps == sorted(steps)  # wandb drops what goes back
    numbers = {step: values for step, values in told if "samples" not in next(iter(values))}
    found = expected(folder, {"teacher": 0, "map": 4})
    assert {step: values["map/loss"] for step, values in numbers.items() if step > 4} == found["map/loss"]
    pictures = [(step, *values.items()) for step, values in told if "samples" in next(iter(values))]
    assert [(step, name) for step, (name, _) in pictures] == [
        (4, "teacher/samples"),
        (8, "map/samples"),
        (12, "map/samples"),
    ]
    _, (_, image) = pictures[-1]
    image = image[0] if isinstance(image, list) else image
    assert image.path == str(folder / "previews" / "map-00000008.png")


def test_the_project_is_that_of_the_environment(tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"{module.__name__.upper()}_PROJECT", "ours")
    trackers.open_trackers([module.__name__], tmp_path, {}).close()
    assert module.runs[0].options["project"] == "ours"


# trouble -------------------------------------------------------------------------------------------------------------


def test_a_tracker_that_fails_is_told_of_once(tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(Kept, "log", fail)
    monkeypatch.setattr(Kept, "finish", fail)
    said = follow(tmp_path / "run", tracked(module.__name__, "tensorboard"))
    name = module.__name__
    words = f"the tracker {name} failed (no route to host): the training goes on, log.jsonl has everything."
    assert said == [words]
    assert (tmp_path / "run" / "weights.safetensors").exists()
    assert scalars(tmp_path / "run") == expected(tmp_path / "run", {"teacher": 0, "map": 4})


def test_a_tracker_that_cannot_begin(tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch):
    def init(**_: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    module.init = init
    ended: list[bool] = []
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.finish", lambda self: ended.append(True))
    words = rf"^the tracker {module.__name__} cannot begin \(no API key configured\): .*, or"
    with pytest.raises(ValueError, match=words):
        trackers.open_trackers(["tensorboard", module.__name__], tmp_path, {})
    assert ended == [True]  # what had begun


def test_whatever_fails_those_that_have_begun_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun, ended = trackers._begin, list[bool]()
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.finish", lambda self: ended.append(True))

    def begin(name: str, *rest: Any) -> Any:
        if name == "wandb":
            raise PermissionError("tracked may not be made")
        return begun(name, *rest)

    monkeypatch.setattr(trackers, "_begin", begin)
    with pytest.raises(PermissionError):
        trackers.open_trackers(["tensorboard", "wandb"], tmp_path, {})
    assert ended == [True]


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "trackio"):
        words = rf"^the tracker {name} needs its package: pip install 'flowmaps\[{name}\]', or leave it out.$"
        with pytest.raises(ValueError, match=words):
            trackers.open_trackers([name], tmp_path, {})
        with pytest.raises(ValueError, match=words):  # before the folder is made
            commands.train(tracked(name), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_name_that_was_damaged(tmp_path: Path):
    (tmp_path / "tracked").mkdir()
    (tmp_path / "tracked" / "id").write_text("../../x")
    with pytest.raises(ValueError, match=r"tracked/id is no name of a run: remove it"):
        trackers.open_trackers(["tensorboard"], tmp_path, {})


def test_the_numbers_of_a_line():
    line = {"stage": "map", "step": 4, "loss": 1.5, "norm": None, "skipped": 2, "spikes": [[3, 9.0], [4, 8.0]]}
    assert trackers.values_of(line) == {"map/loss": 1.5, "map/skipped": 2, "map/spikes": 2}


def test_only_the_first_process_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the others nothing is begun."""
    monkeypatch.setattr(trackers, "on_first", lambda fn: None)
    told = trackers.open_trackers(["tensorboard"], tmp_path, {})
    told.log({"x": 1.0}, 1)
    told.close()
    assert not list(tmp_path.iterdir())
