"""Plots of points, trajectories, losses and metrics, and `save`, which writes any figure as a PNG file.

Each function returns a `matplotlib.figure.Figure` and touches no global state of matplotlib: no pyplot, no rcParams, so
that it may be called from any thread and leaves the user's own settings alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from ..evaluation.quality import ENERGY, quality_of
from ..system.files import write_atomically
from . import spread, style
from .style import COLOURS, EXACT, FAINT, INK, MAP, MARKERS, TEACHER, Row, steps_in_words

NOT_RESIDUALS = ("stage", "step", "loss", "norm", "rate", "skipped", "spikes", "seconds")
"""The entries of a line of log.jsonl that are no residuals."""
MIN_POINTS_OF_HISTOGRAM = 20_000
"""Points of the smallest panel from which panels are histograms; fewer points are drawn one by one."""


def samples(panels: Mapping[str, Tensor], *, reference: Tensor | None = None) -> Figure:
    """Points of the plane side by side, a panel a set: the data, the teacher's samples, the map's for each N.

    With 20,000 points or more in every panel each is a histogram in units of density, on one grid and one colour scale,
    that of the reference (square-root, so that mass between the modes shows); with fewer, the points.

    Args:
        panels: title -> points `(N, 2)`, in the order of display.
        reference: points `(M, 2)` that set the scale and the range of the axes and are not drawn; the first panel
            unless given.

    Raises:
        ValueError: there is no panel, or one is not `(N, 2)`.
    """
    if not panels:
        raise ValueError("samples needs at least one panel {title: points (N, 2)}, got none.")
    points = {title: style.plane_points(x, f"panel {title!r}") for title, x in panels.items()}
    first = next(iter(points.values())) if reference is None else style.plane_points(reference, "reference")
    box = style.extent(first)
    columns = len(points) if len(points) <= 4 else math.ceil(len(points) / 2)
    rows = math.ceil(len(points) / columns)
    figure = Figure(figsize=(2.9 * columns + 0.6, 3.15 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    least = min(len(x) for x in panels.values())
    if least < MIN_POINTS_OF_HISTOGRAM:
        for ax, x in zip(axes, points.values(), strict=False):
            ax.scatter(x[:, 0], x[:, 1], s=min(8.0, 6000 / max(len(x), 1)), c=MAP, alpha=0.5, linewidths=0)
    else:
        style.draw_densities(figure, axes[: len(points)].tolist(), list(points.values()), box, first)
    for ax, (title, x) in zip(axes, points.items(), strict=False):
        style.plane_axes(ax, box)
        ax.set_title(title, fontsize=10, color=INK)
        ax.set_xlabel(f"{len(x):,} points", fontsize=8, color=FAINT)
    for ax in axes[len(points) :]:
        ax.set_axis_off()
    return figure


def trajectories(
    starts: Tensor,
    exact_paths: Tensor,
    map_paths: Tensor,
    *,
    background: Tensor | None = None,
    exact: str = "exact flow",
) -> Figure:
    """The map's jumps t -> X_{0,t}(x0) over the flow's own trajectories from the same points.

    Args:
        starts: x0, `(N, 2)`; some 30 points read well.
        exact_paths: the flow at increasing times, `(T, N, 2)`.
        map_paths: the map at increasing times, each by one jump from x0, `(T', N, 2)`; T' may differ from T.
        background: data drawn faintly below, `(M, 2)`.
        exact: what the flow is called in the legend.

    Raises:
        ValueError: a shape is another one.
    """
    x0 = style.plane_points(starts, "starts")
    paths = [style.checked_paths(exact_paths, x0, "exact_paths"), style.checked_paths(map_paths, x0, "map_paths")]
    figure = Figure(figsize=(6.2, 6.2), layout="constrained")
    ax = figure.subplots()
    if background is not None:
        x = style.plane_points(background, "background")[:8000]
        ax.scatter(x[:, 0], x[:, 1], s=2, c=EXACT, alpha=0.25, linewidths=0, zorder=0)
    ax.add_collection(LineCollection(list(paths[0].swapaxes(0, 1)), colors=EXACT, linewidths=2.4, label=exact))
    ax.add_collection(LineCollection(list(paths[1].swapaxes(0, 1)), colors=MAP, linewidths=1.1, label="map, one jump"))
    ax.scatter(x0[:, 0], x0[:, 1], s=22, c="white", edgecolors=INK, linewidths=0.9, zorder=3, label="start, t = 0")
    for path, colour, size in ((paths[0], EXACT, 34), (paths[1], MAP, 14)):
        ax.scatter(path[-1, :, 0], path[-1, :, 1], s=size, c=colour, linewidths=0, zorder=3)
    style.plane_axes(ax, style.extent(np.concatenate([x0, *(p.reshape(-1, 2) for p in paths)])))
    style.legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def losses(rows: Sequence[Row]) -> Figure:
    """Loss and unweighted residuals against optimiser steps, a column a stage; a smoothed line over the raw one.

    Args:
        rows: lines of `log.jsonl` in order: each with "step" and "loss", "stage" where there are several, and by name
            the unweighted residuals: all other numbers but "rate" and "seconds". Lines without "loss" are passed over.

    Raises:
        ValueError: no row has a loss.
    """
    stages: dict[str, list[Row]] = {}
    for row in rows:
        if "loss" in row:
            stages.setdefault(str(row.get("stage", "")), []).append(row)
    if not stages:
        raise ValueError(f"losses needs rows with 'step' and 'loss', got {len(rows)} rows without: train first.")
    figure = Figure(figsize=(1.0 + 4.6 * len(stages), 5.6), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False, sharex="col")
    for column, (stage, lines) in enumerate(stages.items()):
        names = dict.fromkeys(name for row in lines for name in row if name not in NOT_RESIDUALS)
        residuals = {name: lambda row, name=name: row.get(name) for name in names}
        style.draw_curves(axes[0, column], lines, {"loss": lambda row: row["loss"]}, (INK,))
        style.draw_curves(axes[1, column], lines, residuals, COLOURS)
        axes[0, column].set_title(stage or "training", fontsize=11, color=INK)
        axes[1, column].set_xlabel("optimiser step", fontsize=9, color=FAINT)
    axes[0, 0].set_ylabel("loss, as minimised", fontsize=9, color=FAINT)
    axes[1, 0].set_ylabel("residual, unweighted", fontsize=9, color=FAINT)
    return figure


def quality(rows: Sequence[Row]) -> Figure:
    """Quality against the number of network evaluations: a line for the map, a mark for each solver of the teacher.

    The metric is that of `quality_of`: KL above its floor, energy distance, or Fréchet distance above that of real
    images; less is better in each.

    Args:
        rows: rows of `metrics.json`, each with "sampler" and "nfe".

    Raises:
        ValueError: no row has it.
    """
    metric = quality_of(rows)
    rated = [(row, value) for row in rows if (value := metric.of(row)) is not None]
    if not rated:
        raise ValueError(f"quality needs a row with KL, energy or Fréchet distance, got {len(rows)} without.")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.subplots()
    line = sorted((row["nfe"], value) for row, value in rated if row["sampler"] == "map")
    if line:
        ax.plot(*zip(*line, strict=True), "-o", color=MAP, lw=2, ms=6, label="map", zorder=3)
    others = [(row, value) for row, value in rated if row["sampler"] != "map"]
    for k, (row, value) in enumerate(others):
        ax.axhline(value, color=TEACHER, lw=0.8, ls=(0, (2, 3)), zorder=1)
        marker = MARKERS[1 + k % (len(MARKERS) - 1)]
        ax.plot([row["nfe"]], [value], marker, color=TEACHER, ms=7.5, ls="none", label=style.name_of(row))
    floors = [row["energy_floor"] for row, _ in rated if metric is ENERGY and "energy_floor" in row]
    real = [floor for floor in floors[:1] if floor > 0]  # by chance it may be negative: the axis is logarithmic
    for value in real:
        ax.axhline(value, color=EXACT, lw=1.2, label="between real rows")
    style.powers_of_two(ax, [row["nfe"] for row, _ in rated])
    style.value_axis(ax, [*(value for _, value in rated), *real])
    label = metric.label(rows).replace(" above that", "\nabove that")
    style.light_axes(ax, "network evaluations for each sample", label)
    style.legend(ax)
    return figure


def compare(rows: Sequence[Row]) -> Figure:
    """Quality of several methods on one axis: one row per method, in it one dot per number of steps.

    Of several seeds a dot is the mean, with a bar of one sample standard deviation on either side. Rows are sorted by
    quality in four steps, or in the number of steps nearest to four. The vertical line is the mean of the ODE of the
    methods whose rows have "distilled" true, or no such entry. A diamond in the teacher's colour marks methods with
    "distilled" true. Methods without a metric, which have diverged, stand at the bottom in grey.

    Args:
        rows: as in `quality`, each with "steps", and "method" where its sampler is the map.

    Raises:
        ValueError: no row of a map has a metric of quality.
    """
    maps = [row for row in rows if row["sampler"] == "map"]
    metric = quality_of(maps)
    found = {
        method: {n: of_n for n, of_n in spreads.items() if math.isfinite(of_n.mean)}
        for method, spreads in spread.of_steps(rows, metric).items()
    }
    numbers = sorted({steps for spreads in found.values() for steps in spreads})
    if not numbers:
        raise ValueError("compare needs rows of maps: {'sampler': 'map', 'method': ..., 'steps': ..., ...}, got none.")
    label = metric.label(maps)
    by = spread.nearest_four(numbers)
    names = sorted(found, key=lambda name: (not found[name], found[name][by].mean if by in found[name] else math.inf))
    diverged = [name for name in names if not found[name]]
    several = spread.several_seeds(rows)
    figure = Figure(figsize=(7.6, 1.5 + (0.34 if several else 0.26) * len(names)), layout="constrained")
    ax = figure.subplots()
    colours = dict(zip(numbers, style.shades(len(numbers)), strict=True))
    ode = _ode_of_teachers(rows)
    mean = spread.Spread.of([metric.of(row) for row in ode]).mean
    teacher = [mean] if math.isfinite(mean) else []
    style.rows_of_dots(ax, [found[name] for name in names], colours, teacher)
    style.light_axes(ax, f"{label}\nless is better; best in {steps_in_words(by)} first")
    ax.grid(visible=False, axis="y")
    distilled = {style.name_of(row) for row in maps if row.get("distilled")}
    lost = {name for name in names if any(of_n.lost for of_n in found[name].values()) and several}
    style.label_rows(ax, names, distilled, diverged, lost)
    style.legend(figure, handles=style.step_marks(colours), loc="outside upper center", ncols=len(numbers))
    notes = style.distilled_mark() if distilled else []
    notes += style.spread_mark(bool(lost)) if several else []
    for value in teacher:
        notes += style.vertical_line(ax, ode, value, len(names) - len(diverged))
    if notes:
        style.legend(figure, handles=notes, loc="outside lower center", ncols=2)
    return figure


def _ode_of_teachers(rows: Sequence[Row]) -> list[Row]:
    """The rows of the ODE, by the first solver, of teachers that maps are distilled from; a teacher and seed each."""
    teachers = [row for row in rows if row["sampler"] != "map" and row.get("distilled", True)]
    alike = [row for row in teachers if row.get("solver") == teachers[0].get("solver")]
    alike = [
        row for row in alike if row.get("teacher", "").split("-")[:3] == alike[0].get("teacher", "").split("-")[:3]
    ]
    return list({(row.get("teacher"), row.get("seed")): row for row in reversed(alike)}.values())


HEADING_HEIGHT = 50 / 144
"""Inches, of whole pixels at the resolution of image grids."""


def add_heading(figure: Figure, text: str) -> None:
    """Write a line above all axes, for which a figure of fixed axes, such as an image grid, becomes taller."""
    if figure.get_layout_engine() is not None:
        figure.suptitle(text, fontsize=11, color=INK)
        return
    width, height = figure.get_size_inches()
    taller = height + HEADING_HEIGHT
    figure.set_size_inches(width, taller)
    for ax in figure.axes:
        left, low, across, high = ax.get_position().bounds
        ax.set_position((left, low * height / taller, across, high * height / taller))
    figure.text(0.5, 1 - 0.4 * HEADING_HEIGHT / taller, text, fontsize=11, color=INK, ha="center", va="center")


def save(figure: Figure, path: str | PathLike[str], *, dpi: int = 144) -> Path:
    """Write a figure as a PNG in one stroke: a failure leaves an old file as it was and no other beside it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return write_atomically(path, buffer.getvalue())
