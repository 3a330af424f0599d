"""What a folder of several trainings was begun with, compared with what a process comes with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .measure import Row


def check_same(folder: Path, before: Row, now: Row, words: Mapping[str, str], way: str) -> None:
    """Refuse to go on with what a folder has under other options than it was begun with.

    Args:
        folder: with what was begun.
        before: what it was begun with, as JSON has it; options of the recipe under `options`.
        now: what the process comes with, likewise; what `before` has besides is not compared.
        words: for entries that are no options, what to call them.
        way: what to do, for the error.

    Raises:
        ValueError: an entry differs.
    """
    old, new = _flat(before), _flat(now)
    differing = [name for name in new if old.get(name) != new[name]]
    first = next((name for name in differing if name in words), None)  # options of another recipe would only follow it
    if first is not None:
        began, got = f"{words[first]} {old.get(first)}", new[first]
    else:
        began, got = (", ".join(_typed(name, values.get(name)) for name in differing) for values in (old, new))
    if differing:
        way = f"{way} with what it began with, or choose another --out"
        raise ValueError(f"{folder} was begun with {began}, got {got}: {way}.")


def _typed(name: str, value: Any) -> str:
    """An option as one would type it."""
    group, dot, field = name.removeprefix("options.").replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"--{group}{dot}{'' if value else 'no-'}{field}"
    given = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return f"--{group}{dot}{field} {given}"


def _flat(values: Row, prefix: str = "") -> Row:
    """Nested objects of a JSON text as one, with names such as `options.optimiser.batch`."""
    flat: Row = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
