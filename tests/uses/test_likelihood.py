"""Log densities are those of closed forms: by the ODE, by determinants, and by a head that is exact or learned."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch
from cases import AVERAGE, exact_map, gaussian, generator
from torch import Tensor, nn

import flowmaps as fm
from flowmaps.uses import divergence as estimates
from flowmaps.uses.mean_divergence import DivergenceMatching, WithDivergence

LINEAR = fm.interpolants.Linear()
PATHS = {"linear": LINEAR, "trigonometric": fm.interpolants.Trigonometric()}


def base_of(law: fm.exact.Gaussian):
    return fm.exact.Gaussian(law.base_mean, law.base_covariance).log_density


class ExactHead(nn.Module):
    """The mean divergence of a Gaussian's flow, sum_i log(s_t / s_s) / (t - s), regular at s = t."""

    def __init__(self, law: fm.exact.Gaussian) -> None:
        super().__init__()
        self.law = law
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: None = None) -> Tensor:
        logs = [0.5 * self.law._moments(r, x)[1].log().sum(1) for r in (s, t)]
        same = s == t
        t_, data, base = t[:, None], self.law._values.to(x), self.law._base_values.to(x)
        growth = (t_ * data - (1 - t_) * base) / self.law._moments(t, x)[1]  # of the linear path
        mean = (logs[1] - logs[0]) / torch.where(same, 1.0, t - s)
        return torch.where(same, growth.sum(1), mean) + self.shift


# divergence -----------------------------------------------------------------------------------------------------------


def field(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """A nonlinear field of two axes."""
    flat = x.flatten(1)
    return (torch.sin(flat.cumsum(1)) * (1 + t[:, None]) + 0.5 * flat.flip(1)).reshape(x.shape)


def traces(x: Tensor, t: Tensor) -> Tensor:
    one = lambda y, r: field(y[None], r[None])[0].flatten()  # noqa: E731
    return torch.stack([torch.func.jacrev(one)(y, r).reshape(y.numel(), -1).trace() for y, r in zip(x, t, strict=True)])


def test_the_divergence_is_the_trace_and_its_estimates_are_unbiased():
    rng = generator(0)
    x, t = torch.randn(4, 2, 3, dtype=torch.float64, generator=rng), torch.rand(4, dtype=torch.float64, generator=rng)
    want = traces(x, t)
    torch.testing.assert_close(estimates.divergence(field, x, t), want)
    for name, probes, deviation in (("hutchinson", 4000, None), ("hutch++", 4, 1.0)):
        given = estimates.signs(x, probes, rng)
        if deviation is None:
            found = estimates.divergence(field, x, t, estimator=name, probes=given)
            assert float((found - want).abs().max()) < 6 * float(want.abs().max()) / math.sqrt(probes) + 0.2
        else:  # the mean of many small estimates
            many = [estimates.divergence(field, x, t, estimator=name, probes=estimates.signs(x, probes, rng))
                    for _ in range(400)]  # fmt: skip
            spread = torch.stack(many).std(0) / 20
            assert bool(((torch.stack(many).mean(0) - want).abs() < 4.5 * spread).all())
    torch.testing.assert_close(
        estimates.divergence(field, x, t, estimator="hutch++", probes=estimates.signs(x, 24, rng)), want
    )


def test_hutch_plus_plus_is_better_for_a_trace_of_few_directions():
    rng = generator(1)
    a = torch.randn(40, 2, dtype=torch.float64, generator=rng)
    matrix = a @ a.mT + 0.01 * torch.eye(40, dtype=torch.float64)
    x, t = torch.zeros(300, 40, dtype=torch.float64), torch.zeros(300, dtype=torch.float64)
    errors = {
        name: (estimates.divergence(lambda y, r, c=None: y @ matrix, x, t, estimator=name,
                                    probes=estimates.signs(x, 9, rng)) - matrix.trace()).square().mean().sqrt()
        for name in ("hutchinson", "hutch++")
    }  # fmt: skip
    assert errors["hutch++"] < 0.01 * errors["hutchinson"]


# exact log densities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_ode_gives_the_density_of_gaussians_to_1e_6(path: fm.interpolants.Interpolant):
    law = gaussian(3, path)
    x1 = law.sample(20, generator(0), torch.float64)
    found = fm.uses.log_likelihood(law.velocity, x1, base=base_of(law), rtol=1e-9, atol=1e-9)
    assert float((found.value - law.log_density(x1)).abs().max()) < 1e-6
    one = torch.ones(20, dtype=torch.float64)
    torch.testing.assert_close(found.points, law.flow_map(x1, one, 0 * one), atol=1e-6, rtol=0)
    assert found.evaluations % 4 == 0  # the field and D = 3 products
    assert found.evaluations > 100


def test_the_ode_gives_the_density_of_mixtures_to_1e_3():
    covariances = [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]]
    law = fm.exact.GaussianMixture([1, 2], [[-1.0, 0.0], [1.0, 1.0]], covariances)
    x1 = law.sample(30, generator(0), torch.float64)
    found = fm.uses.log_likelihood(law.velocity, x1)
    assert float((found.value - law.log_density(x1)).abs().max()) < 1e-3
    labels = torch.arange(30) % 2
    found = fm.uses.log_likelihood(law.velocity, x1, labels, method="rk4", steps=60)
    parts = [fm.exact.Gaussian(law.means[k], law.covariances[k]).log_density(x1) for k in (0, 1)]
    assert float((found.value - torch.where(labels == 0, *parts)).abs().max()) < 1e-3


