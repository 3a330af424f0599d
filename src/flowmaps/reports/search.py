"""The table and the picture of a search of settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation.measure import Row
from ..evaluation.results import Result
from ..runs.recipes.found import in_options
from . import style
from .style import FAINT, MAP, TEACHER
from .tables import NO_VALUE

COLUMNS = 4
"""Panels side by side."""


def table(recipe: str, methods: Mapping[str, Row], metric: str, given: str = "") -> str:
    """The results as Markdown: a table, and the lines for `flowmaps/runs/recipes/found.py`.

    Args:
        recipe: name of the recipe.
        methods: as tuned.json has them.
        metric: name of the score's metric.
        given: options that the search was given.
    """
    heading = ["method", "today", "found", "final, today", "final, found", "trials", "settings kept"]
    rows = [heading, ["---", *["---:"] * 5, "---"]]
    for name, one in methods.items():
        diverged = f", {one['diverged']} diverged" if one["diverged"] else ""
        words = f"`{in_options(one['settings'])}`" if one["settings"] else "today's"
        finals = [_with_spread(one["final"][kind]) for kind in ("today", "found")]
        scores = [_number(one["today_score"]), _number(one["score"])]
        rows.append([name, *scores, *finals, f"{one['trials']}{diverged}", words])
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    said = (
        f"Score: geometric mean of the {metric} over the numbers of sampling steps; less is better. Today, found: of "
        "the first trial, at today's settings, and of the best. Final: of both on the final seeds, mean ± sample "
        "standard deviation. Kept: what was found, where it is better there.\n\n"
    )
    return (
        f"{said}{lines}\nFor `src/flowmaps/runs/recipes/found.py`:\n\n```python\n{entries(recipe, methods, given)}```\n"
    )


def entries(recipe: str, methods: Mapping[str, Row], given: str = "") -> str:
    """The text for found.py: for each method its settings where a search found better ones.

    Where there are none it is a comment that says so.

    Args:
        recipe: name of the recipe.
        methods: as tuned.json has them.
        given: options that the search was given; a comment names them, as the settings do not have them.
    """
    at = f"# found with {given}, which these lines do not set\n" if given else ""
    lines = [f'    "{name}": {_python(one["settings"])},\n' for name, one in methods.items() if one["better"]]
    return f'{at}FOUND["{recipe}"] |= {{\n{"".join(lines)}}}\n' if lines else "# nothing better than today's settings\n"


def _python(settings: Mapping[str, Any]) -> str:
    """Settings as Python writes them, with double quotes."""
    pairs = (
        f'"{name}": ' + (f'"{value}"' if isinstance(value, str) else repr(value)) for name, value in settings.items()
    )
    return f"{{{', '.join(pairs)}}}"


def _number(score: float | None) -> str:
    return NO_VALUE if score is None else f"{score:.3g}"


def _with_spread(final: Row) -> str:
    spread = "" if final["spread"] is None else f" ± {final['spread']:.2g}"
    return "diverged" if final["seeds"] and final["mean"] is None else _number(final["mean"]) + spread


def figure(results: Mapping[str, Result], metric: str) -> Figure:
    """Score by trial, a panel a method: dots, the best so far as a line, today's settings as a dashed line.

    Args:
        results: by method, of which some may have no trial.
        metric: name of the score's metric.

    Raises:
        ValueError: there is no trial.
    """
    shown = {name: result for name, result in results.items() if result.trials}
    if not shown:
        raise ValueError("figure needs a trial, got none: run flowmaps tune first.")
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    picture = Figure(figsize=(max(2.6 * columns + 0.8, 6.6), 2.2 * rows + 1.0), layout="constrained")
    grid = picture.subplots(rows, columns, squeeze=False)
    for ax, (name, result) in zip(grid.flat, shown.items(), strict=False):
        _panel(ax, [row["score"] for row in result.trials])
        ax.set_title(name, fontsize=9.5, color=style.INK)
    for ax in list(grid.flat)[len(shown) :]:
        ax.set_axis_off()
    picture.supxlabel("trial; score: less is better", fontsize=9.5, color=style.INK)
    picture.supylabel(metric, fontsize=9.5, color=style.INK)
    entries = {label: line for ax in grid.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    style.legend(picture, handles=entries.values(), labels=entries, loc="outside upper center", ncols=len(entries))
    return picture


def _panel(ax: Axes, scores: Sequence[float | None]) -> None:
    """The trials of a method; those that diverged are crosses at the upper edge."""
    style.light_axes(ax)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlim(0.5, max(len(scores) + 0.5, 2))
    values = np.asarray([math.inf if score is None else score for score in scores])
    finite = np.flatnonzero(np.isfinite(values))
    lost = np.flatnonzero(~np.isfinite(values))
    ax.plot(1 + finite, values[finite], "o", color=MAP, ms=4.5, mec="white", mew=0.6, label="a trial")
    best = np.minimum.accumulate(values)
    known = np.isfinite(best)
    ax.plot(1 + np.flatnonzero(known), best[known], color=MAP, lw=1.5, drawstyle="steps-post", label="best so far")
    today = values[0] if np.isfinite(values[0]) else math.nan
    ax.axhline(today, color=TEACHER, lw=1.2, ls=(0, (4, 3)), label="today's settings")
    if len(finite):
        style.value_axis(ax, values[finite].tolist())
    if len(lost):
        top = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        ax.plot(1 + lost, np.ones(len(lost)), "x", color=FAINT, ms=5, label="diverged", **top)
