"""The program as its users meet it: what a command leaves behind, and one line for whatever goes wrong."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import filelock
import numpy as np
import pytest
import torch
from program import at_draw, interrupt, refused, run
from rich.console import Console
from run_cases import contents

import flowmaps as fm
from flowmaps.cli import commands, sampling, terminal
from flowmaps.cli import main as cli
from flowmaps.cli.options import changed_options
from flowmaps.evaluation import measure
from flowmaps.runs import run as runs
from flowmaps.runs.folder import RunFolder
from flowmaps.runs.recipes import ImageRecipe, Recipe
from flowmaps.storage import checkpoints
from flowmaps.system.processes import RaisedByAll
from flowmaps.system.seeds import generator
from flowmaps.training import trainer
from flowmaps.training.settings import options as options_of

OPTIONS = """--steps 5 --teacher-steps 4 --no-compile --device cpu --network.width 8 --network.depth 2 --log-every 2
    --optimiser.batch 16 --evaluation.samples 150 --evaluation.points 20 --evaluation.steps 1 3
    --evaluation.solver-steps 5 --evaluation.batch 64"""
TINY = OPTIONS.split()
RUN_FILES = ["config.json", "log.jsonl", "metrics.json", "report.html", "weights.safetensors"]


def table(rows: int = 60, dim: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(100.0, 5.0, (rows, dim))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("cli") / "board"
    return folder, run("train", "checkerboard", "--out", folder, "--seed", 3, *TINY)


@pytest.fixture
def board(trained: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the trained run, to be changed at will."""
    return shutil.copytree(trained[0], tmp_path / "board")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on points with labels, far from the origin."""
    folder = tmp_path_factory.mktemp("cli")
    np.savez(folder / "a.npz", x=table(), labels=np.arange(60) % 3)
    run("train", "points", "--out", folder / "run", "--data", folder / "a.npz", "--method", "lsd", *TINY)
    return folder / "run"


# train ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, stages",
    [
        (["--method", "lsd", "--steps", 7], "7 steps of map"),
        (["--method", "lsd", "--steps", 7, "--teacher-steps", 2], "9 steps of map"),
        (["--method", "lsd"], "20,000 steps of map"),
        (["--method", "lsd", "--steps", 16_000], "16,000 steps of map"),  # given, though the recipe has as many
        (["--method", "pfmm", "--steps", 7], "4 steps of strip, then 3 steps of map"),
        (["--steps", 7], "4,000 steps of teacher, then 7 steps of map"),
    ],
)
def test_steps_are_all_steps_of_a_method_without_a_teacher(words: list, stages: str):
    """Unless they are left out: then those of the recipe are added up, as for a method with a teacher."""
    small = ["--network.width", 8, "--network.depth", 2, "--no-compile"]
    assert stages in run("train", "checkerboard", "--check", *small, *words)


def test_a_teacher_needs_steps(capsys: pytest.CaptureFixture):
    words = refused(capsys, "train", "checkerboard", "--check", "--teacher-steps", 0)
    assert "lmd trains a teacher first, for which --teacher-steps must be at least 1, got 0" in words


def test_a_run_leaves_its_files_behind(trained: tuple[Path, str]):
    folder, printed = trained
    names = sorted(path.name for path in folder.iterdir())
    assert set(RUN_FILES) < set(names)
    assert {"samples.png", "trajectories.png", "quality.png", "losses.png", "teacher"} < set(names)
    assert not [name for name in names if name.startswith(".") or name.endswith(".part") or name == "checkpoints"]
    assert str(folder / "report.html") in printed


def no_constants(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def test_metrics_follow_the_contract(trained: tuple[Path, str]):
    metrics = json.loads((trained[0] / "metrics.json").read_text(), parse_constant=no_constants)
    assert (metrics["recipe"], metrics["method"], metrics["seed"]) == ("checkerboard", "lmd", 3)
    assert [(row["sampler"], row.get("steps")) for row in metrics["rows"]] == [
        ("teacher", None),
        ("teacher", 5),
        ("map", 1),
        ("map", 3),
    ]
    for row in metrics["rows"]:
        for name in ("kl", "kl_floor", "w2", "sliced_w2", "map_error", "seconds"):
            assert isinstance(row[name], float)
        assert row["w2"] > 0
        assert "energy" not in row  # a metric that does not apply is left out
    evaluations = [row["nfe"] for row in metrics["rows"]]
    assert evaluations[1:] == [5, 1, 3]
    assert evaluations[0] > 5
    assert len({row["kl_floor"] for row in metrics["rows"]}) == 1


def test_the_log_has_a_line_for_each_logged_step(trained: tuple[Path, str]):
    lines = [
        json.loads(line, parse_constant=no_constants) for line in (trained[0] / "log.jsonl").read_text().splitlines()
    ]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("teacher", 2),
        ("teacher", 4),
        ("map", 2),
        ("map", 4),
        ("map", 5),
    ]
    for line in lines:
        unweighted = "diagonal" if line["stage"] == "teacher" else "lagrangian"
        assert {"loss", "rate", "seconds", unweighted} <= set(line)
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


def test_the_card_has_every_option(trained: tuple[Path, str]):
    card = json.loads((trained[0] / "config.json").read_text())
    recipe = card["recipe"]
    assert (recipe["name"], recipe["steps"], recipe["seed"], recipe["compile"]) == ("checkerboard", 5, 3, False)
    assert recipe["network"]["width"] == 8
    assert recipe["evaluation"]["steps"] == [1, 3]
    assert RunFolder.open(trained[0]).recipe.evaluation.steps == (1, 3)


def test_the_report_stands_alone(trained: tuple[Path, str], tmp_path: Path):
    html = (trained[0] / "report.html").read_text()
    changed = "<td>map, fm.methods.lmd</td><td>stop</td><td>Stop.NONE</td><td>Stop.VELOCITY</td>"
    assert changed in html.split("What this recipe sets differently from its methods</h2>")[1]
    assert html.count("data:image/png;base64,") >= 4
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", html)
    for link in ("<link", "@import", "<script src"):
        assert link not in html


@pytest.mark.parametrize("method", ["flow_matching", "emd", "fmm", "pfmm", "eulerian_estimation", "esd", "psd"])
def test_every_method_trains_from_the_command_line(tmp_path: Path, method: str, unmeasured: None):
    run("train", "checkerboard", "--out", tmp_path / "run", "--method", method, *TINY)
    RunFolder.open(tmp_path / "run").open_source()


def test_points_without_a_known_law(classes: Path):
    rows = json.loads((classes / "metrics.json").read_text(), parse_constant=no_constants)["rows"]
    for row in rows:
        assert "kl" not in row
        assert {"w2", "sliced_w2", "energy", "map_error"} < set(row)
    assert not (classes / "teacher").exists()
    assert not (classes / "samples.png").exists()  # three dimensions
    assert (classes / "columns.png").exists()
    assert "Columns of the data that are trained on, and of samples in" in (classes / "report.html").read_text()


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_arrays_of_the_users_own(tmp_path: Path, suffix: str, request: pytest.FixtureRequest):
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":  # one is measured
        request.getfixturevalue("unmeasured")
    if suffix == ".npy":
        np.save(path, table(40, 2))
    else:
        np.savetxt(path, table(40, 2), delimiter=",", header="x,y", comments="")
    run("train", "points", "--out", tmp_path / "run", "--data", path, *TINY)
    run("sample", tmp_path / "run", "--out", tmp_path / "x.npy", "--number", 300)
    x = np.load(tmp_path / "x.npy")
    assert np.abs(x.mean(0) - 100).max() < 3 * 5  # in the units of the data, not those of the network


def test_digits_by_class(tmp_path: Path):
    run("train", "digits", "--out", tmp_path / "run", *TINY)
    assert (tmp_path / "run" / "digits.png").exists()
    run("sample", tmp_path / "run", "--out", tmp_path / "x.npz", "--number", 7, "--label", 3)
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["x"].shape == (7, 64)
    assert arrays["labels"].tolist() == [3] * 7


def test_data_are_found_again_from_another_folder(tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "there").mkdir()
    np.save(tmp_path / "there" / "a.npy", table())
    monkeypatch.chdir(tmp_path / "there")
    run("train", "points", "--out", "run", "--data", "a.npy", *TINY)
    monkeypatch.chdir(tmp_path)
    run("sample", "there/run", "--out", "x.npz", "--number", 5)
    assert np.load("x.npz")["x"].shape == (5, 3)


def test_a_run_whose_samples_are_all_lost_has_its_table_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "MAX_ABS", 1e-30)
    printed = run("train", "checkerboard", "--method", "lsd", "--out", tmp_path / "run", *TINY)
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert {row["lost"] for row in rows} == {150}
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "quality.png").exists()
    assert "run flowmaps evaluate first" not in printed


# resume --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [pytest.param(2, marks=pytest.mark.slow), 6], ids=["teacher", "map"])
def test_an_interrupted_run_is_resumed_to_the_same_weights(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture, at: int
):
    words = ["train", "checkerboard", "--out", str(tmp_path / "run"), "--seed", "3", *TINY]
    with at_draw(at, interrupt), pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 130
    error = capsys.readouterr().err
    assert re.fullmatch(r"flowmaps: interrupted; .*--resume.*\n", error)
    refused(capsys, *words)  # not begun again over what is there
    run(*words, "--resume")
    whole = trained[0]
    for name in ("weights.safetensors", "teacher/weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("at", [2, 6], ids=["teacher", "map"])
def test_a_run_that_is_told_to_end_saves_and_says_how_to_go_on(
    trained: tuple[Path, str], tmp_path: Path, unmeasured: None, at: int
):
    """SIGTERM, as a machine sends it that is taken back: it is no error; the words that are printed go on."""
    with at_draw(at, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        printed = run("train", "checkerboard", "--out", tmp_path / "run", "--seed", 3, "--minutes", 60, *TINY)
    where = "step 3 of teacher" if at == 2 else "step 3 of map"
    assert f"stopped after SIGTERM, at {where}; go on with:\n" in printed
    program, *words = shlex.split(printed.splitlines()[-1])
    assert program == "flowmaps"
    assert "--minutes" not in words
    assert not (tmp_path / "run" / "metrics.json").exists()
    run(*words)
    for name in ("weights.safetensors", "teacher/weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained[0] / name).read_bytes()


def test_a_run_goes_on_from_the_checkpoint_that_is_named(
    trained: tuple[Path, str], tmp_path: Path, unmeasured: None, capsys: pytest.CaptureFixture
):
    words = ["train", "checkerboard", "--out", tmp_path / "run", "--seed", 3, *TINY, "--checkpoint-every", 1]
    with at_draw(7, interrupt), pytest.raises(SystemExit):
        cli.main([str(word) for word in words])
    every = checkpoints.names(tmp_path / "run" / "checkpoints")
    assert every == ["map-00000002", "map-00000003"]
    error = refused(capsys, *words, "--resume-from", "map-7")
    assert "has no checkpoint map-7: there is map-00000002, map-00000003." in error
    run(*words, "--resume-from", "previous")
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (trained[0] / "weights.safetensors").read_bytes()


def other(value: object, hint: object) -> object:
    """Another value of an option."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if get_origin(hint) is tuple:
        entry = get_args(hint)[0]
        bare = get_args(entry)[0] if get_origin(entry) is Annotated else entry
        first = "" if bare is str else None if get_origin(entry) is Literal else 1
        return () if value else (other(first, entry),)
    if isinstance(value, str):
        return 0.1 + 0.2 if value == "own" else "a b's"  # a number, or left to the method
    return not value if isinstance(value, bool) else 3 if isinstance(value, int) else 0.1 + 0.2


