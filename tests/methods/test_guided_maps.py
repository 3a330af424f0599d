"""Small networks learn the exact guided flow map, from a teacher and from data alone, at one weight and at any.

The data are two Gaussians, each a class, so that the guided velocity b(none) + w (b(label) - b(none)) is a formula;
its flow X_{0,1} comes from a solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmaps import methods
from flowmaps.exact import GaussianMixture
from flowmaps.guidance import Guidance
from flowmaps.losses import Constant
from flowmaps.maps import AverageVelocity, FlowMap
from flowmaps.nn import MLP
from flowmaps.objectives import Objective
from flowmaps.shapes import Condition, GuidedCondition
from flowmaps.solvers import SolverFlow
from flowmaps.times import Diagonal, FromBase, Mixture, Triangle

LAW = GaussianMixture([0.5, 0.5], [[-0.7, 0.2], [0.7, -0.2]], [[[0.4, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.5]]])
ROWS = 1001
CLOSE = 1e-2
"""E |X_{0,1}(x0) - exact|^2 of a map that has learned; without guidance it is 0.1 to 0.4."""
TIMES = Mixture(FromBase(), Triangle(), 0.3)
"""More of the line s = 0 than the triangle has: it is what one-step sampling looks at."""


def noise() -> tuple[Tensor, Tensor, Tensor]:
    """x0, labels, and times 0."""
    x0 = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x0, torch.arange(ROWS) % 2, torch.zeros(ROWS, dtype=torch.float64)


@cache
def exact(w: float) -> Tensor:
    """X_{0,1}(x0) of the guided flow for each label, to eight digits."""
    x0, labels, zero = noise()

    def guided(x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        away = LAW.velocity(x, t)
        return away + w * (LAW.velocity(x, t, cond) - away)

    return SolverFlow(guided, rtol=1e-8, atol=1e-8)(x0, zero, zero + 1, labels)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum(1).mean())


def jump(flow_map: FlowMap, weight: float | None) -> Tensor:
    x0, labels, zero = noise()
    cond = labels if weight is None else GuidedCondition(labels, torch.full((ROWS,), weight))
    with torch.no_grad():
        return flow_map(x0.float(), zero.float(), zero.float() + 1, cond).double()


def train(make: Callable[[FlowMap], Objective], steps: int, batch: int, *, guidance: bool = False) -> FlowMap:
    """A small network after `steps` of Adam with a cosine decay."""
    torch.manual_seed(0)
    flow_map = AverageVelocity(MLP(2, width=64, depth=2, classes=2, guidance=guidance))
    objective = make(flow_map)
    weights = list(flow_map.parameters())
    optimiser = torch.optim.Adam(weights, fused=True)
    rng = torch.Generator().manual_seed(2)
    for k in range(steps):
        x1, labels = LAW.sample_with_labels(batch, rng, torch.float32)
        loss = objective(x1, cond=labels, generator=rng, progress=k / steps).value
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 1.5e-2 * min(1, (k + 1) / 50) * 0.5 * (1 + math.cos(math.pi * k / steps))
        optimiser.step()
    return flow_map


def teacher(x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
    return LAW.velocity(x, t, cond)


def test_the_unguided_map_is_far_from_the_guided_one():
    """So that these tests can fail; and the flow at w = 1 is that of the labelled class."""
    x0, labels, zero = noise()
    torch.testing.assert_close(exact(1.0), LAW.flow_map(x0, zero, zero + 1, labels), rtol=1e-6, atol=1e-6)
    assert distance(exact(2.0), exact(1.0)) > 15 * CLOSE
    assert distance(exact(2.5), exact(1.5)) > 8 * CLOSE


DIRECT = {"classes": 2, "dropout": 0.2}
PLAIN: dict[str, Any] = {"times": TIMES, "diagonal": Diagonal(), "weight": Constant()}
METHODS: dict[str, tuple[Callable[[FlowMap], Objective], int, int]] = {
    "lmd": (lambda m: methods.lmd(m, teacher=teacher, guidance=Guidance(2.0, dropout=0), times=TIMES), 500, 512),
    "lsd": (lambda m: methods.lsd(m, guidance=Guidance(2.0, mix=0.5, **DIRECT), times=TIMES), 1200, 1024),
    "psd": (
        lambda m: methods.psd(m, guidance=Guidance(2.0, mix=0.5, **DIRECT), times=TIMES, share=0.3, midpoint=True),
        1500,
        1024,
    ),
    "meanflow": (
        lambda m: methods.meanflow(m, guidance=Guidance(2.0, mix=0.5, **DIRECT), share=0.5, **PLAIN),
        1500,
        1024,
    ),
    "improved_meanflow": (
        lambda m: methods.improved_meanflow(m, guidance=Guidance(2.0, mix=None, **DIRECT), **PLAIN),
        1500,
        1024,
    ),
}
"""The objective, the steps and the batch."""


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_the_guided_map(name: str):
    make, steps, batch = METHODS[name]
    out = jump(train(make, steps, batch), None)
    print(f"{name}: {distance(out, exact(2.0)):.2e}")
    assert distance(out, exact(2.0)) < CLOSE
    assert distance(out, exact(1.0)) > 10 * CLOSE


WEIGHTED: dict[str, tuple[Callable[[FlowMap], Objective], int, int]] = {
    "lmd": (lambda m: methods.lmd(m, teacher=teacher, guidance=Guidance((1.0, 3.0), dropout=0), times=TIMES), 500, 512),
    "lsd": (
        lambda m: methods.lsd(m, guidance=Guidance((1.0, 3.0), mix=None, **DIRECT), times=TIMES),
        2000,
        1024,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTED)
def test_one_network_learns_the_guided_maps_of_all_weights(name: str):
    """The weight is an input, drawn in [1, 3]: one map, sampled at two weights."""
    make, steps, batch = WEIGHTED[name]
    flow_map = train(make, steps, batch, guidance=True)
    for w, other in ((1.5, 2.5), (2.5, 1.5)):
        out = jump(flow_map, w)
        print(f"{name} at {w}: {distance(out, exact(w)):.2e}")
        assert distance(out, exact(w)) < CLOSE
        assert distance(out, exact(other)) > 5 * CLOSE
