"""Methods side by side: one budget, one table, one figure."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from rich.console import Console

from flowmaps.cli import compare
from flowmaps.cli.main import main
from flowmaps.evaluation import measure
from flowmaps.evaluation import rows as evaluate
from flowmaps.methods import METHODS
from flowmaps.reports import figures, tables
from flowmaps.runs.recipes import Recipe, checkerboard
from flowmaps.storage import models as checkpoint

SMALL = """--no-compile --network.width 8 --network.depth 2 --optimiser.batch 16 --evaluation.samples 300
--evaluation.points 30 --evaluation.steps 1 3 --budget 0.4""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    main(["compare", "checkerboard", "--methods", "lmd", "emd", "pfmm", "psd", "reflow", "--out", str(out), *SMALL])
    return out


def tiny(method: str) -> Recipe:
    recipe = checkerboard()
    network = replace(recipe.network, width=8, depth=2)
    return replace(recipe, method=method, compile=False, network=network, optimiser=replace(recipe.optimiser, batch=16))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "compare.json").read_text())["rows"]


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["compare", "checkerboard", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_each_method_has_its_ode_and_its_jumps(folder: Path):
    rows = json.loads((folder / "compare.json").read_text())["rows"]
    for method in ("lmd", "emd", "pfmm", "psd", "reflow"):
        mine = [(row["sampler"], row.get("steps"), row["nfe"]) for row in rows if row["method"] == method]
        assert mine[0][0] == "teacher"
        assert mine[1:] == [("map", 1, 1), ("map", 3, 3)]


def test_methods_that_distil_share_one_teacher(folder: Path):
    rows = json.loads((folder / "compare.json").read_text())["rows"]
    ode = {row["method"]: row["kl"] for row in rows if row["sampler"] == "teacher"}
    assert ode["lmd"] == ode["emd"] == ode["reflow"]
    assert len({ode["lmd"], ode["pfmm"], ode["psd"]}) == 3


def test_all_files_are_there_and_the_table_agrees_with_the_rows(folder: Path):
    expected = {"compare.json", "compare.md", "compare.png"}
    expected |= {f"samples-{method}.png" for method in ("lmd", "emd", "pfmm", "psd", "reflow")}
    expected |= {"teacher-AverageVelocity-Linear-0.08s.safetensors"}  # 4,000 of 20,000 steps
    assert {path.name for path in folder.iterdir()} == expected
    one = next(row for row in rows_of(folder) if row["method"] == "psd" and row.get("steps") == 1)
    line = next(line for line in (folder / "compare.md").read_text().splitlines() if line.startswith("| psd |"))
    assert line.split("|")[2].strip() == f"{one['kl'] - one['kl_floor']:.4f}"
    assert line.split("|")[-2].strip() == f"{one['mb_per_step']:.1f}"


def test_the_cost_of_a_step_is_measured(folder: Path):
    rows = {row["method"]: row for row in rows_of(folder)}
    for row in rows.values():
        assert 0.1 < row["ms_per_step"] < 400
        assert 0.001 < row["mb_per_step"] < 10
    assert [method for method, row in rows.items() if row["distilled"]] == ["lmd", "emd", "reflow"]


def test_memory_is_of_the_objective_and_grows_with_the_batch(tmp_path: Path):
    def needed(method: str, batch: int) -> float:
        recipe = replace(tiny(method), optimiser=replace(tiny(method).optimiser, batch=batch))
        return compare.fit(recipe, compare.open_data("checkerboard"), 0.05, tmp_path)[2]["mb_per_step"]

    plain = needed("flow_matching", 1000)
    assert needed("lsd", 1000) > 1.5 * plain  # derivatives
    assert needed("flow_matching", 4000) == pytest.approx(4 * plain, rel=0.1)


def test_the_time_of_a_step_is_the_median(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(compare, "follow", lambda *_: ([1.0, 0.002, 0.001, 0.003, 0.002], True))
    spent = compare.fit(tiny("lsd"), compare.open_data("checkerboard"), 1.0, tmp_path)[2]
    assert spent["ms_per_step"] == 2.0


def test_points_are_compared_by_their_energy_distance():
    spent = {"method": "lsd", "ms_per_step": 2.0}
    rows = [
        {**spent, "sampler": "teacher", "solver": "dopri5", "energy": 0.5, "map_error": 1.0},
        {**spent, "sampler": "map", "steps": 2, "energy": 0.25, "map_error": 3.0},
    ]
    heading, lines = tables.summary(rows)
    assert heading == ["method", "2 steps", "dopri5", "error", "ms/step", "MB/step"]
    assert lines == [["lsd", "0.2500", "0.5000", "3.0000", "2.0", "–"]]


def test_what_does_not_apply_is_a_dash_and_what_is_absurd_is_short():
    spent = {"ms_per_step": 2.0, "mb_per_step": 12.34, "sampler": "map"}
    rows = [
        {**spent, "method": "flow_matching", "steps": 1, "kl": 0.3, "kl_floor": 0.1, "map_error": 1.0},
        {**spent, "method": "sct", "diverged": True},
        {**spent, "method": "lsd", "steps": 1, "kl": math.inf, "kl_floor": 0.1, "map_error": 1e20},
        {**spent, "method": "psd", "steps": 1, "lost": 100},
    ]
    _, lines = tables.summary(rows)
    assert lines == [
        ["flow_matching", "0.2000", "–", "–", "2.0", "12.3"],
        ["sct", "diverged", "–", "–", "2.0", "12.3"],
        ["lsd", "–", "–", "1e+20", "2.0", "12.3"],
        ["psd", "–", "–", "–", "2.0", "12.3"],
    ]
    ax = figures.compare(tables.shown(rows)).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["flow_matching", "sct", "lsd", "psd"]


def test_the_table_of_all_methods_is_at_most_100_columns_wide(capsys: pytest.CaptureFixture):
    longest = max(METHODS, key=len)
    head = {"method": longest, "ms_per_step": 123.456, "mb_per_step": 123.456}
    rows = [{**head, "sampler": "map", "steps": n, "kl": 12.3456, "kl_floor": 0, "map_error": 12} for n in (1, 2, 4, 8)]
    rows.append({**head, "sampler": "teacher", "solver": "dopri5", "kl": 12.3456, "kl_floor": 0})
    Console(width=100).print(tables.terminal(rows, "checkerboard, 120 s of training for each method"))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 100
    line = next(line for line in printed.splitlines() if longest in line)
    assert line.split() == [longest, *["12.346"] * 5, "12.000", "123.5", "123.5"]


# interrupted, resumed -------------------------------------------------------------------------------------------------


def test_what_was_interrupted_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["compare", "checkerboard", "--methods", "lmd", "psd", "emd", "--out", str(tmp_path), *SMALL]
    whole, fitted = compare.fit, []

    def fit(recipe: Recipe, *others: Any) -> Any:
        if fitted == ["lmd"]:
            fitted.append("interrupted")
            raise KeyboardInterrupt
        fitted.append(recipe.method)
        return whole(recipe, *others)

    monkeypatch.setattr(compare, "fit", fit)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 130
    before = rows_of(tmp_path)
    assert {row["method"] for row in before} == {"lmd"}
    teacher = next(tmp_path.glob("teacher-*"))
    weights, at = checkpoint.load_tensors(teacher)[0], teacher.stat().st_mtime_ns
    main([*words, "--resume"])
    assert fitted == ["lmd", "interrupted", "psd", "emd"]
    after = rows_of(tmp_path)
    assert after[: len(before)] == before
    assert list(dict.fromkeys(row["method"] for row in after)) == ["lmd", "psd", "emd"]
    ode = {row["method"]: row for row in after if row["sampler"] == "teacher"}
    assert ode["emd"]["kl"] == ode["lmd"]["kl"]
    assert teacher.stat().st_mtime_ns == at  # loaded, not trained again
    assert weights.keys() == checkpoint.load_tensors(teacher)[0].keys()
    main([*words, "--resume"])
    assert rows_of(tmp_path) == after
    assert fitted == ["lmd", "interrupted", "psd", "emd"]


def test_a_teacher_that_is_loaded_measures_as_the_one_that_was_saved(tmp_path: Path):
    recipe, source = tiny("lmd"), compare.open_data("checkerboard", 16)
    _, first, _ = compare.fit(recipe, source, 0.3, tmp_path)
    _, second, spent = compare.fit(tiny("emd"), source, 0.3, tmp_path)
    assert first is not None
    assert second is not None
    old, new = first.state_dict(), second.state_dict()
    assert all(bool((old[name] == new[name]).all()) for name in old)
    assert (tmp_path / spent["teacher"]).exists()


def test_a_comparison_goes_on_as_it_was_begun(folder: Path, capsys: pytest.CaptureFixture):
    words = ["--methods", "lmd", "--out", str(folder), "--resume", *SMALL]
    for change, said in (
        (
            ["--budget", "0.8"],
            "was begun with --budget 0.4, got 0.8: resume with what it began with, or",
        ),
        (["--seed", "3"], "was begun with --seed 0, got 3"),
        (["--network.width", "9"], "was begun with --network.width 8, got 9"),
        (["--teacher-steps", "3"], "was begun with --teacher-steps 4000, got 3"),
    ):
        assert said in refused(capsys, *words, *change)
    with pytest.raises(SystemExit):
        main(["compare", "digits", *words])
    assert "was begun with the recipe checkerboard, got digits" in capsys.readouterr().err


def test_there_must_be_something_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--methods", "lmd", "--out", str(tmp_path), "--resume", *SMALL]
    assert "has no compare.json: there is nothing to resume; leave out --resume" in refused(capsys, *words)
    (tmp_path / "compare.json").write_text('{"recipe"')
    assert "compare.json is damaged" in refused(capsys, *words)
    (tmp_path / "compare.json").write_text("[]")
    assert "compare.json is damaged" in refused(capsys, *words)


# diverged -------------------------------------------------------------------------------------------------------------


def test_a_method_that_diverges_is_stopped_early_and_leaves_the_others_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, took = compare.run_stage, []

    def run_stage(recipe: Recipe, stage: str, number: int, source: Any, objective: Any, budget: float) -> Any:
        if recipe.method == "psd":
            next(objective.flow_map.parameters()).data.fill_(math.nan)
            budget = 60.0
        begun = time.monotonic()
        spent = whole(recipe, stage, number, source, objective, budget)
        took.append(time.monotonic() - begun)
        return spent

    monkeypatch.setattr(compare, "run_stage", run_stage)
    out = tmp_path / "out"
    main(["compare", "checkerboard", "--methods", "psd", "lsd", "--out", str(out), *SMALL])
    assert took[0] < 20
    first, second = (
        [cell.strip() for cell in line.split("|")] for line in (out / "compare.md").read_text().splitlines()[2:]
    )
    assert first[1:6] == ["psd", "diverged", "–", "–", "–"]
    assert second[1] == "lsd"
    assert float(second[2]) > 0
    assert (out / "compare.png").exists()
    assert [row["method"] for row in rows_of(out) if row.get("diverged")] == ["psd"]
    assert not (out / "samples-psd.png").exists()


def test_a_teacher_that_diverges_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compare, "run_stage", lambda *_: {"ms_per_step": 1.0, "diverged": True})
    _, teacher, spent = compare.fit(tiny("lmd"), compare.open_data("checkerboard"), 1.0, tmp_path)
    assert teacher is None
    assert spent["diverged"]
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_shown_the_words_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(measure, "FAR", 1e-30)  # all samples are lost
    assert "every method diverged: lower --optimiser.rate" in refused(
        capsys, "--methods", "lsd", "--out", str(tmp_path), *SMALL
    )
    assert [row["lost"] for row in rows_of(tmp_path)] == [300] * 3
    assert "| lsd | – | – | – | – |" in (tmp_path / "compare.md").read_text()


def test_a_method_that_cannot_be_measured_leaves_the_others_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = compare.measure

    def measure(recipe: Recipe, *others: Any, **more: Any) -> Any:
        if recipe.method == "psd":
            raise ValueError("the exact transport failed")
        return whole(recipe, *others, **more)

    monkeypatch.setattr(compare, "measure", measure)
    main(["compare", "checkerboard", "--methods", "psd", "lsd", "--out", str(tmp_path), *SMALL])
    assert [row["method"] for row in rows_of(tmp_path) if row.get("diverged")] == ["psd"]


# pictures, restarts, options ------------------------------------------------------------------------------------------


def test_a_map_of_jumps_to_the_data_is_sampled_with_fresh_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate, "TO_DATA", ("lsd",))
    main(["compare", "checkerboard", "--methods", "lsd", "--out", str(tmp_path), *SMALL])
    rows = rows_of(tmp_path)
    assert [(row["sampler"], row["steps"], row.get("restart")) for row in rows] == [("map", 1, None), ("map", 3, True)]
    line = (tmp_path / "compare.md").read_text().splitlines()[-1]
    assert line.split("|")[4].strip() == "–"  # no ODE


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
        main(["compare", "checkerboard", "--help"])
    options = {word for word in capsys.readouterr().out.split() if word.startswith("--")}
    assert {"--methods", "--resume", "--network.width"} <= options
    assert not {"--method", "--name", "--log-every", "--checkpoint-every"} & options
    assert "--method" in refused(capsys, "--method", "lsd")


@pytest.mark.parametrize(
    "words, said",
    [
        ("--methods lmd lmd", "--methods needs different methods, got lmd lmd"),
        ("--methods lmd lsdd", "unknown method 'lsdd': did you mean 'lsd'?"),
        ("--methods all lmd", "--methods all stands alone, got all lmd"),
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