@pytest.mark.parametrize("name", ["checkerboard", pytest.param("cifar10-tiny", marks=pytest.mark.slow)])
def test_the_options_that_differ_from_a_recipe_make_it_again(name: str):
    """Each by itself makes words, and those of all of them at once are parsed to the recipe that has them all."""
    usual = all_changed = cli.RECIPES[name]()
    assert changed_options(usual, usual) == []

    def changed(recipe: Recipe, option: str, value: object) -> Recipe:
        group, _, field = option.replace("-", "_").rpartition(".")
        change: dict[str, Any] = {field: value}
        return replace(recipe, **{group: replace(getattr(recipe, group), **change)} if group else change)

    for option, value, hint in options_of(usual):
        if isinstance(usual, ImageRecipe) and option.startswith("network."):
            continue
        new = other(value, hint)
        first, *_ = changed_options(changed(usual, option, new), usual)
        assert first.replace("no-", "") == f"--{option}".replace("no-", "")
        all_changed = changed(all_changed, option, new)
    words = changed_options(all_changed, usual)
    assert cli._parse(cli.Train, words, "train", cli.Train(recipe=usual)).recipe == all_changed


def test_under_a_launcher_the_words_that_go_on_need_it_too(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(commands, "ranks", lambda: 3)
    out = io.StringIO()
    monkeypatch.setattr(commands, "console", Console(file=out))
    options = {"minutes": 1e-9, "resume_command": "flowmaps train x --resume"}
    commands.train(RunFolder.open(board).recipe, tmp_path / "run", **options)
    assert "at step 1 of teacher; go on with, under the same launcher:\n  flowmaps train x --resume\n" in out.getvalue()


# sample --------------------------------------------------------------------------------------------------------------


def test_samples_are_jumps_of_the_map_from_the_seeds_noise(board: Path, tmp_path: Path):
    printed = run("sample", board, "--steps", 3, "--number", 101, "--seed", 5, "--out", tmp_path / "new" / "x.npz")
    assert str(tmp_path / "new" / "x.npz") in printed
    arrays = np.load(tmp_path / "new" / "x.npz")
    assert arrays.files == ["x"]
    noise = torch.randn(101, 2, generator=generator(5, 1))
    expected = fm.samplers.Jump(3)(fm.load(board), noise)
    np.testing.assert_allclose(arrays["x"], expected.numpy(), rtol=1e-5, atol=1e-6)
    run("sample", board, "--steps", 3, "--number", 101, "--seed", 5, "--out", tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), arrays["x"])
    run("sample", board, "--steps", 3, "--number", 101, "--seed", 6, "--out", tmp_path / "z.npy")
    assert np.abs(np.load(tmp_path / "z.npy") - arrays["x"]).min(1).max() > 1e-3


