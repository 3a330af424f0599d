"""What a recipe changes of the defaults of a method's own function, told from the two objectives.

fm.methods.lmd(flow_map, teacher=...)       the defaults, which stand in `flowmaps.methods` alone
stage.build(flow_map, teacher)              what the recipe trains in their place
"""

from __future__ import annotations

import inspect
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from .. import methods
from ..interpolants import BY_NAME
from ..maps import FlowMap
from ..methods import METHODS
from ..nn import MLP
from ..objectives import Objective, SplitRows, Sum
from ..shapes import Condition
from ..storage.classes import constructor_arguments
from ..storage.methods import method_of
from ..times import TowardsData
from .plan import Plan
from .recipes import RECIPES, Recipe
from .recipes.found import fields_of, found_in, in_options, option
from .stages import Stage

Words = dict[str, str]
"""Option of a method's function -> its value, in words."""
Changes = dict[str, tuple[str, str]]
"""Option of a method's function -> the function's own value, and the recipe's."""


def changes(stage: Stage, recipe: Recipe, classes: int | None = None, condition_dim: int | None = None) -> Changes:
    """The options of the function of a stage that a recipe sets to other values than the function's own.

    Args:
        stage: of the recipe's plan.
        recipe: the recipe.
        classes: number of classes of the data, for a recipe with guidance.
        condition_dim: how many numbers a row is conditioned on, likewise.
    """
    both = objectives(stage, recipe, classes, condition_dim)
    own, here = ({name: in_words(value) for name, value in _options(one).items()} for one in both)
    names = dict.fromkeys((*own, *here))
    pairs = {name: (own.get(name, "None"), here.get(name, "None")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def lines(plan: Plan, classes: int | None = None, condition_dim: int | None = None) -> list[str]:
    """A line for each stage of a plan: its function, and what the recipe changes of that function's defaults."""
    found = []
    for stage in plan.stages:
        listed = changes(stage, plan.recipe, classes, condition_dim)
        changed = "; ".join(f"{name} {own} -> {here}" for name, (own, here) in listed.items())
        found.append(f"{stage.name}, {_function(stage)}: {changed or 'nothing'}")
    if kept := found_in(plan.recipe):
        found.append(f"found by flowmaps tune for {plan.method.name}: {in_options(kept)}")
    return found


def rows(plan: Plan, classes: int | None = None, condition_dim: int | None = None) -> list[tuple[str, str, str, str]]:
    """The same as rows of a table: stage and function, option, the function's own value, the recipe's."""
    usual = fields_of(RECIPES[plan.recipe.name]()) if plan.recipe.name in RECIPES else {}
    return [
        *(
            (f"{stage.name}, {_function(stage)}", option, own, here)
            for stage in plan.stages
            for option, (own, here) in changes(stage, plan.recipe, classes, condition_dim).items()
        ),
        *(
            ("found by flowmaps tune", option(name), in_words(usual[name]), in_words(value))
            for name, value in found_in(plan.recipe).items()
        ),
    ]


def _function(stage: Stage) -> str:
    """The function of a stage as one would write it, `fm.methods.lmd`, or `my_methods.chord` of somebody's own."""
    module = stage.function.__module__
    own = not module.startswith(methods.__name__)
    return f"{module if own else 'fm.methods'}.{stage.function.__name__}"


def of_stage(plan: Plan, number: int = -1, classes: int | None = None, condition_dim: int | None = None) -> Words:
    """The options of the function of a stage, the last one unless told otherwise, as the recipe sets them."""
    objective = objectives(plan.stages[number], plan.recipe, classes, condition_dim)[1]
    return {name: in_words(value) for name, value in _options(objective).items()}


def objectives(
    stage: Stage, recipe: Recipe, classes: int | None = None, condition_dim: int | None = None
) -> tuple[Objective, Objective]:
    """The objectives of a small map as the function of a stage makes them by itself, and as the recipe does."""
    own = method_of(recipe.method)
    # that of a stage before may be none, as a warm-up is, which has a teacher
    method = own if stage.function is own.objective else METHODS.get(stage.function.__name__)
    given: dict[str, Any] = {}
    if method is None or (method.distils and not method.copies_teacher):
        given["teacher"] = _zero
    if method is own and not own.takes("interpolant"):  # a function of somebody's own, without a path of its own
        given["interpolant"] = own.interpolant or BY_NAME[recipe.interpolant]
    with torch.random.fork_rng(devices=[]):
        by_itself = stage.function(_small_map(recipe, classes, condition_dim), **given)
        return by_itself, stage.build(_small_map(recipe, classes, condition_dim), _zero)


def _small_map(recipe: Recipe, classes: int | None, condition_dim: int | None) -> FlowMap:
    guidance = len(recipe.guidance) == 2
    net = MLP(1, width=2, depth=1, classes=classes, condition_dim=condition_dim, guidance=guidance)
    return method_of(recipe.method).flow_map(net)


def _zero(x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
    """A teacher."""
    return torch.zeros_like(x)


def _options(objective: Objective) -> dict[str, Any]:
    """The options of a method's function as an objective has them."""
    if isinstance(objective, SplitRows):
        first, second = _options(objective.first), _options(objective.second)
        names = {name: "diagonal" if name == "times" else f"diagonal_{name}" for name in first}
        own = {names[name]: value for name, value in first.items() if name not in (*objective.shared(), "interpolant")}
        return {**second, **own, "share": objective.share, "every": objective.every}
    if isinstance(objective, Sum):
        first: dict[str, Any] = _options(objective.terms[0])  # type: ignore[arg-type]
        return {**first, "scales": objective.scales}
    derived = ("flow_map", "velocity")  # the velocity follows from the path, the teacher and the guidance
    names = [name for name in constructor_arguments(type(objective)) if name not in derived]
    found = {name: getattr(objective, name) for name in names if hasattr(objective, name)}
    if moving := objective.moving_targets():
        found["target"] = moving[0]
    equation = found.pop("equation", None)
    return found if equation is None else {**found, "equation": type(equation), **vars(equation)}


def in_words(value: Any) -> str:
    """A part of an objective as it is written in Python; arguments at their defaults are left out."""
    if isinstance(value, TowardsData) and value.power == 1:
        return in_words(value.law)  # the same law
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:g}"
    if value is None or isinstance(value, (bool, str, Enum)):
        return str(value)
    if isinstance(value, (tuple, list, nn.ModuleList)):
        return f"({', '.join(map(in_words, value))})"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__qualname__
    return f"{type(value).__name__}({', '.join(_arguments(value))})"


def _arguments(value: Any) -> list[str]:
    """The arguments of the constructor of an object, in words, from its attributes of the same names."""
    words, named = list[str](), False
    if isinstance(value, FlowMap):
        kept = {name: getattr(value, name, None) for name in ("decay", "rounds")}  # of a `Target`
        return [f"{name}={given:g}" for name, given in kept.items() if given is not None]
    for name, known in inspect.signature(type(value)).parameters.items():
        if not hasattr(value, name):
            named = True
            continue
        given = getattr(value, name)
        if known.kind is known.VAR_POSITIONAL:
            words += map(in_words, given)
        elif known.default is known.empty or in_words(given) != in_words(known.default):
            words.append(f"{name}={in_words(given)}" if named else in_words(given))
        else:
            named = True
    return words
