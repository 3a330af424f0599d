"""The stages of a plan: what each trains, for how many steps, and how its objective is made of the recipe.

teacher or velocity, then warm_up, then strip, then map         those that the method and the recipe have
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import methods
from ..equations import Stop
from ..guidance import Guidance
from ..interop.model import weight_of
from ..interpolants import Interpolant
from ..losses import Adaptive, Constant, Learned
from ..maps import FlowMap
from ..methods import Choices, Jumps, LearnsFrom, Method
from ..objectives import Objective, VelocityMatching, in_turns
from ..schedules import Anneal
from ..shapes import Field
from ..times import Diagonal, FromBase, Mixture, Square, Strip, Times, TowardsData, Triangle
from ..training.optimisers import Optimiser
from ..velocities import FromTeacher
from .initial import disable_dropout, network_of, zero_second_time
from .recipes import ImageRecipe, Recipe
from .recipes.checks import is_other_model

Build = Callable[[FlowMap, Field | None], Objective]
"""Builds the objective of a stage from the map of the stage before and the teacher's velocity."""
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


def stages_of(recipe: Recipe, method: Method, path: Interpolant) -> list[Stage]:
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


def choices_of(recipe: Recipe, path: Interpolant) -> Choices:
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
        objective = method.build(flow_map, choices_of(recipe, path), **given, **_common(recipe, flow_map))
        return objective if recipe.off_diagonal_every == 1 else in_turns(objective, recipe.off_diagonal_every)

    return build


def _teacher_objective(recipe: Recipe, method: Method, path: Interpolant) -> Build:
    """A function that builds the teacher's objective: velocity matching, guided only if the method copies it."""

    def build(flow_map: FlowMap, _: Field | None) -> Objective:
        choices = choices_of(recipe, path)
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
        choices = choices_of(recipe, path)
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
        options = {"interpolant": path, "times": Strip(STRIP_WIDTH), "weight": choices_of(recipe, path).weight}
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