def test_progress_is_shown_on_a_terminal(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = io.StringIO()
    for module in (commands, sampling, terminal):
        monkeypatch.setattr(module, "console", Console(file=shown, force_terminal=True, width=100))
    cli.main(["sample", str(board), "--steps", "3", "--number", "200", "--out", str(tmp_path / "x.npy")])
    cli.main(["evaluate", str(board), "--steps", "2"])
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert re.search(r"sample .* 200/200 3 steps", words)
    assert re.search(r"measure .* 3/3 2 steps, 100%", words)


def test_a_bar_is_there_before_the_first_step_of_a_stage(
    trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A minute of compilation, or of reading a checkpoint, may go before it."""
    shown, before = io.StringIO(), list[tuple[str, str, str]]()
    for module in (commands, terminal):
        monkeypatch.setattr(module, "console", Console(file=shown, force_terminal=True, width=100))
    training = trainer.train

    def watched(*given: object, **options: object):
        words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
        before.append(re.findall(r"(teacher|map) +[^ \w]+ +(\d/\d) (starting|reading checkpoint)", words)[-1])
        yield from training(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "train", watched)
    recipe = RunFolder.open(trained[0]).recipe
    for resume in (False, True):
        run = runs.Run.open(recipe, tmp_path / "run", resume=resume, say=lambda text: None)
        left = iter(range(4 + 3 - 1))
        commands.follow(run, lambda left=left: next(left, None) is None)
    starting, reading = "starting", "reading checkpoint"
    assert before == [("teacher", "0/4", starting), ("map", "0/5", starting), ("map", "3/5", reading)]


def test_classes_in_turn_or_one_of_them(classes: Path, tmp_path: Path):
    run("sample", classes, "--number", 8, "--out", tmp_path / "all.npz")
    assert np.load(tmp_path / "all.npz")["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    run("sample", classes, "--number", 8, "--label", 2, "--out", tmp_path / "two.npz")
    two, every = np.load(tmp_path / "two.npz"), np.load(tmp_path / "all.npz")
    assert two["labels"].tolist() == [2] * 8
    same = np.isclose(two["x"], every["x"]).all(1)
    assert same.tolist() == [k % 3 == 2 for k in range(8)]  # the class changes the sample, the noise being the same


# evaluate ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluating_again_with_other_steps(board: Path):
    before = json.loads((board / "metrics.json").read_text())
    kept = {name: (board / name).read_bytes() for name in ("weights.safetensors", "config.json", "log.jsonl")}
    printed = run("evaluate", board, "--steps", 1, 2, 7)
    after = json.loads((board / "metrics.json").read_text())
    assert [row.get("steps") for row in after["rows"]] == [None, 5, 1, 2, 7]
    for name in ("kl", "w2", "map_error", "kl_floor", "nfe"):  # the same seed: the same metrics where nothing changed
        for k in range(3):
            assert after["rows"][k][name] == pytest.approx(before["rows"][k][name], rel=1e-4)
    assert {name: (board / name).read_bytes() for name in kept} == kept
    assert str(board / "report.html") in printed
    run("evaluate", board, "--seed", 9, "--samples", 200, "--steps", 1)
    other = json.loads((board / "metrics.json").read_text())
    assert other["seed"] == 9
    assert [row["samples"] for row in other["rows"]] == [200] * 3
    assert other["rows"][2]["kl"] != before["rows"][2]["kl"]


# bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        ("trian checkerboard", "unknown command 'trian': did you mean 'train'? choose one of train, distill, new"),
        ("", "no command given: choose one of train"),
        ("train", "train needs a recipe first: one of checkerboard"),
        ("train --out OUT checkerboard", "train needs a recipe first"),
        ("train checkerbord --out OUT", "unknown recipe 'checkerbord': did you mean 'checkerboard'?"),
        ("train . --out OUT", "train takes a recipe first, and data by --data: of points or a table flowmaps"),
        ("train points mine.csv", "train points takes options alone, got mine.csv: data are given by --data FILE"),
        ("train checkerboard --epochs 10", "no option --epochs here: pass --steps, optimiser steps of one batch each"),
        ("train checkerboard --batch_size=4", "no option --batch_size here: pass --optimiser.batch"),
        ("train zebra --out OUT", "unknown recipe 'zebra': choose one of checkerboard, checkerboard-long, digits"),
        ("train checkerboard", "--out"),
        ("train checkerboard --out OUT --method lmdd", "unknown method 'lmdd': did you mean 'lmd'? choose one of lmd"),
        ("train checkerboard --out OUT --steps 0", "--steps must be at least 1, got 0"),
        ("train checkerboard --out OUT --seed -1", "--seed must be at least 0 and at most 4,294,967,295, got -1"),
        ("train checkerboard --out OUT --optimiser.learning-rate nan", "learning-rate must be above 0, got nan"),
        ("train checkerboard --out OUT --optimiser.ema-decay 1", "ema-decay must be at least 0 and below 1, got 1.0"),
        ("train checkerboard --out OUT --evaluation.steps 0 4", "a list, each entry of it at least 1, got (0, 4)"),
        ("train checkerboard --out OUT --evaluation.steps", "must be no shorter than 1 and no longer than 64, got ()"),
        ("train checkerboard --out OUT --device abacus", "--device abacus is not there"),
        ("train checkerboard --out OUT --data elsewhere", "must be 'checkerboard', 'digits' or a file ending in .npy"),
        ("train checkerboard --out OUT --resume", "there is no folder OUT"),
        ("train points --out OUT", "no data given: pass --data"),
        ("train points --out OUT --data missing.npy", "there is no file missing.npy: pass --data FILE"),
        ("compare checkerboard --out OUT --methods lmd lmdd", "unknown method 'lmdd': did you mean 'lmd'?"),
        ("sample nowhere --out OUT.npz", "there is no folder nowhere: give the folder of a run"),
        ("evaluate nowhere", "there is no folder nowhere: give the folder of a run"),
    ],
)  # fmt: skip
def test_commands_that_are_refused(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
):
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, *words.split())
    assert said in error
    assert list(tmp_path.iterdir()) == []  # nothing is written


@pytest.mark.parametrize(
    "options, said",
    [
        ("--steps 0", "steps must be at least 1, got 0"),
        ("--number 0", "--number must be at least 1, got 0"),
        (
            "--number 10000000000000",
            "--number must be at most 1,073,741,824 here, got 10,000,000,000,000: take several",
        ),
        ("--steps 100001", "--steps must be at most 100,000, got 100,001"),
        ("--label 3", "have no classes, got --label 3: leave it out"),
        (
            "--out x.txt",
            "--out must end in .npy, .npz, .csv, .tsv, .parquet, .feather, .xlsx or (for images) .png, got x.txt",
        ),
        ("--out there.npz", "there.npz already exists: choose another --out, or remove it"),
    ],
)
def test_samples_that_are_refused(
    capsys: pytest.CaptureFixture, board: Path, monkeypatch: pytest.MonkeyPatch, options: str, said: str
):
    monkeypatch.chdir(board.parent)
    Path("there.npz").write_text("mine")
    before = contents(board.parent)
    words = options.split() if "--out" in options else [*options.split(), "--out", "x.npz"]
    assert said in refused(capsys, "sample", "board", *words)
    assert contents(board.parent) == before


def test_classes_out_of_range_are_refused(capsys: pytest.CaptureFixture, classes: Path, tmp_path: Path):
    for label in (-1, 3):
        error = refused(capsys, "sample", classes, "--out", tmp_path / "x.npz", "--label", label)
        assert f"--label must be from 0 to 2, got {label}" in error
    assert not (tmp_path / "x.npz").exists()


def test_evaluations_that_are_refused_leave_the_last_one(capsys: pytest.CaptureFixture, board: Path):
    before = contents(board)
    for options, said in [
        (["--steps", 0], "steps must be a list, each entry of it at least 1, got (0,)"),
        (["--steps"], "must be no shorter than 1 and no longer than 64, got ()"),
        (["--samples", 3], "samples must be at least 100, got 3"),
        (["--seed", "-1"], "seed must be at least 0 and at most"),
    ]:
        assert said in refused(capsys, "evaluate", board, *options)
    assert contents(board) == before


def test_an_array_that_is_refused(capsys: pytest.CaptureFixture, tmp_path: Path):
    array = table()
    array[7, 1] = np.nan
    np.save(tmp_path / "a.npy", array)
    error = refused(capsys, "train", "points", "--data", tmp_path / "a.npy", "--out", tmp_path / "run", *TINY)
    assert "a.npy, row 7 (counted from 0): a cell of column 2 is NaN. Cells are NaN in 1 of 60 rows (co" in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_an_existing_folder_is_left_untouched(capsys: pytest.CaptureFixture, board: Path, tmp_path: Path):
    before = contents(board)
    error = refused(capsys, "train", "checkerboard", "--out", board, *TINY)
    assert f"{board} already exists and is not empty: choose another --out, or go on with --resume" in error
    assert "has finished training" in refused(
        capsys, "train", "checkerboard", "--out", board, "--seed", 3, "--resume", *TINY
    )
    assert contents(board) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    (tmp_path / "file").write_text("text")
    for name in ("mine", "file"):
        assert "already exists" in refused(capsys, "train", "checkerboard", "--out", tmp_path / name, *TINY)
    assert contents(tmp_path / "mine") == {"thesis.tex": b"text"}
    assert (tmp_path / "file").read_text() == "text"


def test_an_empty_folder_may_be_used(tmp_path: Path, unmeasured: None):
    run("train", "checkerboard", "--out", tmp_path, *TINY)
    assert (tmp_path / "weights.safetensors").exists()


def spoil_card(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 64
    path.write_bytes(bytes(whole))


def unfinished(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    spoil_card(folder, map=None)
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: card[name] for name in ("format", "recipe")}))


DAMAGE = [
    (lambda f: truncate(f / "weights.safetensors"), "weights.safetensors is truncated or was changed"),
    (lambda f: flip(f / "weights.safetensors"), "weights.safetensors is truncated or was changed"),
    (lambda f: truncate(f / "teacher" / "weights.safetensors"), "teacher/weights.safetensors is truncated"),
    (lambda f: (f / "weights.safetensors").unlink(), "has no weights.safetensors: the run did not finish"),
    (lambda f: (f / "config.json").unlink(), "has no config.json: it is no run folder"),
    (lambda f: shutil.rmtree(f / "teacher"), "there is no folder"),
    (unfinished, "has no weights.safetensors: the run did not finish (resume it)"),
    (lambda f: spoil_card(f, format=99), "config.json is of format 99, this version reads format 1"),
    (lambda f: truncate(f / "config.json"), "config.json is damaged"),
    (lambda f: spoil_card(f, recipe={"name": "x"}), "config.json has no recipe that this version reads"),
    (lambda f: spoil_card(f, recipe=None), "holds a map saved by flowmaps.save, not a run of flowmaps train"),
]


# samples are drawn without the teacher
REFUSALS = [("evaluate", *case) for case in DAMAGE]
REFUSALS += [("sample", *case) for case in DAMAGE if not re.match("teacher|there is no folder", case[1])]


@pytest.mark.parametrize("command, damage, said", REFUSALS)
def test_damaged_runs_are_refused(
    capsys: pytest.CaptureFixture, board: Path, tmp_path: Path, command: str, damage, said: str
):
    damage(board)
    before = contents(board)
    words = ["--out", tmp_path / "x.npz"] if command == "sample" else []
    assert said in refused(capsys, command, board, *words)
    assert contents(board) == before
    assert not (tmp_path / "x.npz").exists()


def test_a_run_that_another_process_trains_is_not_said_to_have_failed(
    capsys: pytest.CaptureFixture, board: Path, tmp_path: Path
):
    unfinished(board)
    words = ("sample", board, "--out", tmp_path / "x.npz")
    (board / ".lock").touch()
    assert "the run did not finish" in refused(capsys, *words)
    with filelock.FileLock(board / ".lock"):
        (board / ".lock").write_text("process 7 on here")
        said = "is being trained by another process (process 7 on here): its map is there once it has ended"
        assert said in refused(capsys, *words)


def test_help_of_points_shows_what_a_table_needs(capsys: pytest.CaptureFixture):
    def shown(recipe: str) -> str:
        with pytest.raises(SystemExit):
            cli.main(["train", recipe, "--help"])
        return capsys.readouterr().out

    for option in ("--label-column", "--categories", "--transform", "--condition-columns", "--drop-columns"):
        assert option in shown("points")
        assert option not in shown("checkerboard")


def test_data_that_changed_since_training_are_refused(capsys: pytest.CaptureFixture, classes: Path, tmp_path: Path):
    """The run is measured against them; samples are drawn without, from the scaling in the card."""
    shutil.copytree(classes, tmp_path / "run")
    path = tmp_path / "a.npz"
    np.savez(path, x=2 * table(), labels=np.arange(60) % 3)
    card = json.loads((tmp_path / "run" / "config.json").read_text())
    spoil_card(tmp_path / "run", recipe=card["recipe"] | {"data": str(path)})
    assert "a.npz has changed since the run began" in refused(capsys, "evaluate", tmp_path / "run")
    path.unlink()
    assert "there is no file" in refused(capsys, "evaluate", tmp_path / "run")
    run("sample", tmp_path / "run", "--number", 7, "--out", tmp_path / "x.npz")
    run("sample", classes, "--number", 7, "--out", tmp_path / "y.npz")
    with np.load(tmp_path / "x.npz") as x, np.load(tmp_path / "y.npz") as y:
        assert np.array_equal(x["x"], y["x"])
        assert x["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]


def raising(monkeypatch: pytest.MonkeyPatch, error: Exception, *, first: bool, together: bool) -> None:
    """Let a command raise an error, in this process of one or several."""

    def raises(words: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_dispatch", raises)
    monkeypatch.setattr(cli, "FIRST", first)
    monkeypatch.setattr(cli, "together", lambda: together)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_of_several_processes_one_says_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, first: bool, together: bool, told: bool
):
    """The first one, or that which alone has it: never none, and not all where all have it."""
    error = OSError("no\nspace")
    if told:
        error.__cause__ = RaisedByAll()
    raising(monkeypatch, error, first=first, together=together)
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2
    speaks = first or (together and not told)
    assert capsys.readouterr().err == ("flowmaps: no space\n" if speaks else "")


def test_a_process_that_is_lost_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    error = torch.distributed.DistNetworkError("Connection reset by peer\nstack: ...")
    raising(monkeypatch, error, first=False, together=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = "flowmaps: another process of the run has ended or cannot be reached (Connection reset by peer).\n"
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert (stopped.value.code, capsys.readouterr().err) == (2, line)
    raising(monkeypatch, RuntimeError("size mismatch"), first=True, together=True)
    with pytest.raises(RuntimeError, match="size mismatch"):  # a fault of the program keeps its traceback
        cli.main([])


RANKS = {"0": True, "1": False, "first": True, "": True, "-1": True}


def test_the_first_process_talks():
    """Whatever the environment has for a number, which is read when the program is imported."""
    code = f"""
import importlib, os
from flowmaps.cli import terminal
for rank in {list(RANKS)}:
    os.environ["RANK"] = rank
    print(importlib.reload(terminal).FIRST)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [str(first) for first in RANKS.values()], done.stderr


def test_a_fresh_process_says_one_line_too(tmp_path: Path):
    """Nothing that is imported on the way adds a line of its own."""
    code = "from flowmaps.cli.main import main; main()"
    words = ["sample", str(tmp_path), "--out", "x.npz"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"flowmaps: .* has no config.json: .*\n", done.stderr)


@pytest.mark.parametrize(
    "words, said",
    [
        ("train checkerboard --out OUT --stepz 4", ["--stepz", "--steps", "flowmaps train checkerboard --help-all"]),
        ("train checkerboard --out OUT extra", ["extra", "flowmaps train checkerboard --help-all"]),
        ("train checkerboard --out OUT --steps four", ["--steps", "invalid literal for int() with base 10: 'four'"]),
        ("train checkerboard --out OUT --steps", ["Missing value for argument '--steps'"]),
        ("train checkerboard --out OUT --interpolant spline", ["'spline'", "'--interpolant'", "trigonometric"]),
        ("sample", ["Missing from flowmaps sample:", "--out"]),
        ("sample run --out x.npz --steps 1.5", ["--steps", "invalid literal for int() with base 10: '1.5'"]),
        ("evaluate", ["Missing from flowmaps evaluate:", "Folder of a run"]),
        ("evaluate run --stepz 3", ["--stepz", "--steps", "flowmaps evaluate --help"]),
    ],
)
def test_options_that_cannot_be_parsed_are_refused_in_the_words_of_the_parser(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: list[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.out) == (2, "")
    assert all(text in captured.err for text in said)
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_the_first_one_refuses_options(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cli, "FIRST", False)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "run", "--stepz", "3"])
    assert (stopped.value.code, capsys.readouterr().err) == (2, "")


# help ----------------------------------------------------------------------------------------------------------------


def test_help_and_version_go_to_standard_output(capsys: pytest.CaptureFixture):
    assert run("--version").split() == ["flowmaps", fm.__version__]
    assert "train RECIPE --out DIR" in run("--help")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "checkerboard", "--help-all"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for option in (
        "--steps",
        "--checkpoint-every",
        "--seed",
        "--method",
        "--data",
        "--resume",
        "--device",
        "--optimiser.learning-rate",
        "fm.methods.lmd: times Square() -> Mixture(FromBase(), Triangle(), 0.25)",
    ):
        assert option in printed
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for name in cli.RECIPES:
        assert name in printed


def test_an_interruption_while_measuring_says_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flowmaps.cli.commands.evaluate", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run("train", "checkerboard", "--out", tmp_path / "run", *TINY)
    assert stopped.value.code == 130
    words = (
        f"interrupted while measuring; the map is trained and saved: flowmaps evaluate {tmp_path / 'run'} measures it."
    )
    assert words in capsys.readouterr().err
    assert RunFolder.open(tmp_path / "run").finished
