"""The columns of a table of results, defined once: heading, unit, explanation and where the value comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .style import Row, above_floor, name_of


def format_value(value: Any) -> str:
    """Counts in full, other numbers to some three digits, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    size = abs(value)
    if size >= 1:
        return f"{value:,.0f}" if size >= 100 else f"{value:.2f}"
    return f"{value:.4f}" if size >= 1e-3 else "0" if size == 0 else f"{value:.1e}".replace("e-0", "e-")


def format_seconds(value: float) -> str:
    """To a hundredth, from ten seconds to a tenth."""
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}"


@dataclass(frozen=True)
class Column:
    """A column of the table of results.

    Args:
        heading: above the column.
        unit: of its values; empty for words and counts.
        meaning: a sentence under the table.
        value: takes a row to its value, `None` where the row has none.
        format: takes a value to the words shown.
    """

    heading: str
    unit: str
    meaning: str
    value: Callable[[Row], Any]
    format: Callable[[Any], str] = format_value

    def show(self, row: Row) -> str:
        """The value of a row in words, a dash where it has none."""
        value = self.value(row)
        return "–" if value is None else self.format(value)


def _key(key: str) -> Callable[[Row], Any]:
    return lambda row: row.get(key)


COLUMNS = (
    Column(
        "sampler", "", "The map (by its method, where several are compared), or the teacher and its solver.", name_of
    ),
    Column("steps", "", "Jumps of the map, or steps of a fixed-step solver.", _key("steps")),
    Column("evals", "", "Network evaluations that each sample takes.", _key("nfe")),
    Column("KL", "nats", "KL(exact || samples) of histograms over [-1, 1]² with exact cell masses.", _key("kl")),
    Column("floor", "nats", "The KL of as many exact samples: what a perfect sampler would read.", _key("kl_floor")),
    Column("above floor", "nats", "KL less its floor: the part that is the sampler's own.", above_floor),
    Column("W2", "units of x", "Exact 2-Wasserstein distance of samples to as many data.", _key("w2")),
    Column("sliced W2", "units of x", "Root mean square of W2 over random lines.", _key("sliced_w2")),
    Column(
        "map error", "units of x²", "Mean squared distance to the flow's points from the same noise.", _key("map_error")
    ),
    Column("energy", "units of x", "Unbiased energy distance to data; near zero it may be negative.", _key("energy")),
    Column(
        "FD", "", "Fréchet distance of the features of samples to those of the data; its name says which.", _key("fd")
    ),
    Column(
        "FD name",
        "",
        "Features, size of the image, and number of samples; only Inception's is an FID.",
        _key("fd_name"),
    ),
    Column(
        "to teacher", "", "The same distance, to the teacher's dopri5 samples from the same noise.", _key("fd_teacher")
    ),
    Column("KD", "", "Kernel distance (unbiased, degree 3) of the features; mean over subsets.", _key("kd")),
    Column("precision", "", "Share of samples among the data, by nearest neighbours of features.", _key("precision")),
    Column("recall", "", "Share of data among the samples, by nearest neighbours of features.", _key("recall")),
    Column(
        "pixel error", "", "Mean squared difference, from -1 to 1, to the teacher's dopri5 images.", _key("pixel_error")
    ),
    Column("seconds", "s", "Wall-clock time to draw all samples.", _key("seconds"), format_seconds),
)


WIDE = ("FD name", "KD", "precision", "recall")
"""Headings of columns that the terminal has no room for: they stand in the report."""


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns for which at least one row has a value."""
    return [column for column in COLUMNS if any(column.value(row) is not None for row in rows)]
