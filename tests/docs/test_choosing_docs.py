"""The tables of docs/choosing.md and docs/papers.md are those that the commands wrote into results."""

from __future__ import annotations

import pytest
from places import ROOT

from flowmaps.evaluation.cells import read
from flowmaps.reports.tables import comparison_markdown

COMPARISONS = sorted(path.parent for path in (ROOT / "results").glob("compare-*/compare.json"))


def lines(text: str) -> list[str]:
    """The lines of tables."""
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("folder", COMPARISONS, ids=lambda folder: folder.name)
def test_a_comparison_stands_as_it_was_written(folder):
    written = (folder / "compare.md").read_text(encoding="utf-8")
    assert written == comparison_markdown(read(folder / "compare.json")["rows"])
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    missing = [line for line in lines(written) if line.replace("±", " ± ") not in page]
    assert not missing


def test_the_papers_table_stands_as_it_was_written():
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    written = (ROOT / "results" / "paper-table" / "paper-table.md").read_text(encoding="utf-8")
    assert len(lines(written)) > 10
    assert not [line for line in lines(written) if line not in page]
