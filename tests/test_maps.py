"""Flow maps: the identity at s = t, regular averages, and wrappers that are what they wrap."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowmaps.exact import Gaussian
from flowmaps.interpolants import Interpolant, Linear, VarianceExploding, VariancePreserving
from flowmaps.interpolants import Trigonometric as TrigonometricPath
from flowmaps.maps import (
    AverageVelocity,
    Composed,
    DetachedWeights,
    Endpoint,
    FlowMap,
    Preconditioned,
    Target,
    Trigonometric,
    VelocityForShortJumps,
)
from flowmaps.samplers import Jump
from flowmaps.schedules import Halving
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
    lambda: VelocityForShortJumps(Endpoint(Wavy()), 0.2).eval(),
    lambda: Endpoint(Preconditioned(Wavy(), Linear())).eval(),
    lambda: Target(AverageVelocity(Wavy())),
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
        assert errors[1] <= 2e-2 * errors[0]  # zero where near jumps are taken with the velocity
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
    frozen = Target(flow_map)
    before = flow_map(x, s, t)
    with torch.no_grad():
        flow_map.net.matrix.mul_(1.5)  # type: ignore[operator, union-attr]
    assert torch.equal(frozen(x, s, t), before)
    frozen.copy_from(flow_map)
    assert torch.equal(frozen(x, s, t), flow_map(x, s, t))
    assert not torch.allclose(frozen(x, s, t), before)
    assert flow_map.net.matrix.requires_grad  # type: ignore[union-attr]  # the map itself is not frozen


def test_a_frozen_map_takes_no_gradient_but_passes_one_to_its_input():
    x, s, t = batch()
    frozen = Target(AverageVelocity(Wavy()))
    x = x.requires_grad_(True)
    frozen(x, s, t).sum().backward()
    assert [p.grad for p in frozen.parameters()] == [None]
    assert x.grad is not None
    assert float(x.grad.abs().min()) > 0


def test_a_frozen_map_stays_in_evaluation_mode():
    x, s, t = batch()
    frozen = Target(AverageVelocity(Wavy().train()))
    whole = nn.ModuleList([frozen]).train()
    assert whole.training
    assert not any(module.training for module in frozen.modules())
    assert torch.equal(frozen(x, s, t), frozen(x, s, t))  # no dropout


# the output held fixed -----------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A network that returns one tensor, whatever it is asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.output


class Along(nn.Module):
    """The network of an `Endpoint` whose velocity is fixed."""

    def __init__(self, output: Tensor, at: Tensor) -> None:
        super().__init__()
        self.output, self.at = output, at

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.output + x - self.at


HELD: dict[str, tuple[Callable[[nn.Module], FlowMap], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "average-velocity": (AverageVelocity, lambda n, x, s: n),
    "endpoint": (Endpoint, lambda n, x, s: (n - x) / (1 - s)[:, None]),
    "trigonometric": (Trigonometric, lambda n, x, s: 0.5 * math.pi * n),
}
"""The maps with a network n, and n read as the velocity that it stands for at its start, u_{s,s}."""


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("meeting", [False, True])
def test_held_is_the_factor_of_the_point_and_the_output_as_a_velocity(name: str, meeting: bool):
    """X_{s,t}(x) = a x + c v, v the output read as a velocity: a = dX / dx with v fixed; 1 at s = t."""
    build, velocity = HELD[name]
    x, s, t = batch()
    t = s if meeting else t
    n = batch(1)[0]
    flow_map = build(Fixed(n))
    factor, output = flow_map.decompose(x, s, t, flow_map.average_velocity(x, s, t))
    y = x.clone().requires_grad_()
    if name == "endpoint":  # there v = (n - x) / (1 - s): fixed, n moves with x
        flow_map = build(Along(n, x))
    (slope,) = torch.autograd.grad(flow_map(y, s, t).sum(), y)  # diagonal: row by row, axis by axis
    torch.testing.assert_close(factor[:, None].expand_as(x), slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output, velocity(n, x, s), rtol=1e-10, atol=1e-10)
    if meeting:
        torch.testing.assert_close(factor, torch.ones_like(s))
        torch.testing.assert_close(output, flow_map.velocity(x, s))


@pytest.mark.parametrize("name", HELD)
def test_held_stays_finite_over_the_whole_of_time(name: str):
    build, _ = HELD[name]
    x = batch()[0][:4]
    s, t = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    flow_map = build(Fixed(batch(1)[0][:4]))
    factor, output = flow_map.decompose(x, s, t, flow_map.average_velocity(x, s, t))
    assert bool(factor.isfinite().all())
    assert bool(output.isfinite().all())


def test_held_gives_the_two_brackets_of_scm():
    """-(2/pi) cos(tp) (dX_{s,1}/ds) = -cos^2(tp) (F - dx/dtp) - cos sin (x + dF/dtp) (2410.11081, algorithm 1).

    Its first bracket, all that is left at the start of the warm-up, is a^2 (v - b) with a and v from `decompose`.
    """
    x, s, _ = batch()
    b, (n, n_dot) = batch(2)[0], (batch(1)[0], batch(3)[0])
    one, column = torch.ones_like(s), lambda time: time[:, None]
    flow_map = Trigonometric(Fixed(n))
    a, v = flow_map.decompose(x, s, one, flow_map.average_velocity(x, s, one))
    tp = 0.5 * math.pi * (1 - s)  # their time: noise at pi / 2
    torch.testing.assert_close(a, torch.cos(tp))
    # their network points from the data to the noise, F = -n, and their time runs so too: d/dtp = -(2 / pi) d/ds
    first = -column(torch.cos(tp) ** 2) * (-n + 2 / math.pi * b)
    torch.testing.assert_close(0.5 * math.pi * first, column(a**2) * (v - b))
    second = -column(torch.cos(tp) * torch.sin(tp)) * (x + 2 / math.pi * n_dot)
    # dX/ds along (b, 1), the output moving by n_dot
    angle = column(tp)
    slope = torch.cos(angle) * b + torch.sin(angle) * n_dot
    slope = slope + 0.5 * math.pi * (torch.sin(angle) * x - torch.cos(angle) * n)
    torch.testing.assert_close(first + second, -2 / math.pi * column(a) * slope)


# near jumps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_near_jumps_are_taken_with_the_velocity(sign: int):
    """u_{s,s} up to the step, both directions of time, u_{s,t} beyond: the smallest legs of shortcut models."""
    x, _, _ = batch()
    flow_map = AverageVelocity(Wavy()).eval()
    near = VelocityForShortJumps(flow_map, 2.0**-7)
    s = torch.full((BATCH,), 0.5, dtype=torch.float64)
    t = s + sign * torch.tensor([0, 0.25, 0.999, 1, 1 + 1e-7, 1.01, 40], dtype=torch.float64) / 128
    u = near.average_velocity(x, s, t)
    v, far = flow_map.velocity(x, s), flow_map.average_velocity(x, s, t)
    torch.testing.assert_close(u[:5], v[:5], rtol=0, atol=0)  # rounding of a grid time does not make it far
    torch.testing.assert_close(u[5:], far[5:], rtol=0, atol=0)
    assert float((v - far)[5:].detach().abs().min()) > 1e-6
    torch.testing.assert_close(near(x, s, t), x + (t - s)[:, None] * u)


def test_near_passes_conditions_on():
    x, s, t = batch()
    cond = torch.arange(BATCH, dtype=torch.float64)
    for step in (0.0, 0.5, 1.0):
        near = VelocityForShortJumps(AverageVelocity(Wavy()), step).eval()
        change = near.average_velocity(x, s, t, cond) - near.average_velocity(x, s, t)
        torch.testing.assert_close(change, cond[:, None].expand_as(x))


# copies that follow --------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """One weight, a buffer of numbers and one of counts."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.register_buffer("mean", torch.tensor([10 * value], dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(int(value)))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.weight * x