def test_an_estimate_along_the_trajectory_is_right_in_the_mean():
    law = gaussian(3, LINEAR)
    x1 = law.sample(1, generator(0), torch.float64).expand(4000, 3)
    given = {"base": base_of(law), "method": "rk4", "steps": 12, "generator": generator(1)}
    for estimator, probes in (("hutchinson", 1), ("hutch++", 4)):
        found = fm.uses.log_likelihood(law.velocity, x1, estimator=estimator, probes=probes, **given)
        error = found.value - law.log_density(x1)
        assert float(error.mean().abs()) < 4.5 * float(error.std()) / 4000**0.5 + 1e-4


@pytest.mark.parametrize("steps", [1, 3])
def test_determinants_of_jumps_give_the_density_of_gaussians(steps: int):
    law = gaussian(3, LINEAR)
    flow_map, x1 = exact_map(law, AVERAGE), law.sample(11, generator(0), torch.float64)
    found = fm.uses.jumps_log_likelihood(flow_map, x1, steps=steps, base=base_of(law))
    torch.testing.assert_close(found.value, law.log_density(x1))
    assert found.evaluations == 4 * steps
    back = fm.uses.sample_with_log_likelihood(flow_map, found.points, steps=steps, base=base_of(law))
    torch.testing.assert_close(back.points, x1)
    torch.testing.assert_close(back.value, law.log_density(x1))


# the learned mean divergence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("equation", ["lagrangian", "semigroup"])
@pytest.mark.parametrize("estimator", ["exact", "hutch++"])
def test_the_exact_head_has_no_residual(equation: str, estimator: str):
    law = gaussian(2, LINEAR)
    flow_map = WithDivergence(exact_map(law, AVERAGE), ExactHead(law))
    objective = DivergenceMatching(
        flow_map, LINEAR, velocity=law.velocity, equation=equation, estimator=estimator, probes=6
    )
    x0 = fm.exact.Gaussian(law.base_mean, law.base_covariance).sample(40, generator(1), torch.float64)
    loss = objective(law.sample(40, generator(0), torch.float64), x0, generator=generator(2))
    assert set(loss.parts) == ({"divergence"} if equation == "lagrangian" else {"divergence", "diagonal"})
    assert all(float(part.max()) < 1e-18 for part in loss.parts.values())
    flow_map.head.shift.data.fill_(0.1)  # type: ignore[union-attr]
    loss = objective(law.sample(40, generator(0), torch.float64), x0, generator=generator(2))
    assert float(loss.value.detach()) == pytest.approx(0.01, rel=1e-6)  # of the semigroup: the diagonal alone
    loss.value.backward()
    assert {name for name, p in objective.named_parameters() if p.grad is not None} == {"flow_map.head.shift"}


def test_the_exact_head_gives_the_density_in_one_jump():
    law = gaussian(2, LINEAR)
    flow_map = WithDivergence(exact_map(law, AVERAGE), ExactHead(law))
    x1 = law.sample(11, generator(0), torch.float64)
    for steps in (1, 4):
        found = fm.uses.learned_log_likelihood(flow_map, x1, steps=steps, base=base_of(law))
        torch.testing.assert_close(found.value, law.log_density(x1))
        assert found.evaluations == 2 * steps


@pytest.mark.parametrize("equation", ["lagrangian", "semigroup"])
def test_a_head_is_learned_by_fit(equation: str, tmp_path):
    law = fm.exact.Gaussian([0.5, -0.3], [[0.3, 0.0], [0.0, 2.0]])
    torch.manual_seed(0)
    head = fm.nn.MLP(2, width=32, depth=2)
    flow_map = WithDivergence(exact_map(law, AVERAGE), head)
    x1 = law.sample(2000, generator(0))
    objective = DivergenceMatching(flow_map, velocity=law.velocity, equation=equation, probes=2)
    with torch.no_grad():
        before = float(objective(x1, generator=generator(1)).value)
    settings = {"steps": 200, "batch": 256, "learning_rate": 5e-3, "compile": False, "device": "cpu"}
    fitted = fm.fit(objective, x1, **settings, say=lambda _: None)
    with torch.no_grad():
        after = float(objective.eval()(x1, generator=generator(1)).value)
    assert after < 0.3 * before
    found = fm.uses.learned_log_likelihood(fitted, x1[:200])  # type: ignore[arg-type]
    error = (found.value - law.log_density(x1[:200])).abs().mean()
    assert float(error) < 0.25


