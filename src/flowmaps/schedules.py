"""Schedules: numbers that change while training goes on.

A schedule is a function of progress, the share of the training steps that have been taken, in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Anneal:
    """A number that goes from `start` to `end` linearly while progress goes from 0 to `until`, then stays."""

    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(f"Anneal needs 0 < until <= 1, got {self.until}.")

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * min(progress / self.until, 1.0)


@dataclass(frozen=True)
class SquareRoot:
    """ceil(sqrt(p ((end + 1)^2 - start^2) + start^2) - 1) cells, start - 1 to end: CT (2303.01469, appendix C).

    The paper counts the times of the grid, one more than its cells.
    """

    start: int = 2
    end: int = 150

    def __call__(self, progress: float) -> int:
        squared = progress * ((self.end + 1) ** 2 - self.start**2) + self.start**2
        return math.ceil(round(math.sqrt(squared) - 1, 9))


@dataclass(frozen=True)
class Doubling:
    """Cells start, 2 start, 4 start, ... up to `end`, for equal parts of training: iCT (2310.14189, equation 11)."""

    start: int = 10
    end: int = 1280

    def __call__(self, progress: float) -> int:
        stages = math.floor(math.log2(self.end // self.start)) + 1
        return min(self.start * 2 ** math.floor(progress * stages), self.end)


@dataclass(frozen=True)
class Halving:
    """Cells start, start / 2, ..., 1, for equal parts of training: the rounds of progressive distillation.

    Args:
        start: cells of the first round, a power of two.
    """

    start: int = 32

    def __post_init__(self) -> None:
        if self.start < 1 or self.start & (self.start - 1):
            raise ValueError(f"Halving needs a power of two to start from, got {self.start}.")

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.start.bit_length()

    def __call__(self, progress: float) -> int:
        return self.start >> min(math.floor(progress * self.rounds), self.rounds - 1)


@dataclass(frozen=True)
class Sigmoid:
    """1 down to `floor` along a sigmoid of progress between `start` and `end`: AlphaFlow's alpha (2510.20771).

    1 - sigmoid(steepness (p - (start + end) / 2) / (end - start)),   put to 1 above 1 - floor, held at `floor`.
    """

    start: float = 0.0
    end: float = 1.0
    steepness: float = 25.0
    floor: float = 5e-3

    def __call__(self, progress: float) -> float:
        from_middle, span = progress - 0.5 * (self.start + self.end), max(self.end - self.start, 1e-9)
        alpha = 1 / (1 + math.exp(min(max(self.steepness * from_middle / span, -700.0), 700.0)))
        return 1.0 if alpha > 1 - self.floor else max(alpha, self.floor)
