"""How a residual becomes a loss: a distance d of each row, and a weight w_{s,t} on it.

    loss  =  mean over the batch of w_{s,t} d(r),        r = prediction - target,  `(B, *shape)`

A **distance** is any callable `(B, *shape) -> (B,)` of the residual: `squared` (the default), `absolute`,
`PseudoHuber`, `Huber`, `Cauchy`, or a function or module of your own. All objectives and methods take it, `distance=`:

    mask = torch.ones(3, 32, 32)                                    # a weight for each pixel
    methods.meanflow(flow_map, distance=lambda residual: (mask * residual.square()).flatten(1).sum(1))

A distance of two images rather than of their difference, such as LPIPS, is wrapped in `Perceptual`:

    net = lpips.LPIPS(net="vgg")
    methods.consistency_training(flow_map, distance=Perceptual(lambda one, other: net(one, other).flatten()))

A **weight** multiplies distances by w_{s,t}; `Learned` also adds the term that keeps its w from growing without bound.
`Loss.parts` holds the squared norms of the residuals, whatever the distance and the weight.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .interpolants import Interpolant
from .nn.embeddings import Fourier
from .shapes import Batch, Time, per_row

Distance: TypeAlias = Callable[..., Tensor]
"""A distance of the residual, `(B, *shape) -> (B,)`, or a `Perceptual`."""


# distances ------------------------------------------------------------------------------------------------------------


def squared(residual: Batch) -> Time:
    """|r|^2, summed over dimensions: `(B, *shape) -> (B,)`."""
    return per_row(residual.square())


def absolute(residual: Batch) -> Time:
    """The L1 norm, sum of |r_i| over dimensions: `(B, *shape) -> (B,)`."""
    return per_row(residual.abs())


class PseudoHuber(nn.Module):
    """sqrt(|r|^2 + c^2) - c of the whole row (2310.14189, equation 8): quadratic near zero, the norm far away.

    Args:
        scale: c, positive, in the units of the residual; unless given the paper's, 0.00054 sqrt(d) for a residual of d
            dimensions.

    Raises:
        ValueError: `scale` is not positive.
    """

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"PseudoHuber needs a finite scale > 0, got {scale}.")
        self.scale = scale

    def forward(self, residual: Batch) -> Time:
        """`(B, *shape) -> (B,)`."""
        scale = 0.00054 * math.sqrt(residual[0].numel()) if self.scale is None else self.scale
        return (squared(residual) + scale**2).sqrt() - scale


class Huber(nn.Module):
    """Sum over dimensions of r_i^2 up to |r_i| = c and 2 c |r_i| - c^2 beyond: half its gradient is r_i clipped to c.

    Args:
        scale: c, positive, in the units of the residual.

    Raises:
        ValueError: `scale` is not positive.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"Huber needs a finite scale > 0, got {scale}.")
        self.scale = scale

    def forward(self, residual: Batch) -> Time:
        """`(B, *shape) -> (B,)`."""
        size = residual.abs()
        near = size.clamp_max(self.scale)
        return per_row(near * (2 * size - near))