def counted(value: float) -> AverageVelocity:
    return AverageVelocity(Counted(value))


def set_to(flow_map: AverageVelocity, value: float) -> None:
    flow_map.load_state_dict(counted(value).state_dict())


def test_a_moving_average_has_its_closed_form():
    """theta- <- mu theta- + (1 - mu) theta after each step: mu^n theta_0 + (1 - mu) sum mu^(n-k) theta_k."""
    flow_map, mu = counted(1.0), 0.9
    frozen = Target(flow_map, decay=mu)
    assert frozen.moves
    values = [math.sin(3 * k) for k in range(1, 21)]
    for k, value in enumerate(values):
        set_to(flow_map, value)
        frozen.update(flow_map, k / 20, (k + 1) / 20)
    expected = mu**20 + (1 - mu) * sum(mu ** (19 - k) * value for k, value in enumerate(values))
    inner = frozen.flow_map.net
    assert inner.weight.item() == pytest.approx(expected, rel=1e-12)
    assert float(inner.mean) == pytest.approx(10 * expected, rel=1e-12)  # buffers of numbers follow too
    assert int(inner.seen) == int(values[-1])  # counts cannot be averaged: the last one
    assert flow_map.net.weight.item() == values[-1]  # the map itself stays as it is
    assert not inner.weight.requires_grad


