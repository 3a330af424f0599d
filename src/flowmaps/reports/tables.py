"""Tables of results, for the terminal, for Markdown and for the report: of a run, and of a comparison of methods.

The columns of a run's table are defined once: heading, unit, explanation, and where the value comes from.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box, markup
from rich.table import Table

from ..evaluation.measure import Row
from ..evaluation.quality import ABOVE_FLOOR, ABOVE_REAL, ENERGY, Quality, is_measured, quality_of
from ..evaluation.sampling import steps_in_words
from ..methods import Jumps
from ..storage.methods import known
from .spread import SENTENCE, Spread, nearest_four, of_steps, places, several_seeds
from .style import name_of

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


REAL = "real rows, held-out ones or half of the data, to as many others: what a perfect sampler would read."
COLUMNS = (
    Column(
        "sampler",
        "",
        "The map (by its method, where several are compared), or its teacher, or its own ODE, and the solver.",
        name_of,
    ),
    Column("steps", "", "Jumps of the map, or steps of a fixed-step solver.", "steps"),
    Column("evals", "", "Network evaluations that each sample takes.", "nfe"),
    Column("KL", "nats", "KL(exact || samples) of histograms over [-1, 1]² with exact cell masses.", "kl"),
    Column("floor", "nats", "The KL of as many exact samples: what a perfect sampler would read.", "kl_floor"),
    Column("above floor", "nats", "KL less its floor: the part that is the sampler's own.", ABOVE_FLOOR.of),
    Column("W2", "units of x", "Exact 2-Wasserstein distance of samples to as many data.", "w2"),
    Column("real W2", "units of x", f"W2 of {REAL}", "w2_floor"),
    Column("sliced W2", "units of x", "Root mean square of W2 over random lines.", "sliced_w2"),
    Column("map error", "units of x²", "Mean squared distance to the flow's points from the same noise.", "map_error"),
    Column("other cell", "", "Share of points nearest to another cell than the exact flow's.", "other_cell"),
    Column("energy", "units of x", "Unbiased energy distance to data; near zero it may be negative.", "energy"),
    Column("real energy", "units of x", f"The energy distance of {REAL}", "energy_floor"),
    Column("FD", "", "Fréchet distance of the features of samples to those of the data; its name says which.", "fd"),
    Column(
        "FD name",
        "",
        "Features, size of the image, and number of samples; only Inception's is an FID.",
        "fd_name",
    ),
    Column("real images", "", "The FD of as many other real images: what a perfect sampler would read.", "fd_floor"),
    Column(
        "above real",
        "",
        "FD less that of as many other real images: the part that is the sampler's own.",
        ABOVE_REAL.of,
    ),
    Column("to teacher", "", "The same distance, to the teacher's samples by ODE from the same noise.", "fd_teacher"),
    Column("KD", "", "Kernel distance (unbiased, degree 3) of the features; mean over subsets.", "kd"),
    Column("precision", "", "Share of samples among the data, by nearest neighbours of features.", "precision"),
    Column("recall", "", "Share of data among the samples, by nearest neighbours of features.", "recall"),
    Column("pixel error", "", "Mean squared difference, from -1 to 1, to the teacher's dopri5 images.", "pixel_error"),
    Column("seconds", "s", "Wall-clock time to draw all samples.", "seconds", format_seconds),
)


ONLY_IN_REPORT = ("sliced W2", "other cell", "FD name", "real images", "KD", "precision", "recall")
"""Headings of the columns for which a terminal has no room."""


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns for which at least one row has a value."""
    return [column for column in COLUMNS if any(column.value(row) is not None for row in rows)]


IN_WORDS = ("KL", "above floor", "W2", "energy", "FD", "above real")
"""Headings of the columns that are said of a row in a sentence."""