def test_a_map_with_a_head_is_saved_and_loaded(tmp_path):
    own = fm.maps.AverageVelocity(fm.nn.MLP(2, width=8, depth=2))
    flow_map = WithDivergence(own, fm.nn.MLP(2, width=8, depth=2))
    loaded = fm.load(fm.save(flow_map, tmp_path / "map"))
    assert isinstance(loaded, WithDivergence)
    assert {name: value.requires_grad for name, value in loaded.named_parameters()} == {
        name: value.requires_grad for name, value in flow_map.named_parameters()
    }
    x1 = torch.randn(5, 2)
    torch.testing.assert_close(
        fm.uses.learned_log_likelihood(loaded, x1, backwards=True).value,
        fm.uses.learned_log_likelihood(flow_map, x1, backwards=True).value,
    )


def test_a_map_with_a_head_says_what_it_takes_to_be_loaded(tmp_path, monkeypatch):
    own = fm.maps.AverageVelocity(fm.nn.MLP(2, width=8, depth=2))
    module = types.ModuleType("heads")
    exec(HEAD, module.__dict__)
    monkeypatch.setitem(sys.modules, "heads", module)
    fm.save(WithDivergence(own, module.Head(3)), tmp_path / "map")
    with pytest.raises(ValueError, match="WithDivergence' without an argument net: leave net= out"):
        fm.load(tmp_path / "map", net=own.net)
    monkeypatch.delitem(sys.modules, "heads")
    with pytest.raises(ValueError, match=r"'heads.Head' of its user's own: import its class first, or pass classes="):
        fm.load(tmp_path / "map")
    loaded = fm.load(tmp_path / "map", classes=[module.Head])
    assert loaded.head.width == 3  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="a WithDivergence is saved if its networks can be"):
        fm.save(WithDivergence(own, _Untold(3)), tmp_path / "untold")
    assert not (tmp_path / "untold").exists()


HEAD = """
import torch
class Head(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width, self.layer = width, torch.nn.Linear(2, width)
    def forward(self, x, s, t, cond=None):
        return self.layer(x).sum(1)
"""


class _Untold(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.known = width, object()  # neither under its name, nor of a kind that a card holds


# bits per dimension ---------------------------------------------------------------------------------------------------


def test_bits_per_dimension_of_uniform_pixels_are_eight():
    pixels = torch.randint(256, (5, 3, 4, 4), generator=generator(0), dtype=torch.uint8)
    x = fm.uses.dequantise(pixels, generator(1))
    assert float((x - (pixels / 127.5 - 1)).abs().max()) <= 0.5 / 127.5 + 1e-6
    width = 256 / 127.5  # of the range of x
    density = torch.full((5,), -48 * math.log(width))
    torch.testing.assert_close(fm.uses.bits_per_dimension(density, x), torch.full((5,), 8.0))
    assert fm.uses.bits_per_dimension(torch.zeros(5), x, level=1.0).tolist() == [0.0] * 5


# refusals -------------------------------------------------------------------------------------------------------------


def test_wrong_input_is_told_in_one_line():
    x = torch.zeros(3, 2)
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(2, width=4, depth=1))
    with pytest.raises(ValueError, match="estimator must be one of 'exact', 'hutchinson', 'hutch\\+\\+', got 'trace'"):
        fm.uses.log_likelihood(flow_map, x, estimator="trace")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="probes >= 1"):
        fm.uses.log_likelihood(flow_map, x, estimator="hutchinson", probes=0)
    with pytest.raises(ValueError, match="K >= 3"):
        fm.uses.log_likelihood(flow_map, x, estimator="hutch++", probes=2)
    with pytest.raises(ValueError, match="probes go with an estimate"):
        estimates.divergence(flow_map.velocity, x, torch.zeros(3), probes=torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="at most 4096 dimensions, got 4097"):
        fm.uses.jumps_log_likelihood(flow_map, torch.zeros(1, 4097), backwards=True)
    with pytest.raises(ValueError, match="never trained backwards"):
        fm.uses.jumps_log_likelihood(flow_map, x, backwards=fm.methods.lsd(flow_map))
    with pytest.raises(ValueError, match="never trained backwards"):
        fm.uses.learned_log_likelihood(WithDivergence(flow_map, flow_map.net), x, backwards=False)
    with pytest.raises(ValueError, match="needs a map with a head, got AverageVelocity"):
        fm.uses.learned_log_likelihood(flow_map, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="integers from 0 to 255, got torch"):
        fm.uses.dequantise(x)
    with pytest.raises(ValueError, match="level must be positive"):
        fm.uses.bits_per_dimension(torch.zeros(3), x, level=0.0)
    with pytest.raises(ValueError, match="the head must return"):
        WithDivergence(flow_map, _Three()).mean_divergence(x, torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="equation must be"):
        DivergenceMatching(WithDivergence(flow_map, flow_map.net), equation="eulerian")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="probes >= 3"):
        DivergenceMatching(WithDivergence(flow_map, flow_map.net), estimator="hutch++")
    with pytest.raises(ValueError, match="pass WithDivergence"):
        DivergenceMatching(flow_map)  # type: ignore[arg-type]


class _Three(nn.Module):
    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: None = None) -> Tensor:
        return torch.zeros(len(x), 3)
