"""Runs on images as their users meet them: trained, measured, shown, sampled; and one line for whatever goes wrong."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import data_cases
import image_cases
import numpy as np
import pytest
import torch
from image_cases import TINY
from PIL import Image
from places import CIFAR
from program import refused, run
from run_cases import weights

import flowmaps as fm
from flowmaps.runs.folder import RunFolder, open_source
from flowmaps.system.seeds import generator

pytestmark = pytest.mark.usefixtures("small_images")


PICTURES = {"samples.png", "strip.png", "interpolation.png", "inversion.png", "quality.png", "losses.png"}


def read(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def pictures(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


# train ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.exists(), reason=f"there is no {CIFAR}")
def test_the_small_recipe_on_the_real_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Through to the report, with the real features."""
    monkeypatch.undo()
    monkeypatch.setenv("FLOWMAPS_DATA", str(CIFAR.parent))
    monkeypatch.setenv("FLOWMAPS_CACHE", str(tmp_path / "cache"))
    few = """--teacher-steps 25 --steps 25 --device cpu --evaluation.samples 100 --evaluation.points 60
        --evaluation.batch 50 --evaluation.steps 1 4 --evaluation.solver-steps 3 --evaluation.reference-images 200
        --evaluation.solver-tolerance 0.01 --evaluation.features efficientnet-lite0:32"""
    folder = tmp_path / "run"
    printed = run("train", "cifar10-tiny", "--out", folder, *few.split())
    assert re.search(r"(?m)^map +4 +4 ", printed)
    assert "FD" in printed
    found = read(folder)
    assert (found["recipe"], found["method"]) == ("cifar10-tiny", "lmd")
    first, *others = found["rows"]
    assert [row.get("solver") or row["steps"] for row in found["rows"]] == ["dopri5", "heun2", 1, 4]
    for row in found["rows"]:
        assert row["fd_name"] == "FD (efficientnet-lite0 at 32 px, 100 samples)"
        assert row["fd"] > 0
        assert {"kd", "precision", "recall", "seconds", "nfe"} < set(row)
    assert not {"fd_teacher", "pixel_error"} & set(first)
    for row in others:
        assert row["fd_teacher"] > 0
        assert 0 < row["pixel_error"] < 4
    assert found["inversion"]["encoder"] == "teacher"
    assert [entry["steps"] for entry in found["inversion"]["decoded"]] == [1, 4]
    assert pictures(folder) == PICTURES
    html = (folder / "report.html").read_text()
    assert html.count("data:image/png;base64,") == len(PICTURES)
    assert "efficientnet-lite0 at 32 px" in html


@pytest.mark.slow
def test_classes_of_images_are_learned_and_shown(tmp_path: Path):
    """Networks may be of the transformer, guided, on images reduced to another size."""
    options = ["--labels", "--backbone", "dit", "--dit.width", 16, "--dit.depth", 1, "--dit.heads", 2, "--dit.patch", 4]
    run("train", "cifar10-lmd", "--out", tmp_path / "run", *TINY, *options, "--guidance", 1, 3)
    assert pictures(tmp_path / "run") == PICTURES
    assert [row["samples"] for row in read(tmp_path / "run")["rows"]] == [100] * 6
    run("sample", tmp_path / "run", "--number", 6, "--guidance", 2.5, "--out", tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["labels"].tolist() == list(range(6))
    names = RunFolder.open(tmp_path / "run").units.names
    assert names[:3] == ("airplane", "automobile", "bird")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet32-lmd", "imagenet32-fmm"])
def test_imagenet(tmp_path: Path, name: str):
    few = [] if name.endswith("fmm") else ["--evaluation.steps", 1, 4]
    run("train", name, "--out", tmp_path / "run", "--labels", *TINY, *few)
    found = read(tmp_path / "run")
    assert (steps := [row["steps"] for row in found["rows"] if row["sampler"] == "map"]) == (few[1:] or [4, 8, 16])
    assert pictures(tmp_path / "run") == PICTURES
    flow_map = fm.load(tmp_path / "run")
    assert flow_map.net.arguments["classes"] == 1000
    assert [entry["steps"] for entry in found["inversion"]["decoded"]] == [n for n in steps if n <= 4]


@pytest.mark.slow
def test_grey_images(tmp_path: Path):
    array = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=array, labels=np.arange(20) % 2)
    run("train", "cifar10-lsd", "--data", tmp_path / "a.npz", "--out", tmp_path / "run", *TINY, "--evaluation.steps", 2)
    assert pictures(tmp_path / "run") == PICTURES
    run("sample", tmp_path / "run", "--number", 6, "--out", tmp_path / "x.npz")
    arrays = np.load(tmp_path / "x.npz")
    assert arrays.files == ["x"]  # labels are left out unless asked for
    assert arrays["x"].shape == (6, 8, 8, 1)


