"""Plans: how a recipe learns its map by each method, stage by stage.

Here a method meets the recipe's settings: which law of times and which weight it gets, whether a teacher comes first,
and which map and path it needs. What is not set here is the paper's.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import methods
from ..equations import Stop
from ..guidance import AtWeight, Guidance, GuidedMap
from ..interpolants import Interpolant, Linear, Trigonometric, VariancePreserving
from ..losses import Adaptive, Constant, Learned, SplitPower, Weight
from ..maps import FlowMap, Near
from ..objectives import Objective
from ..schedules import Anneal
from ..shapes import Field
from ..times import Diagonal, FromBase, Late, Mixture, Square, Strip, Times, Triangle
from .initial import ROTATING, network_of, without_dropout
from .recipes import ImageRecipe, Optimiser, Recipe, validate

Build = Callable[[FlowMap, Field | None], Objective]

INTERPOLANTS: dict[str, Interpolant] = {
    "linear": Linear(),
    "trigonometric": Trigonometric(),
    "variance-preserving": VariancePreserving(),
}
DISTILLED = ("lmd", "emd", "consistency_distillation", "scd", "ctm", "progressive_distillation", "ayf_emd", "ayf_lmd",
             "freeflow", "reflow", "neural_operator")  # fmt: skip
"""Methods that learn from a teacher, which is trained first."""
PRETRAINED = ("easy_consistency_tuning",)
"""Methods that start from a trained velocity, and learn from data."""
STRIPPED = ("pfmm",)
"""Methods that start from a map of a strip."""
DIRECT = ("flow_matching", "fmm", "eulerian_estimation", "lsd", "esd", "psd", "meanflow", "improved_meanflow",
          "alphaflow", "split_meanflow", "shortcut", "consistency_training", "improved_consistency_training",
          "sct")  # fmt: skip
"""Methods that learn from data from the start."""
METHODS = (*DISTILLED, *PRETRAINED, *STRIPPED, *DIRECT)
HELD = ("progressive_distillation",)
"""Methods that take their legs with the map of the first stage, which is guided already."""
TO_DATA = ("consistency_training", "improved_consistency_training", "easy_consistency_tuning",
           "consistency_distillation", "sct", "scd")  # fmt: skip
"""Methods whose map jumps to t = 1 only: several steps go by fresh noise."""
CAREFUL = ("esd", "eulerian_estimation", "meanflow", "improved_meanflow", "easy_consistency_tuning",
           "improved_consistency_training", "sct", "scd", "ayf_emd", "ayf_lmd", "alphaflow")  # fmt: skip
"""Methods with the noise of dI in an unbounded derivative in space, or whose gradient does not shrink with the loss:
normalised tangents, norms in the place of squares."""
DIAGONAL = ("flow_matching", "reflow")
"""Methods that teach the velocity alone: jumps are Euler's steps."""
FROM_BASE = ("freeflow",)
"""Methods whose map jumps from s = 0 only: one step."""
SHORT, STRIP = ("fmm",), 0.25
"""Methods that learn images in jumps of a strip alone, and the width of strips; of points they grow out of it."""
LEAST = math.ceil(1 / STRIP)  # steps from noise to data


@dataclass(frozen=True)
class Stage:
    """A part of training: an objective built from the map as the stage before left it, and its share of the steps."""

    name: str
    steps: int
    build: Build


def check(recipe: Recipe, processes: int = 1) -> None:
    """Refuse a recipe that cannot run, before anything heavy starts; `processes` share the rows of its steps.

    Raises:
        ValueError: a field out of range, fields that contradict each other, a method that is not there, or a teacher
            for a method without one.
    """
    validate(recipe, processes)
    stages(recipe)


def check_steps(recipe: Recipe, steps: Iterable[int]) -> None:
    """Refuse numbers of steps whose jumps the map does not learn.

    Raises:
        ValueError: fewer steps than the map takes from noise to data, or more.
    """
    for number in steps:
        if number not in known_steps(recipe, [number]):
            raise ValueError(f"{limits(recipe)}, got {number} step{'s' * (number > 1)}.")


def known_steps(recipe: Recipe, steps: Iterable[int]) -> tuple[int, ...]:
    """Those numbers of steps whose jumps the recipe's map learns; the nearest that it does, if there is none."""
    if recipe.method in FROM_BASE:
        return (1,)
    least = LEAST if recipe.method in SHORT and isinstance(recipe, ImageRecipe) else 1
    return tuple(number for number in steps if number >= least) or (least,)


