r"""The three equations that characterise a flow map, as residuals of u.

With X_{s,t}(x) = x + h u_{s,t}(x), h = t - s, and the velocity b:

    Lagrangian   d_t X = b_t(X)              u + h d_t u           =  b_t(X)
    Eulerian     d_s X + grad X . b_s = 0    u                     =  b_s + h (d_s u + grad u . b_s)
    semigroup    X_{w,t}(X_{s,w}) = X_{s,t}  u_{s,t}               =  l u_{s,w} + (1 - l) u_{w,t}(X_{s,w}),  w = s + l h

Each is regular at s = t, where the first two say u_{t,t} = b_t, and holds for any (s, t) in [0, 1]^2, both orders.
Where gradients stop is a field of the equation (`Stop`): it changes what a step of training does, never the residual.
A finite step is a semigroup whose first leg is one Euler step of the velocity: with w = s + l h,

    u_{s,t}  =  l b_s + (1 - l) u_{w,t}(x + l h b_s),

and (u - right-hand side) / l tends to the Eulerian residual as l tends to 0.

References: N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden, 2024, arXiv 2406.07507, propositions 3.5 and 3.6; 2025, arXiv
2505.18825, proposition 2.2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import dual
from .maps import FlowMap
from .shapes import Batch, Condition, Field, Time, check_time, like, per_row
from .velocities import BoundVelocity, FromMap, Velocity


class Stop(Enum):
    """Where gradients stop; `stop=` of each method in `methods/`, and `--stop-gradient` of a recipe for lmd and emd.

    | value | Lagrangian | Eulerian | semigroup |
    |---|---|---|---|
    | NONE | nowhere | nowhere | nowhere |
    | VELOCITY | b_t(X) | b_s | both legs |
    | TANGENT | b_t(X) | b_s and grad u . b_s; d_s u is kept | both legs |
    | TARGET | the right-hand side, once written u = b_t(X) - h d_t u | the right-hand side | both legs |
    """

    NONE = "none"
    VELOCITY = "velocity"
    TANGENT = "tangent"
    TARGET = "target"


class Residual(NamedTuple):
    """Two sides of an equation, each `(B, *shape)`.

    `jump` is X_{s,t}(x) where the equation computed it, `raw` the residual before a normalisation.
    """

    prediction: Tensor
    target: Tensor
    jump: Tensor | None = None
    raw: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """prediction - target, `(B, *shape)`."""
        return self.prediction - self.target


_FOR = {
    "split": "split is for the semigroup equation with two legs",
    "warmup": "warmup is for a derivative with stop=Stop.TARGET",
    "target": "target is for a semigroup equation whose velocity is not a FromMap",
}
"""What the optional arguments of `Equation.__call__` are for, in the words of its errors."""


class EquationInputs(NamedTuple):
    """The arguments of `Equation.__call__`, checked."""

    flow_map: FlowMap
    x: Tensor
    s: Tensor
    t: Tensor
    velocity: Field
    split: Tensor | None
    cond: Condition
    target: FlowMap | None
    warmup: Tensor | None

    @property
    def h(self) -> Tensor:
        """t - s, aligned with x."""
        return like(self.t - self.s, self.x)

    def u(self, x: Any, s: Any, t: Any) -> Any:
        """u_{s,t}(x) of the map; x, s or t may be a `Dual`."""
        return self.flow_map.average_velocity(x, s, t, self.cond)


@dataclass(frozen=True)
class Equation(ABC):
    """An equation of flow maps; a call returns its residual.

    Args:
        stop: where gradients stop.
        engine: how derivatives are taken: `dual`, `torch` or `finite-difference` (see `flowmaps.dual.jvp`).
        normalise: c of sCM's tangent normalisation (2410.11081, section 4.1), with stop=Stop.TARGET only; `None` for
            none. The prediction is then the network's output v and the target v - a r / (|a r| + c), with r the
            residual and a, v those of `FlowMap.decompose`.
    """

    stop: Stop = Stop.NONE
    engine: dual.Engine = "dual"
    normalise: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.normalise is not None and (self.normalise <= 0 or self.stop is not Stop.TARGET):
            raise ValueError(f"normalise needs a number > 0 and stop=Stop.TARGET, got {self}.")

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
        target: FlowMap | None = None,
        warmup: Time | None = None,
    ) -> Residual:
        """Return the residual at (x, s, t).

        Args:
            flow_map: the map.
            x: points at time s, `(B, *shape)`.
            s, t: times in [0, 1], `(B,)`, either order.
            velocity: b, a field `(x, t, cond) -> like x`. The semigroup takes its legs with the map of a `FromMap`.
            split: share l of [s, t] that the first leg covers, `(B,)` in [0, 1]; semigroup with two legs only.
            cond: what the map and the velocity are conditioned on.
            target: the map of the semigroup's legs, such as an EMA of the map; the map itself unless given.
            warmup: factor on the derivative, `(B,)` in [0, 1], that training raises from 0 to 1; stop=Stop.TARGET only.

        Raises:
            ValueError: a time of the wrong shape or outside [0, 1], or an argument that the equation does not use.
        """
        check_time(s, x, "s")
        check_time(t, x, "t")
        if split is not None:
            check_time(split, x, "split")
        for name, value in {"split": split, "warmup": warmup, "target": target}.items():
            if value is not None and name not in self.accepts:
                raise ValueError(f"{_FOR[name]}, got it for {self}: leave {name} out.")
        at = EquationInputs(flow_map, x, s, t, velocity, split, cond, target, warmup)
        residual = self.residual(at)
        return residual if self.normalise is None else self._normalised(at, residual)

    @property
    def accepts(self) -> frozenset[str]:
        """Which of the optional arguments `split`, `target` and `warmup` this equation uses."""
        return frozenset({"warmup"} if self.stop is Stop.TARGET else ())

    @abstractmethod
    def residual(self, at: EquationInputs) -> Residual:
        """The residual, from arguments that `__call__` has checked."""

    def _normalised(self, at: EquationInputs, residual: Residual) -> Residual:
        assert self.normalise is not None
        factor, output = at.flow_map.decompose(at.x, at.s, at.t, residual.prediction)
        with torch.no_grad():
            tangent = like(factor, at.x) * residual.value
            size = like(per_row(tangent.square()).sqrt(), at.x)
            target = output - tangent / (size + self.normalise)
        return Residual(output, target, residual.jump, residual.value.detach())

    def _detached(self) -> torch.no_grad | nullcontext:
        """The context for what every stop but NONE detaches: `torch.no_grad` or nothing."""
        return nullcontext() if self.stop is Stop.NONE else torch.no_grad()

    def _derivative(self, fn: Callable[..., Tensor], primals: tuple, tangents: tuple) -> tuple[Tensor, Tensor]:
        detach = self.stop is Stop.TARGET
        return dual.jvp(fn, primals, tangents, engine=self.engine, detach_tangent=detach)


@dataclass(frozen=True)
class Lagrangian(Equation):
    """d_t X_{s,t}(x) = b_t(X_{s,t}(x)): one derivative, in t."""

    def residual(self, at: EquationInputs) -> Residual:
        u, u_dot = self._derivative(lambda r: at.u(at.x, at.s, r), (at.t,), (torch.ones_like(at.t),))
        jump = at.x + at.h * u
        with self._detached():
            b = at.velocity(jump if self.stop is Stop.NONE else jump.detach(), at.t, at.cond)
        if self.stop is not Stop.TARGET:
            return Residual(u + at.h * u_dot, b, jump)
        return Residual(u, b - (at.h if at.warmup is None else like(at.warmup, at.x) * at.h) * u_dot, jump)


@dataclass(frozen=True)
class Eulerian(Equation):
    """d_s X_{s,t}(x) + grad X_{s,t}(x) . b_s(x) = 0: one derivative, along (b_s, 1) in (x, s).

    Args:
        step: `None` for the derivative; a number d for the difference quotient X_{s,t}(x) = X_{s+d,t}(x + d b_s) of
            discrete consistency models, over a step from s towards t that never goes beyond t.
        along_own_velocity: take the derivative along the map's own velocity u_{s,s}, detached, and leave b in the
            target (improved MeanFlow, 2512.02012); stop=Stop.TARGET only.
    """

    step: float | None = None
    along_own_velocity: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is not None and not 0 < self.step <= 1:
            raise ValueError(f"Eulerian needs a step in (0, 1], or None for the derivative, got {self.step}.")
        if self.step is not None and self.stop is Stop.TANGENT:
            raise ValueError("a finite step has no spatial derivative to detach: use another stop than TANGENT.")
        if self.along_own_velocity and (self.stop is not Stop.TARGET or self.step is not None):
            raise ValueError(
                "along_own_velocity is a direction of the derivative with stop=Stop.TARGET: leave step out."
            )

    @property
    def accepts(self) -> frozenset[str]:
        return frozenset({"warmup"} if self.stop is Stop.TARGET and self.step is None else ())

    def residual(self, at: EquationInputs) -> Residual:
        with self._detached():
            b = at.velocity(at.x, at.s, at.cond)
        one = torch.ones_like(at.s)
        if self.step is not None:
            return self._difference(at, b)
        if self.stop is Stop.TANGENT:
            u, u_s = self._derivative(lambda r: at.u(at.x, r, at.t), (at.s,), (one,))
            with torch.no_grad():
                _, u_x = self._derivative(lambda y: at.u(y, at.s, at.t), (at.x,), (b,))
            return Residual(u - at.h * u_s, b + at.h * u_x)
        with self._detached():
            along = at.flow_map.velocity(at.x, at.s, at.cond) if self.along_own_velocity else b
        u, u_dot = self._derivative(lambda y, r: at.u(y, r, at.t), (at.x, at.s), (along, one))
        target = b + at.h * u_dot
        return Residual(u, target if at.warmup is None else self._warmed(at, u.detach(), b, target))

    def _warmed(self, at: EquationInputs, u: Tensor, b: Tensor, target: Tensor) -> Tensor:
        """The target of the residual a (v - b) + warmup (r - a (v - b)), which leaves the derivative out at 0."""
        assert at.warmup is not None
        factor, output = at.flow_map.decompose(at.x, at.s, at.t, u)
        return u - torch.lerp(like(factor, at.x) * (output - b), u - target, like(at.warmup, at.x))

    def _difference(self, at: EquationInputs, b: Tensor) -> Residual:
        assert self.step is not None
        share = (self.step / (at.t - at.s).abs()).clamp_max(1)
        u = at.u(at.x, at.s, at.t)
        with torch.no_grad() if self.stop is Stop.TARGET else nullcontext():
            here = u.detach() if self.stop is Stop.TARGET else u
            target = _mean_of_legs(at, [share, 1 - share], lambda *_: b, at.flow_map.average_velocity)
            return Residual(u, here + (target - here) / like(share, at.x))


@dataclass(frozen=True)
class Semigroup(Equation):
    """X_{w,t}(X_{s,w}(x)) = X_{s,t}(x), as an equation of u: no derivative.

    Args:
        legs: number of jumps on the right-hand side, at least 2, of equal length; two may have a `split` instead.
        velocity_first: take the first leg, of the share l of [s, t], with the velocity; one leg is then enough.

            - A field b_s, such as a teacher's: an Euler step along it, off by terms of order l.
            - dI: the chord (I_w - I_s) / (w - s), which leads to the pair's own point I_w further along the path. For
              l > 0 the exact map is a zero of the gradient only up to terms of order l, so that l tends to 0 in
              training, as in `alphaflow`, `soflow` and the consistency models; `exact.mean_gradient` measures it.
            - A `FromMap`: a jump of its map, such as a teacher's solver, exact where that map is.
    """

    legs: int = 2
    velocity_first: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.legs < (1 if self.velocity_first else 2):
            raise ValueError(f"Semigroup needs legs >= 2, or 1 with velocity_first=True, got {self.legs}.")

    @property
    def accepts(self) -> frozenset[str]:
        return frozenset({"split", "target"} if self.legs == 2 else {"target"})

    def residual(self, at: EquationInputs) -> Residual:
        u = at.u(at.x, at.s, at.t)
        share = torch.full_like(at.s, 1 / self.legs)
        shares = [share] * self.legs if at.split is None else [at.split, 1 - at.split]
        if isinstance(at.velocity, FromMap) and not self.velocity_first:
            if at.target is not None:
                raise ValueError(f"{_FOR['target']}, got it for {self}: leave target out.")
            leg_map = at.velocity.flow_map
        else:
            leg_map = at.flow_map if at.target is None else at.target
        leg_velocity = leg_map.average_velocity
        first = _first_leg_velocity(at.velocity) if self.velocity_first else leg_velocity
        with self._detached():
            return Residual(u, _mean_of_legs(at, shares, first, leg_velocity))


def _first_leg_velocity(velocity: Field) -> Callable[..., Tensor]:
    """The mean velocity over a leg as a function `(x, s, t, cond)`; for a plain field b_s, an Euler step."""
    if isinstance(velocity, (Velocity, BoundVelocity)):
        return velocity.leg
    return lambda x, s, t, cond: velocity(x, s, cond)


def _mean_of_legs(
    at: EquationInputs, shares: list[Tensor], first: Callable[..., Tensor], rest: Callable[..., Tensor]
) -> Tensor:
    """The average velocity over consecutive legs from s to t: the sum of each leg's share of [s, t] times its u."""
    x, start, total = at.x, at.s, torch.zeros_like(at.x)
    for k, share in enumerate(shares):
        end = at.t if k == len(shares) - 1 else start + share * (at.t - at.s)
        u = (rest if k else first)(x, start, end, at.cond)
        x, total, start = x + like(end - start, x) * u, total + like(share, x) * u, end
    return total
