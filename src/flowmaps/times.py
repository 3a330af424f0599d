"""Laws (distributions) of the times of an objective: of pairs (s, t) in [0, 1]^2, and of a composition's first leg.

A law of pairs is a map of three uniform numbers for each row to (s, t):

    Diagonal      s = t uniform                       Square, Triangle    (s, t) uniform, on s <= t
    ToData        t = 1, s uniform                    FromBase            s = 0, t uniform
    Strip         |t - s| <= width                    Interval            t - s logit-normal
    Gap           t - s, then t logit-normal          StartAndEnd         s and t logit-normal, each by its own numbers
    LogitNormal, LogNormal, TowardsData, Within       another law of pairs, both times through one monotone function
    Snapped, Cell, Dyadic                             times on equal grids
    Mixture                                           one of two laws, row by row

A leg law gives the share l of [s, t] that the first leg of X_{w,t}(X_{s,w}(x)) covers: w = s + l (t - s).
`progress`, in [0, 1], is the share of the training steps that have been taken, for laws with a schedule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .interpolants import Interpolant
from .schedules import Anneal
from .shapes import Time


class Times(ABC):
    """A distribution of pairs (s, t)."""

    @abstractmethod
    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        """The times (s, t), each `(B,)`, from independent uniform numbers, `(3, B)`."""

    def draw(
        self, rows: int, generator: torch.Generator | None = None, progress: float = 1.0, like: Tensor | None = None
    ) -> tuple[Time, Time]:
        """Draw the times (s, t) of `rows` rows, each `(rows,)`, of the type and on the device of `like`."""
        dtype = torch.float32 if like is None else like.dtype
        device = None if like is None else like.device
        return self.pair(torch.rand(3, rows, dtype=dtype, device=device, generator=generator), progress)


@dataclass(frozen=True)
class Diagonal(Times):
    """s = t uniform: velocity matching."""

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        return uniforms[0], uniforms[0]


@dataclass(frozen=True)
class Square(Times):
    """s and t uniform and independent, both orders."""

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        return uniforms[0], uniforms[1]


@dataclass(frozen=True)
class Triangle(Times):
    """(s, t) uniform on s <= t: the smaller and the larger of two uniform times."""

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        return torch.minimum(uniforms[0], uniforms[1]), torch.maximum(uniforms[0], uniforms[1])


@dataclass(frozen=True)
class Strip(Times):
    """Uniform on the strip |t - s| <= width of the square (2406.07507, section 3.4: easier than the whole square).

    Args:
        width: in (0, 1], or a schedule `progress -> width` such as `Anneal(0.1, 1.0)`.
        ordered: whether s <= t; else both orders have probability 1/2.
    """

    width: float | Anneal
    ordered: bool = False

    def __post_init__(self) -> None:
        ends = (self.width.start, self.width.end) if isinstance(self.width, Anneal) else (self.width,)
        if not all(0 < width <= 1 for width in ends):
            raise ValueError(f"Strip needs a width in (0, 1], got {self.width}.")

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        width = self.width(progress) if isinstance(self.width, Anneal) else self.width
        # the gap h = |t - s| has density proportional to 1 - h on [0, width]
        gap = 1 - (1 - uniforms[0] * (1 - (1 - width) ** 2)).sqrt()
        low = uniforms[1] * (1 - gap)
        high = low + gap
        forward = torch.ones_like(low, dtype=torch.bool) if self.ordered else uniforms[2] < 0.5
        return torch.where(forward, low, high), torch.where(forward, high, low)


@dataclass(frozen=True)
class ToData(Times):
    """t = 1, s uniform: consistency models."""

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        return uniforms[0], torch.ones_like(uniforms[0])


@dataclass(frozen=True)
class FromBase(Times):
    """s = 0, t uniform: the line that bounds the error of one-step sampling (2406.07507, proposition 3.9)."""

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        return torch.zeros_like(uniforms[0]), uniforms[0]


@dataclass(frozen=True)
class Mixture(Times):
    """Each row from `first` with probability `share`, else from `second`.

    Args:
        first, second: laws of pairs.
        share: probability of `first`, in [0, 1].
    """

    first: Times
    second: Times
    share: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"Mixture needs a share in [0, 1], got {self.share}.")

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        # given the choice, what is left of its uniform number is uniform again: the chosen law gets it
        choice = uniforms[2] < self.share
        rest = torch.where(
            choice, uniforms[2] / max(self.share, 1e-9), (uniforms[2] - self.share) / max(1 - self.share, 1e-9)
        )
        again = torch.stack([uniforms[0], uniforms[1], rest.clamp(0, 1)])
        (s0, t0), (s1, t1) = self.first.pair(again, progress), self.second.pair(again, progress)
        return torch.where(choice, s0, s1), torch.where(choice, t0, t1)


@dataclass(frozen=True)
class TowardsData(Times):
    """Another law with its times nearer to the data, t <- 1 - (1 - t)^power, where the details of samples form.

    Args:
        law: a law of pairs.
        power: at least 1, which changes nothing; with 2 a uniform time gets the density 1 / (2 sqrt(1 - t)).
    """

    law: Times
    power: float = 2.0

    def __post_init__(self) -> None:
        if self.power < 1:
            raise ValueError(f"TowardsData needs power >= 1, got {self.power}.")

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        s, t = self.law.pair(uniforms, progress)
        return 1 - (1 - s) ** self.power, 1 - (1 - t) ** self.power


@dataclass(frozen=True)
class Within(Times):
    """Another law between two times, t <- low + (high - low) t, for paths or teachers that must not reach an end.

    Args:
        law: a law of pairs.
        low, high: the bounds, 0 <= low < high <= 1.
    """

    law: Times
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"Within needs 0 <= low < high <= 1, got {self.low} and {self.high}.")

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        s, t = (self.low * (1 - r) + self.high * r for r in self.law.pair(uniforms, progress))
        return s, t


@dataclass(frozen=True)
class LogitNormal(Times):
    """Another law of uniform times, made logit-normal by t <- sigmoid(mean + std Phi^-1(t)) (2403.03206).

    Args:
        law: a law of pairs of uniform times; their order stays.
        mean, std: of logit t. The mean -0.4 of MeanFlow, whose time runs from data to noise, is 0.4 here.
    """

    law: Times
    mean: float = 0.4
    std: float = 1.0

    def __post_init__(self) -> None:
        _positive_std("LogitNormal", self.std)

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        s, t = (_logit_normal(r, self.mean, self.std) for r in self.law.pair(uniforms, progress))
        return s, t


@dataclass(frozen=True)
class Interval(Times):
    """t - s logit-normal, then s uniform in [0, 1 - (t - s)] (Align your flow, 2506.14603).

    Args:
        mean, std: of logit (t - s).
    """

    mean: float = -0.8
    std: float = 1.0

    def __post_init__(self) -> None:
        _positive_std("Interval", self.std)

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        length = _logit_normal(uniforms[0], self.mean, self.std)
        s = uniforms[1] * (1 - length)
        return s, s + length


@dataclass(frozen=True)
class Gap(Times):
    """t - s logit-normal, then t logit-normal among the times that leave room for it: long jumps (2511.19797).

    Args:
        mean, std: of logit (t - s).
        end_mean, end_std: of logit t, before it is cut off below t - s. The paper's -0.4, in a time that runs from data
            to noise, is 0.4 here.
    """

    mean: float = -0.8
    std: float = 1.0
    end_mean: float = 0.4
    end_std: float = 1.0

    def __post_init__(self) -> None:
        _positive_std("Gap", self.std)
        _positive_std("Gap", self.end_std)

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        length = _logit_normal(uniforms[0], self.mean, self.std)
        least = (torch.logit(length) - self.end_mean) / self.end_std
        # drawn by the upper tail Q, which does not round to one; where Q rounds to zero, log Q(z) is about -z^2 / 2
        above = torch.erfc(least / math.sqrt(2)) / 2 * (1 - uniforms[1])  # special.ndtr(-least) rounds to zero early
        far = (least.square() - 2 * torch.log1p(-uniforms[1])).sqrt()
        furthest = 0.75 * math.sqrt(-2 * math.log(torch.finfo(least.dtype).tiny))
        z = torch.where(least > furthest, far, -torch.special.ndtri(above))
        t = torch.maximum(torch.sigmoid(self.end_mean + self.end_std * z), length)
        return t - length, t


@dataclass(frozen=True)
class StartAndEnd(Times):
    """s and t logit-normal, each by its own numbers and independent; t is raised to s where it is smaller (SoFlow).

    Args:
        mean, std: of logit s. The paper's 0.2, in a time that runs from data to noise, is -0.2 here.
        end_mean, end_std: of logit t.

    Reference: T. Luo et al., 2025, arXiv 2512.15657.
    """

    mean: float = -0.2
    std: float = 0.8
    end_mean: float = 1.0
    end_std: float = 0.8

    def __post_init__(self) -> None:
        _positive_std("StartAndEnd", self.std)
        _positive_std("StartAndEnd", self.end_std)

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        s = _logit_normal(uniforms[0], self.mean, self.std)
        return s, torch.maximum(s, _logit_normal(uniforms[1], self.end_mean, self.end_std))


@dataclass(frozen=True)
class LogNormal(Times):
    """Another law of uniform times, made log-normal in sigma = omega / beta (2206.00364): the times 0 and 1 stay.

        log sigma = mean - std Phi^-1(t)

    Args:
        law: a law of pairs of uniform times.
        interpolant: the path of omega and beta.
        mean, std: of log sigma; EDM's are -1.2 and 1.2, for data of standard deviation 1/2.
        scale: standard deviation of the base.
    """

    law: Times
    interpolant: Interpolant
    mean: float = -1.2
    std: float = 1.2
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive_std("LogNormal", self.std)

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        s, t = (
            self.interpolant.time_of(torch.exp(self.mean - self.std * torch.special.ndtri(r)), self.scale)
            for r in self.law.pair(uniforms, progress)
        )
        return s, t


def _logit_normal(uniform: Tensor, mean: float, std: float) -> Tensor:
    """sigmoid(mean + std Phi^-1(uniform)), `(B,)`."""
    return torch.sigmoid(mean + std * torch.special.ndtri(uniform))


def _positive_std(name: str, std: float) -> None:
    if not 0 < std < math.inf:
        raise ValueError(f"{name} needs a finite std > 0, got {std}.")


def grid(steps: int, start: float = 0.0, end: float = 1.0) -> list[float]:
    """The uniform grid of `steps` steps from `start` to `end`, both included.

    Raises:
        ValueError: fewer than one step, or an end outside [0, 1].
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    check_grid([start, end])
    return [start + (end - start) * k / steps for k in range(steps)] + [end]


