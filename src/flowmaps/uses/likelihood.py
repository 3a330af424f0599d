r"""Log densities of a flow: by the ODE of its velocity, by the determinant of N jumps, or by a learned mean divergence.

    log rho_t(X_{s,t}(x))  =  log rho_s(x) - int_s^t div b_r(X_{s,r}(x)) dr      `log_likelihood`: an ODE
                           =  log rho_s(x) - log |det grad X_{s,t}(x)|           `jumps_log_likelihood`: small D
                           =  log rho_s(x) - (t - s) d_{s,t}(x)                  `learned_log_likelihood`

with d_{s,t}(x) the mean of the divergence over the trajectory from s to t, which a network learns
(`mean_divergence`). Of data x1 all three go back to the noise x0, and add its log density.

    bits per dimension  =  - log rho_1(x1) / (D log 2) - log2(level)

for data of levels that are `level` apart in units of x, with a uniform draw over its level added to each
(`dequantise`): the mean is at least the code length of the levels themselves.

References: R. T. Q. Chen et al., "Neural ordinary differential equations", 2018, arXiv 1806.07366; W. Grathwohl et al.,
"FFJORD", 2018, arXiv 1810.01367; X. Ai et al., "Joint distillation for fast likelihood evaluation and sampling in
flow-based models" (F2D2), 2025, arXiv 2512.02636; L. Theis et al., 2015, arXiv 1511.01844 (dequantisation).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..maps import FlowMap
from ..modules import evaluating, modules_of
from ..shapes import Batch, Condition, Field, Time, check_condition, per_row
from ..solvers import integrate
from ..times import grid
from ._jacobians import jacobian
from .divergence import Estimator, divergence, signs
from .inversion import Backwards, check_backwards
from .mean_divergence import WithDivergence

MAX_DIM = 4096
"""Greatest dimension of a Jacobian that is written out."""

LogDensity: TypeAlias = Callable[[Tensor], Tensor]
"""A log density `(B, *shape) -> (B,)`."""


class LogLikelihood(NamedTuple):
    """Log densities in nats, `(B,)`; the points at the other end, `(B, *shape)`; evaluations a row.

    `evaluations` counts a forward pass and a JVP one each.
    """

    value: Tensor
    points: Tensor
    evaluations: int


def standard_normal(x: Batch) -> Time:
    """Log density of N(0, Id), `(B,)`."""
    return -0.5 * per_row(x.square() + math.log(2 * math.pi))


@torch.no_grad()
def log_likelihood(
    flow: FlowMap | Field,
    x1: Batch,
    cond: Condition = None,
    *,
    base: LogDensity = standard_normal,
    estimator: Estimator = "exact",
    probes: int = 1,
    generator: torch.Generator | None = None,
    **solver: Any,
) -> LogLikelihood:
    """log rho_1(x1) of the flow of a velocity: x and the integral of the divergence, solved back from t = 1 together.

    Args:
        flow: a velocity `(x, t, cond) -> like x`, or a map, of which it is u_{t,t}.
        x1: data, `(B, *shape)`.
        cond: condition, one a row.
        base: log density of the base.
        estimator: of the divergence; `exact` costs D products a step.
        probes: K, their number for an estimate, drawn once for all times; the result is then an unbiased estimate of
            the log density.
        generator: source of them, on the device of `x1`.
        solver: method, rtol, atol and steps of `fm.solvers.integrate`; tolerances are 1e-6 unless given.

    Raises:
        ValueError: an unknown estimator, too few probes, or an unknown method of the solver.
    """
    check_condition(cond, x1)
    field: Field = flow.velocity if isinstance(flow, FlowMap) else flow
    drawn = None if estimator == "exact" else signs(x1, probes, generator)
    cost = 1 + (x1[0].numel() if drawn is None else probes)
    calls = 0

    def joint(y: Tensor, t: Tensor, c: Condition) -> Tensor:
        nonlocal calls
        calls += 1
        x = y[:, :-1].reshape(x1.shape)
        growth = divergence(field, x, t, c, estimator=estimator, probes=drawn)
        return torch.cat([field(x, t, c).flatten(1), growth[:, None]], 1)

    start = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), 1)], 1)
    one = x1.new_ones(len(x1))
    options: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6} | solver
    with evaluating(*modules_of(field)):
        end = integrate(joint, start, one, torch.zeros_like(one), cond, **options)
    x0 = end[:, :-1].reshape(x1.shape)
    return LogLikelihood(base(x0) + end[:, -1], x0, calls * cost)


@torch.no_grad()
def jumps_log_likelihood(
    flow_map: FlowMap,
    x1: Batch,
    cond: Condition = None,
    *,
    steps: int = 1,
    base: LogDensity = standard_normal,
    backwards: Backwards = None,
) -> LogLikelihood:
    """log rho_1(x1) by the determinants of `steps` jumps from data to noise, D + 1 evaluations each.

    It is the log density of the law that the jumps back carry to the base; that is the law of the map's samples if the
    jumps back undo the others.

    Args:
        flow_map: a map that was trained on both orders of time.
        x1: data, `(B, *shape)`, of few dimensions D.
        cond: condition, one a row.
        steps: equal jumps.
        base: log density of the base.
        backwards: as in `invert`; a round trip of 2 more evaluations a jump is measured unless given.

    Raises:
        ValueError: more than `MAX_DIM` dimensions, no step, or a map that was never trained backwards.
    """
    check_backwards(flow_map, x1, cond, steps=steps, backwards=backwards)
    x0, growth, cost = _by_determinants(flow_map, x1, grid(steps, 1.0, 0.0), cond)
    return LogLikelihood(base(x0) + growth, x0, cost)


@torch.no_grad()
def sample_with_log_likelihood(
    flow_map: FlowMap, x0: Batch, cond: Condition = None, *, steps: int = 1, base: LogDensity = standard_normal
) -> LogLikelihood:
    """Samples of `steps` jumps from `x0`, and the log density of the samples' own law there.

    It needs no jump back: exact for every map whose jumps are one-to-one. Arguments as in `jumps_log_likelihood`.
    """
    x1, growth, cost = _by_determinants(flow_map, x0, grid(steps, 0.0, 1.0), cond)
    return LogLikelihood(base(x0) - growth, x1, cost)


def _by_determinants(
    flow_map: FlowMap, x: Tensor, times: Sequence[float], cond: Condition
) -> tuple[Tensor, Tensor, int]:
    """Points after the jumps, the sum of log |det grad X|, and evaluations."""
    dim = x[0].numel()
    if dim > MAX_DIM:
        raise ValueError(
            f"the determinant of a jump is for at most {MAX_DIM} dimensions, got {dim}: use log_likelihood with "
            "estimator='hutchinson', or a learned mean divergence."
        )
    check_condition(cond, x, "x")

    def growth(y: Tensor, s: Tensor, t: Tensor) -> Tensor:
        def jump(z: Tensor, r: Tensor, c: Condition) -> Tensor:  # of other numbers of rows too
            return flow_map(z, r, t[0].expand(len(z)), c)

        return torch.linalg.slogdet(jacobian(jump, y, s, cond)).logabsdet

    return (*_jumped(flow_map, x, times, cond, growth), (dim + 1) * (len(times) - 1))


def _jumped(
    flow_map: FlowMap,
    x: Tensor,
    times: Sequence[float],
    cond: Condition,
    growth: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Points after the jumps, and the sum of `growth(x, s, t)` over them."""
    total = x.new_zeros(len(x))
    with evaluating(flow_map):
        for start, end in itertools.pairwise(times):
            s, t = x.new_full((len(x),), start), x.new_full((len(x),), end)
            total = total + growth(x, s, t)
            x = flow_map(x, s, t, cond)
    return x, total


