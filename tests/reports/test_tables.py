"""Tables have the columns that their rows have, and numbers that fit."""

from __future__ import annotations

import math
import os
import re

import pytest
from report_cases import ROWS
from rich.console import Console

from flowmaps.methods import METHODS
from flowmaps.reports import figures, tables


def printed(rows: list[dict], width: int = 80) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(tables.run_table(rows, "a title [b]not markup[/b]"))
    return console.export_text()


# a run ----------------------------------------------------------------------------------------------------------------


def test_table_has_the_columns_that_a_row_has_and_no_others():
    headings = [column.heading for column in tables.columns_of(ROWS)]
    assert headings == ["sampler", "steps", "evals", "KL", "floor", "above floor", "W2", "seconds"]
    assert [c.header.replace("\n", " ") for c in tables.run_table(ROWS, "t").columns] == headings
    more = [{**ROWS[0], "sliced_w2": 1.0, "map_error": 0.0, "energy": None, "fd": 2.0}]
    assert [c.heading for c in tables.columns_of(more)][5:] == ["W2", "sliced W2", "map error", "FD", "seconds"]


def test_table_prints_every_number_within_eighty_columns():
    text = printed(ROWS)
    assert "…" not in text
    assert "a title [b]not markup[/b]" in text
    teacher, fast = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if re.search(r"\b(98|4)\b ", line))
    assert teacher == ["teacher, dopri5", "–", "98", "0.0662", "6.8e-4", "0.0655", "0.0500", "40.1"]
    assert fast == ["map", "4", "4", "0.1000", "6.8e-4", "0.0993", "0.0700", "0.40"]
    assert "KL, floor, above floor in nats; W2 in units of x; seconds in s" in " ".join(text.split())


def test_a_method_names_its_row():
    assert "[lmd]" in printed([{**ROWS[1], "method": "[lmd]"}])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1000000, "1,000,000"),
        (0.0, "0"),
        (-2.9e-4, "-2.9e-4"),
        (3.14159, "3.14"),
        (12345.6, "12,346"),
        (0.12345, "0.1235"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1.2e-12, "1.2e-12"),
        ("word", "word"),
        (True, "True"),
    ],
)
def test_values(value: object, shown: str):
    assert tables.format_value(value) == shown


def test_distances_between_real_rows_stand_beside_those_of_samples():
    spent = {"samples": 9, "seconds": 1.0, "nfe": 4, "w2_floor": 0.9, "energy_floor": -1e-4}
    rows = [
        {**spent, "sampler": "teacher", "solver": "dopri5", "w2": 0.97, "energy": 0.002},
        {**spent, "sampler": "map", "steps": 4, "w2": 0.96, "energy": 0.003, "map_error": 0.1},
    ]
    said = tables.row_in_words("4 steps", rows[1])
    assert said.startswith("map, 4 steps: W2 0.9600 (real rows 0.9000), energy 0.0030 (real rows -1.0e-4); 9 samples")
    assert ", -1.0e-4 between real rows; the map was" in (tables.conclusion(rows) or "")
    headings = [column.heading for column in tables.columns_of(rows)]
    assert headings[3:] == ["W2", "real W2", "map error", "energy", "real energy", "seconds"]
    text = printed(rows)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


# a comparison ---------------------------------------------------------------------------------------------------------


def test_points_are_compared_by_their_energy_distance():
    spent = {"method": "lsd", "ms_per_step": 2.0}
    rows = [
        {**spent, "sampler": "teacher", "solver": "dopri5", "energy": 0.5, "map_error": 1.0},
        {**spent, "sampler": "map", "steps": 2, "energy": 0.25, "map_error": 3.0},
    ]
    heading, lines = tables.comparison_summary(rows)
    assert heading == ["method", "2 steps", "dopri5", "error", "ms/step", "MB/step"]
    assert lines == [["lsd", "0.2500", "0.5000", "3.0000", "2.0", "–"]]
    said = tables.comparison_markdown(rows).splitlines()
    assert said[4].startswith("Energy distance to data [units of x], by the map in N steps. dopri5: the ODE of the")
    assert len(said) == 5
    real = [{**row, "energy_floor": floor} for row, floor in zip(rows, (0.02, 0.04), strict=True)]
    assert tables.comparison_markdown(real).splitlines()[6] == "Between real rows the energy distance is 0.0300."


