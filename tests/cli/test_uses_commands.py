"""`flowmaps invert`, `likelihood`, `restore`: what the library gives, in the units of the data, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from image_cases import TINY as TINY_IMAGES
from program import refused, run

import flowmaps as fm
from flowmaps.cli import commands
from flowmaps.runs.folder import RunFolder

OPTIONS = """--no-compile --device cpu --show-every 0 --steps 3 --teacher-steps 3 --network.width 8 --network.depth 1
    --optimiser.batch 16"""
TINY = OPTIONS.split()


def write_table(path: Path) -> pandas.DataFrame:
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"acid": rng.normal(100, 5, 150), "alcohol": rng.normal(0, 0.1, 150)})
    frame["speed"], frame["kind"] = rng.normal(3, 1, 150), ["red", "white", "rose"] * 50
    frame.to_csv(path, index=False)
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a table with classes and a condition, of images, and of other methods; they are not measured."""
    path = tmp_path_factory.mktemp("uses")
    write_table(path / "wine.csv")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(path / "tiles.npz", x=pixels)
    words = ["--data", path / "wine.csv", "--condition-columns", "speed", "--label-column", "kind", *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "evaluate", lambda *_, **__: None)
        run("train", "points", "--out", path / "both", "--method", "lmd", "--times", "square", "--whiten", *words)
        images = ["--method", "lmd", "--times", "square", *TINY_IMAGES]
        run("train", "images", "--data", path / "tiles.npz", "--out", path / "images", *images)
    for name, method in {"one": "lsd", "none": "flow_matching"}.items():  # what they refuse stands in the card
        shutil.copytree(path / "both", path / name)
        card = path / name / "config.json"
        text = card.read_text().replace('"method": "lmd"', f'"method": "{method}"')
        card.write_text(text.replace('"times": "square"', '"times": "triangle"'))
    return path


def in_network(folder: Path, frame: pandas.DataFrame) -> tuple[torch.Tensor, fm.shapes.Conditions]:
    """Rows of a table as the map of a run has them: by its card, written out."""
    units = RunFolder.open(folder).units
    y = (frame[["acid", "alcohol"]].to_numpy() - units.shift) / units.scale
    y = y @ np.linalg.inv(np.array(units.table.whitening))  # type: ignore[union-attr]
    labels = torch.tensor([units.names.index(kind) for kind in frame.kind])
    numbers = units.to_condition({"speed": frame.speed.to_numpy()})
    return torch.from_numpy(y).float(), fm.shapes.Conditions(labels, numbers)


def test_data_go_to_noise_and_come_back_as_another_class(folder: Path, tmp_path: Path):
    frame = pandas.read_csv(folder / "wine.csv")
    x, cond = in_network(folder / "both", frame)
    words = ["--data", folder / "wine.csv", "--steps", 2]
    said = run("invert", folder / "both", "--out", tmp_path / "z.npz", *words)
    assert "150 rows to time 0 and back in 4 evaluations each" in said
    found, flow_map = np.load(tmp_path / "z.npz"), fm.load(folder / "both")
    noise = fm.uses.invert(flow_map, x, cond, steps=2, backwards=True)
    np.testing.assert_allclose(found["noise"], noise.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["data"], frame[["acid", "alcohol"]], rtol=1e-5, atol=1e-6)
    error = fm.uses.round_trip_error(flow_map, x, cond, steps=2)
    np.testing.assert_allclose(found["error"], error.numpy(), atol=1e-5)
    assert found["labels"].tolist() == frame.kind.tolist()
    np.testing.assert_allclose(found["condition"][:, 0], frame.speed, rtol=1e-6)
    new = ["--as-label", "rose", "--as-condition", "speed=4", "--to", 0.3]
    assert "carried over" in run("invert", folder / "both", "--out", tmp_path / "rose.csv", *words, *new)
    written = pandas.read_csv(tmp_path / "rose.csv")
    assert list(written.columns) == list(frame.columns)
    assert set(written.kind) == {"rose"}
    assert set(written.speed) == {4}
    target = in_network(folder / "both", frame.assign(kind="rose", speed=4.0))[1]
    other = fm.uses.transfer(flow_map, x, cond, target, to=0.3, steps=2, backwards=True)
    wanted = RunFolder.open(folder / "both").units.to_data(other.detach())
    np.testing.assert_allclose(written[["acid", "alcohol"]], wanted, rtol=1e-4, atol=1e-4)


