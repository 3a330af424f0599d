"""The plan of a run: a recipe resolved once into what its training and its evaluation need.

    recipe -> Plan: method, path, stages (each with its steps, its optimiser and its objective), sampler, limits

What the recipe does not choose is the paper's (`flowmaps.methods.Method`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import methods
from ..equations import Stop
from ..guidance import AtWeight, Guidance, GuidedMap
from ..interop.model import weight_of
from ..interpolants import BY_NAME, Interpolant
from ..losses import Adaptive, Constant, Learned
from ..maps import FlowMap
from ..methods import METHODS, Choices, Jumps, LearnsFrom, Method
from ..objectives import Objective, VelocityMatching, in_turns
from ..samplers import Jump, MultistepConsistency
from ..schedules import Anneal
from ..shapes import Field
from ..system.names import choose
from ..times import Diagonal, FromBase, Mixture, Square, Strip, Times, TowardsData, Triangle
from ..training.optimisers import Optimiser
from ..velocities import FromTeacher
from .initial import disable_dropout, network_of, zero_second_time
from .recipes import Evaluation, ImageRecipe, Recipe, validate
from .recipes.checks import is_other_model

Build = Callable[[FlowMap, Field | None], Objective]
"""Builds the objective of a stage from the map of the stage before and the teacher's velocity."""
OF_FUNCTIONS = (("diagonal_share", "share", "share of rows on the diagonal"), ("target_decay", "target", "target map"))
"""Fields of a recipe that are options of some functions of `flowmaps.methods` alone: field, option, what it is."""
STRIP_WIDTH = 0.25
"""Longest jump of a map that is trained on a strip."""


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: `teacher`, `velocity`, `warm_up`, `strip` or `map`.
        steps: optimiser steps.
        optimiser: its settings.
        function: of `flowmaps.methods`, whose defaults hold where the recipe says nothing.
        build: makes its objective.
    """

    name: str
    steps: int
    optimiser: Optimiser
    function: Callable[..., Objective]
    build: Build


@dataclass(frozen=True)
class Plan:
    """A recipe, resolved by `resolve`.

    Attributes:
        recipe: the recipe.
        method: how its map is learned.
        interpolant: the path between noise and data.
        stages: of the training, in order.
    """

    recipe: Recipe
    method: Method
    interpolant: Interpolant
    stages: tuple[Stage, ...]

    @property
    def images(self) -> bool:
        """Whether the recipe is one of images."""
        return isinstance(self.recipe, ImageRecipe)

    @property
    def on_strip(self) -> bool:
        """Whether the map learns jumps of at most `STRIP_WIDTH` alone."""
        return self.method.strip_on_images and self.images

    def steps_before(self, stage: str) -> int:
        """Optimiser steps of the stages before one."""
        names = [entry.name for entry in self.stages]
        return sum(entry.steps for entry in self.stages[: names.index(stage)])

    def summary(self) -> str:
        """The stages in words: "4,000 steps of teacher, then 16,000 steps of map"."""
        return ", then ".join(f"{stage.steps:,} steps of {stage.name}" for stage in self.stages)

    @property
    def both_orders(self) -> bool:
        """Whether the map learns jumps from data to noise too: its pairs (s, t) are those of the whole square."""
        return self.recipe.times == "square" and self.takes_both_orders

    @property
    def takes_both_orders(self) -> bool:
        """Whether the map's pairs (s, t) are those of the recipe's `times`, which may be the whole square."""
        choices = _choices(self.recipe, self.interpolant)
        return self.method.settings(choices).get("times") is choices.pairs

    # sampling

    @property
    def of_other_model(self) -> bool:
        """Whether the teacher is a model of another library, of whose network the map is made."""
        return is_other_model(self.recipe.teacher)

    def supported_steps(self, steps: Iterable[int]) -> tuple[int, ...]:
        """The numbers of sampling steps that the map supports among `steps`; if none, the smallest that it supports."""
        if self.method.jumps is Jumps.FROM_BASE:
            return (1,)
        least = math.ceil(1 / STRIP_WIDTH) if self.on_strip else 1
        return tuple(number for number in steps if number >= least) or (least,)

    def limits(self) -> str | None:
        """A sentence that says which numbers of sampling steps the map supports; `None` if all."""
        if self.method.jumps is Jumps.FROM_BASE:
            return f"{self.method.name} learns jumps from noise alone: its map is sampled in 1 step"
        if self.on_strip:
            (least,) = self.supported_steps(())
            return (
                f"{self.method.name} of images learns jumps of at most {STRIP_WIDTH:g}: its map is sampled in {least} "
                "steps or more"
            )
        return None

    def check_steps(self, steps: Iterable[int]) -> None:
        """Raise an error if the map does not support a number of sampling steps.

        Raises:
            ValueError: a number is not supported.
        """
        for number in steps:
            if number not in self.supported_steps([number]):
                raise ValueError(f"{self.limits()}, got {number} step{'s' * (number > 1)}.")

    def sampler(self, steps: int) -> Jump | MultistepConsistency:
        """The sampler of the map in so many steps."""
        return self.method.sampler(steps, self.interpolant)

    def with_evaluation(self, changes: Mapping[str, Any]) -> Plan:
        """The plan with other settings of its evaluation.

        Args:
            changes: name of a setting -> value.

        Raises:
            ValueError: a value is out of range, or the map does not support a number of steps.
        """
        recipe = replace(self.recipe, evaluation=replace(self.recipe.evaluation, **changes))
        validate(recipe)
        self.check_steps(changes.get("steps", ()))
        return replace(self, recipe=recipe)

    def with_options(self, **options: Any) -> Plan:
        """The plan with other options of its method's function, over those that the recipe chooses."""
        usual = self.method.settings
        method = replace(self.method, settings=lambda choices: {**usual(choices), **options})
        return replace(self, method=method, stages=tuple(_stages(self.recipe, method, self.interpolant)))

    def evaluation(self) -> Evaluation:
        """The recipe's evaluation, of the numbers of steps that the map supports."""
        evaluation = self.recipe.evaluation
        return replace(evaluation, steps=self.supported_steps(evaluation.steps))

    def as_sampled(self, flow_map: FlowMap, teacher: FlowMap | None) -> tuple[FlowMap, FlowMap | None]:
        """The map and its teacher as they are sampled: at the lowest guidance weight, the teacher guided like the map.

        Args:
            flow_map: as it was trained.
            teacher: the map whose diagonal is the teacher's velocity, or `None`.
        """
        guidance, flow_map = self.recipe.guidance, self.method.sampled(flow_map)
        if len(guidance) == 2:
            flow_map = AtWeight(flow_map, guidance[0])
        if teacher is not None and guidance and not (self.method.copies_teacher or self.of_other_model):
            teacher = GuidedMap(teacher, guidance[0])
        return flow_map, teacher

    def compiles(self, device: torch.device) -> bool:
        """Whether to compile: no network of another library, and none of images on a CPU, where it is no faster."""
        return self.recipe.compile and not (device.type == "cpu" and self.images) and not self.of_other_model


