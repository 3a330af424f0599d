r"""Inversion and style transfer: data to noise under one condition, and back to data under another.

    z = X_{1,s}(x1; source),        x1' = X_{s,1}(z; target),        s in [0, 1) the depth

At s = 0 only what the map keeps in the noise is carried over; s near 1 changes little. For target = source the result
is x1 for a map that inverts itself: the round trip X_{t,s} o X_{s,t} = Id of the square of (s, t).

A map inverts only if it was trained on jumps from data to noise, t < s. Others give numbers for them all the same, so
that `backwards` has to be answered: by the caller, by the law of times of the objective, or by a measured round trip.

Reference: N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden, "Flow map matching with stochastic interpolants", 2024, arXiv
2406.07507, section 4.3 (style transfer by the two-time map).
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from ..maps import FlowMap
from ..methods import Jumps, Method
from ..objectives import Objective
from ..samplers import Jump
from ..shapes import Batch, Condition, Time, check_condition, per_row
from ..times import grid

MAX_ERROR = 0.1
"""Greatest relative round-trip error of a map that is taken to invert, where nothing else is known of it."""

Backwards: TypeAlias = bool | Objective | Method | None
"""Whether a map was trained on jumps from data to noise: a bool; or the objective that it was trained with, whose law
of times tells; or its `Method`, which tells only a no. Otherwise, and for `None`, a round trip is measured."""


def invert(
    flow_map: FlowMap,
    x1: Batch,
    cond: Condition = None,
    *,
    to: float = 0.0,
    steps: int = 1,
    backwards: Backwards = None,
) -> Batch:
    """Take data back to time `to` in equal jumps, X_{1,to}(x1), `(B, *shape) -> (B, *shape)`.

    Args:
        flow_map: a map that was trained on both orders of time.
        x1: data, `(B, *shape)`.
        cond: condition of the data, one a row.
        to: s, the time to reach in [0, 1); 0 is noise.
        steps: number of jumps, an evaluation each.
        backwards: see `Backwards`.

    Raises:
        ValueError: a map that was never trained backwards, or `to` outside [0, 1).
    """
    _check(x1, cond, to, steps)
    check_backwards(flow_map, x1, cond, to=to, steps=steps, backwards=backwards)
    return Jump(grid=grid(steps, 1.0, to))(flow_map, x1, cond)


def transfer(
    flow_map: FlowMap,
    x1: Batch,
    source: Condition,
    target: Condition,
    *,
    to: float = 0.0,
    steps: int = 1,
    backwards: Backwards = None,
) -> Batch:
    """Carry data from one condition to another: back to time `to` under `source`, then to data under `target`.

    Args:
        flow_map, x1: as in `invert`.
        source: condition of the data, one a row.
        target: condition of the result, one a row.
        to, steps, backwards: as in `invert`; `2 steps` evaluations in all.

    Returns:
        X_{to,1}(X_{1,to}(x1; source); target), `(B, *shape)`.

    Raises:
        ValueError: as `invert`, or a condition without a row for each of `x1`.
    """
    check_condition(target, x1)
    z = invert(flow_map, x1, source, to=to, steps=steps, backwards=backwards)
    return generate(flow_map, z, target, start=to, steps=steps)


def generate(flow_map: FlowMap, z: Batch, cond: Condition = None, *, start: float = 0.0, steps: int = 1) -> Batch:
    """Carry points of time `start` to the data in equal jumps, X_{start,1}(z), `(B, *shape) -> (B, *shape)`.

    Args:
        flow_map: a two-time map.
        z: points of time `start`, such as `invert` gives, `(B, *shape)`.
        cond: condition of the result, one a row.
        start: s in [0, 1).
        steps: number of jumps, an evaluation each.

    Raises:
        ValueError: `start` outside [0, 1), no step, or a condition without a row for each of `z`.
    """
    _check(z, cond, start, steps)
    return Jump(grid=grid(steps, start, 1.0))(flow_map, z, cond)


def round_trip_error(flow_map: FlowMap, x1: Batch, cond: Condition = None, *, to: float = 0.0, steps: int = 1) -> Time:
    """How far data come back from where they were: |X_{to,1}(X_{1,to}(x1)) - x1| of each row, `(B,)`, in units of x.

    It needs no velocity, and says whether the map undoes itself, not whether its noise is that of the flow.
    """
    z = invert(flow_map, x1, cond, to=to, steps=steps, backwards=True)
    return per_row((generate(flow_map, z, cond, start=to, steps=steps) - x1).square()).sqrt()


def relative_error(back: Batch, x1: Batch) -> float:
    """Root mean square distance of data that came back from where they were, as a share of their spread."""
    return float(per_row((back - x1).square()).mean().sqrt()) / (spread(x1) or 1.0)


def spread(x: Batch) -> float:
    """Root mean square distance of rows from their mean, in units of x."""
    return float(per_row((x - x.mean(0)).square()).mean().sqrt())


def check_backwards(
    flow_map: FlowMap,
    x1: Batch,
    cond: Condition = None,
    *,
    to: float = 0.0,
    steps: int = 1,
    backwards: Backwards = None,
) -> None:
    """Refuse a map that was never trained on jumps from data to noise; arguments as in `invert`.

    Raises:
        ValueError: the caller or the objective says so, or the round trip comes back farther than `MAX_ERROR` of the
            spread of the data.
    """
    if isinstance(backwards, Objective):
        backwards = trained_backwards(backwards)
    jumps = ""
    if isinstance(backwards, Method):
        jumps = f" ({backwards.name} learns jumps {backwards.jumps.value})"
        backwards = None if backwards.jumps is Jumps.ANY else False
    advice = (
        "train it with times=fm.times.Square(), both orders, or solve the velocity's ODE backwards: "
        "fm.solvers.SolverFlow(flow_map.velocity)"
    )
    if backwards is False:
        raise ValueError(f"the map was never trained backwards, from data to noise{jumps}: {advice}.")
    if backwards is None:
        error = float(round_trip_error(flow_map, x1, cond, to=to, steps=steps).square().mean().sqrt())
        size = spread(x1) or float(per_row(x1.square()).mean().sqrt())
        if not error <= MAX_ERROR * size:
            raise ValueError(
                f"data come back from time {to:g} with an error of {error:.3g}, more than {MAX_ERROR:g} of their "
                f"spread {size:.3g}, as for a map that was never trained backwards: {advice}; or go on anyway with "
                "backwards=True."
            )


def trained_backwards(objective: Objective) -> bool:
    """Whether an objective trains jumps from data to noise, t < s: what its law of times draws."""
    x1 = torch.zeros(256, 1)
    s, t, *_ = objective.draw_times(x1, torch.Generator().manual_seed(0), 1.0)
    return bool((t < s).any())


def _check(x1: Tensor, cond: Condition, to: float, steps: int) -> None:
    if not 0 <= to < 1:
        raise ValueError(f"data are taken back to a time in [0, 1) (0 is noise, 1 is data), got to={to}.")
    if steps < 1:
        raise ValueError(f"inversion needs steps >= 1, got {steps}.")
    check_condition(cond, x1)
