"""Regression on solved trajectories: a velocity's ODE is solved from noise, and the map learns its jumps.

    E w d( u_{s,t}(x_s) - (x_t - x_s) / (t - s) ),    dx_r = b_r(x_r) dr,    x_0 noise,    (s, t) on a grid of times

`TrajectoryMatching` has no derivative and no moving target; its minimum is the flow of b, to the error of the solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from ..interpolants import Interpolant
from ..losses import squared
from ..maps import FlowMap
from ..shapes import Batch, Condition, like
from ..solvers import FIXED, integrate
from ..times import Times, Triangle, check_grid, grid
from ..velocities import RandomInputs, Velocity
from .base import Common, Loss, Moment, Objective
from .inputs import copy_of, repeated
from .matching import Compare


class TrajectoryMatching(Objective):
    """E w d(jump of the map - jump between two points of one trajectory, solved from noise).

    The data give shape and condition alone. A draw solves one trajectory for `pairs` rows, each of which takes two of
    its points; the rows of a trajectory share noise and condition. In a draw x0 and x1 are these two points.

    Args:
        velocity: the field whose ODE is solved, such as a teacher's.
        times: law of (s, t), rounded outwards to the grid, in either order; `Triangle` unless given.
        points: the grid of times from 0 to 1: a number of equal steps, or the times.
        solver: a method of fixed step (see `solvers.integrate`), one step for each of the grid; `midpoint` does not
            ask for the velocity at t = 1, where that of some paths and maps has no bound.
        pairs: rows for each trajectory.
        compare: the distance compares average velocities, or jumps: points, for a distance of images.

    Raises:
        ValueError: the grid does not rise from 0 to 1, the solver has no fixed step, or `pairs` is below 1.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        interpolant: Interpolant,
        velocity: Velocity,
        *,
        times: Times | None = None,
        points: int | Sequence[float] = 16,
        solver: str = "midpoint",
        pairs: int = 4,
        compare: Compare = Compare.VELOCITY,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(flow_map, interpolant, times=Triangle() if times is None else times, **common)
        self.velocity, self.solver, self.pairs, self.compare = velocity, solver, pairs, compare
        self.points = tuple(grid(points) if isinstance(points, int) else points)
        check_grid(list(self.points))
        if (self.points[0], self.points[-1]) != (0, 1):
            raise ValueError(
                f"trajectories are solved from noise to data: points must rise from 0 to 1, got {self.points}."
            )
        if solver not in FIXED:
            raise ValueError(f"trajectories are solved on their grid: solver must be one of {FIXED}, got {solver!r}.")
        if type(pairs) is not int or pairs < 1:
            raise ValueError(f"pairs must be a whole number of at least 1, got {pairs!r}.")
        if compare is Compare.DATA:
            raise ValueError("a trajectory ends at the data already: pass compare=Compare.JUMP, and times=ToData().")

    def draw_inputs(self, x1: Batch, x0: Batch | None, cond: Condition, at: Moment) -> RandomInputs:
        """`draw` of arguments that were checked: the trajectories are solved here."""
        inputs = super().draw_inputs(x1, x0, cond, at)
        rows = len(inputs.x0)
        number = -(-rows // self.pairs)
        first, label = copy_of(inputs.x0, 0, number), copy_of(inputs.cond, 0, number)
        trajectories = self.solve(first, label)
        own = torch.arange(rows, device=first.device) % number
        label = copy_of(repeated(label, self.pairs), 0, rows)
        start, end = self._on_grid(inputs.s, inputs.t)
        times = self._times(inputs.s)
        s, t = times[start], times[end]
        return inputs._replace(x0=trajectories[start, own], x1=trajectories[end, own], z=None, s=s, t=t, cond=label)

    @torch.no_grad()
    def solve(self, x0: Batch, cond: Condition = None) -> Tensor:
        """The trajectories from `x0` on the grid, `(len(points), B, *shape)`."""
        found = [x0]
        for now, following in zip(self.points[:-1], self.points[1:], strict=True):
            s, t = (x0.new_full((len(x0),), time) for time in (now, following))
            found.append(integrate(self.velocity, found[-1], s, t, cond, method=self.solver, steps=1))
        return torch.stack(found)

    def _times(self, like: Tensor) -> Tensor:
        """The grid, without a copy from the host, which a device waits for."""
        return torch.stack([like.new_full((), time) for time in self.points])

    def _on_grid(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of two points of the grid: the steps that s and t are in, outwards, at least one of them."""
        points = self._times(s)
        low, high = torch.minimum(s, t).contiguous(), torch.maximum(s, t).contiguous()
        first = (torch.searchsorted(points, low, right=True) - 1).clamp_max(len(points) - 2)
        last = torch.maximum(torch.searchsorted(points, high), first + 1)
        return torch.where(s <= t, first, last), torch.where(s <= t, last, first)

    def evaluate(self, inputs: RandomInputs) -> Loss:
        x, end, s, t = inputs.x0, inputs.x1, inputs.s, inputs.t
        h = like(t - s, x)
        u, target = self.flow_map.average_velocity(x, s, t, inputs.cond), (end - x) / h
        if self.compare is Compare.JUMP:
            distance = self.between_points(x + h * u, end)
        else:
            distance = self.between_velocities(u, target, x, s)
        value = self.weight(distance, s, t).mean()
        return Loss(value, {"trajectory": squared((u - target).detach())})
