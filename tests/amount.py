"""How much a test tries: all of it where slow tests run too (`make test SLOW=1`, CI), else a part."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

import pytest

THOROUGH = bool(os.environ.get("FLOWMAPS_ALL_CASES"))


def cases(number: int, share: float = 0.2) -> int:
    """`number`, or that share of it where tests shall be quick; at least one."""
    return number if THOROUGH else max(1, round(share * number))


def pairs_of(**axes: Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parametrise a test by all combinations of entries of some axes, three or more, most of which are slow.

    The others are those whose places add up to a multiple of the length of the shortest axis: among them each entry
    of an axis meets each entry of each other one.

    Args:
        axes: by the names of the test's arguments, each a mapping of ids to values.
    """
    shortest = min(map(len, axes.values()))
    cases = []
    for chosen in itertools.product(*(enumerate(axis.items()) for axis in axes.values())):
        ids, values = zip(*(entry for _, entry in chosen), strict=True)
        marks = [pytest.mark.slow] if sum(place for place, _ in chosen) % shortest else []
        cases.append(pytest.param(*values, id="-".join(ids), marks=marks))
    return pytest.mark.parametrize(",".join(axes), cases)
