r"""The laws of flow maps, at exact maps.

Between Gaussians the flow map is known in closed form, for every interpolant and in both orders of time. There every
residual vanishes to rounding and every objective has zero gradient: pointwise with a teacher, in the mean over pairs
(x0, x1) where the velocity is dI. One backward pass gives a gradient for each row, because the exact network is moved
away by parameters of its own for each row (`cond`, see `cases.ExactNetwork`).

What the laws cannot see is where gradients stop, since 2 r dr is zero with r: that is in `test_literal.py`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import pytest
import torch
from amount import named, pairs_of
from cases import (
    AVERAGE,
    DERIVATIVES,
    DIMS,
    DIRECT,
    EQUATIONS,
    FEATURES,
    INTERPOLANTS,
    MAPS,
    METHODS,
    SOLVED,
    TAUGHT,
    WRAPPED,
    ExactNetwork,
    Parametrisation,
    base_sample,
    exact_map,
    gaussian,
    generator,
    last_time,
)
from torch import Tensor, nn

from flowmaps import equations, exact, interpolants, maps, methods, solvers, times
from flowmaps.couplings import FlowPairs
from flowmaps.equations import Eulerian, Lagrangian, Semigroup, Stop
from flowmaps.exact.mean_gradient import row_gradients, z_score, z_scores
from flowmaps.interpolants import Interpolant, Linear
from flowmaps.losses import Constant
from flowmaps.maps import AverageVelocity, Target
from flowmaps.objectives import MapMatching, Objective, SplitRows
from flowmaps.velocities import FromInterpolant, FromMap, FromTeacher, RandomInputs

ROWS = 7
ORDERS = ("forward", "backward", "diagonal")
TIGHT = 1e-9

each_interpolant = pytest.mark.parametrize("interpolant", INTERPOLANTS.values(), ids=INTERPOLANTS)
each_map = pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
SIZES = {f"dim{dim}": dim for dim in DIMS}


def zeros(rows: int, dim: int) -> Tensor:
    """Parameters at which an exact network is exact, one array a row."""
    return torch.zeros(rows, FEATURES, dim, dtype=torch.float64)


def points(law: exact.Gaussian, order: str, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Points x of I_s, and times s, t in one order: the corners of the square, and random ones."""
    rng = generator(11)
    last = last_time(law.interpolant)
    times = last * torch.rand(2, rows, dtype=torch.float64, generator=rng)
    low, high = times.amin(0), times.amax(0)
    low[0], high[0] = 0, last
    low[1], high[2] = 0, last
    s, t = {"forward": (low, high), "backward": (high, low), "diagonal": (high, high)}[order]
    x0, x1 = base_sample(law, rows, rng), law.sample(rows, rng, torch.float64)
    z = torch.randn(rows, law.dim, dtype=torch.float64, generator=rng)
    return law.interpolant.point(x0, x1, s, z), s.clone(), t.clone()


def every_order(law: exact.Gaussian) -> tuple[Tensor, Tensor, Tensor]:
    """Points and times of all orders, in one batch."""
    x, s, t = zip(*(points(law, order) for order in ORDERS), strict=True)
    return torch.cat(x), torch.cat(s), torch.cat(t)


def largest(value: Tensor) -> Tensor:
    """The largest entry of each order of a batch of `every_order`."""
    return value.detach().abs().reshape(len(ORDERS), -1).amax(1)


# every class has its case ---------------------------------------------------------------------------------------------


def test_every_class_has_its_case():
    listed = {type(path) for path in INTERPOLANTS.values()}
    assert listed == {c for c in vars(interpolants).values() if concrete(c, interpolants.Interpolant)}
    net = nn.Linear(1, 1)
    built = {type(case.build(net)) for case in [*MAPS.values(), *WRAPPED.values()]} | {SOLVED}
    known = {c for home in (maps, solvers) for c in vars(home).values() if concrete(c, maps.FlowMap)}
    assert built == known
    assert {type(equation()) for equation in EQUATIONS.values()} == {
        c for c in vars(equations).values() if concrete(c, equations.Equation)
    }
    functions = {value for value in vars(methods).values() if inspect.isfunction(value)}
    functions.remove(methods.warm_up)  # a stage before a method: tests/objectives/test_trajectories.py
    assert {method.function for method in METHODS.values()} == functions
    assert {method.objective for method in methods.METHODS.values()} == functions
    assert {method.name: method for method in methods.METHODS.values()} == methods.METHODS


