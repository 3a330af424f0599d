"""Metrics of images: against the data by features, against the teacher's samples from the same noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import image_cases
import pytest
import torch
from image_cases import images

from flowmaps.evaluation import measure
from flowmaps.evaluation.rows import metrics_rows
from flowmaps.evaluation.sampling import Samples
from flowmaps.maps import FlowMap
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import ImageEvaluation


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowmaps.evaluation.measure.open_features", lambda spec: image_cases.Means())


class Shifting(FlowMap):
    """X_{s,t}(x) = x + (t - s) c, the flow of a constant velocity; after `most` steps of time it is lost."""

    def __init__(self, shift: float, lost: int = 0) -> None:
        super().__init__()
        self.shift, self.lost = shift, lost

    def average_velocity(self, x: torch.Tensor, s: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        u = torch.full_like(x, self.shift)
        jump = (t > s)[:, None, None, None]
        bad = (torch.arange(len(x)) < self.lost)[:, None, None, None]
        return torch.where(jump & bad, torch.nan, u)


SETTINGS = ImageEvaluation(steps=(1, 2), samples=120, points=50, batch=60, solver_tolerance=1e-4, solver_steps=2)
PLAN = resolve(replace(image_cases.SMALL, evaluation=SETTINGS))


def test_figures_are_measured_against_the_teachers_samples():
    found = [row for _, row, _ in metrics_rows(PLAN, Shifting(0.5), Shifting(0.3), images(), 0)]
    assert [row.get("solver") for row in found] == ["dopri5", "heun2", None, None]
    assert not {"fd_teacher", "pixel_error", "lost"} & set(found[0])
    assert found[1]["fd_teacher"] == pytest.approx(0, abs=1e-6)
    assert found[1]["pixel_error"] == pytest.approx(0, abs=1e-8)
    for row in found[2:]:
        assert row["pixel_error"] == pytest.approx(0.2**2, rel=1e-3)  # a pixel, from -1 to 1
        assert row["fd_teacher"] > 1e-3
        assert row["samples"] == 120


def test_lost_images_are_counted():
    found = [row for _, row, _ in metrics_rows(PLAN, Shifting(0.3, 7), Shifting(0.3), images(), 0)]
    assert [row.get("lost") for row in found] == [None, None, 14, 14]  # of two chunks
    assert found[2]["fd"] > found[1]["fd"]
    (*_, row), _ = zip(*((row, x) for _, row, x in metrics_rows(PLAN, Shifting(1e9), None, images(), 0)), strict=True)
    assert row["lost"] == 120
    assert not {"fd", "pixel_error", "kd"} & set(row)


def test_data_lie_at_no_distance_from_themselves():
    source = images(120)
    ref = measure.evaluation_inputs(source, None, SETTINGS, 0)
    whole = Samples(source.pixels.float() / 127.5 - 1, None)
    row, _ = measure.measure(whole, source, ref, SETTINGS)
    assert row["fd"] == pytest.approx(0, abs=1e-5)
    assert min(row["precision"], row["recall"]) > 0.8
    assert row["fd_name"] == "FD (means of quarters, 120 samples)"


def test_the_distance_of_other_real_images_stands_beside():
    source, settings = images(300), replace(SETTINGS, reference_images=100)
    ref = measure.evaluation_inputs(source, None, settings, 0)
    other = torch.ones(300, dtype=torch.bool)
    other[torch.linspace(0, 299, 100).round().long()] = False
    pixels = source.pixels[other][torch.linspace(0, 199, 120, dtype=torch.float64).round().long()]
    row, _ = measure.measure(Samples(pixels.float() / 127.5 - 1, None), source, ref, settings)
    assert row["fd_floor"] == pytest.approx(row["fd"], rel=1e-9)  # of these images themselves
    assert row["fd_floor"] > 0
    few = measure.evaluation_inputs(source, None, replace(settings, reference_images=200), 0)
    assert few.images is not None
    assert few.images.floor is None
    assert "fd_floor" not in measure.measure(Samples(pixels.float() / 127.5 - 1, None), source, few, settings)[0]
    source.held_out = source.pixels[:50]
    held = measure.evaluation_inputs(source, None, settings, 0)  # fewer are held out than are drawn: those of training
    assert held.images is not None
    assert held.images.floor is not None


def test_real_images_are_spread_over_the_data_and_classes_come_equally_often():
    source = images(40)
    ref = measure.evaluation_inputs(source, None, replace(SETTINGS, reference_images=14), 0)
    assert torch.equal(ref.data, source.pixels[torch.arange(0, 40, 3)])
    assert torch.equal(ref.cond.bincount(), torch.full((4,), 30))  # type: ignore[union-attr]
    assert len(measure.evaluation_inputs(source, None, SETTINGS, 0).data) == 40
    assert len(measure.evaluation_inputs(source, None, replace(SETTINGS, reference_images=10**6), 0).data) == 40
    assert measure.evaluation_inputs(images(labels=False), None, SETTINGS, 0).cond is None