def test_what_does_not_apply_is_a_dash_and_what_is_absurd_is_short():
    spent = {"ms_per_step": 2.0, "mb_per_step": 12.34, "sampler": "map"}
    rows = [
        {**spent, "method": "flow_matching", "steps": 1, "kl": 0.3, "kl_floor": 0.1, "map_error": 1.0},
        {**spent, "method": "sct", "diverged": True},
        {**spent, "method": "lsd", "steps": 1, "kl": math.inf, "kl_floor": 0.1, "map_error": 1e20},
        {**spent, "method": "psd", "steps": 1, "lost": 100},
    ]
    _, lines = tables.comparison_summary(rows)
    assert lines == [
        ["flow_matching", "0.2000", "–", "–", "2.0", "12.3"],
        ["sct", "diverged", "–", "–", "2.0", "12.3"],
        ["lsd", "–", "–", "1e+20", "2.0", "12.3"],
        ["psd", "diverged", "–", "–", "2.0", "12.3"],
    ]
    ax = figures.compare(rows).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["flow_matching", "sct", "lsd", "psd"]


def test_the_table_of_all_methods_is_at_most_100_columns_wide(capsys: pytest.CaptureFixture):
    longest = max(METHODS, key=len)
    head = {"method": longest, "ms_per_step": 123.456, "mb_per_step": 123.456}
    rows = [{**head, "sampler": "map", "steps": n, "kl": 12.3456, "kl_floor": 0, "map_error": 12} for n in (1, 2, 4, 8)]
    rows.append({**head, "sampler": "teacher", "solver": "dopri5", "kl": 12.3456, "kl_floor": 0})
    Console(width=100).print(tables.comparison_table(rows, "checkerboard, 120 s of training for each method"))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 100
    line = next(line for line in printed.splitlines() if longest in line)
    assert line.split() == [longest, *["12.346"] * 5, "12.000", "123.5", "123.5"]


# in words -------------------------------------------------------------------------------------------------------------


def test_a_row_and_the_conclusion_in_words():
    teacher, fast = ROWS
    said = "map, 4 steps: KL 0.1000, above floor 0.0993, W2 0.0700; 1,234 samples in 0.40 s"
    assert tables.row_in_words("4 steps", {**fast, "samples": 1234}) == said
    lost = {"sampler": "teacher", "samples": 5, "seconds": 1.0}
    assert tables.row_in_words("teacher, euler", lost) == "teacher, euler: diverged; 5 samples in 1.00 s"
    assert tables.conclusion([teacher, {**fast, "steps": 8, "kl": 9.0}, fast]) == (
        "KL above floor [nats]: 0.0993 by the map in 4 steps, 0.0655 by its teacher's ODE (dopri5, 98 evaluations); "
        "the map was 100 times as fast."
    )
    bare = [{name: value for name, value in row.items() if name != "kl_floor"} for row in (teacher, fast)]
    assert (tables.conclusion(bare) or "").startswith("KL [nats]: 0.1000 by the map")
    images = [
        {"sampler": row["sampler"], "steps": 4, "nfe": 4, "seconds": 1.0, "fd": 9.0, "solver": ""} for row in bare
    ]
    assert (tables.conclusion(images) or "").startswith("FD: 9.00 by the map")
    own = {**teacher, "velocity": "own"}
    assert "0.0655 by its own ODE (dopri5, 98 evaluations)" in (tables.conclusion([own, fast]) or "")
    assert tables.COLUMNS[0].show(own) == "own ODE, dopri5"
    for rows in ([fast], [teacher], [], [{"sampler": "map", "steps": 1}, {"sampler": "teacher"}]):
        assert tables.conclusion(rows) is None
