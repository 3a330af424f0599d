"""`flowmaps doctor`: one screen for a network of the user's own, one line for what goes wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from program import refused, run

from flowmaps.methods import METHODS
from flowmaps.runs import doctor

NETWORKS = """
import torch
from torch import nn

class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.label, self.into, self.out = nn.Embedding(4, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x, s, t, cond=None):
        h = self.into(torch.cat([x, s[:, None], t[:, None]], 1)) + (0 if cond is None else self.label(cond))
        return self.out(nn.functional.silu(h))

def unknown():
    net = Labelled()
    net.out = nn.Sequential(Bessel(), net.out)
    return net

class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)
"""


@pytest.fixture(autouse=True)
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doctor_nets.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(doctor, "ROUNDS", 1)
    monkeypatch.setattr(doctor, "_compiled", lambda examined: "in one graph")


def test_one_screen_says_what_is_right() -> None:
    printed = run("doctor", "doctor_nets:Labelled", "--shape", "3", "--classes", 4, "--batch", 5, "--device", "cpu")
    lines = printed.splitlines()
    assert len(lines) <= 24
    assert lines[0] == "Labelled: 107 parameters, 5 samples of 3"
    for words in ("by a rule", "value, derivative, gradient   right, relative error", "beside a plain forward and",
                  "dual                          ", "times the time", "torch.compile (dual)          in one graph",
                  f"can train it ({len(METHODS)})             lmd,"):  # fmt: skip
        assert words in printed, words
    assert "cannot" not in printed


def test_one_screen_says_what_is_refused_and_the_way_out() -> None:
    printed = run("doctor", "doctor_nets:unknown", "--shape", "3", "--device", "cpu")
    assert "1: special.bessel_j0 (no rule)" in printed
    assert "WRONG OR MISSING: the derivative of Labelled is wrong or missing at 'out.0' (Bessel)" in printed
    assert 'torch                         refused: engine="torch" met' in printed
    assert 'a method refused for its derivative takes engine="finite-difference"' in printed
    assert "psd" in next(line for line in printed.splitlines() if "can train it" in line)
    assert "lsd" in next(line for line in printed.splitlines() if "cannot" in line)


@pytest.mark.parametrize("words, said", [
    (("doctor_nets:Label",), "has no attribute 'Label'"),
    (("doctor_nets",), "doctor takes module:Class, got 'doctor_nets'"),
    (("doctor_nets:Labelled", "--shape", "3,x"), "--shape must be whole numbers with commas, such as 3,32,32"),
    (("doctor_nets:Labelled", "--batch", "0"), "--batch must be positive, got 0"),
    (("doctor_nets:Labelled", "--shape", "2"), "x of shape (16, 2)"),
    (("doctor_nets:Labelled", "--device", "mars"), "--device mars is not there"),
])  # fmt: skip
def test_errors_are_one_line(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture) -> None:
    assert said in refused(capsys, "doctor", *words)
