"""benchmarks/gpu.sh at a tiny size without a GPU: every table is filled, and a part that fails costs itself alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from places import CIFAR, ROOT

import flowmaps as fm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CIFAR.is_dir(), reason="needs ../shared/data/cifar10"),
]
PARTS = ["tests", "teacher", "lmd", "compiled0", "compiled1", "compiled2", "eager", "lsd", "emd", "prepare"]


def visit(out: Path, **variables: str) -> tuple[dict[str, list[dict]], str]:
    """The figures by kind, and what was printed."""
    given = {"DEVICE": "cpu", "SCALE": "tiny", "OUT": str(out), "DATA": str(CIFAR)}
    environment = os.environ | given | {"PYTHON": sys.executable} | variables
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu.sh")], env=environment, capture_output=True, text=True, timeout=1800
    )
    found = defaultdict(list)
    for line in (out / "figures.jsonl").read_text().splitlines():
        entry = json.loads(line)
        found[entry["kind"]].append(entry)
    return found, done.stdout + done.stderr


def test_a_visit_fills_every_table_and_leaves_a_run(tmp_path):
    found, printed = visit(tmp_path)
    assert [(entry["part"], entry["status"]) for entry in found["part"]] == [(part, "done") for part in PARTS], printed
    rows = {(entry["part"], entry["sampler"], entry.get("steps")) for entry in found["samples"]}
    maps = {(part, "map", steps) for part in ("lmd", "lsd", "emd") for steps in (1, 2, 4, 8)}
    others = {("real", "other training images", None), ("teacher", "Heun", 18), ("teacher", "dopri5", None)}
    assert rows == maps | others
    assert {entry["part"] for entry in found["training"]} == {"teacher", "lmd", "lsd", "emd"}
    assert all(entry["steps"] > 0 for entry in found["training"])
    assert len(found["speed"]) == 3 + 2 * (4 * 2 + 1)
    assert all(entry["seconds"] > 0 and entry["flops"] > 0 for entry in found["speed"])  # and no error
    assert re.search(r"^\| U-Net \| lmd-target \| [\d.]+ \|$", (tmp_path / "report.md").read_text(), re.MULTILINE)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    sample = [sys.executable, "-m", "flowmaps", "sample", str(tmp_path / "lmd"), "--steps", "2", "--number", "3"]
    subprocess.run([*sample, "--out", str(tmp_path / "samples.npz")], check=True, timeout=120)
    assert np.load(tmp_path / "samples.npz")["x"].shape == (3, 32, 32, 3)
    assert fm.load(tmp_path / "lmd/teacher").net.first.weight.dtype.is_floating_point


def test_a_part_that_fails_or_overruns_costs_itself_alone(tmp_path):
    lost = {"FAIL": "tests,lmd,compiled1", "CLOCK_eager": "1", "CLOCK_lsd": "0"}
    found, printed = visit(tmp_path, **lost)
    status = {entry["part"]: entry["status"] for entry in found["part"]}
    assert {part: status[part] for part in ("tests", "lmd", "compiled1")} == dict.fromkeys(
        ("tests", "lmd", "compiled1"), "failed with code 1"
    )
    assert status["eager"] == "stopped by its clock of 1 s"
    assert status["lsd"] == "stopped by its clock of 0 s"
    done = {"prepare", "teacher", "compiled0", "compiled2", "emd"}
    assert {part for part in PARTS if status[part] == "done"} == done, printed
    assert {entry["part"] for entry in found["training"]} == {"teacher", "emd"}
    assert "an error was asked for by FAIL" in printed
    assert "failed with code 1" in (tmp_path / "report.md").read_text()
