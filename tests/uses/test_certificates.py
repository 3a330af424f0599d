"""Certificates hold where W2 is known: perturbed Gaussians, and one-dimensional mixtures, residuals by quadrature."""

from __future__ import annotations

import math

import cases
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import flowmaps as fm
from flowmaps.equations import Eulerian, Lagrangian
from flowmaps.uses import certificates
from flowmaps.uses._quadrature import Quadrature
from flowmaps.uses.certificates import eulerian_form, lagrangian_form

FORMS = {"Lagrangian, paper": 2.22, "Lagrangian": 1.09, "Eulerian, paper": 1.96, "Eulerian": 1.19}
"""The median of estimate over W2 that is known of 40 Gaussians under another perturbation."""
RULE = Quadrature.gauss_legendre(10)


def forms(eulerian: Tensor, lagrangian: Tensor, constants: Tensor) -> dict[str, Tensor]:
    """The four forms of cases `(C, K)`."""
    return {
        "Lagrangian, paper": lagrangian_form(lagrangian, constants, RULE, paper=True),
        "Lagrangian": lagrangian_form(lagrangian, constants, RULE),
        "Eulerian, paper": eulerian_form(eulerian, RULE, paper=True),
        "Eulerian": eulerian_form(eulerian, RULE),
    }


def check(found: dict[str, Tensor], w2: Tensor, slack: float) -> None:
    for name in FORMS:
        assert bool((found[name] >= w2 * (1 - slack) - 1e-9).all()), (name, float((found[name] / w2).min()))
    for name, known in FORMS.items():
        print(f"{name:<18} median over W2 {float((found[name] / w2).median()):.2f}, of other Gaussians {known:.2f}")


# quadrature -----------------------------------------------------------------------------------------------------------


def test_the_quadrature_integrates_polynomials_and_their_tails():
    rule = Quadrature.gauss_legendre(5)
    t = rule.times
    assert float(t**9 @ rule.weights) == pytest.approx(0.1, abs=1e-14)
    torch.testing.assert_close(rule.tails @ t**4, (1 - t**5) / 5, atol=1e-13, rtol=0)
    torch.testing.assert_close(Quadrature.gauss_legendre(1).tails, torch.full((1, 1), 0.5, dtype=torch.float64))


# 1,000 Gaussians ------------------------------------------------------------------------------------------------------


