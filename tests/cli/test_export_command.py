"""`flowmaps export`: a run's map in one file, that a program without torch samples from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from places import ROOT
from program import refused, run

import flowmaps as fm
from flowmaps.runs.folder import RunFolder
from flowmaps.shapes import GuidedCondition

TINY = """--no-compile --steps 4 --teacher-steps 2 --show-every 0 --network.width 8 --network.depth 1
    --optimiser.batch 32 --evaluation.samples 100 --evaluation.points 20 --evaluation.steps 1
    --evaluation.solver-steps 2 --device cpu"""
NO_TORCH = "import sys; sys.modules['torch'] = None; import runpy; sys.argv = sys.argv[1:]; "
NO_TORCH += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run of a table with classes and a range of guidance weights, its file, and what `export` printed."""
    folder = tmp_path_factory.mktemp("export")
    rows = np.random.default_rng(0).normal(100, 5, (60, 2))
    lines = [f"{a:.3f},{round(b)},{'xyz'[k % 3]}" for k, (a, b) in enumerate(rows)]
    (folder / "wine.csv").write_text("\n".join(["acid,year,label", *lines]) + "\n")
    words = ["--data", folder / "wine.csv", "--method", "lsd", "--guidance", 1, 3, *TINY.split()]
    run("train", "points", "--out", folder / "run", *words)
    return (
        folder / "run",
        folder / "map.onnx",
        run("export", folder / "run", "--steps", 2, "--out", folder / "map.onnx"),
    )


def test_a_run_is_exported_in_the_units_of_its_table(exported: tuple[Path, Path, str]):
    folder, path, said = exported
    assert f"{path}: 2 steps in float32" in said
    assert "error against the map in float32 on the same noise: largest" in said
    assert "its samples: rows in the units of the table" in said
    x0, labels, weights = torch.randn(5, 2), torch.arange(5) % 3, torch.linspace(1, 3, 5)
    session = onnxruntime.InferenceSession(path)
    feed = {"noise": x0.numpy(), "condition": labels.numpy(), "guidance_weight": weights.numpy()}
    samples = torch.from_numpy(session.run(None, feed)[0])
    units = RunFolder.open(folder).units
    wanted = units.to_data(fm.samplers.Jump(2)(fm.load(folder), x0, GuidedCondition(labels, weights)))
    torch.testing.assert_close(samples, wanted, rtol=1e-5, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert [column["name"] for column in json.loads(about["columns"])] == ["acid", "year"]
    assert json.loads(about["classes"]) == ["x", "y", "z"]
    assert (about["method"], about["recipe"], json.loads(about["guidance_weights"])) == ("lsd", "points", [1, 3])


def test_the_example_samples_where_torch_cannot_be_imported(exported: tuple[Path, Path, str], tmp_path: Path):
    words = [sys.executable, "-c", NO_TORCH, str(ROOT / "examples" / "onnx_sample.py"), str(exported[1])]
    done = subprocess.run([*words, str(tmp_path / "x.npy"), "2"], capture_output=True, text=True, check=True)
    assert "16 samples in 2 steps, rows in the units of the table" in done.stdout
    samples = np.load(tmp_path / "x.npy")
    assert samples.shape == (16, 2)
    assert np.array_equal(samples[:, 1], samples[:, 1].round())  # a column of whole numbers
    noise = np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32)
    feed = {"noise": noise, "condition": np.arange(16) % 3, "guidance_weight": np.full(16, 2, np.float32)}
    assert np.array_equal(samples, onnxruntime.InferenceSession(exported[1]).run(None, feed)[0])


def test_a_saved_map_is_exported_in_its_own_coordinates(tmp_path: Path):
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=8, depth=1))
    fm.save(flow_map, tmp_path / "map")
    assert "in the network's coordinates" in run("export", tmp_path / "map", "--steps", 1, "--out", tmp_path / "a.pt2")
    x0 = torch.randn(4, 2)
    samples = torch.export.load(tmp_path / "a.pt2").module()(x0)
    torch.testing.assert_close(samples, fm.samplers.Jump(1)(flow_map, x0))


@pytest.mark.parametrize(
    "words, said",
    [
        (["--out", "a.txt"], "--out must end in .onnx or .pt2, got a.txt"),
        (["--out", "a.onnx", "--steps", 0], "--steps must be from 1 to 1,000, got 0"),
        (["--out", "a.onnx", "--precision", "int4"], "--precision must be one of float32, float16, int8, got int4"),
        (["--out", "a.pt2", "--precision", "int8"], "of .onnx files alone"),
    ],
)
def test_exports_that_are_refused(
    exported: tuple[Path, Path, str],
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list,
    said: str,
):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "export", exported[0], *words)
    assert not list(tmp_path.iterdir())
    assert "already exists" in refused(capsys, "export", exported[0], "--out", exported[1])
