"""The scripts of examples/ddpm_cifar10: a DDPM of diffusers, trained in two parts, and a map measured beside one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMPipeline
from interop import pipelines_of_diffusers as tiny
from matplotlib.image import imread
from places import ROOT
from program import run

SHORT = "--steps 2 --teacher-steps 2 --optimiser.batch 4 --device cpu --precision float32 --show-every 0"
SHORT += " --evaluation.samples 100 --evaluation.points 10 --evaluation.steps 1 --evaluation.solver-steps 1"
SHORT += (
    " --evaluation.solver-tolerance 0.5 --evaluation.reference-images 100 --evaluation.features efficientnet-lite0:32"
)
pytestmark = pytest.mark.slow


def example(name: str, *words: str | Path) -> str:
    """What a script of the example prints."""
    command = [sys.executable, ROOT / "examples" / "ddpm_cifar10" / name, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout


def pictures(folder: Path, side: int) -> Path:
    np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 256, (300, side, side, 3), dtype=np.uint8))
    return folder / "x.npy"


def test_a_ddpm_of_diffusers_goes_on_where_it_stopped(tmp_path: Path):
    words = [tmp_path / "ddpm", "--data", pictures(tmp_path, 16)]
    assert "from step 0" in example("train_ddpm.py", *words, "--steps", "2")
    assert "from step 2" in example("train_ddpm.py", *words, "--steps", "3")
    assert DDPMPipeline.from_pretrained(tmp_path / "ddpm" / "pipeline").unet.config["sample_size"] == 16


def test_a_map_is_measured_beside_the_ddpm(tmp_path: Path):
    """By the sampler of diffusers from the same noise, by a pipeline of the map, and by its ONNX file."""
    tiny.ddpm().save_pretrained(tmp_path / "ddpm")
    words, out = ["--data", pictures(tmp_path, 8)], tmp_path / "measured"
    run("distill", "--teacher", tmp_path / "ddpm", *words, "--out", tmp_path / "map", *SHORT.split())
    words += ["--resolution", "8", "--out", out, "--number", "100", "--reference", "100"]
    said = example("measure.py", tmp_path / "ddpm", tmp_path / "map", *words)
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert [row["nfe"] for row in found["rows"].values()] == [50, 4, 2, 1]
    assert all(f"{name}: FD" in said for name in found["rows"])
    assert set(found["errors"]) == {"diffusers", "onnxruntime"}
    assert all(error < 1e-5 for error in found["errors"].values())
    assert imread(out / "strip.png").shape[1] > 12 * 8
