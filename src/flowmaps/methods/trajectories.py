"""The stage before a method: a map learns the jumps of solved trajectories, and the method goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from ..maps import FlowMap
from ..objectives import Compare, Objective, TrajectoryMatching
from ..shapes import Field
from ..times import FromBase, Times, ToData, Triangle
from ..velocities import Velocity
from ._parts import Options, teacher_velocity, with_defaults
from .method import Jumps

__all__ = ["warm_up"]

_TIMES: dict[Jumps, Times] = {Jumps.ANY: Triangle(), Jumps.TO_DATA: ToData(), Jumps.FROM_BASE: FromBase()}


def warm_up(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    jumps: Jumps = Jumps.ANY,
    points: int | Sequence[float] = 16,
    solver: str = "midpoint",
    pairs: int = 4,
    **options: Unpack[Options],
) -> Objective:
    """Warm-up on solved trajectories, before any method: regression of the map on points of the teacher's trajectories.

        E |u_{s,t}(x_s) - (x_t - x_s) / (t - s)|^2,    dx_r = b_r(x_r) dr from noise x_0,    s and t on a grid

    and for jumps to the data alone E |X_{s,1}(x_s) - x_1|^2.

    Reference: CMT, "consistency mid-training", 2025, arXiv 2509.24526.

    The paper:
        A stage between the training of a velocity and that of a few-step map: the map starts near the flow, and the
        method that follows needs fewer steps. Any point of a trajectory is taken to its end for a consistency model,
        any two points for a map of two times. The paper stores trajectories and compares images by LPIPS
        (`distance=Perceptual(...)`); here each step solves its own, and the distance is the squared norm. Written from
        a summary of the paper.

    When to use:
        Before a method whose start is unstable or slow, where there is a teacher. It differs from `neural_operator` in
        its points, which are the trajectory's and not I_s, and in that one solve serves several rows.

    Args:
        teacher: field `(x, t, cond=None) -> like x`.
        jumps: those that the method will learn: any, to the data, or from noise.
        points: the grid of times from 0 to 1: a number of equal steps, or the times.
        solver: a method of fixed step (see `flowmaps.solvers.integrate`), one step for each of the grid.
        pairs: rows for each trajectory.

    Raises:
        ValueError: there is no teacher, the jumps are `Jumps.NONE`, or as in `objectives.TrajectoryMatching`.
    """
    if jumps not in _TIMES:
        raise ValueError("a warm-up teaches jumps, and a method of Jumps.NONE learns none: train without one.")
    velocity = teacher_velocity(teacher, flow_map, "warm_up", options)
    path, rest = with_defaults(options, times=_TIMES[jumps])
    own: dict[str, Any] = {"points": points, "solver": solver, "pairs": pairs}
    compare = Compare.JUMP if jumps is Jumps.TO_DATA else Compare.VELOCITY
    return TrajectoryMatching(flow_map, path, velocity, compare=compare, **own, **rest)
