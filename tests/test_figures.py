"""Figures hold the numbers they were given: densities, lines, levels, pixels, labels."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.image import imread

from flowmaps import figures


def uniform(number: int, half: float = 1.0, seed: int = 0) -> torch.Tensor:
    return half * (2 * torch.rand(number, 2, generator=torch.Generator().manual_seed(seed)) - 1)


def legend_of(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


ROWS = [
    {"sampler": "teacher", "solver": "dopri5", "nfe": 98, "kl": 0.066, "kl_floor": 0.001, "w2": 0.05},
    {"sampler": "teacher", "solver": "euler", "steps": 80, "nfe": 80, "kl": 0.07, "kl_floor": 0.001, "w2": 0.06},
    {"sampler": "map", "steps": 4, "nfe": 4, "kl": 0.1, "kl_floor": 0.001, "w2": 0.07},
    {"sampler": "map", "steps": 1, "nfe": 1, "kl": 0.2, "kl_floor": 0.001, "w2": 0.08},
]


# samples --------------------------------------------------------------------------------------------------------------


def test_many_points_are_densities_on_one_grid_and_one_scale():
    wide = uniform(40_000, half=2.0)  # a quarter of it inside [-1, 1]^2
    figure = figures.samples({"data": uniform(30_000), "map": wide})
    axes = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in axes] == ["data", "map"]
    images = [ax.images[0] for ax in axes]
    grids = [np.asarray(image.get_array()) for image in images]
    assert images[0].norm is images[1].norm
    assert tuple(images[0].get_extent()) == (-1.25, 1.25, -1.25, 1.25)
    area = (2.5 / grids[0].shape[0]) ** 2
    assert grids[0].sum() * area == pytest.approx(1)
    inside = float((wide.abs() <= 1.25).all(1).double().mean())
    assert grids[1].sum() * area == pytest.approx(inside, abs=1e-3)


def test_the_first_coordinate_runs_to_the_right():
    figure = figures.samples({"corner": uniform(20_000) * 0.1 + torch.tensor([1.0, -1.0])})
    grid = np.asarray(figure.axes[0].images[0].get_array())
    half = grid.shape[0] // 2
    assert grid[:half, half:].sum() == pytest.approx(grid.sum())  # rows upwards, columns to the right


def test_few_points_are_drawn_one_by_one_and_wide_ones_get_room():
    x = uniform(301, half=3.0)
    x[7] = math.nan
    figure = figures.samples({f"panel {k}": x for k in range(5)})
    drawn = [ax for ax in figure.axes if ax.get_title()]
    assert len(drawn) == 5
    assert len(drawn[0].collections[0].get_offsets()) == 300
    left, right = drawn[0].get_xlim()
    kept = x[torch.isfinite(x).all(1)]
    assert left < kept[:, 0].min()
    assert right > kept[:, 0].max()
    assert figures.samples({"a": x}, extent=(0, 1, 2, 3)).axes[0].get_ylim() == (2, 3)


# trajectories, losses -------------------------------------------------------------------------------------------------


def test_trajectories_are_the_paths_given():
    x0 = uniform(5)
    exact = x0 + torch.linspace(0, 1, 7)[:, None, None]
    jumps = x0 + torch.linspace(0, 1, 4)[:, None, None] ** 2
    ax = figures.trajectories(x0, exact, jumps, background=uniform(50)).axes[0]
    lines = [c for c in ax.collections if hasattr(c, "get_segments")]
    for line, path in zip(lines, (exact, jumps), strict=True):
        np.testing.assert_allclose(np.stack(line.get_segments()), path.swapaxes(0, 1).numpy(), atol=1e-6)
    assert legend_of(ax) == ["exact flow", "map, one jump", "start, t = 0"]
    with pytest.raises(ValueError, match=r"exact_paths must have shape \(T, 5, 2\), times first, got \(5, 7, 2\)"):
        figures.trajectories(x0, exact.swapaxes(0, 1), jumps)


def test_losses_have_a_column_a_stage_and_a_smoothed_line_over_the_raw():
    rows = [{"stage": "teacher", "step": k, "loss": 2.0 + (-1) ** k, "diagonal": 3.0, "rate": 1e-3} for k in range(100)]
    rows += [{"stage": "map", "step": k, "loss": 1.0 - 0.1 * k, "lagrangian": 0.5, "seconds": k} for k in range(50)]
    rows += [{"stage": "map", "step": 50, "loss": math.nan}, {"stage": "map", "note": "a checkpoint"}]
    teacher, jumps, diagonal, lagrangian = figures.losses(rows).axes
    assert (teacher.get_title(), jumps.get_title()) == ("teacher", "map")
    raw, smooth = (np.asarray(line.get_ydata()) for line in teacher.lines)
    np.testing.assert_array_equal(raw, [2.0 + (-1) ** k for k in range(100)])
    assert np.abs(smooth - 2).max() < 0.35 < np.abs(raw - 2).max()
    assert teacher.get_yscale() == "log"
    assert jumps.get_yscale() == "linear"  # a learned weight makes a loss negative
    assert len(np.asarray(jumps.lines[0].get_xdata())) == 50
    assert legend_of(diagonal) == ["diagonal"]
    assert legend_of(lagrangian) == ["lagrangian"]
    with pytest.raises(ValueError, match="got 1 rows without"):
        figures.losses([{"step": 1}])


# quality, compare -----------------------------------------------------------------------------------------------------


def test_quality_is_kl_above_its_floor_against_evaluations():
    ax = figures.quality(ROWS).axes[0]
    assert "above floor" in ax.get_ylabel()
    line = next(line for line in ax.lines if line.get_label() == "map")
    np.testing.assert_allclose(line.get_xydata(), [[1, 0.199], [4, 0.099]])
    mark = next(line for line in ax.lines if line.get_label() == "teacher, dopri5")
    np.testing.assert_allclose(mark.get_xydata(), [[98, 0.065]])
    assert legend_of(ax) == ["map", "teacher, dopri5", "teacher, euler"]
    assert ax.get_yscale() == "log"


def test_quality_falls_back_to_what_the_rows_have():
    without = [{k: v for k, v in row.items() if k not in ("kl", "kl_floor")} for row in ROWS]
    assert "W_2" in figures.quality(without).axes[0].get_ylabel()
    energy = [{"sampler": "map", "nfe": k, "energy": value} for k, value in ((1, 0.1), (2, -1e-4))]
    ax = figures.quality(energy).axes[0]
    assert "energy" in ax.get_ylabel()
    assert ax.get_yscale() == "linear"
    with pytest.raises(ValueError, match="no row has a figure of quality"):
        figures.quality([{"sampler": "map", "nfe": 1}])


def test_compare_draws_a_line_a_method_and_the_teacher_as_a_level():
    rows = [ROWS[0], *({**row, "method": method} for method in ("lmd", "psd") for row in ROWS[2:])]
    ax = figures.compare(rows).axes[0]
    assert legend_of(ax) == ["lmd", "psd", "teacher, dopri5, 98 evaluations"]
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[1, 0.199], [4, 0.099]])
    np.testing.assert_allclose(ax.lines[2].get_ydata(), 0.065)
    with pytest.raises(ValueError, match="needs rows of maps"):
        figures.compare(ROWS[:2])


# images, saving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 1, 8, 8), (6, 3, 8, 8)])
def test_image_grid_places_images_by_rows(shape: tuple[int, ...]):
    images = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    axes = figures.image_grid(images, 2, ["1 step", "4 steps"], columns=["3", "5", "7"]).axes
    shown = np.stack([np.asarray(ax.images[0].get_array()) for ax in axes])
    expected = images.numpy() / (math.prod(shape) - 1)
    expected = expected.reshape(6, 8, 8) if shape[1] != 3 else np.moveaxis(expected, 1, 3)
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    assert [ax.get_ylabel() for ax in axes] == ["1 step", "", "", "4 steps", "", ""]
    assert [ax.get_title() for ax in axes] == ["3", "5", "7", "", "", ""]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.samples({}), "at least one panel"),
        (lambda: figures.samples({"a": torch.zeros(4, 3)}), r"panel 'a' must be points of the plane \(N, 2\)"),
        (lambda: figures.image_grid(torch.zeros(5, 8, 8), 2), "multiple of rows, got 5 images in 2 rows"),
        (lambda: figures.image_grid(torch.zeros(4, 64), 2), r"\(N, H, W\)"),
        (lambda: figures.image_grid(torch.zeros(4, 8, 8), 2, ["one"]), "needs 2 labels and 2 columns or none, got 1"),
    ],
)
def test_refusals(draw, message: str):
    with pytest.raises(ValueError, match=message):
        draw()


def test_nothing_global_is_touched_and_a_figure_is_saved_in_one_stroke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = dict(matplotlib.rcParams)
    path = figures.save(figures.quality(ROWS), tmp_path / "quality.png")
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs  # no figure of pyplot's
    old = path.read_bytes()
    pixels = imread(io.BytesIO(old))
    assert pixels.shape[1] == pytest.approx(6.4 * 144, abs=1)
    assert pixels[0, 0].tolist() == [1, 1, 1, 1]

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        figures.save(figures.compare(ROWS), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["quality.png"]
