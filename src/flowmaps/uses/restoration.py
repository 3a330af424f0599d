r"""Restoration: from an observation y = A x + sigma n of data x back to x, by what a flow map knows of the data.

`restore` finds one point. It goes downhill on |A x - y|^2 / 2, and lets the map make data of the point and fresh noise:

    z  =  x - eta_k A^T (A x - y),          x  =  mean over eps of X_{t_k,1}(alpha_{t_k} eps + beta_{t_k} z)

for times t_k rising to 1, with eta_k = eta (1 - t_k). With one time t throughout, noise in pairs eps, -eps, a Gaussian
prior N(m, C) and a map X_{t,1}(w) = m + S (w - beta m), the fixed point solves

    (Id - beta S + eta_t beta S A^T A) (x - m)  =  eta_t beta S A^T (y - A m).

`posterior_samples` draws from p(x | y), proportional to rho_1(x) exp(-|A x - y|^2 / (2 sigma^2)): that is the law of
the map tilted by a reward (`rewards`), so that mean and spread of x are those of the posterior for many samples.

References: S. Martin et al., "PnP-Flow: plug-and-play image restoration with flow matching", 2024, arXiv 2410.02423,
with the jump in the place of its denoiser; restoration with flow maps, 2026, arXiv 2606.19802, known from a summary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..interpolants import Interpolant, Linear
from ..maps import FlowMap
from ..modules import evaluating
from ..shapes import Batch, Condition, Time, check_condition, per_row
from .operators import check_rows
from .rewards import Tilted, tilted_samples

Forward: TypeAlias = Callable[[Tensor], Tensor]
"""A: an `Operator`, or any differentiable function `(B, *shape) -> (B, *other)`."""


@torch.no_grad()
def restore(
    flow_map: FlowMap,
    y: Tensor,
    operator: Forward,
    start: Batch,
    cond: Condition = None,
    *,
    step: float = 1.0,
    times: Sequence[float] | int = 16,
    draws: int = 2,
    interpolant: Interpolant | None = None,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Batch:
    """One restored point for each observation, `(B, *shape)`.

    Args:
        flow_map: a map to the data, any jumps to t = 1.
        y: observations, `(B, *other)`.
        operator: A, differentiable.
        start: first x, `(B, *shape)`, such as `operator.adjoint(y)` or the mean of the data.
        cond: condition, one a row.
        step: eta; at most 1 / |A|^2 goes downhill.
        times: times t_k in (0, 1), or a number of equally spaced ones.
        draws: of noise at each time, averaged; an even number is drawn in pairs eps, -eps. An evaluation each.
        interpolant: the path of the map, without latent noise; `Linear()` unless given.
        scale: standard deviation of the base.
        generator: source of the noise, on the device of `start`.

    Raises:
        ValueError: an operator whose rows are not those of `y` or that has no gradient, times outside (0, 1), or
            another number out of range.
    """
    path = Linear() if interpolant is None else interpolant
    visited = [(k + 1) / (times + 1) for k in range(times)] if isinstance(times, int) else list(times)
    _check(y, start, cond, visited, step, draws, path)
    x = start
    with evaluating(flow_map):
        for t in visited:
            z = x - step * (1 - t) * _slope(operator, x, y)
            now, one = x.new_full((len(x),), t), x.new_ones(len(x))
            total = torch.zeros_like(x)
            for eps in _noise(x, draws, scale, generator):
                total = total + flow_map(path.point(eps, z, now), now, one, cond)
            x = total / draws
    return x


@torch.no_grad()
def posterior_samples(
    flow_map: FlowMap,
    y: Tensor,
    operator: Forward,
    x0: Batch,
    cond: Condition = None,
    *,
    noise: float,
    **options: Any,
) -> Tilted:
    """Weighted samples of p(x | y) for one observation.

    Args:
        flow_map: a two-time map.
        y: the observation, `(1, *other)`.
        operator: A; differentiable unless `gradient=False` is among the options.
        x0: base samples, `(B, *shape)`.
        cond: condition, the same in all rows.
        noise: sigma, standard deviation of the noise in y.
        options: of `tilted_samples`: steps, gamma, gradient, threshold, interpolant, scale, generator.

    Raises:
        ValueError: more than one observation, one of another shape than A x, or as `tilted_samples`.
    """
    if len(y) != 1:
        raise ValueError(f"posterior_samples takes one observation (1, *other), got {tuple(y.shape)}: a call for each.")
    if not noise > 0:
        raise ValueError(f"the noise of an observation has a standard deviation > 0, got {noise}.")

    def reward(x: Tensor) -> Tensor:
        out = operator(x)
        check_rows(out, y.expand(len(x), *y.shape[1:]), "the operator")
        return -0.5 * per_row((out - y).square()) / noise**2

    return tilted_samples(flow_map, x0, reward, cond, **options)


def psnr(x: Batch, reference: Batch, peak: float = 2.0) -> Time:
    """Peak signal-to-noise ratio of each row, 10 log10(peak^2 / mean square), `(B,)`, in decibels; pixels -1 to 1."""
    error = (x - reference).square().flatten(1).mean(1)
    return 10 * torch.log10(peak**2 / error)


def _slope(operator: Forward, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of |A x - y|^2 / 2 in x."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        out = operator(at)
        check_rows(out, y, "the operator")
        if not out.requires_grad:
            raise ValueError(
                "the operator is not differentiable: write it in torch operations, or use posterior_samples with "
                "gradient=False."
            )
        return torch.autograd.grad(0.5 * (out - y).square().sum(), at)[0]


def _noise(x: Tensor, draws: int, scale: float, generator: torch.Generator | None) -> list[Tensor]:
    number = draws // 2 if draws % 2 == 0 else draws
    drawn = [scale * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator) for _ in range(number)]
    return drawn if number == draws else [*drawn, *(-eps for eps in drawn)]


def _check(
    y: Tensor, start: Tensor, cond: Condition, times: list[float], step: float, draws: int, path: Interpolant
) -> None:
    if not times or not all(0 < t < 1 for t in times):
        raise ValueError(f"restore needs times inside (0, 1), got {times}: 16 for as many equally spaced ones.")
    if not step > 0 or draws < 1:
        raise ValueError(f"restore needs step > 0 and draws >= 1, got {step} and {draws}.")
    if path.noisy:
        raise ValueError(f"restore needs a path without latent noise, got {path}.")
    if len(start) != len(y):
        raise ValueError(f"restore needs a start for each observation, got {len(start)} and {len(y)} rows.")
    check_condition(cond, start, "start")
