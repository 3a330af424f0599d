"""Maps conditioned on columns of numbers, from the command line: their law, what is written, resumed and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from program import refused, run
from run_cases import contents

import flowmaps as fm

ROWS, SLOPE, SPREAD = 2_000, 3.0, 0.5
OPTIONS = """--no-compile --device cpu --show-every 0 --network.width 32 --network.depth 2 --optimiser.batch 256
    --optimiser.learning-rate 0.01 --evaluation.samples 150 --evaluation.points 100 --evaluation.steps 1 4
    --evaluation.solver-steps 5 --condition-columns speed --label-column kind"""
TINY = [*OPTIONS.split(), "--steps", "4", "--teacher-steps", "3"]


def frame(rows: int = ROWS) -> pandas.DataFrame:
    """x | speed ~ N(1000 + SLOPE speed, SPREAD^2), with a class that moves it by 10, and times that need float64."""
    rng = np.random.default_rng(0)
    kind, speed = rng.integers(0, 2, rows), rng.integers(0, 9, rows)
    x = 1_000 + 10 * kind + SLOPE * speed + SPREAD * rng.normal(size=rows)
    return pandas.DataFrame({"y0": rng.normal(size=rows), "speed": speed, "kind": np.where(kind, "b", "a"), "x": x})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("conditions") / "a.csv"
    frame().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def tiny(data: Path) -> Path:
    """A run of few steps."""
    run("train", "points", "--data", data, "--out", data.parent / "tiny", *TINY)
    return data.parent / "tiny"


def test_samples_have_the_conditional_mean_and_spread(data: Path, unmeasured: None):
    folder = data.parent / "law"
    words = [*OPTIONS.split(), "--method", "flow_matching", "--steps", "400", "--teacher-steps", "1"]
    words += ["--optimiser.decay", "cosine"]
    run("train", "points", "--data", data, "--out", folder, *words)
    for speed, kind, extra in ((1, "a", 0), (6.5, "b", 10)):
        out = folder / f"{kind}.csv"
        given = ["--condition", f"speed={speed}", "--label", kind, "--number", "2000", "--steps", "20"]
        run("sample", folder, "--out", out, *given)
        x = pandas.read_csv(out).x
        assert x.mean() == pytest.approx(1_000 + extra + SLOPE * speed, abs=0.2)  # over all rows the deviation is 9
        assert x.std() == pytest.approx(SPREAD, rel=0.35)


def test_samples_are_written_with_their_conditions(tiny: Path, data: Path):
    out = tiny / "one.csv"
    said = run("sample", tiny, "--out", out, "--condition", "speed=7", "--number", "6")
    drawn = pandas.read_csv(out)
    assert list(drawn) == list(frame(1))
    assert drawn.speed.tolist() == [7] * 6
    assert drawn.speed.dtype == "int64"
    assert drawn.kind.tolist() == ["a", "b"] * 3
    assert "outside" not in said
    said = run("sample", tiny, "--out", tiny / "far.npz", "--condition", "speed=9.5", "--number", "6")
    assert "the value of speed: outside 0 to 8" in said
    arrays = np.load(tiny / "far.npz")
    assert arrays["condition"].tolist() == [[9.5]] * 6
    assert arrays["x"].shape == (6, 2)


def test_a_file_gives_each_sample_its_row(tiny: Path, data: Path):
    out = tiny / "rows.parquet"
    run("sample", tiny, "--out", out, "--condition-file", data)
    drawn, own = pandas.read_parquet(out), frame()
    assert drawn[["speed", "kind"]].equals(own[["speed", "kind"]])  # classes and numbers belong together
    own[["speed"]][:3].to_csv(tiny / "three.csv", index=False)
    run("sample", tiny, "--out", tiny / "turns.csv", "--condition-file", tiny / "three.csv", "--number", "7")
    turns = pandas.read_csv(tiny / "turns.csv")
    assert turns.speed.tolist() == [*own.speed[:3], *own.speed[:3], own.speed[0]]
    assert turns.kind.tolist() == ["a", "b", "a", "b", "a", "b", "a"]


def test_the_report_and_the_dry_run_say_what_is_a_condition(tiny: Path, data: Path):
    report = (tiny / "report.html").read_text()
    assert "It is conditioned on speed" in report
    assert "Samples are measured against 200 rows that are held out" in report
    said = run("train", "points", "--data", data, "--check", *TINY)
    assert "2 numbers a row, 2 classes, conditioned on speed" in said
    rows = json.loads((tiny / "metrics.json").read_text())["rows"]
    assert all({"w2", "sliced_w2", "energy"} <= {*row} for row in rows)


def test_the_map_is_loaded_with_what_its_conditions_mean(tiny: Path):
    flow_map = fm.load(tiny)
    units = fm.data.Units.from_dict(json.loads((tiny / "config.json").read_text())["units"])
    assert flow_map.net.arguments["condition_dim"] == 1  # type: ignore[union-attr, index]
    numbers = units.to_condition({"speed": [0.0, 8.0]})
    assert numbers.shape == (2, 1)
    assert numbers[0] < 0 < numbers[1]


def test_an_interrupted_run_goes_on_to_the_same_weights(tiny: Path, data: Path, tmp_path: Path, unmeasured: None):
    words = ["train", "points", "--data", data, "--out", tmp_path / "run", *TINY, "--checkpoint-every", "1"]
    run(*words, "--minutes", "1e-9")
    run(*words, "--resume")
    assert (tmp_path / "run/weights.safetensors").read_bytes() == (tiny / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("weights", [["2"], ["1", "3"]])
def test_numbers_are_dropped_for_guidance(data: Path, tmp_path: Path, weights: list[str], unmeasured: None):
    run("train", "points", "--data", data, "--out", tmp_path / "run", *TINY, "--guidance", *weights)
    more = ["--guidance", "2"] if len(weights) > 1 else []
    given = ["--condition", "speed=3", "--number", "4", *more]
    run("sample", tmp_path / "run", "--out", tmp_path / "x.csv", *given)
    assert pandas.read_csv(tmp_path / "x.csv").notna().all(axis=None)


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "conditioned on speed: pass --condition speed=4, or --condition-file FILE"),
        (["--condition", "sped=1"], "unknown column to condition on 'sped': did you mean 'speed'?"),
        (["--condition", "speed=fast"], "--condition takes NAME=NUMBER, got 'speed=fast'"),
        (["--condition", "speed"], "--condition takes NAME=NUMBER, got 'speed'"),
        (["--condition", "speed=1,speed=2"], "--condition has speed twice"),
        (["--condition", "speed=nan"], "--condition takes NAME=NUMBER, got 'speed=nan'"),
        (["--condition", "speed=1", "--condition-file", "DATA"], "both give conditions: leave one out"),
        (["--condition-file", "there.txt"], "--condition-file must end in .csv"),
        (["--condition-file", "missing.csv"], "there is no file missing.csv"),
        (["--condition-file", "gap.csv"], "gap.csv, line 3: a cell of column 'speed' is empty"),
        (["--condition-file", "text.csv"], "text.csv, line 2: column 'speed' holds the text 'fast', and the map is"),
        (["--condition-file", "other.csv"], "unknown column in other.csv, 'speed': did you mean 'sped'?"),
        (
            ["--condition-file", "class.csv"],
            "class.csv, line 3: column 'kind' is 'z', and the map has learned the",
        ),
        (["--condition-file", "missing.csv"], "pass --condition-file FILE"),
        (
            ["--condition-file", "date.csv"],
            "as the training's file has them: write numbers there, or give the values by",
        ),
        (["--condition-file", "large.csv"], "large.csv: column 'speed' has whole numbers of 2^53 and more"),
        (["--condition", "speed=1e39"], "speed is 1e+39, which single precision does not hold"),
    ],
)
def test_conditions_that_are_refused(
    tiny: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: list[str],
    said: str,
):
    monkeypatch.chdir(tmp_path)
    files = {"gap": "speed,b\n1,2\n,3\n", "text": "speed\nfast\nslow\n", "other": "sped\n1\n2\n"}
    files["date"] = "speed\n2024-01-05\n2024-01-06\n"
    files["large"] = f"speed\n{2**53 + 1}\n1\n"
    for name, content in (files | {"class": "speed,kind\n1,a\n2,z\n"}).items():
        (tmp_path / f"{name}.csv").write_text(content)
    before = contents(tmp_path)
    words = [str(data) if word == "DATA" else word for word in options]
    assert said in refused(capsys, "sample", tiny, "--out", "x.csv", *words)
    assert contents(tmp_path) == before


def test_other_maps_take_no_conditions(tmp_path: Path, unmeasured: None, capsys: pytest.CaptureFixture):
    frame()[["x", "y0"]].to_csv(tmp_path / "a.csv", index=False)
    words = [word for word in TINY if word not in ("--condition-columns", "speed", "--label-column", "kind")]
    run("train", "points", "--data", tmp_path / "a.csv", "--out", tmp_path / "run", *words)
    error = refused(capsys, "sample", tmp_path / "run", "--out", tmp_path / "x.csv", "--condition", "speed=1")
    assert "this map is not conditioned on numbers: leave out --condition." in error
    error = refused(capsys, "sample", tmp_path / "run", "--out", "x.csv", "--condition-file", tmp_path / "a.csv")
    assert "this map is not conditioned on a column of a table: leave out --condition-file." in error


def test_a_class_among_conditions_is_asked_for_by_label(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    error = refused(capsys, "sample", tiny, "--out", tmp_path / "x.csv", "--condition", "speed=1,kind=b")
    assert "'kind' is the column of the classes: pass --label b in the place of kind=b" in error
