"""What a comparison's rows say: a line a method, for the terminal and in Markdown."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.table import Table

Row = dict[str, Any]
VELOCITY_ONLY = ("flow_matching", "reflow")  # their jumps are steps of Euler's: the error of a map means nothing
DASH = "–"


def shown(table: list[Row]) -> list[Row]:
    """The rows of the figure: all maps, and the first teacher that is distilled."""
    teachers = [row for row in table if row["sampler"] == "teacher" and row.get("distilled")]
    return [row for row in table if row["sampler"] == "map"] + teachers[:1]


def summary(table: list[Row]) -> tuple[list[str], list[list[str]]]:
    """A line a method: the figure of quality in each number of jumps, for its ODE, and what a step costs."""
    key = "kl" if any("kl" in row for row in table) else "energy"
    jumps = sorted({row["steps"] for row in table if row["sampler"] == "map" and "steps" in row})
    titles = [f"{n} step{'s' * (n > 1)}" for n in jumps]
    lines = []
    for method in dict.fromkeys(row["method"] for row in table):
        mine = [row for row in table if row["method"] == method]
        cost = [_number(mine[0].get(name), 1) for name in ("ms_per_step", "mb_per_step")]
        if "diverged" in mine[0]:
            lines.append([method, "diverged", *[DASH] * (len(jumps) + 1), *cost])
            continue
        maps = {row["steps"]: row for row in mine if row["sampler"] == "map"}
        ode = next((row for row in mine if row.get("solver") == "dopri5"), {})
        of_jumps = [maps.get(n, {}) for n in jumps]
        quality = [row.get(key, math.nan) - row.get("kl_floor", 0) for row in (*of_jumps, ode)]
        error = None if method in VELOCITY_ONLY else of_jumps[0].get("map_error")
        lines.append([method, *(_number(value) for value in (*quality, error)), *cost])
    return ["method", *titles, "dopri5", "error", "ms/step", "MB/step"], lines


def _number(value: float | None, digits: int = 4) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    if abs(value) >= 1000:
        return f"{value:.3g}"
    return f"{value:.{min(digits, 5 - len(f'{abs(value):.0f}'))}f}"  # six characters


def terminal(table: list[Row], about: str) -> Table:
    """The summary as a table for the terminal, 100 columns wide at most.

    Args:
        table: rows of compare.json.
        about: what was compared, the beginning of the title.
    """
    heading, lines = summary(table)
    figure = r"KL above floor \[nats]" if any("kl" in row for row in table) else "energy distance to data"
    title = f"{about}: {figure} of the map in N steps"
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


def markdown(table: list[Row]) -> str:
    """The summary as a Markdown table."""
    heading, lines = summary(table)
    rows = [heading, ["---"] + ["---:"] * (len(heading) - 1), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)
