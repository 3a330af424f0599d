"""How much a test tries: all of it where slow tests run too (`make test SLOW=1`, CI), else a part."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

THOROUGH = bool(os.environ.get("FLOWMAPS_ALL_CASES"))


def cases(number: int, share: float = 0.2) -> int:
    """`number`, or that share of it where tests shall be quick; at least one."""
    return number if THOROUGH else max(1, round(share * number))


def pairs_of(*, every: int | None = None, indirect: Sequence[str] = (), **axes: Mapping[str, Any]) -> Any:
    """Parametrise a test by all combinations of entries of some axes, most of which are slow.

    The others are those whose places add up to a multiple of `every`: of three axes or more, each entry of an axis
    meets each entry of each other one in them; of two, each has a part of its partners; of one, a part is taken.

    Args:
        every: the length of the shortest axis unless given.
        indirect: the axes that are for the fixture of their name.
        axes: by the names of the test's arguments, each a mapping of ids to values.
    """
    step = every or min(map(len, axes.values()))
    cases = []
    for chosen in itertools.product(*(enumerate(axis.items()) for axis in axes.values())):
        ids, values = zip(*(entry for _, entry in chosen), strict=True)
        marks = [pytest.mark.slow] if sum(place for place, _ in chosen) % step else []
        cases.append(pytest.param(*values, id="-".join(ids), marks=marks))
    return pytest.mark.parametrize(",".join(axes), cases, indirect=list(indirect))


def named(values: Iterable[Any]) -> dict[str, Any]:
    """Values as an axis, by their words or by the names of functions."""
    return {getattr(value, "__name__", str(value)): value for value in values}
