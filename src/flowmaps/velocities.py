"""Where the velocity b of an equation comes from: a teacher, the map itself, or the interpolant.

Each source is a field `(x, t, cond=None) -> like x`. The interpolant's velocity dI_t belongs to one pair (x0, x1), so
an objective first binds the source to its draw; the other sources bind to themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .interpolants import Interpolant
from .maps import FlowMap
from .shapes import Batch, Condition, Field, Time, like


class Draw(NamedTuple):
    """All the randomness of one evaluation of an objective; whatever follows is deterministic.

    `x0`, `x1`, `z` are `(B, *shape)` (`z` is `None` without latent noise), `s`, `t`, `split` are `(B,)`.
    """

    x0: Tensor
    x1: Tensor
    z: Tensor | None
    s: Tensor
    t: Tensor
    split: Tensor
    cond: Condition = None

    def rows(self, part: slice) -> Draw:
        """Some of the rows."""
        return self.map(lambda value: value[part])

    def to(self, device: torch.device | str) -> Draw:
        """The same draw on a device."""
        return self.map(lambda value: value.to(device, non_blocking=True))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Draw:
        """A function of each tensor that there is."""
        values: list[Any] = [None if value is None else fn(value) for value in self]
        return Draw(*values)


class Velocity(nn.Module, ABC):
    """A source of velocity."""

    @abstractmethod
    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """b_t(x), `(B, *shape)`."""

    def bind(self, draw: Draw) -> Field:
        """The field for the rows of `draw`."""
        return self


class FromTeacher(Velocity):
    """A given field, such as a trained network or an exact velocity.

    A `torch.nn.Module` (or the bound method of one) is put in evaluation mode and its parameters frozen: gradients pass
    through it to its input, never into it.

    Args:
        fn: field `(x, t, cond=None) -> like x`.
    """

    def __init__(self, fn: Field) -> None:
        super().__init__()
        if not callable(fn):
            raise ValueError(f"a teacher must be a callable (x, t, cond=None) -> like x, got {type(fn).__name__}.")
        self.fn = fn
        self.owner = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
        if isinstance(self.owner, nn.Module):
            self.owner.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FromTeacher:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        v = self.fn(x, t, cond)
        if v.shape != x.shape:
            raise ValueError(f"the teacher must return the shape of x {tuple(x.shape)}, got {tuple(v.shape)}.")
        return v


class FromMap(Velocity):
    """The diagonal u_{t,t} of a flow map: of the one being trained, or of a frozen one.

    Args:
        flow_map: the map; the semigroup equation takes its legs with it too.
    """

    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.flow_map = flow_map

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        return self.flow_map.velocity(x, t, cond)


class FromInterpolant(Velocity):
    """The velocity dI_t of the pair (x0, x1) at hand: its conditional mean is b_t.

    Args:
        interpolant: the path.
    """

    def __init__(self, interpolant: Interpolant) -> None:
        super().__init__()
        self.interpolant = interpolant

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        raise ValueError(
            "FromInterpolant is a velocity of one pair (x0, x1): use it in an objective, or call .bind(draw) first."
        )

    def bind(self, draw: Draw) -> Field:
        def velocity(x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
            return self.interpolant.velocity(draw.x0, draw.x1, t, draw.z)

        return velocity


class Guided(Velocity):
    """Classifier-free guidance: v(x, t, none) + scale (v(x, t, cond) - v(x, t, none)) for t inside an interval.

    References: J. Ho, T. Salimans, "Classifier-free diffusion guidance", 2022, arXiv 2207.12598; T. Kynkäänniemi et
    al., "Applying guidance in a limited interval", 2024, arXiv 2404.07724.

    Args:
        velocity: the conditional source.
        scale: 1 for none; greater pushes towards the condition.
        negative: the source guided away from; `None` for `velocity` without condition.
        interval: times between which guidance acts.
    """

    def __init__(
        self,
        velocity: Velocity,
        scale: float,
        negative: Velocity | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"Guided needs an interval inside [0, 1], got {interval}.")
        self.source, self.scale, self.negative, self.interval = velocity, scale, negative, interval

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        return self._guide(self.source, self.source if self.negative is None else self.negative, x, t, cond)

    def bind(self, draw: Draw) -> Field:
        source = self.source.bind(draw)
        negative = source if self.negative is None else self.negative.bind(draw)
        return lambda x, t, cond=None: self._guide(source, negative, x, t, cond)

    def _guide(self, source: Field, negative: Field, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        towards, away = source(x, t, cond), negative(x, t, None)
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        scale = torch.where(
            inside, self.scale * torch.ones_like(t), 1
        )  # in the type of t: 1.1 is not rounded to float32
        return away + like(scale, x).to(x.dtype) * (towards - away)
