"""Tables of results, for the terminal, for Markdown and for the report: of a run, and of a comparison of methods.

The columns of a run's table are defined once: heading, unit, explanation, and where the value comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box, markup
from rich.table import Table

from ..evaluation.measure import Row
from ..evaluation.sampling import steps_in_words
from ..methods import METHODS, Jumps
from .style import above_floor, above_real, name_of

NO_VALUE = "–"


# a run ----------------------------------------------------------------------------------------------------------------


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
    """Seconds with two decimals below 10, one from 10 on."""
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}"


@dataclass(frozen=True)
class Column:
    """A column of the table of results.

    Args:
        heading: above the column.
        unit: of its values; empty for words and counts.
        meaning: a sentence under the table.
        key: name of the value in a row, or a function that takes a row to the value.
        format: takes a value to the words shown.
    """

    heading: str
    unit: str
    meaning: str
    key: str | Callable[[Row], Any]
    format: Callable[[Any], str] = format_value

    def value(self, row: Row) -> Any:
        """The value of a row, `None` where it has none."""
        return row.get(self.key) if isinstance(self.key, str) else self.key(row)

    def show(self, row: Row) -> str:
        """The value of a row in words, a dash where it has none."""
        value = self.value(row)
        return NO_VALUE if value is None else self.format(value)


COLUMNS = (
    Column(
        "sampler", "", "The map (by its method, where several are compared), or the teacher and its solver.", name_of
    ),
    Column("steps", "", "Jumps of the map, or steps of a fixed-step solver.", "steps"),
    Column("evals", "", "Network evaluations that each sample takes.", "nfe"),
    Column("KL", "nats", "KL(exact || samples) of histograms over [-1, 1]² with exact cell masses.", "kl"),
    Column("floor", "nats", "The KL of as many exact samples: what a perfect sampler would read.", "kl_floor"),
    Column("above floor", "nats", "KL less its floor: the part that is the sampler's own.", above_floor),
    Column("W2", "units of x", "Exact 2-Wasserstein distance of samples to as many data.", "w2"),
    Column("sliced W2", "units of x", "Root mean square of W2 over random lines.", "sliced_w2"),
    Column("map error", "units of x²", "Mean squared distance to the flow's points from the same noise.", "map_error"),
    Column("energy", "units of x", "Unbiased energy distance to data; near zero it may be negative.", "energy"),
    Column("FD", "", "Fréchet distance of the features of samples to those of the data; its name says which.", "fd"),
    Column(
        "FD name",
        "",
        "Features, size of the image, and number of samples; only Inception's is an FID.",
        "fd_name",
    ),
    Column("real images", "", "The FD of as many other real images: what a perfect sampler would read.", "fd_floor"),
    Column(
        "above real", "", "FD less that of as many other real images: the part that is the sampler's own.", above_real
    ),
    Column("to teacher", "", "The same distance, to the teacher's dopri5 samples from the same noise.", "fd_teacher"),
    Column("KD", "", "Kernel distance (unbiased, degree 3) of the features; mean over subsets.", "kd"),
    Column("precision", "", "Share of samples among the data, by nearest neighbours of features.", "precision"),
    Column("recall", "", "Share of data among the samples, by nearest neighbours of features.", "recall"),
    Column("pixel error", "", "Mean squared difference, from -1 to 1, to the teacher's dopri5 images.", "pixel_error"),
    Column("seconds", "s", "Wall-clock time to draw all samples.", "seconds", format_seconds),
)


ONLY_IN_REPORT = ("FD name", "real images", "KD", "precision", "recall")
"""Headings of the columns for which a terminal has no room."""


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns for which at least one row has a value."""
    return [column for column in COLUMNS if any(column.value(row) is not None for row in rows)]


def run_table(rows: Sequence[Row], title: str) -> Table:
    """The rows of `metrics.json` as a table for the terminal; columns that no row has a value for are left out.

    Args:
        rows: each with "sampler", and any of the metrics.
        title: above the table.
    """
    columns = [column for column in columns_of(rows) if column.heading not in ONLY_IN_REPORT]
    names = dict.fromkeys(row["fd_name"] for row in rows if "fd_name" in row)
    units: dict[str, list[str]] = {}
    for column in columns:
        if column.unit:
            units.setdefault(column.unit, []).append(column.heading)
    result = Table(
        title=markup.escape(title),
        caption="; ".join([*names, *(f"{', '.join(headings)} in {unit}" for unit, headings in units.items())]),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        heading = column.heading.replace(" ", "\n")
        if column.heading == "sampler":
            result.add_column(heading, min_width=8, vertical="bottom", overflow="fold")
        else:
            result.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        result.add_row(*(markup.escape(column.show(row)) for column in columns))
    return result


# a comparison ---------------------------------------------------------------------------------------------------------


def comparison_summary(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """The heading and the lines of a comparison, a line a method: quality in each number of steps and of the ODE, the
    error of one jump, and what a training step costs."""
    key = "kl" if any("kl" in row for row in rows) else "energy"
    steps = sorted({row["steps"] for row in rows if row["sampler"] == "map" and "steps" in row})
    titles = [steps_in_words(n) for n in steps]
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        cost = [_number(of_method[0].get(name), 1) for name in ("ms_per_step", "mb_per_step")]
        if "diverged" in of_method[0]:
            lines.append([method, "diverged", *[NO_VALUE] * (len(steps) + 1), *cost])
            continue
        maps = {row["steps"]: row for row in of_method if row["sampler"] == "map"}
        ode = next((row for row in of_method if row.get("solver") == "dopri5"), {})
        of_steps = [maps.get(n, {}) for n in steps]
        quality = [row.get(key, math.nan) - row.get("kl_floor", 0) for row in (*of_steps, ode)]
        jumps = METHODS[method].jumps is not Jumps.NONE  # steps of Euler's have no error of a map
        error = of_steps[0].get("map_error") if jumps else None
        lines.append([method, *(_number(value) for value in (*quality, error)), *cost])
    return ["method", *titles, "dopri5", "error", "ms/step", "MB/step"], lines


def _number(value: float | None, digits: int = 4) -> str:
    """A number in six characters; a dash for none, and for one that is not finite."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    if abs(value) >= 1000:
        return f"{value:.3g}"
    return f"{value:.{min(digits, 5 - len(f'{abs(value):.0f}'))}f}"


def comparison_table(rows: list[Row], about: str) -> Table:
    """The summary as a table for the terminal, 100 columns wide at most.

    Args:
        rows: of compare.json.
        about: what was compared, the beginning of the title.
    """
    heading, lines = comparison_summary(rows)
    metric = r"KL above floor \[nats]" if any("kl" in row for row in rows) else "energy distance to data"
    title = f"{about}: {metric} of the map in N steps"
    caption = (
        "dopri5: the ODE of the teacher, or of the map's own diagonal; error: mean squared, of one jump; "
        "MB: peak of a step's tensors"
    )
    result = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for k, name in enumerate(heading):
        result.add_column(name, justify="right" if k else "left", no_wrap=True)
    for line in lines:
        result.add_row(*line)
    return result


def comparison_markdown(rows: list[Row]) -> str:
    """The summary as a Markdown table."""
    heading, lines = comparison_summary(rows)
    table = [heading, ["---"] + ["---:"] * (len(heading) - 1), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in table)
