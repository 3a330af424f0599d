"""Where the velocity b of an equation comes from: a teacher, the map itself, or the interpolant.

    FromTeacher        b_t(x) of a given field, without a gradient of its weights
    FromMap            u_{t,t}(x) of a flow map
    FromInterpolant    dI_t of the pair (x0, x1), whose conditional mean is b_t
    Guided, SelfGuided the same, guided

A source is a field `(x, t, cond=None) -> like x`. Its `leg` gives the mean velocity from s to t: u_{s,t} for a map, the
chord for the interpolant, b_s by default. Since dI_t belongs to the pairs of one batch, an objective first calls `bind`
with its random inputs; the other sources return themselves.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .dual.core import unpack
from .guidance import Guidance, check_interval, within
from .interpolants import Interpolant
from .maps import FlowMap, Target
from .modules import DetachedField, in_training_outside, modules_of, named
from .shapes import Batch, Condition, Field, GuidedCondition, Time, label_of, like, on_each
from .teachers import Adapted, Order, TimeShape, check_teacher


class RandomInputs(NamedTuple):
    """All random inputs of a loss, which is a deterministic function of them.

    Attributes:
        x0, x1: pairs of the base and the data, `(B, *shape)`.
        z: latent noise, `(B, *shape)`, or `None` for a path without it.
        s, t: times, `(B,)`.
        split: share of [s, t] that a first leg covers, `(B,)`.
        cond: the condition of each row, after label dropout.
        warmup: factor on an equation's derivative, `(B,)`.
        counts: how many consecutive rows were drawn for each part of an objective made of others (`SplitRows`), in
            their order; empty for one part. `rows` keeps them right.
    """

    x0: Tensor
    x1: Tensor
    z: Tensor | None
    s: Tensor
    t: Tensor
    split: Tensor
    cond: Condition = None
    warmup: Tensor | None = None
    counts: tuple[int, ...] = ()

    def rows(self, part: slice) -> RandomInputs:
        """The inputs of some of the rows, one after the other.

        Raises:
            ValueError: `part` has a step other than 1.
        """
        start, stop, step = part.indices(len(self.x1))
        if step != 1:
            raise ValueError(f"a draw is cut into rows that follow each other, got a step of {step}.")
        parts = zip(self.counts, itertools.accumulate(self.counts), strict=True)
        inside = tuple(max(min(stop, end) - max(start, end - count), 0) for count, end in parts)
        return self.map(lambda value: value[part])._replace(counts=inside)

    def micro_batch(self, rows: Tensor) -> RandomInputs:
        """The inputs of one micro-batch.

        Args:
            rows: its row of `Objective.micro_batches`, whose parts have equal shares of the rows of each objective.
        """
        number = len(self.x1) // len(rows)
        counts = tuple(count // number for count in self.counts)
        return self.map(lambda value: value[rows])._replace(counts=counts)

    def to(self, device: torch.device | str) -> RandomInputs:
        """The same inputs on a device."""
        return self.map(lambda value: value.to(device, non_blocking=True))

    def map(self, fn: Callable[[Tensor], Tensor]) -> RandomInputs:
        """Apply a function to each tensor; `counts` stay, so that a loss refuses a draw whose rows were cut so."""
        values: list[Any] = [on_each(value, fn) for value in self[:-1]]
        return RandomInputs(*values, counts=self.counts)


class Velocity(nn.Module, ABC):
    """A source of velocity b_t(x).

    A subclass gives `forward`; `leg` where it knows jumps; `bind` where it depends on the rows of a batch.
    """

    @abstractmethod
    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """b_t(x), `(B, *shape)`."""

    def leg(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """The mean velocity from `x` at `s` to `t`, `(B, *shape)`.

        Here that at `s`, as of an Euler step; a source that knows jumps overrides it.
        """
        return self(x, s, cond)

    def bind(self, inputs: RandomInputs) -> Velocity | BoundVelocity:
        """The field for the rows of `inputs`."""
        return self


@dataclass(frozen=True, eq=False)  # hashed by torch 2.11's compiler before it has its fields
class BoundVelocity:
    """A source for the rows of one batch: the velocity `at(x, t, cond)`, its mean over a leg `over(x, s, t, cond)`."""

    at: Field
    over: Field

    def __call__(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        return self.at(x, t, cond)

    def leg(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """The mean velocity from `x` at `s` to `t`, `(B, *shape)`."""
        return self.over(x, s, t, cond)


class FromTeacher(Velocity):
    """A teacher's velocity: that of a trained network, or an exact one.

    `fn` may be a module, a bound method, a function or a lambda. The networks in it are found and not changed: they are
    called in evaluation mode with detached weights, as these are at the call. Gradients pass through them to their
    input, never into them. They are no part of an objective's parameters; where an objective is
    moved to another device or type, it goes on with copies of the weights.

    Args:
        fn: field `(x, t, cond=None) -> like x`; other forms through `flowmaps.teacher`.
        modules: the networks that it uses; looked for unless given.

    Raises:
        ValueError: `fn` does not take (x, t, cond), or uses a tensor of its own that takes gradients.
    """

    def __init__(self, fn: Field, modules: Sequence[nn.Module] | None = None) -> None:
        super().__init__()
        check_teacher(fn)
        owner = getattr(fn, "__self__", None)
        # a Target has no gradients, stays in evaluation mode, and is ours to move
        self.owner = owner if isinstance(owner, Target) else None
        self._looked_through = self._well_called = False
        self._field: Callable[..., Tensor] = DetachedField(fn, modules) if self.owner is None else fn

    @property
    def fn(self) -> Field:
        """The field that was given."""
        return self._field.fn if isinstance(self._field, DetachedField) else self._field

    @property
    def used(self) -> list[nn.Module]:
        """The modules that the field uses."""
        return self._field.used if isinstance(self._field, DetachedField) else modules_of(self._field)

    def train(self, mode: bool = True) -> FromTeacher:
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FromTeacher:
        if isinstance(self._field, DetachedField):
            self._field.move(fn)
        return super()._apply(fn, recurse)

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        v, missed = self._called(x, t, cond)
        value = unpack(v)[0]  # of a derivative along a direction of x
        if not isinstance(value, Tensor) or value.shape != x.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(v).__name__
            raise ValueError(f"the teacher must return the shape of x {tuple(x.shape)}, got {got}.")
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and self._hides_weights(value, x, t):
            raise ValueError(
                f"the teacher {named(self.fn)} uses weights that take gradients and were not found: pass the network "
                "itself as the teacher, or fm.teacher(fn, modules=[net]), or freeze it, "
                "net.requires_grad_(False).eval()."
            )
        if missed:
            raise ValueError(
                f"the teacher {named(self.fn)} calls {type(missed[0]).__name__}, which is in training mode and was "
                "not found: pass fm.teacher(fn, modules=[net]), or put it into evaluation mode, net.eval()."
            )
        return v

    def _called(self, x: Batch, t: Time, cond: Condition) -> tuple[Any, list[nn.Module]]:
        """The field at x, and until the first call that succeeds, the modules in training mode that were not found."""
        try:
            if self._well_called or torch.compiler.is_compiling():
                return self._field(x, t, cond), []
            with in_training_outside(*self.used) as missed:
                v = self._field(x, t, cond)
        except RuntimeError as error:
            self._check_types(x, t, error)
            raise
        self._well_called = not missed
        return v, missed

    def _check_types(self, x: Any, t: Any, error: RuntimeError) -> None:
        """Refuse a teacher that computes in another type than that of its inputs."""
        own = {value.dtype for part in self.used for value in part.parameters() if value.is_floating_point()}
        given = {value.dtype for value in (x, t) if isinstance(value, Tensor)}
        if len(own) == 1 and own != given and "type" in str(error):
            kind = next(iter(own))
            raise ValueError(
                f"the teacher {named(self.fn)} has weights of {kind}, and was called with x of {x.dtype} and t of "
                f"{t.dtype}: convert it, net.to({x.dtype}), or its inputs and what it returns, lambda x, t, cond=None: "
                f"net(x.to({kind}), t.to({kind}), cond).to(x.dtype)."
            ) from error

    def _hides_weights(self, v: Any, x: Any, t: Any) -> bool:
        """Whether a gradient of v reaches weights; where x takes one too, its graph is looked through, once."""
        if not v.requires_grad or not all(isinstance(one, Tensor) for one in (v, x, t)):
            return False
        if not x.requires_grad and not t.requires_grad:
            return True
        if not self._looked_through:
            hidden = any(leaf is not x and leaf is not t for leaf in _leaves(v, (x.grad_fn, t.grad_fn)))
            self._looked_through = not hidden
            return hidden
        return False


def _leaves(v: Tensor, before: tuple[Any, ...]) -> Iterator[Tensor]:
    """The tensors that gradients of v reach, without going through the nodes `before` of its graph."""
    nodes, seen = [v.grad_fn], {None, *before}
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable  # type: ignore[union-attr]
        nodes += [following for following, _ in node.next_functions]  # type: ignore[union-attr]


def teacher(
    fn: Callable[..., Tensor],
    order: Order = "xt",
    *,
    names: Mapping[str, str] | None = None,
    time: TimeShape = "row",
    modules: Sequence[nn.Module] | None = None,
) -> FromTeacher:
    """A teacher of any callable, however it is called.

        fm.methods.lmd(flow_map, teacher=fm.teacher(net, order="tx"))                   # net(t, x) or net(t, x, cond)
        fm.teacher(net, order="keywords", names={"x": "sample", "t": "timestep", "cond": "class_labels"})

    Args:
        fn: a function, module or method that returns the velocity of x at time t, like x.
        order: `xt`, `tx`, or `keywords` for arguments by name. A third argument is the condition; a function without a
            condition may take two.
        names: of `x`, `t` and `cond` in `fn`, for keywords; their own unless given. No condition is passed where there
            is none.
        time: `row` for times of shape (B,), `column` for (B, 1), `number` for a time without a shape: `fn` is then
            called for one row at a time, by `torch.vmap`.
        modules: the networks that `fn` uses. They are looked for unless given: in what it is bound to, its closure, its
            attributes, the globals that it reads; not in what it makes or asks for when it is called.

    Raises:
        ValueError: `fn` takes other arguments, or an option has no such value.
    """
    return FromTeacher(Adapted(fn, order, {} if names is None else names, time), modules)


class FromMap(Velocity):
    """The velocity u_{t,t} of a flow map, the one in training or another.

    Args:
        flow_map: the map; the semigroup equation also takes its legs with it.
    """

    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.flow_map = flow_map

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        return self.flow_map.velocity(x, t, cond)

    def leg(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return self.flow_map.average_velocity(x, s, t, cond)


class FromInterpolant(Velocity):
    """The velocity dI_t of each row's pair (x0, x1), whose conditional mean is b_t.

    Args:
        interpolant: the path.
    """

    def __init__(self, interpolant: Interpolant) -> None:
        super().__init__()
        self.interpolant = interpolant

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        raise ValueError(
            "FromInterpolant is the velocity of pairs (x0, x1): use it in an objective, or call .bind(inputs) first."
        )

    def bind(self, inputs: RandomInputs) -> BoundVelocity:
        x0, x1, z = inputs.x0, inputs.x1, inputs.z
        path = self.interpolant

        def over(x: Tensor, s: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
            h = like(t - s, x)
            near = h.abs() < torch.finfo(x.dtype).eps ** 0.5  # too short a difference to divide: take dI in its middle
            chord = (path.point(x0, x1, t, z) - path.point(x0, x1, s, z)) / torch.where(near, 1, h)
            return torch.where(near, path.velocity(x0, x1, 0.5 * (s + t), z), chord)

        return BoundVelocity(lambda x, t, cond=None: path.velocity(x0, x1, t, z), over)


class Guided(Velocity):
    """Classifier-free guidance of a source: v(none) + w (v(cond) - v(none)) for t inside an interval, v(cond) outside.

    References: J. Ho, T. Salimans, "Classifier-free diffusion guidance", 2022, arXiv 2207.12598; T. Kynkäänniemi et
    al., "Applying guidance in a limited interval", 2024, arXiv 2404.07724; T. Karras et al., "Guiding a diffusion model
    with a bad version of itself", 2024, arXiv 2406.02507.

    Args:
        velocity: the conditional source.
        weight: w, where 1 is no guidance; or a `Guidance`, which can have a weight for each row, and a `null` condition
            for v(none).
        negative: the source in the place of v(none), called with the condition (autoguidance); unless given,
            `velocity` without the condition.
        interval: times between which guidance acts.

    Raises:
        ValueError: a `Guidance` together with an interval.
    """

    def __init__(
        self,
        velocity: Velocity,
        weight: float | Guidance,
        negative: Velocity | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        check_interval("Guided", interval)
        given = isinstance(weight, Guidance)
        if given and interval != (0.0, 1.0):
            raise ValueError(f"a Guidance has its own interval, got interval={interval} beside it: leave interval out.")
        self.guidance = weight if given else None
        if given and negative is None and weight.negative is not None:
            negative = FromTeacher(weight.negative)
        self.weight, self.interval = (1.0 if given else weight), interval
        self.source, self.negative = velocity, negative

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        return self._guide(self.source, self.negative, x, t, cond)

    def bind(self, inputs: RandomInputs) -> Velocity | BoundVelocity:
        source = self.source.bind(inputs)
        negative = None if self.negative is None else self.negative.bind(inputs)
        return BoundVelocity(
            lambda x, t, cond=None: self._guide(source, negative, x, t, cond),
            lambda x, s, t, cond=None: self._guide(source, negative, x, s, cond),
        )

    def _guide(self, source: Field, negative: Field | None, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        label = label_of(cond)
        towards = source(x, t, label)
        none = None if self.guidance is None or self.guidance.null is None else self.guidance.without(label)
        away = source(x, t, none) if negative is None else negative(x, t, label)
        # in the type of t: 1.1 is not rounded to float32
        return away + like(self._weight(t, cond), x).to(x.dtype) * (towards - away)

    def _weight(self, t: Tensor, cond: Condition) -> Tensor:
        if self.guidance is not None:
            return self.guidance.weights(t, cond)
        return torch.where(within(t, self.interval), self.weight * torch.ones_like(t), 1)


class SelfGuided(Velocity):
    """The guided velocity for learning from data, of dI and the map's own velocities v, without gradient.

        w (1 - kappa) dI + kappa v(x, cond) + (1 - kappa - w (1 - kappa)) v(x, none)

    If v(x, none) is b(none) and v(x, cond) the guided velocity, its mean is the guided velocity
    b(none) + w (b(label) - b(none)). It is that of MeanFlow (2505.13447, section 4.2) with omega = w (1 - kappa), and
    with kappa = 1 - 1/w that of improved MeanFlow (2512.02012), dI + (1 - 1/w) (v(x, cond) - v(x, none)).

    Args:
        interpolant: the path.
        flow_map: the map in training; it takes `guidance.without(cond)` for no condition.
        guidance: w, kappa and the interval.
    """

    def __init__(self, interpolant: Interpolant, flow_map: FlowMap, guidance: Guidance) -> None:
        super().__init__()
        self.source, self.flow_map, self.guidance = FromInterpolant(interpolant), flow_map, guidance
        self.negative = None if guidance.negative is None else FromTeacher(guidance.negative)

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        return self.source(x, t, cond)

    def bind(self, inputs: RandomInputs) -> BoundVelocity:
        source = self.source.bind(inputs)
        return BoundVelocity(
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
        none = self.guidance.without(cond)
        return self.flow_map.velocity(
            x, t, GuidedCondition(none, torch.ones_like(t)) if isinstance(cond, GuidedCondition) else none
        )
