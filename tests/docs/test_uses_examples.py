"""The examples of the uses of a map run, with few steps, and their closed forms are right."""

from __future__ import annotations

import importlib.util
from pathlib import Path
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


def test_the_masses_of_the_tilted_boards_are_right():
    uses = example("uses")
    x = uses.BOARD.sample(400_000, torch.Generator().manual_seed(0), torch.float64)
    weights = uses.reward(x).softmax(0)
    cell = ((x + 1) * uses.BINS / 2).long().clamp(0, uses.BINS - 1)
    drawn = torch.zeros(uses.BINS**2, dtype=torch.float64).index_add(0, cell[:, 0] * uses.BINS + cell[:, 1], weights)
    masses = uses.masses_of(uses.reward)
    torch.testing.assert_close(drawn.reshape(masses.shape), masses, atol=2e-3, rtol=0)
    assert float((drawn.reshape(masses.shape) - masses).abs().sum()) < 0.05
    exact = uses.floor_of(masses, uses.reward, 5_000)  # about (bins of positive mass - 1) / (2 N)
    assert 0.5 < exact / ((masses > 0).sum() / 10_000) < 2


def test_the_table_counts_the_evaluations_of_both_sides(monkeypatch: pytest.MonkeyPatch):
    uses = example("uses")
    net = fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=8, depth=1))
    head = fm.uses.WithDivergence(net, fm.nn.MLP(dim=2, width=8, depth=1))
    monkeypatch.setattr(uses, "SOLVERS", {"rk4": (2,)})
    ours, theirs = uses.likelihoods(head, net, 20)
    assert [one.evaluations for one in ours] == [2, 4, 8, 3, 6, 12]  # determinants: the jump and two JVPs
    assert [one.evaluations for one in theirs] == [8 * 3]
    for ours, theirs in uses.laws(net, net, 20).values():
        assert [one.evaluations for one in ours] == [1, 5, 13]  # n jumps, n - 1 times look-ahead, VJP, look-ahead
        assert [one.evaluations for one in theirs] == [8, 8 * 13]


def test_the_table_compares_with_the_cheapest_that_is_as_good(capsys: pytest.CaptureFixture[str]):
    uses = example("uses")
    ode = [uses.Found("a", 0.3, 4), uses.Found("b", 0.1, 20), uses.Found("c", 0.05, 40)]
    uses.show("x", [uses.Found("map", 0.1, 2), uses.Found("other", 0.01, 2)], ode)
    of_map, of_other = capsys.readouterr().out.splitlines()[2:]
    assert of_map.endswith("b: 0.1000 in 20, 10 times")
    assert of_other.endswith("none of 3 tried; least error 0.0500")


def test_one_data_set_becomes_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    between = example("between_data")
    x = between.gaussians(4_000, 0)
    assert (x.norm(dim=1) - 1).abs().mean() < 0.1
    torch.testing.assert_close(between.moons(40_000, 0).mean(0), torch.zeros(2), atol=0.02, rtol=0)
    between.main(["--steps", "2", "--out", str(tmp_path)])
    assert capsys.readouterr().out.count("back with an error of") == 2
    assert (tmp_path / "between.png").exists()


@pytest.mark.slow
def test_the_pictures_of_the_pages_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    uses = example("uses_pictures")
    monkeypatch.setattr(uses, "SIDE", 5)
    for folder in (tmp_path / "run", tmp_path / "run" / "teacher"):
        fm.save(fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=8, depth=1)), folder)
    uses.main([str(tmp_path / "run"), "--steps", "3", "--out", str(tmp_path / "drawn")])
    names = {"certificates", "likelihood", "rewards", "posterior", "physics"}
    assert {path.stem for path in (tmp_path / "drawn").glob("*.png")} == names


@pytest.mark.slow
def test_images_are_carried_and_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = example("image_uses")
    images.main(["--steps", "3", "--number", "40", "--budgets", "8", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert said.count("of the spread") == 3
    assert said.count("the map  ") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"transfer.png", "restoration.png"}
