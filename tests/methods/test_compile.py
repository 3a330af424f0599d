"""`torch.compile` of each method's loss, in one graph, equals the eager loss, value and gradient, in float32."""

from __future__ import annotations

import pytest
import torch
from cases import METHODS, Network, generator
from torch import Tensor

from flowmaps.interpolants import Linear, WithNoise
from flowmaps.maps import AverageVelocity
from flowmaps.objectives import Objective

ROWS, DIM = 13, 3
ROUNDING = {"easy_consistency_tuning": 1e-4}
"""Where the loss multiplies rounding: a norm of small residuals, over small differences of noise."""

QUICK = ("lmd-velocity", "lsd", "esd", "psd-uniform", "fmm", "ctm")
"""A case of each equation, of the interpolant's own derivative and of a solver; the others are slow."""
CASES = [
    pytest.param(name, backend, marks=[] if name in QUICK and backend == "aot_eager" else [pytest.mark.slow])
    for backend in ("aot_eager", "inductor")
    for name in METHODS
    if backend == "aot_eager" or name in QUICK
]


def teacher(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """A smooth field that is nothing special."""
    return torch.sin(x.flip(1)) * t[:, None] - 0.3 * x


def gradients(objective: Objective, value: Tensor) -> list[Tensor]:
    """Of the map's parameters, zero where the value does not depend on one."""
    parameters = [p for p in objective.flow_map.parameters() if p.requires_grad]
    return list(torch.autograd.grad(value, parameters, materialize_grads=True))


@pytest.mark.parametrize("name, backend", CASES)
def test_compiled_equals_eager(name: str, backend: str):
    """Each method by the tracing of a compiled step, some by all of it, which takes minutes for all."""
    torch.compiler.reset()
    rng = generator(3)
    flow_map = AverageVelocity(Network(DIM, 1, 16, torch.float32))
    frozen = AverageVelocity(Network(DIM, 2, 16, torch.float32))
    interpolant = WithNoise(Linear(), 0.5) if name == "fmm" else Linear()
    objective = METHODS[name](flow_map, velocity=teacher, frozen=frozen, interpolant=interpolant)
    cond = torch.randn(ROWS, 2, generator=rng)
    draw = objective.draw(torch.randn(ROWS, DIM, generator=rng), cond=cond, generator=rng, progress=1.0)

    eager = objective.evaluate(draw)
    wanted = gradients(objective, eager.value)
    compiled = torch.compile(objective.evaluate, fullgraph=True, backend=backend)(draw)
    got = gradients(objective, compiled.value)

    close = ROUNDING.get(name, 1e-5)
    assert abs(compiled.value - eager.value) <= close * eager.value
    assert compiled.parts.keys() == eager.parts.keys()
    for part, values in eager.parts.items():
        torch.testing.assert_close(compiled.parts[part], values, rtol=close, atol=close * float(values.max()))
    size = max(float(g.norm()) for g in wanted)
    assert size > 1e-3
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).norm() <= close * size