def limits(recipe: Recipe) -> str | None:
    """What the jumps of a recipe's map are limited to, in words; `None` where they are not."""
    if recipe.method in FROM_BASE:
        return f"{recipe.method} learns jumps from noise alone: its map is sampled in 1 step"
    if recipe.method in SHORT and isinstance(recipe, ImageRecipe):
        return (
            f"{recipe.method} of images learns jumps of at most {STRIP:g}: its map is sampled in {LEAST} steps or more"
        )
    return None


def _check_method(name: str) -> None:
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown method {name!r}: {hint}choose one of {', '.join(METHODS)}.")


def interpolant(recipe: Recipe) -> Interpolant:
    """The path of a recipe's method."""
    return Trigonometric() if recipe.method in ROTATING else INTERPOLANTS[recipe.interpolant]


def optimiser(recipe: Recipe, stage: str) -> Optimiser:
    """The optimiser of a stage of a recipe's method."""
    share = 1.0
    if stage == "map":
        share *= recipe.careful if recipe.method in CAREFUL else 1.0
        share *= recipe.map_rate if recipe.method in DISTILLED else 1.0
    return replace(recipe.optimiser, rate=share * recipe.optimiser.rate)


def gains(recipe: Recipe, device: torch.device) -> bool:
    """Whether a run is to be compiled: a network of images takes minutes on a CPU, and is no faster afterwards."""
    return recipe.compile and not (device.type == "cpu" and isinstance(recipe, ImageRecipe))


def measured(recipe: Recipe, flow_map: FlowMap, teacher: FlowMap | None) -> tuple[FlowMap, FlowMap | None, Recipe]:
    """The map and its teacher as they are sampled: as Euler's steps, at the least guidance, in the steps it knows."""
    evaluation = recipe.evaluation
    recipe = replace(recipe, evaluation=replace(evaluation, steps=known_steps(recipe, evaluation.steps)))
    if recipe.method in DIAGONAL:
        flow_map = Near(flow_map, 1.0)
    if len(recipe.guidance) == 2:
        flow_map = AtWeight(flow_map, recipe.guidance[0])
    if teacher is not None and recipe.guidance and recipe.method not in HELD:
        teacher = GuidedMap(teacher, recipe.guidance[0])
    return flow_map, teacher, recipe


def builders(recipe: Recipe) -> dict[str, Build]:
    """How each method's objective is built from a map and a teacher, at the recipe's settings."""
    return {**_taught(recipe), **_direct(recipe)}


def _guided(recipe: Recipe, flow_map: FlowMap, *, teacher: bool = False) -> dict[str, Any]:
    """The recipe's guidance as an option of a method; a teacher learns with and without labels, unguided."""
    if not recipe.guidance:
        return {}
    low, high = recipe.guidance[0], recipe.guidance[-1]
    weight = 1.0 if teacher else low if low == high else (low, high)
    return {
        "guidance": Guidance(
            weight, classes=network_of(flow_map).arguments["classes"], dropout=recipe.label_dropout, mix=None
        )
    }


def _learned(recipe: Recipe) -> Weight | None:
    return Learned() if recipe.learned_weight else None


def _taught(recipe: Recipe) -> dict[str, Build]:
    """Methods with a teacher.

    The adaptive weight goes to those whose residual is a function of (x, s, t) alone.
    """
    path = interpolant(recipe)
    pairs: Times = Triangle() if recipe.times == "triangle" else Square()
    pairs = Mixture(FromBase(), pairs, recipe.from_base) if recipe.from_base else pairs
    robust = Adaptive(recipe.adaptive, 1e-2) if recipe.adaptive and not recipe.learned_weight else _learned(recipe)
    both = {"interpolant": path, "times": pairs, "weight": robust}
    plain = {"interpolant": path, "weight": _learned(recipe)}

    def with_teacher(method: Callable[..., Objective], **options: object) -> Build:
        return lambda m, teacher: method(without_dropout(m), teacher=teacher, **options, **_guided(recipe, m))

    return {
        "lmd": with_teacher(methods.lmd, stop=Stop(recipe.stop), **both),
        "emd": with_teacher(methods.emd, stop=Stop(recipe.stop), **both),
        "neural_operator": with_teacher(methods.neural_operator, **both),
        "ctm": with_teacher(methods.ctm, interpolant=path, times=pairs),
        "consistency_distillation": with_teacher(methods.consistency_distillation, **plain),
        "scd": with_teacher(methods.scd, **plain),
        "ayf_emd": with_teacher(methods.ayf_emd, interpolant=path, times=pairs),
        "ayf_lmd": with_teacher(methods.ayf_lmd, interpolant=path, times=pairs),
        "freeflow": with_teacher(methods.freeflow, **plain),
        "reflow": with_teacher(methods.reflow, times=Late(Diagonal(), recipe.late), **plain),
        "progressive_distillation": _held(recipe, methods.progressive_distillation, **plain),
        "pfmm": lambda m, _: methods.pfmm(m, interpolant=path, times=pairs, **_guided(recipe, m)),
    }


