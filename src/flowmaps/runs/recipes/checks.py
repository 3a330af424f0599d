"""Recipes from JSON, and the refusal of those that cannot run: of wrong types, out of range, in contradiction."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .fields import Optimiser, Recipe
from .images import ImageRecipe
from .ranges import ROWS, RULES, SCALING, digits


def validate(recipe: Recipe, processes: int = 1) -> None:
    """Refuse a recipe that cannot run, before anything heavy starts.

    Args:
        recipe: to be checked.
        processes: that share the rows of a step.

    Raises:
        ValueError: a field of the wrong type or out of range, or fields that contradict each other.
    """
    found = list(options(recipe))
    for rule in (_wrong_type, _out_of_range):  # a range is asked of the right type only
        for name, value, hint in found:
            if (allowed := rule(name, value, hint)) is not None:
                raise ValueError(f"--{name} must be {allowed}, got {_shown(value)}.")
    for contradiction in (*_rows(recipe, processes), *_averages(recipe.optimiser), *_others(recipe)):
        raise ValueError(contradiction)


def options(group: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each field of a recipe as an option, `optimiser.rate` and the like, with its value and its annotation."""
    hints = _hints(type(group))
    for field in fields(group):
        value, hint, name = getattr(group, field.name), hints[field.name], prefix + field.name.replace("_", "-")
        if is_dataclass(hint) and isinstance(value, hint):  # type: ignore[arg-type]
            yield from options(value, f"{name}.")
        else:
            yield name, value, hint


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


# types ---------------------------------------------------------------------------------------------------------------

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation of a recipe: a truth value is no number, a whole number is one."""
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(is_of(entry, get_args(hint)[0]) for entry in value)
    kinds = (int, float) if hint is float else (hint,)
    return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))


def in_words(hint: Any) -> str:
    """An annotation of a recipe, in words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple:
        return f"a list, each entry of it {in_words(get_args(hint)[0])}"
    return PLAIN.get(hint) or f"the options of a {hint.__name__}"


def _wrong_type(_: str, value: Any, hint: Any) -> str | None:
    return None if is_of(value, hint) else in_words(hint)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _out_of_range(name: str, value: Any, hint: Any) -> str | None:
    free = hint is bool or get_origin(hint) is Literal
    return None if free and name not in RULES else RULES[name](value)


# combinations --------------------------------------------------------------------------------------------------------


def _rows(recipe: Recipe, processes: int) -> Iterator[str]:
    o = recipe.optimiser
    parts = processes * o.accumulate
    ways = [f"{processes} processes"] * (processes > 1)
    ways += [f"--optimiser.accumulate {o.accumulate}"] * (o.accumulate > 1)
    whose = f" for {' with '.join(ways)}" if ways else ""
    if o.batch % parts:
        yield f"--optimiser.batch must be a multiple of {parts:,}{whose}, got {o.batch}."
    if o.batch < ROWS * parts:
        yield f"--optimiser.batch must be at least {ROWS * parts:,}, {ROWS} rows a part{whose}, got {o.batch}."


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
    if digits(float(o.ema)) in {digits(float(decay)) for decay in o.emas}:
        yield f"--optimiser.emas must be other decays than --optimiser.ema, got {o.ema:g} in both: leave it out."


def _others(recipe: Recipe) -> Iterator[str]:
    if recipe.keep_every % recipe.checkpoint_every:
        yield (
            f"--keep-every must be a multiple of --checkpoint-every, or no checkpoint would be kept for it, got "
            f"{recipe.keep_every} and {recipe.checkpoint_every}."
        )
    if recipe.precision == "float16" and recipe.patience < SCALING:
        yield (
            f"--patience must be at least {SCALING} with --precision float16, whose first steps may be skipped to find "
            f"the scale of the loss, got {recipe.patience}."
        )
    if recipe.guidance not in ((), (1,)) and not recipe.label_dropout:
        yield (
            "--label-dropout must be positive with --guidance, which leads away from what is learned without labels, "
            "got 0."
        )


# JSON ----------------------------------------------------------------------------------------------------------------


def from_dict(fields: object) -> Recipe:
    """A recipe from the JSON of a run's config; options that are younger than the run have their defaults.

    Raises:
        ValueError: a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        if not isinstance(fields, Mapping):
            raise ValueError(f"it must hold names and values, got {_shown(fields)}.")
        recipe = _read(ImageRecipe if "backbone" in fields else Recipe, fields, "")
        validate(recipe)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the run's config.json has no recipe that this version reads: {error}") from None
    return recipe


def _read(kind: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    """One of a recipe's dataclasses, JSON's lists as the tuples they were; a group of options must not be missing."""
    hints, known, given = _hints(kind), {field.name: field for field in fields(kind)}, dict[str, Any]()
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"it has {_shown(prefix + str(unknown[0]))}, which is no option.")
    for name, field in known.items():
        group = is_dataclass(hints[name])
        if name not in values:
            if group or (field.default is MISSING and field.default_factory is MISSING):
                raise ValueError(f"it has no {prefix}{name}.")
            continue
        value = values[name]
        if group:
            if not isinstance(value, Mapping):
                raise ValueError(f"--{prefix}{name} must be {in_words(hints[name])}, got {_shown(value)}.")
            value = _read(hints[name], value, f"{prefix}{name}.")
        given[name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)
