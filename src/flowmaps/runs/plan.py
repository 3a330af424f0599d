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
from ..objectives import Objective, VelocityMatching
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
STRIP_WIDTH = 0.25
"""Longest jump of a map that is trained on a strip."""


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: `teacher`, `velocity`, `strip` or `map`.
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
        choices = _choices(self.recipe, self.interpolant)
        return self.recipe.times == "square" and self.method.settings(choices).get("times") is choices.pairs

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
    if recipe.teacher and not method.distils:
        raise ValueError(f"{method.name} has no teacher, got --teacher {recipe.teacher}: leave it out.")
    if not recipe.teacher_steps and "teacher" in method.stages and not recipe.teacher:
        raise ValueError(f"{method.name} trains a teacher first, for which --teacher-steps must be at least 1, got 0.")
    path = method.interpolant or BY_NAME[recipe.interpolant]
    return Plan(recipe, method, path, tuple(_stages(recipe, method, path)))


# stages --------------------------------------------------------------------------------------------------------------


def _stages(recipe: Recipe, method: Method, path: Interpolant) -> list[Stage]:
    """The stages of a recipe; without a teacher stage its steps are added to the map's."""
    own = recipe.optimiser
    build = _map_objective(recipe, method, path)
    last = Stage("map", recipe.steps, _map_optimiser(recipe, method), method.objective, build)
    if "teacher" in method.stages:
        build = _teacher_objective(recipe, method, path)
        first = Stage("teacher", recipe.teacher_steps, own, methods.flow_matching, build)
        if is_other_model(recipe.teacher) and recipe.teacher_steps:
            return [replace(first, name="velocity", build=_velocity_objective(path)), last]
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
    pairs: Times = Triangle() if recipe.times == "triangle" else Square()
    learned = Learned() if recipe.learned_weight else None
    return Choices(
        interpolant=path,
        pairs=Mixture(FromBase(), pairs, recipe.from_noise_share) if recipe.from_noise_share else pairs,
        velocity_times=TowardsData(Diagonal(), recipe.velocity_time_power),
        strip=Strip(STRIP_WIDTH if images else Anneal(STRIP_WIDTH, 1.0, 0.5)),
        weight=learned,
        residual_weight=Adaptive(recipe.adaptive_power, 1e-2) if recipe.adaptive_power and not learned else learned,
        mean_weight=learned or (None if images else Constant()),
        stop=Stop(recipe.stop_gradient),
    )


def _map_optimiser(recipe: Recipe, method: Method) -> Optimiser:
    share = recipe.unstable_rate_scale if method.lower_rate else 1.0
    share *= recipe.map_rate_scale if method.distils else 1.0
    return replace(recipe.optimiser, learning_rate=share * recipe.optimiser.learning_rate)


def _map_objective(recipe: Recipe, method: Method, path: Interpolant) -> Build:
    """A function that builds the objective of the map; with a teacher the map has no dropout."""

    def build(flow_map: FlowMap, teacher: Field | None) -> Objective:
        if method.starts_along_velocity and not zero_second_time(flow_map):
            raise ValueError(
                f"{method.name} starts from jumps along the velocity, for which {recipe.net} needs a method "
                "zero_second_time() that makes net(x, s, t) the same for all t: take lmd, or fm.nn.TwoTimes."
            )
        if method.distils:
            disable_dropout(flow_map)
        given = {"teacher": teacher} if method.distils and not method.copies_teacher else {}
        return method.build(flow_map, _choices(recipe, path), **given, **_guidance(recipe, flow_map))

    return build


def _teacher_objective(recipe: Recipe, method: Method, path: Interpolant) -> Build:
    """A function that builds the teacher's objective: velocity matching, guided only if the method copies it."""

    def build(flow_map: FlowMap, _: Field | None) -> Objective:
        choices = _choices(recipe, path)
        options = {"interpolant": path, "times": choices.velocity_times, "weight": choices.weight}
        return methods.flow_matching(
            flow_map, **options, **_guidance(recipe, flow_map, None if method.copies_teacher else 1.0)
        )

    return build


def _velocity_objective(path: Interpolant) -> Build:
    """Regression of the map's own velocity on the teacher's, E w_t |u_{t,t}(I_t) - b_t(I_t)|^2."""

    def build(flow_map: FlowMap, teacher: Field | None) -> Objective:
        assert teacher is not None
        owner = getattr(teacher, "__self__", None)  # the `Target` whose velocity it is
        weight = weight_of(owner) if isinstance(owner, torch.nn.Module) else None
        return VelocityMatching(disable_dropout(flow_map), path, FromTeacher(teacher), times=Diagonal(), weight=weight)

    return build


def _strip_objective(recipe: Recipe, path: Interpolant) -> Build:
    """Flow map matching on a strip."""

    def build(flow_map: FlowMap, _: Field | None) -> Objective:
        options = {"interpolant": path, "times": Strip(STRIP_WIDTH), "weight": _choices(recipe, path).weight}
        return methods.fmm(flow_map, **options, **_guidance(recipe, flow_map))

    return build


def _guidance(recipe: Recipe, flow_map: FlowMap, weight: float | None = None) -> dict[str, Any]:
    """The recipe's guidance as an option of a method, or guidance of another weight."""
    if not recipe.guidance or is_other_model(recipe.teacher):  # the model's velocity is guided already
        return {}
    low, high = recipe.guidance[0], recipe.guidance[-1]
    wanted = weight if weight is not None else low if low == high else (low, high)
    net: Any = network_of(flow_map)
    own = {"classes": net.classes} if recipe.net else net.arguments
    given = {"classes": own["classes"], "condition_dim": own.get("condition_dim")}
    return {"guidance": Guidance(wanted, **given, dropout=recipe.label_dropout, mix=None)}