def concrete(candidate: object, base: type) -> bool:
    """Whether it is a class below `base` that can be made."""
    return isinstance(candidate, type) and issubclass(candidate, base) and not inspect.isabstract(candidate)


# residuals ------------------------------------------------------------------------------------------------------------


@pairs_of(interpolant=INTERPOLANTS, case=MAPS, dim=SIZES)
def test_residuals_vanish_at_the_exact_map(interpolant: Interpolant, case: Parametrisation, dim: int):
    """All equations, all stops, any split, and the round trip."""
    law = gaussian(dim, interpolant)
    flow_map = exact_map(law, case)
    x, s, t = every_order(law)
    split = torch.rand(len(s), dtype=torch.float64, generator=generator(1))
    for name, equation in EQUATIONS.items():
        for stop in Stop:
            residual = equation(stop)(flow_map, x, s, t, FromTeacher(law.velocity))
            assert residual.prediction.shape == residual.target.shape == x.shape
            assert float(residual.value.abs().max()) < TIGHT, (name, stop)
    for stop in Stop:
        residual = Semigroup(stop)(flow_map, x, s, t, FromMap(flow_map), split)
        assert float(residual.value.abs().max()) < TIGHT, stop
    for legs in (1, 2, 3):  # the first leg by a map of its own, as a teacher's solver
        residual = Semigroup(legs=legs, velocity_first=True)(flow_map, x, s, t, FromMap(exact_map(law, AVERAGE)))
        assert float(residual.value.abs().max()) < TIGHT, legs
    for equation in (Lagrangian, Eulerian):  # normalised, and warmed up to the end: r / (|r| + c) is zero with r
        whole = equation(Stop.TARGET, normalise=0.1)
        residual = whole(flow_map, x, s, t, law.velocity, warmup=torch.ones_like(s))
        assert float(residual.value.abs().max()) < 100 * TIGHT, equation
    jump = flow_map(x, s, t)
    assert float((jump - law.flow_map(x, s, t)).abs().max()) < TIGHT
    assert float((flow_map(jump, t, s) - x).abs().max()) < TIGHT
    moved = s != t
    assert float((jump - x).abs().amin(1)[moved].max()) > 1e-2  # the laws are not those of the identity


@pytest.mark.parametrize("case", WRAPPED.values(), ids=WRAPPED)
@each_interpolant
def test_residuals_vanish_at_exact_maps_made_of_maps(interpolant: Interpolant, case: Parametrisation):
    law = gaussian(2, interpolant)
    flow_map = exact_map(law, case)
    x, s, t = every_order(law)
    for name, equation in EQUATIONS.items():
        residual = equation()(flow_map, x, s, t, law.velocity)
        assert float(residual.value.abs().max()) < TIGHT, name
    assert float((flow_map(flow_map(x, s, t), t, s) - x).abs().max()) < TIGHT


@pairs_of(interpolant=INTERPOLANTS, case=MAPS, name=named(DERIVATIVES))
def test_residuals_vanish_in_every_engine(interpolant: Interpolant, case: Parametrisation, name: str):
    law = gaussian(2, interpolant)
    x, s, t = every_order(law)
    s, t = 0.02 + 0.95 * s, 0.02 + 0.95 * t  # room for a central difference inside [0, 1]
    limits = {"dual": TIGHT, "torch": TIGHT, "finite-difference": 1e-6 * (1 + largest(x))}
    for engine, limit in limits.items():
        for stop in Stop:
            residual = EQUATIONS[name](stop, engine)(exact_map(law, case), x, s, t, law.velocity)
            assert (largest(residual.value) < limit).all(), (engine, stop)


@each_map
@each_interpolant
def test_the_diagonal_is_the_velocity(interpolant: Interpolant, case: Parametrisation):
    """u_{t,t} = b_t, and X_{s,s} is the identity to the last bit."""
    law = gaussian(2, interpolant)
    flow_map = exact_map(law, case)
    x, s, _ = points(law, "diagonal")
    torch.testing.assert_close(flow_map.velocity(x, s), law.velocity(x, s), rtol=1e-12, atol=1e-12)
    assert torch.equal(flow_map(x, s, s), x)


