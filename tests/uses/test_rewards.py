"""Weighted samples have the moments of the tilted law in closed form; the deterministic steps are what is said."""

from __future__ import annotations

import math

import pytest
import torch
from cases import AVERAGE, exact_map, gaussian, generator
from torch import Tensor

import flowmaps as fm
from flowmaps.uses.rewards import _systematic

LINEAR = fm.interpolants.Linear()
ROWS = 3000
PEAK, PRECISION = torch.tensor([1.0, -0.5], dtype=torch.float64), torch.tensor([2.0, 0.7], dtype=torch.float64)


def reward(x: Tensor) -> Tensor:
    return -0.5 * (PRECISION.to(x) * (x - PEAK.to(x)).square()).sum(1)


def black_box(x: Tensor) -> Tensor:
    return torch.from_numpy(reward(x).detach().numpy())


def tilted_gaussian(mean: Tensor, covariance: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and log mass of N(mean, covariance) exp(reward / temperature)."""
    strength = torch.diag(PRECISION / temperature)
    new = torch.linalg.inv(torch.linalg.inv(covariance) + strength)
    at = new @ (torch.linalg.solve(covariance, mean) + strength @ PEAK)
    law = torch.distributions.MultivariateNormal(PEAK, covariance + torch.linalg.inv(strength))
    mass = law.log_prob(mean) + 0.5 * torch.logdet(2 * math.pi * torch.linalg.inv(strength))
    return at, new, mass


def standard(law: fm.exact.Gaussian) -> fm.exact.Gaussian:
    """The same data from a standard normal base."""
    return fm.exact.Gaussian(law.mean, law.covariance, interpolant=law.interpolant)


def check(found: fm.uses.Tilted, mean: Tensor, covariance: Tensor) -> None:
    """The moments of weighted samples, within 5 deviations of as many independent ones as the weights leave."""
    number = 0.4 * len(found.x) * min(found.effective)  # samples that were drawn anew depend on each other
    w = found.weights[:, None]
    assert float(w.sum()) == pytest.approx(1.0)
    got = (w * found.x).sum(0)
    spread = covariance.diagonal().sqrt()
    assert bool(((got - mean).abs() < 5 * spread / number**0.5).all()), (got, mean)
    centred = found.x - mean
    second = (w[:, :, None] * centred[:, :, None] * centred[:, None, :]).sum(0)
    scale = torch.outer(spread, spread)
    assert bool(((second - covariance).abs() < 5 * 2**0.5 * scale / number**0.5).all()), (second, covariance)


@pytest.mark.parametrize("path", [LINEAR, fm.interpolants.Trigonometric()], ids=["linear", "trigonometric"])
@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 0.5},
        {"gamma": 1.0, "temperature": 0.3},
        {"gamma": 0.7, "gradient": False},
        {"gamma": 0.0, "gradient": False, "steps": 1},
        {"gamma": 0.6, "threshold": 0.0, "steps": 3},
    ],
)
def test_a_gaussian_times_a_quadratic_reward(path: fm.interpolants.Interpolant, options: dict):
    law = standard(gaussian(2, path))
    rng = generator(11)
    x0 = torch.randn(ROWS, 2, dtype=torch.float64, generator=rng)
    given = {"steps": 5, "interpolant": path, "generator": rng} | options
    found = fm.uses.tilted_samples(
        exact_map(law, AVERAGE), x0, reward if options.get("gradient", True) else black_box, **given
    )
    mean, covariance, _ = tilted_gaussian(law.mean, law.covariance, options.get("temperature", 1.0))
    check(found, mean, covariance)
    assert len(found.effective) == given["steps"]
    steps = given["steps"]  # the last one needs no look-ahead and no gradient
    assert found.evaluations == steps + (steps - 1) * (3 if options.get("gradient", True) else 1)


def test_the_gradient_leaves_more_samples():
    law = standard(gaussian(2, LINEAR))
    found = {}
    for gradient in (True, False):
        rng = generator(5)
        x0 = torch.randn(ROWS, 2, dtype=torch.float64, generator=rng)
        given = {"gamma": 0.5, "temperature": 0.2, "threshold": 0.0, "generator": rng, "gradient": gradient}
        found[gradient] = fm.uses.tilted_samples(exact_map(law, AVERAGE), x0, reward, **given).effective[-1]
    assert found[True] > 1.5 * found[False]


def test_a_mixture_times_a_quadratic_reward():
    law = fm.exact.GaussianMixture(
        [1, 2], [[-1.0, 0.5], [1.2, 0.0]], [[[0.4, 0.1], [0.1, 0.3]], [[0.3, 0.0], [0.0, 0.5]]]
    )
    flow_map = fm.solvers.SolverFlow(law.velocity, method="rk4", steps=5)
    parts = [tilted_gaussian(law.means[k], law.covariances[k], 0.7) for k in (0, 1)]
    share = (torch.stack([mass for _, _, mass in parts]) + law.weights.log()).softmax(0)
    means = torch.stack([mean for mean, _, _ in parts])
    mean = share @ means
    covariance = sum(
        p * (c + torch.outer(m - mean, m - mean))
        for p, m, c in zip(share, means, (c for _, c, _ in parts), strict=True)
    )
    rng = generator(3)
    x0 = torch.randn(ROWS, 2, dtype=torch.float64, generator=rng)
    for gradient in (True, False):
        found = fm.uses.tilted_samples(flow_map, x0, reward, temperature=0.7, steps=4, gradient=gradient, generator=rng)
        check(found, mean, covariance)
    rows = found.resampled(generator(0))
    assert rows.shape == (ROWS, 2)
    assert float((rows.mean(0) - mean).abs().max()) < 0.1


def test_a_constraint_is_kept():
    law = standard(gaussian(2, LINEAR))
    rng = generator(1)
    x0 = torch.randn(ROWS, 2, dtype=torch.float64, generator=rng)
    inside = lambda x: torch.where(x[:, 0] > law.mean[0], 0.0, -math.inf).double()  # noqa: E731
    found = fm.uses.tilted_samples(exact_map(law, AVERAGE), x0, inside, gradient=False, generator=rng)
    half = law.covariance[0, 0].sqrt() * (2 / math.pi) ** 0.5  # mean of half a Gaussian
    assert float(((found.x[:, 0] > law.mean[0]) | (found.weights == 0)).double().min()) == 1
    assert float((found.weights * (found.x[:, 0] - law.mean[0])).sum()) == pytest.approx(float(half), rel=0.1)


def test_resampling_takes_each_row_in_proportion():
    weights = torch.tensor([0.5, 0.0, 0.3, 0.2])
    rows = _systematic(weights.repeat_interleave(100) / 100, generator(0)) // 100
    assert torch.bincount(rows, minlength=4).tolist() == pytest.approx([200, 0, 120, 80], abs=1)


# the deterministic steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jacobian", [True, False])
def test_guided_jumps_of_a_gaussian_are_an_affine_recursion(jacobian: bool):
    law = standard(gaussian(2, LINEAR))
    x0 = torch.randn(6, 2, dtype=torch.float64, generator=generator(0))
    found = fm.uses.guided_jumps(exact_map(law, AVERAGE), x0, reward, steps=3, strength=0.4, jacobian=jacobian)
    x, one = x0, torch.ones(6, dtype=torch.float64)
    for k in range(3):
        s, t = k / 3, (k + 1) / 3
        spread = law._vectors @ torch.diag((law._values / ((1 - s) ** 2 + s**2 * law._values)).sqrt()) @ law._vectors.mT
        g = (PEAK - (law.mean + (x - s * law.mean) @ spread)) * PRECISION
        x = law.flow_map(x + 0.4 / 3 * (g @ spread if jacobian else g), s * one, t * one)
    torch.testing.assert_close(found, x)


def test_guided_jumps_raise_the_reward_and_sample_another_law():
    law = standard(gaussian(2, LINEAR))
    flow_map = exact_map(law, AVERAGE)
    x0 = torch.randn(2000, 2, dtype=torch.float64, generator=generator(0))
    plain, found = (fm.uses.guided_jumps(flow_map, x0, reward, strength=strength) for strength in (0.0, 2.0))
    assert float(reward(found).mean()) > float(reward(plain).mean()) + 0.3
    assert float((reward(found) - reward(plain)).min()) > -1e-12  # uphill, every row
    _, covariance, _ = tilted_gaussian(law.mean, law.covariance, 1.0)
    assert float((found.T.cov() - covariance).abs().max()) > 0.1 * float(covariance.max())


# refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, options, said",
    [
        (black_box, {}, r"not differentiable: .*gradient=False"),
        (lambda x: x, {}, r"one number a row, of shape \(9,\), got \(9, 2\)"),
        (lambda x: float(x.detach().sum()), {}, "got float"),
        (lambda x: reward(x) * math.nan, {}, "NaN"),
        (lambda x: torch.full((len(x),), -math.inf).to(x), {"gradient": False}, "-inf at every sample"),
        (reward, {"temperature": 0.0}, "temperature > 0"),
        (reward, {"threshold": 1.5}, "threshold"),
        (reward, {"scale": -1.0}, "scale > 0"),
        (reward, {"cond": torch.arange(9)}, "one condition, got rows that differ"),
        (reward, {"gamma": 2.0}, "gamma in"),
        (reward, {"interpolant": fm.interpolants.WithNoise(LINEAR)}, "without latent noise"),
    ],
)
def test_wrong_input_is_told_in_one_line(given, options: dict, said: str):
    law = standard(gaussian(2, LINEAR))
    with pytest.raises(ValueError, match=said):
        fm.uses.tilted_samples(exact_map(law, AVERAGE), torch.zeros(9, 2, dtype=torch.float64), given, **options)


def test_guided_jumps_need_a_gradient():
    law = standard(gaussian(2, LINEAR))
    with pytest.raises(ValueError, match="not differentiable"):
        fm.uses.guided_jumps(exact_map(law, AVERAGE), torch.zeros(9, 2, dtype=torch.float64), black_box)
