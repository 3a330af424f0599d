"""`flowmaps evaluate DIR --certificate`: against the teacher where there is one, else of the map's own velocity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from program import refused, run

OPTIONS = """--no-compile --device cpu --show-every 0 --steps 4 --teacher-steps 4 --network.width 8 --network.depth 2
    --optimiser.batch 16 --evaluation.samples 100 --evaluation.points 20 --evaluation.steps 1"""
TINY = OPTIONS.split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificate") / "a.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.normal(size=(60, 2)), labels=np.arange(60) % 3)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("method, against", [("lmd", "the teacher"), ("lsd", "the map's own velocity")])
def test_a_run_gets_its_certificate(data: Path, tmp_path: Path, method: str, against: str):
    run("train", "points", "--data", data, "--out", tmp_path / "run", "--method", method, *TINY)
    said = run("evaluate", tmp_path / "run", "--steps", 1, "--certificate")
    assert "no bounds" in said
    assert ("which may be wrong itself" in said) == (method == "lsd")
    assert f"{method} learns jumps between any two times" in said
    found = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert found["against"] == against
    assert found["estimates"]["Eulerian"]["value"] >= found["same_noise"]["value"] * 0.99
    assert np.array(found["square"]["semigroup"]).shape == (9, 9)
    assert (tmp_path / "run" / "certificate.png").stat().st_size > 10_000
    again = run("evaluate", tmp_path / "run", "--steps", 1, "--certificate", "--seed", 5)
    assert "no bounds" in again
    other = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert other["sample_distance"] != found["sample_distance"]


@pytest.mark.slow
def test_a_velocity_alone_has_none(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run("train", "points", "--data", data, "--out", tmp_path / "run", "--method", "flow_matching", *TINY)
    said = refused(capsys, "evaluate", tmp_path / "run", "--steps", 1, "--certificate")
    assert "the jumps of this flow_matching are none: leave --certificate out" in said
