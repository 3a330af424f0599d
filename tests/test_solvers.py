"""Solvers against exact flows: orders of convergence, both directions of time, evaluations counted."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from flowmaps.exact import Gaussian
from flowmaps.interpolants import Trigonometric
from flowmaps.maps import AverageVelocity
from flowmaps.shapes import like
from flowmaps.solvers import ADAPTIVE, FIXED, SolverFlow, Unsolvable, integrate

EXACT = Gaussian([0.5, -1.0, 2.0], [[0.4, 0.1, 0.0], [0.1, 0.6, 0.0], [0.0, 0.0, 0.2]], interpolant=Trigonometric())
STAGES = {"euler": 1, "midpoint": 2, "heun2": 2, "rk4": 4}
ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "rk4": 4}


def batch(rows: int = 7, *, backwards: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Points with their own times: the first jumps over the whole of [0, 1], the others over parts of it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    s, t = torch.rand(2, rows, generator=generator, dtype=torch.float64).sort(0).values
    s[0], t[0] = 0, 1
    return (x, t, s) if backwards else (x, s, t)


def error(method: str, steps: int | None, *, backwards: bool, **options: float) -> float:
    x, s, t = batch(backwards=backwards)
    y = integrate(EXACT.velocity, x, s, t, method=method, steps=steps, **options)
    return float((y - EXACT.flow_map(x, s, t)).norm())


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("method", FIXED)
def test_orders_of_convergence(method: str, backwards: bool):
    steps = [16, 32, 64]
    errors = [error(method, n, backwards=backwards) for n in steps]
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert rates[-1] == pytest.approx(ORDERS[method], abs=0.25)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_follow_their_tolerance(method: str, backwards: bool):
    errors = [error(method, None, backwards=backwards, rtol=tol, atol=tol) for tol in (1e-3, 1e-6)]
    assert errors[0] < 0.05
    assert errors[1] < 5e-5


def test_a_round_trip_comes_back():
    x, s, t = batch()
    flow = SolverFlow(EXACT.velocity, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(flow(flow(x, s, t), t, s), x, rtol=1e-8, atol=1e-8)


def test_rows_have_their_own_times():
    x, s, t = batch()
    together = integrate(EXACT.velocity, x, s, t, method="rk4", steps=5)
    for k in range(len(x)):
        alone = integrate(EXACT.velocity, x[k : k + 1], s[k : k + 1], t[k : k + 1], method="rk4", steps=5)
        torch.testing.assert_close(alone[0], together[k], rtol=1e-10, atol=1e-10)


def test_rows_that_stay_where_they_are():
    x, s, t = batch()
    t = torch.where(torch.arange(len(t)) % 2 == 0, s, t)
    y = SolverFlow(EXACT.velocity, rtol=1e-9, atol=1e-9)(x, s, t)
    torch.testing.assert_close(y[::2], x[::2], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(y, EXACT.flow_map(x, s, t), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 49, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_steps_are_counted_exactly(method: str, steps: int, dtype: torch.dtype):
    flow = SolverFlow(lambda x, t, cond=None: -x, method=method, steps=steps)
    x = torch.ones(3, 2, dtype=dtype)
    zero = torch.zeros(3, dtype=dtype)
    for _ in range(2):  # the count is of the last call
        flow(x, zero, zero + 1)
        assert flow.nfe == steps * STAGES[method]


@pytest.mark.parametrize("steps", [1, 5, 80])
def test_euler_is_the_loop_that_everyone_writes(steps: int):
    x, s, t = batch()
    y, h = x, (t - s) / steps
    for k in range(steps):
        y = y + h[:, None] * EXACT.velocity(y, s + k * h)
    torch.testing.assert_close(integrate(EXACT.velocity, x, s, t, method="euler", steps=steps), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ADAPTIVE + FIXED)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_field_is_never_asked_outside_the_span(method: str, backwards: bool):
    """Velocities may be singular, or undefined, beyond the ends of time."""
    x, s, t = batch(backwards=backwards)
    asked = []

    def field(x: Tensor, r: Tensor, cond: object = None) -> Tensor:
        asked.append(r)
        return -x

    integrate(field, x, s, t, method=method, steps=7 if method in FIXED else None)
    low, high = torch.minimum(s, t), torch.maximum(s, t)
    slack = 1e-12
    assert all(bool(((r >= low - slack) & (r <= high + slack)).all()) for r in asked)


def test_the_count_is_of_every_evaluation():
    calls = []

    def field(x: Tensor, r: Tensor, cond: object = None) -> Tensor:
        calls.append(len(x))
        return torch.cos(9 * r)[:, None] * x

    flow = SolverFlow(field, rtol=1e-6, atol=1e-6)
    x, s, t = batch()
    flow(x, s, t)
    assert flow.nfe == len(calls) > 6


def test_average_velocity_and_velocity_of_a_solved_flow():
    x, s, t = batch()
    flow = SolverFlow(EXACT.velocity, rtol=1e-10, atol=1e-10)
    t = torch.where(torch.arange(len(t)) == 3, s, t)
    u = flow.average_velocity(x, s, t)
    moved = t != s
    expected = (EXACT.flow_map(x, s, t) - x)[moved] / (t - s)[moved, None]
    torch.testing.assert_close(u[moved], expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(u[~moved], EXACT.velocity(x, s)[~moved])
    torch.testing.assert_close(flow.velocity(x, t), EXACT.velocity(x, t))


@pytest.mark.parametrize("method", FIXED)
def test_the_order_of_an_average_velocity_and_its_gain_from_short_steps(method: str):
    """u solves du/dtau = b(x + h u), h = t - s: of the solver's order in the number of steps, and in h."""
    x, s, t = batch()

    def error(steps: int, shrink: float) -> float:
        end = s + shrink * (t - s)
        exact = (EXACT.flow_map(x, s, end) - x) / (end - s)[:, None]
        u = SolverFlow(EXACT.velocity, method=method, steps=steps).average_velocity(x, s, end)
        return float((u - exact).norm())

    errors = [error(steps, 1.0) for steps in (16, 32, 64)]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(ORDERS[method], abs=0.25)
    for shrink in (1e-2, 1e-4):
        assert error(4, shrink) < 2 * shrink ** ORDERS[method] * error(4, 1.0) + 1e-14 / shrink


