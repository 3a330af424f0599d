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

from flowmaps.reports import figures


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


def test_quality_is_what_methods_are_ranked_by():
    energy = [{"sampler": "map", "nfe": k, "energy": value, "w2": 5.0} for k, value in ((1, 0.1), (2, -1e-4))]
    ax = figures.quality(energy).axes[0]
    assert ax.get_ylabel() == "energy distance to data [units of x]"
    assert ax.get_yscale() == "linear"
    between = [{**row, "energy": 0.1, "energy_floor": floor} for row, floor in zip(energy, (0.01, 0.01), strict=True)]
    ax = figures.quality(between).axes[0]
    assert legend_of(ax) == ["map", "between real rows"]
    assert figures.quality([{**row, "energy_floor": -0.01} for row in between]).axes[0].get_yscale() == "log"
    images = [{"sampler": "map", "nfe": 1, "fd": 1400.0, "fd_floor": 400.0, "fd_name": "FD (x)"}]
    ax = figures.quality(images).axes[0]
    assert ax.get_ylabel() == "FD (x)\nabove that of real images"
    assert list(ax.lines[0].get_ydata()) == [1000.0]
    with pytest.raises(ValueError, match="needs a row with KL, energy or Fréchet distance, got 1 without"):
        figures.quality([{"sampler": "map", "nfe": 1}])


@pytest.mark.parametrize("high", [1.05, 1.3, 2.0, 3.0, 10.0, 100.0])
def test_an_axis_has_numbers_however_short_its_range(high: float):
    rows = [{"sampler": "map", "nfe": n, "energy": 1010.0 * value} for n, value in ((1, high), (4, 1.0))]
    ax = figures.quality(rows).axes[0]
    low, top = ax.get_ylim()
    assert len([tick for tick in ax.get_yticks() if low <= tick <= top]) >= 2


def test_a_row_without_a_floor_is_not_drawn_beside_rows_above_theirs():
    rows = method("lmd", {1: 0.2, 4: 0.1})
    bare = {name: value for name, value in rows[1].items() if name != "kl_floor"} | {"steps": 8}
    ax = figures.compare([*rows, bare]).axes[0]
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["1 step", "4 steps"]


def method(name: str, values: dict[int, float], **more) -> list[dict]:
    rows = [{"kl": value + 0.001, "kl_floor": 0.001, "steps": steps} for steps, value in values.items()]
    return [{"sampler": "map", "method": name, **row, **more} for row in rows]


def dots_of(ax, y: int) -> list[tuple[float, str]]:
    """The dots of a row with their markers, in the order of steps."""
    lines = [line for line in ax.lines if line.get_marker() in ("o", "<", ">") and line.get_ydata()[0] == y]
    return [(float(line.get_xdata()[0]), str(line.get_marker())) for line in lines]


def test_compare_has_a_row_a_method_best_in_four_steps_first_and_the_diverged_last():
    rows = [
        {"sampler": "map", "method": "sct", "diverged": True},
        *method("psd", {1: 0.1, 4: 0.3, 8: 0.05}),
        *method("lmd", {1: 0.5, 4: 0.2, 8: 0.1}, distilled=True),
        {**ROWS[0], "method": "lmd"},
        {**ROWS[0], "method": "emd", "kl": 0.5},
    ]
    figure = figures.compare(rows)
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["lmd", "psd", "sct"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
    assert dots_of(ax, 0) == [(pytest.approx(value), "o") for value in (0.5, 0.2, 0.1)]
    assert dots_of(ax, 1) == [(pytest.approx(value), "o") for value in (0.1, 0.3, 0.05)]
    assert dots_of(ax, 2) == []
    assert [(text.get_text(), text.get_position()[1]) for text in ax.texts] == [("diverged", 2)]
    diamonds = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "D"]
    assert diamonds == [0]
    steps, notes = ([text.get_text() for text in legend.get_texts()] for legend in figure.legends)
    assert steps == ["1 step", "4 steps", "8 steps"]
    assert notes == ["distilled from a teacher", "teacher, dopri5, 98 evaluations"]
    rule = next(line for line in ax.lines if str(line.get_label()).startswith("teacher"))
    np.testing.assert_allclose(rule.get_xydata(), [[0.065, -0.6], [0.065, 1.5]])  # beside the rows that have dots
    assert ax.get_xlabel().endswith("less is better; best in 4 steps first")


def test_compare_shows_what_is_off_its_axis_at_the_ends():
    rows = [*method("a", {1: 0.2, 4: -1e-4}), *method("b", {1: 0.3, 4: 1e9}), *method("c", {1: 0.1, 4: math.inf})]
    ax = figures.compare(rows).axes[0]
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["a", "b", "c"]
    left, right = ax.get_xlim()
    (_, (low, first)), (_, (high, last)) = dots_of(ax, 0), dots_of(ax, 1)
    assert (first, last) == ("<", ">")
    assert left < low < 0.1
    assert 0.3 < high < right < 1e4
    assert dots_of(ax, 2) == [(pytest.approx(0.1), "o")]


def test_compare_of_one_method_has_no_notes_and_other_steps_are_ordered_by_the_nearest_to_four():
    figure = figures.compare([*method("a", {2: 0.2, 16: 0.1}), *method("b", {2: 0.1, 16: 0.3})])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["b", "a"]
    assert len(figure.legends) == 1
    with pytest.raises(ValueError, match="needs rows of maps"):
        figures.compare(ROWS[:2])


def test_the_scale_of_samples_is_that_of_a_reference_that_is_not_drawn():
    narrow, data = uniform(20_000, half=0.2), uniform(30_000)
    alone, beside = figures.samples({"map": narrow}), figures.samples({"map": narrow}, reference=data)
    assert [ax.get_title() for ax in beside.axes if ax.get_title()] == ["map"]
    assert beside.axes[0].images[0].norm.vmax == pytest.approx(0.25, rel=0.7)  # a uniform density on [-1, 1]^2
    assert alone.axes[0].images[0].norm.vmax > 5
    assert figures.samples({"map": narrow}, reference=3 * data).axes[0].get_xlim()[1] > 2.9
    lost = figures.samples({"map": torch.full((20_000, 2), math.nan)}, reference=data)
    assert not np.asarray(lost.axes[0].images[0].get_array()).any()


# saving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.samples({}), "at least one panel"),
        (lambda: figures.samples({"a": torch.zeros(4, 3)}), r"panel 'a' must be points of the plane \(N, 2\)"),
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
