"""Posterior maps: the exact map of a Gaussian posterior satisfies the objectives, and chains to the law of the data."""

from __future__ import annotations

import pytest
import torch
from cases import AVERAGE, generator
from torch import Tensor, nn

import flowmaps as fm
from flowmaps.shapes import like
from flowmaps.uses import AddNoise, NoisyDatum, PosteriorMatching, WithNoisyDatum

LINEAR = fm.interpolants.Linear()
MEAN, VARIANCE = torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([0.3, 1.0, 2.0]).double()


def posterior(given: NoisyDatum) -> tuple[Tensor, Tensor]:
    """Mean and variance of p(x1 | I_t = x) of data N(MEAN, diag VARIANCE), by Bayes' rule in precisions."""
    alpha, beta = (like(value, given.x) for value in (LINEAR.alpha(given.t), LINEAR.beta(given.t)))
    variance = 1 / (1 / VARIANCE + beta**2 / alpha**2)
    return variance * (MEAN / VARIANCE + beta * given.x / alpha**2), variance


class Exact(fm.maps.FlowMap):
    """The flow of the linear path from N(0, Id) to the posterior; moved away by `shift` times features."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: NoisyDatum) -> Tensor:
        mean, variance = posterior(cond)
        a, b = like(s, x), like(t, x)
        v = lambda r: (1 - r) ** 2 + r**2 * variance  # noqa: E731
        growth = (a + b) * (1 + variance) - 2  # (v(b) - v(a)) / (b - a)
        ratio = growth / (v(a).sqrt() * (v(b).sqrt() + v(a).sqrt()))  # (sqrt(v_t / v_s) - 1) / (t - s)
        features = self.shift * torch.sin(cond.x + x) * (1 + like(cond.t, x))
        return mean + ratio * (x - a * mean) + features


def velocity(x: Tensor, t: Tensor, cond: NoisyDatum) -> Tensor:
    """b_t(x; x_t, t) of the posterior, from the law of its path."""
    mean, variance = posterior(cond)
    r = like(t, x)
    return mean + (r * variance - (1 - r)) / ((1 - r) ** 2 + r**2 * variance) * (x - r * mean)


def data(rows: int, seed: int = 0) -> Tensor:
    return MEAN + VARIANCE.sqrt() * torch.randn(rows, 3, dtype=torch.float64, generator=generator(seed))


@pytest.mark.parametrize("method", ["lmd", "emd"])
def test_the_exact_map_satisfies_the_equations_for_each_observation(method: str):
    function = {"lmd": fm.methods.lmd, "emd": fm.methods.emd}[method]
    objective = PosteriorMatching(function(Exact(), teacher=velocity), AddNoise(high=0.95))
    loss = objective(data(64), generator=generator(1))
    assert max(float(part.max()) for part in loss.parts.values()) < 1e-18


@pytest.mark.parametrize("own", [True, False], ids=["independent noise", "the noise of the observation"])
def test_velocity_matching_has_no_gradient_at_the_exact_map(own: bool):
    """In the mean over draws; not so if the method's path had the noise that is in the observation."""
    flow_map, rows = Exact(), 40_000
    x1, rng = data(rows), generator(2)
    x0 = torch.randn(x1.shape, dtype=x1.dtype, generator=rng)
    t = 0.9 * torch.rand(rows, dtype=x1.dtype, generator=rng)
    observe = AddNoise(high=0.9) if own else lambda x1, cond, _: NoisyDatum(LINEAR.point(x0, x1, t), t)
    objective = PosteriorMatching(fm.methods.flow_matching(flow_map), observe)
    inputs = objective.draw(x1, x0, generator=rng)
    assert torch.equal(inputs.x0, x0)
    slopes = []
    for part in range(20):
        flow_map.zero_grad()
        objective.evaluate(inputs.rows(slice(part * 2000, (part + 1) * 2000))).value.backward()
        slopes.append(flow_map.shift.grad.clone())  # type: ignore[union-attr]
    found = torch.stack(slopes)
    z = found.mean(0) / (found.std(0) / len(found) ** 0.5)
    assert bool((z.abs() < 4.5).all()) == own