def test_an_average_velocity_is_the_jump_over_the_step_of_the_same_solver():
    """X = x + h u for the same steps, exactly so, both ways in time."""
    x, s, t = batch()
    for method in FIXED:
        flow = SolverFlow(EXACT.velocity, method=method, steps=5)
        for start, end in ((s, t), (t, s)):
            jump = x + (end - start)[:, None] * flow.average_velocity(x, start, end)
            assert flow.nfe == 5 * STAGES[method]
            torch.testing.assert_close(flow(x, start, end), jump, rtol=1e-11, atol=1e-11)


def test_an_average_velocity_is_regular_where_the_times_meet():
    x, s, _ = batch()
    s = 0.05 + 0.9 * s
    flow, v = SolverFlow(EXACT.velocity, method="rk4", steps=2), EXACT.velocity(x, s)
    torch.testing.assert_close(flow.average_velocity(x, s, s), v, rtol=1e-12, atol=1e-12)
    errors = [float((flow.average_velocity(x, s, s + h) - v).abs().max()) for h in (1e-2, -1e-2, 1e-5, -1e-5, 1e-9)]
    assert max(errors[2:4]) < 2e-3 * max(errors[:2])
    assert errors[4] < 2e-3 * errors[2]
    cond = torch.arange(7, dtype=torch.float64)
    constant = SolverFlow(lambda x, r, c: c[:, None].expand_as(x), method="euler", steps=2)
    torch.testing.assert_close(constant.average_velocity(x, s, s, cond), cond[:, None].expand_as(x))


def test_conditions_reach_the_field():
    x, s, t = batch()
    cond = torch.arange(7, dtype=torch.float64)
    y = SolverFlow(lambda x, r, c: c[:, None].expand_as(x), method="euler", steps=2)(x, s, t, cond)
    torch.testing.assert_close(y, x + ((t - s) * cond)[:, None])


def test_gradients_pass_through_the_solver():
    """d/dx of the flow is the Jacobian of the exact map, a matrix that does not depend on x."""
    x, s, t = batch()
    x = x.requires_grad_(True)
    y = SolverFlow(EXACT.velocity, method="rk4", steps=40)(x, s, t)
    (gradient,) = torch.autograd.grad(y[:, 0].sum(), x)
    exact = torch.zeros(7, 3, dtype=torch.float64)
    for j in range(3):
        e = torch.eye(3, dtype=torch.float64)[j].expand(7, 3)
        exact[:, j] = (EXACT.flow_map(x.detach() + e, s, t) - EXACT.flow_map(x.detach(), s, t))[:, 0]
    torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-6)


def test_a_network_keeps_its_mode_and_is_a_part_of_the_flow():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return self.layer(x)

    for mode in (True, False):
        net = Net().train(mode)
        flow = SolverFlow(net, method="euler", steps=1)
        assert net.training is mode
        assert len(list(flow.parameters())) == 2


def test_a_flow_of_a_maps_velocity():
    """The teacher of a map that is exact on the diagonal is the exact flow."""

    class Instant(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return EXACT.velocity(x, t)

    x, s, t = batch()
    flow = SolverFlow(AverageVelocity(Instant()).velocity, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow(x, s, t), EXACT.flow_map(x, s, t), rtol=1e-7, atol=1e-7)


def test_settings_that_are_refused():
    with pytest.raises(ValueError, match=r"method must be one of .*'rk4'.*, got 'heun'"):
        SolverFlow(EXACT.velocity, method="heun", steps=4)
    with pytest.raises(ValueError, match="dopri5 chooses its own steps, got steps=8: leave it out"):
        SolverFlow(EXACT.velocity, steps=8)
    for steps in (None, 0, -1):
        with pytest.raises(ValueError, match=f"euler has a fixed step: pass steps >= 1, got steps={steps}"):
            SolverFlow(EXACT.velocity, method="euler", steps=steps)
    x, s, t = batch()
    flow = SolverFlow(EXACT.velocity, method="euler", steps=1)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        flow(x, s, t + 1)
    with pytest.raises(ValueError, match=r"s must have shape \(7,\)"):
        flow(x, s[:1], t)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_velocity_that_is_no_number_has_no_solution_and_the_words_say_so(bad: float):
    flow = SolverFlow(lambda x, t, cond=None: torch.full_like(x, bad))
    with pytest.raises(Unsolvable, match=r"dopri5 found no step .*: the velocity has values that are not finite"):
        flow(torch.zeros(3, 2), torch.zeros(3), torch.ones(3))


def test_a_solver_that_does_not_arrive_gives_up():
    """dx / dr = 10^6 sin(10^9 r): no step is longer than a period."""
    flow = SolverFlow(lambda x, t, cond=None: (1e6 * torch.sin(1e9 * like(t, x))).expand_as(x))
    with pytest.raises(Unsolvable, match=r"dopri5 did not arrive in 2,000 steps with rtol=1e-05, .*larger tolerance"):
        flow(torch.zeros(3, 2), torch.zeros(3), torch.ones(3))
    assert flow.nfe < 7 * 2_100
