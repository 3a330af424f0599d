r"""A map against itself: the semigroup and round-trip residuals over the square of (s, t), no velocity needed.

    semigroup     ( E|X_{w,t}(X_{s,w}(x_s)) - X_{s,t}(x_s)|^2 )^(1/2),   w = (s + t) / 2
    round trip    ( E|X_{t,s}(X_{s,t}(x_s)) - x_s|^2 )^(1/2)

Both vanish for every exact map. A map that satisfies them may still follow another flow than that of the data.

Reference: N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden, "Flow map matching with stochastic interpolants", 2024, arXiv
2406.07507, proposition 3.2 and section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..interpolants import Interpolant
from ..maps import FlowMap
from ..modules import evaluating
from ..shapes import Batch, Condition, check_condition, per_row


class ResidualSquare(NamedTuple):
    """Root mean square residuals over (s, t), in units of x.

    Attributes:
        times: `(n,)`, rising from 0 to 1.
        semigroup, round_trip: `(n, n)`; a row for each s, a column for each t.
    """

    times: Tensor
    semigroup: Tensor
    round_trip: Tensor


@torch.no_grad()
def residual_square(
    flow_map: FlowMap,
    x0: Batch,
    x1: Tensor | None = None,
    *,
    interpolant: Interpolant | None = None,
    cond: Condition = None,
    number: int = 9,
    watch: Callable[[float], None] | None = None,
) -> ResidualSquare:
    """The residuals on a `number` x `number` grid of (s, t), both orders, by 4 evaluations of the map for each point.

    Args:
        flow_map: the map.
        x0: base samples, `(B, *shape)`.
        x1: data, `(B, *shape)`: x_s is then a point of the interpolant, and the map's own X_{0,s}(x0) otherwise, which
            takes one more evaluation for each s.
        interpolant: the path, without latent noise, with `x1`.
        cond: condition, one a row.
        number: n, times on each axis, 2 or more.
        watch: progress callback, called with the share that is done after each s.

    Raises:
        ValueError: fewer than two times, or `x1` without `interpolant` or of another shape.
    """
    if number < 2 or not len(x0):
        raise ValueError(f"a square needs number >= 2 and rows of x0, got {number} and {len(x0)} rows.")
    if (x1 is None) != (interpolant is None) or (interpolant is not None and interpolant.noisy):
        raise ValueError("x1 goes with an interpolant without latent noise: pass both, or neither.")
    check_condition(cond, x0, "x0")
    times = torch.linspace(0, 1, number, dtype=torch.float64)
    semigroup, round_trip = torch.zeros(2, number, number, dtype=torch.float64)
    with evaluating(flow_map):
        for i, s in enumerate(times.tolist()):
            start = x0.new_full((len(x0),), s)
            if x1 is None or interpolant is None:
                x = flow_map(x0, torch.zeros_like(start), start, cond)
            else:
                x = interpolant.point(x0, x1, start)
            for k, t in enumerate(times.tolist()):
                end = torch.full_like(start, t)
                jump = flow_map(x, start, end, cond)
                middle = 0.5 * (start + end)
                legs = flow_map(flow_map(x, start, middle, cond), middle, end, cond)
                semigroup[i, k] = _rms(legs - jump)
                round_trip[i, k] = _rms(flow_map(jump, end, start, cond) - x)
            if watch is not None:
                watch((i + 1) / number)
    return ResidualSquare(times, semigroup, round_trip)


def _rms(difference: Tensor) -> Tensor:
    return per_row(difference.double().square()).mean().sqrt().cpu()
