"""Distillation by the semigroup, X_{w,t}(X_{s,w}(x)) = X_{s,t}(x), as u: jumps of a teacher or a frozen map teach one.

u_{s,t}  =  l u_{s,w} + (1 - l) u_{w,t}(X_{s,w}),    w = s + l (t - s)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from .. import schedules, times
from ..equations import Semigroup, Stop
from ..losses import TruncatedSNR
from ..maps import FlowMap, Target, as_target
from ..objectives import Compare, MapMatching, Objective, Sum, VelocityMatching
from ..shapes import Field
from ..times import Square, Triangle
from ..velocities import FromMap, Velocity
from ._parts import Options, base_std, loss_of_jumps, solver_jumps, teacher_velocity, with_defaults
from .method import LearnsFrom, Method

__all__ = ["ctm", "neural_operator", "pfmm", "progressive_distillation"]


def pfmm(flow_map: FlowMap, *, frozen: FlowMap | None = None, legs: int = 4, **options: Unpack[Options]) -> Objective:
    """Progressive flow map matching: one jump learns several of a frozen map.

        E |X_{s,t}(I_s) - (X^frozen_{t_{K-1},t_K} o ... o X^frozen_{t_0,t_1})(I_s)|^2,    t_k = s + (k / K) (t - s)

    The residual is that of u: the weight `Power(2)`, (t - s)^2, makes it that of X, and one that is given takes its
    place.

    Reference: FMM, lemma 3.13.

    The paper:
        Time runs from noise to data, as here. The frozen map takes the legs and is detached. The weight multiplies the
        residual of X. The paper joins the K jumps of a map of a strip into one of the whole square.

    When to use:
        After `fmm` on a strip, to make few steps of many. It costs forward passes only, but it inherits the errors of
        the frozen map.

    Args:
        frozen: the map of the legs: a copy of `flow_map` as it is now unless given, so train it on a strip of width
            1 / legs first. A `Target` is used as it is, and may move; any other map is copied.
        legs: K.

    With guidance the frozen map must be a guided one: it is not guided anew.
    """
    source = FromMap(as_target(flow_map if frozen is None else frozen))
    path, rest = with_defaults(options, times=Square(), **loss_of_jumps(options))
    return MapMatching(flow_map, path, Semigroup(Stop.TARGET, legs=legs), source, **rest)


def progressive_distillation(
    flow_map: FlowMap,
    *,
    frozen: FlowMap | None = None,
    cells: int | Callable[[float], int] = schedules.Halving(32),  # noqa: B008  (frozen)
    **options: Unpack[Options],
) -> Objective:
    """Progressive distillation: on a grid whose cells double in length from round to round, one jump learns two.

        E a_s |u_{s,t}(I_s) - sg(u_{s,w} + u_{w,t}(X_{s,w})) / 2|^2,   w = (s + t) / 2,   (s, t) = (k, k + 1) / cells

    with the legs of the frozen map of the round before, and a_s the weight of a loss on the denoiser, on the linear
    path max(s^2, (1 - s)^2).

    Reference: T. Salimans, J. Ho, "Progressive distillation for fast sampling of diffusion models", 2022, arXiv
    2202.00512, algorithm 2.

    The paper:
        Time runs from data to noise: its start is our s = 1 - t. The teacher of each round is frozen, and replaced by
        the student when the round ends; there is no average. Its legs are DDIM steps, jumps along a denoiser, which the
        frozen map's own jumps stand for here. The weight multiplies the error of the denoiser, max(SNR, 1) at the
        noisier end. The published run halves 8192 steps to 1, here 32 cells to 1 by default. openai/consistency_models
        takes Euler steps on its grid in sigma.

    When to use:
        From a trained velocity, when derivatives are not available. Errors add up over the rounds, each of which needs
        training to its end.

    Args:
        frozen: the map of the legs: unless given a copy of `flow_map` that is made anew after each round, and in the
            first a map whose jumps go along its velocity (see `flowmaps.nn.MLP.zero_second_time`).
        cells: number of cells, or a schedule of progress, `Halving` unless a frozen map is given.

    With guidance the map, and so its copies, must have learned the guided velocity before: it is not guided anew.

    Raises:
        ValueError: `cells` is no `Halving`, and no `frozen` map is given.
    """
    if frozen is None:
        if callable(cells) and not isinstance(cells, schedules.Halving):
            raise ValueError(f"progressive_distillation takes rounds from Halving, got {cells}: pass frozen= too.")
        frozen = Target(flow_map, rounds=None if isinstance(cells, int) else cells.rounds)
    path, rest = with_defaults(options, times=times.Cell(cells))
    rest.setdefault("weight", TruncatedSNR(path, base_std(options)))
    return MapMatching(flow_map, path, Semigroup(Stop.TARGET), FromMap(as_target(frozen)), **rest)


def neural_operator(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    solver: str = "rk4",
    solver_steps: int = 4,
    **options: Unpack[Options],
) -> Objective:
    """Regression on solved trajectories: the semigroup of one leg, by the teacher's solver.

        E |X_{s,t}(I_s) - solver_{s,t}(I_s)|^2

    Reference: FMM, appendix; neural operators, for diffusion 2211.13449.

    The paper:
        The target is the solver's and carries no gradient. The weight (t - s)^2 on the residual of u makes it that of
        X. The diffusion paper, 2211.13449, predicts a whole trajectory from its noise at once; here each row has a pair
        (s, t) of its own.

    When to use:
        As a baseline, or where the teacher is so cheap that a solve a row costs little: the target is right up to the
        solver, and no derivative is needed.

    Args:
        teacher: field `(x, t, cond=None) -> like x`.
        solver, solver_steps: its solver (see `flowmaps.solvers.integrate`).
    """
    flow = solver_jumps(teacher_velocity(teacher, flow_map, "neural_operator", options), solver, solver_steps)
    path, rest = with_defaults(options, times=Square(), **loss_of_jumps(options))
    return MapMatching(flow_map, path, Semigroup(Stop.TARGET, legs=1, velocity_first=True), flow, **rest)


def ctm(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    solver: str = "heun2",
    solver_steps: int = 4,
    target: FlowMap | None = None,
    matching: float = 1.0,
    **options: Unpack[Options],
) -> Objective:
    """Consistency trajectory model, without its adversarial term: compared at the data end.

        E |X^sg_{t,1}(X_{s,t}(I_s)) - X^sg_{t,1}(X^sg_{w,t}(solver_{s,w}(I_s)))|^2 + matching E |u_{t,t}(I_t) - dI_t|^2

    Reference: D. Kim et al., "Consistency trajectory models", 2023, arXiv 2310.02279.

    The paper:
        Time is sigma, from data to noise: its t, u, s are our s, w, t. Gradients enter through the jump alone. The map
        that carries on to the data end has frozen weights, but is differentiated through its input: without that there
        is no gradient. The weight is 1, the diagonal term's factor is set from gradient norms, here it is a number, and
        its t is that of the pair. The adversarial term is left out. sony/ctm takes the target's inner jump with the
        weights in training, not with the average, and draws the number of solver steps for each batch.

    When to use:
        From a teacher, where errors should count as they look at the data end and any jump is wanted. It costs three
        times as much as `consistency_distillation`; without its adversarial term the gain is jumps of any length.

    Args:
        teacher: field `(x, t, cond=None) -> like x`.
        solver, solver_steps: its solver over [s, w].
        target: sg, the map that takes the second leg and carries to the data end: the map itself unless given; the
            paper's is `Target(flow_map, decay=0.999)`.
        matching: factor of the diagonal term.
    """
    velocity = teacher_velocity(teacher, flow_map, "ctm", options)
    path, rest = with_defaults(options, times=Triangle())
    equation, flow = Semigroup(Stop.TARGET, velocity_first=True), solver_jumps(velocity, solver, solver_steps)
    jumps = MapMatching(
        flow_map, path, equation, flow, split=times.UniformLeg(), target=target, compare=Compare.DATA, **rest
    )
    diagonal = velocity if options.get("guidance") else None  # of a guided teacher the guided velocity
    beside: dict[str, Any] = {**rest, "weight": None}
    return Sum([jumps, VelocityMatching(flow_map, path, diagonal, **beside)], [1.0, matching])


METHODS = (
    Method(ctm, LearnsFrom.TEACHER, settings=lambda choices: {"times": choices.pairs}),
    Method(progressive_distillation, LearnsFrom.TEACHER, starts_along_velocity=True, copies_teacher=True),
    Method(
        neural_operator,
        LearnsFrom.TEACHER,
        settings=lambda choices: {"times": choices.pairs, "weight": choices.residual_weight},
    ),
    Method(pfmm, LearnsFrom.STRIP, settings=lambda choices: {"times": choices.pairs}),
)
