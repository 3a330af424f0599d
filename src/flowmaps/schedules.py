"""Schedules: numbers that change during training, as functions of its progress p.

    Anneal        start + (end - start) min(p / until, 1)
    Geometric     start (end / start)^p
    Sigmoid       1 - sigmoid(steepness (p - middle) / span), from 1 down to a floor
    SquareRoot, Doubling, Halving    numbers of cells of a grid, for consistency models and progressive distillation

p, in [0, 1], is the share of the training steps that have been taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Anneal:
    """Linear from `start` at p = 0 to `end` at p = `until`, constant afterwards."""

    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(f"Anneal needs 0 < until <= 1, got {self.until}.")

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * min(progress / self.until, 1.0)


@dataclass(frozen=True)
class Geometric:
    """start (end / start)^p, from `start` to `end`, both positive: SoFlow's first leg (2512.15657)."""

    start: float
    end: float

    def __post_init__(self) -> None:
        if not (0 < self.start < math.inf and 0 < self.end < math.inf):
            raise ValueError(f"Geometric needs finite start and end > 0, got {self.start} and {self.end}.")

    def __call__(self, progress: float) -> float:
        return self.start * (self.end / self.start) ** progress


@dataclass(frozen=True)
class SquareRoot:
    """ceil(sqrt(p ((end + 1)^2 - start^2) + start^2) - 1) cells, from start - 1 to end: CT (2303.01469, appendix C).

    The paper counts the times of the grid, which are one more than its cells.
    """

    start: int = 2
    end: int = 150

    def __call__(self, progress: float) -> int:
        squared = progress * ((self.end + 1) ** 2 - self.start**2) + self.start**2
        return math.ceil(round(math.sqrt(squared) - 1, 9))


@dataclass(frozen=True)
class Doubling:
    """start, 2 start, 4 start, ... cells, up to `end`, in equal parts of training: iCT (2310.14189, equation 11)."""

    start: int = 10
    end: int = 1280

    def __call__(self, progress: float) -> int:
        stages = math.floor(math.log2(self.end // self.start)) + 1
        return min(self.start * 2 ** math.floor(progress * stages), self.end)


@dataclass(frozen=True)
class Halving:
    """start, start / 2, ..., 1 cells in equal parts of training, the rounds of progressive distillation.

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
    """From 1 down to `floor` along a sigmoid between p = `start` and p = `end`: AlphaFlow's alpha (2510.20771).

    1 - sigmoid(steepness (p - (start + end) / 2) / (end - start)),    1 where above 1 - floor, floor where below it
    """

    start: float = 0.0
    end: float = 1.0
    steepness: float = 25.0
    floor: float = 5e-3

    def __call__(self, progress: float) -> float:
        from_middle, span = progress - 0.5 * (self.start + self.end), max(self.end - self.start, 1e-9)
        alpha = 1 / (1 + math.exp(min(max(self.steepness * from_middle / span, -700.0), 700.0)))
        return 1.0 if alpha > 1 - self.floor else max(alpha, self.floor)
