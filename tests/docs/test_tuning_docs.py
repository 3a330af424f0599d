"""docs/tuning.md and the table of settings found are what the committed study has."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from places import ROOT

from flowmaps.evaluation.cells import read
from flowmaps.evaluation.results import score_of
from flowmaps.runs.recipes import RECIPES
from flowmaps.runs.recipes.found import FOUND, with_options

STUDY = ROOT / "results" / "tune-checkerboard"
PAGE = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")


def lines_of(heading: str) -> list[list[str]]:
    """The cells of the lines about methods of the first table below a heading."""
    rest = PAGE.partition(f"# {heading}\n")[2]
    return [cells(line) for line in re.split(r"^#", rest, flags=re.MULTILINE)[0].splitlines() if line.startswith("| `")]


def cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip("|").split("|")]


def test_the_settings_of_the_example_are_options_of_the_recipe():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    exec(block, {"FOUND": found})
    (options,) = found["checkerboard"].values()
    changed = with_options(RECIPES["checkerboard"](), options)
    assert changed != RECIPES["checkerboard"]()


def test_the_settings_of_the_recipe_are_those_that_the_study_found_better():
    tuned = read(STUDY / "tuned.json")["methods"]
    assert len(FOUND["checkerboard"]) == 17
    for name, options in FOUND["checkerboard"].items():
        assert tuned[name]["better"], name
        assert tuned[name]["settings"] == options, name


def test_the_table_of_the_page_is_that_of_the_study():
    written = (STUDY / "tune.md").read_text(encoding="utf-8").splitlines()
    study = {name: rest for name, *rest in map(cells, written) if len(rest) == 6}
    lines = lines_of("The study of the checkerboard")
    assert len(lines) == 19
    for name, before, found, options in lines:
        _, _, final_before, final_found, _, kept = study[name]
        assert found == final_found, name
        assert options.removeprefix("not taken: ").strip("`") == kept, name
        assert before == final_before or final_before == "diverged", name  # on one seed: the page has all three


def test_the_scores_at_three_times_the_length_are_those_of_the_rows():
    lines = lines_of("Three times as long")
    assert len(lines) == 6
    for column, file in ((2, "before.json"), (4, "found.json")):
        rows = read(STUDY / "at-length" / file)["rows"]
        for line in lines:
            mine = [row for row in rows if row["method"] == line[0] and row.get("steps") in (1, 4)]
            assert float(f"{score_of(mine):.3g}") == float(line[column]), line[0]
