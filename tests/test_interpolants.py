"""Laws of the interpolants: boundary values, derivatives, and conversions against Gaussians in closed form."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from cases import INTERPOLANTS

from flowmaps.exact import Gaussian
from flowmaps.interpolants import (
    BY_NAME,
    Interpolant,
    InterpolantName,
    Linear,
    Trigonometric,
    VarianceExploding,
    VariancePreserving,
    WithNoise,
)

QUIET = [Linear(), Trigonometric(), VariancePreserving(), VarianceExploding(sigma_max=3.0, rho=3.0)]
PATHS = QUIET + [WithNoise(path, scale=0.3) for path in QUIET[:3]]
BATCH, DIM = 7, 5
every_path = pytest.mark.parametrize("path", PATHS, ids=str)
every_scale = pytest.mark.parametrize("scale", [1.0, 2.0])


def times(number: int = BATCH) -> torch.Tensor:
    return torch.linspace(0.05, 0.95, number, dtype=torch.float64)


@every_path
@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "omega"])
def test_the_named_derivative_is_the_derivative(path: Interpolant, name: str) -> None:
    """alpha_dot, beta_dot, gamma_dot, omega_dot against autograd."""
    t = times().requires_grad_()
    value = getattr(path, name)(t)
    (slope,) = torch.autograd.grad(value.sum() + 0 * t.sum(), t)
    torch.testing.assert_close(getattr(path, name + "_dot")(t), slope, rtol=1e-12, atol=1e-12)


@every_path
def test_boundary_values(path: Interpolant) -> None:
    """I_0 = x0 (plus x1 where variance explodes), I_1 = x1, no latent noise at either end."""
    x0, x1, z = torch.randn(3, BATCH, DIM, dtype=torch.float64)
    zero, one = torch.zeros(BATCH, dtype=torch.float64), torch.ones(BATCH, dtype=torch.float64)
    start = x0 + x1 if isinstance(path, VarianceExploding) else x0
    torch.testing.assert_close(path.point(x0, x1, zero, z), start, rtol=0, atol=1e-14)
    torch.testing.assert_close(path.point(x0, x1, one, z), x1, rtol=0, atol=1e-14)


@every_path
@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, BATCH), (BATCH, 3, 2, 1)], ids=str)
def test_velocity_is_the_time_derivative_of_point(path: Interpolant, shape: tuple[int, ...]) -> None:
    """dI_t/dt, for batches of any rank; a square batch shows a time aligned with the wrong axis."""
    x0, x1, z = torch.randn(3, *shape, dtype=torch.float64)
    t = times()
    point, slope = torch.func.jvp(lambda r: path.point(x0, x1, r, z), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(path.velocity(x0, x1, t, z), slope, rtol=1e-11, atol=1e-11)
    row = path.point(x0[2:3], x1[2:3], t[2:3], z[2:3])
    torch.testing.assert_close(point[2:3], row, rtol=0, atol=0)


def test_variance_is_preserved() -> None:
    t = times()
    for path in (Trigonometric(), VariancePreserving()):
        torch.testing.assert_close(path.alpha(t) ** 2 + path.beta(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-15)


def test_variance_preserving_is_finite_to_the_end() -> None:
    """The derivative of alpha is held at its value 1e-6 before the end."""
    end = VariancePreserving().alpha_dot(torch.ones(1, dtype=torch.float64))
    near = VariancePreserving().alpha_dot(torch.full((1,), 1 - 1e-6, dtype=torch.float64))
    torch.testing.assert_close(end, near, rtol=1e-5, atol=0)
    assert VariancePreserving().alpha(torch.ones(1)).item() == 0


def closed_form(path: Interpolant, scale: float) -> tuple[torch.Tensor, ...]:
    """x, t, then velocity, denoiser, noise and score of I_t for Gaussian data, by the formulae of linear regression."""
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)
    mean, cov = torch.randn(DIM, generator=generator, dtype=torch.float64), root @ root.mT + 0.1 * torch.eye(DIM)
    x, t = torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64), times()
    law = Gaussian(mean, cov, base_covariance=scale**2 * torch.eye(DIM), interpolant=path)
    beta, omega = path.beta(t)[:, None], path.omega(t, scale)[:, None]
    eye = torch.eye(DIM, dtype=torch.float64)
    variance = beta[..., None] ** 2 * cov + omega[..., None] ** 2 * eye
    solved = torch.linalg.solve(variance, (x - beta * mean)[..., None])
    denoiser = mean + beta * (cov @ solved)[..., 0]
    return x, t, law.velocity(x, t), denoiser, omega * solved[..., 0], -solved[..., 0]


@every_path
@every_scale
def test_conversions_agree_with_the_gaussian_closed_form(path: Interpolant, scale: float) -> None:
    x, t, velocity, denoiser, noise, score = closed_form(path, scale)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(path.velocity_to_denoiser(velocity, x, t, scale), denoiser, **close)
    torch.testing.assert_close(path.velocity_to_noise(velocity, x, t, scale), noise, **close)
    torch.testing.assert_close(path.velocity_to_score(velocity, x, t, scale), score, **close)
    torch.testing.assert_close(path.denoiser_to_velocity(denoiser, x, t, scale), velocity, **close)
    torch.testing.assert_close(path.noise_to_velocity(noise, x, t, scale), velocity, **close)
    torch.testing.assert_close(path.score_to_velocity(score, x, t, scale), velocity, **close)


@every_path
@every_scale
def test_score_is_the_gradient_of_the_log_density(path: Interpolant, scale: float) -> None:
    law = Gaussian(torch.ones(3), torch.diag(torch.tensor([0.5, 1.0, 2.0])), None, scale**2 * torch.eye(3), path)
    x, t = torch.randn(BATCH, 3, dtype=torch.float64).requires_grad_(), times()
    (score,) = torch.autograd.grad(law.log_density(x, t).sum(), x)
    torch.testing.assert_close(path.velocity_to_score(law.velocity(x, t), x, t, scale), score, rtol=1e-9, atol=1e-9)


@every_path
@every_scale
def test_conversions_undo_each_other(path: Interpolant, scale: float) -> None:
    """For any vector, not only a velocity: the conversions are linear bijections."""
    x, v = torch.randn(2, BATCH, 3, 2, dtype=torch.float64)
    t = times()
    there = (path.velocity_to_denoiser, path.velocity_to_noise, path.velocity_to_score)
    back = (path.denoiser_to_velocity, path.noise_to_velocity, path.score_to_velocity)
    for convert, undo in zip(there, back, strict=True):
        torch.testing.assert_close(undo(convert(v, x, t, scale), x, t, scale), v, rtol=1e-9, atol=1e-9)


@every_path
def test_denoiser_and_noise_make_up_the_point(path: Interpolant) -> None:
    """x = beta D + omega eps."""
    x, v = torch.randn(2, BATCH, DIM, dtype=torch.float64)
    t = times()
    whole = path.beta(t)[:, None] * path.velocity_to_denoiser(v, x, t)
    whole = whole + path.omega(t)[:, None] * path.velocity_to_noise(v, x, t)
    torch.testing.assert_close(whole, x, rtol=1e-11, atol=1e-11)


def test_omega_is_the_deviation_of_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    path, scale = WithNoise(Trigonometric(), scale=0.7), 2.0
    x0, z = torch.randn(2, 100_000, generator=generator, dtype=torch.float64)
    t = torch.full_like(x0, 0.6)
    deviation = path.point(scale * x0, torch.zeros_like(x0), t, z).std()
    torch.testing.assert_close(deviation, path.omega(t[:1], scale)[0], rtol=0.01, atol=0)


# the time of a noise-to-signal ratio ----------------------------------------------------------------------------------


def base_scale(path: Interpolant) -> float:
    """The deviation of the base that a path is made for; with another one the ratio need not fall."""
    inner = path.path if isinstance(path, WithNoise) else path
    return inner.sigma_max if isinstance(inner, VarianceExploding) else 1.0


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_time_of_a_ratio_is_the_inverse_of_omega_over_beta(name: str, factor: float) -> None:
    """Both ways round: ratio -> time -> ratio, and time -> ratio -> time."""
    path, t = INTERPOLANTS[name], torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    scale = factor * base_scale(path)
    ratio = path.omega(t, scale) / path.beta(t)
    assert bool((ratio.diff() < 0).all())  # there is one time for each ratio
    torch.testing.assert_close(path.time_of(ratio, scale), t, rtol=1e-9, atol=1e-12)
    wanted = torch.logspace(-3, 0, 25, dtype=torch.float64) * ratio[0]
    found = path.time_of(wanted, scale)
    torch.testing.assert_close(path.omega(found, scale) / path.beta(found), wanted, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_noise_is_the_data_and_no_signal_is_the_base(name: str, dtype: torch.dtype) -> None:
    """Ratio 0 -> t = 1, ratio infinity -> t = 0, exactly; what is beyond a path that keeps its signal is t = 0."""
    path = INTERPOLANTS[name]
    scale = base_scale(path)
    ends = path.time_of(torch.tensor([0.0, math.inf, 1e30], dtype=dtype), scale)
    assert ends.dtype == dtype
    assert ends[0] == 1
    assert ends[1].item() == pytest.approx(0, abs=1e-15)
    assert ends[2].item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("path", QUIET, ids=str)
def test_the_closed_forms_of_the_time_agree_with_bisection(path: Interpolant) -> None:
    ratio = torch.logspace(-3, 3, 25, dtype=torch.float64)
    ratio = ratio[ratio < 2.5 * 3.0] if isinstance(path, VarianceExploding) else ratio
    torch.testing.assert_close(path.time_of(ratio, 2.5), Interpolant.time_of(path, ratio, 2.5), rtol=1e-9, atol=1e-9)


def test_edms_levels_in_the_time_of_the_linear_path() -> None:
    """s = 1 / (1 + sigma): sigma in [0.002, 80] is s in [0.0123, 0.998]."""
    s = Linear().time_of(torch.tensor([80.0, 0.002], dtype=torch.float64))
    assert s.tolist() == pytest.approx([0.0123, 0.998], abs=5e-5)
    # TrigFlow's time is arctan(sigma / sigma_d), with sigma_d the deviation of the base: s = 1 - 2 / pi of it
    sigma = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    t = Trigonometric().time_of(sigma, 0.5)
    ratio = Trigonometric().omega(t, 0.5) / Trigonometric().beta(t)
    torch.testing.assert_close(ratio, sigma)
    torch.testing.assert_close(t, 1 - 2 / math.pi * torch.arctan(sigma / 0.5))


def test_every_name_of_the_option_has_its_interpolant() -> None:
    assert tuple(BY_NAME) == get_args(InterpolantName)


def test_errors_say_what_to_do() -> None:
    x, t = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"pass z = torch\.randn_like"):
        WithNoise(Linear()).point(x, x, t)
    with pytest.raises(ValueError, match="one shape"):
        Linear().point(x, x[:1], t)
    with pytest.raises(ValueError, match="scale > 0"):
        WithNoise(Linear(), scale=0.0)
    with pytest.raises(ValueError, match="already has latent noise"):
        WithNoise(WithNoise(Linear()))
    with pytest.raises(ValueError, match="sigma_max > 0"):
        VarianceExploding(sigma_max=-1.0)
    with pytest.raises(ValueError, match="rho >= 1"):
        VarianceExploding(rho=0.5)
    with pytest.raises(TypeError, match="abstract"):
        Interpolant()  # type: ignore[abstract]
