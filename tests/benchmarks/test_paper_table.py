"""The papers' table: its lines from rows that are known, and a tiny run of it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import paper_table
import pytest
import torch

from flowmaps.evaluation.cells import read
from flowmaps.runs import initial, stages
from flowmaps.runs.recipes import Recipe
from flowmaps.times import Square, Strip

CONTENT = {
    "budget_in": "seconds of CPU time of the training process, without compilation",
    "budget": 750.0,
    "options": {"evaluation": {"samples": 1_000_000, "points": 5_000}, "network": {"width": 256, "depth": 4}},
}


def tiny() -> Recipe:
    usual = paper_table.recipe(100)
    return replace(
        usual,
        compile=False,
        network=replace(usual.network, width=8, depth=2),
        optimiser=replace(usual.optimiser, batch=16),
        evaluation=replace(usual.evaluation, points=30, steps=(1, 4)),
    )


def row(method: str, steps: int, kl: float, published: float | None = None, **more: object) -> dict:
    found = {"method": method, "seed": 0, "sampler": "map", "steps": steps, "nfe": steps, "kl": kl, "kl_floor": 0.001}
    return {
        **found,
        "samples": 1_000_000,
        "w2": 0.05,
        "other_cell": 0.01,
        **({"kl_64000": published} if published else {}),
        **more,
    }


def test_published_figures_stand_beside_ours():
    rows = [
        row("fmm", 1, 0.035, 0.05, other_cell_teacher=0.25),
        row("lsd", 2, 0.05, 0.0693),
        {**row("interpolant", 0, 0.017, 0.03), "sampler": "teacher", "solver": "dopri5"},
        row("interpolant", 80, 0.021, 0.03),
        {k: v for k, v in row("lsd", 8, 0.069, 0.069, samples=70_000).items() if k != "kl_floor"},
        {"method": "esd", "seed": 0, "sampler": "map", "diverged": True},
        row("psd-m", 1, 0.2, 0.2, lost=20_000),
        row("psd-u", 1, 7.0, 5.0, lost=999_999),
        {"method": "psd-u", "seed": 0, "sampler": "map", "steps": 2, "samples": 70_000, "lost": 70_000},
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in paper_table.table(rows, CONTENT).splitlines()]
    assert lines[2] == ["interpolant (velocity matching)", "ODE, dopri5", "0.0300", "0.016", "", "0.0160",
                        "0.0500", "0.0100", ""]  # fmt: skip
    assert lines[3][1:6] == ["ODE, 80 steps of Euler", "0.0300", "", "", "0.0200"]
    assert lines[4] == ["FMM, the square", "1 step", "0.0500", "0.017", "", "0.0340", "0.0500", "0.0100", "0.2500"]
    assert lines[5][:6] == ["LSD", "2 steps", "0.0693", "0.077", "0.90", "0.0490"]
    assert lines[6][:6] == ["LSD", "8 steps", "0.0690", "0.070", "0.99", ""]
    assert lines[7][:2] == ["ESD", "diverged"]
    assert lines[8][:5] == ["PSD-M", "1 step", "0.2000", "0.146", "1.37"]
    assert lines[9] == ["PSD-U", "1 step", "lost", "0.111", "", "", "", "", ""]
    assert lines[10][:5] == ["PSD-U", "2 steps", "lost", "0.107", ""]
    text = paper_table.table(rows, CONTENT)
    assert "750 seconds of CPU time of the training process a method" in text
    assert "Rows of 8 steps have 70,000 samples, and no KL above floor." in text
    assert "no KL above floor" not in paper_table.table(rows[:2], CONTENT)


def test_seeds_have_a_spread():
    rows = [row("lsd", 1, 0.1, 0.1), {**row("lsd", 1, 0.2, 0.2), "seed": 1}]
    assert "| LSD | 1 step | 0.1500 ± 0.0707 | 0.086 | 1.74 |" in paper_table.table(rows, CONTENT)
    assert "over 2 seeds" in paper_table.table(rows, CONTENT)


def test_seeds_that_end_in_no_map_are_counted_and_hide_no_others():
    rows = [
        row("lsd", 1, 0.1, 0.1),
        {**row("lsd", 1, 7.0, 7.0, lost=999_999), "seed": 1},
        {"method": "lsd", "seed": 2, "sampler": "map", "diverged": True},
    ]
    assert "| LSD (2 of 3 seeds lost) | 1 step | 0.1000 | 0.086 | 1.16 |" in paper_table.table(rows, CONTENT)


def test_every_row_is_the_method_that_its_name_says():
    plans = {name: build(tiny()) for name, build in paper_table.VARIANTS.items()}
    assert plans.keys() == paper_table.NAMES.keys()
    assert {name for name, plan in plans.items() if plan.method.name == name} == {
        "lmd", "emd", "fmm", "pfmm", "eulerian_estimation", "lsd", "esd",
    }  # fmt: skip
    options = {name: plan.method.settings(choices_of(plan)) for name, plan in plans.items()}
    assert options["fmm"]["times"] == Square()
    assert options["fmm-strip"]["times"] == Strip(0.25)
    assert plans["fmm-strip"].evaluation().steps == (4, 8, 16)
    assert options["psd-m"]["midpoint"]
    assert "midpoint" not in options["psd-u"]


def test_fmm_beside_lsd_has_its_rows():
    plan = paper_table.VARIANTS["fmm-beside-lsd"](tiny())
    objective = plan.stages[-1].build(initial.new_map(plan.recipe, (2,), None), None)
    inputs = objective.draw(torch.rand(32, 2), generator=torch.Generator().manual_seed(0), progress=0.0)
    assert inputs.counts == (16, 8, 8)
    s, t = (time.split(inputs.counts) for time in (inputs.s, inputs.t))
    assert torch.equal(s[0], t[0])
    assert (s[1] < t[1]).all()
    assert (s[2] < t[2]).any()
    assert (s[2] > t[2]).any()
    assert objective.evaluate(inputs).parts.keys() == {"diagonal", "lagrangian", "round_trip"}


def choices_of(plan):
    """The choices that a plan's settings are called with."""
    return stages.choices_of(plan.recipe, plan.interpolant)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--budget", "0"], "has no compare.json: train first"),
        (["--budget", "-1"], "--budget must be positive, got -1.0 seconds"),
        (["--budget-steps", "0"], "--budget-steps must be positive, got 0 steps"),
        (["--samples", "10"], "must be at least 100"),
        (["--width", "0"], "--network.width must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_in_a_line(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        paper_table.main(["--out", str(tmp_path / "out"), *words])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_comparison_makes_no_table(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "compare.json").write_text('{"recipe": "digits", "rows": []}')
    with pytest.raises(SystemExit):
        paper_table.main(["--out", str(tmp_path), "--budget", "0"])
    assert "has a comparison of digits, not of checkerboard-paper" in capsys.readouterr().err
    assert not (tmp_path / "paper-table.md").exists()


@pytest.mark.slow
def test_a_tiny_table_is_trained_in_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paper_table, "FEWER", {paper_table.EULER_STEPS: 60})
    options = {"out": tmp_path / "out", "budget": 750.0, "budget_steps": 10, "seeds": 1, "samples": 100}
    for names in (["interpolant", "fmm-strip", "psd-m"], list(paper_table.VARIANTS)):
        paper_table.train(tiny(), argparse.Namespace(**options, rows=names))
    assert "3 of 13 trainings have their rows in compare.json already." in capsys.readouterr().out
    content = read(tmp_path / "out" / "compare.json")
    text = paper_table.table(content["rows"], content)
    assert all(f"| {title} |" in text for title in paper_table.NAMES.values())
    assert "10 steps a method" in text
    assert {row["method"] for row in content["rows"] if row["sampler"] == "teacher"} == {"interpolant"}
    assert all("other_cell_teacher" in row for row in content["rows"] if row["method"] in ("lmd", "psd-m"))
    drawn = {row["steps"]: row["samples"] for row in content["rows"] if row["sampler"] == "map"}
    assert drawn == {1: 100, 2: 100, 4: 100, 8: 100, 16: 100, 80: 60}