@pytest.mark.parametrize("steps", [1, 3])
def test_samples_have_mean_and_variance_of_the_posterior(steps: int):
    x, t = torch.tensor([[1.0, 0.0, 2.0]]).double().expand(40_000, 3), torch.full((40_000,), 0.4).double()
    z = torch.randn(40_000, 3, dtype=torch.float64, generator=generator(0))
    found = fm.uses.sample_posterior_map(Exact(), z, x, t, steps=steps)
    mean, variance = posterior(NoisyDatum(x[:1], t[:1]))
    torch.testing.assert_close(found.mean(0), mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(found.var(0), variance[0], atol=0, rtol=0.04)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_stochastic_jumps_keep_the_laws_of_the_path(gamma: float):
    x0 = torch.randn(40_000, 3, dtype=torch.float64, generator=generator(0))
    for times in ([0.0, 0.3, 0.7], [0.0, 0.5, 1.0]):
        x = fm.uses.stochastic_jumps(Exact(), x0, times, gamma=gamma, generator=generator(1))
        t = times[-1]
        torch.testing.assert_close(x.mean(0), t * MEAN, atol=0.04, rtol=0)
        covariance = torch.diag((1 - t) ** 2 + t**2 * VARIANCE)
        torch.testing.assert_close(torch.cov(x.T), covariance, atol=0.06, rtol=0.03)


def test_a_network_of_twice_the_channels_takes_the_observation():
    net = fm.nn.MLP(dim=6, width=8, depth=1, condition_dim=1, classes=3).double()
    flow_map, x1, labels = AVERAGE.build(WithNoisyDatum(net)), data(8), torch.arange(8) % 3
    objective = PosteriorMatching(fm.methods.lsd(flow_map))
    inputs = objective.draw(x1, cond=labels, generator=generator(0), progress=0.0)
    assert torch.equal(inputs.cond.label, labels)
    objective.evaluate(inputs).value.backward()
    assert net.last.weight.grad is not None
    given = inputs.cond
    u = flow_map.average_velocity(inputs.x0, inputs.s, inputs.t, given)
    wanted = net(torch.cat([inputs.x0, given.x], 1), inputs.s, inputs.t, fm.shapes.Conditions(labels, given.t[:, None]))
    assert torch.equal(u, wanted[:, :3])
    unet = fm.nn.UNet(2, 8, width=8, multipliers=(1,), blocks=1, attention=(), head=8, condition_dim=1)
    x = torch.randn(2, 1, 8, 8)
    moved = AVERAGE.build(WithNoisyDatum(unet))(x, torch.zeros(2), torch.ones(2), NoisyDatum(x, torch.rand(2)))
    assert moved.shape == x.shape


def test_what_is_no_observation_is_refused():
    net = WithNoisyDatum(fm.nn.MLP(dim=4, width=8, depth=1, condition_dim=1))
    flow_map, x = AVERAGE.build(net), torch.zeros(3, 2)
    for cond in (None, torch.zeros(3, 1), NoisyDatum(torch.zeros(3, 1), torch.zeros(3))):
        with pytest.raises(
            ValueError, match=r"takes cond=fm.uses.NoisyDatum\(x_t, t\) with x_t of shape \(3, 2\), got"
        ):
            flow_map(x, torch.zeros(3), torch.ones(3), cond)
    with pytest.raises(ValueError, match="takes an objective, got AverageVelocity: pass that of a method"):
        PosteriorMatching(flow_map)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"0 <= low <= high <= 1, got 0\.5 and 2"):
        AddNoise(low=0.5, high=2)
    with pytest.raises(ValueError, match="at least two times"):
        fm.uses.stochastic_jumps(flow_map, x, [0.5, 0.5])
    with pytest.raises(ValueError, match="needs rising times, got"):
        fm.uses.stochastic_jumps(flow_map, x, [1.0, 0.5])
    with pytest.raises(ValueError, match="share of fresh noise"):
        fm.uses.stochastic_jumps(flow_map, x, [0.0, 1.0], gamma=2)


@pytest.mark.slow
def test_a_map_learns_posteriors_of_data():
    torch.manual_seed(0)
    flow_map = fm.maps.AverageVelocity(WithNoisyDatum(fm.nn.MLP(dim=2, width=64, depth=2, condition_dim=1)))
    objective = PosteriorMatching(fm.methods.lsd(flow_map))
    settings = {"batch": 256, "learning_rate": 4e-3, "decay": "cosine", "device": "cpu", "compile": False}
    flow_map = fm.fit(objective, data(20_000)[:, :1].float(), steps=800, **settings)
    for t in (0.3, 0.7):
        x, time = torch.full((4_000, 1), t * float(MEAN[0]) + 0.4), torch.full((4_000,), t)
        found = fm.uses.sample_posterior_map(flow_map, torch.randn(4_000, 1), x, time, steps=2)
        mean, variance = (value[0, 0] for value in posterior(NoisyDatum(x[:1].double(), time[:1].double())))
        torch.testing.assert_close(found.mean().double(), mean, atol=0.08, rtol=0)
        torch.testing.assert_close(found.std().double(), variance.sqrt(), atol=0, rtol=0.15)
