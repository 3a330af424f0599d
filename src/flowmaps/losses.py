"""Weights w_{s,t}: how residuals add up to a loss.

A residual `(B, *shape)` has one squared norm a row, a sum over dimensions; a weight turns these into the terms whose
mean over the batch is the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .interpolants import Interpolant
from .nn.embeddings import Fourier
from .shapes import Batch, Time, per_row


def squared(residual: Batch) -> Time:
    """|r|^2, summed over dimensions: `(B, *shape) -> (B,)`."""
    return per_row(residual.square())


class Weight(nn.Module, ABC):
    """A weight w_{s,t}, applied to distances."""

    @abstractmethod
    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        """Weighted distances from the distances, their times and the share of a first leg, each `(B,)`."""


class Constant(Weight):
    """w = value."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        if value <= 0:
            raise ValueError(f"Constant needs value > 0, got {value}.")
        self.value = value

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
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

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        return torch.where((t - s).abs() <= self.width, distance, 0)


class Power(Weight):
    """w = |t - s|^exponent; 2 turns a loss on u into the loss on X."""

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
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

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
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

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
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

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        w: Tensor = self.net(torch.cat([self.time(s), self.time(t)], 1))[:, 0]
        return torch.exp(-w) * distance + w


class OnJump(Weight):
    """Another weight, of the distance of X rather than of u: |(t - s) r|^2.

    Args:
        weight: the weight, or distance such as `PseudoHuber`; `OnJump(Constant())` is `Power(2)`.
    """

    def __init__(self, weight: Weight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        return self.weight((t - s).square() * distance, s, t, split)


class PerNoise(Weight):
    """Another weight over the noise that the first leg takes away, sigma_s - sigma_w with sigma = omega / beta.

    iCT's lambda = 1 / (sigma_{i+1} - sigma_i) (2310.14189, equation 9), ECT's 1 / (t - r) (2406.14548).

    Args:
        weight: the weight, or distance such as `PseudoHuber`.
        interpolant: the path.
        scale: deviation of the base.
        highest: greatest difference, the papers' greatest sigma; at s = 0 sigma is infinite on most paths.
    """

    def __init__(self, weight: Weight, interpolant: Interpolant, scale: float = 1.0, highest: float = 80.0) -> None:
        super().__init__()
        self.weight, self.interpolant, self.scale, self.highest = weight, interpolant, scale, highest

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        if split is None:
            raise ValueError("PerNoise is for a composition of two legs: it needs the share of the first.")
        here, after = (self.interpolant.noise_to_signal(r, self.scale) for r in (s, torch.lerp(s, t, split)))
        lost = torch.where(here == after, 0, here - after)  # both may be infinite
        return self.weight(distance, s, t, split) / torch.maximum(lost, 1e-4 * here).clamp_max(self.highest)


class SplitPower(Weight):
    """Another weight times l^exponent, l the share of the first leg: AlphaFlow's (2510.20771, definition 1).

    Args:
        exponent: -1 makes the gradient of |l r|^2 that of |r|^2 / 2 with a fixed target; 1 with `Adaptive` does so too.
        weight: the weight; 1 unless given.
    """

    def __init__(self, exponent: float, weight: Weight | None = None) -> None:
        super().__init__()
        self.exponent, self.weight = exponent, Constant() if weight is None else weight

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        if split is None:
            raise ValueError("SplitPower is for a composition of two legs: it needs the share of the first.")
        return split**self.exponent * self.weight(distance, s, t, split)


class TruncatedSNR(Weight):
    """max(SNR_s, 1) |difference of denoisers|^2, of a jump as long as the denoiser's (2202.00512, section 4).

    A jump along a denoiser D from s to t is omega_t / omega_s x + (beta_t - beta_s omega_t / omega_s) D, so that

        w  =  max(beta_s^2, omega_s^2) ((t - s) / (beta_t omega_s - beta_s omega_t))^2:  max(s^2, (1 - s)^2) if linear.

    Args:
        interpolant: the path.
        scale: deviation of the base.
    """

    def __init__(self, interpolant: Interpolant, scale: float = 1.0) -> None:
        super().__init__()
        self.interpolant, self.scale = interpolant, scale

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        path = self.interpolant
        omega, beta = path.omega(s, self.scale), path.beta(s)
        moved = path.beta(t) * omega - beta * path.omega(t, self.scale)
        slope = path.beta_dot(s) * omega - beta * path.omega_dot(s, self.scale)  # its limit over t - s
        ratio = torch.where(t == s, 1 / slope, (t - s) / torch.where(t == s, 1, moved))
        return torch.maximum(omega, beta).square() * ratio.square() * distance