def row_in_words(title: str, row: Row) -> str:
    """A row of `metrics.json` in one line, such as 'map, 4 steps: KL 0.0307, W2 0.0615; 100 samples in 3.91 s'."""
    name = f"map, {title}" if row["sampler"] == "map" else title
    found = [
        f"{column.heading} {column.show(row)}{_between_real(row, column)}"
        for column in columns_of([row])
        if column.heading in IN_WORDS
    ]
    drawn = f"{row['samples']:,} samples in {format_seconds(row['seconds'])} s"
    return f"{name}: {', '.join(found) or 'diverged'}; {drawn}"


def _between_real(row: Row, column: Column) -> str:
    """The same distance between real rows, in words; empty where it is not measured."""
    floor = row.get(f"{column.key}_floor") if column.heading in ("W2", "energy") else None
    return "" if floor is None else f" (real rows {format_value(floor)})"


def conclusion(rows: Sequence[Row]) -> str | None:
    """The map in some four steps beside its teacher's first solver, in a sentence; `None` where one is not measured."""
    quality = quality_of(rows)
    rated = [(row, value) for row in rows if (value := quality.of(row)) is not None]
    teachers = [(row, value) for row, value in rated if row["sampler"] == "teacher"]
    maps = [(row, value) for row, value in rated if row["sampler"] == "map"]
    if not teachers or not maps:
        return None
    teacher, of_teacher = teachers[0]
    own, of_map = min(maps, key=lambda pair: (abs(pair[0]["steps"] - 4), pair[0]["steps"]))
    faster = teacher["seconds"] / max(own["seconds"], 1e-9)
    whose = "its own" if teacher.get("velocity") == "own" else "its teacher's"
    real = own.get("energy_floor") if quality is ENERGY else None
    floor = "" if real is None else f", {format_value(real)} between real rows"
    ode = f"{teacher['solver']}, {teacher['nfe']} evaluations"
    return (
        f"{quality.label(rows)}: {format_value(of_map)} by the map in {steps_in_words(own['steps'])}, "
        f"{format_value(of_teacher)} by {whose} ODE ({ode}){floor}; the map "
        f"was {faster:,.{0 if faster >= 10 else 1}f} times as fast."
    )


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
    error of one jump, and what a training step costs.

    Of several seeds there are mean and standard deviation, the median of the cost, and the rank in one step and in the
    number of steps nearest to four.
    """
    quality, several = quality_of(rows), several_seeds(rows)
    found = of_steps(rows, quality)
    steps = sorted({n for spreads in found.values() for n in spreads})
    ranked = [n for n in dict.fromkeys([1, nearest_four(steps)] if steps else []) if n in steps and several]
    ranks = [_ranks({method: spreads.get(n) for method, spreads in found.items()}) for n in ranked]
    solver = next((row["solver"] for row in rows if "solver" in row), "dopri5")
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cost = [_number(_median(mine, name), 1) for name in ("ms_per_step", "mb_per_step")]
        places = [of_method.get(method, NO_VALUE) for of_method in ranks]
        spreads, diverged = found.get(method, {}), sum("diverged" in row for row in mine)
        measured = [spread for spread in spreads.values() if math.isfinite(spread.mean)]
        if not measured and any("diverged" in row or "lost" in row for row in mine if row["sampler"] == "map"):
            lines.append([method, "diverged", *[NO_VALUE] * (len(steps) + 1), *places, *cost])
            continue
        ode = Spread.of([quality.of(row) for row in mine if row.get("solver") == solver])
        shown = [_spread(spreads.get(n), quality) for n in steps] + [_spread(ode, quality)]
        seeds = diverged + len({row.get("seed") for row in mine if "diverged" not in row})
        lost = max((spread.lost for spread in measured), default=0)
        name = f"{method} ({lost} of {seeds} diverged)" if lost else method
        lines.append([name, *shown, _number(_error(method, mine, steps)), *places, *cost])
    return ["method", *map(steps_in_words, steps), solver, "error", *[f"rank in {n}" for n in ranked], *COSTS], lines


COSTS = ("ms/step", "MB/step")


def _ranks(spreads: Mapping[str, Spread | None]) -> dict[str, str]:
    """The ranks of the methods that have an interval, in words."""
    intervals = {name: spread.interval for name, spread in spreads.items() if spread is not None}
    found = places({name: interval for name, interval in intervals.items() if interval is not None})
    return {name: str(first) if first == last else f"{first}–{last}" for name, (first, last) in found.items()}


def _error(method: str, rows: list[Row], steps: list[int]) -> float | None:
    """The mean squared error of the fewest steps, over the seeds; steps of Euler's have none."""
    own = known(method)
    if own is not None and own.jumps is Jumps.NONE:
        return None
    fewest = [row for row in rows if row["sampler"] == "map" and row.get("steps") in steps[:1]]
    return Spread.of([row.get("map_error", row.get("pixel_error")) for row in fewest]).mean