def test_a_decay_of_zero_is_the_map_after_each_step():
    flow_map = counted(1.0)
    frozen = Target(flow_map, decay=0.0)
    set_to(flow_map, 3.0)
    frozen.update(flow_map, 0.0, 0.1)
    assert frozen.flow_map.net.weight.item() == 3


@pytest.mark.parametrize("rounds", [1, 3, 6])
@pytest.mark.parametrize("total", [60, 49])
def test_rounds_refresh_the_copy_at_their_ends_alone(rounds: int, total: int):
    """Step k takes progress from k / total to (k + 1) / total; the copy is made when a round is over."""
    flow_map = counted(0.0)
    frozen = Target(flow_map, rounds=rounds)
    changes = []
    for k in range(total):
        set_to(flow_map, k + 1)
        before = frozen.flow_map.net.weight.item()
        frozen.update(flow_map, k / total, (k + 1) / total)
        after = frozen.flow_map.net.weight.item()
        assert after in (before, k + 1)
        if after != before:
            changes.append(k + 1)
    assert changes == [math.ceil(j * total / rounds) for j in range(1, rounds + 1)]


def test_a_copy_without_a_rule_does_not_follow():
    flow_map = counted(1.0)
    frozen = Target(flow_map)
    assert not frozen.moves
    set_to(flow_map, 2.0)
    frozen.update(flow_map, 0.0, 1.0)
    assert frozen.flow_map.net.weight.item() == 1


def test_the_rounds_of_a_copy_are_those_of_the_halving_grid():
    """Progressive distillation: a new teacher exactly when the cells double in length."""
    for total in (60, 49, 1000):
        law, flow_map = Halving(32), counted(0.0)
        frozen = Target(flow_map, rounds=law.rounds)
        for k in range(total - 1):
            set_to(flow_map, k + 1)
            old = frozen.flow_map.net.weight.item()
            frozen.update(flow_map, k / total, (k + 1) / total)
            assert (frozen.flow_map.net.weight.item() != old) == (law(k / total) != law((k + 1) / total))


# weights that are left out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAPS[:7], ids=range(7))
def test_a_detached_map_takes_gradients_to_its_point_and_none_to_its_weights(make: Callable[[], FlowMap]):
    x, s, t = batch()
    flow_map = make()
    detached = DetachedWeights(flow_map)
    y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
    jump, own = detached(y, s, t), flow_map(z, s, t)
    assert torch.equal(jump, own)
    weights = list(flow_map.parameters())
    (got,) = torch.autograd.grad(jump.square().sum(), y, retain_graph=True)
    (expected,) = torch.autograd.grad(own.square().sum(), z, retain_graph=True)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    jump.square().sum().backward()
    assert [p.grad for p in weights] == [None]
    own.square().sum().backward()  # the map itself is trained as ever
    assert weights[0].grad is not None
    assert float(weights[0].grad.abs().max()) > 0
    assert all(p.requires_grad for p in weights)


