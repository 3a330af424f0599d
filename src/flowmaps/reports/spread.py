"""Figures over several seeds: their mean and spread, and the places in a ranking that the spread leaves open.

    mean = 1/n sum_i v_i,      std = (1/(n - 1) sum_i (v_i - mean)^2)^(1/2),      interval = [mean - std, mean + std]

A method's rank is the range of places that the intervals leave open: after every method whose whole interval lies below
its own, before every method whose whole interval lies above. Two methods whose intervals overlap share a place.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..evaluation.measure import Row
from ..evaluation.quality import Quality

SENTENCE = (
    "Rank: the places that the intervals of mean ± standard deviation leave open, after every method whose whole "
    "interval is below its own and before every method whose whole interval is above; a method of one seed has none, "
    "and is not counted in those of others."
)


@dataclass(frozen=True)
class Spread:
    """The values of one figure over the seeds.

    Attributes:
        mean: of the finite values; NaN where there are none.
        std: sample standard deviation; `None` of fewer than two values.
        lost: seeds without a finite value, such as those that diverged.
    """

    mean: float
    std: float | None
    lost: int = 0

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """The spread of values, a seed each; `None` for a seed without one."""
        finite = [value for value in values if value is not None and math.isfinite(value)]
        std = statistics.stdev(finite) if len(finite) > 1 else None
        return cls(statistics.fmean(finite) if finite else math.nan, std, len(values) - len(finite))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Mean less and plus the standard deviation, without upper bound where a seed is lost; `None` of one seed."""
        if self.std is None:
            return None
        return self.mean - self.std, math.inf if self.lost else self.mean + self.std


def places(intervals: Mapping[str, tuple[float, float]]) -> dict[str, tuple[int, int]]:
    """The first and last place of each that its interval leaves open, from 1, less is better."""
    found = {}
    for name, (low, high) in intervals.items():
        below = sum(other_high < low for _, other_high in intervals.values())
        above = sum(other_low > high for other_low, _ in intervals.values())
        found[name] = 1 + below, len(intervals) - above
    return found


# rows of a comparison -------------------------------------------------------------------------------------------------


def of_steps(rows: Sequence[Row], quality: Quality) -> dict[str, dict[int, Spread]]:
    """The quality of each method's map in each number of steps that a seed of it has, over its seeds."""
    maps = [row for row in rows if row["sampler"] == "map"]
    found: dict[str, dict[int, Spread]] = {}
    for method in dict.fromkeys(row.get("method", "map") for row in maps):
        mine = [row for row in maps if row.get("method", "map") == method]
        diverged = sum("steps" not in row for row in mine)
        steps = sorted({row["steps"] for row in mine if "steps" in row})
        found[method] = {}
        for n in steps:  # a number that was asked for twice has two rows of a seed
            of_seeds = {row.get("seed"): quality.of(row) for row in mine if row.get("steps") == n}
            found[method][n] = Spread.of([*of_seeds.values(), *[None] * diverged])
    return found


def several_seeds(rows: Sequence[Row]) -> bool:
    """Whether a method has been trained with two seeds or more."""
    pairs = {(row.get("method"), row.get("seed")) for row in rows}
    return len(pairs) > len({method for method, _ in pairs})


def nearest_four(steps: Sequence[int]) -> int:
    """The number of steps nearest to four, the lower one of two."""
    return min(steps, key=lambda n: (abs(n - 4), n))
