"""The examples of the uses of a map run, with few steps, and their closed forms are right."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch
from places import ROOT

import flowmaps as fm


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pendulum_swings(capsys: pytest.CaptureFixture[str]):
    pendulum = example("pendulum")
    x = pendulum.states(50, torch.Generator().manual_seed(0)).double()
    one = torch.ones(50, dtype=torch.float64)
    end = fm.solvers.SolverFlow(pendulum.motion, rtol=1e-9, atol=1e-9)(x, 0 * one, one)
    torch.testing.assert_close(pendulum.energy(end), pendulum.energy(x), atol=1e-6, rtol=0)  # it is kept
    small = torch.tensor([[0.01, 0.0]], dtype=torch.float64)
    end = fm.solvers.SolverFlow(pendulum.motion, rtol=1e-9, atol=1e-9)(small, 0 * one[:1], one[:1])
    angle = torch.tensor(pendulum.SPAN)
    torch.testing.assert_close(end, 0.01 * torch.stack([angle.cos(), -angle.sin()])[None].double(), atol=1e-6, rtol=0)
    pendulum.main(2)
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_the_tilted_mixture_of_the_table_is_right():
    uses = example("uses")
    law = uses.product(torch.tensor([0.5, 0.3]).double(), torch.diag(torch.tensor([2.0, 0.5])).double())
    line = torch.linspace(-5, 5, 201, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    tilt = -(x[:, 0] - 0.5).square() - 0.25 * (x[:, 1] - 0.3).square()
    mass = (uses.LAW.log_density(x) + tilt).softmax(0)
    torch.testing.assert_close(mass @ x, law.weights @ law.means, atol=1e-6, rtol=0)
    torch.testing.assert_close(mass, law.log_density(x).softmax(0), atol=1e-8, rtol=0)


def test_the_table_counts_the_evaluations_of_both_sides(monkeypatch: pytest.MonkeyPatch):
    uses = example("uses")
    monkeypatch.setattr(uses, "ROWS", 20)
    net = fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=8, depth=1))
    head = fm.uses.WithDivergence(net, fm.nn.MLP(dim=2, width=8, depth=1))
    solved = fm.solvers.SolverFlow(uses.LAW.velocity, method="rk4", steps=2)
    ours, theirs = uses.rows_of(net, head, 2), uses.rows_of(solved, None, 2)
    assert [evaluations for _, evaluations in ours] == [4, 13, 13]  # 4 jumps, 3 times look-ahead, VJP, look-ahead
    assert [evaluations for _, evaluations in theirs] == [8 * 3, 8 * 13, 8 * 13]
