"""What one visit to a GPU brought: its map is sampled as the docs say, and the docs quote its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import program
import pytest
from places import ROOT

GPU = ROOT / "results/gpu"


def figures(kind: str) -> list[dict]:
    lines = (GPU / "figures.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


@pytest.mark.slow
def test_the_map_draws_images_of_the_classes(tmp_path: Path):
    command = re.search(r"flowmaps sample results/gpu/lmd (.*)", (ROOT / "docs/gpu.md").read_text())
    assert command is not None
    words = command[1].replace("--number 100", "--number 20").replace("samples.png", str(tmp_path / "samples.npz"))
    program.run("sample", GPU / "lmd", *words.split())
    drawn = np.load(tmp_path / "samples.npz")["x"].astype(float)
    assert drawn.shape == (20, 32, 32, 3)
    # images, not noise: neighbouring pixels are nearly the same
    assert np.abs(np.diff(drawn, axis=2)).mean() < 0.5 * drawn.std()


def test_the_docs_quote_the_figures():
    page = (ROOT / "docs/gpu.md").read_text()
    samples = figures("samples")
    floor = next(entry["fd"] for entry in samples if entry["part"] == "real")
    teacher = next(entry["fd"] for entry in samples if entry["sampler"] == "dopri5") - floor
    for entry in samples:
        if entry["sampler"] == "map":
            ratio = (entry["fd"] - floor) / teacher
            row = (
                rf"\| {entry['part'].upper()} \| {entry['steps']} \| {entry['nfe']} \| {entry['fd']:.0f} \| {ratio:.2f}"
            )
            assert re.search(row, page), row
    for entry in figures("speed"):
        if entry["compiled"]:
            assert f"| {1e3 * entry['seconds']:.1f} ms |" in page
            assert f"| {100 * entry['utilisation']:.0f} % |" in page
