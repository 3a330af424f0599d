r"""Stochastic interpolants. Here alpha multiplies the noise; in diffusion papers it multiplies the signal.

    I_t = alpha_t x0 + beta_t x1 + gamma_t z,      (x0, x1) ~ rho(x0, x1),      z ~ N(0, Id) independent,

with alpha_0 = beta_1 = 1, alpha_1 = beta_0 = 0, gamma_0 = gamma_1 = 0; t = 0 is noise, t = 1 is data. An interpolant
is its coefficients and their derivatives in time. For a Gaussian base N(0, sigma0^2 Id) the noise of I_t is omega_t
eps with omega_t^2 = alpha_t^2 sigma0^2 + gamma_t^2, so that the posterior means D = E[x1 | I_t = x] (the denoiser)
and eps = E[noise | I_t = x] satisfy

    x = beta_t D + omega_t eps,        b_t(x) = beta_t' D + omega_t' eps,        score = -eps / omega_t :

two linear equations from which every conversion below follows.

Reference: M. S. Albergo, N. M. Boffi, E. Vanden-Eijnden, "Stochastic interpolants: a unifying framework for flows and
diffusions", 2023, arXiv 2303.08797.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .shapes import Batch, Time, check_shape, like


class Interpolant(ABC):
    """I_t = alpha_t x0 + beta_t x1 + gamma_t z, with alpha on the noise; in diffusion papers it is on the signal.

    A subclass gives alpha, beta and their time derivatives, each `(B,) -> (B,)`; with latent noise gamma and its
    derivative too.
    """

    @abstractmethod
    def alpha(self, t: Time) -> Time:
        """Coefficient of the base (noise), from 1 at t = 0 to 0 at t = 1."""

    @abstractmethod
    def beta(self, t: Time) -> Time:
        """Coefficient of the data, from 0 at t = 0 to 1 at t = 1."""

    @abstractmethod
    def alpha_dot(self, t: Time) -> Time:
        """Time derivative of `alpha`."""

    @abstractmethod
    def beta_dot(self, t: Time) -> Time:
        """Time derivative of `beta`."""

    def alpha_alpha_dot(self, t: Time) -> Time:
        """alpha_t alpha_t', which is finite even where alpha_t' is not."""
        return self.alpha(t) * self.alpha_dot(t)

    def gamma(self, t: Time) -> Time:
        """Coefficient of the latent noise z; zero unless a subclass overrides it."""
        return torch.zeros_like(t)

    def gamma_dot(self, t: Time) -> Time:
        """Time derivative of `gamma`."""
        return torch.zeros_like(t)

    @property
    def noisy(self) -> bool:
        """Whether there is latent noise: gamma is not zero, and `point` and `velocity` need `z`."""
        return False

    @property
    def bounded_speed(self) -> bool:
        """Whether dI_t stays bounded up to both ends."""
        return True

    def point(self, x0: Batch, x1: Batch, t: Time, z: Batch | None = None) -> Batch:
        """The interpolant I_t.

        Args:
            x0: base samples, `(B, *shape)`.
            x1: data samples, `(B, *shape)`.
            t: times in [0, 1], `(B,)`.
            z: latent noise, `(B, *shape)`; needed where `noisy`.

        Returns:
            I_t, `(B, *shape)`.
        """
        _check(x0, x1, t)
        return self._combine(x0, x1, z, self.alpha(t), self.beta(t), self.gamma(t))

    def velocity(self, x0: Batch, x1: Batch, t: Time, z: Batch | None = None) -> Batch:
        """The time derivative dI_t along one path; arguments as in `point`."""
        _check(x0, x1, t)
        return self._combine(x0, x1, z, self.alpha_dot(t), self.beta_dot(t), self.gamma_dot(t))

    def _combine(self, x0: Tensor, x1: Tensor, z: Tensor | None, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        path = like(a, x1) * x0 + like(b, x1) * x1
        if not self.noisy:
            return path
        if z is None:
            raise ValueError(f"{self} has latent noise: pass z = torch.randn_like(x1).")
        return path + like(c, x1) * z

    # conversions for a Gaussian base N(0, scale^2 Id) ---------------------------------------------------------------

    def omega(self, t: Time, scale: float = 1.0) -> Time:
        """Standard deviation of the noise in I_t, sqrt(alpha^2 scale^2 + gamma^2), for a base N(0, scale^2 Id)."""
        if not self.noisy:
            return self.alpha(t) * scale
        return (self.alpha(t).square() * scale**2 + self.gamma(t).square()).sqrt()

    def omega_dot(self, t: Time, scale: float = 1.0) -> Time:
        """Time derivative of `omega`; with latent noise it does not exist where omega is zero."""
        if not self.noisy:
            return self.alpha_dot(t) * scale
        return (self.alpha_alpha_dot(t) * scale**2 + self.gamma(t) * self.gamma_dot(t)) / self.omega(t, scale)

    def noise_to_signal(self, t: Time, scale: float = 1.0) -> Time:
        """The sigma of diffusion papers, omega_t / beta_t, for which I_t / beta_t = x1 + sigma eps."""
        return self.omega(t, scale) / self.beta(t)

    def time_of(self, ratio: Time, scale: float = 1.0) -> Time:
        """The time at which `noise_to_signal` is `ratio`, in [0, inf]; `(B,) -> (B,)`, by bisection."""
        time = torch.zeros_like(ratio)
        for k in range(1, 60):
            later = time + 0.5**k
            time = torch.where(self.omega(later, scale) > ratio * self.beta(later), later, time)
        return time

    def velocity_to_denoiser(self, v: Batch, x: Batch, t: Time, scale: float = 1.0) -> Batch:
        """D = E[x1 | I_t = x] from the velocity `v = b_t(x)`, all `(B, *shape)`; `scale` as in `omega`."""
        w, wd, b, bd = self._pair(t, x, scale)
        return (wd * x - w * v) / (wd * b - w * bd)

    def velocity_to_noise(self, v: Batch, x: Batch, t: Time, scale: float = 1.0) -> Batch:
        """eps = E[noise | I_t = x], of unit variance, from the velocity."""
        w, wd, b, bd = self._pair(t, x, scale)
        return (b * v - bd * x) / (wd * b - w * bd)

    def velocity_to_score(self, v: Batch, x: Batch, t: Time, scale: float = 1.0) -> Batch:
        """grad log density of I_t from the velocity; singular where omega_t = 0 (at t = 1)."""
        return -self.velocity_to_noise(v, x, t, scale) / like(self.omega(t, scale), x)

    def denoiser_to_velocity(self, denoiser: Batch, x: Batch, t: Time, scale: float = 1.0) -> Batch:
        """b_t(x) from D = E[x1 | I_t = x]; singular where omega_t = 0 (at t = 1)."""
        w, wd, b, bd = self._pair(t, x, scale)
        return bd * denoiser + wd * (x - b * denoiser) / w

    def noise_to_velocity(self, noise: Batch, x: Batch, t: Time, scale: float = 1.0) -> Batch:
        """b_t(x) from eps = E[noise | I_t = x]; singular where beta_t = 0 (at t = 0)."""
        w, wd, b, bd = self._pair(t, x, scale)
        return bd * (x - w * noise) / b + wd * noise

    def score_to_velocity(self, score: Batch, x: Batch, t: Time, scale: float = 1.0) -> Batch:
        """b_t(x) from the score of I_t; singular where beta_t = 0 (at t = 0)."""
        check_shape(t, x)
        return self.noise_to_velocity(-like(self.omega(t, scale), x) * score, x, t, scale)

    def _pair(self, t: Tensor, x: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_shape(t, x)
        values = self.omega(t, scale), self.omega_dot(t, scale), self.beta(t), self.beta_dot(t)
        w, wd, b, bd = (like(value, x) for value in values)
        return w, wd, b, bd


def _check(x0: Tensor, x1: Tensor, t: Tensor) -> None:
    """Refuse points of two shapes, and times of another."""
    if x0.shape != x1.shape:
        raise ValueError(f"x0 and x1 must have one shape, got {tuple(x0.shape)} and {tuple(x1.shape)}.")
    check_shape(t, x1)


@dataclass(frozen=True)
class Linear(Interpolant):
    """I_t = (1 - t) x0 + t x1: rectified flow, conditional optimal transport (2210.02747, 2209.03003)."""

    def alpha(self, t: Time) -> Time:
        return 1 - t

    def beta(self, t: Time) -> Time:
        return t

    def alpha_dot(self, t: Time) -> Time:
        return -torch.ones_like(t)

    def beta_dot(self, t: Time) -> Time:
        return torch.ones_like(t)

    def time_of(self, ratio: Time, scale: float = 1.0) -> Time:
        return scale / (scale + ratio)


@dataclass(frozen=True)
class Trigonometric(Interpolant):
    """I_t = cos(pi t / 2) x0 + sin(pi t / 2) x1: constant variance and speed (2303.08797; TrigFlow, 2410.11081)."""

    def alpha(self, t: Time) -> Time:
        return torch.cos(0.5 * math.pi * t)

    def beta(self, t: Time) -> Time:
        return torch.sin(0.5 * math.pi * t)

    def alpha_dot(self, t: Time) -> Time:
        return -0.5 * math.pi * torch.sin(0.5 * math.pi * t)

    def beta_dot(self, t: Time) -> Time:
        return 0.5 * math.pi * torch.cos(0.5 * math.pi * t)

    def time_of(self, ratio: Time, scale: float = 1.0) -> Time:
        return torch.atan2(torch.full_like(ratio, scale), ratio) / (0.5 * math.pi)


@dataclass(frozen=True)
class VariancePreserving(Interpolant):
    """I_t = sqrt(1 - t^2) x0 + t x1: the variance-preserving diffusion (2011.13456; 2303.08797, section 5.1).

    Every variance-preserving schedule is this one after a change of time, t = exp(-int beta / 2). The derivative of
    alpha grows like (1 - t)^(-1/2) towards t = 1; it is constant for the last 1e-6 of time. The mean square of dI_t has
    no finite mean over t, so velocity matching weighs it (`losses.PerSpeed`) unless another weight is given.
    """

    @property
    def bounded_speed(self) -> bool:
        return False

    def alpha(self, t: Time) -> Time:
        return (1 - t * t).clamp_min(0).sqrt()

    def beta(self, t: Time) -> Time:
        return t

    def alpha_dot(self, t: Time) -> Time:
        return -t / (1 - t * t).clamp_min(2e-6).sqrt()

    def beta_dot(self, t: Time) -> Time:
        return torch.ones_like(t)

    def alpha_alpha_dot(self, t: Time) -> Time:
        return -t

    def time_of(self, ratio: Time, scale: float = 1.0) -> Time:
        return scale / (ratio.square() + scale**2).sqrt()


@dataclass(frozen=True)
class VarianceExploding(Interpolant):
    """I_t = sigma_t / sigma_max x0 + x1 with x0 ~ N(0, sigma_max^2): the diffusion of EDM (2206.00364, equation 5).

    sigma_t = sigma_max (1 - t)^rho is EDM's grid with sigma_min = 0. Here beta_0 = 1, so that I_0 is the base plus the
    data; the base alone replaces it up to an error of order (data scale / sigma_max)^2. Use the base
    `Normal(scale=sigma_max)`, and pass `scale=sigma_max` to the conversions.

    Args:
        sigma_max: standard deviation of the base, in units of the data.
        rho: exponent of the grid, at least 1; EDM's is 7.
    """

    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if self.sigma_max <= 0 or self.rho < 1:
            raise ValueError(
                f"VarianceExploding needs sigma_max > 0 and rho >= 1, got {self.sigma_max} and {self.rho}."
            )

    def alpha(self, t: Time) -> Time:
        return (1 - t) ** self.rho

    def beta(self, t: Time) -> Time:
        return torch.ones_like(t)

    def alpha_dot(self, t: Time) -> Time:
        return -self.rho * (1 - t) ** (self.rho - 1)

    def beta_dot(self, t: Time) -> Time:
        return torch.zeros_like(t)

    def time_of(self, ratio: Time, scale: float = 1.0) -> Time:
        return 1 - (ratio / scale).clamp_max(1) ** (1 / self.rho)


@dataclass(frozen=True)
class WithNoise(Interpolant):
    """Another interpolant plus latent noise gamma_t z, gamma_t = scale sin^2(pi t), smooth at both ends.

    Reference: 2303.08797, table 4.

    Args:
        path: the interpolant without noise.
        scale: gamma at t = 1/2, positive, in units of the data.
    """

    path: Interpolant
    scale: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"WithNoise needs a finite scale > 0, got {self.scale}: use the path itself for no noise.")
        if self.path.noisy:
            raise ValueError(f"{self.path} already has latent noise: pass the path inside it, and one scale.")

    @property
    def noisy(self) -> bool:
        return True

    @property
    def bounded_speed(self) -> bool:
        return self.path.bounded_speed

    def alpha(self, t: Time) -> Time:
        return self.path.alpha(t)

    def beta(self, t: Time) -> Time:
        return self.path.beta(t)

    def alpha_dot(self, t: Time) -> Time:
        return self.path.alpha_dot(t)

    def alpha_alpha_dot(self, t: Time) -> Time:
        return self.path.alpha_alpha_dot(t)

    def beta_dot(self, t: Time) -> Time:
        return self.path.beta_dot(t)

    def gamma(self, t: Time) -> Time:
        return self.scale * torch.sin(math.pi * t).square()

    def gamma_dot(self, t: Time) -> Time:
        return self.scale * math.pi * torch.sin(2 * math.pi * t)


CLASSES = {kind.__name__: kind for kind in (Linear, Trigonometric, VariancePreserving, VarianceExploding, WithNoise)}
"""The interpolants that a saved map can name in its card, by class; a new class is added here."""

InterpolantName = Literal["linear", "trigonometric", "variance-preserving"]
"""Names that `flowmaps train --interpolant` takes; a new name is added here and in `BY_NAME`."""

BY_NAME: dict[InterpolantName, Interpolant] = {
    "linear": Linear(),
    "trigonometric": Trigonometric(),
    "variance-preserving": VariancePreserving(),
}
"""The interpolant of each `InterpolantName`; a base N(0, Id) fits all of them."""
