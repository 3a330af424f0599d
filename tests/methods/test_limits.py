r"""How the methods hang together: special cases, to rounding, and limits, with their order measured.

With x = I_s, h = t - s and X_{s,t}(x) = x + h u_{s,t}(x), the residual of a semigroup whose first leg d = w - s follows
a velocity b is that of consistency models, and of AlphaFlow. Over its leg it tends to the Eulerian one,

    r_d = (X_{s,t}(x) - X_{w,t}(x + d b)) / d  ->  r = -(d_s X_{s,t}(x) + grad X_{s,t}(x) b) = u - b - h D u,

with an error of the order of d, and so do gradients with the target detached, in both of which the prediction is X:

    |X - sg X_w|^2 / d^2 -> |r|^2,    grad |X - sg X_w|^2 / d = 2 r_d grad X -> 2 h r grad u = h grad |u - sg(u - r)|^2.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from amount import named, pairs_of
from cases import (
    AVERAGE,
    FEATURES,
    INTERPOLANTS,
    MAPS,
    Network,
    Parametrisation,
    base_sample,
    exact_map,
    gaussian,
    generator,
    last_time,
)
from papers import teacher
from torch import Tensor

from flowmaps import exact, losses, methods, times
from flowmaps.equations import Eulerian, Lagrangian, Semigroup, Stop
from flowmaps.interpolants import Interpolant, Linear
from flowmaps.maps import FlowMap, Target
from flowmaps.objectives import MapMatching, Objective, SplitRows, VelocityMatching
from flowmaps.times import Diagonal, ToData, Triangle
from flowmaps.velocities import FromInterpolant, FromMap, FromTeacher, RandomInputs, Velocity

ROWS, DIM = 11, 3
PATHS = {name: INTERPOLANTS[name] for name in ("linear", "trigonometric", "linear-noise", "variance-exploding")}
UNIT = losses.Constant()

each_map = pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def draw_of(path: Interpolant, s: Tensor, t: Tensor, seed: int = 3) -> RandomInputs:
    """A draw at given times, with a split in (0, 1)."""
    rng = generator(seed)
    x0, x1, z = torch.randn(3, len(s), DIM, generator=rng).double().unbind(0)
    split, cond = 0.1 + 0.8 * torch.rand(len(s), generator=rng).double(), torch.randn(len(s), 2, generator=rng).double()
    return RandomInputs(x0, x1, z if path.noisy else None, s, t, split, cond, torch.ones_like(s))


def ordered(path: Interpolant) -> RandomInputs:
    """A draw with s < t, apart."""
    a, b = torch.rand(2, ROWS, generator=generator(1)).double().unbind(0)
    return draw_of(path, 0.4 * a, 0.5 + 0.4 * b)


def to_data(path: Interpolant) -> RandomInputs:
    """A draw with t = 1."""
    s = 0.7 * torch.rand(ROWS, generator=generator(1)).double()
    return draw_of(path, s, torch.ones_like(s))


def gradient(value: Tensor, objective: Objective) -> Tensor:
    """Of the map's parameters, as one array."""
    parameters = list(objective.flow_map.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, materialize_grads=True)])


def sides(objective: Objective, draw: RandomInputs) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    value = objective.evaluate(draw).value
    return value.detach(), gradient(value, objective)


def assert_same(one: Objective, other: Objective, draw: RandomInputs, factor: float = 1.0) -> None:
    """One is `factor` times the other on a draw, value and gradient."""
    (value, slope), (value2, slope2) = sides(one, draw), sides(other, draw)
    assert float(slope2.norm()) > 1e-3
    torch.testing.assert_close(value, factor * value2, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope, factor * slope2, rtol=1e-9, atol=1e-9 * float(slope.norm()))


def errors(make: Callable[[float], Tensor], limit: Tensor, lengths: tuple[float, ...]) -> list[float]:
    """Relative distances from the limit, one for each length."""
    return [float((make(length) - limit).detach().norm() / limit.detach().norm()) for length in lengths]


