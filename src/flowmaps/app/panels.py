"""The pictures of the page, as matplotlib's figures: of points in any dimension, of images and of digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from ..data import Units
from ..reports import figures, style
from ..reports.image_grid import image_grid, ink_on_paper
from ..reports.pictures.images import steps_grid
from ..reports.pictures.parts import class_names, classes_in, ten_rows, to_pixels
from ..reports.pictures.points import digits
from .carrying import Carried
from .jumps import Jumped
from .opened import OpenRun
from .samples import Drawn, seconds_in_words

Columns = tuple[int, int]
"""The two columns of points that a picture shows, the horizontal one first."""
MAX_NAMES = 64
"""Columns without names that can be chosen."""
MARGIN = 0.06
"""Of an axis, over the range of what it shows."""


def names_of(units: Units) -> list[str]:
    """The names of the columns of points, in the order of `Units.to_data`."""
    if units.table is not None:
        names = [column.name for column in units.table.columns]
        return names if units.table.named else [f"column {name}" for name in names]
    return [f"x{k + 1}" for k in range(min(units.dim, MAX_NAMES))]


def drawn_as_images(run: OpenRun) -> bool:
    """Whether samples are drawn as images: pictures, and the digits of 8 x 8 pixels, which are points for the map."""
    return run.units.pictures or run.plan.recipe.data == "digits"


def samples(run: OpenRun, drawn: Sequence[Drawn], columns: Columns = (0, 1)) -> Figure:
    """Samples by each sampler beside each other, with the seconds that they took.

    Args:
        run: the run.
        drawn: from `same_noise`.
        columns: of points, which to show.
    """
    if run.units.pictures:  # a second line of a title is fainter; steps_grid makes that of the teacher
        joined = {True: ", ", False: "\n"}
        titled = {_timed(one, joined[one.solved]): one.samples for one in drawn}
        return steps_grid(run.units, titled)
    titled = {_timed(one, "\n"): one.samples for one in drawn}
    if drawn_as_images(run):
        labels = classes_in(drawn[0].samples.cond)
        return digits(titled, each=10 if labels is not None and len(labels.unique()) == 1 else 1)
    data = run.data(len(drawn[0].samples.x), 0)
    real = {} if data is None else {"data\n": data[0]}
    return clouds(run, real | {title: taken.x for title, taken in titled.items()}, columns)


def _timed(one: Drawn, joined: str) -> str:
    return f"{one.title}{joined}{seconds_in_words(one.samples.seconds)}"


def clouds(run: OpenRun, panels: Mapping[str, Tensor], columns: Columns, *, own_axes: bool = False) -> Figure:
    """Points in the units of the data beside each other, on the axes of the first panel; histograms of one column.

    Args:
        run: the run.
        panels: title -> points `(N, *shape)` in the network's coordinates.
        columns: which columns to show.
        own_axes: whether each panel has axes of its own, over its own points.
    """
    shown = {title: shown_columns(run.units, x, columns) for title, x in panels.items()}
    first = next(iter(shown.values()))
    names = names_of(run.units)
    if first.shape[1] == 1:
        return _histograms(shown, names[0])
    if run.units.table is None and run.units.in_plane and not own_axes:
        return figures.samples({title: torch.from_numpy(x) for title, x in shown.items()})
    across = min(len(shown), 3)
    rows = -(-len(shown) // across)
    figure = Figure(figsize=(2.9 * across + 0.6, 3.15 * rows), layout="constrained")
    axes = figure.subplots(rows, across, squeeze=False).ravel()
    for ax, (title, x) in zip(axes, shown.items(), strict=False):
        ax.scatter(x[:, 0], x[:, 1], s=min(8.0, 6000 / max(len(x), 1)), c=style.MAP, alpha=0.5, linewidths=0)
        _free_axes(ax, x if own_axes else first, [names[k] for k in columns])
        ax.set_title(title, fontsize=10, color=style.INK)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    return figure


def shown_columns(units: Units, x: Tensor, columns: Columns) -> np.ndarray:
    """Points in the units of the data, `(N, 2)` of the columns chosen, or `(N, 1)` of data with one."""
    values = units.to_data(x).double().flatten(1)
    if values.shape[1] > 1:
        values = values[:, list(columns)]
    return values.numpy()


def _histograms(shown: Mapping[str, np.ndarray], name: str) -> Figure:
    """Densities of one column: of the data in grey, of the map in blue, of the teacher in orange."""
    figure = Figure(figsize=(9.3, 4.6), layout="constrained")
    ax = figure.subplots()
    first = next(iter(shown.values()))
    low, high = _range(first[:, 0])
    bins = np.linspace(low, high, 61)
    of_map = [title for title in shown if not title.startswith(("data", "teacher"))]
    colours = dict(zip(of_map, style.shades(len(of_map)), strict=True))
    for title, x in shown.items():
        words = title.strip().replace("\n", ", ")
        options = {"bins": bins, "density": True, "label": words}
        if title.startswith("data"):
            ax.hist(x[:, 0], color=style.BAR, alpha=0.6, **options)
        else:
            ax.hist(x[:, 0], histtype="step", lw=1.6, color=colours.get(title, style.TEACHER), **options)
    style.light_axes(ax, name, "density")
    style.legend(ax)
    return figure


def _range(x: np.ndarray) -> tuple[float, float]:
    """The range of finite numbers with a margin."""
    finite = x[np.isfinite(x)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    margin = MARGIN * (high - low) or 0.5
    return low - margin, high + margin


def _free_axes(ax: Axes, reference: np.ndarray, names: Sequence[str]) -> None:
    """Axes over the range of a reference, each in the units of its own column."""
    ax.set(xlim=_range(reference[:, 0]), ylim=_range(reference[:, 1]))
    style.light_axes(ax, *names)


# where points go ------------------------------------------------------------------------------------------------------


def jumped(run: OpenRun, found: Jumped, columns: Columns = (0, 1), flow: str = "") -> Figure:
    """Points of time s and where they go, over the trajectories of the flow; of images a row a time.

    Args:
        run: the run.
        found: from `jump`.
        columns: of points, which to show.
        flow: what the flow is called.
    """
    if drawn_as_images(run):
        return _jumped_images(run, found, flow)
    noise, start, end = (shown_columns(run.units, x, columns) for x in (found.noise, found.start, found.end))
    of_map = _paths(run.units, found.map_paths, columns)
    of_flow = None if found.flow_paths is None else _paths(run.units, found.flow_paths, columns)
    names, whole = names_of(run.units), np.concatenate([noise, end])
    figure = Figure(figsize=(6.8, 6.8), layout="constrained")
    ax = figure.subplots()
    if start.shape[1] == 1:
        _lines_over_time(ax, found, of_map, of_flow)
        ax.set_ylim(_range(whole))
        style.light_axes(ax, "time", names[0])
    else:
        _lines_in_plane(ax, start, end, of_map, of_flow)
        if run.units.table is None and run.units.in_plane:
            style.plane_axes(ax, style.extent(np.quantile(whole, [0.003, 0.997], axis=0)))
        else:
            _free_axes(ax, whole, [names[k] for k in columns])
    style.legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, markerscale=2)
    return figure


def _paths(units: Units, paths: Tensor, columns: Columns) -> np.ndarray:
    """Trajectories `(T, n, *shape)` in the columns chosen, `(n, T, 2)` or `(n, T, 1)`."""
    shown = shown_columns(units, paths.flatten(0, 1), columns)
    return shown.reshape(*paths.shape[:2], -1).swapaxes(0, 1)


def _lines_in_plane(
    ax: Axes, start: np.ndarray, end: np.ndarray, of_map: np.ndarray, of_flow: np.ndarray | None
) -> None:
    size = min(8.0, 6000 / max(len(start), 1))
    ax.scatter(*start.T, s=size, c=style.BAR, alpha=0.7, linewidths=0, label="at s")
    ax.scatter(*end.T, s=size, c=style.MAP, alpha=0.45, linewidths=0, label="at t, one jump")
    if of_flow is not None:
        ax.add_collection(LineCollection(list(of_flow), colors=style.TEACHER, linewidths=3.2, alpha=0.5, label="flow"))
    ax.add_collection(LineCollection(list(of_map), colors=style.INK, linewidths=0.9, label="one jump to each time"))
    ax.scatter(*of_map[:, -1].T, s=14, c=style.INK, linewidths=0, zorder=3)


def _lines_over_time(ax: Axes, found: Jumped, of_map: np.ndarray, of_flow: np.ndarray | None) -> None:
    """Trajectories of one column against time."""
    times = found.times.numpy()
    for lines, options in (
        (of_flow, {"colors": style.TEACHER, "linewidths": 3.2, "alpha": 0.5, "label": "flow"}),
        (of_map, {"colors": style.INK, "linewidths": 0.9, "label": "one jump to each time"}),
    ):
        if lines is not None:
            curves = [np.stack([times, line[:, 0]], axis=1) for line in lines]
            ax.add_collection(LineCollection(curves, **options))
    ax.set_xlim(_range(times))


def _jumped_images(run: OpenRun, found: Jumped, flow: str) -> Figure:
    """A row for each time from s to t, each one jump from the first; below, where the flow arrives."""
    rows = [found.map_paths[0], *found.map_paths[1:]]
    labels = [f"time {found.s:.2f}\nstart", *(f"time {float(r):.2f}\none jump" for r in found.times[1:])]
    if found.flow_paths is not None:
        rows.append(found.flow_paths[-1])
        labels.append(f"time {found.t:.2f}\n{flow}")
    few = [x[:10] for x in rows]
    labels_of_classes = classes_in(found.cond)
    heads = class_names(run.units, None if labels_of_classes is None else labels_of_classes[:10])
    return image_grid(torch.cat([_images(run, x) for x in few]), len(few), labels, columns=heads)


def _images(run: OpenRun, x: Tensor) -> Tensor:
    """Samples as images `(N, C, H, W)` of 0..255; digits as ink on paper."""
    if run.units.pictures:
        return to_pixels(run.units, x)
    return ink_on_paper(x.reshape(-1, 8, 8).nan_to_num(-1.0).clamp(-1, 1))


# to noise and back ----------------------------------------------------------------------------------------------------


def carried(run: OpenRun, found: Carried, columns: Columns = (0, 1)) -> Figure:
    """Data, what they were taken back to, and what came of it."""
    as_class = "back" if found.target is None else f"as {found.target}"
    if not drawn_as_images(run):
        panels = {"data": found.data, "taken back": found.noise, as_class: found.back}
        return clouds(run, panels, columns, own_axes=True)
    rows, labels = ten_rows(len(found.data), found.labels)
    shown = [_images(run, x[rows]) for x in (found.data, found.noise, found.back)]
    heads = class_names(run.units, labels)
    return image_grid(torch.cat(shown), 3, ["data", "taken back", as_class], columns=heads)
