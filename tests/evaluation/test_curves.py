"""Curves of residuals are thinned to medians, whatever the number of steps."""

from __future__ import annotations

import json
import math

import pytest
import torch

from flowmaps.evaluation.curves import MAX_RAW_POINTS, Curves
from flowmaps.objectives import Loss
from flowmaps.training.loop import Step


def step(number: int, **parts: float) -> Step:
    values = {name: torch.full((4,), value) for name, value in parts.items()}
    loss = Loss(torch.tensor(0.0), values)
    return Step(number, loss, 1e-3, 0.0, torch.tensor(1.0), None)  # type: ignore[arg-type]


def test_a_short_curve_is_kept_as_it_is():
    curves = Curves()
    for k in range(1, 6):
        curves.see("map", step(k, diagonal=k / 8, lagrangian=2.0))
    assert curves.thinned() == {
        "map": {"step": [1, 2, 3, 4, 5], "diagonal": [0.125, 0.25, 0.375, 0.5, 0.625], "lagrangian": [2.0] * 5}
    }


def test_a_long_curve_is_medians_of_a_few_kilobytes():
    curves = Curves()
    for k in range(1, 5 * MAX_RAW_POINTS):
        curves.see("map", step(k, lagrangian=math.nan if k % 64 == 0 else 1e6 if k % 40 == 0 else 1.0 + k / 1e5))
    curve = curves.thinned()["map"]
    assert len(curve["step"]) == len(curve["lagrangian"]) == 100
    for number, value in zip(curve["step"], curve["lagrangian"], strict=True):
        assert number is not None
        assert value is not None
        assert abs(value - 1 - number / 1e5) < 2e-3  # neither the spikes nor NaN are seen
    assert len(json.dumps(curve)) < 4_000


def test_where_nothing_is_finite_there_is_nothing():
    curves = Curves()
    curves.see("map", step(1, lagrangian=math.inf))
    assert curves.thinned()["map"] == {"step": [1], "lagrangian": [None]}


def test_terms_that_take_turns_have_their_curves_however_long_training_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowmaps.evaluation.curves.MAX_RAW_POINTS", 512)
    for every in (2, 3, 4):
        curves = Curves()
        for k in range(1, 2_000):
            curves.see("map", step(k, **({"lagrangian": 2.0} if k % every == 0 else {"diagonal": 1.0})))
        curve = curves.thinned()["map"]
        assert curve["diagonal"] == [1.0] * 100
        assert curve["lagrangian"] == [2.0] * 100
        assert curve["step"] == sorted(curve["step"], key=lambda number: number or 0)
