r"""Posterior maps: from fresh noise z to samples of p(x1 | y), y an observation of x1, in one to a few evaluations.

    X_{0,1}(z; y) ~ p(x1 | y),    z ~ N(0, Id),        above all    y = (x_t, t),  x_t = I_t(x0', x1) a noised datum.

Each method learns such a map from data with `y` as the condition: for each datum x1 an observation of it is drawn, and
the noise x0 of the method's own path is independent of it (`PosteriorMatching`). The exact map of the flow from z to
p(x1 | y) is what the loss then leads to, as without a condition, because the law of the data given y is p(x1 | y).

A step of a stochastic flow map from x_s to x_t (`stochastic_jumps`) draws x1 of p(x1 | x_s), and goes on from there:

    x1 = X_{0,1}(z; x_s, s),     x0' = (x_s - beta_s x1) / alpha_s,     e = (1 - gamma^2)^(1/2) x0' + gamma eps,
    x_t = alpha_t e + beta_t x1

with eps fresh noise. (x0', x1) has its law given x_s, so that x_t has the law of I_t, for each gamma in [0, 1].

References: posterior maps, 2026, arXiv 2601.14430, and stochastic flow maps, 2026, arXiv 2602.05993, both known from a
summary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ..interpolants import Interpolant, Linear
from ..maps import FlowMap
from ..modules import evaluating
from ..objectives import Loss, Moment, Objective
from ..objectives.inputs import check_inputs
from ..samplers import Jump
from ..shapes import Batch, Condition, Time, check_condition, check_time, condition_of, like
from ..times import check_grid
from ..velocities import RandomInputs


class NoisyDatum(NamedTuple):
    """A noised datum as a condition.

    Attributes:
        x: x_t, `(B, *shape)`.
        t: its time in [0, 1], `(B,)`.
        label: a further condition, labels `(B,)`, or `None`.
    """

    x: Tensor
    t: Tensor
    label: Any = None


Observe: TypeAlias = Callable[[Tensor, Condition, torch.Generator | None], Condition]
"""Draws observations of data: `(x1, cond, generator) -> y`, a condition with a row for each, such as `NoisyDatum`."""


class AddNoise:
    """Observations x_t = alpha_t x0' + beta_t x1 with fresh noise x0', at times of the uniform law on [low, high].

    Args:
        interpolant: the path, without latent noise; `Linear()` unless given.
        low, high: ends of the times.

    Raises:
        ValueError: latent noise, or times that are not in [0, 1].
    """

    def __init__(self, interpolant: Interpolant | None = None, low: float = 0.0, high: float = 1.0) -> None:
        self.interpolant, self.low, self.high = _path(interpolant), low, high
        if not 0 <= low <= high <= 1:
            raise ValueError(f"AddNoise needs 0 <= low <= high <= 1, got {low} and {high}.")

    def __call__(self, x1: Tensor, cond: Condition = None, generator: torch.Generator | None = None) -> NoisyDatum:
        options: dict[str, Any] = {"dtype": x1.dtype, "device": x1.device, "generator": generator}
        t = self.low + (self.high - self.low) * torch.rand(len(x1), **options)
        return NoisyDatum(self.interpolant.point(torch.randn(x1.shape, **options), x1, t), t, cond)


class WithNoisyDatum(nn.Module):
    """A network for `NoisyDatum` conditions, made of a network with twice the channels:

        u = net((x, x_t), s, t, (t of x_t, label))

    Args:
        net: of x `(B, 2 C, ...)` that takes one number a row as a condition, such as `MLP(dim=2 * D, condition_dim=1)`
            or `UNet(2 * C, ..., condition_dim=1)`; of its output the first C channels are used.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """`(B, C, ...), (B,), (B,), NoisyDatum -> (B, C, ...)`.

        Raises:
            ValueError: a condition that is not `NoisyDatum`, or a point of another shape than x.
        """
        if not isinstance(cond, NoisyDatum) or cond.x.shape != x.shape:
            got = f"one of shape {tuple(cond.x.shape)}" if isinstance(cond, NoisyDatum) else f"a {type(cond).__name__}"
            raise ValueError(
                f"a posterior map takes cond=fm.uses.NoisyDatum(x_t, t) with x_t of shape {tuple(x.shape)}, got {got}."
            )
        both = torch.cat([x, cond.x], 1)
        return self.net(both, s, t, condition_of(cond.label, cond.t[:, None]))[:, : x.shape[1]]


