r"""Gaussian base and Gaussian data: everything in closed form.

With independent x0 ~ N(m0, C0), x1 ~ N(m1, C1) and commuting covariances C0 = U diag(l0) U^T, C1 = U diag(l1) U^T, the
law of I_t is N(m_t, U diag(s_t^2) U^T), m_t = alpha m0 + beta m1, s_t^2 = alpha^2 l0 + beta^2 l1 + gamma^2, and

    b_t(x) = m_t' + U diag(s_t' / s_t) U^T (x - m_t),        X_{s,t}(x) = m_t + U diag(s_t / s_s) U^T (x - m_s).

Reference: M. S. Albergo, N. M. Boffi, E. Vanden-Eijnden, "Stochastic interpolants: a unifying framework for flows and
diffusions", 2023, arXiv 2303.08797.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..interpolants import Interpolant, Linear
from ..shapes import Batch, Condition, Time, check_time, like
from . import _checks


class Gaussian:
    """Data N(mean, covariance), base N(base_mean, base_covariance), independent.

    Args:
        mean: m1, `(D,)`.
        covariance: C1, `(D, D)`, symmetric positive semidefinite.
        base_mean: m0, `(D,)`; zero where None.
        base_covariance: C0, `(D, D)`, commuting with C1; the identity where None.
        interpolant: path from base to data.

    Raises:
        ValueError: wrong shapes, entries that are not finite, matrices that are no covariances or do not commute.
    """

    def __init__(
        self,
        mean: Any,
        covariance: Any,
        base_mean: Any = None,
        base_covariance: Any = None,
        interpolant: Interpolant = Linear(),  # noqa: B008  (frozen)
    ) -> None:
        self.mean = _checks.finite("mean", mean, 1, "(D,)")
        self.dim = dim = self.mean.shape[0]
        self.covariance = _checks.covariance("covariance", covariance, dim)
        self.base_mean = _checks.finite("base_mean", [0.0] * dim if base_mean is None else base_mean, 1, f"({dim},)")
        if self.base_mean.shape[0] != dim:
            raise ValueError(f"base_mean must have shape ({dim},), got {tuple(self.base_mean.shape)}: as mean has.")
        base = torch.eye(dim) if base_covariance is None else base_covariance
        self.base_covariance = _checks.covariance("base_covariance", base, dim)
        self.interpolant = interpolant
        self._vectors = _common_basis(self.base_covariance, self.covariance)
        self._base_values, self._values = (
            (self._vectors.mT @ matrix @ self._vectors).diagonal().clamp_min(0)
            for matrix in (self.base_covariance, self.covariance)
        )

    def sample(self, number: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Independent data, `(number, D)`, on the device of the generator."""
        device = None if generator is None else generator.device
        noise = torch.randn(number, self.dim, generator=generator, dtype=dtype, device=device)
        mean, values, vectors = _like(noise, self.mean, self._values, self._vectors)
        return mean + (noise * values.sqrt()) @ vectors.mT

    def log_density(self, x: Batch, t: Time | None = None) -> Time:
        """Log density of the law of I_t, or of the data where `t` is None, `(B,)`.

        Raises:
            ValueError: wrong shapes, times outside [0, 1].
        """
        _checks.points(x, self.dim)
        if t is None:
            mean, variance, vectors = _like(x, self.mean, self._values, self._vectors)
        else:
            check_time(t, x)
            mean, variance, vectors = *self._moments(t, x), _like(x, self._vectors)[0]
        quadratic = ((x - mean) @ vectors).square() / variance
        return -0.5 * (quadratic + variance.log() + math.log(2 * math.pi)).sum(1)

    def velocity(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """b_t(x), `(B, D)`, singular only where s_t = 0.

        Args:
            x: points, `(B, D)`.
            t: times in [0, 1], `(B,)`.
            cond: None.

        Raises:
            ValueError: wrong shapes, times outside [0, 1], or a condition.
        """
        _checks.no_condition(cond, "Gaussian")
        _checks.points(x, self.dim)
        check_time(t, x)
        path = self.interpolant
        base_mean, mean, base, data, vectors = _like(
            x, self.base_mean, self.mean, self._base_values, self._values, self._vectors
        )
        drift = like(path.alpha_dot(t), x) * base_mean + like(path.beta_dot(t), x) * mean
        growth = like(path.alpha_alpha_dot(t), x) * base + like(path.beta(t) * path.beta_dot(t), x) * data
        growth = growth + like(path.gamma(t) * path.gamma_dot(t), x)
        centre, variance = self._moments(t, x)
        return drift + (((x - centre) @ vectors) * (growth / variance)) @ vectors.mT

    def flow_map(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """X_{s,t}(x), `(B, D)`, for both orders of s and t; singular only where s_s = 0.

        Args:
            x: points, `(B, D)`.
            s: times of the points, `(B,)`.
            t: times of the results, `(B,)`.
            cond: None.

        Raises:
            ValueError: wrong shapes, times outside [0, 1], or a condition.
        """
        _checks.no_condition(cond, "Gaussian")
        _checks.points(x, self.dim)
        check_time(s, x, "s")
        check_time(t, x)
        (mean_s, variance_s), (mean_t, variance_t) = self._moments(s, x), self._moments(t, x)
        (vectors,) = _like(x, self._vectors)
        return mean_t + (((x - mean_s) @ vectors) * (variance_t.sqrt() / variance_s.sqrt())) @ vectors.mT

    def _moments(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """m_t and the eigenvalues s_t^2, `(B, D)`."""
        alpha, beta, gamma = (
            like(c, x) for c in (self.interpolant.alpha(t), self.interpolant.beta(t), self.interpolant.gamma(t))
        )
        base_mean, mean, base, data = _like(x, self.base_mean, self.mean, self._base_values, self._values)
        return alpha * base_mean + beta * mean, alpha * alpha * base + beta * beta * data + gamma * gamma


def _like(x: Tensor, *constants: Tensor) -> tuple[Tensor, ...]:
    """The constants in the dtype and on the device of `x`."""
    return tuple(c.to(device=x.device, dtype=x.dtype) for c in constants)


def _common_basis(first: Tensor, second: Tensor) -> Tensor:
    """Common orthonormal eigenvectors of two commuting matrices: those of a generic linear combination of the two."""
    size = (first.norm() * second.norm()).clamp_min(torch.finfo(first.dtype).tiny)
    commutator = float((first @ second - second @ first).norm() / size)
    if commutator > _checks.SLACK:
        raise ValueError(
            f"base_covariance and covariance must commute for a closed form, got a commutator of relative size "
            f"{commutator:.3g}: use base_covariance=None (the identity), or GaussianMixture for an isotropic base."
        )
    tiny = torch.finfo(first.dtype).tiny
    mixed = first / first.norm().clamp_min(tiny) + 0.6180339887498949 * second / second.norm().clamp_min(tiny)
    return torch.linalg.eigh(mixed).eigenvectors
