"""Samplers: how a flow map turns noise into data, and data into noise.

Noise and grids are drawn outside; inside, a sampler is deterministic. No gradients are kept: to differentiate through
samples, call the map itself or `maps.Composed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .interpolants import Interpolant, Linear
from .maps import FlowMap
from .shapes import Batch, Condition
from .times import check_grid, grid


@dataclass(frozen=True)
class Jump:
    """Jump along a grid of times: x_{k+1} = X_{t_k, t_{k+1}}(x_k), one evaluation a step.

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
        if (self.steps is None) == (self.grid is None):
            raise ValueError(f"Jump takes steps or grid, one of the two, got steps={self.steps}, grid={self.grid}.")
        if self.grid is not None and self.reverse:
            raise ValueError("reverse is for the uniform grid: give a falling grid instead.")
        ends = (1.0, 0.0) if self.reverse else (0.0, 1.0)
        times = list(self.grid) if self.grid is not None else grid(self.steps or 0, *ends)
        check_grid(times)
        object.__setattr__(self, "times", tuple(float(t) for t in times))

    @torch.no_grad()
    def __call__(self, flow_map: FlowMap, x0: Batch, cond: Condition = None) -> Batch:
        """Carry `x0`, `(B, *shape)`, at the first time of the grid to the last; `(B, *shape)`."""
        x = x0
        for s, t in zip(self.times, self.times[1:], strict=False):
            x = flow_map(x, x.new_full((len(x),), s), x.new_full((len(x),), t), cond)
        return x

    @torch.no_grad()
    def path(self, flow_map: FlowMap, x0: Batch, cond: Condition = None) -> Tensor:
        """Every point on the way, `(len(grid), B, *shape)`, the first being `x0`."""
        points = [x0]
        for s, t in zip(self.times, self.times[1:], strict=False):
            points.append(Jump(grid=(s, t))(flow_map, points[-1], cond))
        return torch.stack(points)


@dataclass(frozen=True)
class Restart:
    """Multistep by renoising: jump to data, add fresh noise back to the next time, jump again (2303.01469, algorithm
    1).

        x <- X_{t_k, 1}(x);    x <- alpha x0_k + beta x (+ gamma z_k) at t_{k+1}

    Args:
        grid: times from which to jump to data, rising, in [0, 1); the first is where the sampler starts.
        interpolant: the path whose law at each time is restored.
    """

    grid: Sequence[float]
    interpolant: Interpolant = field(default_factory=Linear)

    def __post_init__(self) -> None:
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
        need = (rounds * (2 if self.interpolant.noisy else 1), *x0.shape)
        if rounds and (noise is None or tuple(noise.shape) != need):
            got = None if noise is None else tuple(noise.shape)
            raise ValueError(f"Restart over {len(self.grid)} times needs noise of shape {need}, got {got}.")
        one = x0.new_ones(len(x0))
        x = flow_map(x0, one * self.grid[0], one, cond)
        for k, time in enumerate(self.grid[1:]):
            assert noise is not None
            t = one * time
            latent = noise[rounds + k] if self.interpolant.noisy else None
            x = flow_map(self.interpolant.point(noise[k], x, t, latent), t, one, cond)
        return x


def encode(flow_map: FlowMap, x1: Batch, steps: int = 1, cond: Condition = None) -> Batch:
    """Data to noise in `steps` jumps backwards, `(B, *shape) -> (B, *shape)`."""
    return Jump(steps, reverse=True)(flow_map, x1, cond)
