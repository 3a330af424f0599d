"""The style of all plots: colours, axes, extents, smoothing.

Each colour has one meaning: blue is the map, orange the teacher, grey the data or the exact flow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from torch import Tensor

from ..evaluation.measure import Row
from ..evaluation.sampling import OF_MAP, steps_in_words
from .spread import Spread

RowValue = Callable[[Row], float | None]
Box = tuple[float, float, float, float]

INK, FAINT, RULE, BAR = "#24292f", "#6e7781", "#e4e6e9", "#c6ccd2"
MAP, TEACHER, EXACT = "#1f6feb", "#e0762f", "#9aa1a9"
COLOURS = ("#1f6feb", "#e0762f", "#1a9a6c", "#c23b8f", "#7f56d9", "#c99a06", "#3ea6c9", "#57606a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "d")
DENSITY = LinearSegmentedColormap.from_list("density", ["#ffffff", "#cfe1fb", "#6ea8f7", "#1f6feb", "#0b2a5e"])


def name_of(row: Row) -> str:
    """The name of a row's sampler: of a map its method, if the row has one; of another sampler with its solver."""
    if row["sampler"] == "map":
        return str(row.get("method", "map"))
    name = OF_MAP if row.get("velocity") == "own" else str(row["sampler"])
    return f"{name}, {row['solver']}" if row.get("solver") else name


def array(x: Any) -> np.ndarray:
    """A tensor or an array as a float64 array."""
    return np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64)


def plane_points(x: Any, name: str) -> np.ndarray:
    """Points `(N, 2)`, refused when of another shape, without those that are not finite."""
    points = array(x)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{name} must be points of the plane (N, 2), got shape {points.shape}: choose two columns.")
    return points[np.isfinite(points).all(1)]


def checked_paths(x: Any, starts: np.ndarray, name: str) -> np.ndarray:
    """Paths `(T, N, 2)` from N starts, refused when of another shape."""
    points = array(x)
    if points.ndim != 3 or points.shape[1:] != starts.shape:
        raise ValueError(f"{name} must have shape (T, {len(starts)}, 2), times first, got {points.shape}.")
    return points


def extent(reference: np.ndarray) -> Box:
    """[-1.25, 1.25]^2 where the points lie in it, else a square round them with a margin."""
    if len(reference) == 0 or np.abs(reference).max() <= 1.25:
        return (-1.25, 1.25, -1.25, 1.25)
    low, high = reference.min(0), reference.max(0)
    middle, half = (low + high) / 2, 0.54 * float((high - low).max())
    return (middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half)


def draw_densities(
    figure: Figure, axes: Sequence[Axes], points: Sequence[np.ndarray], box: Box, reference: np.ndarray
) -> None:
    """A histogram an axis in units of density, on one grid and the reference's colour scale; the colour bar."""
    least = min(len(x) for x in points)
    bins = 50 if least < 100_000 else 100  # on [-1.25, 1.25] both have edges at the multiples of 0.25
    area = (box[1] - box[0]) * (box[3] - box[2]) / bins**2
    scale, *grids = [
        np.histogram2d(*x.T, bins=bins, range=(box[:2], box[2:]))[0].T / (max(len(x), 1) * area)
        for x in (reference, *points)
    ]
    norm = PowerNorm(0.5, 0, float(np.quantile(scale[scale > 0], 0.99)) if scale.any() else 1.0)
    for ax, grid in zip(axes, grids, strict=False):
        image = ax.imshow(grid, origin="lower", extent=box, cmap=DENSITY, norm=norm, interpolation="nearest")
    bar = figure.colorbar(image, ax=list(axes), shrink=0.75, aspect=30, pad=0.01, extend="max")
    bar.set_label("density", fontsize=8, color=FAINT)
    bar.ax.tick_params(labelsize=7, colors=FAINT, length=2)
    bar.locator = MaxNLocator(4)
    bar.outline.set_edgecolor(RULE)  # pyright: ignore[reportCallIssue]


