"""What a folder of several trainings was begun with, compared with what a process comes with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
    old = _flat(before)
    for name, value in _flat(now).items():
        if old.get(name) != value:
            option = words.get(name) or f"--{name.removeprefix('options.').replace('_', '-')}"
            raise ValueError(
                f"{folder} was begun with {option} {old.get(name)}, got {value}: {way} with what it began with, or "
                "choose another --out."
            )


def _flat(values: Row, prefix: str = "") -> Row:
    """Nested objects of a JSON text as one, with names such as `options.optimiser.batch`."""
    flat: Row = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