def _median(rows: list[Row], name: str) -> float | None:
    """The median of a figure over the seeds, each of whose rows have the same one."""
    values = {row.get("seed"): row[name] for row in rows if name in row}
    return statistics.median(values.values()) if values else None


def _spread(spread: Spread | None, quality: Quality) -> str:
    """Mean and standard deviation in words; a dash for none."""
    if spread is None or not math.isfinite(spread.mean):
        return NO_VALUE
    show = (lambda value: f"{value:,.0f}") if quality.key == "fd" else _number
    return show(spread.mean) + ("" if spread.std is None else f"±{show(spread.std)}")


def _number(value: float | None, digits: int = 4) -> str:
    """A number in six characters; a dash for none, and for one that is not finite."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    if abs(value) >= 1000:
        return f"{value:.3g}"
    return f"{value:.{min(digits, 5 - len(f'{abs(value):.0f}'))}f}"


def comparison_table(rows: list[Row], about: str) -> Table:
    """The summary as a table for the terminal, 100 columns wide at most with one seed, 150 with several.

    Args:
        rows: of compare.json.
        about: what was compared, the beginning of the title.
    """
    heading, lines = comparison_summary(rows)
    title = f"{about}: {markup.escape(quality_of(rows).label(rows))}, by the map in N steps"
    caption = "\n".join([_columns(heading), *comparison_notes(rows)])
    result = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for k, name in enumerate(heading):
        result.add_column(name, justify="right" if k else "left", no_wrap=True)
    for line in lines:
        result.add_row(*line)
    return result


def _columns(heading: list[str]) -> str:
    """What the columns beside the numbers of steps are."""
    solver = heading[heading.index("error") - 1]
    return (
        f"{solver}: the ODE of the teacher, or of the map's own diagonal; error: mean squared, in the fewest steps; "
        "MB: peak of a step's tensors"
    )


def comparison_notes(rows: list[Row]) -> list[str]:
    """Sentences under a table: the distance between real rows; of several seeds what its numbers are, and which methods
    have fewer."""
    floors = [row["energy_floor"] for row in rows if "energy_floor" in row] if quality_of(rows) is ENERGY else []
    notes = [f"Between real rows the energy distance is {format_value(statistics.fmean(floors))}."] if floors else []
    if not several_seeds(rows):
        return notes
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row["method"], set()).add(row["seed"])
    every = sorted(set().union(*seeds.values()))
    notes += [
        f"Mean ± sample standard deviation over seeds {_listed(every)}; the cost is the median over them. {SENTENCE}"
    ]
    fewer = [f"{method} {_listed(sorted(own))}" for method, own in seeds.items() if own != set(every)]
    return [*notes, f"With fewer seeds: {'; '.join(fewer)}."] if fewer else notes


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def comparison_markdown(rows: list[Row]) -> str:
    """The summary as a Markdown table, with its notes."""
    heading, lines = comparison_summary(rows)
    about = f"{quality_of(rows).label(rows)}, by the map in N steps. {_columns(heading)}."
    table = [heading, ["---"] + ["---:"] * (len(heading) - 1), *lines]
    text = "".join("| " + " | ".join(row) + " |\n" for row in table)
    notes = [about[0].upper() + about[1:]] * is_measured(rows) + comparison_notes(rows)
    return text + "".join(f"\n{note}\n" for note in notes)
