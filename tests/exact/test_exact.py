"""Laws of the exact solutions: conditional means, the continuity equation, the map equations, and the push-forward."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmaps.exact import Checkerboard, Gaussian, GaussianMixture
from flowmaps.interpolants import Interpolant, Linear, Trigonometric, VarianceExploding, VariancePreserving, WithNoise

QUIET = [Linear(), Trigonometric(), VariancePreserving(), VarianceExploding(sigma_max=3.0, rho=3.0)]
PATHS = QUIET + [WithNoise(path, scale=0.3) for path in QUIET[:3]]
DOUBLE = torch.float64
BATCH = 7
every_path = pytest.mark.parametrize("path", PATHS, ids=str)
some_paths = pytest.mark.parametrize("path", [PATHS[0], PATHS[3], PATHS[6]], ids=str)
every_dim = pytest.mark.parametrize("dim", [1, 2, 5])


def deviation(path: Interpolant) -> float:
    """Deviation of the base that goes with a path."""
    return path.sigma_max if isinstance(path, VarianceExploding) else 1.3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def uniform(number: int, low: float = 0.05, high: float = 0.95, seed: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(number, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def covariances(number: int, dim: int, seed: int) -> Tensor:
    root = random(number, dim, dim, seed=seed)
    return root @ root.mT / dim + 0.05 * torch.eye(dim, dtype=DOUBLE)


def gaussian(dim: int, path: Interpolant) -> Gaussian:
    """Commuting covariances that are not multiples of the identity, nor of each other."""
    basis = torch.linalg.qr(random(dim, dim)).Q
    base, data = (basis @ (0.1 + random(dim, seed=seed).square()).diag() @ basis.mT for seed in (4, 5))
    return Gaussian(random(dim, seed=2), data, random(dim, seed=3), base, path)


def mixture(dim: int, path: Interpolant) -> GaussianMixture:
    return GaussianMixture([1.0, 2.0, 0.5], 1.5 * random(3, dim), covariances(3, dim, 4), deviation(path), path)


def board(path: Interpolant) -> Checkerboard:
    return Checkerboard(deviation(path), path)


def laws(path: Interpolant) -> list[Gaussian | GaussianMixture | Checkerboard]:
    return [*(gaussian(dim, path) for dim in (1, 2, 5)), *(mixture(dim, path) for dim in (1, 2, 5)), board(path)]


def divergence(fn, x: Tensor) -> Tensor:
    """Trace of the Jacobian of a row-wise map, `(B,)`."""
    value = fn(x)
    columns = (torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1]))
    return sum(columns, torch.zeros_like(x[:, 0]))


# every law ------------------------------------------------------------------------------------------------------------


@every_path
def test_velocity_and_density_satisfy_the_continuity_equation(path: Interpolant) -> None:
    """d_t log rho + div b + b . grad log rho = 0, all by autograd."""
    for law in laws(path):
        x, t = random(BATCH, law.dim).requires_grad_(), uniform(BATCH, 0.02, 0.97).requires_grad_()
        log_density = law.log_density(x, t)
        score, rate = torch.autograd.grad(log_density.sum(), (x, t))
        terms = torch.stack([rate, divergence(lambda y, law=law, t=t: law.velocity(y, t), x)])
        terms = torch.cat([terms, (law.velocity(x, t) * score).sum(1, keepdim=True).T])
        torch.testing.assert_close(terms.sum(0) / (1 + terms.abs().sum(0)), torch.zeros_like(t), rtol=0, atol=1e-11)


@every_path
def test_denoiser_is_the_conversion_of_the_velocity(path: Interpolant) -> None:
    for law in (mixture(5, path), board(path)):
        x, t = random(BATCH, law.dim), uniform(BATCH)
        converted = path.velocity_to_denoiser(law.velocity(x, t), x, t, law.scale)
        torch.testing.assert_close(law.denoiser(x, t), converted, rtol=1e-9, atol=1e-9)


@some_paths
def test_density_of_the_data_is_that_at_time_one(path: Interpolant) -> None:
    for law in laws(path):
        x = law.sample(BATCH, torch.Generator().manual_seed(0), DOUBLE)
        torch.testing.assert_close(law.log_density(x), law.log_density(x, torch.ones(BATCH, dtype=DOUBLE)))


@some_paths
def test_density_integrates_to_one(path: Interpolant) -> None:
    """The trapezoidal rule on a wide square."""
    grid = torch.linspace(-12, 12, 301, dtype=DOUBLE)
    x = torch.cartesian_prod(grid, grid)
    for law in (gaussian(2, path), mixture(2, path), board(path)):
        total = law.log_density(x, torch.full_like(x[:, 0], 0.6)).exp().sum() * (grid[1] - grid[0]) ** 2
        assert float(total) == pytest.approx(1, abs=1e-6)


def test_samples_have_the_mean_and_covariance_of_the_data() -> None:
    number = 40_000
    for law in laws(Linear()):
        x = law.sample(number, torch.Generator().manual_seed(5), DOUBLE)
        if isinstance(law, Gaussian):
            mean, cov = law.mean, law.covariance
        elif isinstance(law, GaussianMixture):
            mean = law.weights @ law.means
            second = law.covariances + law.means[:, :, None] * law.means[:, None, :]
            cov = (law.weights[:, None, None] * second).sum(0) - torch.outer(mean, mean)
        else:  # each axis is uniform on [-1, 1]; the means of an axis over even and odd intervals are -1/4 and 1/4
            mean, cov = torch.zeros(2, dtype=DOUBLE), torch.full((2, 2), 1 / 16, dtype=DOUBLE)
            cov.fill_diagonal_(1 / 3)
        largest = float(cov.diagonal().max())
        assert (x.mean(0) - mean).abs().max() < 5 * math.sqrt(largest / number)
        assert (torch.cov(x.T).reshape(cov.shape) - cov).abs().max() < 10 * largest / math.sqrt(number)


def test_dtype_and_generator_are_obeyed() -> None:
    for law in laws(WithNoise(Linear())):
        draws = [law.sample(9, torch.Generator().manual_seed(2), torch.float32) for _ in range(2)]
        assert draws[0].dtype == torch.float32
        assert draws[0].shape == (9, law.dim)
        assert torch.equal(*draws)
        x, t = draws[0], torch.full((9,), 0.4)
        values = law.velocity(x, t), law.flow_map(x, t, t / 2), law.log_density(x), law.log_density(x, t)
        assert [v.dtype for v in values] == [torch.float32] * 4
        assert [tuple(v.shape) for v in values] == [(9, law.dim), (9, law.dim), (9,), (9,)]
        half = law.velocity(x.bfloat16(), t.bfloat16()) if not isinstance(law, Gaussian) else values[0]
        torch.testing.assert_close(half.float(), values[0], rtol=0.05, atol=0.1)


@some_paths
def test_flow_at_equal_times_is_the_identity(path: Interpolant) -> None:
    """And its derivative in t there is the velocity (the tangent condition)."""
    for law in laws(path):
        x, t = random(BATCH, law.dim), uniform(BATCH)
        late = t.clone().requires_grad_()
        value = law.flow_map(x, t, late)
        torch.testing.assert_close(value, x, rtol=1e-14, atol=1e-14)
        (slope,) = torch.autograd.grad(value[:, 0].sum(), late)
        torch.testing.assert_close(slope, law.velocity(x, t)[:, 0], rtol=1e-9, atol=1e-9)
        one = torch.ones_like(t)
        torch.testing.assert_close(law.flow_map(x, one, one), x, rtol=1e-14, atol=1e-14)


def test_torch_func_differentiates_velocities() -> None:
    """jvp, vjp and Hessian-like compositions; what a Lagrangian loss asks of a teacher."""
    for law in laws(WithNoise(Trigonometric())):
        x, t, v = random(BATCH, law.dim), uniform(BATCH), random(BATCH, law.dim, seed=8)
        _, forward = torch.func.jvp(lambda y, law=law, t=t: law.velocity(y, t), (x,), (v,))
        step = 1e-5 * v
        finite = (law.velocity(x + step, t) - law.velocity(x - step, t)) / 2e-5
        torch.testing.assert_close(forward, finite, rtol=1e-6, atol=1e-6)
        y = x.clone().requires_grad_()
        (once,) = torch.autograd.grad(law.velocity(y, t).square().sum(), y, create_graph=True)
        (twice,) = torch.autograd.grad(once.square().sum(), y)
        assert twice.isfinite().all()


# Gaussian -------------------------------------------------------------------------------------------------------------


@every_path
@every_dim
def test_gaussian_velocity_is_the_regression_of_dI_on_I(path: Interpolant, dim: int) -> None:
    """m' + Cov(dI, I) Cov(I)^-1 (x - m) with whole matrices."""
    law, x, t = gaussian(dim, path), random(BATCH, dim), uniform(BATCH)
    a, b, c = (f(t)[:, None, None] for f in (path.alpha, path.beta, path.gamma))
    ad, bd, cd = (f(t)[:, None, None] for f in (path.alpha_dot, path.beta_dot, path.gamma_dot))
    eye = torch.eye(dim, dtype=DOUBLE)
    cross = a * ad * law.base_covariance + b * bd * law.covariance + c * cd * eye
    cov = a**2 * law.base_covariance + b**2 * law.covariance + c**2 * eye
    centre, drift = a[:, 0] * law.base_mean + b[:, 0] * law.mean, ad[:, 0] * law.base_mean + bd[:, 0] * law.mean
    expected = drift + (cross @ torch.linalg.solve(cov, (x - centre)[..., None]))[..., 0]
    torch.testing.assert_close(law.velocity(x, t), expected, rtol=1e-10, atol=1e-10)
    reference = torch.distributions.MultivariateNormal(centre, cov).log_prob(x)
    torch.testing.assert_close(law.log_density(x, t), reference, rtol=1e-10, atol=1e-10)


