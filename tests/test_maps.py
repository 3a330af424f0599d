"""Flow maps: the identity at s = t, regular averages, and wrappers that are what they wrap."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowmaps.exact import Gaussian
from flowmaps.maps import AverageVelocity, Composed, Endpoint, FlowMap, Frozen, Trigonometric
from flowmaps.samplers import Jump
from flowmaps.solvers import SolverFlow

BATCH = 7
EXACT = Gaussian([1.0, -2.0, 0.5], [[0.5, 0.1, 0.0], [0.1, 0.3, 0.0], [0.0, 0.0, 1.5]])


class Wavy(nn.Module):
    """A smooth network that is far from zero, with a parameter and a dropout that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(5, 3, generator=generator, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        h = torch.cat([x, s[:, None], t[:, None]], 1) @ self.matrix
        h = torch.sin(h) + x
        return self.dropout(h if cond is None else h + cond[:, None])


MAPS: list[Callable[[], FlowMap]] = [
    lambda: AverageVelocity(Wavy()).eval(),
    lambda: Endpoint(Wavy()).eval(),
    lambda: Trigonometric(Wavy()).eval(),
    lambda: Composed(AverageVelocity(Wavy()), 3).eval(),
    lambda: Composed(Trigonometric(Wavy()), 2).eval(),
    lambda: Frozen(AverageVelocity(Wavy())),
    lambda: SolverFlow(EXACT.velocity, method="rk4", steps=3),
]


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, 3, generator=generator, dtype=torch.float64)
    s, t = torch.rand(2, BATCH, generator=generator, dtype=torch.float64)
    return x, s, t


@pytest.mark.parametrize("make", MAPS)
def test_a_jump_to_the_same_time_is_the_identity(make: Callable[[], FlowMap]):
    x, s, _ = batch()
    for time in (s, torch.zeros_like(s), torch.ones_like(s)):
        assert torch.equal(make()(x, time, time), x)


@pytest.mark.parametrize("make", MAPS)
def test_the_jump_is_the_point_plus_time_times_average(make: Callable[[], FlowMap]):
    x, s, t = batch()
    flow_map = make()
    u = flow_map.average_velocity(x, s, t)
    torch.testing.assert_close(flow_map(x, s, t), x + (t - s)[:, None] * u)
    torch.testing.assert_close((flow_map(x, s, t) - x) / (t - s)[:, None], u)


@pytest.mark.parametrize("make", MAPS)
def test_the_average_tends_to_the_velocity_from_both_sides(make: Callable[[], FlowMap]):
    """u is regular at s = t: |u_{t, t+h} - u_{t,t}| falls like |h|."""
    x, s, _ = batch()
    t = 0.2 + 0.6 * s
    flow_map = make()
    v = flow_map.velocity(x, t)
    for sign in (1, -1):
        errors = [
            float((flow_map.average_velocity(x, t, t + sign * h) - v).detach().abs().max()) for h in (1e-2, 1e-4, 1e-6)
        ]
        assert errors[0] < 0.5
        assert errors[1] < 2e-2 * errors[0]
        assert errors[2] < 2e-2 * errors[1] + 1e-9


@pytest.mark.parametrize("make", MAPS)
def test_the_jump_is_tangent_to_the_velocity(make: Callable[[], FlowMap]):
    """lim_{s -> t} d_t X_{s,t} = v_t."""
    x, s, _ = batch()
    t, h = 0.2 + 0.6 * s, 1e-5
    flow_map = make()
    slope = (flow_map(x, t, t + h) - flow_map(x, t, t - h)) / (2 * h)
    torch.testing.assert_close(slope, flow_map.velocity(x, t), rtol=1e-6, atol=1e-6)


def test_parametrisations_against_their_papers_formulas():
    x, s, t = batch()
    net = Wavy().eval()
    out, column = net(x, s, t), lambda time: time[:, None]
    torch.testing.assert_close(AverageVelocity(net)(x, s, t), x + column(t - s) * out)
    # CTM (2310.02279, equation 9) in this library's time: x and the network's point, weighted by times to the end
    ctm = column((1 - t) / (1 - s)) * x + column(1 - (1 - t) / (1 - s)) * out
    torch.testing.assert_close(Endpoint(net)(x, s, t), ctm)
    torch.testing.assert_close(Endpoint(net)(x, s, torch.ones_like(t)), net(x, s, torch.ones_like(t)))
    angle = 0.5 * math.pi * column(t - s)
    torch.testing.assert_close(Trigonometric(net)(x, s, t), torch.cos(angle) * x + torch.sin(angle) * out)


def test_the_trigonometric_velocity_is_trigflow():
    """d/dt (cos x + sin F) at s = t is pi/2 F (2410.11081)."""
    x, _, t = batch()
    net = Wavy().eval()
    torch.testing.assert_close(Trigonometric(net).velocity(x, t), 0.5 * math.pi * net(x, t, t))


