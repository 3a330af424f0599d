"""Methods on one budget: what training a method takes, and teachers that are shared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowmaps.data import open_data
from flowmaps.evaluation import compare
from flowmaps.objectives import Loss, VelocityMatching
from flowmaps.runs.plan import Plan, resolve
from flowmaps.runs.recipes import checkerboard
from flowmaps.velocities import RandomInputs


def tiny(method: str, batch: int = 16) -> Plan:
    recipe = checkerboard()
    network = replace(recipe.network, width=8, depth=2)
    optimiser = replace(recipe.optimiser, batch=batch)
    return resolve(replace(recipe, method=method, compile=False, network=network, optimiser=optimiser))


def test_memory_is_of_the_objective_and_grows_with_the_batch(tmp_path: Path):
    def needed(method: str, batch: int) -> float:
        return compare.train_method(tiny(method, batch), open_data("checkerboard"), 0.05, tmp_path)[2]["mb_per_step"]

    plain = needed("flow_matching", 1000)
    assert needed("lsd", 1000) > 1.5 * plain  # derivatives
    assert needed("flow_matching", 4000) == pytest.approx(4 * plain, rel=0.1)


def test_the_time_of_a_step_is_the_median(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(compare, "take_steps", lambda *_: ([1.0, 0.002, 0.001, 0.003, 0.002], True))
    training = compare.train_method(tiny("lsd"), open_data("checkerboard"), 1.0, tmp_path)[2]
    assert training["ms_per_step"] == 2.0


def test_a_method_is_trained_in_the_precision_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan, seen, evaluate = tiny("flow_matching"), set(), VelocityMatching.evaluate

    def watched(self: VelocityMatching, inputs: RandomInputs) -> Loss:
        seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return evaluate(self, inputs)

    monkeypatch.setattr(VelocityMatching, "evaluate", watched)
    for precision in ("float32", "bfloat16"):
        changed = replace(plan, recipe=replace(plan.recipe, precision=precision))
        compare.train_method(changed, open_data("checkerboard"), 0.05, tmp_path)
        assert seen == {getattr(torch, precision)}
        seen.clear()


def test_a_teacher_that_is_loaded_is_the_one_that_was_saved(tmp_path: Path):
    source = open_data("checkerboard")
    _, first, _ = compare.train_method(tiny("lmd"), source, 0.3, tmp_path)
    _, second, training = compare.train_method(tiny("emd"), source, 0.3, tmp_path)
    assert first is not None
    assert second is not None
    old, new = first.state_dict(), second.state_dict()
    assert all(bool((old[name] == new[name]).all()) for name in old)
    assert (tmp_path / training["teacher"]).exists()


def test_a_teacher_that_diverges_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compare, "train_stage", lambda *_, **__: {"ms_per_step": 1.0, "diverged": True})
    _, teacher, training = compare.train_method(tiny("lmd"), open_data("checkerboard"), 1.0, tmp_path)
    assert teacher is None
    assert training["diverged"]
    assert list(tmp_path.iterdir()) == []