def test_a_detached_map_inside_a_trained_one_keeps_the_inner_gradient():
    """CTM: the gradient of X-_{t,1}(X_{s,t}(x)) is that through the inner jump alone, here by a frozen copy."""
    x, s, t = batch()
    flow_map, one, cond = AverageVelocity(Wavy()).eval(), torch.ones_like(s), torch.arange(BATCH).double()
    frozen = Target(flow_map)
    weight = flow_map.net.matrix
    outer = DetachedWeights(flow_map)(flow_map(x, s, t, cond), t, one, cond)
    (got,) = torch.autograd.grad(outer.square().sum(), weight)  # type: ignore[arg-type]
    (expected,) = torch.autograd.grad(frozen(flow_map(x, s, t, cond), t, one, cond).square().sum(), weight)  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected)
    assert float(got.abs().max()) > 0


def test_a_detached_map_follows_the_map_and_lists_no_weights():
    x, s, t = batch()
    flow_map = AverageVelocity(Wavy()).eval()
    detached = DetachedWeights(flow_map)
    assert not isinstance(detached, nn.Module)
    holder = nn.Module()
    holder.flow_map, holder.detached = flow_map, detached  # type: ignore[assignment]
    assert len(list(holder.parameters())) == 1
    assert len(holder.state_dict()) == 1
    before = detached(x, s, t)
    with torch.no_grad():
        flow_map.net.matrix.mul_(1.5)  # type: ignore[operator, union-attr]
    assert not torch.allclose(detached(x, s, t), before)
    assert torch.equal(detached(x, s, t), flow_map(x, s, t))


# EDM's network -------------------------------------------------------------------------------------------------------

PATHS: list[tuple[Interpolant, float]] = [
    (Linear(), 1.0),
    (Linear(), 2.0),
    (TrigonometricPath(), 0.5),
    (VariancePreserving(), 1.0),
    (VarianceExploding(80.0, 7.0), 80.0),
]


@pytest.mark.parametrize("path, scale", PATHS, ids=str)
@pytest.mark.parametrize("deviation", [0.5, 1.3])
def test_preconditioning_is_edms_table_in_sigma(path: Interpolant, scale: float, deviation: float):
    """D(y; sigma) = c_skip y + c_out F(c_in y), y = x / beta, sigma = omega / beta (2206.00364, table 1)."""
    x, _, t = batch()
    s = torch.linspace(0.05, 0.95, BATCH, dtype=torch.float64)
    net = Wavy().eval()
    sigma, beta = (path.omega(s, scale) / path.beta(s))[:, None], path.beta(s)[:, None]
    total = sigma**2 + deviation**2
    y = x / beta
    expected = deviation**2 / total * y + sigma * deviation / total.sqrt() * net(y / total.sqrt(), s, t)
    got = Preconditioned(net, path, deviation, scale, floor=1e-9)(x, s, t)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_preconditioning_of_trigflow():
    """f = cos(tp) x - sin(tp) sigma_d F(x / sigma_d), the base as wide as the data (2410.11081, section 3)."""
    x, _, t = batch()
    s, net, deviation = torch.linspace(0.05, 0.95, BATCH, dtype=torch.float64), Wavy().eval(), 0.5
    tp = (0.5 * math.pi * (1 - s))[:, None]
    got = Preconditioned(net, TrigonometricPath(), deviation, deviation, floor=1e-9)(x, s, t)
    expected = torch.cos(tp) * x + torch.sin(tp) * deviation * net(x / deviation, s, t)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


