r"""Rewards: samples of the law of a map tilted by a reward, rho(x) proportional to rho_1(x) exp(r(x) / tau).

The look-ahead X_{t,1}(x) says what reward a point of time t leads to, so that the law of each time can be tilted:

    rho_t(x) exp(r_t(x)),      r_t(x) = t r(X_{t,1}(x)) / tau,      from the base at t = 0 to the tilted law at t = 1

`tilted_samples` carries weighted samples along it. A chain of laws rho_t, by jumps and fresh noise (`GammaSampling`),

    x' = m + sigma xi,      m = beta_t / beta_w X_{s,w}(x),      sigma = gamma alpha_t,      xi ~ N(0, Id)

gets the weights exp(r_t(x') - r_s(x)), whose product is exp(r(x_1) / tau) whatever r_t is in between, and x is drawn
anew in proportion to them when they are uneven. Where r has a gradient, the noise is shifted uphill and the weights
make up for it:

    x' = m + sigma (delta + xi),     delta = sigma grad r_t(m),     weights times exp(- delta . xi - |delta|^2 / 2)

with delta shortened where it is long (`MAX_SHIFT`).

For an exact map the weighted samples are those of the tilted law for every number of steps, as their number grows; for
a learned map they are those of the tilted law of its chain.

`guided_jumps` is deterministic: a gradient step on the reward before each jump. It raises the reward, and does not
sample the tilted law: the law of its samples has a spread that depends on the strength and the number of steps.

References: A. Sabour et al., "Test-time scaling of diffusions with flow maps" (FMTT), 2025, arXiv 2511.22688, in
continuous time; here in discrete time, as twisted sequential Monte Carlo (L. Wu et al., 2023, arXiv 2306.17775). Flow
map reward guidance (FMRG), 2026, arXiv 2604.27147; written from a summary of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..interpolants import Interpolant, Linear
from ..maps import FlowMap
from ..modules import evaluating
from ..samplers import GammaSampling, Jump
from ..shapes import Batch, Condition, check_condition, like, on_each, per_row

Reward: TypeAlias = Callable[[Tensor], Tensor]
"""r(x), `(B, *shape) -> (B,)`; -inf where x is not allowed."""

OUTSIDE = 5.0
"""Before t = 1, a sample that is not allowed counts with reward / tau this much below the least allowed one."""
MAX_SHIFT = 0.5
"""Greatest length of delta over that of the noise, D^(1/2): a steep reward would be overshot, and few samples left."""


class Tilted(NamedTuple):
    """Weighted samples of a tilted law.

    Attributes:
        x: `(B, *shape)`.
        weights: `(B,)`, of sum one.
        effective: share of the samples that the weights leave, 1 / (B sum w^2), after each step before it is resampled.
        evaluations: network evaluations a sample; a forward pass and a VJP count one each.
    """

    x: Tensor
    weights: Tensor
    effective: list[float]
    evaluations: int

    def resampled(self, generator: torch.Generator | None = None) -> Tensor:
        """As many samples without weights, `(B, *shape)`, some of them several times."""
        return self.x[_systematic(self.weights, generator)]


@torch.no_grad()
def tilted_samples(
    flow_map: FlowMap,
    x0: Batch,
    reward: Reward,
    cond: Condition = None,
    *,
    temperature: float = 1.0,
    steps: int = 8,
    gamma: float = 0.5,
    gradient: bool = True,
    threshold: float = 0.5,
    interpolant: Interpolant | None = None,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tilted:
    """Weighted samples of rho_1(x) exp(r(x) / tau), by jumps, weights and resampling.

    Args:
        flow_map: a two-time map.
        x0: base samples, `(B, *shape)`; a hundred or more.
        reward: r, differentiable unless `gradient` is False.
        cond: condition, the same in all rows.
        temperature: tau, in units of the reward.
        steps: jumps, of 4 evaluations each with the gradient and 2 without.
        gamma: share of fresh noise in a step, in [0, 1], as in `GammaSampling`; 0 is importance weighting alone.
        gradient: shift the noise along the gradient of the reward; False for a reward that is a black box.
        threshold: share of effective samples below which they are drawn anew; 0 for never.
        interpolant: the path of the map, without latent noise; `Linear()` unless given.
        scale: standard deviation of the base.
        generator: source of noise and resampling, on the device of `x0`.

    Raises:
        ValueError: a temperature, scale or threshold out of range, conditions that differ, or a reward that is not
            `(B,)`, not a number, nowhere allowed, or not differentiable where `gradient` needs it.
    """
    _check(x0, cond, temperature, scale, threshold)
    chain = GammaSampling(steps, interpolant=Linear() if interpolant is None else interpolant, gamma=gamma)
    tilt = _Tilt(flow_map, reward, cond, temperature)
    x, effective = x0, []
    correction, anchor = x0.new_zeros(2, len(x0))  # since the samples were last drawn anew
    with evaluating(flow_map):
        for k, t in enumerate(chain.times[1:]):
            mean, sigma = tilt.step(chain, x, k, scale)
            x = mean
            if sigma > 0:
                xi = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
                delta = _shortened(sigma * tilt.gradient(mean, t)) if gradient else torch.zeros_like(xi)
                x = mean + sigma * (delta + xi)
                correction = correction - per_row(delta * xi + 0.5 * delta.square())
            value = tilt.value(x, t)
            weights = _normalised(correction + value - anchor)
            effective.append(float(1 / (len(x) * weights.square().sum())))
            if t < 1 and effective[-1] < threshold:
                rows = _systematic(weights, generator)
                x, anchor, correction = x[rows], value[rows], torch.zeros_like(correction)
    return Tilted(x, weights, effective, tilt.evaluations)


class _Tilt:
    """r_t(x) = t r(X_{t,1}(x)) / temperature and its gradient; counts evaluations of the map."""

    def __init__(self, flow_map: FlowMap, reward: Reward, cond: Condition, temperature: float) -> None:
        self.flow_map, self.reward, self.cond, self.temperature = flow_map, reward, cond, temperature
        self.evaluations = 0

    def step(self, chain: GammaSampling, x: Tensor, k: int, scale: float) -> tuple[Tensor, float]:
        """The mean and the deviation of the next point of the chain."""
        self.evaluations += 1
        path, last = chain.interpolant, k + 2 == len(chain.times)
        t, w = (torch.tensor([time], dtype=torch.float64) for time in (chain.times[k + 1], chain.targets[k]))
        start, end = (x.new_full((len(x),), time) for time in (chain.times[k], chain.targets[k]))
        mean = float(path.beta(t) / path.beta(w)) * self.flow_map(x, start, end, self.cond)
        return mean, 0.0 if last else chain.gamma * float(path.alpha(t)) * scale

    def ahead(self, x: Tensor, t: float) -> Tensor:
        """X_{t,1}(x)."""
        if t == 1:
            return x
        self.evaluations += 1
        return self.flow_map(x, x.new_full((len(x),), t), x.new_ones(len(x)), self.cond)

    def value(self, x: Tensor, t: float) -> Tensor:
        """r_t(x), `(B,)`; finite before t = 1, so that what is not allowed yet may be so later."""
        r = rewarded(self.reward, self.ahead(x, t)) / self.temperature
        if t < 1:
            outside = r == -math.inf
            least = torch.where(outside, math.inf, r).min()
            r = torch.where(outside, torch.where(least < math.inf, least, 0) - OUTSIDE, r)
        return t * r

    def gradient(self, x: Tensor, t: float) -> Tensor:
        """grad r_t(x), `(B, *shape)`; zero where it is not finite, which costs samples, not their law."""
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            r = rewarded(self.reward, self.ahead(y, t), differentiable=True)
            (gradient,) = torch.autograd.grad(r.sum(), y)
        self.evaluations += 1
        return torch.where(gradient.isfinite(), t / self.temperature * gradient, 0)


@torch.no_grad()
def guided_jumps(
    flow_map: FlowMap,
    x0: Batch,
    reward: Reward,
    cond: Condition = None,
    *,
    steps: int = 4,
    strength: float = 1.0,
    jacobian: bool = True,
) -> Batch:
    """Samples of a higher reward by a few deterministic steps, x <- X_{s,t}(x + (t - s) strength g(x)), `(B, *shape)`.

    Args:
        flow_map: a two-time map.
        x0: base samples, `(B, *shape)`.
        reward: r, differentiable.
        cond: condition, one a row.
        steps: equal steps.
        strength: of the gradient, in units of x^2 / reward.
        jacobian: g is the gradient of r(X_{s,1}(x)), which costs a VJP of the map and goes uphill for a small strength;
            else that of r at X_{s,1}(x).

    Raises:
        ValueError: no step, or a reward that is not `(B,)`, not a number, or not differentiable.
    """
    check_condition(cond, x0, "x0")
    times = Jump(steps).times
    x = x0
    with evaluating(flow_map):
        for s, t in itertools.pairwise(times):
            start, end = x.new_full((len(x),), s), x.new_full((len(x),), t)
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                ahead = flow_map(y, start, torch.ones_like(start), cond)
                at = y if jacobian else ahead.detach().requires_grad_()
                r = rewarded(reward, ahead if jacobian else at, differentiable=True)
                (g,) = torch.autograd.grad(r.sum(), at)
            x = flow_map(x + (t - s) * strength * g, start, end, cond)
    return x


def rewarded(reward: Reward, x: Tensor, *, differentiable: bool = False) -> Tensor:
    """r(x), checked.

    Raises:
        ValueError: it is not `(B,)`, NaN, or has no gradient where it must have one.
    """
    r = reward(x)
    if not isinstance(r, Tensor) or tuple(r.shape) != (len(x),):
        got = tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__
        raise ValueError(f"a reward is one number a row, of shape ({len(x)},), got {got}: sum over the other axes.")
    if bool(r.isnan().any()) or bool((r == math.inf).any()):
        raise ValueError("the reward is NaN or +inf at some rows: return -inf for what is not allowed.")
    if differentiable and not r.requires_grad:
        raise ValueError(
            "the reward is not differentiable: it returns a tensor without a graph. Use torch operations from x to r, "
            "or tilted_samples(..., gradient=False) for a black box."
        )
    return r


def _shortened(delta: Tensor) -> Tensor:
    """delta, of a length of at most MAX_SHIFT D^(1/2)."""
    length = per_row(delta.square()).sqrt().clamp_min(torch.finfo(delta.dtype).tiny)
    return delta * like((MAX_SHIFT * delta[0].numel() ** 0.5 / length).clamp_max(1), delta)


def _normalised(log_weights: Tensor) -> Tensor:
    """Weights of sum one.

    Raises:
        ValueError: the reward allows no sample.
    """
    if not bool((log_weights > -math.inf).any()):
        raise ValueError(
            "the reward is -inf at every sample: take more samples, or a reward that says how far off they are."
        )
    return log_weights.softmax(0)


def _systematic(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rows in proportion to weights, by equally spaced points with one random shift: each w B times, up or down."""
    number = len(weights)
    shift = torch.rand((), dtype=torch.float64, device=weights.device, generator=generator)
    points = (torch.arange(number, device=weights.device) + shift) / number
    return torch.searchsorted(weights.double().cumsum(0), points).clamp_max(number - 1)


def _check(x0: Tensor, cond: Condition, temperature: float, scale: float, threshold: float) -> None:
    if not (temperature > 0 and scale > 0 and 0 <= threshold <= 1):
        raise ValueError(
            f"tilted_samples needs temperature > 0, scale > 0 and threshold in [0, 1], got {temperature}, {scale} and "
            f"{threshold}."
        )
    check_condition(cond, x0, "x0")

    def same(value: Tensor) -> Tensor:
        if not torch.equal(value.nan_to_num(), value[:1].expand_as(value).nan_to_num()):
            raise ValueError("samples of one tilted law have one condition, got rows that differ: one call for each.")
        return value

    on_each(cond, same)
