"""Operators have their adjoints; restoration has its fixed point, and samples the moments of the posterior."""

from __future__ import annotations

import math

import pytest
import torch
from cases import AVERAGE, exact_map, gaussian, generator
from torch import Tensor

import flowmaps as fm
from flowmaps.uses import operators

LINEAR = fm.interpolants.Linear()
KERNEL = torch.tensor([[0.0, 0.2, 0.1], [0.1, 0.4, 0.0], [0.0, 0.0, 0.2]])
OPERATORS: dict[str, operators.Operator] = {
    "matrix": operators.Matrix(torch.randn(3, 5, generator=generator(0))),
    "mask": operators.Mask((torch.rand(2, 6, 8, generator=generator(0)) > 0.5).float()),
    "blur": operators.Blur(KERNEL, (2, 6, 8)),
    "wide-blur": operators.Blur(torch.rand(1, 7, generator=generator(1)), (1, 3, 8)),
    "downsample": operators.Downsample(2, (2, 6, 8)),
    "radon": operators.Radon([0.0, 0.4, 1.9], (2, 7, 7)),
}


def rows(shape: tuple[int, ...], number: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(number, *shape, dtype=torch.float64, generator=generator(seed))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_an_operator_is_linear_and_has_its_adjoint(operator: operators.Operator):
    x, other = rows(operator.shape), rows(operator.shape, seed=1)
    torch.testing.assert_close(operator(2 * x - other), 2 * operator(x) - operator(other))
    y = rows(tuple(operator(x).shape[1:]), seed=2)
    back = operator.adjoint(y)
    assert back.shape == x.shape
    torch.testing.assert_close((operator(x) * y).sum(), (x * back).sum())


@pytest.mark.parametrize("name", ["matrix", "mask", "blur", "downsample"])
def test_the_norm_of_an_operator_is_its_largest_singular_value(name: str):
    operator = OPERATORS[name]
    unit = torch.eye(math.prod(operator.shape), dtype=torch.float64).reshape(-1, *operator.shape)
    wanted = float(torch.linalg.matrix_norm(operator(unit).flatten(1), 2))
    assert operator.norm() == pytest.approx(wanted, rel=0.01)


def test_operators_do_what_they_are_called():
    x = rows((2, 6, 8))
    shifted = torch.zeros(3, 3)
    shifted[0, 1] = 1  # one row up of the centre
    torch.testing.assert_close(operators.Blur(shifted, (2, 6, 8))(x), x.roll(-1, 2))
    torch.testing.assert_close(operators.Downsample(2, (2, 6, 8))(x)[0, 1, 2, 3], x[0, 1, 4:6, 6:8].mean())
    mask = torch.zeros(2, 6, 8)
    mask[0] = 1
    torch.testing.assert_close(operators.Mask(mask)(x), torch.cat([x[:, :1], 0 * x[:, 1:]], 1))


def test_the_radon_transform_of_a_disc_is_its_chords():
    size, radius = 64, 0.6
    line = (torch.arange(size, dtype=torch.float64) + 0.5) * 2 / size - 1
    disc = ((line[:, None] ** 2 + line**2) < radius**2).double()[None, None]
    found = operators.Radon([0.0, 0.7, math.pi / 2], (1, size, size))(disc)
    chords = 2 * (radius**2 - line**2).clamp_min(0).sqrt()
    assert float((found[0, 0] - chords).abs().mean()) < 0.015
    bar = torch.zeros(1, 1, size, size, dtype=torch.float64)
    bar[..., 40, :] = 1  # a row: seen along the columns everywhere, at a right angle in one place
    straight, turned = operators.Radon([0.0, math.pi / 2], (1, size, size))(bar)[0, 0]
    torch.testing.assert_close(straight, torch.full((size,), 2 / size, dtype=torch.float64))
    assert float(turned.max()) == pytest.approx(2.0, rel=1e-6)


# one point ------------------------------------------------------------------------------------------------------------


def standard(dim: int) -> fm.exact.Gaussian:
    law = gaussian(dim, LINEAR)
    return fm.exact.Gaussian(law.mean, law.covariance)


def test_the_fixed_point_of_a_gaussian_prior():
    law, eta, t = standard(4), 0.3, 0.6
    operator = operators.Matrix(torch.randn(2, 4, dtype=torch.float64, generator=generator(3)))
    y = rows((2,), seed=4)
    found = fm.uses.restore(
        exact_map(law, AVERAGE), y, operator, torch.zeros(3, 4).double(), step=eta, times=[t] * 150,
        generator=generator(0)
    )  # fmt: skip
    s = law._vectors @ torch.diag((law._values / ((1 - t) ** 2 + t**2 * law._values)).sqrt()) @ law._vectors.mT
    a, one = operator.matrix, torch.eye(4, dtype=torch.float64)
    eta_t = eta * (1 - t)
    left = one - t * s + eta_t * t * s @ a.mT @ a
    right = eta_t * t * s @ a.mT @ (y - law.mean @ a.mT).mT
    torch.testing.assert_close(found, law.mean + torch.linalg.solve(left, right).mT, atol=1e-8, rtol=0)


def test_restoration_of_masked_data_is_closer_than_what_was_seen():
    mean, size = torch.zeros(6, dtype=torch.float64), torch.arange(6)
    covariance = 0.9 ** (size[:, None] - size).abs().double()
    law = fm.exact.Gaussian(mean, covariance)
    x = law.sample(200, generator(0), torch.float64)
    operator = operators.Mask(torch.tensor([1.0, 0, 1, 0, 0, 1]))
    y = operator(x)
    found = fm.uses.restore(exact_map(law, AVERAGE), y, operator, y, times=60, draws=4, generator=generator(1))
    assert float(fm.uses.psnr(found, x).mean()) > float(fm.uses.psnr(y, x).mean()) + 3
    assert float((operator(found) - y).abs().mean()) < 0.2


def test_any_differentiable_operator_will_do():
    law = standard(3)
    x = law.sample(50, generator(0), torch.float64)
    seen = lambda z: torch.tanh(z[:, :2])  # noqa: E731
    start = law.mean.expand(50, 3)
    found = fm.uses.restore(exact_map(law, AVERAGE), seen(x), seen, start, times=50, draws=4, generator=generator(1))
    before, after = ((seen(z) - seen(x)).square().mean() for z in (start, found))
    assert float(after) < 0.3 * float(before)


def test_psnr_is_that_of_the_mean_square():
    x = torch.zeros(2, 1, 4, 4)
    assert fm.uses.psnr(x + 0.2, x).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


# the posterior --------------------------------------------------------------------------------------------------------


def test_the_samples_have_the_moments_of_the_posterior():
    law, sigma = standard(3), 0.4
    operator = operators.Matrix(torch.randn(2, 3, dtype=torch.float64, generator=generator(3)))
    a, y = operator.matrix, rows((2,), 1, seed=4)
    gain = law.covariance @ a.mT @ torch.linalg.inv(a @ law.covariance @ a.mT + sigma**2 * torch.eye(2))
    mean = law.mean + gain @ (y[0] - a @ law.mean)
    covariance = law.covariance - gain @ a @ law.covariance
    rng = generator(2)
    x0 = torch.randn(4000, 3, dtype=torch.float64, generator=rng)
    found = fm.uses.posterior_samples(exact_map(law, AVERAGE), y, operator, x0, noise=sigma, steps=8, generator=rng)
    number = 0.3 * 4000 * min(found.effective)
    w, spread = found.weights[:, None], covariance.diagonal().sqrt()
    got = (w * found.x).sum(0)
    assert bool(((got - mean).abs() < 4 * spread / number**0.5).all())
    second = (w * (found.x - mean)).mT @ (found.x - mean)
    assert bool(((second - covariance).abs() < 6 * torch.outer(spread, spread) / number**0.5).all())
    # much narrower than the prior, so that this says something
    assert float(covariance.trace()) < 0.6 * float(law.covariance.trace())


# refusals -------------------------------------------------------------------------------------------------------------


def test_wrong_input_is_told_in_one_line():
    law, x = standard(3), torch.zeros(5, 3, dtype=torch.float64)
    flow_map, mask = exact_map(law, AVERAGE), operators.Mask(torch.ones(3))
    for options, said in (
        ({"times": []}, r"times inside \(0, 1\)"),
        ({"times": [0.5, 1.0]}, "got \\[0.5, 1.0\\]"),
        ({"step": 0.0}, "step > 0"),
        ({"draws": 0}, "draws >= 1"),
        ({"interpolant": fm.interpolants.WithNoise(LINEAR)}, "without latent noise"),
        ({"cond": torch.zeros(2)}, "a row for each of the 5 rows"),
    ):
        with pytest.raises(ValueError, match=said):
            fm.uses.restore(flow_map, x, mask, x, **options)
    with pytest.raises(ValueError, match=r"the operator gives rows \(5, 3\), the observation has \(5, 2\)"):
        fm.uses.restore(flow_map, x[:, :2], mask, x)
    with pytest.raises(ValueError, match="a start for each observation, got 2 and 5"):
        fm.uses.restore(flow_map, x, mask, x[:2])
    with pytest.raises(ValueError, match="the operator is not differentiable"):
        fm.uses.restore(flow_map, x, lambda z: z.detach().round(), x)
    with pytest.raises(ValueError, match="takes one observation"):
        fm.uses.posterior_samples(flow_map, x, mask, x, noise=0.1)
    with pytest.raises(ValueError, match="deviation > 0, got 0"):
        fm.uses.posterior_samples(flow_map, x[:1], mask, x, noise=0)
    with pytest.raises(ValueError, match=r"the operator gives rows \(5, 3\), the observation has \(5, 2\)"):
        fm.uses.posterior_samples(flow_map, x[:1, :2], mask, x, noise=0.1)
    with pytest.raises(ValueError, match=r"Mask is for rows of shape \(3,\), got \(2,\)"):
        mask(x[:, :2])
    with pytest.raises(ValueError, match="the observation has"):
        mask.adjoint(x[:, :2])


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: operators.Matrix(torch.zeros(3)), "a matrix"),
        (lambda: operators.Blur(torch.zeros(2, 3), (1, 4, 4)), "odd sizes"),
        (lambda: operators.Blur(torch.zeros(5, 5), (1, 4, 4)), "no larger than the image"),
        (lambda: operators.Blur(torch.zeros(3, 3), (4, 4)), r"shape=\(C, H, W\)"),
        (lambda: operators.Downsample(3, (1, 4, 6)), "divides the image"),
        (lambda: operators.Radon([], (1, 4, 4)), "needs angles"),
        (lambda: operators.Radon([0.0], (1, 4, 6)), "a square image"),
    ],
)
def test_an_operator_that_cannot_be_is_refused(make, said: str):
    with pytest.raises(ValueError, match=said):
        make()
