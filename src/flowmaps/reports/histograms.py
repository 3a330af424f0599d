"""Histograms of the columns of a table: of the data and of samples, one over the other."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data import Column, Table
from . import style
from .style import EXACT, MAP

MAX_COLUMNS = 24
"""Columns that are drawn, the first ones of the table."""
MAX_CATEGORIES = 12
"""Categories of a column that are drawn, the most frequent ones of the data."""
MAX_WHOLE = 40
"""Widest range of whole numbers that have a bin each."""
BINS = 40
SHOWN = (0.005, 0.995)
"""Quantiles of the data between which a column is drawn."""


def columns(table: Table, data: Tensor, samples: Tensor) -> Figure:
    """A panel for each column, of data and samples in the units of the file: histograms of numbers, bars of categories.

    A panel goes from the 0.5 % to the 99.5 % quantile of the data, on a logarithmic axis where the logarithm is
    learned; shares are of all rows, so that samples beyond are missing from the blue histogram.

    Args:
        table: the columns, of which at most 24 are drawn.
        data: `(N, columns)`, categories as their places.
        samples: `(M, columns)`, likewise; rows that are not finite are left out.
    """
    shown = table.columns[:MAX_COLUMNS]
    wide = min(4, len(shown))
    tall = math.ceil(len(shown) / wide)
    figure = Figure(figsize=(2.9 * wide + 0.4, 2.2 * tall + 0.4), layout="constrained")
    axes = figure.subplots(tall, wide, squeeze=False).ravel()
    real, drawn = style.array(data), style.array(samples)
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    for k, (ax, column) in enumerate(zip(axes, shown, strict=False)):
        panel = _bars if column.transform == "categories" else _histograms
        panel(ax, column, real[:, k], drawn[:, k])
        ax.set_title(column.name[:28], fontsize=9, parse_math=False)
        style.light_axes(ax)
        ax.set_yticks([])
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=2, frameon=False, fontsize=8.5)
    return figure


def _histograms(ax: Axes, column: Column, data: np.ndarray, samples: np.ndarray) -> None:
    edges = _edges(column, data)
    if column.transform == "log":
        ax.set_xscale("log")
    for values, name, colour in ((data, "data", EXACT), (samples, "samples", MAP)):
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        ax.stairs(
            shares, edges, fill=name == "data", color=colour, alpha=0.6 if name == "data" else 1, lw=1.3, label=name
        )


def _edges(column: Column, data: np.ndarray) -> np.ndarray:
    """The edges of the bins of a column of numbers."""
    low, high = (float(edge) for edge in np.quantile(data, SHOWN))
    if column.limits and high - low <= MAX_WHOLE:
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    if not high > low:
        return np.linspace(low - 0.5, high + 0.5, BINS + 1)
    return np.geomspace(low, high, BINS + 1) if column.transform == "log" else np.linspace(low, high, BINS + 1)


def _bars(ax: Axes, column: Column, data: np.ndarray, samples: np.ndarray) -> None:
    counts = [np.bincount(values.astype(np.int64), minlength=column.width) for values in (data, samples)]
    order = np.argsort(-counts[0], kind="stable")[:MAX_CATEGORIES]
    for own, name, colour, left in zip(counts, ("data", "samples"), (EXACT, MAP), (-0.2, 0.2), strict=True):
        ax.bar(np.arange(len(order)) + left, own[order] / max(own.sum(), 1), 0.38, color=colour, label=name)
    names = [column.values[k][:10] for k in order]
    ax.set_xticks(
        range(len(order)), names, parse_math=False, rotation=45 if max(map(len, names)) * len(names) > 24 else 0
    )
