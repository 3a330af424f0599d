"""Words of a command line in which options that take names of columns may be given again, and take names with dashes.

    --drop-columns a --drop-columns=--x   ->   --drop-columns a (mark)--x

argparse keeps the last of several, and takes a word that begins with a dash for an option: the mark in front of such a
name, which no name has, is taken away again after parsing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar, get_origin

from ..data import TableOptions
from ..training import settings

T = TypeVar("T")
MARK = "\x1f"
LISTS = (
    *(
        f"--{name.replace('_', '-')}"
        for name, hint in settings.hints_of(TableOptions).items()
        if get_origin(settings.plain(hint)) is tuple
    ),
    "--condition",
    "--as-condition",
)
"""Options that take one or more names."""


def joined(words: Sequence[str]) -> list[str]:
    """The words with each of `LISTS` at most once, followed by all its names, and marks in front of dashes."""
    found: dict[str, list[str]] = {}
    others, current = list[str](), ""
    for word in words:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name  # which tyro takes for the same option
        if name in LISTS:
            found.setdefault(name, []).extend([MARK + value] if equals else [])
            current = "" if equals else name
        elif current and not _is_option(word):
            found[current].append(word)
        else:
            others.append(word)
            current = ""
    return [*others, *(word for name, names in found.items() for word in (name, *names))]


def _is_option(word: str) -> bool:
    """Whether a word is an option, as argparse sees it: no negative number."""
    try:
        float(word)
    except ValueError:
        return word.startswith("-") and word != "-"
    return False


def unmarked(value: T) -> T:
    """A parsed dataclass, text or list without marks."""
    found: Any = value
    if isinstance(value, str):
        found = value.removeprefix(MARK)
    elif isinstance(value, tuple):
        found = tuple(map(unmarked, value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        changed = {name: unmarked(entry) for name, entry in own.items()}
        if any(changed[name] != own[name] for name in own):
            found = dataclasses.replace(value, **changed)
    return found
