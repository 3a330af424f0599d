"""Objectives of one residual: of a velocity, of an equation, or of a round trip.

    VelocityMatching    E w d(u_{t,t}(I_t) - dI_t)
    MapMatching         E w d(residual of an equation at (I_s, s, t))
    RoundTrip           E w ( d(Lagrangian residual at x = X_{t,s}(I_t)) + d(X_{s,t}(x) - I_t) )

w is the weight and d the distance of `flowmaps.losses`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from enum import Enum
from typing import Any, Unpack

import torch
from torch import Tensor

from ..equations import Equation, Lagrangian, Residual, Semigroup
from ..interpolants import Interpolant
from ..losses import Learned, Perceptual, PerSpeed, measure, squared
from ..maps import DetachedWeights, FlowMap, as_target
from ..shapes import Batch, like
from ..times import Diagonal, LegLaw, Square, Times
from ..velocities import FromMap, RandomInputs, Velocity
from .base import Common, DrawnTimes, Loss, Objective


class VelocityMatching(Objective):
    """E w d(u_{t,t}(I_t) - dI_t), minimised for d = |.|^2 by u_{t,t} = b_t (2303.08797; flow matching, 2210.02747).

    Args:
        velocity: the velocity to match; dI, guided if there is guidance, unless given.

    On a path whose speed has no bound (`VariancePreserving`) the weight is `losses.PerSpeed` unless one is given: a few
    rows near t = 1 would be most of the loss otherwise.

    Raises:
        ValueError: a weight that vanishes at s = t, where the velocity is learned.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        interpolant: Interpolant,
        velocity: Velocity | None = None,
        *,
        times: Times | None = None,
        **common: Unpack[Common],
    ) -> None:
        if common.get("weight") is None and not interpolant.bounded_speed:
            coupling = common.get("coupling")
            common["weight"] = PerSpeed(interpolant, 1.0 if coupling is None else coupling.base.std)
        super().__init__(flow_map, interpolant, times=Diagonal() if times is None else times, **common)
        self.velocity = self.data_velocity() if velocity is None else velocity
        like = next(
            itertools.chain(self.weight.parameters(), self.weight.buffers(), flow_map.parameters()), torch.ones(1)
        )
        half, one = (like.new_full((1,), value, dtype=torch.float32) for value in (0.5, 1.0))
        if not isinstance(self.weight, Learned) and not self.weight(one, half, half, one).any():
            raise ValueError(
                f"the weight {type(self.weight).__name__} vanishes at s = t, so that no velocity would be learned: "
                "take one that does not, or compose the objective of its parts."
            )

    @functools.cached_property
    def on_diagonal(self) -> bool:
        """Whether the law of its times draws s = t alone."""
        s, t = self.times.pair(torch.rand(3, 16, generator=torch.Generator().manual_seed(0), device="cpu"))
        return torch.equal(s, t)

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> DrawnTimes:
        s, t, split, warmup = super().draw_times(x1, generator, progress)
        return s, t, torch.ones_like(split), warmup  # there is no first leg: weights take split = 1

    def evaluate(self, inputs: RandomInputs) -> Loss:
        x0, x1, z, t, cond = inputs.x0, inputs.x1, inputs.z, inputs.t, inputs.cond
        x = self.interpolant.point(x0, x1, t, z)
        v, target = self.flow_map.velocity(x, t, cond), self.velocity.bind(inputs)(x, t, cond)
        value = self.weight(self.between_velocities(v, target, x, t), inputs.s, t, inputs.split).mean()
        return Loss(value, {"diagonal": squared((v - target).detach())})


class Compare(Enum):
    """In which space the distance compares the two sides of an equation.

    | value | the distance compares | `Loss.parts` are squared norms of |
    |---|---|---|
    | VELOCITY | average velocities u | the difference of u |
    | JUMP | jumps X_{s,t}, as consistency models do: their difference is t - s times that of u | the difference of u |
    | DATA | where the target map takes these jumps to, at t = 1, as CTM does (2310.02279) | the difference there |
    """

    VELOCITY = "velocity"
    JUMP = "jump"
    DATA = "data"