def assert_order(distances: list[float], order: int = 1, last: float = 1e-2, slack: float = 0.06) -> None:
    """They fall by 2^order as the length is halved, and end below `last`."""
    assert distances[-1] < last, distances
    for coarse, fine in pairwise(distances):
        assert 2**order * (1 - slack) < coarse / fine < 2**order * (1 + slack), distances


def off_diagonal(objective: Objective) -> MapMatching:
    """The rows off the diagonal."""
    assert isinstance(objective, SplitRows)
    assert isinstance(objective.second, MapMatching)
    return objective.second


# special cases --------------------------------------------------------------------------------------------------------


@each_map
@each_path
def test_meanflow_is_the_eulerian_equation_with_its_right_hand_side_detached(path: Interpolant, case: Parametrisation):
    flow_map = case.build(Network(DIM, 1))
    objective = methods.meanflow(flow_map, interpolant=path, weight=UNIT)
    eulerian = MapMatching(flow_map, path, Eulerian(Stop.TARGET), FromInterpolant(path), times=Triangle())
    assert_same(off_diagonal(objective), eulerian, ordered(path))


@each_map
def test_improved_meanflow_differs_from_meanflow_in_the_direction_alone(case: Parametrisation):
    """Where the map's own velocity is dI, both are one: here for pairs that follow one field."""
    path, draw = Linear(), ordered(Linear())

    class Own(torch.nn.Module):
        """A network whose map has the velocity 2 x / (1 + 2 s), and is nothing special off the diagonal."""

        def __init__(self) -> None:
            super().__init__()
            self.net = Network(DIM, 1)

        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            v = 2 * x / (1 + 2 * s)[:, None]
            return case.network(v + ((t - s) ** 2)[:, None] * self.net(x, s, t, cond), x, s, t)

    flow_map = case.build(Own())
    draw = draw._replace(x1=3 * draw.x0)  # I_s = (1 + 2 s) x0, dI = 2 x0 = v(I_s, s)
    options: dict[str, Any] = {"interpolant": path, "weight": UNIT}
    one, other = methods.improved_meanflow(flow_map, **options), methods.meanflow(flow_map, **options)
    assert_same(off_diagonal(one), off_diagonal(other), draw)
    elsewhere = draw._replace(x1=-draw.x0)
    assert not torch.allclose(
        sides(off_diagonal(one), elsewhere)[1], sides(off_diagonal(other), elsewhere)[1], rtol=1e-2
    )


@each_map
@each_path
def test_shortcut_is_alphaflow_with_its_own_velocity_at_one_half(path: Interpolant, case: Parametrisation):
    """L_shortcut = L_alpha / 2 at alpha = 1/2, the 1/2 undoing the weight 1 / alpha (2510.20771, theorem 1)."""
    flow_map = case.build(Network(DIM, 1))
    shortcut = methods.shortcut(flow_map, interpolant=path)
    options: dict[str, Any] = {"alpha": 0.5, "velocity_first": False, "interpolant": path}
    draw = ordered(path)
    draw = draw._replace(split=torch.full_like(draw.s, 0.5))
    assert_same(off_diagonal(shortcut), off_diagonal(methods.alphaflow(flow_map, weight=UNIT, **options)), draw)
    defined = methods.alphaflow(flow_map, weight=losses.SplitPower(-1.0), **options)
    assert_same(off_diagonal(shortcut), off_diagonal(defined), draw, 0.5)


@each_map
@each_path
def test_alphaflow_at_one_is_trajectory_flow_matching(path: Interpolant, case: Parametrisation):
    """|u_{s,t}(I_s) - (I_t - I_s) / (t - s)|^2."""
    flow_map, draw = case.build(Network(DIM, 1)), ordered(path)
    objective = off_diagonal(methods.alphaflow(flow_map, alpha=1.0, interpolant=path, weight=UNIT))
    draw = draw._replace(split=torch.ones_like(draw.s))
    here, there = (path.point(draw.x0, draw.x1, r, draw.z) for r in (draw.s, draw.t))
    u = flow_map.average_velocity(here, draw.s, draw.t, draw.cond)
    wanted = (u - (there - here) / (draw.t - draw.s)[:, None]).square().sum(1).mean()
    value, slope = sides(objective, draw)
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(slope, gradient(wanted, objective), rtol=1e-9, atol=1e-9)


