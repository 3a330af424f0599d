"""What samplers are compared by: one metric for each kind of data, less is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .measure import Row


def is_lost(row: Row) -> bool:
    """Whether more than half of the samples of a row are lost."""
    return 2 * row.get("lost", 0) > row.get("samples", math.inf)


@dataclass(frozen=True)
class Quality:
    """An entry of a row, less that of its floor where it has one.

    Attributes:
        key: of the entry.
        name: with units; the features of images take the place of the key in it.
        floor: key of what a perfect sampler would read.
    """

    key: str
    name: str
    floor: str | None = None

    def of(self, row: Row) -> float | None:
        """The value of a row; `None` where it or its floor is missing or not finite, or most samples are lost."""
        value, floor = row.get(self.key), 0.0 if self.floor is None else row.get(self.floor)
        if value is None or floor is None or is_lost(row):
            return None
        return value - floor if math.isfinite(value - floor) else None

    def label(self, rows: Sequence[Row]) -> str:
        """The name; of images with the features, if all rows have the same."""
        names = {row.get(f"{self.key}_name") for row in rows if self.key in row}
        features = names.pop() if len(names) == 1 else None
        return self.name if features is None else self.name.replace(self.key.upper(), features, 1)


ABOVE_FLOOR = Quality("kl", "KL above floor [nats]", "kl_floor")
ENERGY = Quality("energy", "energy distance to data [units of x]")
ABOVE_REAL = Quality("fd", "FD above that of real images", "fd_floor")
QUALITIES = (ABOVE_FLOOR, Quality("kl", "KL [nats]"), ENERGY, ABOVE_REAL, Quality("fd", "FD"))


def quality_of(rows: Sequence[Row]) -> Quality:
    """The first of `QUALITIES` that a row of a map has, or else any row; the energy distance where none has any."""
    for some in ([row for row in rows if row["sampler"] == "map"], rows):
        for quality in QUALITIES:
            if any(quality.of(row) is not None for row in some):
                return quality
    return ENERGY


def is_measured(rows: Sequence[Row]) -> bool:
    """Whether a map has been measured."""
    return any(row["sampler"] == "map" and quality_of([row]).of(row) is not None for row in rows)
