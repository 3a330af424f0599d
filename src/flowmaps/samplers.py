"""Samplers: how a flow map X_{s,t} turns noise into data, and data into noise, along a grid t_0 < t_1 < ... of times.

    Jump                    x <- X_{t_k, t_{k+1}}(x)
    MultistepConsistency    x <- X_{t_k, 1}(x), then noise is added back to time t_{k+1}
    GammaSampling           x <- X_{t_k, w}(x) with w beyond t_{k+1}, then some noise is added back to time t_{k+1}

The caller gives the noise, so that a sampler is deterministic. It walks in evaluation mode, without dropout, and then
puts the map back into the mode that it was in. Samplers keep no gradients: to differentiate through
samples, call the map itself or `maps.Composed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .interpolants import Interpolant, Linear
from .maps import FlowMap
from .modules import evaluating
from .shapes import Batch, Condition, like
from .times import check_grid, grid


@dataclass(frozen=True)
class Jump:
    """Jumps along a grid of times, x_{k+1} = X_{t_k, t_{k+1}}(x_k), with one evaluation a step.

    Args:
        steps: number of equal steps; or give `grid`.
        grid: times to visit, rising (noise to data) or falling (data to noise: encoding).
        reverse: run the uniform grid from data to noise.
    """

    steps: int | None = None
    grid: Sequence[float] | None = None
    reverse: bool = False
    times: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.grid is not None and self.reverse:
            raise ValueError("reverse is for the uniform grid: give a falling grid instead.")
        ends = (1.0, 0.0) if self.reverse else (0.0, 1.0)
        object.__setattr__(self, "times", _times("Jump", self.steps, self.grid, ends))

    @torch.no_grad()
    def __call__(self, flow_map: FlowMap, x0: Batch, cond: Condition = None) -> Batch:
        """Carry `x0`, `(B, *shape)`, at the first time of the grid to the last; `(B, *shape)`."""
        x = x0
        with evaluating(flow_map):
            for s, t in zip(self.times, self.times[1:], strict=False):
                x = flow_map(x, x.new_full(x.shape[:1], s), x.new_full(x.shape[:1], t), cond)
        return x

    @torch.no_grad()
    def path(self, flow_map: FlowMap, x0: Batch, cond: Condition = None) -> Tensor:
        """The point at each time of the grid, `(len(grid), B, *shape)`, of which the first is `x0`."""
        points = [x0]
        for s, t in zip(self.times, self.times[1:], strict=False):
            points.append(Jump(grid=(s, t))(flow_map, points[-1], cond))
        return torch.stack(points)


@dataclass(frozen=True)
class MultistepConsistency:
    """Multistep consistency sampling: jump to the data, add fresh noise, jump again (2303.01469, algorithm 1).

        x <- X_{t_k, 1}(x);    x <- alpha x0_k + beta x (+ gamma z_k) at t_{k+1}

    Args:
        grid: times of the jumps to the data, rising, in [0, 1); the sampler starts at the first.
        interpolant: the path that the map was trained on.
    """

    grid: Sequence[float]
    interpolant: Interpolant = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if len(self.grid) and self.grid[-1] >= 1:
            raise ValueError(
                f"MultistepConsistency takes the times before 1, got {list(self.grid)}: leave the last out."
            )
        check_grid([*self.grid, 1.0])

    @torch.no_grad()
    def __call__(self, flow_map: FlowMap, x0: Batch, noise: Tensor | None = None, cond: Condition = None) -> Batch:
        """Sample.

        Args:
            flow_map: the map.
            x0: points at the first time of the grid, `(B, *shape)`.
            noise: fresh base samples, `(len(grid) - 1, B, *shape)`; twice as many rows, base then latent noise, for an
                interpolant with latent noise. Not needed for one step.
            cond: condition.

        Raises:
            ValueError: the noise has another shape.
        """
        rounds = len(self.grid) - 1
        if rounds:
            number = rounds * (2 if self.interpolant.noisy else 1)
            _check_noise("MultistepConsistency", len(self.grid), noise, (number, *x0.shape))
        one = x0.new_ones(x0.shape[:1])
        with evaluating(flow_map):
            x = flow_map(x0, one * self.grid[0], one, cond)
            for k, time in enumerate(self.grid[1:]):
                assert noise is not None
                t = one * time
                latent = noise[rounds + k] if self.interpolant.noisy else None
                x = flow_map(self.interpolant.point(noise[k], x, t, latent), t, one, cond)
        return x


@dataclass(frozen=True)
class GammaSampling:
    """CTM's gamma-sampling (2310.02279, algorithm 3): jump beyond the next time t = t_{k+1}, then add noise back to t.

        alpha_w / beta_w = sqrt(1 - gamma^2) alpha_t / beta_t,       w in [t, 1]
        x <- beta_t / beta_w X_{t_k, w}(x) + gamma alpha_t x0_k.

    beta_t / beta_w I_w has the data of I_t and noise of variance (1 - gamma^2) alpha_t^2; the fresh noise has the rest
    of the variance. So samples of an exact map have the law of I_t at each time t of the grid, for every gamma: 0 is
    `Jump`, 1 is `MultistepConsistency`. For EDM's diffusion, beta = 1 and sigma = alpha sigma_max, it is the paper's
    jump to sqrt(1 - gamma^2) sigma_{k+1} with noise gamma sigma_{k+1}. The last step is a jump without noise.

    Args:
        steps: number of equal steps from 0 to 1; or give `grid`.
        grid: times to visit, rising.
        interpolant: the path that the map was trained on, without latent noise.
        gamma: standard deviation of the fresh noise over that of all noise, in [0, 1]; not the gamma of an interpolant.
            Between 0 and 1 the base must be a centred normal law, for the sum of two noises to have the law of one.

    Attributes:
        times: the grid, t_0 to t_N.
        targets: the times w of the N jumps; the last is t_N.

    Raises:
        ValueError: gamma outside [0, 1], a grid that does not rise, or an interpolant with latent noise.
    """

    steps: int | None = None
    grid: Sequence[float] | None = None
    interpolant: Interpolant = field(default_factory=Linear)
    gamma: float = field(kw_only=True)
    times: tuple[float, ...] = field(init=False, repr=False)
    targets: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        times = _times("GammaSampling", self.steps, self.grid)
        if not 0 <= self.gamma <= 1:
            raise ValueError(
                f"GammaSampling needs gamma in [0, 1] (0 is Jump, 1 is MultistepConsistency), got {self.gamma}."
            )
        if times[0] > times[-1]:
            raise ValueError(
                f"GammaSampling goes from noise to data, got the falling grid {times}: use Jump to encode."
            )
        if self.interpolant.noisy:
            raise ValueError(
                f"GammaSampling needs a path without latent noise, got {self.interpolant}: use Jump or "
                "MultistepConsistency."
            )
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "targets", (*self._beyond(times[1:-1]), times[-1]))

    def _beyond(self, times: tuple[float, ...]) -> tuple[float, ...]:
        """The times w, each from its t to 1; exactly t for gamma = 0."""
        if not times or self.gamma == 0:
            return times
        t = torch.tensor(times, dtype=torch.float64)
        ratio = self.interpolant.alpha(t) / self.interpolant.beta(t)
        w = self.interpolant.time_of(math.sqrt(1 - self.gamma**2) * ratio)
        return tuple(torch.maximum(w, t).clamp(max=1).tolist())

    @torch.no_grad()
    def __call__(self, flow_map: FlowMap, x0: Batch, noise: Tensor | None = None, cond: Condition = None) -> Batch:
        """Sample.

        Args:
            flow_map: the map.
            x0: points at the first time of the grid, `(B, *shape)`.
            noise: fresh base samples, `(N - 1, B, *shape)` for N steps. Not needed for one step, or for `gamma = 0`.
            cond: condition.

        Returns:
            Points at the last time of the grid, `(B, *shape)`.

        Raises:
            ValueError: the noise has another shape.
        """
        for x in self._walk(flow_map, x0, noise, cond):
            x0 = x
        return x0

    @torch.no_grad()
    def path(self, flow_map: FlowMap, x0: Batch, noise: Tensor | None = None, cond: Condition = None) -> Tensor:
        """The point at each time of the grid, after its noise, `(len(grid), B, *shape)`; the first is `x0`."""
        return torch.stack([x0, *self._walk(flow_map, x0, noise, cond)])

    def _walk(self, flow_map: FlowMap, x: Tensor, noise: Tensor | None, cond: Condition) -> Iterator[Tensor]:
        rounds = len(self.times) - 2
        if noise is not None or (rounds and self.gamma > 0):
            _check_noise("GammaSampling", len(self.times), noise, (rounds, *x.shape))
        one = x.new_ones(x.shape[:1])
        for k, (target, time) in enumerate(zip(self.targets, self.times[1:], strict=True)):
            s, w, t = one * self.times[k], one * target, one * time
            with evaluating(flow_map):
                x = flow_map(x, s, w, cond)
            if k < rounds and self.gamma > 0:
                assert noise is not None
                fresh = like(self.gamma * self.interpolant.alpha(t), x) * noise[k]
                x = fresh + like(self.interpolant.beta(t) / self.interpolant.beta(w), x) * x
            yield x


def encode(flow_map: FlowMap, x1: Batch, steps: int = 1, cond: Condition = None) -> Batch:
    """Take data to noise in `steps` equal jumps from t = 1 to t = 0, `(B, *shape) -> (B, *shape)`."""
    return Jump(steps, reverse=True)(flow_map, x1, cond)


def _times(
    name: str, steps: int | None, times: Sequence[float] | None, ends: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, ...]:
    """The times of a sampler, from a number of equal steps or from a grid."""
    if (steps is None) == (times is None):
        raise ValueError(f"{name} takes steps or grid, one of the two, got steps={steps}, grid={times}.")
    visited = list(times) if times is not None else grid(steps or 0, *ends)
    check_grid(visited)
    return tuple(float(t) for t in visited)


def _check_noise(name: str, times: int, noise: Tensor | None, need: tuple[int, ...]) -> None:
    """Check that noise is given, and of the shape `need`."""
    got = None if noise is None else tuple(noise.shape)
    if got != need:
        raise ValueError(f"{name} over {times} times needs noise of shape {need}, got {got}.")