def test_latents(tmp_path: Path):
    """Numbers in the place of pixels: metrics of points, and no pictures of images."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.normal(3, 2, (40, 4, 8, 8)).astype(np.float32))
    words = [*TINY, "--resolution", 0, "--evaluation.steps", 1, 4]
    run("train", "cifar10-lmd", "--data", tmp_path / "a.npy", "--out", tmp_path / "run", *words)
    for row in read(tmp_path / "run")["rows"]:
        assert {"w2", "sliced_w2", "energy", "map_error"} < set(row)
        assert not {"fd", "pixel_error"} & set(row)
    assert pictures(tmp_path / "run") == {"quality.png", "losses.png"}
    run("sample", tmp_path / "run", "--number", 90, "--out", tmp_path / "x.npy")
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (90, 4, 8, 8)
    assert abs(x.mean() - 3) < 2  # in the units of the data


@pytest.mark.slow
def test_rectangles_measured_against_images_that_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for k in range(60):
        data_cases.save(tmp_path / f"data/{'cat' if k % 2 else 'dog'}/{k}.png", data_cases.colour(k, 9, 16))
    monkeypatch.chdir(tmp_path)
    words = ["train", "images", "--data", "data", *TINY, "--resolution", "4x8", "--held-out", "0.25"]
    said = run(*words, "--check")
    assert "45 images of 4 x 8 pixels" in said
    assert "samples are measured against 15 images that are held out, and not trained on" in said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowmaps.cli.commands.evaluate", lambda *_: None)
        run(*words, "--out", "run", "--minutes", "1e-9")
        run(*words, "--out", "run", "--resume")
    run("evaluate", "run", "--samples", 110, "--steps", 2)
    assert [row["samples"] for row in read(Path("run"))["rows"]] == [110] * 3
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["recipe"]["resolution"], config["recipe"]["held_out"]) == ("4x8", 0.25)
    report = (tmp_path / "run/report.html").read_text()
    assert "Samples are measured against 15 images that are held out, and not trained on." in report
    run("sample", "run", "--number", 6, "--label", "cat", "--out", "x.npz")
    assert np.load("x.npz")["x"].shape == (6, 4, 8, 3)
    split = run("train", "cifar10-lmd", *TINY, "--held-out", "test", "--check")
    assert "samples are measured against 7 images of the data's own test split, and not trained on" in split


# sample, evaluate ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def board(image_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images with classes, its data given as a folder, relative to where it was trained."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(image_data)
        image_cases.quick_features(patch)
        options = [*TINY, "--evaluation.steps", "1", "4"]
        run("train", "cifar10-lmd", "--out", folder / "run", "--labels", "--data", "./cifar10", *options)
    return folder / "run"


def test_images_are_sampled_as_pixels(board: Path, tmp_path: Path):
    run("sample", board, "--steps", 2, "--number", 12, "--seed", 5, "--out", tmp_path / "x.npz")
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["x"].dtype == np.uint8
    assert arrays["x"].shape == (12, 8, 8, 3)
    assert arrays["labels"].tolist() == [*range(10), 0, 1]
    noise = torch.randn(12, 3, 8, 8, generator=generator(5, 1))
    x = fm.samplers.Jump(2)(fm.load(board), noise, torch.arange(12) % 10)
    pixels = (127.5 * x + 127.5).round().clamp(0, 255).movedim(1, 3).numpy()
    assert np.abs(arrays["x"].astype(int) - pixels).max() <= 1
    run("sample", board, "--steps", 2, "--number", 12, "--seed", 5, "--out", tmp_path / "x.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), arrays["x"])
    run("sample", board, "--steps", 2, "--number", 12, "--seed", 5, "--out", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > picture.height  # 3 rows of 4
        shown = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert len({tuple(colour) for colour in arrays["x"].reshape(-1, 3)} & shown) > 12 * 64 // 2


def test_evaluated_again(board: Path):
    run("evaluate", board, "--samples", 130, "--steps", 2)
    rows = read(board)["rows"]
    assert [(row.get("steps"), row["samples"]) for row in rows] == [(None, 130), (2, 130), (2, 130)]
    assert all(row["fd_name"] == "FD (means of quarters, 130 samples)" for row in rows)


def test_data_are_found_again_from_another_folder(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWMAPS_DATA")
    assert Path(RunFolder.open(board).recipe.data).is_absolute()
    assert len(RunFolder.open(board).open_source().pixels) == 35  # type: ignore[attr-defined]
    assert len(open_source(RunFolder.open(board).recipe, split="test").pixels) == 7  # type: ignore[attr-defined]


def test_no_picture_of_points(unmeasured: None, tmp_path: Path, capsys: pytest.CaptureFixture):
    tiny = "--steps 2 --teacher-steps 1 --no-compile --network.width 8 --optimiser.batch 16".split()  # noqa: SIM905
    run("train", "checkerboard", "--out", tmp_path / "run", *tiny)
    error = refused(capsys, "sample", tmp_path / "run", "--out", tmp_path / "x.png")
    assert "makes samples of shape (2,), which are no images: take --out FILE.npz" in error
    assert not (tmp_path / "x.png").exists()


def test_a_map_of_short_jumps_is_not_sampled_in_long_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("flowmaps.cli.commands.evaluate", lambda *_: None)
        run("train", "cifar10-fmm", "--out", tmp_path / "run", *TINY)
    for command, *options in (["sample", "--out", tmp_path / "x.npy", "--steps", 3], ["evaluate", "--steps", 3, 8]):
        error = refused(capsys, command, tmp_path / "run", *options)
        assert "fmm of images learns jumps of at most 0.25: its map is sampled in 4 steps or more, got 3" in error
    assert not (tmp_path / "x.npy").exists()
    run("sample", tmp_path / "run", "--out", tmp_path / "x.npy", "--steps", 4, "--number", 3)


# bad input -----------------------------------------------------------------------------------------------------------


class Reckless:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_data_that_are_damaged(tmp_path: Path, capsys: pytest.CaptureFixture):
    files = data_cases.cifar_files()
    files["data_batch_3"] = {b"data": Reckless(tmp_path / "touched")}
    pickles = data_cases.write_folder(tmp_path / "pickles", files)
    table = data_cases.write(tmp_path / "tables" / "train-0.parquet")
    table.write_bytes(table.read_bytes()[:-60])
    for data, named in [(pickles, "data_batch_3"), (tmp_path / "tables", "train-0.parquet")]:
        error = refused(capsys, "train", "cifar10-lmd", "--data", data, "--out", tmp_path / "run", *TINY)
        assert named in error
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "run").exists()


def test_points_and_images_have_recipes_of_their_own(tmp_path: Path, image_data: Path, capsys: pytest.CaptureFixture):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(40, 3)))
    np.save(tmp_path / "wide.npy", np.zeros((40, 8, 12, 3), np.uint8))
    np.save(tmp_path / "odd.npy", np.zeros((40, 9, 9, 3), np.uint8))
    out, plain = ["--out", tmp_path / "run"], [*TINY, "--resolution", 0]
    for words, said in [
        (
            ["cifar10-lmd", "--data", tmp_path / "a.npy", *plain],
            "recipe of images, .* has points: take the recipe",
        ),
        (
            ["points", "--data", image_data / "cifar10", "--optimiser.batch", 9],
            "points is a recipe of points, .*cifar10 has images: take the recipe images",
        ),
        (["cifar10-lmd", "--data", tmp_path / "odd.npy", *plain], "divisible by 2 .patch 2"),
        (["cifar10-lmd", *TINY, "--resolution", 7], "no multiple of --resolution 7: choose one of"),
        (["cifar10-lmd", *TINY, "--resolution", "4by8"], "--resolution must be height x width such as 16x32, got 4by8"),
        (["cifar10-lmd", *TINY, "--resolution", "4x6"], "divisible by .*, got 6|is no whole part"),
        (["cifar10-lmd", *TINY, "--held-out", 0.1], "--held-out 0.1 of 35 images is fewer than 10: hold out more"),
        (["cifar10-lmd", *TINY, "--held-out", "tests"], "--held-out must be a share below 1 or test, got tests"),
        (["cifar10-lmd", *TINY, "--held-out", 1.5], "--held-out must be at least 0 and below 1, got 1.5"),
        (
            ["cifar10-lmd", *TINY, "--evaluation.reference-images", -1],
            "--evaluation.reference-images must be at least 0, got -1",
        ),
        (["cifar10-lmd", *TINY, "--guidance", 2], "--guidance is for data with classes, .* has none: pass --labels"),
        (["cifar10-lsd", *TINY, "--teacher", "there"], "lsd has no teacher, got --teacher there: leave it out"),
    ]:
        assert re.search(said, refused(capsys, "train", *words, *out)), said
        assert not (tmp_path / "run").exists()
    found = run("train", "cifar10-lmd", "--data", tmp_path / "wide.npy", *plain, "--check")
    assert "40 images of 8 x 12 pixels (height x width; the network is built for rectangles), in colour" in found


@pytest.mark.slow
def test_methods_are_compared_on_images(tmp_path: Path):
    few = " ".join(TINY).replace("--log-every 1 ", "").split()
    few += ["--evaluation.steps", 1, 4, "--budget-steps", 6]
    printed = run("compare", "cifar10-lmd", "--methods", "lmd", "lsd", "--out", tmp_path / "run", *few)
    rows = json.loads((tmp_path / "run" / "compare.json").read_text())["rows"]
    mine = [(row["method"], row["seed"], row.get("solver"), row["steps"]) for row in rows]
    each = [("heun2", 2), (None, 1), (None, 4)]
    assert mine == [(method, 0, *how) for method in ("lmd", "lsd") for how in each]
    assert all(row["fd"] > 0 and ("pixel_error" in row) == (row["sampler"] == "map") for row in rows)
    assert "heun2" in printed
    assert pictures(tmp_path / "run") == {"compare.png", "samples-lmd.png", "samples-lsd.png"}


# a budget of minutes -------------------------------------------------------------------------------------------------


def test_a_budget_of_minutes(tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch):
    words = ["train", "cifar10-lmd", *TINY, "--precision", "bfloat16"]
    run(*words, "--out", tmp_path / "whole")
    clock = iter([0.0, 30.0, 59.0, 61.0, 62.0, 63.0])  # once at the start, once a step
    with monkeypatch.context() as patch:
        patch.setattr("flowmaps.cli.commands.time", SimpleNamespace(monotonic=lambda: next(clock, math.inf)))
        printed = run(*words, "--out", tmp_path / "part", "--minutes", 1)
    assert "stopped after 1 minute" in printed
    assert "--resume" in printed
    assert not (tmp_path / "part" / "weights.safetensors").exists()
    printed = run(*words, "--out", tmp_path / "part", "--resume", "--minutes", 60)
    assert "stopped" not in printed
    assert weights(tmp_path / "part") == weights(tmp_path / "whole")
    assert image_cases.losses(tmp_path / "part") == image_cases.losses(tmp_path / "whole")


def test_minutes_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture):
    for minutes in (0, "nan"):
        words = ["train", "cifar10-lmd", "--out", tmp_path / "run", "--minutes", minutes]
        assert f"--minutes must be positive, got {minutes}" in refused(capsys, *words)