def draw_curves(ax: Axes, rows: Sequence[Row], lines: Mapping[str, RowValue], colours: Sequence[str]) -> None:
    """Lines against "step": a running mean over the raw values, on a logarithmic axis where all are positive."""
    everything: list[float] = []
    for k, (name, value) in enumerate(lines.items()):
        pairs = [(row["step"], value(row)) for row in rows if value(row) is not None]
        steps, values = np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T
        kept = np.isfinite(values)
        steps, values = steps[kept], values[kept]
        colour = colours[k % len(colours)]
        ax.plot(steps, values, color=colour, lw=0.8, alpha=0.3)
        ax.plot(steps, running_mean(values, len(values) // 25), color=colour, lw=1.8, label=name)
        everything += values.tolist()
    if everything and min(everything) > 0:
        ax.set_yscale("log")
        tidy_log(ax.yaxis, *ax.get_ylim())
    light_axes(ax)
    if lines:
        legend(ax)
    else:
        ax.text(0.5, 0.5, "none logged", transform=ax.transAxes, ha="center", color=FAINT, fontsize=9)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` values on either side, over fewer at the ends."""
    window = np.ones(2 * max(width, 0) + 1)
    if len(values) < len(window):
        return values
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def tidy_log(axis: Axis, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis from `low` to `high`: a few of each decade where there are few decades, and
    at equal distances within half of one."""
    decades = np.log10(high / low)
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1.1 else (1.0, 2.0, 5.0) if decades < 2.2 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs) if decades > 0.4 else MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if 1e-4 <= x < 1e5 else f"{x:.0e}"))
    axis.set_minor_formatter(NullFormatter())
    if decades <= 0.4:  # the minor ones are those of decades
        axis.set_minor_locator(NullLocator())


def powers_of_two(ax: Axes, numbers: Sequence[float]) -> None:
    """A logarithmic first axis ticked at 1, 2, 4, ... over the range of `numbers`."""
    ax.set_xscale("log", base=2)
    low, high = np.floor(np.log2(min(numbers))), np.ceil(np.log2(max(numbers)))
    ax.set_xticks([2.0**k for k in range(int(low), int(high) + 1)])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def value_axis(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic second axis where all values are positive (less is better, over decades), else a linear one."""
    if min(values) > 0:
        ax.set_yscale("log")
        ax.margins(y=0.15)
        if min(values) == max(values):  # no range to take a margin of
            ax.update_datalim([(ax.dataLim.x0, values[0] / 1.5), (ax.dataLim.x0, values[0] * 1.5)])
        tidy_log(ax.yaxis, *ax.get_ylim())
    else:
        ax.axhline(0, color=FAINT, lw=0.8)


def shades(number: int) -> list[Any]:
    """Colours from light to dark, one for each of some numbers in rising order."""
    return [DENSITY(share) for share in np.linspace(0.3, 1.0, number)] if number > 1 else [MAP]


def rows_of_dots(
    ax: Axes, lines: Sequence[Mapping[int, Spread]], colours: Mapping[int, Any], others: Sequence[float] = ()
) -> None:
    """One row per method; in it one dot per number of steps, on a bar spanning their range.

    Rows run from the top down; each of `lines` takes a number of steps to a mean and its spread. The axis is
    logarithmic. Triangles at its ends are means beyond it: at the left those that are not positive, at the right those
    above a thousand times the median. Dots are smaller the more steps, so that none hides another; where they have a
    spread they lie a little above each other, each with a line of one standard deviation on either side. The axis has
    room for the `others`, values that are drawn elsewhere.
    """
    spreads = [value for line in lines for value in line.values()]
    reached = [value.mean + sign * (value.std or 0.0) for value in spreads for sign in (-1, 1)]
    least = min((value.mean for value in spreads if value.mean > 0), default=1.0) / 4  # a bar may reach below zero
    shown = [*(value for value in others if value > 0), *(value for value in reached if value > least)]
    positive = sorted(shown) or [1.0]
    low, high = positive[0] / 1.25, min(positive[-1], 1e3 * positive[len(positive) // 2]) * 1.25
    ax.set_xscale("log")
    ax.set_xlim(low / 1.1, high * 1.1)
    tidy_log(ax.xaxis, low, high)
    raised = any(value.std is not None for line in lines for value in line.values())
    heights = dict(zip(colours, np.linspace(-0.24, 0.24, len(colours)), strict=True)) if raised else {}
    for y, line in enumerate(lines):
        ends = [min(max(value.mean, low), high) for value in line.values()]
        if line:
            ax.axhline(y, color=RULE, lw=0.8, zorder=0)
            if not raised:
                ax.plot([min(ends), max(ends)], [y, y], color=BAR, lw=3, solid_capstyle="round", zorder=2)
        for k, steps in enumerate(sorted(line)):
            share = k / max(len(colours) - 1, 1)
            _dot(ax, line[steps], y + heights.get(steps, 0.0), (low, high), colours[steps], share)


def _dot(ax: Axes, value: Spread, y: float, limits: tuple[float, float], colour: Any, share: float) -> None:
    """A mean as a dot, smaller the greater `share`, or as a triangle at the end beyond which it lies; its spread."""
    low, high = limits
    if value.std is not None:
        ends = [min(max(value.mean + sign * value.std, low / 1.1), high * 1.1) for sign in (-1, 1)]
        ax.plot(ends, [y, y], color=colour, lw=1.5, solid_capstyle="butt", zorder=2.5)
    marker = "<" if value.mean <= 0 else ">" if value.mean > high else "o"
    size = (5.4 if value.std is not None else 8.6) - (1.2 if value.std is not None else 2.4) * share
    dot = {"color": colour, "mec": "white", "mew": 0.7, "ms": size, "zorder": 3 + 0.01 * share}
    ax.plot([min(max(value.mean, low), high)], [y], marker, **dot)


def step_marks(colours: Mapping[int, Any]) -> list[Line2D]:
    """The entries of a legend for `rows_of_dots`."""
    marks = {"marker": "o", "mec": "white", "mew": 0.7, "ms": 8, "ls": "none"}
    return [Line2D([], [], color=c, label=steps_in_words(n), **marks) for n, c in colours.items()]


def distilled_mark() -> list[Line2D]:
    """The entry of a legend for the mark of `label_rows`."""
    return [Line2D([], [], color=TEACHER, marker="D", ms=5, ls="none", label="distilled from a teacher")]


def spread_mark(lost: bool) -> list[Line2D]:
    """The entries of a legend for the lines of `rows_of_dots`, and for names with a star if there are any."""
    bar = Line2D([], [], color=FAINT, lw=1.5, label="one standard deviation over seeds")
    star = Line2D([], [], color=FAINT, marker="*", ms=6, ls="none", label="a seed diverged, and is left out")
    return [bar, star] if lost else [bar]


def vertical_line(ax: Axes, rows: Sequence[Row], mean: float, height: int) -> list[Line2D]:
    """The mean quality of rows of one sampler as a vertical line beside the first rows of `rows_of_dots`."""
    evaluations = round(float(np.mean([row.get("nfe", np.nan) for row in rows])))
    name = f"{name_of(rows[0])}, {evaluations} evaluations"
    return ax.plot([mean, mean], [-0.6, height - 0.5], color=TEACHER, lw=1.3, ls=(0, (4, 3)), label=name)


def label_rows(
    ax: Axes, names: Sequence[str], marked: Collection[str], diverged: Collection[str], starred: Collection[str] = ()
) -> None:
    """Names of the rows from the top down, some with the teacher's mark before the axis; diverged ones in grey."""
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), [f"{name} *" if name in starred else name for name in names])
    ax.tick_params("y", length=0, pad=13, labelsize=9)
    for y, (name, text) in enumerate(zip(names, ax.get_yticklabels(), strict=True)):
        text.set_color(FAINT if name in diverged else INK)
        if name in marked:
            place = {"transform": ax.get_yaxis_transform(), "clip_on": False}
            ax.plot([-0.017], [y], "D", color=TEACHER, ms=4.5, **place)
        if name in diverged:
            words = {"va": "center", "color": FAINT, "fontsize": 8.5, "style": "italic"}
            ax.text(0.012, y, "diverged", transform=ax.get_yaxis_transform(), **words)


def light_axes(ax: Axes, xlabel: str = "", ylabel: str = "") -> None:
    """Light grid lines, no frame above and to the right, small labels."""
    ax.grid(True, color=RULE, lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(EXACT)
    ax.tick_params(which="both", labelsize=8.5, colors=FAINT, length=3)
    if xlabel:
        ax.set_xlabel(xlabel, fontsize=9.5, color=INK)
    if ylabel:
        ax.set_ylabel(ylabel, fontsize=9.5, color=INK)


def legend(where: Axes | Figure, **place: Any) -> None:
    """A legend without a frame, small."""
    where.legend(frameon=False, fontsize=8.5, labelcolor=INK, **place)


def plane_axes(ax: Axes, box: Box) -> None:
    """A square picture of the plane: equal units, few ticks, a thin frame."""
    ax.set(xlim=box[:2], ylim=box[2:], aspect="equal")
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.tick_params(labelsize=7, colors=FAINT, length=2)
    ax.spines[:].set_color(EXACT)
    ax.spines[:].set_linewidth(0.6)
