"""Objectives of one residual: of the velocity, of a map equation, or of both round a round trip."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Unpack

import torch
from torch import Tensor

from ..equations import Equation, Lagrangian, Residual, Semigroup
from ..interpolants import Interpolant
from ..losses import Learned, Perceptual, measure, squared
from ..maps import Detached, FlowMap, frozen
from ..shapes import Batch, like
from ..times import Diagonal, LegLaw, Square, Times
from ..velocities import Draw, FromMap, Velocity
from .base import Common, Drawn, Loss, Objective


class VelocityMatching(Objective):
    """E |u_{t,t}(I_t) - dI_t|^2, minimised by u_{t,t} = b_t (2303.08797; flow matching, 2210.02747).

    Args:
        velocity: what is matched; dI, guided where guidance is asked for, unless given.
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
        super().__init__(flow_map, interpolant, times=Diagonal() if times is None else times, **common)
        self.velocity = self.data_velocity() if velocity is None else velocity
        half, one = torch.full((1,), 0.5), torch.ones(1)
        if not isinstance(self.weight, Learned) and not self.weight(one, half, half, one).any():
            raise ValueError(
                f"the weight {type(self.weight).__name__} vanishes at s = t, so that no velocity would be learned: "
                "take one that does not, or compose the objective of its parts."
            )

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> Drawn:
        s, t, split, warm = super().draw_times(x1, generator, progress)
        return s, t, torch.ones_like(split), warm  # no first leg: to a weight it is all of [t, t]

    def evaluate(self, draw: Draw) -> Loss:
        x0, x1, z, _, t, _, cond, _ = draw
        x = self.interpolant.point(x0, x1, t, z)
        v, target = self.flow_map.velocity(x, t, cond), self.velocity.bind(draw)(x, t, cond)
        value = self.weight(self.between_velocities(v, target, x, t), draw.s, t, draw.split).mean()
        return Loss(value, {"diagonal": squared((v - target).detach())})


class Compare(Enum):
    """What the distance of an equation's two sides is of; `Loss.parts` holds the squared norms.

    | value | the distance is of | parts are of |
    |---|---|---|
    | VELOCITY | u | u |
    | JUMP | the jumps X_{s,t}, whose difference is (t - s) times that of u: consistency models | u |
    | DATA | the jumps as the target map carries them on to t = 1, detached in its weights: CTM (2310.02279) | the same |
    """

    VELOCITY = "velocity"
    JUMP = "jump"
    DATA = "data"


class MapMatching(Objective):
    """E w_{s,t} d(residual of an equation at (I_s, s, t)), with d = |.|^2 unless a distance is given.

    Args:
        equation: the law that the map should obey, with its stop-gradient.
        velocity: where b comes from; dI, guided where guidance is asked for, unless given.
        split: law of the share of the first leg (semigroup); equal legs unless given.
        warmup: schedule of the share of the equation's derivative that counts, `progress -> [0, 1]`.
        target: the map of the legs, in the place of the one that is trained (semigroup): a `Frozen` is taken as it is,
            so that it may follow, any other map is copied.
        compare: what the distance is of: velocities, jumps, or points at the data end.
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
        self.target = None if target is None else frozen(target)
        self.split, self.warmup, self.compare = split, warmup, compare
        legs = isinstance(equation, Semigroup)
        if legs and not equation.led and not isinstance(self.velocity, FromMap):
            raise ValueError("a semigroup takes its legs with a map: pass velocity=FromMap(flow_map), or led=True.")
        if compare is Compare.DATA and not legs:
            raise ValueError(f"Compare.DATA is for jumps of a semigroup, got {equation}: leave compare out.")
        points = compare is not Compare.VELOCITY or isinstance(self.distance, Perceptual)
        if points and equation.normalise is not None:
            raise ValueError(
                f"a normalised residual is no difference of points, got {compare} and the distance {self.distance} for "
                f"{equation}: pass normalise=None, or leave both out."
            )
        self.share = 1 / equation.legs if legs else None

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> Drawn:
        s, t, split, warm = super().draw_times(x1, generator, progress)
        if self.split is not None:
            split = self.split.share(split, s, t, progress)
        elif self.share is not None:
            split = torch.full_like(split, self.share)
        return s, t, split, warm if self.warmup is None else warm * self.warmup(progress)

    def evaluate(self, draw: Draw) -> Loss:
        x = self.interpolant.point(draw.x0, draw.x1, draw.s, draw.z)
        options: dict[str, Any] = {"cond": draw.cond, "target": self.target}
        options["split"] = None if self.split is None else draw.split
        options["warm"] = None if self.warmup is None else draw.warm
        residual = self.equation(self.flow_map, x, draw.s, draw.t, self.velocity.bind(draw), **options)
        legs = None if self.share is None else draw.split
        distance, part = self._compared(residual, x, draw)
        value = self.weight(distance, draw.s, draw.t, legs).mean()
        return Loss(value, {type(self.equation).__name__.lower(): part})

    def _compared(self, residual: Residual, x: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """The distance of the two sides, and the squared norm of their difference, each `(B,)`."""
        if self.compare is Compare.DATA:
            ends = self._at_data(residual, x, draw)
            return self.between_points(*ends), squared((ends[0] - ends[1]).detach())
        part = squared((residual.value if residual.raw is None else residual.raw).detach())
        if self.compare is Compare.JUMP and not isinstance(self.distance, Perceptual):
            return measure(self.distance, like(draw.t - draw.s, x) * residual.value), part
        return self.between_velocities(residual.prediction, residual.target, x, draw.s), part

    def _at_data(self, residual: Residual, x: Tensor, draw: Draw) -> list[Tensor]:
        outer = Detached(self.flow_map if self.target is None else self.target)
        h, one = like(draw.t - draw.s, x), torch.ones_like(draw.t)
        return [outer(x + h * u, draw.t, one, draw.cond) for u in (residual.prediction, residual.target)]


class RoundTrip(Objective):
    """E w ( d(Lagrangian residual at x = X_{t,s}(I_t), with dI_t) + d(X_{s,t}(x) - I_t) ): FMM, proposition 3.11.

    The path starts from where the map itself carries I_t, so both terms share one pull-back and one jump. Without the
    second term the map is not determined.

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

    def evaluate(self, draw: Draw) -> Loss:
        x0, x1, z, s, t, _, cond, _ = draw
        here = self.interpolant.point(x0, x1, t, z)
        back = self.flow_map(here, t, s, cond)
        residual = self.equation(self.flow_map, back, s, t, self.velocity.bind(draw), cond=cond)
        assert residual.jump is not None
        transport = self.between_velocities(residual.prediction, residual.target, back, s)
        returning = self.between_points(residual.jump, here)
        value = self.weight(transport + returning, s, t).mean()  # one weight on both: w ( d + d )
        parts = {"lagrangian": residual.value, "round_trip": residual.jump - here}
        return Loss(value, {name: squared(part.detach()) for name, part in parts.items()})