@each_map
@pytest.mark.parametrize("cells", [1, 4, 32])
def test_progressive_distillation_is_the_semigroup_on_a_dyadic_grid(cells: int, case: Parametrisation):
    """Up to its weight it is progressive flow map matching with two legs, shortcut with a target, and SD's midpoint."""
    flow_map, frozen = case.build(Network(DIM, 1)), Target(case.build(Network(DIM, 2)))
    options: dict[str, Any] = {"weight": UNIT}
    objective = methods.progressive_distillation(flow_map, frozen=frozen, cells=cells, **options)
    drawn = objective.draw(torch.zeros(ROWS, DIM).double(), generator=generator(2))
    levels = torch.log2(1 / (drawn.t - drawn.s))
    assert bool((levels == torch.log2(torch.tensor(float(cells)))).all())
    assert bool(((drawn.s * cells) == (drawn.s * cells).round()).all())
    draw = draw_of(Linear(), drawn.s, drawn.t)
    assert_same(objective, methods.pfmm(flow_map, frozen=frozen, legs=2, **options), draw)
    assert_same(objective, off_diagonal(methods.shortcut(flow_map, target=frozen, **options)), draw)
    midpoint = MapMatching(flow_map, Linear(), Semigroup(Stop.VELOCITY), FromMap(frozen), times=Triangle())
    assert_same(objective, midpoint, draw)
    weighted = methods.progressive_distillation(flow_map, frozen=frozen, cells=cells)
    one, other = weighted.evaluate(draw), objective.evaluate(draw)
    ratio = torch.maximum(draw.s**2, (1 - draw.s) ** 2) * other.parts["semigroup"]
    torch.testing.assert_close(one.value.detach(), ratio.mean(), rtol=1e-10, atol=0)


@each_map
def test_split_at_the_middle_makes_splitmeanflow_psd_and_shortcut_one(case: Parametrisation):
    flow_map, draw = case.build(Network(DIM, 1)), ordered(Linear())
    middle = draw._replace(split=torch.full_like(draw.s, 0.5))
    split = off_diagonal(methods.split_meanflow(flow_map))
    assert_same(split, off_diagonal(methods.psd(flow_map)), draw)
    assert_same(split, off_diagonal(methods.psd(flow_map, midpoint=True)), middle)
    assert_same(split, off_diagonal(methods.shortcut(flow_map)), middle)


@each_map
@each_path
@pytest.mark.parametrize("stop", [Stop.NONE, Stop.VELOCITY, Stop.TANGENT, Stop.TARGET], ids=lambda stop: stop.value)
@pytest.mark.parametrize("equation", [Lagrangian, Eulerian], ids=["lagrangian", "eulerian"])
def test_on_the_diagonal_derivative_equations_are_velocity_matching(
    equation: Callable[..., Any], stop: Stop, path: Interpolant, case: Parametrisation
):
    """u_{t,t} = b_t, in value and gradient, for dI and for a teacher."""
    t = 0.95 * torch.rand(ROWS, generator=generator(1)).double()
    flow_map, draw = case.build(Network(DIM, 1)), draw_of(path, t, t.clone())
    for velocity in (FromInterpolant(path), FromTeacher(teacher)):
        objective = MapMatching(flow_map, path, equation(stop), velocity, times=Diagonal())
        assert_same(objective, VelocityMatching(flow_map, path, velocity), draw)