@each_interpolant
def test_the_exact_velocity_is_continuous_up_to_both_ends(interpolant: Interpolant):
    """Also where alpha has no derivative: alpha alpha' has a limit, and it alone is in b between centred Gaussians."""
    law = gaussian(2, interpolant)
    law = exact.Gaussian(law.mean, law.covariance, None, law.base_covariance, interpolant)
    x = torch.randn(ROWS, 2, dtype=torch.float64, generator=generator(3))
    one = torch.ones(ROWS, dtype=torch.float64)
    for end, inside in ((one, one - 1e-7), (0 * one, 0 * one + 1e-7)):
        # the backward difference of the flow itself, and the velocity beside the end
        slope = (law.flow_map(x, end, inside) - x) / (inside - end)[:, None]
        velocity = law.velocity(x, end)
        torch.testing.assert_close(velocity, slope, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(velocity, law.velocity(x, inside), rtol=1e-4, atol=1e-4)


@pairs_of(every=3, interpolant=INTERPOLANTS)
def test_solver_flow_is_the_exact_flow(interpolant: Interpolant):
    """The map made of the velocity: against the closed form, the semigroup, the tangent and the round trip."""
    law = gaussian(2, interpolant)
    flow_map = SOLVED(law.velocity, method="dopri8", rtol=1e-12, atol=1e-12)
    x, s, t = every_order(law)
    size = 1 + largest(x)
    jump = flow_map(x, s, t)
    assert (largest(jump - law.flow_map(x, s, t)) < TIGHT * size).all()
    assert (largest(flow_map(jump, t, s) - x) < TIGHT * size).all()
    split = torch.rand(len(s), dtype=torch.float64, generator=generator(1)).clamp(0.1, 0.9)
    residual = Semigroup()(flow_map, x, s, t, law.velocity, split)
    assert (largest((t - s)[:, None] * residual.value) < TIGHT * size).all()
    torch.testing.assert_close(flow_map.velocity(x, s), law.velocity(x, s), rtol=0, atol=0)


def test_solver_flow_obeys_lagrange_through_its_steps():
    """A fixed-step solver is an ordinary function of (s, t): its derivative tends to the velocity with its order."""
    law = gaussian(2, Linear())
    x, s, t = points(law, "forward")
    t = 0.99 * t + 0.005
    worst = []
    for steps in (4, 8):
        flow_map = SOLVED(law.velocity, method="rk4", steps=steps)
        residual = Lagrangian(engine="finite-difference")(flow_map, x, s, t, law.velocity).value
        worst.append(float(residual.abs().max()))
    assert worst[1] < 1e-3
    assert worst[0] / worst[1] > 8


# teacher methods ------------------------------------------------------------------------------------------------------


def objective_at_exact(
    name: str, law: exact.Gaussian, case: Parametrisation, rows: int, seed: int = 0
) -> tuple[Objective, RandomInputs]:
    """A method at the exact map of `law`, and a draw of `rows` whose `cond` moves the map away row by row.

    Times are pressed into the part of [0, 1] where the coefficients are smooth: the laws hold at each (s, t).
    """
    rng = generator(seed)
    still = Still(law, case)
    objective = METHODS[name](
        exact_map(law, case),
        velocity=lambda x, t, cond=None: law.velocity(x, t),
        frozen=case.build(still),
        interpolant=law.interpolant,
        plain=True,
    )
    x1, x0 = law.sample(rows, rng, torch.float64), base_sample(law, rows, rng)
    draw = objective.draw(x1, x0, zeros(rows, law.dim).requires_grad_(), generator=rng)
    last = last_time(law.interpolant)
    return objective, draw._replace(s=last * draw.s, t=last * draw.t)


class Still(ExactNetwork):
    """An exact network that `cond` does not move."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x, s, t)


def loss_and_gradients(objective: Objective, draw: RandomInputs) -> tuple[float, Tensor]:
    """The loss, and the gradient of each row's loss in the row's own parameters, `(B, FEATURES, D)`."""
    return float(objective.evaluate(draw).value.detach()), row_gradients(objective, draw)


def push(draw: RandomInputs, size: float) -> RandomInputs:
    """The same draw with the map moved away: one direction for all rows."""
    direction = torch.randn(draw.cond.shape[1:], dtype=torch.float64, generator=generator(4))
    return draw._replace(cond=(size * direction / direction.norm()).expand_as(draw.cond))


@pairs_of(every=9, interpolant=INTERPOLANTS, case=MAPS, dim=SIZES, name=named(TAUGHT))
def test_taught_methods_have_no_gradient_at_the_exact_map(
    interpolant: Interpolant, case: Parametrisation, dim: int, name: str
):
    """Nor loss; and both appear as soon as the map is moved away."""
    objective, draw = objective_at_exact(name, gaussian(dim, interpolant), case, 9)
    loss, gradients = loss_and_gradients(objective, draw)
    assert loss < 1e-16
    assert float(gradients.abs().max()) < 1e-8
    losses = [float(objective.evaluate(push(draw, size)).value) for size in (-0.2, -0.1, 0.1, 0.2)]
    assert min(losses[1], losses[2]) > 1e-6
    assert losses[0] > losses[1]
    assert losses[3] > losses[2]


def test_scd_teaches_an_endpoint_map():
    """A consistency model X_{s,1} = net away from the exact one has a loss."""
    objective, draw = objective_at_exact("scd", gaussian(2, Linear()), MAPS["endpoint"], 9)
    assert float(objective.evaluate(push(draw, 0.2)).value) > 1e-6


class Straightened:
    """The flow of the pairs (x0, X_{0,1}(x0)) of a Gaussian's flow, X_{0,1}(x) = A x + c, along a path without noise.

    I_t = M_t x0 + beta_t c with M_t = alpha_t + beta_t A, so that X_{s,t}(x) = M_t M_s^-1 (x - beta_s c) + beta_t c.
    """

    def __init__(self, law: exact.Gaussian) -> None:
        self.dim, self.interpolant, self.law = law.dim, law.interpolant, law
        corners = torch.cat([torch.zeros(1, law.dim), torch.eye(law.dim)]).double()
        ends = law.flow_map(corners, torch.zeros(law.dim + 1).double(), torch.ones(law.dim + 1).double())
        self.c, self.A = ends[0], (ends[1:] - ends[0]).mT

    def flow_map(self, x: Tensor, s: Tensor, t: Tensor, cond: None = None) -> Tensor:
        path = self.interpolant
        return self.apply(path.alpha(t), path.beta(t), self.start(x, s))

    def velocity(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        path = self.interpolant
        return self.apply(path.alpha_dot(t), path.beta_dot(t), self.start(x, t))

    def _moments(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of I_t, and the variances of its coordinates, `(B, D)`."""
        path, one = self.interpolant, torch.ones_like(x)
        mean = self.apply(path.alpha(t), path.beta(t), one * self.law.base_mean)
        root = torch.linalg.cholesky(self.law.base_covariance)
        columns = [self.apply(path.alpha(t), path.beta(t), one * column) for column in (*root.mT, 0 * root[0])]
        return mean, sum((column - columns[-1]).square() for column in columns[:-1])  # type: ignore[return-value]

    def start(self, x: Tensor, s: Tensor) -> Tensor:
        alpha, beta = self.interpolant.alpha(s), self.interpolant.beta(s)
        matrix = alpha[:, None, None] * torch.eye(self.dim) + beta[:, None, None] * self.A
        return torch.linalg.solve(matrix, x - beta[:, None] * self.c)

    def apply(self, a: Tensor, b: Tensor, x0: Tensor) -> Tensor:
        return a[:, None] * x0 + b[:, None] * (x0 @ self.A.mT + self.c)


@pairs_of(name=named(name for name in INTERPOLANTS if not INTERPOLANTS[name].noisy), case=MAPS, dim=SIZES)
def test_reflow_has_no_gradient_at_the_flow_of_its_pairs(name: str, case: Parametrisation, dim: int):
    """Row by row: the pairs are a function of x0, and so is the velocity through each point."""
    law = gaussian(dim, INTERPOLANTS[name])
    straight, rng = Straightened(law), generator(0)
    objective = methods.reflow(
        exact_map(straight, case),  # type: ignore[arg-type]
        teacher=law.velocity,
        coupling=FlowPairs(exact_map(law, AVERAGE)),
        interpolant=law.interpolant,
    )
    x1, x0 = law.sample(9, rng, torch.float64), base_sample(law, 9, rng)
    draw = objective.draw(x1, x0, generator=rng)._replace(cond=zeros(9, dim).requires_grad_())
    draw = draw._replace(t=last_time(law.interpolant) * draw.t)
    size = float(1 + x0.abs().max())
    loss, gradients = loss_and_gradients(objective, draw)
    assert loss < 1e-16 * size**2
    assert float(gradients.abs().max()) < 1e-8 * size
    losses = [float(objective.evaluate(push(draw, size)).value) for size in (-0.2, -0.1, 0.1, 0.2)]
    assert losses[0] > losses[1] > 1e-6
    assert losses[3] > losses[2] > 1e-6


@each_map
@each_interpolant
def test_shortcut_is_exact_but_for_its_shortest_legs(interpolant: Interpolant, case: Parametrisation):
    """Those are two steps along the velocity, whose mean is off by the order of their length."""
    law, worst = gaussian(2, interpolant), []
    for levels in (5, 6, 7):
        objective = methods.shortcut(exact_map(law, case), levels=levels, interpolant=interpolant)
        assert isinstance(objective, SplitRows)
        rows = 64
        d = 2.0 ** -(torch.arange(rows) % levels).double()
        s = torch.floor(torch.rand(rows, generator=generator(2)).double() / d) * d
        x1, x0 = law.sample(rows, generator(3), torch.float64), base_sample(law, rows, generator(3))
        draw = RandomInputs(x0, x1, torch.randn(rows, 2, generator=generator(5)).double(), s, s + d, s, None)
        last = last_time(interpolant)
        draw = draw._replace(s=last * s, t=last * (s + d))
        part = objective.second.evaluate(draw).parts["semigroup"].sqrt()
        short = d == 2.0 ** (1 - levels)
        assert float(part[~short].max()) < TIGHT
        worst.append(float(part[short].max()))
    assert worst[0] > 1.5 * worst[1] > 2.25 * worst[2] > 0


# methods that learn from dI -------------------------------------------------------------------------------------------

MANY = 6000


def assert_mean_gradient_is_zero(name: str, law: exact.Gaussian, case: Parametrisation) -> None:
    objective, draw = objective_at_exact(name, law, case, MANY)
    gradients = row_gradients(objective, draw)
    assert gradients.shape == (MANY, FEATURES, law.dim)
    assert float(gradients.std(0).min()) > 1e-3, "nothing is tested: no row has a gradient"
    assert z_scores(gradients, draw.s).largest < 4


@pairs_of(interpolant=INTERPOLANTS, dim=SIZES, name=named(DIRECT))
def test_direct_methods_have_no_mean_gradient(interpolant: Interpolant, dim: int, name: str):
    """Within four standard errors in each parameter, and in the growth in each band of s."""
    assert_mean_gradient_is_zero(name, gaussian(dim, interpolant), AVERAGE)


def chord(flow_map: maps.FlowMap, interpolant: Interpolant) -> Objective:
    """X_{s,1}(I_s) = sg X_{w,1}(I_w), w = s + l (1 - s), l uniform: a target further along the path, and biased."""
    equation = Semigroup(Stop.TARGET, velocity_first=True)
    return MapMatching(flow_map, interpolant, equation, times=times.ToData(), split=times.UniformLeg())


# At the start of training, with a constant weight. Not seen at these rows are the later and shorter legs, whose bias is
# below the noise: alphaflow at l = 0.3 (seen at 60,000 rows on most paths), and soflow at its own first l = 0.1.
LONG_LEGS: dict[str, tuple[Callable[..., Objective], int]] = {
    "chord": (chord, MANY),
    "alphaflow": (functools.partial(methods.alphaflow, weight=Constant()), MANY),
    "soflow": (functools.partial(methods.soflow, first_leg=1.0, weight=Constant()), 5 * MANY),
    "consistency_training": (methods.consistency_training, MANY),
    "easy_consistency_tuning": (methods.easy_consistency_tuning, MANY),
}


@pairs_of(interpolant=INTERPOLANTS, dim=SIZES, name=named(LONG_LEGS))
def test_a_long_first_leg_along_the_path_has_a_mean_gradient(interpolant: Interpolant, dim: int, name: str):
    """The statistic sees what it is for."""
    method, rows = LONG_LEGS[name]
    found = exact.mean_gradient(
        lambda flow_map: method(flow_map, interpolant=interpolant), gaussian(dim, interpolant), rows=rows, progress=0.0
    )
    assert found.largest > 5


@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("case", [MAPS["endpoint"], MAPS["trigonometric"]], ids=["endpoint", "trigonometric"])
def test_direct_methods_have_no_mean_gradient_in_other_parametrisations(case: Parametrisation, name: str):
    assert_mean_gradient_is_zero(name, gaussian(2, Linear()), case)


@pairs_of(every=3, interpolant=INTERPOLANTS, name=named(name for name in DIRECT if METHODS[name].descends))
def test_moving_away_raises_the_direct_losses(interpolant: Interpolant, name: str):
    """By more than four standard errors of the difference, on one draw, in both directions."""
    objective, draw = objective_at_exact(name, gaussian(2, interpolant), AVERAGE, MANY)
    for size in (-3.0, 3.0):
        rise = sum(objective.evaluate(push(draw, size)).parts.values()) - sum(objective.evaluate(draw).parts.values())
        assert isinstance(rise, Tensor)
        assert float(z_score(rise)) > 4, size


def test_eulerian_estimation_promises_no_descent():
    """The exact map is a critical point of the update, and no minimum of the loss.

    E|d_s X + grad X . dI|^2 has in it E|grad X . (dI - b)|^2, which a map that contracts more makes smaller.
    """
    law = gaussian(1, Linear())

    class Contracting(nn.Module):
        """The exact network with the slope of its map lowered by (t - s) cond."""

        def __init__(self) -> None:
            super().__init__()
            self.exact = ExactNetwork(law, AVERAGE)

        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return self.exact(x, s, t) - cond[:, None] * x

    objective = METHODS["eulerian_estimation"](AverageVelocity(Contracting()), interpolant=law.interpolant)
    rng = generator(2)
    x1, x0 = law.sample(MANY, rng, torch.float64), base_sample(law, MANY, rng)
    draw = objective.draw(x1, x0, torch.zeros(MANY, dtype=torch.float64).requires_grad_(), generator=rng)
    value = objective.evaluate(draw)
    update = MANY * torch.autograd.grad(value.value, draw.cond)[0]
    assert abs(float(z_score(update[:, None]))) < 4  # a critical point of the update
    moved = objective.evaluate(draw._replace(cond=torch.full((MANY,), 0.05, dtype=torch.float64)))
    assert float(z_score(moved.parts["eulerian"] - value.parts["eulerian"])) < -4  # and yet the loss falls


# refusals -------------------------------------------------------------------------------------------------------------


def small(dim: int = 2) -> tuple[exact.Gaussian, maps.FlowMap, Tensor, Tensor, Tensor]:
    law = gaussian(dim, Linear())
    return law, exact_map(law, AVERAGE), *points(law, "forward", 3)


EACH = [equation(stop) for equation in EQUATIONS.values() for stop in (Stop.NONE, Stop.TARGET)] + [Eulerian(step=0.1)]
each_equation = pytest.mark.parametrize("equation", EACH, ids=str)


@each_equation
@pytest.mark.parametrize("name", ["s", "t"])
def test_equations_refuse_bad_times(equation: equations.Equation, name: str):
    law, flow_map, x, s, t = small()
    good = {"s": s, "t": t}

    def call(value: object) -> None:
        equation(flow_map, x, velocity=law.velocity, **(good | {name: value}))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\] .* got values from .* to 1\.5: rescale"):
        call(torch.tensor([0.1, 1.5, 0.2], dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\] .* got values from -0\.01 to"):
        call(torch.tensor([0.1, 0.5, -0.01], dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\]"):
        call(torch.tensor([0.1, float("nan"), 0.2], dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"{name} must have shape \(3,\), .* got \(3, 1\): use {name}\.expand\(3\)"):
        call(s[:, None])
    with pytest.raises(ValueError, match=rf"{name} must have shape \(3,\), .* got \(2,\)"):
        call(s[:2])
    with pytest.raises(ValueError, match=rf"{name} must have shape \(3,\), .* got \(\)"):
        call(torch.tensor(0.5))
    with pytest.raises(ValueError, match=rf"{name} must be a tensor of shape \(3,\), got 0\.5: use torch\.full"):
        call(0.5)
    with pytest.raises(ValueError, match=rf"{name} must be floating point, got torch\.int64"):
        call(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("equation", [Lagrangian(), Eulerian(), Eulerian(step=0.1), Semigroup(legs=3)], ids=str)
def test_split_is_for_two_legs(equation: equations.Equation):
    law, flow_map, x, s, t = small()
    with pytest.raises(ValueError, match="split is for the semigroup equation with two legs, got it for"):
        equation(flow_map, x, s, t, law.velocity, 0.5 * s)


def test_a_bad_split_is_refused():
    law, flow_map, x, s, t = small()
    with pytest.raises(ValueError, match=r"split must lie in \[0, 1\] .* to 1\.2"):
        Semigroup()(flow_map, x, s, t, law.velocity, 1.2 * torch.ones_like(s))
    with pytest.raises(ValueError, match=r"split must have shape \(3,\), .* got \(1,\)"):
        Semigroup()(flow_map, x, s, t, law.velocity, s[:1])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Semigroup(legs=1), "Semigroup needs legs >= 2, or 1 with velocity_first=True, got 1"),
        (lambda: Eulerian(step=0.0), r"Eulerian needs a step in \(0, 1\], or None for the derivative, got 0\.0"),
        (lambda: Eulerian(step=1.5), r"Eulerian needs a step in \(0, 1\], or None for the derivative, got 1\.5"),
        (lambda: Eulerian(Stop.TANGENT, step=0.1), "a finite step has no spatial derivative to detach"),
    ],
    ids=["legs", "step-0", "step-1.5", "step-tangent"],
)
def test_equations_refuse_bad_options(make, words: str):
    with pytest.raises(ValueError, match=words):
        make()


def test_an_unknown_engine_is_refused():
    law, flow_map, x, s, t = small()
    with pytest.raises(ValueError, match="engine must be one of 'dual', 'torch', 'finite-difference', got 'jax'"):
        Lagrangian(engine="jax")(flow_map, x, s, t, law.velocity)


class Wide(nn.Module):
    """A network whose output has a column too many."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.cat([x, x[:, :1]], 1)


@each_equation
@each_map
def test_a_network_of_the_wrong_width_is_refused(case: Parametrisation, equation: equations.Equation):
    law, _, x, s, t = small()
    words = r"Wide must return the shape of its input x \(3, 2\), got \(3, 3\): make its last layer as wide as the data"
    with pytest.raises(ValueError, match=words):
        equation(case.build(Wide()), x, s, t, law.velocity)


@pytest.mark.parametrize(
    "name", [name for name in METHODS if METHODS[name].source == "teacher" and not name.endswith("-taught")]
)
def test_a_missing_teacher_is_refused(name: str):
    words = rf"{METHODS[name].function.__name__} needs a teacher, got none: pass teacher=fn .* learns from data"
    with pytest.raises(ValueError, match=words):
        METHODS[name](AverageVelocity(nn.Linear(2, 2)))


@pytest.mark.parametrize("method", [methods.lmd, methods.emd], ids=["lmd", "emd"])
def test_the_map_is_not_its_own_teacher(method):
    net = nn.Linear(2, 2)
    flow_map = AverageVelocity(net)
    for teacher in (flow_map, flow_map.velocity, AverageVelocity(net).velocity, net):
        words = rf"{method.__name__}: the teacher is the map itself, or shares .*pass Target\(flow_map\)\.velocity"
        with pytest.raises(ValueError, match=words):
            method(flow_map, teacher=teacher)
        assert all(p.requires_grad for p in flow_map.parameters())  # and the refusal froze nothing
    method(flow_map, teacher=Target(flow_map).velocity)
    assert all(p.requires_grad for p in flow_map.parameters())
    with pytest.raises(ValueError, match="the teacher is the map itself"):
        method(flow_map, teacher=FromTeacher(flow_map.velocity))


def test_a_teacher_is_a_callable_that_keeps_the_shape():
    _, flow_map, x, s, t = small()
    with pytest.raises(ValueError, match=r"a teacher must be a callable .* got float"):
        methods.lmd(flow_map, teacher=0.5)  # type: ignore[arg-type]
    narrow = FromTeacher(lambda x, t, cond=None: x[:, :1])
    for equation in (Lagrangian(), Eulerian()):
        with pytest.raises(ValueError, match=r"the teacher must return the shape of x \(3, 2\), got \(3, 1\)"):
            equation(flow_map, x, s, t, narrow)


def test_the_velocity_of_a_pair_needs_its_pair():
    _, flow_map, x, s, t = small()
    with pytest.raises(ValueError, match=r"the velocity of pairs \(x0, x1\): use it in an objective"):
        Lagrangian()(flow_map, x, s, t, FromInterpolant(Linear()))
