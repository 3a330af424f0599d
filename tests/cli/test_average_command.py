"""`flowmaps average`: a run like another, with another of its averages for weights."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from program import refused, run
from run_cases import TINY, contents, open_run
from safetensors.torch import load_file

import flowmaps as fm
from flowmaps.runs.recipes import Evaluation, Network, Optimiser
from flowmaps.system.seeds import generator
from flowmaps.training import reconstruct

RECIPE = dataclasses.replace(
    TINY,
    optimiser=Optimiser(batch=16, ema_decays=(0.5, 0.7), ema_widths=(0.05, 0.1)),
    evaluation=Evaluation(points=20, solver_steps=2, solver_tolerance=1e-2),
    steps=40,
    teacher_steps=10,
    store_averages_every=4,
)


def trained(folder: Path, **changes: object) -> Path:
    list(open_run(dataclasses.replace(RECIPE, **changes), folder).train())
    return folder


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("average") / "board")


def kept(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights in averages/, by the names that they have in the map."""
    found = load_file(folder / "averages" / f"{name}.safetensors")
    return {name.removeprefix("flow_map."): value for name, value in found.items() if name.startswith("flow_map.")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(fm.load(folder).named_parameters())


def test_a_decay_that_was_kept(board: Path, tmp_path: Path):
    """To the last bit; and the run that it comes from stays as it is."""
    before = contents(board)
    printed = run("average", board, "--decay", "0.7", "--out", tmp_path / "new")
    assert str(tmp_path / "new") in printed
    expected = kept(board, "map-decay-0.7")
    assert expected.keys() == weights(tmp_path / "new").keys()
    assert all(value.equal(expected[name]) for name, value in weights(tmp_path / "new").items())
    assert not all(value.equal(expected[name]) for name, value in weights(board).items())
    assert contents(board) == before
    card = json.loads((tmp_path / "new" / "config.json").read_text())
    assert card["average"] == {"of": str(board), "stage": "map", "decay": 0.7}
    same = set(contents(tmp_path / "new")) - {"config.json", "weights.safetensors"}
    assert same == {"log.jsonl", "teacher/config.json", "teacher/weights.safetensors"}
    assert all((tmp_path / "new" / name).read_bytes() == before[name] for name in same)


def test_a_width_that_was_kept_comes_back(board: Path, tmp_path: Path):
    """The average of a stored one's width and step is the stored one; that of another is what `reconstruct` gives."""
    run("average", board, "--width", "0.1", "--step", "20", "--out", tmp_path / "same")
    for name, value in kept(board, "map-width-0.1-00000020").items():
        torch.testing.assert_close(weights(tmp_path / "same")[name].detach(), value, rtol=1e-4, atol=1e-5)
    run("average", board, "--width", "0.08", "--out", tmp_path / "other")
    expected = reconstruct.reconstruct(board, "map", 0.08)
    assert all(value.equal(expected[f"flow_map.{name}"]) for name, value in weights(tmp_path / "other").items())
    about = json.loads((tmp_path / "other" / "config.json").read_text())["average"]
    assert about.items() >= {"width": 0.08, "step": None}.items()
    assert about["error"] == pytest.approx(reconstruct.relative_error(board, "map", 0.08), abs=1e-6)


def test_an_average_that_is_loose_is_told_of(board: Path, tmp_path: Path):
    words = "which is large: take another --width or --step"
    assert words in run("average", board, "--width", "0.28", "--out", tmp_path / "wide")
    assert words not in run("average", board, "--width", "0.1", "--out", tmp_path / "narrow")


def test_the_average_of_a_teacher_is_the_new_runs_teacher(board: Path, tmp_path: Path):
    run("average", board, "--decay", "0.5", "--stage", "teacher", "--out", tmp_path / "new")
    expected = kept(board, "teacher-decay-0.5")
    assert all(value.equal(expected[name]) for name, value in weights(tmp_path / "new" / "teacher").items())
    for name in ("config.json", "weights.safetensors"):
        assert (tmp_path / "new" / name).read_bytes() == (board / name).read_bytes()


def test_what_was_made_is_a_run(board: Path, tmp_path: Path):
    """It is sampled and measured, its report says what it is, and its averages are not made again."""
    run("average", board, "--decay", "0.7", "--out", tmp_path / "new")
    run("sample", tmp_path / "new", "--steps", 2, "--number", 7, "--out", tmp_path / "x.npy")
    noise = torch.randn(7, 2, generator=generator(0, 1))
    with torch.no_grad():
        expected = fm.samplers.Jump(2)(fm.load(tmp_path / "new"), noise)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected.numpy(), rtol=1e-5, atol=1e-6)
    run("evaluate", tmp_path / "new", "--samples", 200, "--steps", 1)
    assert f"are the average of the decay 0.7 of the run {board}." in (tmp_path / "new" / "report.html").read_text()
    assert (tmp_path / "new" / "losses.png").exists()


