"""Steps: how far the first leg goes from s towards t, pairs on equal grids, and how both change during training.

A composition X_{w,t}(X_{s,w}(x)) meets at w = s + l (t - s). A law of the share l in [0, 1] is what sets consistency
training apart from its successors (one cell of a grid that grows finer), AlphaFlow from MeanFlow (l goes from 1 to 0),
and shortcut models from SplitMeanFlow (l = 1/2, or uniform).

A schedule is a function of progress, how far training has come, in [0, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .interpolants import Interpolant
from .shapes import Time
from .times import Times


class Split(ABC):
    """A law of the share l of [s, t] that the first leg covers."""

    @abstractmethod
    def share(self, uniform: Time, s: Time, t: Time, progress: float = 1.0) -> Time:
        """l, `(B,)` in [0, 1], from one uniform number a row, the row's times and progress."""


@dataclass(frozen=True)
class Uniform(Split):
    """l uniform in [0, 1] (PSD-U, 2505.18825; SplitMeanFlow, 2507.16884)."""

    def share(self, uniform: Time, s: Time, t: Time, progress: float = 1.0) -> Time:
        return uniform


@dataclass(frozen=True)
class Share(Split):
    """l the same for all rows.

    Args:
        value: in [0, 1], or a schedule `progress -> l` such as `Sigmoid()`.
    """

    value: float | Callable[[float], float] = 0.5

    def share(self, uniform: Time, s: Time, t: Time, progress: float = 1.0) -> Time:
        value = self.value(progress) if callable(self.value) else self.value
        if not 0 <= value <= 1:
            raise ValueError(f"Share needs l in [0, 1], got {value}.")
        return torch.full_like(s, value)


@dataclass(frozen=True)
class Step(Split):
    """A first leg of one cell of an equal grid, never beyond t: consistency models.

    On `VarianceExploding(80, 7)` equal cells of t are EDM's grid in sigma.

    Args:
        cells: number of cells in [0, 1], or a schedule `progress -> number`.
    """

    cells: int | Callable[[float], int]

    def share(self, uniform: Time, s: Time, t: Time, progress: float = 1.0) -> Time:
        length = 1 / count(self.cells, progress)
        return (length / (t - s).abs()).clamp_max(1)  # 1 where s = t: there is nowhere to go


@dataclass(frozen=True)
class Shrink(Split):
    """A first leg that lowers the noise-to-signal ratio r = omega / beta by a share of itself (ECT, 2406.14548).

        r_w = r_s (1 - n(r_s) / q^a)_+,   n(r) = 1 + k sigmoid(-b r),   a = 1..stages as training goes on.

    Args:
        interpolant: the path.
        q, k, b: the paper's constants.
        stages: how often the step shrinks by q.
        scale: deviation of the base.
    """

    interpolant: Interpolant
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    stages: int = 8
    scale: float = 1.0

    def share(self, uniform: Time, s: Time, t: Time, progress: float = 1.0) -> Time:
        a = 1 + min(math.floor(progress * self.stages), self.stages - 1)
        ratio = self.interpolant.noise_to_signal(s, self.scale)
        kept = (1 - (1 + self.k * torch.sigmoid(-self.b * ratio)) / self.q**a).clamp_min(0)
        w = self.interpolant.time_of(torch.where(kept > 0, ratio, 0) * kept, self.scale)
        return ((w - s) / torch.where(t == s, 1, t - s)).clamp(0, 1)


# pairs on equal grids -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapped(Times):
    """Another law on a grid of equal cells: s to the start of its cell, t to the end of its own, never closer.

    Args:
        law: a law with s <= t.
        cells: number of cells, or a schedule `progress -> number`.
    """

    law: Times
    cells: int | Callable[[float], int]

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        s, t = self.law.pair(uniforms, progress)
        cells = count(self.cells, progress)
        first = (s * cells).floor().clamp_max(cells - 1)
        return first / cells, torch.maximum((t * cells).ceil(), first + 1) / cells


@dataclass(frozen=True)
class Cell(Times):
    """One of the equal cells of [0, 1], (s, t) = (k / cells, (k + 1) / cells): progressive distillation (2202.00512).

    Args:
        cells: number of cells, or a schedule `progress -> number`.
    """

    cells: int | Callable[[float], int]

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        cells = count(self.cells, progress)
        k = (uniforms[0] * cells).floor().clamp_max(cells - 1)
        return k / cells, (k + 1) / cells


@dataclass(frozen=True)
class Dyadic(Times):
    """A cell of a random dyadic grid: t - s = 2^-k with k uniform in 0..levels - 1 (shortcut models, 2410.12557).

    Args:
        levels: number of lengths; the paper's shortest step 1/128 is never a jump of its own, so its 7 are 1..1/64.
    """

    levels: int = 7

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"Dyadic needs levels >= 1, got {self.levels}.")

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        cells = 2.0 ** (uniforms[0] * self.levels).floor().clamp_max(self.levels - 1)
        k = torch.minimum((uniforms[1] * cells).floor(), cells - 1)
        return k / cells, (k + 1) / cells


def count(cells: int | Callable[[float], int], progress: float) -> int:
    """The number of cells at this point of training.

    Raises:
        ValueError: it is below 1.
    """
    number = cells(progress) if callable(cells) else cells
    if number < 1:
        raise ValueError(f"a grid needs at least one cell, got {number}.")
    return number


# schedules ------------------------------------------------------------------------------------------------------------


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
