"""Recipes from JSON, and the refusal of those that cannot run."""

from __future__ import annotations

import math
from typing import Any

from .fields import Evaluation, Network, Optimiser, Recipe
from .images import DiTNetwork, ImageEvaluation, ImageRecipe, UNetNetwork

Rule = tuple[str, Any, bool, str]
"""An option, its value, whether it is good, and what is allowed."""


def validate(recipe: Recipe) -> None:
    """Refuse a recipe that cannot run, before anything heavy starts.

    Raises:
        ValueError: a field out of range.
    """
    rules = [*_general(recipe), *_optimiser(recipe.optimiser), *_evaluation(recipe.evaluation)]
    rules += _images(recipe) if isinstance(recipe, ImageRecipe) else _perceptron(recipe.network)
    for name, value, good, allowed in rules:
        if not good:
            raise ValueError(f"--{name} must be {allowed}, got {value}.")


def _general(recipe: Recipe) -> list[Rule]:
    return [
        ("steps", recipe.steps, recipe.steps >= 1, "at least 1"),
        ("teacher-steps", recipe.teacher_steps, recipe.teacher_steps >= 1, "at least 1"),
        ("checkpoint-every", recipe.checkpoint_every, recipe.checkpoint_every >= 1, "at least 1"),
        ("log-every", recipe.log_every, recipe.log_every >= 1, "at least 1"),
        ("adaptive", recipe.adaptive, 0 <= recipe.adaptive <= 1, "from 0 to 1"),
        ("from-base", recipe.from_base, 0 <= recipe.from_base <= 1, "from 0 to 1"),
        ("guidance", recipe.guidance, _are_weights(recipe.guidance), "none, one or two positive weights, rising"),
        ("label-dropout", recipe.label_dropout, 0 <= recipe.label_dropout < 1, "at least 0 and below 1"),
        ("careful", recipe.careful, 0 < recipe.careful <= 1, "positive and at most 1"),
        ("map-rate", recipe.map_rate, 0 < recipe.map_rate <= 1, "positive and at most 1"),
        ("late", recipe.late, 1 <= recipe.late <= 10, "from 1 to 10"),
        ("seed", recipe.seed, 0 <= recipe.seed < 2**32, "from 0 to 2^32 - 1"),
    ]


def _perceptron(n: Network) -> list[Rule]:
    return [
        ("network.width", n.width, n.width >= 1, "at least 1"),
        ("network.depth", n.depth, n.depth >= 1, "at least 1"),
        ("network.modulation", n.modulation, n.modulation >= 0, "at least 0"),
        ("network.time-frequencies", n.time_frequencies, n.time_frequencies >= 0, "at least 0"),
        ("network.space-frequencies", n.space_frequencies, n.space_frequencies >= 0, "at least 0"),
    ]


def _optimiser(o: Optimiser) -> list[Rule]:
    return [
        ("optimiser.batch", o.batch, o.batch >= 2, "at least 2"),
        ("optimiser.rate", o.rate, math.isfinite(o.rate) and o.rate > 0, "positive"),
        ("optimiser.warmup", o.warmup, o.warmup >= 0, "at least 0"),
        ("optimiser.floor", o.floor, 0 <= o.floor <= 1, "from 0 to 1"),
        ("optimiser.clip", o.clip, o.clip > 0, "positive"),
        ("optimiser.ema", o.ema, 0 <= o.ema < 1, "at least 0 and below 1"),
        ("optimiser.beta2", o.beta2, 0 <= o.beta2 < 1, "at least 0 and below 1"),
    ]


def _evaluation(e: Evaluation) -> list[Rule]:
    return [
        ("evaluation.steps", e.steps, len(e.steps) > 0 and min(e.steps, default=0) >= 1, "one or more numbers >= 1"),
        ("evaluation.samples", e.samples, e.samples >= 100, "at least 100"),
        ("evaluation.points", e.points, e.points >= 10, "at least 10"),
        ("evaluation.chunk", e.chunk, e.chunk >= 1, "at least 1"),
        ("evaluation.tolerance", e.tolerance, 0 < e.tolerance < 1, "between 0 and 1"),
        ("evaluation.euler", e.euler, e.euler >= 1, "at least 1"),
    ]


def _images(recipe: ImageRecipe) -> list[Rule]:
    """The sizes of the networks: the rest they check themselves, when they are built."""
    u, d = recipe.unet, recipe.dit
    sizes = {"unet.width": u.width, "unet.blocks": u.blocks, "unet.head": u.head, "unet.patch": u.patch}
    sizes |= {"dit.patch": d.patch, "dit.width": d.width, "dit.depth": d.depth, "dit.heads": d.heads}
    shares = {"unet.dropout": u.dropout, "dit.dropout": d.dropout}
    return [
        ("resolution", recipe.resolution, recipe.resolution >= 0, "at least 0"),
        ("evaluation.reference", recipe.evaluation.reference, recipe.evaluation.reference >= 0, "at least 0"),
        ("unet.multipliers", u.multipliers, min(u.multipliers, default=0) >= 1, "one or more numbers >= 1"),
        *((name, size, size >= 1, "at least 1") for name, size in sizes.items()),
        *((name, share, 0 <= share < 1, "at least 0 and below 1") for name, share in shares.items()),
    ]


def _are_weights(weights: tuple[float, ...]) -> bool:
    return len(weights) <= 2 and all(0 < weight < math.inf for weight in weights) and list(weights) == sorted(weights)


def from_dict(fields: object) -> Recipe:
    """A recipe from the JSON of a run's config.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type.
    """
    try:
        values: dict[str, Any] = dict(fields)  # type: ignore[call-overload]
        kind, evaluation = (ImageRecipe, ImageEvaluation) if "backbone" in values else (Recipe, Evaluation)
        values["network"] = Network(**values["network"])
        values["optimiser"] = Optimiser(**values["optimiser"])
        values["evaluation"] = evaluation(**_tuples(values["evaluation"]))
        if kind is ImageRecipe:
            values["unet"], values["dit"] = UNetNetwork(**_tuples(values["unet"])), DiTNetwork(**values["dit"])
        recipe = kind(**_tuples(values))
        validate(recipe)
    except (TypeError, KeyError) as error:
        raise ValueError(f"the run's config.json has no recipe that this version reads ({error}).") from None
    return recipe


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
