"""Methods side by side: one budget, one table, one figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flowmaps import compare
from flowmaps.cli import main
from flowmaps.recipes import Recipe

SMALL = """--no-compile --network.width 8 --network.depth 2 --optimiser.batch 16 --evaluation.samples 300
--evaluation.points 30 --evaluation.steps 1 3 --budget 0.4""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    main(["compare", "checkerboard", "--methods", "lmd", "emd", "pfmm", "psd", "--out", str(out), *SMALL])
    return out


def test_each_method_has_its_ode_and_its_jumps(folder: Path):
    rows = json.loads((folder / "compare.json").read_text())["rows"]
    for method in ("lmd", "emd", "pfmm", "psd"):
        mine = [(row["sampler"], row.get("steps"), row["nfe"]) for row in rows if row["method"] == method]
        assert mine[0][0] == "teacher"
        assert mine[1:] == [("map", 1, 1), ("map", 3, 3)]


def test_methods_that_distil_share_one_teacher(folder: Path):
    rows = json.loads((folder / "compare.json").read_text())["rows"]
    ode = {row["method"]: row["kl"] for row in rows if row["sampler"] == "teacher"}
    assert ode["lmd"] == ode["emd"]
    assert len({ode["lmd"], ode["pfmm"], ode["psd"]}) == 3


def test_all_files_are_there_and_the_table_agrees_with_the_rows(folder: Path):
    assert {path.name for path in folder.iterdir()} == {"compare.json", "compare.md", "compare.png"}
    rows = json.loads((folder / "compare.json").read_text())["rows"]
    one = next(row for row in rows if row["method"] == "psd" and row.get("steps") == 1)
    line = next(line for line in (folder / "compare.md").read_text().splitlines() if line.startswith("| psd |"))
    assert line.split("|")[2].strip() == f"{one['kl'] - one['kl_floor']:.4f}"


def test_points_are_compared_by_their_energy_distance():
    rows = [
        {
            "method": "lsd",
            "sampler": "teacher",
            "solver": "dopri5",
            "energy": 0.5,
            "map_error": 1.0,
            "ms_per_step": 2.0,
        },
        {"method": "lsd", "sampler": "map", "steps": 2, "energy": 0.25, "map_error": 3.0, "ms_per_step": 2.0},
    ]
    heading, lines = compare.summary(rows)
    assert heading == ["method", "2 steps", "dopri5", "error", "ms/step"]
    assert lines == [["lsd", "0.2500", "0.5000", "3.0000", "2.0"]]


def test_a_method_that_diverges_leaves_the_others_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = compare.fit

    def fit(recipe: Recipe, *others: Any) -> Any:
        flow_map, teacher, spent = whole(recipe, *others)
        if recipe.method == "psd":
            next(flow_map.parameters()).data.fill_(math.nan)
        return flow_map, teacher, spent

    monkeypatch.setattr(compare, "fit", fit)
    out = tmp_path / "out"
    main(["compare", "checkerboard", "--methods", "lsd", "psd", "--out", str(out), *SMALL])
    second, first = (
        [cell.strip() for cell in line.split("|")] for line in (out / "compare.md").read_text().splitlines()[2:]
    )
    assert first[1:6] == ["psd", "diverged", "–", "–", "–"]
    assert second[1] == "lsd"
    assert float(second[2]) > 0
    assert (out / "compare.png").exists()
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert [row["method"] for row in rows if row.get("diverged")] == ["psd"]


@pytest.mark.parametrize(
    "words, said",
    [
        ("--methods lmd lmd", "--methods needs different methods, got lmd lmd"),
        ("--methods lmd lsdd", "unknown method 'lsdd': did you mean 'lsd'?"),
        ("--budget nan", "--budget must be positive, got nan seconds"),
        ("--budget -1", "--budget must be positive, got -1.0 seconds"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, words: str, said: str):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "checkerboard", "--out", str(tmp_path / "x"), *words.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_folder_that_has_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit):
        main(["compare", "checkerboard", "--out", str(tmp_path)])
    assert "already exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
