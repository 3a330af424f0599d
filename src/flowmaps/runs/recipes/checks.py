"""Recipes from JSON, and the refusal of those that cannot run: of wrong types, out of range, in contradiction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...training import settings
from ...training.optimisers import MIN_ROWS, Optimiser
from .fields import Recipe
from .images import ImageRecipe

FLOAT16_SKIPS = 16
"""Steps in a row that the scale of a loss in float16 may take to fall from 2^14 to below 1."""


def validate(recipe: Recipe, processes: int = 1) -> None:
    """Refuse a recipe that cannot run, before anything heavy starts.

    Args:
        recipe: to be checked.
        processes: that share the rows of a step.

    Raises:
        ValueError: a field of the wrong type or out of range, or fields that contradict each other.
    """
    settings.check(recipe)
    for contradiction in (*_rows(recipe, processes), *_averages(recipe.optimiser), *_others(recipe)):
        raise ValueError(contradiction)


def _rows(recipe: Recipe, processes: int) -> Iterator[str]:
    o = recipe.optimiser
    parts = processes * o.accumulate
    ways = [f"{processes} processes"] * (processes > 1)
    ways += [f"--optimiser.accumulate {o.accumulate}"] * (o.accumulate > 1)
    whose = f" for {' with '.join(ways)}" if ways else ""
    if o.batch % parts:
        yield f"--optimiser.batch must be a multiple of {parts:,}{whose}, got {o.batch}."
    if o.batch < MIN_ROWS * parts:
        yield f"--optimiser.batch must be at least {MIN_ROWS * parts:,}, {MIN_ROWS} rows a part{whose}, got {o.batch}."


def _averages(o: Optimiser) -> Iterator[str]:
    if o.weight_decay and o.kind == "adam":
        yield (
            f"--optimiser.kind adam decays no weights, got --optimiser.weight-decay {o.weight_decay:g}: take "
            "--optimiser.kind adamw, or leave it out."
        )
    if o.weight_decay * o.rate >= 1:
        yield (
            f"--optimiser.weight-decay times --optimiser.rate must be below 1, got {o.weight_decay:g} x {o.rate:g}: "
            "weights would change their sign."
        )
    if not settings.without_repeats((float(o.ema), *map(float, o.emas))):
        yield f"--optimiser.emas must be other decays than --optimiser.ema, got {o.ema:g} in both: leave it out."


def _others(recipe: Recipe) -> Iterator[str]:
    if recipe.keep_every % recipe.checkpoint_every:
        yield (
            f"--keep-every must be a multiple of --checkpoint-every, or no checkpoint would be kept for it, got "
            f"{recipe.keep_every} and {recipe.checkpoint_every}."
        )
    if recipe.precision == "float16" and recipe.patience < FLOAT16_SKIPS:
        yield (
            f"--patience must be at least {FLOAT16_SKIPS} with --precision float16, whose first steps may be skipped "
            f"to find the scale of the loss, got {recipe.patience}."
        )
    if recipe.guidance not in ((), (1,)) and not recipe.label_dropout:
        yield (
            "--label-dropout must be positive with --guidance, which leads away from what is learned without labels, "
            "got 0."
        )


def from_dict(fields: object) -> Recipe:
    """A recipe from the JSON of a run's config; options that are younger than the run have their defaults.

    Raises:
        ValueError: a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        if not isinstance(fields, Mapping):
            raise ValueError(f"it must hold names and values, got {settings.shown(fields)}.")
        recipe = settings.read(ImageRecipe if "backbone" in fields else Recipe, fields)
        validate(recipe)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the run's config.json has no recipe that this version reads: {error}") from None
    return recipe
