"""The page "Train your own" does what it says: its lines are run, killed, and run again to the same bytes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

import flowmaps as fm

PAGE = (ROOT / "docs" / "train_your_own.md").read_text(encoding="utf-8")
FIRST, SECOND = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHORTER = FIRST.replace("steps=2_000", "steps=300").replace("checkpoint_every=100", "checkpoint_every=20")


def run(folder: Path, text: str) -> subprocess.Popen[str]:
    """The lines as a script of a user's, in a folder with data."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "data.npy", np.random.default_rng(0).normal(size=(200, 2)))
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return subprocess.Popen([sys.executable, "mine.py"], cwd=folder, stdout=subprocess.PIPE, text=True)


def weights(folder: Path) -> bytes:
    return (folder / "runs" / "mine" / "weights.safetensors").read_bytes()


def test_the_lines_are_few():
    lines = [line for line in FIRST.splitlines() if line.strip()]
    assert len(lines) <= 12


@pytest.mark.slow
def test_the_lines_are_killed_and_go_on_to_the_same_bytes(tmp_path: Path):
    assert SHORTER.count("300") == 1
    assert run(tmp_path / "a", SHORTER).wait(120) == 0
    process = run(tmp_path / "b", SHORTER)
    kept = tmp_path / "b" / "runs" / "mine" / "checkpoints"
    end = time.monotonic() + 100
    while not list(kept.glob("map-*")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "b" / "runs" / "mine" / "weights.safetensors").exists()
    again = run(tmp_path / "b", SHORTER)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    assert "going on from map-" in said
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_the_loop_is_one_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    import torch

    given = {"objective": fm.methods.lsd(fm.maps.AverageVelocity(fm.nn.MLP(2, width=8, depth=2)))}
    given |= {"rows": torch.randn(300, 2), "fm": fm, "torch": torch}
    text = SECOND.replace("steps=2_000", "steps=4").replace("% 500", "% 2")
    assert text != SECOND
    exec(compile(text, "train_your_own.md", "exec"), given)
    said = capsys.readouterr().out
    assert "2 tensor" in said
    assert "4 tensor" in said
