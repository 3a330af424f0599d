"""The pages of the methods are what the code says, and what they show runs."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

import pytest
from places import ROOT

from flowmaps import methods

DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import make  # noqa: E402
import method  # noqa: E402
import residuals  # noqa: E402

NAMES = list(methods.METHODS)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """`python docs/make.py` with arguments."""
    monkeypatch.setattr(sys, "argv", ["make.py", *arguments])
    return make.main()


def test_the_pages_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--check") == 0, capsys.readouterr().out[:2000] + "run python docs/make.py"


def test_a_page_that_differs_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for path in make.PAGES.glob("*.md"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "lmd.md").write_text((tmp_path / "lmd.md").read_text().replace("teacher", "master", 1))
    (tmp_path / "gone.md").write_text("a method that is no more\n")
    monkeypatch.setattr(make, "PAGES", tmp_path)
    assert run(monkeypatch, "--check") == 1
    out = capsys.readouterr()
    assert "-a method that is no more" in out.out
    assert "lmd.md on disk" in out.out
    assert "run python docs/make.py" in out.err


def test_every_method_has_a_page_and_a_row() -> None:
    assert {path.stem for path in make.PAGES.glob("*.md")} == {*NAMES, "README"}
    index = (make.PAGES / "README.md").read_text()
    assert all(index.count(f"[`{name}`]({name}.md)") == 1 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_says_what_it_must(name: str) -> None:
    words = method.text(name)
    missing = {"The paper", "When to use"} - set(words.sections)
    assert not missing, f"the docstring of {name} has no section {' and '.join(sorted(missing))}"
    assert len(words.sections) == 2, f"the docstring of {name} has other sections: {list(words.sections)}"
    assert re.search(r"\d{4}\.\d{5}|FMM|SD|unpublished", words.references), (
        f"the docstring of {name} has no paragraph 'Reference: ...' with an arXiv number, FMM, SD or 'unpublished', "
        f"got {words.references!r}"
    )
    wanted = [key for key in inspect.signature(method.function(name)).parameters if key not in ("flow_map", "options")]
    assert [key for keys in words.arguments for key in keys.split(", ")] == wanted, f"arguments of {name}, in order"


@pytest.mark.parametrize("name", NAMES)
def test_a_snippet_runs(name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (make.PAGES / f"{name}.md").read_text(), re.S)
    assert len(blocks) == 1
    assert "steps = 1000\n" in blocks[0]
    given: dict = {}
    exec(blocks[0].replace("steps = 1000\n", "steps = 2\n"), given)
    assert given["samples"].shape == (1000, 2)
    assert given["samples"].isfinite().all()


def test_residuals_are_drawn_from_the_cells_of_comparisons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for data, seeds in (("checkerboard", 3), ("digits", 1)):
        cells = tmp_path / f"compare-{data}" / "cells"
        cells.mkdir(parents=True)
        row = {"method": "lmd", "seed": 0, "sampler": "map", "steps": 1, "kl": 0.35, "kl_floor": 0.1}
        lost = {"method": "lmd", "seed": 2, "sampler": "map", "diverged": True}
        rows = [row, {**row, "seed": 1}, lost]
        (cells.parent / "compare.json").write_text(json.dumps({"recipe": data, "rows": rows}))
        for seed in range(seeds):
            curve = {"step": [10 * k for k in range(1, 101)], "lagrangian": [None, *(1 / k for k in range(1, 100))]}
            cell = {"method": "lmd", "seed": seed, "rows": [], "curves": {"teacher": curve, "map": curve}}
            (cells / f"lmd-{seed}.json").write_text(json.dumps(cell))
    (figure,) = (residuals.figure(curves) for curves in residuals.panels(tmp_path).values())
    assert [ax.get_title() for ax in figure.axes] == ["checkerboard", "digits"]
    assert [len(ax.lines) for ax in figure.axes] == [3, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lagrangian"]
    pictures = tmp_path / "docs" / "images" / "residuals"
    pictures.mkdir(parents=True)
    (pictures / "gone.png").touch()
    residuals.draw(tmp_path, pictures)
    assert [path.name for path in pictures.iterdir()] == ["lmd.png"]
    assert 1_000 < (pictures / "lmd.png").stat().st_size < 30_000
    monkeypatch.setattr(make, "RESIDUALS", pictures)
    monkeypatch.setattr(make, "ROOT", tmp_path)
    page = make.page("lmd", tmp_path)
    assert "![Residuals of lmd](../images/residuals/lmd.png)" in page
    assert residuals.CAPTION in page
    assert "checkerboard, KL above floor [nats]:\n\n| method | 1 step | " in page
    assert "| lmd (1 of 3 diverged) | 0.2500±0.0000 |" in page
    other = make.page("emd", tmp_path)
    assert "Residuals of" not in other
    assert "## Measured" not in other
    residuals.draw(tmp_path / "none", pictures)  # nothing to draw: what there is stays
    assert (pictures / "lmd.png").exists()


def test_links_lead_somewhere() -> None:
    for path in make.PAGES.glob("*.md"):
        for link in re.findall(r"\]\((?!https)([^)#]+)\)", path.read_text()):
            assert (path.parent / link).exists(), (path.name, link)


def test_the_costs_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--costs") == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(NAMES)
