"""Methods side by side: one budget, one table, one plot."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from program import refused

from flowmaps.cli import compare
from flowmaps.cli.main import main
from flowmaps.evaluation import budget, measure
from flowmaps.evaluation import compare as comparison
from flowmaps.methods import METHODS
from flowmaps.runs.plan import Plan
from flowmaps.runs.recipes import Recipe
from flowmaps.storage import models

SMALL = """--no-compile --network.width 8 --network.depth 2 --optimiser.batch 16 --evaluation.samples 300
--evaluation.points 30 --evaluation.steps 1 3 --budget 0.4""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    main(["compare", "checkerboard", "--methods", "lmd", "emd", "pfmm", "psd", "ayf_lmd", "--out", str(out), *SMALL])
    return out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "compare.json").read_text())["rows"]


def test_each_method_has_its_ode_and_its_jumps(folder: Path):
    rows = json.loads((folder / "compare.json").read_text())["rows"]
    for method in ("lmd", "emd", "pfmm", "psd", "ayf_lmd"):
        mine = [(row["sampler"], row.get("steps"), row["nfe"]) for row in rows if row["method"] == method]
        assert mine[0][0] == "teacher"
        assert mine[1:] == [("map", 1, 1), ("map", 3, 3)]


def test_methods_that_distil_share_one_teacher(folder: Path):
    rows = json.loads((folder / "compare.json").read_text())["rows"]
    ode = {row["method"]: row["kl"] for row in rows if row["sampler"] == "teacher"}
    assert ode["lmd"] == ode["emd"] == ode["ayf_lmd"]
    assert len({ode["lmd"], ode["pfmm"], ode["psd"]}) == 3


def test_all_files_are_there_and_the_table_agrees_with_the_rows(folder: Path):
    expected = {"compare.json", "compare.md", "compare.png", "cells"}
    expected |= {f"samples-{method}.png" for method in ("lmd", "emd", "pfmm", "psd", "ayf_lmd")}
    names = {path.name for path in folder.iterdir()}
    (teacher,) = names - expected
    assert teacher.startswith("teacher-AverageVelocity-Linear-0.08-seconds-0-")  # 4,000 of 20,000 steps
    assert names == expected | {teacher}
    cells = {path.name for path in (folder / "cells").iterdir()} - {".lock"}
    assert cells == {f"{method}-0.json" for method in ("lmd", "emd", "pfmm", "psd", "ayf_lmd")}
    one = next(row for row in rows_of(folder) if row["method"] == "psd" and row.get("steps") == 1)
    line = next(line for line in (folder / "compare.md").read_text().splitlines() if line.startswith("| psd |"))
    assert line.split("|")[2].strip() == f"{one['kl'] - one['kl_floor']:.4f}"
    assert line.split("|")[-2].strip() == f"{one['mb_per_step']:.1f}"


def test_the_cost_of_a_step_is_measured(folder: Path):
    rows = {row["method"]: row for row in rows_of(folder)}
    for row in rows.values():
        assert 0.1 < row["ms_per_step"] < 400
        assert 0.001 < row["mb_per_step"] < 10
    assert [method for method, row in rows.items() if row["distilled"]] == ["lmd", "emd", "ayf_lmd"]


def test_what_a_method_cannot_take_is_said_before_any_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture):
    for command in ("compare", "tune"):
        words = [command, "checkerboard", "--out", str(tmp_path / "x"), *SMALL]
        said = refused(capsys, *words, "--methods", "lsd", "tvm", "--off-diagonal-every", "3")
        assert "tvm cannot be trained with these options: " in said
        assert "every" in said
        assert not (tmp_path / "x").exists()


# interrupted, resumed -------------------------------------------------------------------------------------------------


def test_what_was_interrupted_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    words = ["compare", "checkerboard", "--methods", "lmd", "psd", "emd", "--out", str(tmp_path), *SMALL]
    whole, trained = comparison.train_method, []

    def train_method(plan: Plan, *others: Any, **options: Any) -> Any:
        if trained == ["lmd"]:
            trained.append("interrupted")
            raise KeyboardInterrupt
        trained.append(plan.method.name)
        return whole(plan, *others, **options)

    monkeypatch.setattr(comparison, "train_method", train_method)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 130
    assert capsys.readouterr().err == (
        "flowmaps: interrupted; finished trainings are kept: run the same command again, and the one cut off starts "
        "anew.\n"
    )
    before = rows_of(tmp_path)
    assert {row["method"] for row in before} == {"lmd"}
    teacher = next(tmp_path.glob("teacher-*"))
    weights, at = models.load_tensors(teacher)[0], teacher.stat().st_mtime_ns
    main(words)
    assert trained == ["lmd", "interrupted", "psd", "emd"]
    after = rows_of(tmp_path)
    assert after[: len(before)] == before
    assert list(dict.fromkeys(row["method"] for row in after)) == ["lmd", "psd", "emd"]
    ode = {row["method"]: row for row in after if row["sampler"] == "teacher"}
    assert ode["emd"]["kl"] == ode["lmd"]["kl"]
    assert teacher.stat().st_mtime_ns == at  # loaded, not trained again
    assert weights.keys() == models.load_tensors(teacher)[0].keys()
    main([*words, "--resume"])
    assert rows_of(tmp_path) == after
    assert trained == ["lmd", "interrupted", "psd", "emd"]


