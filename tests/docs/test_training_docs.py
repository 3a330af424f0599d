"""The commands of docs/training.md that make a run longer and begin one from another's weights, with fewer steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from places import ROOT

from flowmaps.cli.main import main
from flowmaps.runs.folder import RunFolder

SMALL = """--no-compile --device cpu --teacher-steps 1 --network.width 8 --network.depth 2 --optimiser.batch 16
           --show-every 0 --evaluation.samples 100 --evaluation.points 10 --evaluation.steps 1
           --evaluation.solver-tolerance 0.1"""


def test_the_lines_of_the_warm_up_run(capsys: pytest.CaptureFixture):
    page = (ROOT / "docs" / "training.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    small = block.replace("dim=2", "dim=2, width=8, depth=2").replace("10_000", "300")
    small = re.sub(r"steps=\d_000\)", 'steps=3, batch=16, device="cpu", compile=False)', small)
    assert small.count("steps=3") == 3
    given: dict = {}
    exec(compile(small, "training.md", "exec"), given)
    assert given["samples"].shape == (300, 2)
    assert given["samples"].isfinite().all()


@pytest.mark.slow
def test_the_commands_for_a_longer_run_and_one_from_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "training.md").read_text()
    (block,) = (block for block in re.findall(r"```\n(.*?)```", page, re.S) if "--from-run" in block)
    steps, starts = [], []
    for line in re.sub(r"(\d)000\b", r"\1", block).splitlines():
        main([*line.split()[1:], *SMALL.split()])
        opened = RunFolder.open(Path(line.split("--out ")[1].split()[0]))
        steps.append(opened.trained_steps)
        starts.append(opened.recipe.from_run)
        assert opened.finished
        assert all(torch.isfinite(value).all() for value in opened.load_map().parameters())
    assert steps == [3, 5, 3]  # a method without a teacher has the steps of one too
    assert starts == ["", "", str(tmp_path / "runs" / "short")]
