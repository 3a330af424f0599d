"""Where the velocity b of an equation comes from: a teacher, the map itself, or the interpolant.

Each source is a field `(x, t, cond=None) -> like x` that can also be followed over a leg from s to t, as the mean
velocity there: a jump of a map, the chord of a path, or by default a straight step. The interpolant's velocity dI_t
belongs to one pair (x0, x1), so an objective first binds the source to its draw; the others bind to themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .guidance import Guidance, check_interval, within
from .interpolants import Interpolant
from .maps import FlowMap
from .shapes import Batch, Condition, Field, Guide, Time, label_of, like, on_each


class Draw(NamedTuple):
    """All the randomness of one evaluation of an objective; whatever follows is deterministic.

    `x0`, `x1`, `z` are `(B, *shape)` (`z` is `None` without latent noise), `s`, `t`, `split` are `(B,)`; so is `warm`,
    the share of an equation's derivative that counts, where it is warmed up.
    """

    x0: Tensor
    x1: Tensor
    z: Tensor | None
    s: Tensor
    t: Tensor
    split: Tensor
    cond: Condition = None
    warm: Tensor | None = None

    def rows(self, part: slice) -> Draw:
        """Some of the rows."""
        return self.map(lambda value: value[part])

    def to(self, device: torch.device | str) -> Draw:
        """The same draw on a device."""
        return self.map(lambda value: value.to(device, non_blocking=True))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Draw:
        """A function of each tensor that there is."""
        values: list[Any] = [on_each(value, fn) for value in self]
        return Draw(*values)


class Velocity(nn.Module, ABC):
    """A source of velocity."""

    @abstractmethod
    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """b_t(x), `(B, *shape)`."""

    def leg(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """The mean velocity from `x` at `s` to `t`, `(B, *shape)`."""
        return self(x, s, cond)

    def bind(self, draw: Draw) -> Velocity | Bound:
        """The field for the rows of `draw`."""
        return self


@dataclass(frozen=True)
class Bound:
    """A source bound to a draw: the field `at`, and the mean velocity `over` a leg."""

    at: Field
    over: Field

    def __call__(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        return self.at(x, t, cond)

    def leg(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """The mean velocity from `x` at `s` to `t`, `(B, *shape)`."""
        return self.over(x, s, t, cond)


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

    def leg(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return self.flow_map.average_velocity(x, s, t, cond)


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

    def bind(self, draw: Draw) -> Bound:
        x0, x1, z = draw.x0, draw.x1, draw.z
        path = self.interpolant

        def over(x: Tensor, s: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
            h = like(t - s, x)
            near = h.abs() < torch.finfo(x.dtype).eps ** 0.5  # a chord this short is rounding: take its middle
            chord = (path.point(x0, x1, t, z) - path.point(x0, x1, s, z)) / torch.where(near, 1, h)
            return torch.where(near, path.velocity(x0, x1, 0.5 * (s + t), z), chord)

        return Bound(lambda x, t, cond=None: path.velocity(x0, x1, t, z), over)


class Guided(Velocity):
    """A guided source: v(x, t, none) + w (v(x, t, cond) - v(x, t, none)) for t inside an interval.

    References: J. Ho, T. Salimans, "Classifier-free diffusion guidance", 2022, arXiv 2207.12598; T. Kynkäänniemi et
    al., "Applying guidance in a limited interval", 2024, arXiv 2404.07724; T. Karras et al., "Guiding a diffusion model
    with a bad version of itself", 2024, arXiv 2406.02507.

    Args:
        velocity: the conditional source.
        scale: w: 1 for none; greater pushes towards the condition. A `Guidance` says more, and has weights by row.
        negative: a source guided away from, given the same condition; `None` for `velocity` without condition.
        interval: times between which guidance acts.
    """

    def __init__(
        self,
        velocity: Velocity,
        scale: float | Guidance,
        negative: Velocity | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        check_interval("Guided", interval)
        given = isinstance(scale, Guidance)
        if given and interval != (0.0, 1.0):
            raise ValueError("a Guidance has an interval of its own: leave interval out.")
        self.guidance = scale if given else None
        if given and negative is None and scale.negative is not None:
            negative = FromTeacher(scale.negative)
        self.scale, self.interval = (1.0 if given else scale), interval
        self.source, self.negative = velocity, negative

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        return self._guide(self.source, self.negative, x, t, cond)

    def bind(self, draw: Draw) -> Velocity | Bound:
        source = self.source.bind(draw)
        negative = None if self.negative is None else self.negative.bind(draw)
        return Bound(
            lambda x, t, cond=None: self._guide(source, negative, x, t, cond),
            lambda x, s, t, cond=None: self._guide(source, negative, x, s, cond),
        )

    def _guide(self, source: Field, negative: Field | None, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        label = label_of(cond)
        towards = source(x, t, label)
        away = source(x, t, None) if negative is None else negative(x, t, label)
        # in the type of t: 1.1 is not rounded to float32
        return away + like(self._weight(t, cond), x).to(x.dtype) * (towards - away)

    def _weight(self, t: Tensor, cond: Condition) -> Tensor:
        if self.guidance is not None:
            return self.guidance.weights(t, cond)
        return torch.where(within(t, self.interval), self.scale * torch.ones_like(t), 1)


class SelfGuided(Velocity):
    """The guided velocity of a direct method, from one pair and what the map knows; no gradient passes.

        w (1 - kappa) dI + kappa v(x, cond) + (1 - kappa - w (1 - kappa)) v(x, none)

    Its mean is b(none) + w (b(label) - b(none)) where v(., none) is b(none) and v(., cond) is that mean itself:
    MeanFlow's equation (2505.13447, section 4.2) with omega = w (1 - kappa), and at kappa = 1 - 1/w that of improved
    MeanFlow (2512.02012), dI + (1 - 1/w) (v(x, cond) - v(x, none)).

    Args:
        interpolant: the path.
        flow_map: the map that is trained; its label `guidance.classes` means none.
        guidance: w, kappa and the interval.
    """

    def __init__(self, interpolant: Interpolant, flow_map: FlowMap, guidance: Guidance) -> None:
        super().__init__()
        self.source, self.flow_map, self.guidance = FromInterpolant(interpolant), flow_map, guidance
        self.negative = None if guidance.negative is None else FromTeacher(guidance.negative)

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        return self.source(x, t, cond)

    def bind(self, draw: Draw) -> Bound:
        source = self.source.bind(draw)
        return Bound(
            lambda x, t, cond=None: self._guide(source(x, t), x, t, cond),
            lambda x, s, t, cond=None: self._guide(source.leg(x, s, t), x, s, cond),
        )

    @torch.no_grad()
    def _guide(self, towards: Tensor, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        w = self.guidance.weights(t, cond)
        mix = 1 - 1 / w if self.guidance.mix is None else torch.full_like(w, self.guidance.mix)
        mix = torch.where(w == 1, 0, mix)
        blended = like(w * (1 - mix), x) * towards
        if self.guidance.mix != 0:
            blended = blended + like(mix, x) * self.flow_map.velocity(x, t, cond)
        return blended + like((1 - mix) * (1 - w), x) * self._negative(x, t, cond)

    def _negative(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        if self.negative is not None:
            return self.negative(x, t, label_of(cond))
        none = torch.full_like(label_of(cond), self.guidance.classes)  # type: ignore[arg-type]
        return self.flow_map.velocity(x, t, Guide(none, torch.ones_like(t)) if isinstance(cond, Guide) else none)
