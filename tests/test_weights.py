"""Weights and distances against their formulas, written out."""

from __future__ import annotations

import pytest
import torch

from flowmaps.weights import Adaptive, Constant, Learned, Power, PseudoHuber, StripWeight, squared


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
    r, (_, s, t) = residual(5, 3), uniforms(5)
    norms, d = r.norm(dim=1), squared(r)
    torch.testing.assert_close(PseudoHuber(0.3)(d, s, t), (norms**2 + 0.09).sqrt() - 0.3)
    torch.testing.assert_close(PseudoHuber(1e-9)(d, s, t), norms, rtol=1e-6, atol=0)  # far away: the norm
    torch.testing.assert_close(PseudoHuber(1e4)(d, s, t), norms**2 / 2e4, rtol=1e-6, atol=0)  # near zero: squared
    assert PseudoHuber(0.3)(torch.zeros(5), s, t).tolist() == [0] * 5


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


def test_parameters_that_are_refused():
    for make, words in [
        (lambda: Constant(0), "value > 0, got 0"),
        (lambda: StripWeight(1.5), r"width in \(0, 1\], got 1.5"),
        (lambda: Adaptive(offset=0.0), "offset > 0, got 0.0"),
        (lambda: PseudoHuber(-1.0), "scale > 0, got -1.0"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()
