"""`flowmaps train --net module:Class`: a network of the user's own, named again wherever its map is read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import flowmaps as fm
from flowmaps.cli.main import main
from flowmaps.runs.folder import RunFolder
from flowmaps.runs.recipes import RECIPES

SMALL = ["--steps", "2", "--teacher-steps", "2", "--checkpoint-every", "2", "--optimiser.batch", "8", "--device", "cpu"]
CHEAP = ["--evaluation.samples", "100", "--evaluation.points", "10", "--evaluation.steps", "1", "--show-every", "0"]
TRAIN = ["train", "checkerboard", *SMALL, *CHEAP]

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.hidden = layers

    def forward(self, x, s, t, cond=None):
        return self.hidden(torch.cat([x, s[:, None], t[:, None]], 1))

def make():
    return Net(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)))

class OneTime(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)

    def forward(self, x, t):
        return super().forward(x)

def number():
    return 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_nets"
    sys.modules.pop("own_nets", None)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.strip().splitlines()[-1].split())


@pytest.mark.slow
def test_a_network_of_the_users_own_is_trained_resumed_sampled_and_exported(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """By a function whose class cannot be built from a card; the resumed run ends with the weights of the other."""
    once, twice, net = tmp_path / "once", tmp_path / "twice", ["--net", f"{module}:make"]
    main([*TRAIN, *net, "--no-compile", "--out", str(once)])
    said = " ".join(capsys.readouterr().out.split())
    assert "trained: 4 steps in" in said
    assert " of memory on cpu" in said
    main([*TRAIN, *net, "--no-compile", "--out", str(twice), "--minutes", "1e-9"])
    main([*TRAIN, *net, "--no-compile", "--out", str(twice), "--resume"])
    one, other = ((RunFolder.open(folder, f"{module}:make").load_map().state_dict()) for folder in (once, twice))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    card = json.loads((once / "config.json").read_text())
    assert card["recipe"]["net"] == f"{module}:make"
    assert card["map"]["net"]["class"] == f"{module}.Net"
    sample = ["sample", str(once), "--steps", "2", "--number", "7", "--out", str(tmp_path / "x.npy")]
    assert refused(sample, capsys).endswith(f"name it again, with --net {module}:make.")
    sys.modules.pop(module)  # as in another process
    main([*sample, *net])
    assert np.load(tmp_path / "x.npy").shape == (7, 2)
    main(["evaluate", str(once), "--steps", "2", *net])
    main(["export", str(once), "--out", str(tmp_path / "x.pt2"), *net])
    main([*TRAIN, *net, "--no-compile", "--teacher", str(once / "teacher"), "--out", str(tmp_path / "again")])
    own = fm.load(once, net=sys.modules[module].make())
    assert fm.samplers.Jump(1)(own, torch.randn(3, 2)).shape == (3, 2)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--net", "own_nets:Net"], "own_nets:Net gives no network (TypeError"),
        (["--net", "own_nets:number"], "own_nets:number gives a int, not an nn.Module"),
        (["--net", "no_such_nets:Net"], "the module no_such_nets cannot be imported"),
        (["--net", "own_nets:Other"], "name a class or a function of the module own_nets"),
        (["--net", "own_nets"], "--net takes module:Class, got 'own_nets'"),
        (["--net", "own_nets:OneTime"], "a network of one time becomes one of two by fm.nn.TwoTimes(net)"),
        (["--net", "own_nets:make", "--network.width", "8"], "--network.width is of the recipe's own network"),
        (["--net", "own_nets:make", "--method", "easy_consistency_tuning"], "needs a method zero_second_time()"),
        (["--lora", "4"], "--lora is for a --teacher of another library"),
    ],
)
def test_what_is_no_network_of_two_times_is_refused_in_a_line(
    words: list[str], line: str, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert module
    assert line in refused([*TRAIN, "--check", *words], capsys)


def test_a_run_of_a_network_of_flowmaps_takes_no_other(module: str, tmp_path: Path):
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(2, width=4, depth=1))
    folder = fm.save(flow_map, tmp_path / "map", extra={"recipe": asdict(RECIPES["checkerboard"]())})
    with pytest.raises(ValueError, match=r"is a run of a network of flowmaps, got --net own_nets:make"):
        RunFolder.open(folder, f"{module}:make")