@each_map
@pytest.mark.parametrize("step", [0.02, 0.3])
def test_a_finite_eulerian_step_is_a_led_semigroup_over_its_share(step: float, case: Parametrisation):
    """(X_{s,t}(x) - X_{s+d,t}(x + d b_s)) / (t - s) over l = d / (t - s)."""
    flow_map, draw = case.build(Network(DIM, 1)), ordered(Linear())
    x, s, t = Linear().point(draw.x0, draw.x1, draw.s), draw.s, draw.t
    share = (step / (t - s)).clamp_max(1)
    velocity = FromTeacher(teacher)
    for stop in (Stop.NONE, Stop.TARGET):
        euler = Eulerian(stop, step=step)(flow_map, x, s, t, velocity, cond=draw.cond)
        led = Semigroup(stop, velocity_first=True)(flow_map, x, s, t, velocity, share, cond=draw.cond)
        torch.testing.assert_close(euler.value, led.value / share[:, None], rtol=1e-9, atol=1e-9)


def test_the_chord_lands_on_the_path():
    """w = s + l (t - s): X_{s,w} of the first leg is I_w for every path, also where it is not straight."""
    for path in INTERPOLANTS.values():
        draw = ordered(path)
        w = draw.s + draw.split * (draw.t - draw.s)
        here, there = (path.point(draw.x0, draw.x1, r, draw.z) for r in (draw.s, w))
        leg = FromInterpolant(path).bind(draw).leg(here, draw.s, w)
        torch.testing.assert_close(here + (w - draw.s)[:, None] * leg, there, rtol=1e-12, atol=1e-12)


# limits of a short step -----------------------------------------------------------------------------------------------

LENGTHS = (4e-3, 2e-3, 1e-3)


def eulerian_limit(
    flow_map: FlowMap, path: Interpolant, draw: RandomInputs, stop: Stop, velocity: Velocity
) -> tuple[Tensor, Tensor]:
    """r for each row, and the gradient of the mean of h |r|^2."""
    objective = MapMatching(flow_map, path, Eulerian(stop), velocity, times=ToData(), weight=losses.Power(1))
    x = path.point(draw.x0, draw.x1, draw.s, draw.z)
    residual = objective.equation(flow_map, x, draw.s, draw.t, objective.velocity.bind(draw), cond=draw.cond).value
    return residual, sides(objective, draw)[1]


@each_map
@each_path
@pytest.mark.parametrize("solver", ["euler", "heun2", "rk4"])
def test_consistency_distillation_tends_to_eulerian_distillation_at_the_data_end(
    solver: str, path: Interpolant, case: Parametrisation
):
    """Over a step of length d: residual / d -> -(d_s X_{s,1} + grad X_{s,1} b_s), loss / d^2 -> EMD's at t = 1.

    The gradient of the loss over d tends to that of EMD with its right-hand side detached, times 1 - s (a consistency
    target takes no gradient), not to that of EMD. All with an error of order d, whatever the solver.
    """
    flow_map, draw = case.build(Network(DIM, 1)), to_data(path)
    residual, slope = eulerian_limit(flow_map, path, draw, Stop.TARGET, FromTeacher(teacher))
    emd = methods.emd(flow_map, teacher=teacher, interpolant=path, times=ToData()).evaluate(draw).parts["eulerian"]
    objective = methods.consistency_distillation(flow_map, teacher=teacher, solver=solver, interpolant=path)
    assert_step_limit(objective, draw, residual, slope, emd)


@each_map
@each_path
def test_consistency_training_tends_to_the_eulerian_equation_with_the_velocity_of_the_pair(
    path: Interpolant, case: Parametrisation
):
    """(X_{s,1}(I_s) - sg X_{w,1}(I_w)) / d -> -(d_s X_{s,1} + grad X_{s,1} dI_s), and so its loss and gradient."""
    flow_map, draw = case.build(Network(DIM, 1)), to_data(path)
    residual, slope = eulerian_limit(flow_map, path, draw, Stop.TARGET, FromInterpolant(path))
    objective = methods.consistency_training(flow_map, interpolant=path)
    assert_step_limit(objective, draw, residual, slope, residual.square().sum(1).detach())


