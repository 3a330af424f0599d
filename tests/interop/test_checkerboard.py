"""Models of other libraries on the checkerboard, distilled: their jumps against their own solvers.

The error is `fm.metrics.map_error`, the mean squared distance to the points that the model's own solver reaches from
the same 4,096 draws of noise. The data have a mean square of 2/3. Run with -s to see the figures.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from interop import boards
from torch import Tensor

import flowmaps as fm
from flowmaps import interop
from flowmaps.interop import Model

NOISE = torch.randn(4_096, 2, generator=torch.Generator().manual_seed(7))
DATA = boards.BOARD.sample(100_000, torch.Generator().manual_seed(3))
ONE_STEP, FOUR_STEPS = 0.02, 0.005
pytestmark = pytest.mark.slow


def starts_exactly(model: Model) -> None:
    """Before any training u_{t,t} is the teacher's velocity."""
    x, t = NOISE[:500] + DATA[:500], torch.linspace(0, 1, 500)
    assert model.exact
    torch.testing.assert_close(model.student.velocity(x, t), model.teacher(x, t), rtol=0, atol=0)


def distil(model: Model, own: Tensor, folder: Path, *, steps: int, rate: float, batch: int = 512) -> None:
    """By LMD; the map is read again before it is measured."""
    begun = time.process_time()
    objective = fm.methods.lmd(model.student, teacher=model.teacher, times=model.times)
    settings = {"learning_rate": rate, "decay": "cosine", "device": "cpu", "say": lambda text: None}
    fm.fit(objective, DATA, steps=steps, batch=batch, **settings)  # type: ignore[arg-type]
    seconds = time.process_time() - begun
    loaded = fm.load(model.save(folder))
    with torch.no_grad():
        error = {n: fm.metrics.map_error(fm.samplers.Jump(n)(loaded, NOISE), own) for n in (1, 2, 4)}
    found = ", ".join(f"{value:.5f} in {n}" for n, value in error.items())
    print(f"\n{folder.name}: {steps:,} steps of {batch} in {seconds:.0f} s; map error {found}")
    assert error[1] <= ONE_STEP
    assert error[4] <= FOUR_STEPS


def test_a_model_of_torchcfm(tmp_path: Path):
    pytest.importorskip("torchcfm", reason="torchcfm is not installed: pip install --no-deps torchcfm")
    net = boards.of_torchcfm(steps=3_000)
    model = interop.velocity(net, order="concatenated", embedding="net.0")
    starts_exactly(model)
    distil(model, boards.by_torchdiffeq(net, NOISE), tmp_path / "torchcfm", steps=2_000, rate=2e-3)


def test_a_model_of_flow_matching(tmp_path: Path):
    """On its cosine path, which is not that of the student."""
    reason = "flow_matching is not installed: pip install --no-deps flow_matching"
    paths = pytest.importorskip("flow_matching.path", reason=reason)
    path = paths.AffineProbPath(paths.scheduler.CosineScheduler())
    net = boards.of_flow_matching(path, steps=3_000)
    model = interop.flow_matching(net, path, embedding="layers.0")
    starts_exactly(model)
    distil(model, boards.by_flow_matching(net, NOISE), tmp_path / "flow_matching", steps=2_000, rate=2e-3)


def test_a_ddpm(tmp_path: Path):
    """Which predicts noise, so that its student learns the velocity first."""
    net = boards.of_ddpm(steps=3_000, width=64)
    model = interop.ddpm(net, boards.ABAR, embedding="layers.0")
    assert not model.exact
    begun = time.process_time()
    settings = {"learning_rate": 2e-3, "decay": "cosine", "device": "cpu", "say": lambda text: None}
    model.warm_start(DATA, 2_000, batch=512, **settings)
    print(f"\nwarm start: 2,000 steps in {time.process_time() - begun:.0f} s")
    distil(model, boards.by_ddim(net, NOISE), tmp_path / "ddpm", steps=2_000, rate=2e-3)


def test_an_edm(tmp_path: Path):
    net = boards.of_edm(steps=3_000)
    model = interop.edm(net, data_std=boards.SPREAD, embedding="model.layers.0")
    starts_exactly(model)
    distil(model, boards.by_heun(net, NOISE), tmp_path / "edm", steps=3_000, rate=2e-3)
