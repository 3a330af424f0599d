"""Weights w_{s,t}: how residuals add up to a loss.

A residual `(B, *shape)` has one squared norm a row, a sum over dimensions; a weight turns these into the terms whose
mean over the batch is the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .nn.embeddings import Fourier
from .shapes import Batch, Time, per_row


def squared(residual: Batch) -> Time:
    """|r|^2, summed over dimensions: `(B, *shape) -> (B,)`."""
    return per_row(residual.square())


class Weight(nn.Module, ABC):
    """A weight w_{s,t}, applied to distances."""

    @abstractmethod
    def forward(self, distance: Time, s: Time, t: Time) -> Time:
        """Weighted distances, `(B,)`, from the distances and their times, each `(B,)`."""


class Constant(Weight):
    """w = value."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        if value <= 0:
            raise ValueError(f"Constant needs value > 0, got {value}.")
        self.value = value

    def forward(self, distance: Time, s: Time, t: Time) -> Time:
        return self.value * distance


class StripWeight(Weight):
    """w = 1{|t - s| <= width}: the rows outside the strip count zero (2406.07507, section 3.4).

    Drawing inside the strip (`times.Strip`) costs less; this is for laws of (s, t) that are given.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        if not 0 < width <= 1:
            raise ValueError(f"StripWeight needs a width in (0, 1], got {width}.")
        self.width = width

    def forward(self, distance: Time, s: Time, t: Time) -> Time:
        return torch.where((t - s).abs() <= self.width, distance, 0)


class Power(Weight):
    """w = |t - s|^exponent; 2 turns a loss on u into the loss on X."""

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, distance: Time, s: Time, t: Time) -> Time:
        return (t - s).abs() ** self.exponent * distance


class Adaptive(Weight):
    """w = (d + c)^(-power), detached (MeanFlow, 2505.13447, section 4.3).

    With power 1 the weighted loss stays near 1 whatever happens: watch the unweighted residual.
    """

    def __init__(self, power: float = 1.0, offset: float = 1e-3) -> None:
        super().__init__()
        if offset <= 0:
            raise ValueError(f"Adaptive needs offset > 0, got {offset}.")
        self.power, self.offset = power, offset

    def forward(self, distance: Time, s: Time, t: Time) -> Time:
        return distance * (distance.detach() + self.offset) ** -self.power


class PseudoHuber(Weight):
    """sqrt(|r|^2 + c^2) - c in the place of |r|^2 (2310.14189, equation 8): squared near zero, linear far away.

    Args:
        scale: c, positive, in the units of the residual; the paper takes 0.00054 sqrt(number of dimensions).
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"PseudoHuber needs scale > 0, got {scale}.")
        self.scale = scale

    def forward(self, distance: Time, s: Time, t: Time) -> Time:
        return (distance + self.scale**2).sqrt() - self.scale


class Learned(Weight):
    """exp(-w_{s,t}) d + w_{s,t} with w a small network of (s, t) (EDM2, 2312.02696; 2505.18825, equation 17).

    At the optimum exp(w) is the mean distance at (s, t), so that every (s, t) counts alike.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.time = Fourier(4)
        self.net = nn.Sequential(nn.Linear(2 * self.time.width, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def forward(self, distance: Time, s: Time, t: Time) -> Time:
        w: Tensor = self.net(torch.cat([self.time(s), self.time(t)], 1))[:, 0]
        return torch.exp(-w) * distance + w
