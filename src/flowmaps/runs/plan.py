"""The plan of a run: a recipe resolved once into what its training and its evaluation need.

    recipe -> Plan: method, path, stages (each with its steps, its optimiser and its objective), sampler, limits

What the recipe does not choose is the paper's (`flowmaps.methods.Method`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..guidance import AtWeight, GuidedMap
from ..interpolants import BY_NAME, Interpolant
from ..maps import FlowMap
from ..methods import Jumps, Method
from ..samplers import Jump, MultistepConsistency
from ..storage.methods import method_of
from .recipes import Evaluation, ImageRecipe, Recipe, validate
from .recipes.checks import is_other_model
from .stages import STRIP_WIDTH, Stage, choices_of, stages_of

OF_FUNCTIONS = (("diagonal_share", "share", "share of rows on the diagonal"), ("target_decay", "target", "target map"))
"""Fields of a recipe that are options of some functions of `flowmaps.methods` alone: field, option, what it is."""


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
        return self.recipe.times == "square" and self.follows_times

    @property
    def follows_times(self) -> bool:
        """Whether the map's pairs (s, t) are those of the recipe's `times`, which may be the whole square."""
        choices = choices_of(self.recipe, self.interpolant)
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

    def short_jumps(self) -> str | None:
        """How long the jumps of the map are, in words, if it takes none from noise to data at once; else `None`."""
        if self.method.jumps is Jumps.NONE:
            return "none"
        return f"at most {STRIP_WIDTH:g} long" if self.on_strip else None

    def check_steps(self, steps: Iterable[int]) -> None:
        """Raise an error if the map does not support a number of sampling steps.

        Raises:
            ValueError: a number is not supported.
        """
        for number in steps:
            if number not in self.supported_steps([number]):
                raise ValueError(f"{self.limits()}, got {number} step{'s' * (number > 1)}.")

    def check_backwards(self, folder: object) -> None:
        """Raise an error if the map has learned no jumps from data to noise.

        Args:
            folder: of the run, for the message.

        Raises:
            ValueError: its pairs of times are not of both orders.
        """
        if self.both_orders:
            return
        method = self.method
        learned = f"jumps {method.jumps.value}" if method.jumps is not Jumps.ANY else "jumps towards the data alone"
        own = "train it with --times square"
        way = own if self.follows_times else "train another method, such as lmd, with --times square"
        raise ValueError(
            f"the map of {folder} was never trained backwards, from data to noise ({method.name} learned {learned}): "
            f"{way}."
        )

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
        return replace(self, method=method, stages=tuple(stages_of(self.recipe, method, self.interpolant)))

    def evaluation(self) -> Evaluation:
        """The recipe's evaluation, of the numbers of steps that the map supports."""
        evaluation = self.recipe.evaluation
        return replace(evaluation, steps=self.supported_steps(evaluation.steps))

    def as_sampled(
        self, flow_map: FlowMap, teacher: FlowMap | None, weight: float | None = None
    ) -> tuple[FlowMap, FlowMap | None]:
        """The map and its teacher as they are sampled, the teacher guided like the map.

        Args:
            flow_map: as it was trained.
            teacher: the map whose diagonal is the teacher's velocity, or `None`.
            weight: of guidance, of a map that takes one; its lowest unless given.
        """
        guidance, flow_map = self.recipe.guidance, self.method.sampled(flow_map)
        if len(guidance) == 2:
            flow_map = AtWeight(flow_map, guidance[0] if weight is None else weight)
        if teacher is not None and guidance and not (self.method.copies_teacher or self.of_other_model):
            teacher = GuidedMap(teacher, guidance[0] if weight is None else weight)
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
    method = method_of(recipe.method)
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
    return Plan(recipe, method, path, tuple(stages_of(recipe, method, path)))


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
