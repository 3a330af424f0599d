"""Names: choosing by one, with a hint where it is misspelt, and what may stand in one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def choose(what: str, name: str, among: Mapping[str, T]) -> T:
    """The entry of a name.

    Args:
        what: a word for the entries in the message, such as "method".
        name: the name.
        among: the entries by name.

    Raises:
        ValueError: there is no such entry; suggests the nearest name.
    """
    if name in among:
        return among[name]
    near = difflib.get_close_matches(name, among, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {what} {name!r}: {hint}choose one of {', '.join(among)}.")


def printable(text: str) -> bool:
    """Whether a text has no control characters."""
    return text.isprintable()