@pytest.mark.parametrize(
    "options,words",
    [
        ("", "average needs one of --width, such as 0.08, and --decay, such as 0.9999."),
        ("--width 0.1 --decay 0.9", "average needs one of --width, such as 0.08, and --decay, such as 0.9999."),
        ("--decay 0.9 --step 4", "--step goes with --width"),
        (
            "--decay 0.9",
            "has averages of the decays 0.5, 0.7 of the stage map, got 0.9: train with --optimiser.ema-decays",
        ),
        ("--decay 0.999", "the average of the decay 0.999 is the map of"),
        ("--width 0.1 --step 99", "the last average in"),
        ("--width 0.5", "a relative width is more than 0 and at most 0.288675"),
        ("--width 0.1 --stage strip", "--stage must be one of the stages of this run, teacher, map, got strip."),
    ],
)
def test_what_is_refused(board: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: str, words: str):
    assert words in refused(capsys, "average", board, *options.split(), "--out", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays(board: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "new").mkdir()
    error = refused(capsys, "average", board, "--decay", "0.7", "--out", tmp_path / "new")
    assert "already exists: choose another --out" in error
    assert not list((tmp_path / "new").iterdir())


def test_a_run_without_averages(tmp_path: Path, capsys: pytest.CaptureFixture):
    plain = trained(tmp_path / "plain", optimiser=Optimiser(batch=16), steps=2, teacher_steps=2)
    for options, words in {
        "--width 0.08": "train with --optimiser.ema-widths 0.05 0.1",
        "--decay 0.9": "has averages of no decay of the stage map, got 0.9: train with --optimiser.ema-decays 0.9.",
    }.items():
        assert words in refused(capsys, "average", plain, *options.split(), "--out", tmp_path / "new")
    shutil.copytree(plain, tmp_path / "half")
    (tmp_path / "half" / "weights.safetensors").unlink()
    (tmp_path / "half" / "config.json").write_text(json.dumps({"format": 1, "recipe": dataclasses.asdict(RECIPE)}))
    assert "did not finish" in refused(capsys, "average", tmp_path / "half", "--width", "0.1", "--out", tmp_path / "n")


def test_averages_of_another_network(board: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copytree(board, tmp_path / "mixed")
    wide = trained(
        tmp_path / "wide",
        network=Network(width=12, depth=2),
        steps=2,
        teacher_steps=2,
        store_averages_every=1,
    )
    shutil.rmtree(tmp_path / "mixed" / "averages")
    shutil.copytree(wide / "averages", tmp_path / "mixed" / "averages")
    for option in ("--width=0.1", "--decay=0.7"):
        error = refused(capsys, "average", tmp_path / "mixed", option, "--out", tmp_path / "new")
        assert "the averages are of another network than the map" in error
    assert not (tmp_path / "new").exists()


def test_nothing_is_taken_along_but_the_files_of_a_run(board: Path, tmp_path: Path):
    """What was made is published: whatever else lies in the folder, or is linked to, may be private."""
    shutil.copytree(board, tmp_path / "run")
    (tmp_path / "secret").write_text("mine")
    for name in ("", "teacher"):
        (tmp_path / "run" / name / "notes").write_text("mine")
        (tmp_path / "run" / name / "key").symlink_to(tmp_path / "secret")
        (tmp_path / "run" / name / "loop").symlink_to(".")
    (tmp_path / "linked").symlink_to("run")
    for source in ("run", "linked"):  # the folder that is named may be a link: it was named
        run("average", tmp_path / source, "--decay", "0.7", "--out", tmp_path / f"{source}-new")
        parts = ("config.json", "weights.safetensors")
        expected = {*parts, "log.jsonl", *(f"teacher/{name}" for name in parts)}
        assert contents(tmp_path / f"{source}-new").keys() == expected


@pytest.mark.parametrize("name", ["teacher", "teacher/config.json", "log.jsonl", "weights.safetensors", "strip"])
def test_what_is_a_link_is_not_copied(board: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    shutil.copytree(board, tmp_path / "run")
    path = tmp_path / "run" / name
    if path.exists():
        path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    error = refused(capsys, "average", tmp_path / "run", "--decay", "0.7", "--out", tmp_path / "new")
    assert f"{path} is a link or a pipe, which is not copied: put what belongs there in its place." in error
    assert not (tmp_path / "new").exists()


def test_what_was_made_is_on_the_disk(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What outlives a loss of power: each file before the folder has its name, the folder above after it."""
    synced: set[int] = set()
    fsync, rename = os.fsync, Path.rename

    def syncing(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def renaming(old: Path, new: Path) -> Path:
        assert {path.stat().st_ino for path in (old, *old.rglob("*"))} <= synced
        synced.clear()
        return rename(old, new)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "rename", renaming)
    run("average", board, "--decay", "0.7", "--out", tmp_path / "new")
    assert synced == {tmp_path.stat().st_ino}


def test_a_failure_leaves_nothing(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowmaps.runs.average.models.save", full)
    with contextlib.redirect_stderr(io.StringIO()), pytest.raises(SystemExit):
        run("average", board, "--decay", "0.7", "--out", tmp_path / "new")
    assert not list(tmp_path.iterdir())