class Perturbed(nn.Module):
    """u of the flow from N(0, 1) to N(m, d^2), plus e (a + b x + c s + d t); `cond` has m, d and e a, ..., e d."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        m, d, *e = (c[:, None] for c in cond.unbind(1))
        s, t = s[:, None], t[:, None]
        size_s, size_t = (((1 - r) ** 2 + r**2 * d**2) ** 0.5 for r in (s, t))
        # (size_t - size_s) / (t - s), regular at s = t
        slope = ((t + s) * (1 + d**2) - 2) / (size_s + size_t)
        return m + (x - s * m) * slope / size_s + e[0] + e[1] * x + e[2] * s + e[3] * t


def velocity(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    exact = cond.clone()
    exact[:, 2:] = 0
    return Perturbed()(x, t, t, exact)


@pytest.mark.parametrize("size", [0.03, 0.3])
def test_every_form_holds_for_1000_gaussians(size: float):
    rng, number = cases.generator(0), 1000
    cond = torch.randn(number, 6, dtype=torch.float64, generator=rng) * torch.tensor([1, 1, size, size, size, size])
    cond[:, 1] = (0.5 * cond[:, 1]).exp()
    flow_map = fm.maps.AverageVelocity(Perturbed())
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(3))  # exact for squares of affine maps
    weights = weights / weights.sum()
    m, d = cond[:, :2].unbind(1)

    def mean_square(equation, x: Tensor, s: float, t: float) -> Tensor:
        rows = cond.repeat_interleave(len(nodes), 0)
        squares = certificates.residual_squares(equation, flow_map, x.reshape(-1, 1), s, t, velocity, rows)
        return squares.reshape(number, -1) @ weights

    noise = nodes.expand(number, -1)
    eulerian, lagrangian, constants = [], [], []
    for time in RULE.times.tolist():
        spread = ((1 - time) ** 2 + time**2 * d**2).sqrt()
        eulerian.append(mean_square(Eulerian(), time * m[:, None] + spread[:, None] * noise, time, 1.0))
        lagrangian.append(mean_square(Lagrangian(), noise, 0.0, time))
        constants.append((time * (1 + d**2) - 1) / spread**2)
    row = torch.stack([x.reshape(1, 1) for x in (torch.tensor(0.0), torch.tensor(1.0))]).double()
    ends = [flow_map(x.expand(number, 1), torch.zeros_like(m), torch.ones_like(m), cond)[:, 0] for x in row]
    w2 = ((ends[0] - m).square() + ((ends[1] - ends[0]).abs() - d).square()).sqrt()
    found = forms(*(torch.stack(values, 1) for values in (eulerian, lagrangian, constants)))
    check(found, w2, 1e-6)
    assert float((found["Eulerian"] / w2).median()) < 1.5  # and is of use


# 1,000 mixtures on the line -------------------------------------------------------------------------------------------


class Mixtures:
    """Mixtures of two Gaussians on the line, a row each, as data of the linear path from N(0, 1)."""

    def __init__(self, number: int, rng: torch.Generator) -> None:
        draw = lambda: torch.randn(number, 1, 2, dtype=torch.float64, generator=rng)  # noqa: E731
        self.means, self.sizes = 0.8 * draw(), (0.25 * draw() - 0.1).exp()
        self.weights = draw().softmax(2)

    def moved(self, by: Tensor, rng: torch.Generator) -> Mixtures:
        other = Mixtures(len(self.means), rng)
        other.means = self.means + by * other.means
        other.sizes = self.sizes * (by * (other.sizes - 0.9)).exp()
        other.weights = (self.weights.log() + by * other.weights.log()).softmax(2)
        return other

    def parts(self, x: Tensor, t: float) -> tuple[Tensor, ...]:
        """Standardised points, deviations and densities of the components at time t; `(C, N) -> (C, N, 2)`."""
        size = ((1 - t) ** 2 + (t * self.sizes) ** 2).sqrt()
        z = (x[..., None] - t * self.means) / size
        return z, size, self.weights * (-0.5 * z**2).exp() / (size * math.sqrt(2 * math.pi))

    def density(self, x: Tensor, t: float) -> Tensor:
        return self.parts(x, t)[2].sum(2)

    def below(self, x: Tensor, t: float) -> Tensor:
        return (self.weights * torch.special.ndtr(self.parts(x, t)[0])).sum(2)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        z, size, share = self.parts(x, t)
        rate = (t * (1 + self.sizes**2) - 1) / size
        return (share * (self.means + rate * z)).sum(2) / share.sum(2)

    def quantile(self, level: Tensor, t: float) -> Tensor:
        """By a table, and Newton's method from there."""
        table = torch.linspace(-9, 9, 181, dtype=torch.float64).expand(len(level), -1)
        below = self.below(table, t)
        k = torch.searchsorted(below, level.contiguous()).clamp(1, 180)
        low, high = below.gather(1, k - 1), below.gather(1, k)
        x = table.gather(1, k - 1) + 0.1 * ((level - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
        for _ in range(2):
            x = x - ((self.below(x, t) - level) / self.density(x, t).clamp_min(1e-15)).clamp(-0.1, 0.1)
        return x


def test_every_form_holds_for_1000_mixtures():
    """The map is the exact flow of one mixture, the teacher the exact velocity of another."""
    rng = cases.generator(1)
    own = Mixtures(1000, rng)
    other = own.moved(0.02 + 0.4 * torch.rand(1000, 1, 1, dtype=torch.float64, generator=rng), rng)
    x = torch.linspace(-7, 7, 121, dtype=torch.float64).expand(1000, -1)
    step = float(x[0, 1] - x[0, 0])
    eulerian, lagrangian, constants = [], [], []
    for time in RULE.times.tolist():
        gap, density = own.velocity(x, time) - other.velocity(x, time), other.density(x, time)
        lagrangian.append(step * (own.density(x, time) * gap**2).sum(1))
        # grad X_{s,1} = rho_s / rho_1(X_{s,1}), X_{s,1} the monotone rearrangement
        inside = own.below(x, time).clamp(1e-13, 1 - 1e-13)
        slope = own.density(x, time) / own.density(own.quantile(inside, 1.0), 1.0)
        eulerian.append(step * (density * (slope * gap) ** 2).sum(1))
        speed = other.velocity(x, time)
        constants.append(((speed[:, 1:] - speed[:, :-1]) / step).amax(1))
    level = torch.linspace(0, 1, 201, dtype=torch.float64)
    level = (0.5 * (level[1:] + level[:-1])).expand(1000, -1)
    w2 = (own.quantile(level, 1.0) - other.quantile(level, 1.0)).square().mean(1).sqrt()
    check(forms(*(torch.stack(values, 1) for values in (eulerian, lagrangian, constants))), w2, 5e-3)


# the estimator --------------------------------------------------------------------------------------------------------


def test_the_certificate_of_a_perturbed_gaussian_map():
    law = cases.gaussian(3, fm.interpolants.Linear())
    flow_map = cases.exact_map(law, cases.AVERAGE)
    rng = cases.generator(3)
    x0 = cases.base_sample(law, 400, rng)
    cond = 0.05 * torch.randn(1, cases.FEATURES, 3, dtype=torch.float64, generator=rng).expand(400, -1, -1)
    teacher = lambda x, t, cond=None: law.velocity(x, t)  # noqa: E731
    found = fm.uses.certificate(flow_map, x0, velocity=teacher, cond=cond, times=5, tolerance=1e-5, generator=rng)
    one = torch.ones(400, dtype=torch.float64)
    gap = flow_map(x0, 0 * one, one, cond) - law.flow_map(x0, 0 * one, one)
    coupled = float(gap.square().sum(1).mean().sqrt())
    assert found.coupled is not None
    assert found.coupled.value == pytest.approx(coupled, rel=1e-4)
    for form in FORMS:
        estimate = found.forms[form]
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.value >= coupled * (1 - 1e-6)
        assert not found.vacuous(form)
    assert found.forms["Eulerian"].value < 2 * coupled
    rates = []  # eigenvalues of a Gaussian's velocity do not depend on x
    for time in found.times.tolist():
        base, data = law._base_values, law._values
        rates.append(float(((time * data - (1 - time) * base) / ((1 - time) ** 2 * base + time**2 * data)).max()))
    np.testing.assert_allclose(found.constants, rates, atol=1e-9)
    # points of the interpolant have the law of the trajectories
    x1 = law.sample(400, rng, torch.float64)
    drawn = fm.uses.certificate(
        flow_map, x0, x1, interpolant=law.interpolant, velocity=teacher, cond=cond, times=5, generator=rng
    )
    assert drawn.coupled is None
    assert drawn.forms["Eulerian"].value == pytest.approx(found.forms["Eulerian"].value, rel=0.15)
    text = found.text(w2=0.0123)
    assert "no bounds" in text
    assert "estimate from below" in text
    assert "0.0123" in text


def test_from_the_map_alone_it_speaks_of_the_maps_own_ode():
    law = cases.gaussian(2, fm.interpolants.Linear())
    x0 = cases.base_sample(law, 50, cases.generator(0))
    cond = torch.ones(50, cases.FEATURES, 2, dtype=torch.float64)  # a map far from the law, with an ODE of its own
    found = fm.uses.certificate(cases.exact_map(law, cases.AVERAGE), x0, cond=cond, times=4, lipschitz_rows=4)
    assert found.own
    assert "the map's own velocity, which may be wrong" in str(found)
    assert found.forms["Eulerian"].value > 0.1


def test_the_lagrangian_form_is_vacuous_where_modes_are_tight():
    law = fm.exact.GaussianMixture([1, 1], [[-1.0], [1.0]], [[[1e-3]], [[1e-3]]])
    rng = cases.generator(2)
    x0, x1 = torch.randn(200, 1, dtype=torch.float64, generator=rng), law.sample(200, rng, torch.float64)
    flow_map = fm.solvers.SolverFlow(law.velocity, method="rk4", steps=4)
    given = {"velocity": law.velocity, "interpolant": law.interpolant, "lipschitz_rows": 200}
    found = fm.uses.certificate(flow_map, x0, x1, **given, times=8)
    assert found.vacuous("Lagrangian, paper")
    assert not found.vacuous("Eulerian")
    assert "Lagrangian, paper  vacuous" in str(found)


def test_the_constant_of_the_board_explodes_towards_the_data():
    board = fm.exact.Checkerboard()
    line = torch.linspace(-1, 1, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    greatest = []
    for time in (0.9, 0.95):
        t = torch.full((len(grid),), time, dtype=torch.float64)
        greatest.append(float(fm.uses.largest_stretching(board.velocity, time * grid, t).max()))
    assert 60 < greatest[0] < 250
    assert greatest[1] > 5 * greatest[0]


def test_lanczos_finds_the_algebraically_largest_eigenvalue():
    rng = cases.generator(5)
    net = cases.Network(6, seed=4)
    x = torch.randn(7, 6, dtype=torch.float64, generator=rng)
    t, cond = torch.rand(7, dtype=torch.float64, generator=rng), torch.randn(7, 2, dtype=torch.float64, generator=rng)
    field = lambda y, r, c: 3 * net(y, r, r, c) - 5 * y  # noqa: E731  (the largest in size are negative)
    full = torch.stack([torch.func.jacrev(lambda y, i=i: field(y[None], t[i : i + 1], cond[i : i + 1])[0])(x[i])
                        for i in range(7)])  # fmt: skip
    want = torch.linalg.eigvalsh(0.5 * (full + full.mT))[:, -1]
    torch.testing.assert_close(fm.uses.largest_stretching(field, x, t, cond, generator=rng), want, atol=1e-9, rtol=0)
    fewer = fm.uses.largest_stretching(field, x, t, cond, steps=4, generator=rng)
    assert bool((fewer <= want + 1e-12).all())


def test_lanczos_goes_on_where_a_krylov_space_ends():
    x = torch.randn(5, 2, 3, dtype=torch.float64, generator=cases.generator(0))
    scale = torch.tensor([-1.0, -1.0, -2.0], dtype=torch.float64)
    found = fm.uses.largest_stretching(lambda y, t, cond=None: scale * y, x, x.new_zeros(5))
    torch.testing.assert_close(found, -x.new_ones(5))


def test_the_square_of_an_exact_map_is_empty_and_that_of_another_is_not():
    law = cases.gaussian(2, fm.interpolants.Linear())
    flow_map = cases.exact_map(law, cases.AVERAGE)
    rng = cases.generator(1)
    x0, x1 = cases.base_sample(law, 20, rng), law.sample(20, rng, torch.float64)
    square = fm.uses.residual_square(flow_map, x0, number=4)
    assert float(torch.stack(square[1:]).max()) < 1e-12
    cond = torch.full((20, cases.FEATURES, 2), 0.3, dtype=torch.float64)
    square = fm.uses.residual_square(flow_map, x0, x1, interpolant=law.interpolant, cond=cond, number=4)
    off = ~torch.eye(4, dtype=torch.bool)
    for residual in square[1:]:
        assert bool((residual[off] > 1e-3).all())
        assert float(residual.diagonal().abs().max()) < 1e-12
    x, s, t = (1 / 3 * (2 * x0 + x1)), torch.full((20,), 1 / 3).double(), torch.ones(20).double()
    back = flow_map(flow_map(x, s, t, cond), t, s, cond) - x
    assert float(square.round_trip[1, 3]) == pytest.approx(float(back.square().sum(1).mean().sqrt()))


def test_the_picture_of_the_square_holds_its_numbers():
    from flowmaps.reports.pictures import residual_square

    values = torch.tensor([[0.0, 1e-2], [1e-3, 0.0]], dtype=torch.float64)
    square = fm.uses.ResidualSquare(torch.tensor([0.0, 1.0]).double(), values, 10 * values)
    figure = residual_square(square)
    shown = [np.asarray(ax.images[0].get_array()) for ax in figure.axes[:2]]
    assert shown[0][1, 0] == 1e-2  # s = 0, t = 1: first column, second row
    assert shown[1][0, 1] == 1e-2
    with pytest.raises(ValueError, match="no positive finite residual"):
        residual_square(square._replace(semigroup=0 * values, round_trip=0 * values))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"x1": torch.zeros(4, 2)}, "x1 and interpolant go together"),
        ({"x1": torch.zeros(4, 3), "interpolant": fm.interpolants.Linear()}, "must have one shape"),
        ({"lipschitz_rows": 0}, "lipschitz_rows >= 1"),
        ({"times": 0}, "times >= 1"),
        ({"lanczos_steps": 0}, "steps >= 1"),
        ({"cond": torch.zeros(3)}, "a row for each of the 4 rows of x0"),
    ],
)
def test_wrong_input_is_told_in_one_line(options: dict, said: str):
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(2, width=4, depth=1))
    with pytest.raises(ValueError, match=said):
        fm.uses.certificate(flow_map, torch.zeros(4, 2), **options)


def test_a_square_refuses_one_time():
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(2, width=4, depth=1))
    with pytest.raises(ValueError, match="number >= 2"):
        fm.uses.residual_square(flow_map, torch.zeros(4, 2), number=1)
    with pytest.raises(ValueError, match="x1 goes with an interpolant"):
        fm.uses.residual_square(flow_map, torch.zeros(4, 2), torch.zeros(4, 2))