class Cauchy(nn.Module):
    """log(1 + |r|^2 / (2 c^2)) of the whole row (2502.01441): outliers count by the logarithm of their size.

    Args:
        scale: c, positive, in the units of the residual.

    Raises:
        ValueError: `scale` is not positive.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"Cauchy needs a finite scale > 0, got {scale}.")
        self.scale = scale

    def forward(self, residual: Batch) -> Time:
        """`(B, *shape) -> (B,)`."""
        return torch.log1p(squared(residual) / (2 * self.scale**2))


class Perceptual(nn.Module):
    """A distance of two batches of data points, `fn(one, other) -> (B,)`, such as LPIPS, instead of a residual.

    The points are where the two sides of a residual reach t = 1 on a straight line: for velocities u and u' at x and
    time s they are x + (1 - s) u and x + (1 - s) u'. At t = 1 these are the jumps X_{s,1} of a consistency model, at
    s = t on the linear path the denoiser and the data point.

    Args:
        fn: function or module; a module is frozen and stays in evaluation mode.
    """

    def __init__(self, fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, one: Batch, other: Batch) -> Tensor:
        """`(B, *shape), (B, *shape) -> (B,)`, which `measure` checks."""
        return self.fn(one, other)


def measure(distance: Distance, *sides: Batch) -> Time:
    """Call a distance, with a residual or (a `Perceptual`) with two batches, `(B, *shape)`, and return `(B,)`.

    Raises:
        ValueError: the distance returns anything but one number for each row.
    """
    found, rows = distance(*sides), sides[0].shape[:1]
    if found.shape != rows:
        raise ValueError(
            f"a distance must return one number for each row, shape {tuple(rows)}, got {tuple(found.shape)}: sum over "
            "the other axes, with .flatten(1).sum(1)."
        )
    return found


# weights --------------------------------------------------------------------------------------------------------------


class Weight(nn.Module, ABC):
    """A function of a distance and its times, in most cases w_{s,t} times the distance."""

    @abstractmethod
    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        """The weighted distances, `(B,)`.

        Args:
            distance: of each row, `(B,)`.
            s, t: times of each row, `(B,)`.
            split: share of [s, t] that the first leg covers, `(B,)`, in a composition of two legs; else `None`.
        """


class Constant(Weight):
    """w = value.

    Raises:
        ValueError: `value` is not positive.
    """

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        if not 0 < value < math.inf:
            raise ValueError(f"Constant needs a finite value > 0, got {value}.")
        self.value = value

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        return self.value * distance


class PerSpeed(Weight):
    """w = 1 / (alpha_t'^2 sigma0^2 + beta_t'^2 + gamma_t'^2): the mean square of dI_t is then the same at all times.

    On `VariancePreserving` this is 1 - t^2, and the weighted residual that of the v-prediction of diffusion models
    (2202.00512), t x0 - sqrt(1 - t^2) x1. It is the default of velocity matching on paths whose speed has no bound.

    Args:
        interpolant: the path.
        scale: sigma0, standard deviation of the base.
    """

    def __init__(self, interpolant: Interpolant, scale: float = 1.0) -> None:
        super().__init__()
        self.interpolant, self.scale = interpolant, scale

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        path = self.interpolant
        speed = (path.alpha_dot(t) * self.scale).square() + path.beta_dot(t).square() + path.gamma_dot(t).square()
        return distance / speed


class StripWeight(Weight):
    """w = 1{|t - s| <= width}: rows outside the strip have weight zero (2406.07507, section 3.4).

    The law `times.Strip` draws inside the strip and wastes no rows; use `StripWeight` where the law of (s, t) is fixed.

    Raises:
        ValueError: `width` outside (0, 1].
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


class TowardsNoise(Weight):
    """w = (1 - s^power) cos(pi s / 2): 1 at the noise, 0 at the data (FACM, 2507.03738).

    Args:
        power: of the first factor, positive.

    Raises:
        ValueError: `power` is not positive.
    """

    def __init__(self, power: float = 0.5) -> None:
        super().__init__()
        if not 0 < power < math.inf:
            raise ValueError(f"TowardsNoise needs a finite power > 0, got {power}.")
        self.power = power

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        return (1 - s**self.power) * torch.cos(0.5 * math.pi * s) * distance


class Adaptive(Weight):
    """w = (d + c)^(-power), detached (MeanFlow, 2505.13447, section 4.3).

    With power 1 the weighted loss stays near 1 whatever the map does: watch `Loss.parts`.

    Raises:
        ValueError: `offset` is not positive.
    """

    def __init__(self, power: float = 1.0, offset: float = 1e-3) -> None:
        super().__init__()
        if not 0 < offset < math.inf:
            raise ValueError(f"Adaptive needs a finite offset > 0, got {offset}.")
        self.power, self.offset = power, offset

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        return distance * (distance.detach() + self.offset) ** -self.power


class Learned(Weight):
    """exp(-w_{s,t}) d + w_{s,t} with w a small network of (s, t) (EDM2, 2312.02696; 2505.18825, equation 17).

    At the optimum exp(w) is the mean distance at (s, t), so that every (s, t) has the same influence.
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


class PerNoise(Weight):
    """w = 1 / (sigma_s - sigma_w), one over the noise that the first leg removes, with sigma = omega / beta.

    iCT's lambda = 1 / (sigma_{i+1} - sigma_i) (2310.14189, equation 9), ECT's 1 / (t - r) (2406.14548).

    Args:
        interpolant: the path.
        scale: standard deviation of the base.
        highest: upper bound on the difference, the papers' greatest sigma; at s = 0 sigma is infinite on most paths.
    """

    def __init__(self, interpolant: Interpolant, scale: float = 1.0, highest: float = 80.0) -> None:
        super().__init__()
        self.interpolant, self.scale, self.highest = interpolant, scale, highest

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        if split is None:
            raise ValueError("PerNoise is for a composition of two legs: it needs the share of the first leg, split.")
        start, end = (self.interpolant.noise_to_signal(r, self.scale) for r in (s, torch.lerp(s, t, split)))
        lost = torch.where(start == end, 0, start - end)  # both may be infinite
        return distance / torch.maximum(lost, 1e-4 * start).clamp_max(self.highest)


class SplitPower(Weight):
    """w = l^exponent, with l the share of the first leg: the weight of AlphaFlow (2510.20771, definition 1).

    Args:
        exponent: -1 gives |l r|^2 the gradient of |r|^2 / 2 with a fixed target, for every l; so does 1 after
            `Adaptive`.
    """

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        if split is None:
            raise ValueError("SplitPower is for a composition of two legs: it needs the share of the first leg, split.")
        return split**self.exponent * distance


class Chain(Weight):
    """Several weights, one after the other: each is applied to what the one before it returns.

    Args:
        weights: in their order; `Adaptive` and `Learned` depend on what they are applied to.

    Raises:
        ValueError: no weight is given.
    """

    def __init__(self, *weights: Weight) -> None:
        super().__init__()
        if not weights:
            raise ValueError("Chain needs at least one weight, got none: use Constant() for w = 1.")
        self.weights = nn.ModuleList(weights)

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        for weight in self.weights:
            distance = weight(distance, s, t, split)
        return distance


class TruncatedSNR(Weight):
    """max(SNR_s, 1) on the squared difference of two denoisers, from that of two u (2202.00512, section 4).

    A DDIM step with the denoiser D from s to t is omega_t / omega_s x + (beta_t - beta_s omega_t / omega_s) D, so that

        w  =  max(beta_s^2, omega_s^2) ((t - s) / (beta_t omega_s - beta_s omega_t))^2:  max(s^2, (1 - s)^2) if linear.

    Args:
        interpolant: the path.
        scale: standard deviation of the base.
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