def assert_step_limit(objective: Any, draw: RandomInputs, residual: Tensor, slope: Tensor, loss: Tensor) -> None:
    """Residual / d, gradient / d and the loss of each row / d^2 tend to their limits linearly in the step d."""
    x = objective.interpolant.point(draw.x0, draw.x1, draw.s, draw.z)
    h = draw.t - draw.s

    def at(d: float) -> tuple[Tensor, Tensor, Tensor]:
        moved = draw._replace(split=d / h)
        velocity = objective.velocity.bind(moved)
        sides_ = objective.equation(objective.flow_map, x, draw.s, draw.t, velocity, moved.split, cond=draw.cond)
        loss = objective.evaluate(moved)
        torch.testing.assert_close(loss.value.detach(), (h**2 * loss.parts["semigroup"]).mean(), rtol=1e-12, atol=0)
        rows = h**2 * loss.parts["semigroup"] / d**2
        return h[:, None] * sides_.value / d, gradient(loss.value, objective) / d, rows

    for k, limit in enumerate((residual, slope, loss)):
        assert_order(errors(lambda d, k=k: at(d)[k], limit, LENGTHS), last=0.1)


@each_map
def test_the_update_of_consistency_training_is_that_of_eulerian_estimation_in_value_alone(case: Parametrisation):
    """FMM, section 3.6: consistency training is the discrete form of the direct Eulerian residual, with another stop.

    In the limit the two have one residual r, and so one loss; but the update of consistency training is along the
    gradient of X_{s,1}, that of Eulerian estimation along the gradient of d_s X_{s,1}: another direction.
    """
    path, flow_map = Linear(), case.build(Network(DIM, 1))
    draw = to_data(path)
    estimation = methods.eulerian_estimation(flow_map, interpolant=path, weight=UNIT)
    training = MapMatching(flow_map, path, Eulerian(Stop.TARGET), FromInterpolant(path), times=ToData(), weight=UNIT)
    (value, slope), (value2, slope2) = sides(estimation, draw), sides(training, draw)
    torch.testing.assert_close(value, value2, rtol=1e-10, atol=0)
    assert float(torch.nn.functional.cosine_similarity(slope, slope2, dim=0)) < 0.99


@each_map
@each_path
def test_alphaflow_tends_to_meanflow(path: Interpolant, case: Parametrisation):
    """grad of (1 / alpha) |.|^2 tends to that of MeanFlow linearly in alpha (2510.20771, theorem 1)."""
    flow_map, draw = case.build(Network(DIM, 1)), ordered(path)
    meanflow = off_diagonal(methods.meanflow(flow_map, interpolant=path, weight=UNIT))
    limit, slope = sides(meanflow, draw)
    objective = off_diagonal(methods.alphaflow(flow_map, interpolant=path, weight=losses.SplitPower(-1.0)))

    def at(alpha: float) -> tuple[Tensor, Tensor]:
        value, gradient_ = sides(objective, draw._replace(split=torch.full_like(draw.s, alpha)))
        return value / alpha, gradient_

    for k, wanted in enumerate((limit, slope)):
        assert_order(errors(lambda alpha, k=k: at(alpha)[k], wanted, LENGTHS), last=0.1)