def resolve(recipe: Recipe, processes: int = 1) -> Plan:
    """The plan of a recipe, whose fields are checked first, before anything heavy starts.

    Args:
        recipe: the recipe.
        processes: number of processes among which a batch is split.

    Raises:
        ValueError: a field is out of range, fields contradict each other, there is no such method, or a teacher is
            given to a method that learns from none.
    """
    validate(recipe, processes)
    method = choose("method", recipe.method, METHODS)
    if recipe.warm_up_steps:
        _check_warm_up(recipe, method)
    elif recipe.teacher and not method.distils:
        raise ValueError(f"{method.name} has no teacher, got --teacher {recipe.teacher}: leave it out.")
    taught = "teacher" in method.stages or recipe.warm_up_steps
    if taught and not (recipe.teacher_steps or recipe.teacher):
        why = "a warm-up" if recipe.warm_up_steps else method.name
        raise ValueError(f"{why} trains a teacher first, for which --teacher-steps must be at least 1, got 0.")
    for name, option, of in OF_FUNCTIONS:
        if getattr(recipe, name) != "own" and not method.takes(option):
            raise ValueError(
                f"{method.name} has no {of}, got --{name.replace('_', '-')} {getattr(recipe, name):g}: leave it out."
            )
    path = method.interpolant or BY_NAME[recipe.interpolant]
    return Plan(recipe, method, path, tuple(_stages(recipe, method, path)))


# stages --------------------------------------------------------------------------------------------------------------