class Recorder(nn.Module):
    """Keeps what it was asked."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.asked = x
        return torch.zeros_like(x)


@pytest.mark.parametrize("path, scale", PATHS, ids=str)
def test_the_inner_network_sees_and_returns_numbers_of_unit_size(path: Interpolant, scale: float):
    """For data of that deviation the input has variance 1, and so has the target (x1 - c_skip x) / c_out."""
    rows, deviation = 40_001, 0.7
    generator = torch.Generator().manual_seed(0)
    noise, x1 = torch.randn(2, rows, 1, generator=generator, dtype=torch.float64)
    x1 = deviation * x1
    for time in (0.1, 0.5, 0.8):
        s = torch.full((rows,), time, dtype=torch.float64)
        x = path.point(scale * noise, x1, s)
        net = Recorder()
        wrapped = Preconditioned(net, path, deviation, scale, floor=1e-9)
        skip = wrapped(x, s, s)
        spread = 4.5 * math.sqrt(2 / rows)
        assert float(net.asked.var()) == pytest.approx(1, abs=spread)
        # what the network should return, from D = c_skip x + c_out F: c_out is D with F = 1, less D with F = 0
        ones = Preconditioned(Fixed(torch.ones_like(x)), path, deviation, scale, floor=1e-9)(x, s, s) - skip
        target = (x1 - skip) / ones
        assert float(target.var()) == pytest.approx(1, abs=spread)
        # and the two have nothing in common, so the least is amplified of what the network gets wrong
        assert abs(float((target * net.asked).mean())) < spread


@pytest.mark.parametrize("path, scale", PATHS, ids=str)
def test_a_preconditioned_endpoint_is_a_consistency_model(path: Interpolant, scale: float):
    """Endpoint(g) at t = 1 is g; at s = 1 the data stay as they are."""
    x, s, _ = batch()
    s = 0.05 + 0.9 * s
    one = torch.ones_like(s)
    inner = Preconditioned(Wavy(), path, 0.5, scale).eval()
    flow_map = Endpoint(inner).eval()
    torch.testing.assert_close(flow_map(x, s, one), inner(x, s, one), rtol=1e-10, atol=1e-10)
    assert torch.equal(flow_map(x, one, one), x)
    near = Preconditioned(Wavy(), path, 0.5, scale, floor=1e-9).eval()
    torch.testing.assert_close(near(x, one, one), x, rtol=0, atol=1e-7)  # c_skip = 1, c_out = 0 at the data


def test_preconditioning_passes_conditions_and_gradients():
    x, s, t = batch()
    cond = torch.arange(BATCH, dtype=torch.float64)
    wrapped = Preconditioned(Wavy(), Linear()).eval()
    change = wrapped(x, s, t, cond) - wrapped(x, s, t)
    omega, beta = 1 - s, s
    out = omega * 0.5 / (omega**2 + 0.25 * beta**2).sqrt()
    torch.testing.assert_close(change, (out * cond)[:, None].expand_as(x))
    assert len(list(wrapped.parameters())) == 1


def test_settings_of_maps_that_are_refused():
    for step in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"VelocityForShortJumps needs a step in \[0, 1\], got {step}"):
            VelocityForShortJumps(MAPS[0](), step)
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"Target needs a decay in \[0, 1\), got {decay}"):
            Target(MAPS[0](), decay=decay)
    with pytest.raises(ValueError, match="Target takes rounds >= 1 or a decay, not both, got rounds=0 and decay=None"):
        Target(MAPS[0](), rounds=0)
    with pytest.raises(ValueError, match=r"rounds >= 1 or a decay, not both, got rounds=3 and decay=0.9"):
        Target(MAPS[0](), rounds=3, decay=0.9)
    for name in ("data_std", "scale", "floor"):
        with pytest.raises(ValueError, match=r"Preconditioned needs data_std, scale and floor > 0, got .*0\.0"):
            Preconditioned(Wavy(), Linear(), **{name: 0.0})


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
