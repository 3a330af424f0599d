"""`Method`: the function of a paper, with the traits that recipes, samplers and tables need.

    METHODS["lmd"] = Method(lmd, LearnsFrom.TEACHER, settings=lambda choices: {"times": choices.pairs, ...})

The function alone is enough for a training loop of your own. The command line, the comparison, the figures and the
documentation read the `Method`, so that no other module contains the name of a method.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..equations import Stop
from ..interpolants import Interpolant
from ..losses import Weight
from ..maps import AverageVelocity, FlowMap, Target, VelocityForShortJumps
from ..objectives import Objective
from ..samplers import Jump, MultistepConsistency
from ..times import Times

__all__ = ["Choices", "Jumps", "LearnsFrom", "Method"]


class LearnsFrom(Enum):
    """What a method learns a map from; the value is a description."""

    TEACHER = "a teacher's velocity"
    VELOCITY = "data, from the weights of a trained velocity"
    STRIP = "data, from a map that is trained on a strip first"
    DATA = "data"


class Jumps(Enum):
    """Which jumps (s, t) the map of a method learns; the value is a description."""

    ANY = "between any two times"
    TO_DATA = "from any time to the data, t = 1"
    FROM_BASE = "from noise, s = 0"
    NONE = "none: the velocity alone, s = t"


@dataclass(frozen=True)
class Choices:
    """The choices of a recipe that methods may use; `Method.settings` selects those that its function takes.

    Attributes:
        interpolant: the path.
        pairs: law of (s, t) of a distillation.
        velocity_times: law of t of velocity matching.
        strip: law of (s, t) of a strip.
        weight: a learned w_{s,t} with --learned-weight, else `None`: the method's own weight stays. Of a method that
            weighs jumps, such as by (t - s)^2, it is the one to take.
        residual_weight: as `weight`, or an adaptive weight, for a residual that is a function of (x, s, t) alone.
        mean_weight: as `weight`, but never adaptive in few dimensions: only a squared loss averages the noise of dI
            to its mean; the adaptive weight of the MeanFlow papers would learn a mode. On points it is `Constant()`
            (`--mean-weight auto`), which takes the place of the method's own weight, so it is for a residual of u.
        stop: where the gradients of a distillation stop.
        diagonal_share: part of the rows at s = t, of a function that takes `share`; `None` for the function's own.
        target_decay: of the EMA of the map that is the target, of a function that takes `target`: 0 for the map itself,
            `None` for the function's own.
    """

    interpolant: Interpolant
    pairs: Times
    velocity_times: Times
    strip: Times
    weight: Weight | None
    residual_weight: Weight | None
    mean_weight: Weight | None
    stop: Stop
    diagonal_share: float | None = None
    target_decay: float | None = None


Settings = Callable[[Choices], dict[str, Any]]
"""Maps a recipe's choices to options of a method's function; `interpolant` is passed to every method and left out."""


def own_weight(choices: Choices) -> dict[str, Any]:
    """Settings of a method that takes a learned weight."""
    return {"weight": choices.weight}


def with_diagonal(choices: Choices) -> dict[str, Any]:
    """Settings of a self-distillation: weight and times of a distillation off the diagonal, its own on the diagonal."""
    return {"times": choices.pairs, **with_own_times(choices)}


def with_own_times(choices: Choices) -> dict[str, Any]:
    """Settings of a self-distillation that has its own law of (s, t)."""
    on_diagonal = {"diagonal": choices.velocity_times, "diagonal_weight": choices.weight}
    return {"weight": choices.residual_weight, **on_diagonal}


@dataclass(frozen=True)
class Method:
    """A method of a paper.

    Args:
        objective: its function, `(flow_map, **options) -> Objective`; with a `teacher=` if it learns from one.
        learns_from: what is trained first.
        jumps: which jumps the map learns.
        settings: the options of the function from the choices of a recipe.
        lower_rate: whether it needs a lower learning rate than the others: because dI, which is noisy, multiplies an
            unbounded derivative in space, or because the gradient does not shrink with the loss.
        strip_on_images: whether its recipes train images on jumps of a strip alone.
        interpolant: the path that the method requires; `None` for the recipe's.
        flow_map: class of the map.
        starts_along_velocity: whether training starts from jumps along the trained velocity, X = x + (t - s) b_s(x).
        copies_teacher: whether the targets come from a copy of the first stage's map, which must then learn the guided
            velocity.
    """

    objective: Callable[..., Objective]
    learns_from: LearnsFrom = LearnsFrom.DATA
    jumps: Jumps = Jumps.ANY
    settings: Settings = own_weight
    lower_rate: bool = field(default=False, kw_only=True)
    strip_on_images: bool = field(default=False, kw_only=True)
    interpolant: Interpolant | None = field(default=None, kw_only=True)
    flow_map: Callable[..., FlowMap] = field(default=AverageVelocity, kw_only=True)
    starts_along_velocity: bool = field(default=False, kw_only=True)
    copies_teacher: bool = field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        """The name of its function, which is that of the paper."""
        return self.objective.__name__

    @property
    def distils(self) -> bool:
        """Whether it learns from a teacher."""
        return self.learns_from is LearnsFrom.TEACHER

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages of its training, in order."""
        first = {LearnsFrom.DATA: (), LearnsFrom.STRIP: ("strip",)}.get(self.learns_from, ("teacher",))
        return (*first, "map")

    def build(self, flow_map: FlowMap, choices: Choices, **given: Any) -> Objective:
        """The objective of a map at the choices of a recipe; `given` are a teacher and guidance.

        What the choices leave to the method, `None`, is not passed to its function.

        Raises:
            ValueError: its function returns something else.
        """
        chosen = {name: value for name, value in self.settings(choices).items() if value is not None}
        own: dict[str, Any] = {"interpolant": choices.interpolant, **chosen}
        if choices.diagonal_share is not None:
            own["share"] = choices.diagonal_share
        if choices.target_decay is not None:
            own["target"] = Target(flow_map, decay=choices.target_decay)
        made = self.objective(flow_map, **own, **given)
        if not isinstance(made, Objective):
            raise ValueError(f"{self.name} must return an objective of its map, got {type(made).__name__}.")
        return made

    def takes(self, option: str) -> bool:
        """Whether its function has an option of this name, beside those that every method has."""
        return option in inspect.signature(self.objective).parameters

    def sampled(self, flow_map: FlowMap) -> FlowMap:
        """The map to sample from; one that learned the velocity alone is wrapped to take Euler steps."""
        return VelocityForShortJumps(flow_map, 1.0) if self.jumps is Jumps.NONE else flow_map

    def sampler(self, steps: int, interpolant: Interpolant) -> Jump | MultistepConsistency:
        """The sampler of a number of steps: jumps, or multistep consistency sampling for jumps to t = 1 alone."""
        if self.jumps is Jumps.TO_DATA and steps > 1:
            return MultistepConsistency([k / steps for k in range(steps)], interpolant)
        return Jump(steps)


def by_name(*methods: Method) -> Mapping[str, Method]:
    """Methods by their names, those that learn from a teacher first."""
    order = list(LearnsFrom)
    return {method.name: method for method in sorted(methods, key=lambda method: order.index(method.learns_from))}