def _check_warm_up(recipe: Recipe, method: Method) -> None:
    """Refuse a warm-up on the trajectories of a teacher where it would teach nothing, or be lost.

    Raises:
        ValueError: the method or the recipe goes without one.
    """
    given = f"got --warm-up-steps {recipe.warm_up_steps}: leave it out."
    if method.jumps is Jumps.NONE:
        raise ValueError(f"{method.name} learns no jumps, which a warm-up teaches, {given}")
    if recipe.from_run:
        raise ValueError(f"a run that starts from the weights of --from-run has no warm-up, {given}")
    if method.copies_teacher and recipe.guidance:
        raise ValueError(f"{method.name} with --guidance has no warm-up: its teacher is guided already, {given}")
    if is_other_model(recipe.teacher) and not method.distils:
        raise ValueError(
            f"{method.name} learns from data, and --teacher {recipe.teacher} is of another library, {given}"
        )


def _stages(recipe: Recipe, method: Method, path: Interpolant) -> list[Stage]:
    """The stages of a recipe; a warm-up comes after its teacher, which is trained for a method without one too."""
    if not recipe.warm_up_steps:
        return _own_stages(recipe, method, path)
    rate = recipe.map_rate_scale * recipe.optimiser.learning_rate
    build = _warm_up_objective(recipe, method, path)
    optimiser = replace(recipe.optimiser, learning_rate=rate)
    warm_up = Stage("warm_up", recipe.warm_up_steps, optimiser, methods.warm_up, build)
    if "teacher" in method.stages:
        *before, last = _own_stages(recipe, method, path)
        return [*before, warm_up, last]
    rest = _own_stages(replace(recipe, teacher_steps=0), method, path)
    before = [] if recipe.teacher else [_teacher_stage(recipe, method, path)]
    return [*before, warm_up, *rest]


def _teacher_stage(recipe: Recipe, method: Method, path: Interpolant) -> Stage:
    build = _teacher_objective(recipe, method, path)
    return Stage("teacher", recipe.teacher_steps, recipe.optimiser, methods.flow_matching, build)