class MapMatching(Objective):
    """E w_{s,t} d(residual of an equation at (I_s, s, t)).

    Args:
        equation: the equation that the map should satisfy, with its stop-gradient.
        velocity: where b comes from; dI, guided if there is guidance, unless given.
        split: law of the share of the first leg (semigroup); equal legs unless given.
        warmup: schedule of the factor on the equation's derivative, `progress -> [0, 1]`.
        target: the map that takes the legs (semigroup); the trained map itself unless given. A `Target` is used as it
            is, any other map is copied into a fixed one.
        compare: what the distance compares: velocities, jumps, or points at the data end.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        interpolant: Interpolant,
        equation: Equation,
        velocity: Velocity | None = None,
        *,
        times: Times,
        split: LegLaw | None = None,
        warmup: Callable[[float], float] | None = None,
        target: FlowMap | None = None,
        compare: Compare = Compare.VELOCITY,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(flow_map, interpolant, times=times, **common)
        self.equation, self.velocity = equation, self.data_velocity() if velocity is None else velocity
        self.target = None if target is None else as_target(target)
        self.split, self.warmup, self.compare = split, warmup, compare
        self.share = 1 / equation.legs if isinstance(equation, Semigroup) else None
        self._check()

    def _check(self) -> None:
        """Refuse an equation that does not go with the velocity, or with what the distance compares."""
        equation = self.equation
        if isinstance(equation, Semigroup):
            if not equation.velocity_first and not isinstance(self.velocity, FromMap):
                raise ValueError(
                    "a semigroup takes its legs with a map: pass velocity=FromMap(flow_map), or use "
                    "Semigroup(velocity_first=True)."
                )
        elif self.compare is Compare.DATA:
            raise ValueError(f"Compare.DATA is for jumps of a semigroup, got {equation}: leave compare out.")
        points = self.compare is not Compare.VELOCITY or isinstance(self.distance, Perceptual)
        if points and equation.normalise is not None:
            raise ValueError(
                f"a normalised residual is no difference of points, got {self.compare} and the distance "
                f"{self.distance} for {equation}: pass normalise=None, or leave both out."
            )

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> DrawnTimes:
        s, t, split, warmup = super().draw_times(x1, generator, progress)
        if self.split is not None:
            split = self.split.share(split, s, t, progress)
        elif self.share is not None:
            split = torch.full_like(split, self.share)
        return s, t, split, warmup if self.warmup is None else warmup * self.warmup(progress)

    def evaluate(self, inputs: RandomInputs) -> Loss:
        x = self.interpolant.point(inputs.x0, inputs.x1, inputs.s, inputs.z)
        options: dict[str, Any] = {"cond": inputs.cond, "target": self.target}
        options["split"] = None if self.split is None else inputs.split
        options["warmup"] = None if self.warmup is None else inputs.warmup
        residual = self.equation(self.flow_map, x, inputs.s, inputs.t, self.velocity.bind(inputs), **options)
        legs = None if self.share is None else inputs.split
        distance, part = self._compared(residual, x, inputs)
        value = self.weight(distance, inputs.s, inputs.t, legs).mean()
        return Loss(value, {type(self.equation).__name__.lower(): part})

    def _compared(self, residual: Residual, x: Tensor, inputs: RandomInputs) -> tuple[Tensor, Tensor]:
        """The distance of the two sides, and the squared norm of their difference, each `(B,)`."""
        if self.compare is Compare.DATA:
            ends = self._at_data_end(residual, x, inputs)
            return self.between_points(*ends), squared((ends[0] - ends[1]).detach())
        part = squared((residual.value if residual.raw is None else residual.raw).detach())
        if self.compare is Compare.JUMP and not isinstance(self.distance, Perceptual):
            return measure(self.distance, like(inputs.t - inputs.s, x) * residual.value), part
        return self.between_velocities(residual.prediction, residual.target, x, inputs.s), part

    def _at_data_end(self, residual: Residual, x: Tensor, inputs: RandomInputs) -> list[Tensor]:
        to_data = DetachedWeights(self.flow_map if self.target is None else self.target)
        h, one = like(inputs.t - inputs.s, x), torch.ones_like(inputs.t)
        return [to_data(x + h * u, inputs.t, one, inputs.cond) for u in (residual.prediction, residual.target)]


class RoundTrip(Objective):
    """E w ( d(Lagrangian residual at x = X_{t,s}(I_t), with dI_t) + d(X_{s,t}(x) - I_t) ): FMM, proposition 3.11.

    The jump starts where the map itself takes I_t at time s, so that both terms share one pull-back and one jump.
    Without the second term the minimum does not determine the map.

    Args:
        equation: the Lagrangian equation, with its derivative engine.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        interpolant: Interpolant,
        *,
        equation: Lagrangian | None = None,
        times: Times | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(flow_map, interpolant, times=Square() if times is None else times, **common)
        self.equation = Lagrangian() if equation is None else equation
        self.velocity = self.data_velocity()

    def evaluate(self, inputs: RandomInputs) -> Loss:
        x0, x1, z, s, t, cond = inputs.x0, inputs.x1, inputs.z, inputs.s, inputs.t, inputs.cond
        here = self.interpolant.point(x0, x1, t, z)
        back = self.flow_map(here, t, s, cond)
        residual = self.equation(self.flow_map, back, s, t, self.velocity.bind(inputs), cond=cond)
        assert residual.jump is not None
        transport = self.between_velocities(residual.prediction, residual.target, back, s)
        returning = self.between_points(residual.jump, here)
        value = self.weight(transport + returning, s, t).mean()  # one weight on both: w ( d + d )
        parts = {"lagrangian": residual.value, "round_trip": residual.jump - here}
        return Loss(value, {name: squared(part.detach()) for name, part in parts.items()})