@torch.no_grad()
def learned_log_likelihood(
    flow_map: WithDivergence,
    x1: Batch,
    cond: Condition = None,
    *,
    steps: int = 1,
    base: LogDensity = standard_normal,
    backwards: Backwards = None,
) -> LogLikelihood:
    """log rho_1(x1) by `steps` jumps from data to noise with the learned mean divergence, 2 evaluations each.

    Args:
        flow_map: a map with its head, both trained on both orders of time.
        x1: data, `(B, *shape)`.
        cond: condition, one a row.
        steps: equal jumps.
        base: log density of the base.
        backwards: as in `invert`; a round trip of 2 more evaluations a jump is measured unless given.

    Raises:
        ValueError: a map without a head, no step, or a map that was never trained backwards.
    """
    if not isinstance(flow_map, WithDivergence):
        raise ValueError(
            f"a learned likelihood needs a map with a head, got {type(flow_map).__name__}: train the head of "
            "WithDivergence(flow_map, net) with DivergenceMatching, or use log_likelihood."
        )
    check_condition(cond, x1)
    times = grid(steps, 1.0, 0.0)
    check_backwards(flow_map, x1, cond, steps=steps, backwards=backwards)

    def growth(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return (t - s) * flow_map.mean_divergence(x, s, t, cond)

    x0, total = _jumped(flow_map, x1, times, cond, growth)
    return LogLikelihood(base(x0) + total, x0, 2 * steps)


def dequantise(pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Pixels 0..255 with a uniform draw over their level each, in units of x from -1 to 1: (p + u - 1/2) / 127.5 - 1.

    Args:
        pixels: integers, `(B, *shape)`.
        generator: source of u, on the device of `pixels`.

    Returns:
        `(B, *shape)`, float32; the levels are 1 / 127.5 apart, for `bits_per_dimension`.

    Raises:
        ValueError: pixels that are no integers.
    """
    if pixels.is_floating_point():
        raise ValueError(f"dequantise takes integers from 0 to 255, got {pixels.dtype}: use images as uint8.")
    u = torch.rand(pixels.shape, generator=generator, device=pixels.device)
    return (pixels + u - 0.5) / 127.5 - 1


def bits_per_dimension(log_density: Time, x: Batch, level: float = 1 / 127.5) -> Time:
    """- log rho(x) / (D log 2) - log2(level), `(B,)`.

    Args:
        log_density: of `x`, in nats, `(B,)`.
        x: the points, for their dimension D.
        level: distance of two levels of the data in units of x; 1 for data without levels.

    Raises:
        ValueError: `level` is not positive.
    """
    if not level > 0:
        raise ValueError(f"level must be positive, got {level}: 1 / 127.5 for pixels from -1 to 1.")
    return -log_density / (x[0].numel() * math.log(2)) - math.log2(level)