def _direct(recipe: Recipe) -> dict[str, Build]:
    """Methods that learn from data.

    The noise of dI averages out under a square, not under anything else: in few dimensions the adaptive weight of the
    MeanFlow papers turns means into modes, so that theirs is left out there.
    """
    path, late, images = interpolant(recipe), Late(Diagonal(), recipe.late), isinstance(recipe, ImageRecipe)
    direct = {"interpolant": path, "weight": _learned(recipe)}
    own = {"diagonal": late, **direct}
    plain = _learned(recipe) or (None if images else Constant())
    square = {"interpolant": path, "weight": plain, "diagonal": late, "times": Triangle()}

    def alone(method: Callable[..., Objective], **options: object) -> Build:
        return lambda m, _: method(m, **options, **_guided(recipe, m))

    return {
        "flow_matching": alone(methods.flow_matching, times=late, **direct),
        "teacher": lambda m, _: methods.flow_matching(m, times=late, **direct, **_guided(recipe, m, teacher=True)),
        "fmm": alone(methods.fmm, times=Strip(STRIP if images else Anneal(STRIP, 1.0, 0.5)), **direct),
        "strip": alone(methods.fmm, times=Strip(STRIP), **direct),
        "eulerian_estimation": alone(methods.eulerian_estimation, **direct),
        "lsd": alone(methods.lsd, **own),
        "esd": alone(methods.esd, **own),
        "psd": alone(methods.psd, **own),
        "shortcut": alone(methods.shortcut, **own),
        "split_meanflow": alone(methods.split_meanflow, **own),
        "meanflow": alone(methods.meanflow, **square),
        "improved_meanflow": alone(methods.improved_meanflow, **square),
        "alphaflow": alone(methods.alphaflow, **square | {"weight": plain and SplitPower(-1.0, plain)}),
        "consistency_training": alone(methods.consistency_training, **direct),
        "improved_consistency_training": alone(methods.improved_consistency_training, **direct),
        "easy_consistency_tuning": _held(recipe, methods.easy_consistency_tuning, **direct),
        "sct": alone(methods.sct, **direct),
    }


def _held(recipe: Recipe, method: Callable[..., Objective], **options: object) -> Build:
    """A method that starts from a velocity: the map begins with jumps along it."""

    def build(flow_map: FlowMap, teacher: Field | None) -> Objective:
        network_of(flow_map).hold_velocity()
        if recipe.method in DISTILLED:
            without_dropout(flow_map)
        return method(flow_map, **options, **_guided(recipe, flow_map))

    return build


def stages(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe's method: a teacher first where one is needed.

    Raises:
        ValueError: the method is unknown.
    """
    _check_method(recipe.method)
    if recipe.teacher and recipe.method not in DISTILLED:
        raise ValueError(f"{recipe.method} has no teacher, got --teacher {recipe.teacher}: leave it out.")
    build = builders(recipe)
    both = recipe.steps + recipe.teacher_steps
    if recipe.method in DISTILLED + PRETRAINED:
        last = Stage("map", recipe.steps, build[recipe.method])
        if recipe.teacher:
            return [last]
        guided = "flow_matching" if recipe.method in HELD else "teacher"
        first = Stage("teacher", recipe.teacher_steps, build[guided])
        return [first, last]
    if recipe.method in STRIPPED:
        return [Stage("strip", both - both // 2, build["strip"]), Stage("map", both // 2, build[recipe.method])]
    return [Stage("map", both, build[recipe.method])]
