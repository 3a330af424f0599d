"""What a folder of several trainings was begun with, compared with what a process comes with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ..runs.recipes import Recipe
from ..runs.recipes.found import option
from .measure import Row

RECIPE = "recipe"
"""The entry for the name of the recipe."""
USUAL = {"fewer": [], "options": json.loads(json.dumps(asdict(Recipe(name="any"))))}
"""What an entry was where it is missing: an earlier version did not have it."""


def check_same(folder: Path, before: Row, now: Row, words: Mapping[str, str], way: str) -> None:
    """Refuse to go on with what a folder has under other options than it was begun with.

    Args:
        folder: with what was begun.
        before: what it was begun with, as JSON has it; options of the recipe under `options`.
        now: what the process comes with, likewise; what `before` has besides is not compared.
        words: what to call entries that are no options. Of these a recipe that differs is named alone, and the others
            only where no option differs.
        way: what to do, for the error.

    Raises:
        ValueError: an entry differs.
    """
    new = _flat(now)
    old = {name: value for name, value in _flat(USUAL).items() if name in new} | _flat(before)
    differing = [name for name in new if old.get(name) != new[name]]
    if not differing:
        return
    if RECIPE in differing:  # whose options would only follow it
        differing = [RECIPE]
    elif typed := [name for name in differing if name not in words]:
        differing = typed
    began = ", ".join(f"{words[name]} {old.get(name)}" if name in words else _typed(name, old) for name in differing)
    got = ", ".join(str(new[name]) if name in words else _typed(name, new) for name in differing)
    raise ValueError(
        f"{folder} was begun with {began}, got {got}: {way} with what it began with, or choose another --out."
    )


def _typed(name: str, values: Row) -> str:
    """An option as one would type it."""
    field, value = name.removeprefix("options."), values.get(name)
    if value is None:
        return f"no {option(field)}"
    if isinstance(value, bool):
        return option(field, not value)
    return f"{option(field)} {' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"


def _flat(values: Row, prefix: str = "") -> Row:
    """Nested objects of a JSON text as one, with names such as `options.optimiser.batch`."""
    flat: Row = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