@each_map
@pytest.mark.parametrize("share", ["start", "end"])
def test_splitmeanflow_tends_to_an_equation_with_a_derivative_at_either_end(share: str, case: Parametrisation):
    """As l -> 0, (u - target) / l -> u - v_s - h D u along its own v: Eulerian. As l -> 1, over 1 - l: Lagrangian."""
    flow_map, draw, path = case.build(Network(DIM, 1)), ordered(Linear()), Linear()
    equation = Eulerian(Stop.TARGET) if share == "start" else Lagrangian(Stop.TARGET)
    limit = MapMatching(flow_map, path, equation, FromMap(flow_map), times=Triangle())
    objective = off_diagonal(methods.split_meanflow(flow_map))
    x = path.point(draw.x0, draw.x1, draw.s)

    def at(length: float) -> tuple[Tensor, Tensor]:
        split = torch.full_like(draw.s, length if share == "start" else 1 - length)
        sides_ = objective.equation(flow_map, x, draw.s, draw.t, objective.velocity, split, cond=draw.cond)
        return sides_.value / length, sides(objective, draw._replace(split=split))[1] / length

    residual = equation(flow_map, x, draw.s, draw.t, FromMap(flow_map), cond=draw.cond).value
    for k, wanted in enumerate((residual, sides(limit, draw)[1])):
        assert_order(errors(lambda length, k=k: at(length)[k], wanted, LENGTHS), last=0.1)


@pytest.mark.parametrize("legs", [4])
@each_map
def test_the_target_of_pfmm_tends_to_that_of_the_neural_operator(legs: int, case: Parametrisation):
    """K jumps of a map along its velocity are Euler's steps: the target tends to the flow of that velocity, order 1."""
    flow_map, draw, path = case.build(Network(DIM, 1)), ordered(Linear()), Linear()
    frozen = Target(case.build(Network(DIM, 2)))
    x = path.point(draw.x0, draw.x1, draw.s)
    solved = methods.neural_operator(flow_map, teacher=frozen.velocity, solver_steps=64)

    def target(objective: Any) -> Tensor:
        velocity = objective.velocity
        return objective.equation(flow_map, x, draw.s, draw.t, velocity, cond=draw.cond).target

    limit = target(solved)
    many = (8 * legs, 16 * legs, 32 * legs)
    found = [target(methods.pfmm(flow_map, frozen=frozen, legs=number)) for number in many]
    assert_order([float((one - limit).norm() / limit.norm()) for one in found], last=0.1)


# methods that are exact in a limit alone ------------------------------------------------------------------------------