def test_endpoint_stays_finite_at_the_data_end():
    x, s, _ = batch()
    one = torch.ones_like(s)
    net = Wavy().eval()
    torch.testing.assert_close(Endpoint(net, floor=0.01).velocity(x, one), (net(x, one, one) - x) / 0.01)


@pytest.mark.parametrize("legs", [1, 2, 5])
def test_composed_is_the_loop_of_jumps(legs: int):
    x, s, t = batch()
    flow_map = AverageVelocity(Wavy()).eval()
    y = x
    for k in range(legs):
        y = flow_map(y, s + (t - s) * k / legs, s + (t - s) * (k + 1) / legs)
    torch.testing.assert_close(Composed(flow_map, legs)(x, s, t), y)
    zero = torch.zeros_like(s)
    jumped = Jump(legs)(flow_map, x)
    torch.testing.assert_close(Composed(flow_map, legs)(x, zero, zero + 1), jumped)


def test_composing_an_exact_flow_changes_nothing():
    x, s, t = batch()
    exact = SolverFlow(EXACT.velocity, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(Composed(exact, 3)(x, s, t), EXACT.flow_map(x, s, t), rtol=1e-8, atol=1e-8)


def test_composed_passes_gradients_and_conditions_to_its_map():
    x, s, t = batch()
    flow_map = AverageVelocity(Wavy()).eval()
    cond = torch.full((BATCH,), 0.3, dtype=torch.float64)
    composed = Composed(flow_map, 2)
    assert not torch.allclose(composed(x, s, t, cond), composed(x, s, t))
    (gradient,) = torch.autograd.grad(composed(x, s, t).sum(), flow_map.net.matrix)  # type: ignore[arg-type]
    assert float(gradient.abs().min()) > 0


def test_conditions_reach_the_network():
    x, s, t = batch()
    cond = torch.arange(BATCH, dtype=torch.float64)
    for make in MAPS[:-1]:
        change = make()(x, s, t, cond) - make()(x, s, t)
        assert not torch.allclose(change, torch.zeros_like(x))
    flow_map = AverageVelocity(Wavy()).eval()
    torch.testing.assert_close(flow_map.velocity(x, t, cond) - flow_map.velocity(x, t), cond[:, None].expand(-1, 3))


def test_a_frozen_map_keeps_its_weights_until_refreshed():
    x, s, t = batch()
    flow_map = AverageVelocity(Wavy()).eval()
    frozen = Frozen(flow_map)
    before = flow_map(x, s, t)
    with torch.no_grad():
        flow_map.net.matrix.mul_(1.5)  # type: ignore[operator, union-attr]
    assert torch.equal(frozen(x, s, t), before)
    frozen.refresh(flow_map)
    assert torch.equal(frozen(x, s, t), flow_map(x, s, t))
    assert not torch.allclose(frozen(x, s, t), before)
    assert flow_map.net.matrix.requires_grad  # type: ignore[union-attr]  # the map itself is not frozen


def test_a_frozen_map_takes_no_gradient_but_passes_one_to_its_input():
    x, s, t = batch()
    frozen = Frozen(AverageVelocity(Wavy()))
    x = x.requires_grad_(True)
    frozen(x, s, t).sum().backward()
    assert [p.grad for p in frozen.parameters()] == [None]
    assert x.grad is not None
    assert float(x.grad.abs().min()) > 0


def test_a_frozen_map_stays_in_evaluation_mode():
    x, s, t = batch()
    frozen = Frozen(AverageVelocity(Wavy().train()))
    whole = nn.ModuleList([frozen]).train()
    assert whole.training
    assert not any(module.training for module in frozen.modules())
    assert torch.equal(frozen(x, s, t), frozen(x, s, t))  # no dropout


def test_times_and_networks_that_are_refused():
    x, s, t = batch()
    for flow_map in (make() for make in MAPS):
        with pytest.raises(ValueError, match=r"s must have shape \(7,\)"):
            flow_map(x, s[:, None], t)
        with pytest.raises(ValueError, match=r"t must have shape \(7,\).*got \(3,\)"):
            flow_map(x, s, t[:3])
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            flow_map(x, s, t + 1)
        with pytest.raises(ValueError, match="s must be a tensor"):
            flow_map(x, 0.0, t)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        MAPS[0]().velocity(x, t - 2)

    class Narrow(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return x[:, :2]

    for kind in (AverageVelocity, Endpoint, Trigonometric):
        with pytest.raises(ValueError, match=r"Narrow must return the shape of its input x \(7, 3\), got \(7, 2\)"):
            kind(Narrow())(x, s, t)
    with pytest.raises(ValueError, match="legs >= 1, got 0"):
        Composed(MAPS[0](), 0)
    for floor in (0.0, 1.0):
        with pytest.raises(ValueError, match="0 < floor < 1"):
            Endpoint(Wavy(), floor)