def test_noise_that_was_written_is_sampled_from_with_its_classes_and_conditions(folder: Path, tmp_path: Path):
    run("invert", folder / "both", "--data", folder / "wine.csv", "--steps", 2, "--out", tmp_path / "z.npz")
    again = ["--noise", tmp_path / "z.npz", "--steps", 2]
    assert "150 samples in 2 steps" in run("sample", folder / "both", *again, "--out", tmp_path / "x.npz")
    back, found = (dict(np.load(tmp_path / name)) for name in ("z.npz", "x.npz"))
    for name in ("x", "labels", "condition"):
        assert (found[name] == back[name]).all(), name
    run("sample", folder / "both", *again, "--label", "rose", "--out", tmp_path / "rose.npz")
    rose = np.load(tmp_path / "rose.npz")
    assert set(rose["labels"]) == {"rose"}
    assert (rose["condition"] == back["condition"]).all()


def test_noise_of_ones_own_takes_conditions_in_words_and_nothing_is_drawn(folder: Path, tmp_path: Path):
    np.savez(tmp_path / "one.NPZ", noise=np.random.default_rng(0).normal(size=(7, 2)).astype(">f8"))
    (tmp_path / "one.NPZ.npz").rename(tmp_path / "one.NPZ")
    one = ["--noise", tmp_path / "one.NPZ", "--number", 7, "--label", "red", "--condition", "speed=3"]
    run("sample", folder / "both", *one, "--seed", 1, "--out", tmp_path / "a.csv")
    run("sample", folder / "both", *one, "--seed", 2, "--out", tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    assert len(pandas.read_csv(tmp_path / "a.csv")) == 7


def test_noise_of_images_is_sampled_from(folder: Path, tmp_path: Path):
    run("invert", folder / "images", "--number", 4, "--steps", 2, "--out", tmp_path / "z.npz")
    run("sample", folder / "images", "--noise", tmp_path / "z.npz", "--steps", 2, "--out", tmp_path / "x.npz")
    assert (np.load(tmp_path / "x.npz")["x"] == np.load(tmp_path / "z.npz")["x"]).all()


GOOD = {"noise": np.zeros((5, 2), np.float32)}


@pytest.mark.parametrize(
    "arrays, number, said",
    [
        ({"noise": np.zeros((5, 3))}, [], "finite floats in float32, 2 numbers a sample, got float64 of shape (5, 3)."),
        ({"noise": np.zeros((0, 2))}, [], "got float64 of shape (0, 2)"),
        ({"noise": np.zeros((5, 2), int)}, [], "got int64 of shape (5, 2)"),
        ({"noise": np.array(1.0)}, [], "got float64 of shape ()"),
        ({"noise": np.full((5, 2), np.nan)}, [], "must be finite floats"),
        ({"noise": np.full((5, 2), 1e300)}, [], "must be finite floats in float32"),
        (GOOD, ["--number", 4], "has noise for 5 samples, got --number 4: leave it out."),
        ({"a": np.zeros(2), "x": np.zeros((5, 2))}, [], "it has no array 'noise' (its arrays: a, x): call it so."),
        ({**GOOD, "time": np.array(0.6)}, [], "has points of time 0.6, and samples start from noise, time 0: write it"),
        ({**GOOD, "labels": np.array(["red"] * 4)}, [], "has 5 rows of noise and 4 of 'labels'."),
        ({**GOOD, "labels": np.array(["green"] * 5)}, [], "--label must be one of"),
        ({**GOOD, "condition": np.zeros((5, 2))}, [], "must be finite numbers of speed, a row a sample, got float64"),
        ({**GOOD, "time": np.full(5, 0.3)}, [], "has points of time 0.3, and samples start from noise"),
        ({**GOOD, "labels": np.array("red")}, [], "has 5 rows of noise and 0 of 'labels'."),
        (None, [], "could not be read as noise"),
    ],
)
def test_noise_of_another_kind_is_refused(
    arrays: dict | None, number: list, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = tmp_path / "noise.npz"
    path.write_bytes(b"PK") if arrays is None else np.savez(path, **arrays)
    assert said in refused(capsys, "sample", folder / "both", "--noise", path, "--out", tmp_path / "x.npz", *number)
    assert not (tmp_path / "x.npz").exists()


def test_one_array_under_the_name_of_an_archive_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    np.save(tmp_path / "z.npy", GOOD["noise"])
    (tmp_path / "z.npy").rename(tmp_path / "z.npz")
    words = ["--noise", tmp_path / "z.npz", "--out", tmp_path / "x.npz"]
    assert "z.npz could not be read as noise" in refused(capsys, "sample", folder / "both", *words)


def test_an_array_that_is_not_asked_for_is_not_read(folder: Path, tmp_path: Path):
    np.savez(tmp_path / "z.npz", **GOOD, other=np.array([object()]))
    words = ["--label", "red", "--condition", "speed=3", "--out", tmp_path / "x.npz"]
    run("sample", folder / "both", "--noise", tmp_path / "z.npz", *words)


@pytest.mark.parametrize("by", ["ode", "jumps"])
def test_densities_are_those_of_a_law_in_the_units_of_the_data(folder: Path, tmp_path: Path, by: str):
    """Their integral over a square that holds nearly all of the law is 1, in the file's units."""
    axes = np.linspace(50, 150, 81), np.linspace(-1, 1, 81)
    a, b = (grid.ravel() for grid in np.meshgrid(*axes))
    pandas.DataFrame({"alcohol": b, "acid": a}).to_csv(tmp_path / "grid.csv", index=False)
    given = ["--data", tmp_path / "grid.csv", "--label", "red", "--condition", "speed=3", "--tolerance", 1e-3]
    said = run("likelihood", folder / "both", "--out", tmp_path / "l.csv", *given, "--by", by)
    assert f"6,561 log densities of the {'teacher' if by == 'ode' else 'map'}'s" in said
    assert "in the units of the data" in said
    found = pandas.read_csv(tmp_path / "l.csv")
    np.testing.assert_allclose(found.acid, a, rtol=1e-5)
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    assert np.exp(found.log_density).sum() * cell == pytest.approx(1, abs=0.02)


def test_bits_of_images_and_a_picture_of_the_round_trip(folder: Path, tmp_path: Path):
    given = ["--number", 4, "--tolerance", 0.01, "--probes", 1]
    said = run("likelihood", folder / "images", "--out", tmp_path / "l.npz", *given)
    assert "bits per dimension" in said
    found = np.load(tmp_path / "l.npz")
    bits = -found["log_density"] / (64 * np.log(2))
    np.testing.assert_allclose(found["bits_per_dimension"], bits, rtol=1e-5)
    assert found["x"].dtype == np.uint8
    assert (bits > 4).all()  # noise of 256 levels has 8 bits, and this map has learned nothing
    run("invert", folder / "images", "--number", 4, "--out", tmp_path / "z.png")
    assert (tmp_path / "z.png").stat().st_size > 1_000


def test_hidden_columns_and_hidden_pixels_are_restored(folder: Path, tmp_path: Path):
    frame = pandas.read_csv(folder / "wine.csv")
    frame.drop(columns="alcohol").to_csv(tmp_path / "seen.csv", index=False)  # which the observation does not need
    given = ["--operator", "hide:alcohol", "--observed", "--times", 4]
    for name in ("seen.csv", "wine.csv"):
        data = (tmp_path if name == "seen.csv" else folder) / name
        run("restore", folder / "both", "--data", data, *given, "--out", tmp_path / f"x-{name}")
    one, other = (pandas.read_csv(tmp_path / f"x-{name}") for name in ("seen.csv", "wine.csv"))
    np.testing.assert_allclose(one.alcohol, other.alcohol, atol=1e-5)  # what is hidden is not read
    assert one.kind.tolist() == frame.kind.tolist()
    small = np.random.default_rng(1).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", x=small)
    given = ["--data", tmp_path / "small.npz", "--operator", "downsample:2", "--observed", "--times", 3]
    run("restore", folder / "images", *given, "--out", tmp_path / "large.npz")
    found = np.load(tmp_path / "large.npz")
    assert found["x"].shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(found["start"][:, ::2, ::2, 0], small)  # A^T y, each pixel four times
    said = run("restore", folder / "images", "--operator", "hide:3", "--number", 5, "--out", tmp_path / "x.png")
    assert "PSNR" in said
    assert "5 rows restored in 32 evaluations each" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (["invert", "one", "--out", "a.npz"], "never trained backwards, from data to noise (lsd learned jumps towards "
         "the data alone): train it with --times square"),
        (["invert", "none", "--out", "a.npz"], "flow_matching learned jumps none"),
        (["invert", "both", "--out", "a.png"], "no images: take --out FILE.npz"),
        (["invert", "both", "--out", "a.npz", "--as-label", "green"], "--label must be one of"),
        (["invert", "both", "--out", "a.npz", "--to", "1"], "to a time in [0, 1)"),
        (["invert", "images", "--out", "a.npz", "--as-label", "3"], "these data have no classes"),
        (["likelihood", "one", "--by", "jumps", "--out", "a.npz"], "never trained backwards"),
        (["likelihood", "both", "--out", "a.png"], "a file of arrays or a table"),
        (["likelihood", "both", "--out", "a.npz", "--tolerance", "2"], "--tolerance must be between 0 and 1"),
        (["likelihood", "both", "--out", "a.npz", "--data", "odd.csv"], "unknown column in odd.csv, 'acid'"),
        (["likelihood", "both", "--out", "a.npz", "--data", "text.csv"], "'sour', and the map takes its numbers"),
        (["likelihood", "both", "--out", "a.npz", "--data", "green.csv"], "is 'green', and the map has learned the"),
        (["likelihood", "images", "--out", "a.npz", "--data", "red.npz"], "images of (1, 8, 8) are needed"),
        (["restore", "none", "--out", "a.npz", "--operator", "hide:acid"], "flow_matching learned others"),
        (["restore", "both", "--out", "a.npz", "--operator", "hide:acids"], "did you mean 'acid'?"),
        (["restore", "both", "--out", "a.npz", "--operator", "blur:2"], "of points is hide:COLUMN,COLUMN"),
        (["restore", "images", "--out", "a.npz", "--operator", "downsample:3"], "a factor that divides the image"),
        (["restore", "images", "--out", "a.npz", "--operator", "hide:8"], "hides all of an image of 8 x 8"),
        (["restore", "images", "--out", "a.npz", "--operator", "blurr:2"], "did you mean 'blur'?"),
        (["restore", "images", "--out", "a.npz", "--operator", "hide:2", "--observed"], "pass --data too"),
        (["restore", "images", "--out", "a.npz", "--operator", "keep:0.5", "--observed", "--data", "red.npz"],
         "--observed is for hide, blur and downsample"),
        (["restore", "images", "--out", "a.npz", "--operator", "hide:2", "--observed", "--data", "red.npz", "--noise",
          "1"], "have theirs: leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(
    folder: Path,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
):
    monkeypatch.chdir(tmp_path)
    Path("text.csv").write_text("acid,alcohol,kind,speed\n1,0.1,red,3\nsour,0.2,red,4\n")
    Path("green.csv").write_text("acid,alcohol,kind,speed\n1,0.1,green,3\n")
    Path("odd.csv").write_text("sour,kind,speed\n1,red,3\n2,red,4\n")
    np.savez("red.npz", x=np.zeros((3, 8, 8, 3), np.uint8))
    assert said in refused(capsys, words[0], folder / words[1], *words[2:])
    assert not {*tmp_path.glob("a.*")}