class PosteriorMatching(Objective):
    """An objective of any method, whose condition is an observation of the datum, drawn anew each time.

    Args:
        objective: of a map of a network that takes the observations as its condition.
        observe: draws them; `AddNoise()` unless given. A map of p(x1 | y) for y = A x1 + sigma noise takes
            `lambda x1, cond, generator: operator(x1) + sigma * torch.randn(...)`.

    Raises:
        ValueError: `objective` is no objective.
    """

    def __init__(self, objective: Objective, observe: Observe | None = None) -> None:
        if not isinstance(objective, Objective):
            raise ValueError(
                f"PosteriorMatching takes an objective, got {type(objective).__name__}: pass that of a method, such as "
                "fm.methods.lsd(flow_map)."
            )
        loss = {"distance": objective.distance, "weight": objective.weight}
        super().__init__(objective.flow_map, objective.interpolant, times=objective.times, **loss, **objective.shared())
        self.objective, self.observe = objective, AddNoise() if observe is None else observe

    def draw_inputs(self, x1: Batch, x0: Batch | None, cond: Condition, at: Moment) -> RandomInputs:
        """`draw` of arguments that were checked, with observations drawn in the place of the condition."""
        y = self.observe(x1, cond, at.generator)
        check_inputs(self.flow_map, x1, x0, y)
        return self.objective.draw_inputs(x1, x0, y, at)

    def evaluate(self, inputs: RandomInputs) -> Loss:
        return self.objective.evaluate(inputs)

    def draw_times(
        self, x1: Batch, generator: torch.Generator | None, progress: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.objective.draw_times(x1, generator, progress)

    @property
    def number_of_parts(self) -> int:
        return self.objective.number_of_parts

    def counts(self, rows: int) -> tuple[int, ...]:
        return self.objective.counts(rows)

    def micro_batches(self, rows: int, number: int) -> Tensor:
        return self.objective.micro_batches(rows, number)


@torch.no_grad()
def sample_posterior_map(
    flow_map: FlowMap, noise: Batch, x: Batch, t: Time, label: Any = None, *, steps: int = 1
) -> Batch:
    """Samples of p(x1 | I_t = x), one a row, `(B, *shape)`, in `steps` evaluations.

    Args:
        flow_map: a posterior map, trained by `PosteriorMatching` with `AddNoise`.
        noise: fresh noise, `(B, *shape)`.
        x: the points x_t, `(B, *shape)`.
        t: their times in [0, 1], `(B,)`.
        label: a further condition, one a row.
        steps: jumps from noise to data.

    Raises:
        ValueError: points and noise of different shapes, or times outside [0, 1].
    """
    if noise.shape != x.shape:
        raise ValueError(f"noise and points have one shape, got {tuple(noise.shape)} and {tuple(x.shape)}.")
    check_time(t, x)
    check_condition(label, x, "x")
    return Jump(steps)(flow_map, noise, NoisyDatum(x, t, label))


@torch.no_grad()
def stochastic_jumps(
    flow_map: FlowMap,
    x: Batch,
    times: list[float],
    label: Any = None,
    *,
    gamma: float = 1.0,
    steps: int = 1,
    interpolant: Interpolant | None = None,
    generator: torch.Generator | None = None,
) -> Batch:
    """Carry points along times by samples of the posterior, to points of the law of I_t at the last time.

    Args:
        flow_map: a posterior map.
        x: points of the law of I at the first time, such as noise at 0, `(B, *shape)`.
        times: rising, from below 1, such as [0, 0.5, 1].
        label: a further condition, one a row.
        gamma: share of fresh noise in [0, 1], as in `GammaSampling`; 0 keeps the noise that the posterior sample
            leaves.
        steps: jumps of the map for each sample.
        interpolant: the path, without latent noise; `Linear()` unless given.
        generator: source of the noise, on the device of `x`.

    Returns:
        `(B, *shape)`, in `steps (len(times) - 1)` evaluations.

    Raises:
        ValueError: times that do not rise, or gamma outside [0, 1].
    """
    path = _path(interpolant)
    check_grid(times)
    if times[0] > times[-1]:
        raise ValueError(f"stochastic_jumps needs rising times, got {times}.")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is a share of fresh noise in [0, 1], got {gamma}.")
    options: dict[str, Any] = {"dtype": x.dtype, "device": x.device, "generator": generator}
    with evaluating(flow_map):
        for start, end in itertools.pairwise(times):
            s, t = x.new_full((len(x),), start), x.new_full((len(x),), end)
            x1 = sample_posterior_map(flow_map, torch.randn(x.shape, **options), x, s, label, steps=steps)
            x0 = (x - like(path.beta(s), x) * x1) / like(path.alpha(s), x)
            e = (1 - gamma**2) ** 0.5 * x0 + gamma * torch.randn(x.shape, **options)
            x = path.point(e, x1, t)
    return x


def _path(interpolant: Interpolant | None) -> Interpolant:
    path = Linear() if interpolant is None else interpolant
    if path.noisy:
        raise ValueError(f"posterior maps are of a path without latent noise, got {path}.")
    return path