class Mean(Velocity):
    """What dI and its chord are in the mean, given I_s: b_s(x), and (E[I_t | I_s = x] - x) / (t - s) of a Gaussian.

    Between Gaussians X_{w,t} is affine, so that a target with this leg is the mean of the target.
    """

    def __init__(self, law: exact.Gaussian) -> None:
        super().__init__()
        self.law = law

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.law.velocity(x, t)

    def leg(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        law, path = self.law, self.law.interpolant

        def mean(r: Tensor) -> Tensor:
            return path.alpha(r)[:, None] * law.base_mean + path.beta(r)[:, None] * law.mean

        def shared(r: Tensor) -> Tensor:
            """Cov(I_r, I_s), `(B, D, D)`."""
            a, b, c = path.alpha(r) * path.alpha(s), path.beta(r) * path.beta(s), path.gamma(r) * path.gamma(s)
            a, b, c = (value[:, None, None] for value in (a, b, c))
            return a * law.base_covariance + b * law.covariance + c * torch.eye(law.dim)

        there = (shared(t) @ torch.linalg.solve(shared(s), (x - mean(s))[:, :, None]))[:, :, 0] + mean(t)
        return (there - x) / (t - s)[:, None]


def at_exact(objective: Objective, law: exact.Gaussian, s: Tensor, split: Tensor, t: Tensor) -> Tensor:
    """The gradient of each row, divided by the share of the first leg."""
    rng = generator(4)
    x1, x0 = law.sample(len(s), rng, torch.float64), base_sample(law, len(s), rng)
    z = torch.randn(len(s), law.dim, generator=rng).double()
    cond = torch.zeros(len(s), FEATURES, law.dim).double().requires_grad_()
    draw = RandomInputs(x0, x1, z if law.interpolant.noisy else None, s, t, split, cond, torch.ones_like(s))
    slope = len(s) * torch.autograd.grad(objective.evaluate(draw).value, cond)[0].flatten(1)
    return slope / split[:, None]


SHORT = {
    "consistency_training": lambda m, path, d: methods.consistency_training(m, cells=round(1 / d), interpolant=path),
    "improved_consistency_training": lambda m, path, d: methods.improved_consistency_training(
        m, cells=round(1 / d), interpolant=path, weight=UNIT, distance=losses.squared
    ),
    "easy_consistency_tuning": lambda m, path, d: methods.easy_consistency_tuning(
        m, split=times.ShrinkingLeg(path, q=1 / d, stages=1), interpolant=path, weight=UNIT, distance=losses.squared
    ),
    "alphaflow": lambda m, path, d: off_diagonal(methods.alphaflow(m, alpha=d, interpolant=path, weight=UNIT)),
}


@pairs_of(name=named(SHORT), path=INTERPOLANTS, dim=named([1, 2, 5]))
def test_methods_of_a_finite_step_have_a_mean_gradient_at_the_exact_map_of_the_order_of_the_step(
    name: str, path: Interpolant, dim: int
):
    """E[X_{w,t}(I_w) | I_s] is X_{s,t}(I_s) to second order in the step: over it, the mean gradient tends to 0."""
    if name == "easy_consistency_tuning" and path is INTERPOLANTS["variance-exploding-noise"]:
        pytest.skip("its noise grows before it falls, and a step in it is no step in time")
    law = gaussian(dim, path)
    flow_map = exact_map(law, AVERAGE)
    s = torch.arange(1, 6).double() / 8
    t = torch.full_like(s, last_time(path)) if name != "alphaflow" else (s + 0.3).clamp_max(last_time(path))
    sizes = []
    for d in (1 / 256, 1 / 512, 1 / 1024):
        objective = SHORT[name](flow_map, path, d)
        objective.velocity = Mean(law)
        split = objective.split.share(torch.rand(5).double(), s, t)
        assert 0 < float(split.max()) < 0.1
        sizes.append(float(at_exact(objective, law, s, split, t).norm()))
    assert sizes[0] > 1e-6
    assert_order(sizes, last=float("inf"), slack=0.12)


SOLVERS = {"euler": 1, "heun2": 2, "rk4": 4}
SOLVED: dict[str, Callable[..., Any]] = {
    "neural_operator": lambda m, b, path, solver, n: methods.neural_operator(
        m, teacher=b, solver=solver, solver_steps=n, interpolant=path
    ),
    "ctm": lambda m, b, path, solver, n: methods.ctm(
        m, teacher=b, solver=solver, solver_steps=n, matching=0.0, interpolant=path
    ),
    "consistency_distillation": lambda m, b, path, solver, n: methods.consistency_distillation(
        m, teacher=b, solver=solver, cells=8 * n, interpolant=path
    ),
}
SMOOTH = {name: PATHS[name] for name in ("linear", "trigonometric", "linear-noise")}


@pairs_of(name=named(SOLVED), solver=named(SOLVERS), path=SMOOTH, case=MAPS)
def test_solved_methods_have_a_gradient_at_the_exact_map_of_the_order_of_the_solver(
    name: str, solver: str, path: Interpolant, case: Parametrisation
):
    """Of n steps, or over one step of length 1 / n: n^-order."""
    law = gaussian(2, path)
    flow_map = exact_map(law, case)
    s = torch.arange(1, 6).double() / 8
    t = torch.ones_like(s) if name == "consistency_distillation" else s + torch.tensor([0.3, 0.2, 0.4, 0.35, 0.25])
    sizes = []
    for n in (16, 32, 64) if SOLVERS[solver] < 4 else (4, 8, 16):
        objective = SOLVED[name](flow_map, lambda x, t, cond=None: law.velocity(x, t), path, solver, n)
        short = name == "consistency_distillation"
        split = 1 / (8 * n * (1 - s)) if short else torch.full_like(s, 0.6)
        sizes.append(float(at_exact(objective, law, s, split, t).norm()))
    assert sizes[-1] > 1e-13
    assert_order(sizes, SOLVERS[solver], float("inf"), slack=0.35)
