"""The README is one page: its links lead somewhere, its figures are those of results, its demo is a recipe file."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from places import ROOT

from flowmaps.evaluation.quality import ABOVE_FLOOR
from flowmaps.methods import METHODS
from flowmaps.runs import recipe_files
from flowmaps.runs.recipes import RECIPES

README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "results" / "README.md").read_text()


def test_it_is_one_page_whose_links_lead_somewhere():
    assert README.count("\n") <= 80
    links = re.findall(r"\]\((?!https)([^)#]+)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_number_of_methods_is_said(page: str):
    assert re.findall(r"\[(\d+) methods\]", (ROOT / page).read_text()) == [str(len(METHODS))]


@pytest.mark.parametrize(("folder", "text", "least"), [("demo", README, 4), ("checkerboard", RESULTS, 6)])
def test_a_table_is_that_of_its_file_of_results(folder: str, text: str, least: int):
    """Each row with the evaluations and figures of metrics.json: of `make demo` in the README."""
    rows = json.loads((ROOT / "results" / folder / "metrics.json").read_text())["rows"]
    lines = []
    for row in rows:
        numbers = [row["kl"], row["kl_floor"], ABOVE_FLOOR.of(row), row["w2"]]
        numbers = [*(f"{value:.4f}" for value in numbers), f"{row['map_error']:.1e}"]
        seconds = f"{row['seconds']:.{1 if row['seconds'] >= 0.95 else 2}f}"
        lines.append(f"| {row['nfe']} | {' | '.join(numbers)} | {seconds} |")
    assert sum(line in text for line in lines) >= least
    four, teacher = next(row for row in rows if row.get("steps") == 4), rows[0]
    ratio = (four["kl"] - four["kl_floor"]) / (teacher["kl"] - teacher["kl_floor"])
    assert f"{ratio:.2f}" in text
    assert f"{teacher['seconds'] / four['seconds']:.0f} times faster" in text


def test_the_demo_is_the_recipe_with_fewer_steps_and_samples():
    demo = recipe_files.read(ROOT / "examples" / "demo.toml").for_method("lmd")[1]
    usual = RECIPES["checkerboard"]()
    assert 0 < demo.show_every <= usual.teacher_steps  # the first picture is of the teacher
    assert demo.steps < usual.steps
    evaluation = replace(usual.evaluation, samples=40_000, points=2_500, batch=2_000)
    assert demo == replace(usual, steps=demo.steps, show_every=demo.show_every, evaluation=evaluation)
    assert f"with {demo.steps:,} steps of the map and {evaluation.samples:,} samples" in RESULTS
    assert "examples/demo.toml" in (ROOT / "Makefile").read_text()
