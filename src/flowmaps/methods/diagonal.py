"""Methods that look at s = t alone: they teach the velocity, from which the others start."""

from __future__ import annotations

from typing import Any, Unpack

from ..couplings import Base, FlowPairs, Normal, Paired
from ..maps import FlowMap
from ..objectives import Objective, VelocityMatching
from ..shapes import Field
from ..solvers import SolverFlow
from ..times import Diagonal
from ..velocities import FromInterpolant, Velocity
from ._parts import Options, teacher_velocity, with_defaults
from .method import Choices, Jumps, LearnsFrom, Method

__all__ = ["flow_matching", "reflow"]


def flow_matching(flow_map: FlowMap, **options: Unpack[Options]) -> Objective:
    """Velocity matching: teaches the velocity b on the diagonal.

        E |u_{t,t}(I_t) - dI_t|^2

    References: Y. Lipman et al., "Flow matching for generative modeling", 2022, arXiv 2210.02747; M. S. Albergo, N. M.
    Boffi, E. Vanden-Eijnden, "Stochastic interpolants", 2023, arXiv 2303.08797.

    The paper:
        Time runs from noise to data, as here. Nothing needs detaching: dI is not made by the network. The weight is 1;
        EDM and many image recipes draw t log-normal or logit-normal instead of uniform, which is the same regression
        with another law of t. Samples are drawn with an average of the weights. Meta's flow_matching and torchcfm
        differ in their couplings only.

    When to use:
        To train a teacher, or to see what the diagonal alone gives. It does not learn jumps: sample it with a solver.
    """
    path, rest = with_defaults(options, times=Diagonal())
    return VelocityMatching(flow_map, path, **rest)


def reflow(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    base: Base = Normal(),  # noqa: B008  (frozen)
    solver: str = "rk4",
    steps: int = 4,
    **options: Unpack[Options],
) -> Objective:
    """Reflow: velocity matching on pairs of noise and the sample that the teacher's flow makes of it.

        E |u_{t,t}(I_t) - dI_t|^2,    x1 = X^teacher_{0,1}(x0)

    The flow that is learned has straighter trajectories and the same samples; it is sampled by a solver of few steps.

    Reference: X. Liu, C. Gong, Q. Liu, "Flow straight and fast", 2022, arXiv 2209.03003.

    The paper:
        Time runs from noise to data, as here. The teacher is detached: it makes the pairs before the loss is taken. The
        weight is 1 and the target is dI of the pair. The public code, gnobitab/RectifiedFlow, stores pairs made once by
        an adaptive solver and starts from the teacher's weights; here each batch solves its own, by a solver of fixed
        step. sangyun884/rfpp changes the law of t to a U and the distance to a pseudo-Huber one.

    When to use:
        If you must keep a velocity and a solver, but want few steps of it. For one step a map of two times is the
        shorter way; pairs cost a solve each.

    Args:
        teacher: field `(x, t, cond=None) -> like x`; not needed with `coupling=Paired()`, pairs that were made before.
        base: law of x0.
        solver, steps: the teacher's solver (see `flowmaps.solvers.integrate`).

    Raises:
        ValueError: `coupling` is given, whose pairs are not those of a flow.
    """
    coupling = options.get("coupling")
    if coupling is None:
        velocity = teacher_velocity(teacher, flow_map, "reflow", options)
        coupling = FlowPairs(SolverFlow(velocity, method=solver, steps=steps), base)
    elif not isinstance(coupling, FlowPairs | Paired):
        raise ValueError(f"reflow needs pairs that a flow makes, got {type(coupling).__name__}: pass base= for x0.")
    path, rest = with_defaults(options, times=Diagonal())
    rest["coupling"] = coupling
    return VelocityMatching(flow_map, path, FromInterpolant(path), **rest)  # the pairs are guided already


def _velocity_times(choices: Choices) -> dict[str, Any]:
    return {"times": choices.velocity_times, "weight": choices.weight}


METHODS = (
    Method(flow_matching, jumps=Jumps.NONE, settings=_velocity_times),
    Method(reflow, LearnsFrom.TEACHER, Jumps.NONE, settings=_velocity_times),
)
