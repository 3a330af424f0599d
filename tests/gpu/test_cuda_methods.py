"""The loss of every method on the device in float32, against the same draw on the CPU in float64."""

from __future__ import annotations

import copy

import cases
import cuda_cases
import pytest
import torch
from cuda_cases import DEVICE, distance
from torch import Tensor

from flowmaps import methods
from flowmaps.interpolants import Linear, WithNoise
from flowmaps.maps import AverageVelocity
from flowmaps.objectives import Objective
from flowmaps.velocities import RandomInputs

pytestmark = cuda_cases.gpu

ROWS, DIM = 13, 3
ROUNDING = {"easy_consistency_tuning": 2e-3}
"""Where the loss multiplies rounding, on a CPU by 300: a norm of small residuals, over small differences of noise."""


def teacher(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """A smooth field that is nothing special."""
    return torch.sin(x.flip(1)) * t[:, None] - 0.3 * x


def drawn(name: str) -> tuple[Objective, RandomInputs]:
    """The objective of a method and its random inputs, float32 numbers on the CPU."""
    rng = cases.generator(3)
    flow_map = AverageVelocity(cases.Network(DIM, 1, 16, torch.float32))
    frozen = AverageVelocity(cases.Network(DIM, 2, 16, torch.float32))
    interpolant = WithNoise(Linear(), 0.5) if name == "fmm" else Linear()
    objective = cases.METHODS[name](flow_map, velocity=teacher, frozen=frozen, interpolant=interpolant)
    cond = torch.randn(ROWS, 2, generator=rng)
    return objective, objective.draw(torch.randn(ROWS, DIM, generator=rng), cond=cond, generator=rng, progress=1.0)


def loss_of(objective: Objective, draw: RandomInputs) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The loss, its parts, and its gradient."""
    loss = objective.evaluate(draw)
    weights = [p for p in objective.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(loss.value, weights, materialize_grads=True)
    return [loss.value], list(loss.parts.values()), list(gradient)


def test_each_method_is_a_case():
    functions = {case.function.__name__ for case in cases.METHODS.values()}
    assert functions >= set(methods.METHODS)


@pytest.mark.parametrize("name", cases.METHODS)
def test_the_loss_is_that_of_the_cpu(name: str):
    objective, draw = drawn(name)
    wanted = loss_of(copy.deepcopy(objective).double(), draw.map(lambda value: value.double()))
    found = loss_of(copy.deepcopy(objective).to(DEVICE), draw.to(DEVICE))
    assert found[0][0].dtype == torch.float32
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(value.device.type == DEVICE.type for value in ours)
        assert distance(ours, theirs) < ROUNDING.get(name, 1e-4)


@pytest.mark.parametrize("name", cases.METHODS)
def test_a_draw_on_the_device_has_a_loss(name: str):
    """All that a method makes itself is on the device of the data."""
    objective = drawn(name)[0].to(DEVICE)
    rng = cuda_cases.generator(4)
    x1, cond = (torch.randn(ROWS, size, device=DEVICE, generator=rng) for size in (DIM, 2))
    draw = objective.draw(x1, cond=cond, generator=rng, progress=1.0)
    draw.map(lambda value: _check_device(value))
    loss, parts, gradient = loss_of(objective, draw)
    for value in (*loss, *parts, *gradient):
        assert value.device.type == DEVICE.type
        assert bool(value.isfinite().all())


def _check_device(value: Tensor) -> Tensor:
    assert value.device.type == DEVICE.type
    return value