@every_path
@every_dim
def test_gaussian_flow_solves_both_equations(path: Interpolant, dim: int) -> None:
    """d_t X = b_t(X) and d_s X + grad X b_s = 0, by forward and by reverse mode."""
    law, x, s, t = gaussian(dim, path), random(BATCH, dim), uniform(BATCH), uniform(BATCH, seed=2)
    one = torch.ones_like(t)
    value, slope = torch.func.jvp(lambda r: law.flow_map(x, s, r), (t,), (one,))
    torch.testing.assert_close(slope, law.velocity(value, t), rtol=1e-9, atol=1e-9)
    _, along = torch.func.jvp(lambda y, r: law.flow_map(y, r, t), (x, s), (law.velocity(x, s), one))
    torch.testing.assert_close(along, torch.zeros_like(x), rtol=0, atol=1e-9)
    late = t.clone().requires_grad_()
    (reverse,) = torch.autograd.grad(law.flow_map(x, s, late).sum(), late)
    torch.testing.assert_close(reverse, slope.sum(1), rtol=1e-9, atol=1e-9)


@every_path
@every_dim
def test_gaussian_flow_is_a_semigroup_with_inverse(path: Interpolant, dim: int) -> None:
    """With the ends of time, and s and t in either order."""
    law, x = gaussian(dim, path), random(BATCH, dim)
    s, w, t = (uniform(BATCH, 0, 1, seed) for seed in (1, 2, 3))
    s[0], t[0], w[1], s[2], t[2] = 0, 1, 1, 1, 0
    direct = law.flow_map(x, s, t)
    torch.testing.assert_close(law.flow_map(law.flow_map(x, s, w), w, t), direct, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(law.flow_map(direct, t, s), x, rtol=1e-9, atol=1e-9)


@every_path
def test_gaussian_flow_carries_the_density(path: Interpolant) -> None:
    """log rho_t(X) + log |det grad X| = log rho_s(x); the map is affine, so its gradient is a difference."""
    law, x, s, t = gaussian(5, path), random(BATCH, 5), uniform(BATCH), uniform(BATCH, seed=2)
    columns = [law.flow_map(x + e, s, t) - law.flow_map(x, s, t) for e in torch.eye(5, dtype=DOUBLE)]
    volume = torch.linalg.slogdet(torch.stack(columns, 2)).logabsdet
    carried = law.log_density(law.flow_map(x, s, t), t) + volume
    torch.testing.assert_close(carried, law.log_density(x, s), rtol=1e-9, atol=1e-9)


def test_gaussian_flow_at_one_point_of_data() -> None:
    """Where covariance is zero the flow arrives at the mean."""
    law = Gaussian([1.0, -2.0], torch.zeros(2, 2))
    x = law.flow_map(random(3, 2), torch.zeros(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE))
    torch.testing.assert_close(x, law.mean.expand(3, 2))


def test_gaussian_batch_as_large_as_the_dimension() -> None:
    """Times go with rows, also where B = D."""
    law, x, t = gaussian(5, Linear()), random(5, 5), uniform(5)
    rows = [law.velocity(x[i : i + 1], t[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(law.velocity(x, t), torch.cat(rows))


# mixture --------------------------------------------------------------------------------------------------------------


@every_path
def test_mixture_velocity_is_the_mean_of_dI_by_quadrature(path: Interpolant) -> None:
    """E[dI | I = x] in one dimension: over (x0, x1), the latent noise taking the rest, or over x1 alone."""
    law = mixture(1, path)
    x1 = torch.linspace(-30, 30, 3001, dtype=DOUBLE)[:, None]
    for x, time in itertools.product((-0.7, 1.1), (0.2, 0.5, 0.8)):
        t = torch.tensor([time], dtype=DOUBLE)
        a, b, c = path.alpha(t), path.beta(t), path.gamma(t)
        x0 = torch.linspace(-12, 12, 1201, dtype=DOUBLE)[None] if path.noisy else (x - b * x1) / a
        z = (x - a * x0 - b * x1) / c if path.noisy else torch.zeros_like(x0)
        log_weight = law.log_density(x1)[:, None] - 0.5 * (x0 / law.scale) ** 2 - 0.5 * z**2
        weight = log_weight.flatten().softmax(0).reshape(log_weight.shape)
        slope = path.alpha_dot(t) * x0 + path.beta_dot(t) * x1 + path.gamma_dot(t) * z
        got = law.velocity(torch.full((1, 1), x, dtype=DOUBLE), t)
        assert float(got) == pytest.approx(float((weight * slope).sum()), rel=1e-8, abs=1e-8)


@every_path
@every_dim
def test_mixture_of_one_component_is_a_gaussian(path: Interpolant, dim: int) -> None:
    """Velocity, density, flow; and each label chooses one of the components."""
    law, scale = mixture(dim, path), deviation(path)
    x, s, t = random(BATCH, dim), uniform(BATCH), uniform(BATCH, seed=2)
    s[0], t[0], s[1], t[1] = 0, 1, 1, 0
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    base = scale**2 * torch.eye(dim, dtype=DOUBLE)
    parts = [Gaussian(m, c, None, base, path) for m, c in zip(law.means, law.covariances, strict=True)]
    single = GaussianMixture([3.0], law.means[:1], law.covariances[:1], scale, path)
    inside = uniform(BATCH, seed=3)
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(single.velocity(x, inside), parts[0].velocity(x, inside), **close)
    torch.testing.assert_close(single.log_density(x, inside), parts[0].log_density(x, inside), **close)
    torch.testing.assert_close(single.log_density(x), parts[0].log_density(x), **close)
    torch.testing.assert_close(single.flow_map(x, s, t), parts[0].flow_map(x, s, t), **close)
    velocity = torch.stack([p.velocity(x, inside) for p in parts])[labels, torch.arange(BATCH)]
    torch.testing.assert_close(law.velocity(x, inside, labels), velocity, **close)
    flow = torch.stack([p.flow_map(x, s, t) for p in parts])[labels, torch.arange(BATCH)]
    torch.testing.assert_close(law.flow_map(x, s, t, labels), flow, **close)


@some_paths
def test_mixture_flow_solves_its_equation(path: Interpolant) -> None:
    """d_t X = b_t(X) by autograd through the solver; semigroup, round trip, and the density carried."""
    law, x = mixture(2, path), random(BATCH, 2)
    s, w, t = (uniform(BATCH, 0.05, 0.95, seed) for seed in (1, 2, 3))
    start, late = x.clone().requires_grad_(), t.clone().requires_grad_()
    value = law.flow_map(start, s, late)
    slopes = [torch.autograd.grad(value[:, i].sum(), (start, late), retain_graph=True) for i in range(2)]
    slope, jacobian = torch.stack([g[1] for g in slopes], 1), torch.stack([g[0] for g in slopes], 1)
    torch.testing.assert_close(slope, law.velocity(value, t), rtol=1e-8, atol=1e-8)
    carried = law.log_density(value, t) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(carried, law.log_density(x, s), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(law.flow_map(law.flow_map(x, s, w), w, t), value, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(law.flow_map(value, t, s), x, rtol=1e-8, atol=1e-8)


def test_mixture_labels_are_those_of_the_samples() -> None:
    law = GaussianMixture([1.0, 3.0], [[-9.0], [9.0]], torch.ones(2, 1, 1))
    x, labels = law.sample_with_labels(4000, torch.Generator().manual_seed(0))
    assert torch.equal(x[:, 0] > 0, labels == 1)
    assert float(labels.double().mean()) == pytest.approx(0.75, abs=0.03)


# checkerboard ---------------------------------------------------------------------------------------------------------


def cells() -> list[tuple[float, float]]:
    return [(0.5 * i - 1, 0.5 * j - 1) for i in range(4) for j in range(4) if (i + j) % 2 == 0]


@every_path
def test_board_velocity_is_the_mean_of_dI_by_quadrature(path: Interpolant) -> None:
    """E[dI | I = x] over the eight cells by Gauss's rule; given x1 the noise of I is (x - beta x1) / omega."""
    law = board(path)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(60))
    corner = torch.tensor(cells(), dtype=DOUBLE)[:, None]
    data = (corner + (torch.cartesian_prod(nodes, nodes) + 1) / 4).reshape(-1, 2)
    log_rule = torch.cartesian_prod(weights, weights).prod(1).log().repeat(8)
    x, t = random(BATCH, 2), uniform(BATCH, 0.01, 0.95)
    beta, omega = path.beta(t)[:, None, None], path.omega(t, law.scale)[:, None, None]
    noise = (x[:, None] - beta * data) / omega
    share = (log_rule - 0.5 * noise.square().sum(2)).softmax(1)[..., None]
    slope = path.beta_dot(t)[:, None, None] * data + path.omega_dot(t, law.scale)[:, None, None] * noise
    torch.testing.assert_close(law.velocity(x, t), (share * slope).sum(1), rtol=1e-9, atol=1e-9)
    total = (log_rule - 0.5 * noise.square().sum(2)).logsumexp(1) - math.log(32) - 2 * omega[:, 0, 0].log()
    torch.testing.assert_close(law.log_density(x, t), total - math.log(2 * math.pi), rtol=1e-9, atol=1e-9)


def literal_velocity(x: tuple[float, float], time: float) -> list[float]:
    """b_t(x) of the linear path, sum over cells of products of error functions, in 50 digits."""
    mp = pytest.importorskip("mpmath")
    with mp.workdps(50):
        t = mp.mpf(time)
        root = mp.sqrt(2)

        def axis(x: float, low: float):
            ends = [(mp.mpf(x) - t * (low + 0.5)) / (1 - t), (mp.mpf(x) - t * low) / (1 - t)]
            tails = [mp.erfc(end / root) / 2 for end in (ends if ends[0] > 0 else [-ends[1], -ends[0]])]
            mass = tails[0] - tails[1]
            first = (mp.exp(-(ends[0] ** 2) / 2) - mp.exp(-(ends[1] ** 2) / 2)) / mp.sqrt(2 * mp.pi)
            return mass, first

        total, noise = mp.mpf(0), [mp.mpf(0), mp.mpf(0)]
        for low in cells():
            (mass0, first0), (mass1, first1) = axis(x[0], low[0]), axis(x[1], low[1])
            total += mass0 * mass1
            noise = [noise[0] + first0 * mass1, noise[1] + mass0 * first1]
        noise = [n / total for n in noise]
        return [float((mp.mpf(a) - (1 - t) * n) / t - n) for a, n in zip(x, noise, strict=True)]


@pytest.mark.parametrize("time", [1e-9, 1e-3, 0.1, 0.5, 0.9, 1 - 2.0**-6])
@pytest.mark.parametrize("x", [(0.25, 0.25), (0.3, -0.1), (-0.625, 0.125), (1.5, -0.75), (4.0, 5.0), (0.0, 0.0)])
def test_board_velocity_against_many_digits(x: tuple[float, float], time: float) -> None:
    """In the cells, in the gaps, on their border and far out, from t = 0 to close to 1; both precisions."""
    expected = torch.tensor([literal_velocity(x, time)], dtype=DOUBLE)
    law, t = Checkerboard(), torch.tensor([time], dtype=DOUBLE)
    got = law.velocity(torch.tensor([x], dtype=DOUBLE), t)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    single = law.velocity(torch.tensor([x], dtype=torch.float32), t)  # time in double: 1 - t is what matters here
    torch.testing.assert_close(single.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@every_path
def test_board_is_finite_everywhere(path: Interpolant, dtype: torch.dtype) -> None:
    """Velocity, its gradient and density from t = 0 to 1, for points from the centre to 1e4 away."""
    law = board(path)
    for time, size in itertools.product(
        (0.0, 1e-30, 1e-8, 1e-3, 0.5, 0.999, 1 - 1e-6, 1 - 2**-24, 1.0), (0, 0.5, 10, 1e4)
    ):
        x = (size * random(BATCH, 2)).to(dtype).requires_grad_()
        t = torch.full((BATCH,), time, dtype=dtype)
        velocity, log_density = law.velocity(x, t), law.log_density(x, t)
        (slope,) = torch.autograd.grad(velocity.sum(), x)
        assert velocity.isfinite().all(), (time, size)
        assert log_density.isfinite().all() or size == 1e4, (time, size)  # minus infinity in single precision
        assert slope.isfinite().all(), (time, size)


def test_board_single_precision_agrees_with_double() -> None:
    """The gradient too: times up to 0.99, where rounding of x itself does not yet matter."""
    x = random(2000, 2).float()
    t = uniform(2000, 0.0, 0.99).float()
    values = []
    for dtype in (torch.float32, DOUBLE):
        y = x.to(dtype).requires_grad_()
        velocity = Checkerboard().velocity(y, t.to(dtype))
        (slope,) = torch.autograd.grad(velocity.sum(), y)
        values.append((velocity.double(), slope.double()))
    torch.testing.assert_close(values[0][0], values[1][0], rtol=3e-3, atol=3e-4)
    relative = (values[0][1] - values[1][1]).abs() / (1 + values[1][1].abs())
    assert relative.median() < 1e-5
    assert relative.max() < 0.02


def test_board_velocity_at_the_end_of_time() -> None:
    """At t = 1 the limit on the support is b_1(x) = x for the linear path; off it the projection stands in."""
    law = Checkerboard()
    x = law.sample(50, torch.Generator().manual_seed(0), DOUBLE)
    torch.testing.assert_close(law.velocity(x, torch.ones(50, dtype=DOUBLE)), x)
    outside = torch.tensor([[2.0, 0.75]], dtype=DOUBLE)
    end = law.velocity(outside, torch.ones(1, dtype=DOUBLE))
    torch.testing.assert_close(end, torch.tensor([[1.0, 0.75]], dtype=DOUBLE))


def test_board_masses_are_exact_areas() -> None:
    """Against counting on a grid that refines both, for sizes whose squares straddle edges; and against samples."""
    for bins in (1, 3, 8, 50):
        fine = (torch.arange(4 * bins, dtype=DOUBLE) + 0.5) / (4 * bins) * 4
        cell = fine.floor().long()
        even = ((cell[:, None] + cell[None, :]) % 2 == 0).double()
        expected = even.reshape(bins, 4, bins, 4).sum((1, 3))
        torch.testing.assert_close(Checkerboard().cell_masses(bins), expected / expected.sum(), rtol=0, atol=1e-15)
    assert float(Checkerboard().cell_masses().sum()) == pytest.approx(1, abs=1e-13)
    assert Checkerboard().cell_masses(4)[0].tolist() == [0.125, 0, 0.125, 0]


def test_board_samples_are_uniform_on_the_cells() -> None:
    x = Checkerboard().sample(8000, torch.Generator().manual_seed(0), DOUBLE)
    assert (Checkerboard().log_density(x) == -math.log(2)).all()
    assert chi_square(x, 8) < 61.1  # 31 degrees of freedom, one in a thousand


def chi_square(x: Tensor, bins: int) -> float:
    """Pearson's statistic of counts against the exact masses; squares of mass zero must be empty."""
    index = ((x + 1) / 2 * bins).floor().long().clamp(0, bins - 1)
    counts = torch.zeros(bins, bins, dtype=DOUBLE).index_put_(
        (index[:, 0], index[:, 1]), torch.ones(1, dtype=DOUBLE), True
    )
    masses = Checkerboard().cell_masses(bins) * len(x)
    assert counts[masses == 0].sum() == 0
    full = masses > 0
    return float(((counts[full] - masses[full]) ** 2 / masses[full]).sum())


def test_board_flow_carries_the_base_to_the_data_and_back() -> None:
    """Every end lies in an even cell, uniformly; the way back returns to the start; any path has the same ends."""
    x, zero = random(640, 2), torch.zeros(640, dtype=DOUBLE)
    end = Checkerboard().flow_map(x, zero, zero + 1)
    assert (Checkerboard().log_density(end) == -math.log(2)).all()
    assert chi_square(end, 8) < 61.1
    back = Checkerboard().flow_map(end, zero + 1, zero)
    assert (back - x).abs().median() < 1e-8
    assert (back - x).abs().max() < 1e-3  # rows that end close to an edge are badly conditioned
    few = slice(0, 50)
    other = Checkerboard(interpolant=VariancePreserving()).flow_map(x[few], zero[few], zero[few] + 1)
    torch.testing.assert_close(other, end[few], rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", [PATHS[1], PATHS[3], PATHS[6]], ids=str)
def test_board_flow_solves_its_equation(path: Interpolant) -> None:
    """Central differences in t against b_t(X); semigroup; round trip."""
    law, x = board(path), deviation(path) * random(BATCH, 2)
    zero = torch.zeros(BATCH, dtype=DOUBLE)
    s, w, t = (uniform(BATCH, 0.1, 0.9, seed) for seed in (1, 2, 3))
    x = law.flow_map(x, zero, s)
    step = 1e-4
    early, value, late = law.flow_map(
        x.repeat(3, 1), s.repeat(3), torch.cat([t - step, t, t + step]), tolerance=1e-11
    ).chunk(3)
    torch.testing.assert_close((late - early) / (2 * step), law.velocity(value, t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(law.flow_map(law.flow_map(x, s, w), w, t), value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(law.flow_map(value, t, s), x, rtol=1e-6, atol=1e-6)


def test_board_flow_of_no_rows() -> None:
    none = torch.zeros(0, dtype=DOUBLE)
    assert Checkerboard().flow_map(torch.zeros(0, 2, dtype=DOUBLE), none, none).shape == (0, 2)


# errors ---------------------------------------------------------------------------------------------------------------

EYE = torch.eye(2)
BAD_LAWS = [
    (lambda: Gaussian([[0.0, 0.0]], EYE), r"mean must have shape \(D,\), got \(1, 2\)"),
    (lambda: Gaussian([0.0, math.nan], EYE), "mean must be finite"),
    (lambda: Gaussian([0.0, 0.0], torch.ones(2)), r"covariance must have shape \(2, 2\)"),
    (lambda: Gaussian([0.0, 0.0], torch.eye(3)), r"covariance must have shape \(2, 2\), got \(3, 3\)"),
    (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), r"symmetric, got entries that differ by 0\.5"),
    (lambda: Gaussian([0.0, 0.0], -EYE), "positive semidefinite, got the eigenvalue -1"),
    (lambda: Gaussian([0.0, 0.0], EYE * math.inf), "covariance must be finite"),
    (lambda: Gaussian([0.0, 0.0], EYE, [0.0]), r"base_mean must have shape \(2,\)"),
    (lambda: Gaussian([0.0, 0.0], [[2.0, 1.0], [1.0, 2.0]], None, [[1.0, 0.0], [0.0, 2.0]]), "must commute"),
    (lambda: GaussianMixture([1.0, 0.0], torch.zeros(2, 2), torch.stack([EYE, EYE])), "weights must be positive"),
    (lambda: GaussianMixture([1.0], torch.zeros(2, 2), torch.stack([EYE, EYE])), "one for each mean"),
    (lambda: GaussianMixture([1.0, 1.0], torch.zeros(2), torch.stack([EYE, EYE])), r"means must have shape \(K, D\)"),
    (lambda: GaussianMixture([1.0], torch.zeros(1, 2), EYE), r"covariances must have shape \(1, 2, 2\)"),
    (lambda: GaussianMixture([1.0], torch.zeros(1, 2), -EYE[None]), "positive semidefinite"),
    (lambda: GaussianMixture([1.0], torch.zeros(1, 2), EYE[None], scale=0.0), "scale must be a positive finite"),
    (lambda: Checkerboard(scale=-1.0), "scale must be a positive finite"),
    (lambda: Checkerboard().cell_masses(0), "bins must be at least 1"),
]


@pytest.mark.parametrize(("build", "words"), BAD_LAWS, ids=[words for _, words in BAD_LAWS])
def test_bad_laws_are_refused(build, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


def test_bad_points_are_refused() -> None:
    t = torch.full((3,), 0.5)
    for law in (gaussian(2, Linear()), mixture(2, Linear()), Checkerboard()):
        calls = (law.velocity, law.log_density, lambda x, t, law=law: law.flow_map(x, t, t))
        for call in calls:
            with pytest.raises(ValueError, match=r"x must have shape \(B, 2\), got \(3, 3\)"):
                call(torch.zeros(3, 3), t)
            with pytest.raises(ValueError, match="floating point"):
                call(torch.zeros(3, 2, dtype=torch.long), t)
            with pytest.raises(ValueError, match=r"shape \(3,\)"):
                call(torch.zeros(3, 2), t[:2])
            with pytest.raises(ValueError, match=r"\[0, 1\]"):
                call(torch.zeros(3, 2), t + 1)


def test_bad_conditions_are_refused() -> None:
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    labels = torch.tensor([0, 1, 2])
    for law in (gaussian(2, Linear()), Checkerboard()):
        with pytest.raises(ValueError, match="has no classes"):
            law.velocity(x, t, labels)
        with pytest.raises(ValueError, match="has no classes"):
            law.flow_map(x, t, t, labels)
    law = mixture(2, Linear())
    with pytest.raises(ValueError, match=r"cond must lie in 0\.\.2, got labels from 1 to 3"):
        law.velocity(x, t, labels + 1)
    with pytest.raises(ValueError, match=r"integer labels of shape \(3,\), got torch.float32"):
        law.flow_map(x, t, t, labels.float())
