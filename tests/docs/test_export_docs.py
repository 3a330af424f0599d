"""The page "Export" does what it says: its commands and its code are run in their order, on a short training."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hub_server import instead_of_the_hub
from places import ROOT
from program import run

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)
SHORT = """--no-compile --device cpu --show-every 0 --steps 4 --teacher-steps 4 --network.width 16 --network.depth 2
    --optimiser.batch 32 --evaluation.samples 100 --evaluation.points 20 --evaluation.steps 1"""


@pytest.mark.slow
def test_the_page_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run("train", "checkerboard", "--out", "runs/board", *SHORT.split())
    names: dict = {}
    with instead_of_the_hub(tmp_path / "cache", monkeypatch) as hub:
        for kind, text in BLOCKS:
            if kind == "python":
                exec(compile(text, "export.md", "exec"), names)
                continue
            for line in text.strip().splitlines():
                assert "error against the map in float32" in run(*shlex.split(line)[1:])
    made = {"runs", "board.onnx", "half.onnx", "board.pt2", "map.onnx", "cache"}
    assert {path.name for path in tmp_path.iterdir()} == made
    assert {"README.md", "samples.png", "metrics.json"} < {*hub.files["me/board"]}
    assert names["samples"].shape == (1000, 2)
    assert np.isfinite(names["samples"]).all()
    said = set(names["session"].get_modelmeta().custom_metadata_map)
    assert said <= set(re.findall(r"`(\w+)`", PAGE)) | {"flowmaps"}
    assert json.loads(names["exported"].metadata["times"]) == [0, 0.5, 1]
