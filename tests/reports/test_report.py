"""The report is one escaped page with its pictures inside."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from report_cases import ROWS

from flowmaps.reports import figures, report, tables

CONFIG = {
    "seed": 3,
    "method": "lmd",
    "optimiser.rate": 1e-3,
    "optimiser.betas": (0.9, 0.99),
    "evil": "<script>alert('&')</script>",
}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return figures.save(Figure(figsize=(1, 1)), tmp_path / "picture.png")


def test_report_embeds_the_bytes_of_its_figures_and_loads_nothing(tmp_path: Path, picture: Path):
    pictures = {"one": picture, "two": str(picture)}
    path = report.write(tmp_path, "a run", CONFIG, ROWS, pictures, notes=["first", "second"])
    assert path == tmp_path / "report.html"
    page = path.read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2
    for source in sources:
        head, data = source.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True) == picture.read_bytes()
    without = re.sub(r'src="[^"]*"', "", page)
    assert not re.search(r"https?:|href=|url\(|@import|<script|<link", without)
    assert without.index("<p>first</p>") < without.index("<p>second</p>") < without.index("<table")


def test_report_escapes_everything(tmp_path: Path, picture: Path):
    evil = "<img src=x onerror=\"alert('{body}')\">&"
    rows = [{**ROWS[0], "sampler": evil, "solver": evil, "w2": evil}]
    said = {"notes": [evil], "changes": [[evil] * 4]}
    page = report.write(tmp_path, evil, {evil: evil}, rows, {evil: picture}, **said).read_text(encoding="utf-8")
    assert evil not in page
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=&quot;alert(&#x27;{body}&#x27;)&quot;&gt;&amp;") >= 9
    assert page.count("<img ") == 1


def test_report_shows_rows_units_meanings_and_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/flowmaps", "train", "a name", "--out", "x"])
    page = report.write(tmp_path, "a run", CONFIG, ROWS, {}).read_text(encoding="utf-8")
    head = re.findall(r"<th>([^<]*)(?:<small>([^<]*)</small>)?</th>", page.split("<tbody>")[0])
    assert ("above floor", "nats") in head
    assert ("evals", "") in head
    assert "<td>0.0993</td>" in page
    assert page.count('<tr class="map">') == 1
    assert all(f"<dt>{column.heading}</dt>" in page for column in tables.columns_of(ROWS))
    pairs = dict(re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td></tr>", page))
    assert pairs["command"] == "flowmaps train &#x27;a name&#x27; --out x"
    assert pairs["seed"] == "3"
    assert pairs["optimiser.rate"] == "0.001"
    assert {"flowmaps", "torch", "time", "machine"} <= pairs.keys()


def test_a_run_without_rows_figures_or_configuration_is_a_page_too(tmp_path: Path):
    page = report.write(tmp_path, "empty", {}, [], {}).read_text(encoding="utf-8")
    assert "How it was made" in page
    assert not re.search("Results|Pictures|Configuration", page)


def test_a_failing_write_leaves_the_old_report_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    report.write(tmp_path, "old", {}, ROWS, {})
    old = (tmp_path / "report.html").read_bytes()
    with pytest.raises(FileNotFoundError):
        report.write(tmp_path, "new", {}, ROWS, {"gone": tmp_path / "gone.png"})
    (tmp_path / "fake.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"embeds PNG files, got .*fake\.png"):
        report.write(tmp_path, "new", {}, ROWS, {"fake": tmp_path / "fake.png"})

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        report.write(tmp_path, "new", {}, ROWS, {})
    assert (tmp_path / "report.html").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fake.png", "report.html"]