def test_a_comparison_goes_on_as_it_was_begun(folder: Path, capsys: pytest.CaptureFixture):
    words = ["--methods", "lmd", "--out", str(folder), "--resume", *SMALL]
    assert "was begun with the recipe checkerboard, got digits" in refused(capsys, "compare", "digits", *words)
    for change, said in (
        (
            ["--budget", "0.8"],
            "was begun with --budget 0.4, got --budget 0.8: join it with what it began with, or",
        ),
        (["--network.width", "9"], "was begun with --network.width 8, got --network.width 9"),
        (["--teacher-steps", "3"], "was begun with --teacher-steps 4000, got --teacher-steps 3"),
    ):
        assert said in refused(capsys, "compare", "checkerboard", *words, *change)


def test_there_must_be_something_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["compare", "checkerboard", "--methods", "lmd", "--out", str(tmp_path), "--resume", *SMALL]
    assert "has no compare.json: there is nothing to resume; leave out --resume" in refused(capsys, *words)
    (tmp_path / "compare.json").write_text('{"recipe"')
    assert "compare.json is damaged" in refused(capsys, *words)
    (tmp_path / "compare.json").write_text("[]")
    assert "compare.json is damaged" in refused(capsys, *words)


# several seeds, several processes -------------------------------------------------------------------------------------

IN_STEPS = [word for word in SMALL if word not in ("--budget", "0.4")]