def check_grid(times: list[float]) -> None:
    """Check that a grid is strictly rising or strictly falling inside [0, 1].

    Raises:
        ValueError: fewer than two times, a time outside [0, 1], or a grid that is neither rising nor falling.
    """
    ups = [b > a for a, b in pairwise(times)]
    downs = [b < a for a, b in pairwise(times)]
    if len(times) < 2 or min(times) < 0 or max(times) > 1 or not (all(ups) or all(downs)):
        raise ValueError(
            f"a grid needs at least two times in [0, 1], all rising (to data) or all falling (to noise), got {times}."
        )


# pairs on equal grids -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapped(Times):
    """Another law rounded to a grid of equal cells: s down and t up, so that at least one cell lies between them.

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
    """A random cell of an equal grid, (s, t) = (k / cells, (k + 1) / cells): progressive distillation (2202.00512).

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
        levels: number of lengths. The paper has 7, from 1 to 1/64: its shortest step, 1/128, is only a leg.
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
        ValueError: the number is below 1.
    """
    number = cells(progress) if callable(cells) else cells
    if number < 1:
        raise ValueError(f"a grid needs at least one cell, got {number}.")
    return number


# laws of the first leg ------------------------------------------------------------------------------------------------


class LegLaw(ABC):
    """A distribution of the share l of [s, t] that the first leg of a composition covers, w = s + l (t - s)."""

    @abstractmethod
    def share(self, uniform: Time, s: Time, t: Time, progress: float = 1.0) -> Time:
        """l, `(B,)` in [0, 1], from one uniform number for each row, its times and the progress of training."""


@dataclass(frozen=True)
class UniformLeg(LegLaw):
    """l uniform in [0, 1] (PSD-U, 2505.18825; SplitMeanFlow, 2507.16884)."""

    def share(self, uniform: Time, s: Time, t: Time, progress: float = 1.0) -> Time:
        return uniform


@dataclass(frozen=True)
class FixedLeg(LegLaw):
    """l the same for all rows.

    Args:
        value: in [0, 1], or a schedule `progress -> l` such as `Sigmoid()`.
    """

    value: float | Callable[[float], float] = 0.5

    def share(self, uniform: Time, s: Time, t: Time, progress: float = 1.0) -> Time:
        value = self.value(progress) if callable(self.value) else self.value
        if not 0 <= value <= 1:
            raise ValueError(f"FixedLeg needs l in [0, 1], got {value}.")
        return torch.full_like(s, value)


@dataclass(frozen=True)
class CellLeg(LegLaw):
    """A first leg of one cell of an equal grid, never beyond t: consistency models.

    On `VarianceExploding(80, 7)` equal cells of t are EDM's grid in sigma.

    Args:
        cells: number of cells in [0, 1], or a schedule `progress -> number`.
    """

    cells: int | Callable[[float], int]

    def share(self, uniform: Time, s: Time, t: Time, progress: float = 1.0) -> Time:
        length = 1 / count(self.cells, progress)
        return (length / (t - s).abs()).clamp_max(1)  # 1 at s = t, where the quotient is infinite


@dataclass(frozen=True)
class ShrinkingLeg(LegLaw):
    """A first leg that lowers sigma = omega / beta by a factor, which comes nearer to 1 in stages (ECT, 2406.14548).

        sigma_w = sigma_s (1 - n(sigma_s) / q^a)_+,   n(sigma) = 1 + k sigmoid(-b sigma),   a = 1..stages in training.

    Args:
        interpolant: the path.
        q, k, b: the paper's constants.
        stages: number of equal parts of training; in each the leg is q times as short as in the one before.
        scale: standard deviation of the base.
    """

    interpolant: Interpolant
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    stages: int = 8
    scale: float = 1.0

    def share(self, uniform: Time, s: Time, t: Time, progress: float = 1.0) -> Time:
        a = 1 + min(math.floor(progress * self.stages), self.stages - 1)
        sigma = self.interpolant.noise_to_signal(s, self.scale)
        factor = (1 - (1 + self.k * torch.sigmoid(-self.b * sigma)) / self.q**a).clamp_min(0)
        w = self.interpolant.time_of(torch.where(factor > 0, sigma, 0) * factor, self.scale)
        return ((w - s) / torch.where(t == s, 1, t - s)).clamp(0, 1)
