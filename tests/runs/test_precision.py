"""--precision auto: what is faster by a few timed steps, chosen once for a run."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from image_cases import SMALL
from run_cases import open_run, weights

from flowmaps.evaluation.compare import Comparison
from flowmaps.runs import precision
from flowmaps.runs.preflight import preflight
from flowmaps.runs.prepare import prepare
from flowmaps.runs.recipes import RECIPES
from flowmaps.runs.run import Run

AUTO = dataclasses.replace(SMALL, precision="auto")
pytestmark = pytest.mark.usefixtures("small_images")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, list[float]]:
    """The seconds that the steps of each precision will take, one after the other."""
    seconds: dict[torch.dtype, list[float]] = {}
    monkeypatch.setattr(precision, "_step", lambda objective, inputs, kind: seconds[kind].pop(0))
    return seconds


def test_image_recipes_choose_by_themselves_and_others_do_not():
    """What a processor does not have in hardware is slow in it."""
    kinds = {name: recipe().precision for name, recipe in RECIPES.items()}
    assert kinds["cifar10-tiny"] == kinds["imagenet32-lmd"] == "auto"
    assert kinds["checkerboard"] == "float32"


@pytest.mark.parametrize(
    "exact, half, expected",
    [
        ([9, 3, 1, 2], [9, 1, 1, 9], "bfloat16"),  # medians of 2 and 1; the first is left out
        ([1, 1, 1, 1], [9, 0.95, 0.95, 0.95], "float32"),  # a gain too small for the rounding
        ([1, 1, 1, 1], [0.1, 2, 2, 2], "float32"),
    ],
)
def test_the_faster_one_by_the_medians(timed: dict[torch.dtype, list[float]], exact: Any, half: Any, expected: str):
    timed |= {torch.float32: [*exact], torch.bfloat16: [*half]}
    ready = prepare(AUTO, None)
    assert ready.plan.recipe.precision == expected
    assert ready.chosen.startswith(f"precision {expected}: a step of 6 rows takes ")


def test_timing_changes_nothing():
    """Neither the map nor the generators; what is chosen is told with the seconds of both."""
    ready = prepare(SMALL, None)
    before, state = copy.deepcopy(ready.flow_map.state_dict()), torch.get_rng_state()
    name, said = precision.choose(ready.plan, ready.flow_map, ready.source, lambda words, share: None)
    assert name in precision.CHOICES
    assert said.startswith(f"precision {name}: ")
    assert said.count("ms") == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in ready.flow_map.state_dict().items())
    assert all(value.grad is None for value in ready.flow_map.parameters())


def test_a_choice_is_written_told_and_kept(tmp_path: Path, timed: dict[torch.dtype, list[float]]):
    """The map is that of the precision by its name, and a resume does not time again."""
    timed |= {torch.float32: [2.0] * 4, torch.bfloat16: [1.0] * 4}
    lines: list[str] = []
    run = Run.open(AUTO, tmp_path / "auto", say=lines.append)
    assert lines == ["precision bfloat16: a step of 6 rows takes 1 s in bfloat16, 2 s in float32"]
    assert json.loads((tmp_path / "auto" / "config.json").read_text())["recipe"]["precision"] == "bfloat16"
    list(run.train(lambda: run.at == ("map", 1)))
    again = open_run(AUTO, tmp_path / "auto", resume=True)
    assert again.plan.recipe.precision == "bfloat16"
    list(again.train())
    list(open_run(SMALL, tmp_path / "named").train())
    assert weights(tmp_path / "auto") == weights(tmp_path / "named")


def test_a_folder_that_has_lost_its_choice_is_refused(tmp_path: Path, timed: dict[torch.dtype, list[float]]):
    timed |= {torch.float32: [1.0] * 4, torch.bfloat16: [1.0] * 4}
    open_run(AUTO, tmp_path / "auto").folder.release()
    config = tmp_path / "auto" / "config.json"
    config.write_text(config.read_text().replace('"precision": "float32"', '"precision": "auto"'))
    with pytest.raises(ValueError, match="does not tell the precision of the run, got auto: restore it"):
        open_run(AUTO, tmp_path / "auto", resume=True)


def test_a_check_tells_the_choice(timed: dict[torch.dtype, list[float]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowmaps.runs.preflight.open_features", lambda _: None)
    timed |= {torch.float32: [3.0] * 4, torch.bfloat16: [0.25] * 4}
    said = {line.split()[0]: line.split(maxsplit=1)[1] for line in preflight(AUTO)[:-1]}
    assert said["device"].startswith("cpu, bfloat16, ")
    assert said["precision"] == "bfloat16: a step of 6 rows takes 250 ms in bfloat16, 3 s in float32"


def test_a_comparison_takes_no_choice(tmp_path: Path):
    recipe = dataclasses.replace(RECIPES["checkerboard"](), precision="auto")
    with pytest.raises(ValueError, match="one --precision for all methods, got auto: take float32 or bfloat16"):
        Comparison(recipe, ("lmd",), 1.0, tmp_path / "out")
