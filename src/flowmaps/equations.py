r"""The three equations that characterise a flow map, as residuals of u.

With X_{s,t}(x) = x + h u_{s,t}(x), h = t - s, and the velocity b:

    Lagrangian   d_t X = b_t(X)              u + h d_t u           =  b_t(X)
    Eulerian     d_s X + grad X . b_s = 0    u                     =  b_s + h (d_s u + grad u . b_s)
    semigroup    X_{w,t}(X_{s,w}) = X_{s,t}  u_{s,t}               =  l u_{s,w} + (1 - l) u_{w,t}(X_{s,w}),  w = s + l h

Each is regular at s = t, where the first two say u_{t,t} = b_t, and holds for any (s, t) in [0, 1]^2, both orders.
Where gradients stop is a field of the equation (`Stop`): it changes what a step of training does, never the residual.

References: N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden, 2024, arXiv 2406.07507, propositions 3.5 and 3.6; 2025, arXiv
2505.18825, proposition 2.2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from . import dual
from .maps import FlowMap
from .shapes import Batch, Condition, Field, Time, check_time, like
from .velocities import FromMap


class Stop(Enum):
    """Where gradients stop.

    | value | Lagrangian | Eulerian | semigroup |
    |---|---|---|---|
    | NONE | nowhere | nowhere | nowhere |
    | VELOCITY | b_t(X) | b_s | both legs |
    | TANGENT | b_t(X) | b_s and grad u . b_s; d_s u is kept | both legs |
    | TARGET | the right-hand side of u = b_t(X) - h d_t u | the right-hand side | both legs |
    """

    NONE = "none"
    VELOCITY = "velocity"
    TANGENT = "tangent"
    TARGET = "target"


class Residual(NamedTuple):
    """Two sides of an equation, each `(B, *shape)`; `jump` is X_{s,t}(x) where the equation computed it."""

    prediction: Tensor
    target: Tensor
    jump: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """prediction - target, `(B, *shape)`."""
        return self.prediction - self.target


@dataclass(frozen=True)
class Equation(ABC):
    """A law of flow maps as a residual.

    Args:
        stop: where gradients stop.
        engine: how derivatives are taken: `dual`, `torch` or `finite-difference` (see `flowmaps.dual.jvp`).
    """

    stop: Stop = Stop.NONE
    engine: dual.Engine = "dual"

    def __call__(
        self,
        flow_map: FlowMap,
        x: Batch,
        s: Time,
        t: Time,
        velocity: Field,
        split: Time | None = None,
        *,
        cond: Condition = None,
    ) -> Residual:
        """The residual at (x, s, t).

        Args:
            flow_map: the map.
            x: points at time s, `(B, *shape)`.
            s, t: times in [0, 1], `(B,)`, either order.
            velocity: b, a field `(x, t, cond) -> like x`; the semigroup takes the legs with the map of a `FromMap`.
            split: share l of [s, t] that the first leg covers, `(B,)` in [0, 1]; semigroup only.
            cond: what the map and the field are conditioned on.

        Raises:
            ValueError: a time of the wrong shape or outside [0, 1], or a `split` that the equation has no use for.
        """
        check_time(s, x, "s")
        check_time(t, x, "t")
        if split is not None:
            check_time(split, x, "split")
            if not (isinstance(self, Semigroup) and self.legs == 2):
                raise ValueError(f"split is for the semigroup equation with two legs, got it for {self}.")
        return self.residual(flow_map, x, s, t, velocity, split, cond)

    @abstractmethod
    def residual(
        self,
        flow_map: FlowMap,
        x: Batch,
        s: Time,
        t: Time,
        velocity: Field,
        split: Time | None,
        cond: Condition,
    ) -> Residual:
        """The residual, arguments checked."""

    def _held(self) -> torch.no_grad | nullcontext:
        """The context of what every stop but NONE detaches."""
        return nullcontext() if self.stop is Stop.NONE else torch.no_grad()

    def _derivative(self, fn: Callable[..., Tensor], primals: tuple, tangents: tuple) -> tuple[Tensor, Tensor]:
        detach = self.stop is Stop.TARGET
        return dual.jvp(fn, primals, tangents, engine=self.engine, detach_tangent=detach)


@dataclass(frozen=True)
class Lagrangian(Equation):
    """d_t X_{s,t}(x) = b_t(X_{s,t}(x)): one derivative, along t."""

    def residual(
        self,
        flow_map: FlowMap,
        x: Batch,
        s: Time,
        t: Time,
        velocity: Field,
        split: Time | None,
        cond: Condition,
    ) -> Residual:
        u, u_dot = self._derivative(lambda r: flow_map.average_velocity(x, s, r, cond), (t,), (torch.ones_like(t),))
        h = like(t - s, x)
        jump = x + h * u
        with self._held():
            b = velocity(jump if self.stop is Stop.NONE else jump.detach(), t, cond)
        if self.stop is Stop.TARGET:
            return Residual(u, b - h * u_dot, jump)
        return Residual(u + h * u_dot, b, jump)


@dataclass(frozen=True)
class Eulerian(Equation):
    """d_s X_{s,t}(x) + grad X_{s,t}(x) . b_s(x) = 0: one derivative, along (b_s, 1) in (x, s).

    Args:
        step: `None` for the derivative; a number for the difference over a step of that length from s towards t
            (never beyond t), X_{s,t}(x) = X_{s+d,t}(x + d b_s), the discrete form of consistency models.
    """

    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is not None and not 0 < self.step <= 1:
            raise ValueError(f"Eulerian needs a step in (0, 1], or None for the derivative, got {self.step}.")
        if self.step is not None and self.stop is Stop.TANGENT:
            raise ValueError("a finite step has no spatial derivative of its own: use another stop than TANGENT.")

    def residual(
        self,
        flow_map: FlowMap,
        x: Batch,
        s: Time,
        t: Time,
        velocity: Field,
        split: Time | None,
        cond: Condition,
    ) -> Residual:
        with self._held():
            b = velocity(x, s, cond)
        h, one = like(t - s, x), torch.ones_like(s)

        def u_of(y: Tensor, r: Tensor) -> Tensor:
            return flow_map.average_velocity(y, r, t, cond)

        if self.step is not None:
            u = u_of(x, s)
            return Residual(u, self._difference(u_of, u, x, s, t, b))
        if self.stop is Stop.TANGENT:
            u, u_s = self._derivative(lambda r: u_of(x, r), (s,), (one,))
            with torch.no_grad():
                _, u_x = self._derivative(lambda y: u_of(y, s), (x,), (b,))
            return Residual(u - h * u_s, b + h * u_x)
        u, u_dot = self._derivative(u_of, (x, s), (b, one))
        return Residual(u, b + h * u_dot)

    def _difference(self, u_of: Callable[..., Tensor], u: Tensor, x: Tensor, s: Tensor, t: Tensor, b: Tensor) -> Tensor:
        assert self.step is not None
        target = self.stop is Stop.TARGET
        h = t - s
        d = torch.sign(h) * h.abs().clamp_max(self.step)
        with torch.no_grad() if target else nullcontext():
            ahead = u_of(x + like(d, x) * b, s + d)
            slope = like((h - d) / torch.where(d == 0, 1, d), x)
            return b + slope * (ahead - (u.detach() if target else u))


@dataclass(frozen=True)
class Semigroup(Equation):
    """X_{w,t}(X_{s,w}(x)) = X_{s,t}(x), as u: no derivative.

    Args:
        legs: number of jumps on the right-hand side, at least 2; equal ones unless a `split` is given for two.
    """

    legs: int = 2

    def __post_init__(self) -> None:
        if self.legs < 2:
            raise ValueError(f"Semigroup needs legs >= 2, got {self.legs}.")

    def residual(
        self,
        flow_map: FlowMap,
        x: Batch,
        s: Time,
        t: Time,
        velocity: Field,
        split: Time | None,
        cond: Condition,
    ) -> Residual:
        u = flow_map.average_velocity(x, s, t, cond)
        walker = velocity.flow_map if isinstance(velocity, FromMap) else flow_map
        share = torch.full_like(s, 1 / self.legs)
        shares = [share] * self.legs if split is None else [split, 1 - split]
        with self._held():
            target, start = torch.zeros_like(x), s
            for k, part in enumerate(shares):
                end = t if k == len(shares) - 1 else start + part * (t - s)
                leg = walker.average_velocity(x, start, end, cond)
                target = target + like(part, x) * leg
                x, start = x + like(end - start, x) * leg, end
        return Residual(u, target)