@pytest.mark.slow
def test_seeds_are_trained_for_equal_steps_and_more_can_be_added(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["compare", "checkerboard", "--out", str(tmp_path), *IN_STEPS, "--budget-steps", "20"]
    main([*words, "--methods", "lmd", "psd", "--seeds", "2"])
    content = json.loads((tmp_path / "compare.json").read_text())
    assert (content["budget"], content["budget_in"]) == (20, "optimiser steps")
    assert (content["methods"], content["seeds"]) == (["lmd", "psd"], [0, 1])
    maps = {(row["method"], row["seed"]): row for row in content["rows"] if row["sampler"] == "map"}
    assert list(maps) == [("lmd", 0), ("lmd", 1), ("psd", 0), ("psd", 1)]
    assert {row["map_steps"] + row.get("teacher_steps", 0) for row in maps.values()} == {20}
    assert len({row["kl"] for row in maps.values()}) == 4
    assert maps["lmd", 0]["teacher"] != maps["lmd", 1]["teacher"]
    assert "over seeds 0, 1;" in (tmp_path / "compare.md").read_text()
    assert "±" in capsys.readouterr().out
    main([*words, "--methods", "psd", "--seed", "7", "--seeds", "1"])
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["seeds"] == [0, 1, 7]
    assert "With fewer seeds: lmd 0, 1." in (tmp_path / "compare.md").read_text()
    main(["compare", "checkerboard", "--methods", "psd", "--seeds", "1", "7", "--out", str(tmp_path / "again"),
          *IN_STEPS, "--budget-steps", "20"])  # fmt: skip
    alone = {row["seed"]: row for row in rows_of(tmp_path / "again") if row["sampler"] == "map"}
    both = {row["seed"]: row for row in content["rows"] if row["sampler"] == "map" and row["method"] == "psd"}
    assert [alone[seed]["kl"] for seed in (1, 7)] == [both[seed]["kl"] for seed in (1, 7)]  # the seed decides, no order


def test_a_cell_keeps_the_curves_of_its_residuals(folder: Path):
    cell = json.loads((folder / "cells" / "pfmm-0.json").read_text())
    assert (cell["method"], cell["seed"]) == ("pfmm", 0)
    assert set(cell["curves"]) == {"strip", "map"}
    assert set(cell["curves"]["strip"]) == {"step", "lagrangian", "round_trip"}
    assert len({len(values) for values in cell["curves"]["strip"].values()}) == 1
    assert (folder / "cells" / "pfmm-0.json").stat().st_size < 20_000


def test_the_budget_in_seconds_is_cpu_time_on_a_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert json.loads((folder / "compare.json").read_text())["budget_in"].startswith("seconds of CPU time")
    assert budget.clock_of(torch.device("cpu")) is time.process_time
    assert budget.clock_of(torch.device("cuda")) is time.monotonic


@pytest.mark.slow
def test_two_processes_at_once_share_the_work_and_one_that_is_killed_leaves_its_cell(tmp_path: Path):
    words = [sys.executable, "-m", "flowmaps", "compare", "checkerboard", "--methods", "lmd", "emd", "psd",
             "--seeds", "2", "--out", str(tmp_path / "out"), *IN_STEPS, "--budget", "3"]  # fmt: skip
    files = [(tmp_path / f"{k}.txt").open("w") for k in range(3)]
    first, second = (subprocess.Popen(words, stdout=file, stderr=file) for file in files[:2])
    held = tmp_path / "out" / "cells"
    while not (held.is_dir() and f"process {first.pid} " in "".join(path.read_text() for path in held.glob("*.lock"))):
        time.sleep(0.1)
    first.kill()
    assert second.wait(600) == 0
    third = subprocess.run(words, stdout=files[2], stderr=files[2], timeout=600)
    assert third.returncode == 0
    rows = rows_of(tmp_path / "out")
    cells = {(row["method"], row["seed"]) for row in rows}
    assert cells == {(method, seed) for method in ("lmd", "emd", "psd") for seed in (0, 1)}
    keys = [(row["method"], row["seed"], row["sampler"], row.get("steps")) for row in rows]
    assert len(set(keys)) == len(keys)
    teachers = {row["teacher"] for row in rows if "teacher" in row}
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == teachers
    assert len(teachers) == 2  # one a seed
    assert not list(held.glob("*-*.lock"))


# diverged -------------------------------------------------------------------------------------------------------------


def test_a_method_that_diverges_is_stopped_early_and_leaves_the_others_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, took = budget.train_stage, []

    def train_stage(plan: Plan, stage: Any, source: Any, objective: Any, budget: float, **options: Any) -> Any:
        if plan.method.name == "psd":
            next(objective.flow_map.parameters()).data.fill_(math.nan)
            budget = 60.0
        begun = time.monotonic()
        training = whole(plan, stage, source, objective, budget, **options)
        took.append(time.monotonic() - begun)
        return training

    monkeypatch.setattr(budget, "train_stage", train_stage)
    out = tmp_path / "out"
    main(["compare", "checkerboard", "--methods", "psd", "lsd", "--out", str(out), *SMALL])
    assert took[0] < 20
    first, second = (
        [cell.strip() for cell in line.split("|")] for line in (out / "compare.md").read_text().splitlines()[2:4]
    )
    assert first[1:6] == ["psd", "diverged", "–", "–", "–"]
    assert second[1] == "lsd"
    assert float(second[2]) > 0
    assert (out / "compare.png").exists()
    assert [row["method"] for row in rows_of(out) if row.get("diverged")] == ["psd"]
    assert not (out / "samples-psd.png").exists()


def test_where_nothing_can_be_shown_the_words_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(measure, "MAX_ABS", 1e-30)  # all samples are lost
    words = ["compare", "checkerboard", "--methods", "lsd", "--out", str(tmp_path), *SMALL]
    assert "every method diverged: lower --optimiser.learning-rate" in refused(capsys, *words)
    assert [row["lost"] for row in rows_of(tmp_path)] == [300] * 3
    assert "| lsd | diverged | – | – | – |" in (tmp_path / "compare.md").read_text()


def test_a_method_that_cannot_be_measured_leaves_the_others_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = comparison.measure_method

    def measure_method(plan: Plan, *others: Any, **more: Any) -> Any:
        if plan.method.name == "psd":
            raise ValueError("the exact transport failed")
        return whole(plan, *others, **more)

    monkeypatch.setattr(comparison, "measure_method", measure_method)
    main(["compare", "checkerboard", "--methods", "psd", "lsd", "--out", str(tmp_path), *SMALL])
    assert [row["method"] for row in rows_of(tmp_path) if row.get("diverged")] == ["psd"]


def test_what_cannot_be_measured_is_told_before_any_training_and_no_method_has_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("no such features")

    monkeypatch.setattr(comparison, "train_method", lambda *_, **__: pytest.fail("trained"))
    words = ["compare", "checkerboard", "--methods", "lsd", "--out", str(tmp_path / "out"), *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "check_packages", refuse)
        assert "no such features" in refused(capsys, *words)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(comparison, "evaluation_inputs", refuse)
    assert "no such features" in refused(capsys, *words)
    assert rows_of(tmp_path / "out") == []
    assert not list((tmp_path / "out" / "cells").glob("*.json"))


def test_samples_are_drawn_of_the_first_seed_that_ended_in_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = comparison.measure_method

    def measure_method(plan: Plan, *others: Any, **more: Any) -> Any:
        if plan.recipe.seed == 0:
            raise ValueError("the exact transport failed")
        return whole(plan, *others, **more)

    monkeypatch.setattr(comparison, "measure_method", measure_method)
    main(["compare", "checkerboard", "--methods", "lsd", "--seeds", "2", "--out", str(tmp_path), *SMALL])
    assert (tmp_path / "samples-lsd.png").exists()


# pictures, fresh noise, options ---------------------------------------------------------------------------------------


def test_a_map_of_jumps_to_the_data_is_sampled_with_fresh_noise(tmp_path: Path):
    main(["compare", "checkerboard", "--methods", "consistency_training", "--out", str(tmp_path), *SMALL])
    rows = [(row["sampler"], row["steps"], row.get("fresh_noise")) for row in rows_of(tmp_path)]
    assert rows == [("map", 1, None), ("map", 3, True)]
    line = (tmp_path / "compare.md").read_text().splitlines()[2]
    assert line.split("|")[4].strip() == "–"  # no ODE


@pytest.mark.slow
def test_pictures_of_samples_are_small(tmp_path: Path):
    many = ["--evaluation.samples", "60000", "--evaluation.steps", "1", "2", "4", "8"]
    main(["compare", "checkerboard", "--methods", "lsd", "--out", str(tmp_path), *SMALL, *many])
    path = tmp_path / "samples-lsd.png"
    assert 5_000 < path.stat().st_size < 150_000
    height, width, _ = imread(path).shape
    assert width > 3 * height  # four panels


def test_digits_are_drawn_in_rows(tmp_path: Path):
    pytest.importorskip("sklearn")
    main(["compare", "digits", "--methods", "lsd", "--out", str(tmp_path), *SMALL])
    height, width, _ = imread(tmp_path / "samples-lsd.png").shape
    assert width > 3 * height  # ten digits in two rows


def test_all_stands_for_all_methods_and_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(compare, "compare", lambda recipe, methods, *_, **__: asked.append((type(recipe), methods)))
    main(["compare", "checkerboard"])
    main(["compare", "checkerboard", "--methods", "all"])
    assert asked == [(Recipe, tuple(METHODS))] * 2


def test_options_that_are_not_used_are_none(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main(["compare", "checkerboard", "--help-all"])
    lines = (line.strip("│ ") for line in capsys.readouterr().out.splitlines())
    options = {line.split()[0].rstrip(",") for line in lines if line.startswith("--")}
    assert {"--methods", "--resume", "--network.width"} <= options
    assert not {"--method", "--name", "--log-every", "--checkpoint-every", "--teacher", "--from-run"} & options
    with pytest.raises(SystemExit) as stop:
        main(["compare", "checkerboard", "--method", "lsd"])
    assert stop.value.code == 2
    assert "--method" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        ("--methods lmd lmd", "--methods needs different methods, got lmd lmd"),
        ("--methods lmd lsdd", "unknown method 'lsdd': did you mean 'lsd'?"),
        ("--methods all lmd", "--methods all stands alone, got all lmd"),
        ("--budget nan", "--budget must be positive, got nan seconds"),
        ("--budget-steps 0", "--budget-steps must be positive, got 0 steps"),
        ("--budget 3 --budget-steps 3", "--budget is in seconds and --budget-steps in steps: leave one of them out"),
        (
            "--seeds 0",
            "--seeds must be from 1 to 100, the number of seeds from --seed on, got 0: for the one seed 0 pass",
        ),
        ("--seeds 1 2 1", "--seeds needs different seeds, got 1 2 1"),
        ("--budget -1", "--budget must be positive, got -1.0 seconds"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, words: str, said: str):
    assert said in refused(capsys, "compare", "checkerboard", "--out", tmp_path / "x", *words.split())
    assert not (tmp_path / "x").exists()


def test_a_folder_that_has_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "mine").write_text("mine")
    error = refused(capsys, "compare", "checkerboard", "--out", tmp_path)
    assert "already exists and is not empty" in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
