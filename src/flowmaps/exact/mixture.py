r"""Mixtures of Gaussians: velocity and log density in closed form, flow map by a solver.

Data are sum_k w_k N(mu_k, C_k), C_k = U_k diag(l_k) U_k^T, the base is N(0, scale^2 Id). Given I_t = x and component k,

    V_k = beta^2 C_k + omega^2 Id,   D_k = mu_k + beta C_k V_k^-1 (x - beta mu_k),   e_k = omega V_k^-1 (x - beta mu_k),

and D, e are their means under the responsibilities r_k ~ w_k N(x; beta mu_k, V_k), taken in log space; as ever
b_t = beta' D + omega' e.

Reference: M. S. Albergo, N. M. Boffi, E. Vanden-Eijnden, "Stochastic interpolants: a unifying framework for flows and
diffusions", 2023, arXiv 2303.08797, appendix A.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..interpolants import Interpolant, Linear
from ..shapes import Batch, Condition, Time
from . import _checks
from ._noised import Noised


class GaussianMixture(Noised):
    """Data sum_k w_k N(mu_k, C_k), base N(0, scale^2 Id), independent.

    Components are classes: `velocity`, `denoiser` and `flow_map` take `cond`, int64 labels `(B,)` in 0..K - 1, for the
    flow to the labelled component alone, row by row; with `cond=None` they are those of the whole mixture.

    Args:
        weights: w, `(K,)`, positive; divided by their sum.
        means: mu, `(K, D)`.
        covariances: C, `(K, D, D)`, symmetric positive semidefinite.
        scale: standard deviation of the base, positive.
        interpolant: path from base to data.

    Raises:
        ValueError: wrong shapes, entries that are not finite, weights that are not positive, matrices that are no
            covariances.
    """

    def __init__(
        self,
        weights: Any,
        means: Any,
        covariances: Any,
        scale: float = 1.0,
        interpolant: Interpolant = Linear(),  # noqa: B008  (frozen)
    ) -> None:
        self.means = _checks.finite("means", means, 2, "(K, D)")
        number, self.dim = self.means.shape
        weight = _checks.finite("weights", weights, 1, "(K,)")
        if weight.shape[0] != number:
            raise ValueError(f"weights must have shape ({number},), one for each mean, got {tuple(weight.shape)}.")
        if not bool((weight > 0).all()):
            raise ValueError(f"weights must be positive, got {weight.tolist()}: leave components of weight 0 out.")
        self.weights = weight / weight.sum()
        self.covariances = _checks.covariance("covariances", covariances, self.dim, (number,))
        _checks.positive("scale", scale)
        self.scale = scale
        self.interpolant = interpolant
        self._values, self._vectors = _checks.spectrum(self.covariances)

    def sample(self, number: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Independent data, `(number, D)`, on the device of the generator."""
        return self.sample_with_labels(number, generator, dtype)[0]

    def sample_with_labels(
        self, number: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Independent data `(number, D)` and the components `(number,)`, int64, that they come from."""
        device = None if generator is None else generator.device
        weights = self.weights.to(device=device)
        labels = torch.multinomial(weights, number, replacement=True, generator=generator)
        noise = torch.randn(number, self.dim, generator=generator, dtype=dtype, device=device)
        means, values, vectors = (c.to(noise)[labels] for c in (self.means, self._values, self._vectors))
        return means + (vectors @ (noise * values.sqrt()).unsqueeze(2)).squeeze(2), labels

    def flow_map(
        self, x: Batch, s: Time, t: Time, cond: Condition = None, *, method: str = "dopri8", tolerance: float = 1e-10
    ) -> Batch:
        """X_{s,t}(x) by an adaptive solver in float64, for both orders of s and t.

        Args:
            x: points, `(B, D)`.
            s: times of the points, `(B,)`.
            t: times of the results, `(B,)`.
            cond: labels, `(B,)`, for the flow of one component a row, or None for that of the mixture.
            method: a method of torchdiffeq with adaptive steps.
            tolerance: relative and absolute error of a step, a norm over the batch.

        Returns:
            X_{s,t}(x), `(B, D)`, in the dtype of `x`.

        Raises:
            ValueError: wrong shapes, times outside [0, 1], labels that are not integers in 0..K - 1.
        """
        if cond is not None:
            _checks.labels(cond, x.shape[0], self.means.shape[0])
        return self._flow(x, s, t, cond, method, tolerance)

    def _posterior(self, x: Tensor, beta: Tensor, omega: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """With labels the components are chosen, K = 1 a row; else averaged under the responsibilities."""
        means, values, vectors, log_weights = self._components(x, cond)
        beta, omega = beta.reshape(-1, 1, 1), omega.reshape(-1, 1, 1)
        y, variance = _whitened(x, beta, omega, means, values, vectors)
        share = _log_parts(y, variance, log_weights).softmax(1).unsqueeze(2)
        denoised = means + (vectors @ (beta * values * y / variance).unsqueeze(3)).squeeze(3)
        noise = (vectors @ (omega * y / variance).unsqueeze(3)).squeeze(3)
        return (share * denoised).sum(1), (share * noise).sum(1)

    def _log_marginal(self, x: Tensor, beta: Tensor, omega: Tensor) -> Tensor:
        means, values, vectors, log_weights = self._components(x, None)
        y, variance = _whitened(x, beta.reshape(-1, 1, 1), omega.reshape(-1, 1, 1), means, values, vectors)
        return _log_parts(y, variance, log_weights).logsumexp(1)

    def _components(self, x: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means, eigenvalues, eigenvectors, log weights with leading axes (1, K), or (B, 1) where labels choose."""
        everything = (self.means, self._values, self._vectors, self.weights.log())
        means, values, vectors, log_weights = (c.to(device=x.device, dtype=x.dtype) for c in everything)
        if cond is None:
            return means[None], values[None], vectors[None], log_weights[None]
        _checks.labels(cond, x.shape[0], self.means.shape[0])
        chosen = cond.to(x.device)
        return means[chosen, None], values[chosen, None], vectors[chosen, None], log_weights[chosen, None]


def _whitened(
    x: Tensor, beta: Tensor, omega: Tensor, means: Tensor, values: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """x - beta mu_k in the eigenbasis of C_k, and the eigenvalues of V_k, both `(B, K, D)`."""
    centred = x.unsqueeze(1) - beta * means
    return (vectors.mT @ centred.unsqueeze(3)).squeeze(3), beta.square() * values + omega.square()


def _log_parts(y: Tensor, variance: Tensor, log_weights: Tensor) -> Tensor:
    """log w_k N(x; beta mu_k, V_k), `(B, K)`."""
    return log_weights - 0.5 * (y.square() / variance + variance.log() + math.log(2 * math.pi)).sum(2)