def _own_stages(recipe: Recipe, method: Method, path: Interpolant) -> list[Stage]:
    """The stages of a method; without a teacher stage its steps are added to the map's."""
    own = recipe.optimiser
    build = _map_objective(recipe, method, path)
    last = Stage("map", recipe.steps, _map_optimiser(recipe, method), method.objective, build)
    if "teacher" in method.stages:
        first = _teacher_stage(recipe, method, path)
        if is_other_model(recipe.teacher) and recipe.teacher_steps:
            return [replace(first, name="velocity", build=_velocity_objective(recipe, path)), last]
        given = recipe.teacher or (recipe.from_run and not method.distils)
        return [last] if given else [first, last]
    both = recipe.steps + recipe.teacher_steps
    if method.learns_from is LearnsFrom.STRIP and not recipe.from_run:
        first = Stage("strip", both - both // 2, own, methods.fmm, _strip_objective(recipe, path))
        return [first, replace(last, steps=both // 2)]
    return [replace(last, steps=both)]


def _choices(recipe: Recipe, path: Interpolant) -> Choices:
    """The `Choices` of a recipe; each call makes a new learned weight."""
    images = isinstance(recipe, ImageRecipe)
    constant_mean = recipe.mean_weight == "constant" or (recipe.mean_weight == "auto" and not images)
    pairs: Times = Triangle() if recipe.times == "triangle" else Square()
    learned = Learned() if recipe.learned_weight else None
    return Choices(
        interpolant=path,
        pairs=Mixture(FromBase(), pairs, recipe.from_noise_share) if recipe.from_noise_share else pairs,
        velocity_times=TowardsData(Diagonal(), recipe.velocity_time_power),
        strip=Strip(STRIP_WIDTH if images else Anneal(STRIP_WIDTH, 1.0, 0.5)),
        weight=learned,
        residual_weight=Adaptive(recipe.adaptive_power, 1e-2) if recipe.adaptive_power and not learned else learned,
        mean_weight=learned or (Constant() if constant_mean else None),
        stop=Stop(recipe.stop_gradient),
        diagonal_share=_unless_own(recipe.diagonal_share),
        target_decay=_unless_own(recipe.target_decay),
    )


def _unless_own(value: float | str) -> float | None:
    """A number of a recipe; `None` where the recipe leaves it to the method."""
    return None if isinstance(value, str) else value


def _map_optimiser(recipe: Recipe, method: Method) -> Optimiser:
    share = recipe.unstable_rate_scale if method.lower_rate else 1.0
    share *= recipe.map_rate_scale if method.distils else 1.0
    return replace(recipe.optimiser, learning_rate=share * recipe.optimiser.learning_rate)


def _map_objective(recipe: Recipe, method: Method, path: Interpolant) -> Build:
    """A function that builds the objective of the map; with a teacher the map has no dropout."""

    def build(flow_map: FlowMap, teacher: Field | None) -> Objective:
        along_velocity = method.starts_along_velocity and not recipe.warm_up_steps  # which a warm-up is ahead of
        if along_velocity and not zero_second_time(flow_map):
            raise ValueError(
                f"{method.name} starts from jumps along the velocity, for which {recipe.net} needs a method "
                "zero_second_time() that makes net(x, s, t) the same for all t: take lmd, or fm.nn.TwoTimes."
            )
        if method.distils:
            disable_dropout(flow_map)
        given = {"teacher": teacher} if method.distils and not method.copies_teacher else {}
        objective = method.build(flow_map, _choices(recipe, path), **given, **_common(recipe, flow_map))
        return objective if recipe.off_diagonal_every == 1 else in_turns(objective, recipe.off_diagonal_every)

    return build


def _teacher_objective(recipe: Recipe, method: Method, path: Interpolant) -> Build:
    """A function that builds the teacher's objective: velocity matching, guided only if the method copies it."""

    def build(flow_map: FlowMap, _: Field | None) -> Objective:
        choices = _choices(recipe, path)
        options = {"interpolant": path, "times": choices.velocity_times, "weight": choices.weight}
        return methods.flow_matching(
            flow_map, **options, **_common(recipe, flow_map, None if method.copies_teacher else 1.0)
        )

    return build


def _warm_up_objective(recipe: Recipe, method: Method, path: Interpolant) -> Build:
    """A function that builds the regression on solved trajectories of the teacher, of the jumps that the method learns.

    The residual is a function of (x, s, t), so that its weight may be adaptive.
    """

    def build(flow_map: FlowMap, teacher: Field | None) -> Objective:
        if method.distils:
            disable_dropout(flow_map)
        choices = _choices(recipe, path)
        pairs = choices.strip if method.strip_on_images and isinstance(recipe, ImageRecipe) else choices.pairs
        options = {"interpolant": path, "weight": choices.residual_weight, "jumps": method.jumps}
        options |= {"times": pairs} if method.jumps is Jumps.ANY else {}
        return methods.warm_up(flow_map, teacher=teacher, **options, **_common(recipe, flow_map))

    return build


def _velocity_objective(recipe: Recipe, path: Interpolant) -> Build:
    """Regression of the map's own velocity on the teacher's, E w_t |u_{t,t}(I_t) - b_t(I_t)|^2."""

    def build(flow_map: FlowMap, teacher: Field | None) -> Objective:
        assert teacher is not None
        owner = getattr(teacher, "__self__", None)  # the `Target` whose velocity it is
        weight = weight_of(owner) if isinstance(owner, torch.nn.Module) else None
        options = {"times": Diagonal(), "weight": weight, "draws": recipe.draws}
        return VelocityMatching(disable_dropout(flow_map), path, FromTeacher(teacher), **options)

    return build


def _strip_objective(recipe: Recipe, path: Interpolant) -> Build:
    """Flow map matching on a strip."""

    def build(flow_map: FlowMap, _: Field | None) -> Objective:
        options = {"interpolant": path, "times": Strip(STRIP_WIDTH), "weight": _choices(recipe, path).weight}
        return methods.fmm(flow_map, **options, **_common(recipe, flow_map))

    return build


def _common(recipe: Recipe, flow_map: FlowMap, weight: float | None = None) -> dict[str, Any]:
    """The recipe's draws and guidance as options of a method; `weight` is another weight of guidance."""
    return {"draws": recipe.draws, **_guidance(recipe, flow_map, weight)}


def _guidance(recipe: Recipe, flow_map: FlowMap, weight: float | None) -> dict[str, Any]:
    if not recipe.guidance or is_other_model(recipe.teacher):  # the model's velocity is guided already
        return {}
    low, high = recipe.guidance[0], recipe.guidance[-1]
    wanted = weight if weight is not None else low if low == high else (low, high)
    net: Any = network_of(flow_map)
    own = {"classes": net.classes} if recipe.net else net.arguments
    given = {"classes": own["classes"], "condition_dim": own.get("condition_dim")}
    return {"guidance": Guidance(wanted, **given, dropout=recipe.label_dropout, mix=None)}
