"""The tables of docs/choosing.md and docs/papers.md are those that the commands wrote into results."""

from __future__ import annotations

import paper_table
import pytest
from places import ROOT

from flowmaps.evaluation.cells import read
from flowmaps.reports.tables import comparison_markdown

COMPARISONS = sorted(path.parent for path in (ROOT / "results").glob("compare-*/compare.json"))


def lines(text: str) -> list[str]:
    """The lines of tables."""
    return [line for line in text.splitlines() if line.startswith("|")]


def words(text: str) -> str:
    """All that is no table, on one line."""
    return " ".join(" ".join(line for line in text.splitlines() if not line.startswith("|")).split())


@pytest.mark.parametrize("folder", [*COMPARISONS, ROOT / "results" / "slim-lsd"], ids=lambda folder: folder.name)
def test_a_comparison_stands_as_it_was_written(folder):
    written = (folder / "compare.md").read_text(encoding="utf-8")
    assert written == comparison_markdown(read(folder / "compare.json")["rows"])


@pytest.mark.parametrize("folder", COMPARISONS, ids=lambda folder: folder.name)
def test_a_comparison_stands_in_the_page(folder):
    written = (folder / "compare.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert not [line for line in lines(written) if line.replace("±", " ± ") not in page]


@pytest.mark.parametrize("name", ["paper-table", "paper-table-128"])
def test_the_papers_table_stands_as_it_was_written(name: str):
    folder = ROOT / "results" / name
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    written = (folder / "paper-table.md").read_text(encoding="utf-8")
    content = read(folder / "compare.json")
    assert written == paper_table.table(content["rows"], content)
    assert len(lines(written)) > 10
    assert not [line for line in lines(written) if line not in page]
    if name == "paper-table":  # the notes of the other differ in the width alone
        assert words(written) in words(page)
