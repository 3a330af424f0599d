"""Distances and weights against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch
from cases import INTERPOLANTS

from flowmaps.interpolants import Linear, VarianceExploding
from flowmaps.losses import (
    Adaptive,
    Cauchy,
    Chain,
    Constant,
    Huber,
    Learned,
    Perceptual,
    PerNoise,
    Power,
    PseudoHuber,
    SplitPower,
    StripWeight,
    TowardsNoise,
    TruncatedSNR,
    absolute,
    measure,
    squared,
)
from flowmaps.maps import AverageVelocity
from flowmaps.methods import improved_consistency_training
from flowmaps.nn import MLP


def residual(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniforms(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    d, s, t = torch.rand(3, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return d, s, t


def test_squared_sums_over_dimensions_and_keeps_rows_apart():
    r = residual(5, 3, 2)
    expected = [sum(float(v) ** 2 for v in row.flatten()) for row in r]
    assert squared(r).tolist() == pytest.approx(expected)
    assert squared(torch.tensor([3.0, -2.0])).tolist() == [9.0, 4.0]  # one number a row


def test_pseudo_huber_is_the_papers_formula_and_its_limits():
    r = residual(5, 3)
    norms = r.norm(dim=1)
    torch.testing.assert_close(PseudoHuber(0.3)(r), (norms**2 + 0.09).sqrt() - 0.3)
    torch.testing.assert_close(PseudoHuber(1e-9)(r), norms, rtol=1e-6, atol=0)  # far away: the norm
    torch.testing.assert_close(PseudoHuber(1e4)(r), norms**2 / 2e4, rtol=1e-6, atol=0)  # near zero: squared
    assert PseudoHuber(0.3)(torch.zeros(5, 3)).tolist() == [0] * 5


def test_cauchy_and_absolute_are_their_formulas():
    r = residual(5, 3, 2)
    for got, row in zip(Cauchy(0.3)(r).tolist(), r, strict=True):
        assert got == pytest.approx(math.log(1 + float(row.square().sum()) / (2 * 0.09)))
    assert absolute(r).tolist() == pytest.approx([sum(abs(float(v)) for v in row.flatten()) for row in r])


def test_a_distance_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"one number for each row, shape \(5,\), got \(5, 3\): sum over the other axes"
    ):
        measure(torch.square, residual(5, 3))
    with pytest.raises(ValueError, match=r"got \(\)"):
        measure(Perceptual(torch.nn.functional.mse_loss), residual(5, 3), residual(5, 3))


def test_constant_power_and_strip():
    d, s, t = uniforms(31)
    torch.testing.assert_close(Constant(2.5)(d, s, t), 2.5 * d)
    torch.testing.assert_close(Power(2)(d, s, t), (t - s) ** 2 * d)
    torch.testing.assert_close(Power(0)(d, s, s), d)
    kept = StripWeight(0.25)(d, s, t)
    for k in range(31):
        assert kept[k] == (d[k] if abs(t[k] - s[k]) <= 0.25 else 0)
    assert 0 < int((kept > 0).sum()) < 31


def test_power_two_turns_the_loss_on_u_into_the_loss_on_the_jump():
    u, s, t = residual(7, 3), *uniforms(7)[1:]
    jump = (t - s)[:, None] * u
    torch.testing.assert_close(Power(2)(squared(u), s, t), squared(jump))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_adaptive_weight_is_detached(power: float):
    d, s, t = uniforms(9)
    d = d.requires_grad_(True)
    value = Adaptive(power, 1e-2)(d, s, t)
    torch.testing.assert_close(value, d / (d + 1e-2) ** power)
    (gradient,) = torch.autograd.grad(value.sum(), d)
    torch.testing.assert_close(gradient, (d.detach() + 1e-2) ** -power)  # as if the weight were a number


def test_learned_weight_starts_at_one_and_settles_at_the_log_of_the_distance():
    torch.manual_seed(0)
    weight = Learned(width=16).double()
    _, s, t = uniforms(257)
    level = torch.exp(2 * (t - s))  # a distance known at each (s, t)
    torch.testing.assert_close(weight(level, s, t), level)
    optimiser = torch.optim.Adam(weight.parameters(), lr=1e-2)
    for _ in range(400):
        optimiser.zero_grad()
        weight(level, s, t).mean().backward()
        optimiser.step()
    # at the optimum of exp(-w) d + w in w, w = log d and the value is 1 + log d
    learned = weight(level, s, t).detach()
    torch.testing.assert_close(learned, 1 + level.log(), rtol=0, atol=0.02)
    factor = weight(2 * level, s, t) - weight(level, s, t)  # exp(-w) d: every (s, t) counts alike
    torch.testing.assert_close(factor.detach(), torch.ones_like(s), rtol=0, atol=0.15)


# weights by noise and by the first leg -------------------------------------------------------------------------------


QUIET = ["linear", "trigonometric", "variance-preserving", "variance-exploding"]


@pytest.mark.parametrize("name", QUIET)
def test_per_noise_is_the_weight_of_improved_consistency_training(name: str):
    """lambda(sigma_i) = 1 / (sigma_{i+1} - sigma_i), sigma_{i+1} at s, sigma_i where the first leg ends."""
    path, scale = INTERPOLANTS[name], 2.0
    d, s, split = uniforms(9)
    t = torch.ones_like(s)
    w = s + split * (t - s)
    lost = path.noise_to_signal(s, scale) - path.noise_to_signal(w, scale)
    expected = d / lost.clamp_max(80)
    torch.testing.assert_close(PerNoise(path, scale)(d, s, t, split), expected)


def test_per_noise_on_edms_grid():
    """Neighbours i and i + 1 of sigma_i = 80 (i / N)^7, weights 1 / (sigma_{i+1} - sigma_i)."""
    path = VarianceExploding(80.0, 7.0)
    i = torch.arange(17, dtype=torch.float64)
    sigma = 80 * (torch.arange(18, dtype=torch.float64) / 17) ** 7
    s, one = 1 - (i + 1) / 17, torch.ones(17, dtype=torch.float64)
    split = (1 / 17) / (1 - s)
    got = PerNoise(path, 80.0)(one, s, one, split)
    torch.testing.assert_close(got, 1 / sigma.diff(), rtol=1e-6, atol=0)


def test_per_noise_is_held_where_there_is_no_noise_to_lose():
    """At 1e-4 of the noise at hand; and from s = 0, where sigma is infinite, the difference counts as 80."""
    one = torch.ones(3, dtype=torch.float64)
    s, split = torch.tensor([0.0, 0.5, 0.2], dtype=torch.float64), torch.tensor([0.5, 0.0, 1e-6], dtype=torch.float64)
    got = PerNoise(Linear())(one, s, one, split).tolist()
    assert got == pytest.approx([1 / 80, 1e4, 1e4 / 4])


def test_split_power_and_the_two_weights_of_alphaflow():
    """1 / alpha, or alpha / (|.|^2 + c) detached (2510.20771, definition 1 and appendix G.2)."""
    d, s, split = uniforms(9)
    t = torch.ones_like(s)
    torch.testing.assert_close(SplitPower(-1.0)(d, s, t, split), d / split)
    torch.testing.assert_close(SplitPower(0.0)(d, s, t, split), d)
    d = d.requires_grad_()
    value = Chain(Adaptive(1.0, 1e-3), SplitPower(1.0))(d, s, t, split)
    torch.testing.assert_close(value, split * d / (d + 1e-3))
    (gradient,) = torch.autograd.grad(value.sum(), d)
    torch.testing.assert_close(gradient, split / (d.detach() + 1e-3))


def test_split_power_minus_one_undoes_the_share_in_the_gradient():
    """|l r|^2 / l, the target being fixed as u - l r, has the gradient of |r|^2 for any l: MeanFlow as l tends to 0."""
    u, r = residual(7, 3).requires_grad_(), residual(7, 3, seed=1)
    split, s, t = uniforms(7)
    target = u.detach() - split[:, None] * r
    (gradient,) = torch.autograd.grad(SplitPower(-1.0)(squared(u - target), s, t, split).sum(), u)
    torch.testing.assert_close(gradient, 2 * r)


@pytest.mark.parametrize("name", QUIET)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_truncated_snr_is_the_loss_on_the_denoisers_of_a_ddim_jump(name: str, scale: float):
    """max(SNR_s, 1) |D - D~|^2 with X = omega_t / omega_s x + (beta_t - beta_s omega_t / omega_s) D (2202.00512)."""
    path, (x, one, two) = INTERPOLANTS[name], residual(3, 9, 4)
    s, t, _ = uniforms(9, seed=2)
    omega_s, omega_t = path.omega(s, scale)[:, None], path.omega(t, scale)[:, None]
    beta_s, beta_t = path.beta(s)[:, None], path.beta(t)[:, None]

    def average(denoised: torch.Tensor) -> torch.Tensor:
        jump = omega_t / omega_s * x + (beta_t - beta_s * omega_t / omega_s) * denoised
        return (jump - x) / (t - s)[:, None]

    snr = (beta_s / omega_s)[:, 0] ** 2
    expected = snr.clamp_min(1) * squared(one - two)
    got = TruncatedSNR(path, scale)(squared(average(one) - average(two)), s, t)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    # and it is the greater of the losses on the denoiser and on the noise, x = beta D + omega eps
    noises = [(x - beta_s * denoised) / omega_s for denoised in (one, two)]
    torch.testing.assert_close(got, torch.maximum(squared(one - two), squared(noises[0] - noises[1])))


def test_truncated_snr_of_the_linear_path_and_its_end():
    d, s, t = uniforms(9)
    torch.testing.assert_close(TruncatedSNR(Linear())(d, s, t), torch.maximum(s, 1 - s) ** 2 * d)
    torch.testing.assert_close(TruncatedSNR(Linear())(d, s, torch.ones_like(t)), torch.maximum(s, 1 - s) ** 2 * d)
    last = [0.0, 0.5, 31 / 32]
    s = torch.tensor(last, dtype=torch.float64)
    for path in (INTERPOLANTS[name] for name in QUIET):
        assert bool(TruncatedSNR(path)(torch.ones_like(s), s, s + 1 / 32).isfinite().all())


def test_truncated_snr_is_regular_where_the_times_meet():
    """Limit of ((t - s) / (beta_t omega_s - beta_s omega_t))^2 at t = s: 1 over the Wronskian squared; 1 if linear."""
    s = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    got = TruncatedSNR(Linear())(torch.ones_like(s), s, s)
    torch.testing.assert_close(got, torch.maximum(s, 1 - s) ** 2)


def test_weights_of_a_first_leg_ask_for_its_share():
    d, s, t = uniforms(5)
    with pytest.raises(
        ValueError, match="PerNoise is for a composition of two legs: it needs the share of the first leg, split"
    ):
        PerNoise(Linear())(d, s, t)
    with pytest.raises(ValueError, match="SplitPower is for a composition of two legs: it needs the share"):
        SplitPower(1.0)(d, s, t)


def test_a_chain_applies_its_weights_in_order():
    d, s, t = uniforms(5)
    split = torch.full_like(s, 0.25)
    torch.testing.assert_close(Chain(Power(2.0), SplitPower(-1.0))(d, s, t, split), 4 * (t - s) ** 2 * d)
    one, other = Chain(Constant(2.0), Adaptive()), Chain(Adaptive(), Constant(2.0))
    torch.testing.assert_close(one(d, s, t), 2 * d / (2 * d + 1e-3))
    torch.testing.assert_close(other(d, s, t), 2 * d / (d + 1e-3))
    nested = Chain(SplitPower(-1.0), PerNoise(VarianceExploding(5.0, 1.0)))(d, s, torch.ones_like(s), split)
    torch.testing.assert_close(nested, 4 * d / (0.25 * (1 - s)))
    with pytest.raises(ValueError, match="Chain needs at least one weight, got none"):
        Chain()


def test_parameters_that_are_refused():
    for make, words in [
        (lambda: Constant(0), "value > 0, got 0"),
        (lambda: StripWeight(1.5), r"width in \(0, 1\], got 1.5"),
        (lambda: Adaptive(offset=0.0), "offset > 0, got 0.0"),
        (lambda: PseudoHuber(-1.0), "PseudoHuber needs a finite scale > 0, got -1.0"),
        (lambda: Cauchy(0.0), "Cauchy needs a finite scale > 0, got 0.0"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()


@pytest.mark.parametrize("kind", [PseudoHuber, Huber, Cauchy, Constant, TowardsNoise])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_number_that_is_not_positive_and_finite_is_refused(kind: Any, value: float):
    with pytest.raises(ValueError, match=rf"^{kind.__name__} needs a finite \w+ > 0, got {value}"):
        kind(value)


def test_the_scale_of_pseudo_huber_grows_with_the_dimension():
    """0.00054 sqrt(d), d that of the residual (2310.14189, section 3.3): 0.03 for CIFAR-10."""
    for shape in ((5, 2), (5, 3, 32, 32)):
        residual = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-3
        c = 0.00054 * math.sqrt(residual[0].numel())
        expected = (residual.square().flatten(1).sum(1) + c**2).sqrt() - c
        torch.testing.assert_close(PseudoHuber()(residual), expected, rtol=1e-12, atol=1e-12)
    assert c == pytest.approx(0.03, abs=2e-4)
    objective = improved_consistency_training(AverageVelocity(MLP(2)))
    assert objective.distance.scale is None
    assert improved_consistency_training(AverageVelocity(MLP(2)), huber=0.5).distance.scale == 0.5


def test_the_gradient_of_huber_is_the_clipped_residual():
    residual = torch.tensor([[0.3, -2.0], [5.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = Huber(1.5)(residual)
    torch.testing.assert_close(value, torch.tensor([0.09 + 6 - 2.25, 15 - 2.25], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value.sum(), residual)
    torch.testing.assert_close(gradient, 2 * residual.detach().clamp(-1.5, 1.5))


def test_the_weight_towards_noise_falls_from_one_to_zero():
    s = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    found = TowardsNoise()(torch.full_like(s, 3.0), s, torch.ones_like(s))
    torch.testing.assert_close(found, torch.tensor([3.0, 1.5 * math.cos(math.pi / 8), 0.0], dtype=torch.float64))
