"""A griffe extension: `s, t: times` in a docstring stands for an entry each, so that every argument has its own."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(?:Args|Arguments|Attributes):\n(?:(?: .*)?\n?)+", re.M)
ENTRY = re.compile(r"^    (?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): (?P<words>.*(?:\n {5,}.*)*)", re.M)


def one_name_each(text: str) -> str:
    """A docstring in which each entry of its arguments and attributes has one name."""

    def split(match: re.Match[str]) -> str:
        return "\n".join(f"    {name}: {match['words']}" for name in match["names"].split(", "))

    return SECTION.sub(lambda section: ENTRY.sub(split, section[0]), text)


class OneNameEach(griffe.Extension):
    """Splits the entries of every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = one_name_each(obj.docstring.value)
