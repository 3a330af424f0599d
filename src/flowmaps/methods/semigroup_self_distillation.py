"""Self-distillation by the semigroup: both legs are the map's own, and a diagonal term ties the map to the data.

u_{s,t}  =  l u_{s,w} + (1 - l) u_{w,t}(X_{s,w}),    w = s + l (t - s)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from .. import schedules, times
from ..equations import Semigroup, Stop
from ..losses import Adaptive, Chain, Constant, SplitPower, Weight
from ..maps import FlowMap, VelocityForShortJumps, as_target
from ..objectives import MapMatching, Objective
from ..shapes import Field
from ..times import Diagonal, LogitNormal, Times, Triangle
from ..velocities import FromMap, Velocity
from ._parts import Options, self_distillation, teacher_velocity, with_defaults, with_diagonal_term
from .method import Choices, Method, with_diagonal, with_own_times

__all__ = ["alphaflow", "psd", "shortcut", "soflow", "split_meanflow"]


def psd(
    flow_map: FlowMap,
    *,
    share: float = 0.75,
    midpoint: bool = False,
    stop: Stop = Stop.VELOCITY,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    target: FlowMap | None = None,
    **options: Unpack[Options],
) -> Objective:
    """Progressive self-distillation: split uniform (PSD-U), or at the `midpoint` (PSD-M).

        E |u_{s,t}(I_s) - sg(l u_{s,w} + (1 - l) u_{w,t}(X_{s,w}))|^2, s <= t;    E |u_{t,t}(I_t) - dI_t|^2 on `share`

    Reference: SD, equation 94.

    The paper:
        Time runs from noise to data, as here. Both legs are detached and taken with the weights in training, not with
        an average. The loss is that of u: the factor (t - s)^2 of X is dropped. Shares and weight are those of `lsd`.

    When to use:
        From data alone without any derivative: exotic layers, little memory, large networks. In the paper its one-step
        samples are worse than those of `lsd`.

    Args:
        share: part of the rows on the diagonal.
        midpoint: l = 1/2 instead of uniform.
        stop: where gradients stop.
        diagonal: law of t there; uniform unless given.
        diagonal_weight: weight of the rows on the diagonal; 1 unless given. An adaptive one would learn a mode of dI
            in the place of its mean.
        target: the map that takes the legs, such as an average, `Target(flow_map, decay=0.999)`; the map itself
            unless given.
    """
    own = {"diagonal_weight": diagonal_weight, "target": target, "split": None if midpoint else times.UniformLeg()}
    return self_distillation(flow_map, Semigroup(stop), share, diagonal, options, **own)


def shortcut(
    flow_map: FlowMap,
    *,
    levels: int = 7,
    share: float = 0.75,
    target: FlowMap | None = None,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    **options: Unpack[Options],
) -> Objective:
    """Shortcut models: on dyadic lengths d = 1, 1/2, ..., one jump learns two of half its length.

        E |u_{s,t}(I_s) - sg(u_{s,w} + u_{w,t}(X_{s,w})) / 2|^2,   t = s + d,   w = s + d / 2

    and E |u_{t,t}(I_t) - dI_t|^2 on `share` of the rows. Legs of the least length, 2^-levels, are taken with the
    velocity, as in the paper.

    Reference: K. Frans et al., "One step diffusion via shortcut models", 2024, arXiv 2410.12557.

    The paper:
        Time runs from noise to data, as here. Both legs are detached and taken with an average of decay 0.999; the
        weight is 1, one mean over all rows. The network is told the length of the jump by its level; the diagonal's
        rows carry the shortest, so legs of that length are taken with the velocity. A quarter of the rows are jumps in
        the paper, an eighth by default in the forks of kvfrans/shortcut-models, which guide the targets of the shortest
        jumps only.

    When to use:
        From data alone without any derivative, when samples will be drawn in 1, 2, 4, ... equal steps. For other grids
        take `psd` or `split_meanflow`.

    Args:
        levels: number of lengths of a jump.
        share: part of the rows on the diagonal.
        target: sg, the map of the legs: the map itself unless given; the paper's is `Target(flow_map, decay=0.999)`.
        diagonal: law of t there; uniform unless given.
        diagonal_weight: weight of the rows on the diagonal; 1 unless given. An adaptive one would learn a mode of dI
            in the place of its mean.
    """
    path, rest = with_defaults(options, times=times.Dyadic(levels))
    legs = FromMap(VelocityForShortJumps(flow_map if target is None else as_target(target), 2.0**-levels))
    own = MapMatching(flow_map, path, Semigroup(Stop.TARGET), legs, **rest)
    return with_diagonal_term(diagonal, own, share, **{**rest, "weight": diagonal_weight})


def split_meanflow(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    share: float = 0.5,
    split: times.LegLaw = times.UniformLeg(),  # noqa: B008  (frozen)
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    target: FlowMap | None = None,
    **options: Unpack[Options],
) -> Objective:
    """SplitMeanFlow: the interval is split at random, and the diagonal is the teacher's, or learned from dI.

        E |u_{s,t}(I_s) - sg(l u_{s,w} + (1 - l) u_{w,t}(X_{s,w}))|^2, s <= t;    E |u_{t,t}(I_t) - b|^2 on `share`

    Reference: Y. Guo et al., "SplitMeanFlow", 2025, arXiv 2507.16884.

    The paper:
        Time runs from data to noise; l is the share of the noisier leg, as here. The whole right-hand side is detached
        and taken with the weights in training. The weight is 1. The diagonal is the guided teacher's velocity, from
        which the student starts, not dI. There is no official code: primepake/splitmeanflow draws one coin for the
        whole batch and runs time the other way, lucidrains/rectified-flow-pytorch takes dI for the teacher.

    When to use:
        As `psd`, with a teacher on the diagonal: guidance and the noise of dI are then dealt with once. Keep the
        diagonal's share high, without it any constant velocity is a solution.

    Args:
        teacher: field `(x, t, cond=None) -> like x` for the diagonal; dI unless given.
        share: part of the rows on the diagonal.
        split: law of l.
        diagonal: law of t there; uniform unless given.
        diagonal_weight: weight of the rows on the diagonal; 1 unless given. An adaptive one would learn a mode of dI
            in the place of its mean.
        target: the map that takes the legs, such as an average, `Target(flow_map, decay=0.999)`; the map itself
            unless given.
    """
    velocity = None if teacher is None else teacher_velocity(teacher, flow_map, "split_meanflow", options)
    own = {"diagonal_weight": diagonal_weight, "target": target, "split": split, "velocity": velocity}
    return self_distillation(flow_map, Semigroup(Stop.TARGET), share, diagonal, options, **own)


def alphaflow(
    flow_map: FlowMap,
    *,
    alpha: float | Callable[[float], float] = schedules.Sigmoid(),  # noqa: B008  (frozen)
    velocity_first: bool = True,
    share: float = 0.25,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    **options: Unpack[Options],
) -> Objective:
    """AlphaFlow: from trajectory flow matching at alpha = 1 to MeanFlow as alpha tends to 0.

        E sg(alpha / (|r|^2 + c)) |r|^2,    w = s + alpha (t - s),
        r = u_{s,t}(I_s) - sg(alpha (I_w - I_s) / (w - s) + (1 - alpha) u_{w,t}(I_w))

    and MeanFlow's diagonal term on `share` of the rows. Where the paper changes over to MeanFlow's
    derivative, below alpha = 0.005, this stays at 0.005.

    Reference: H. Zhang et al., "AlphaFlow: understanding and improving MeanFlow models", 2025, arXiv 2510.20771.

    The paper:
        Time runs from data to noise, as in MeanFlow. The whole right-hand side is detached and taken with the weights
        in training: an average is worse there. The weight alpha / (|r|^2 + c) stands in the place of 1 / alpha, not
        beside it, and only off the diagonal. snap-research/alphaflow takes the norm as a mean over dimensions, clips
        the target, and can stay at the floor as done here. A `weight` that is given is taken as it is off the diagonal:
        definition 1 of the paper is `SplitPower(-1)`. For alpha > 0 with dI the exact map is a zero of the
        gradient only up to terms of order alpha.

    When to use:
        In the place of `meanflow` where its derivative is unstable early on, or is not to be had: it needs forward
        passes only.

    Args:
        alpha: a number in (0, 1], or a schedule of progress.
        velocity_first: take the first leg with dI; `False` takes it with the map itself, which at alpha = 1/2 is that
            of shortcut models.
        share: part of the rows with s = t.
        diagonal: law of t there; logit-normal unless given.
        diagonal_weight: weight of the rows with s = t; unless given `weight`, or the adaptive one of MeanFlow.
    """
    path, rest = with_defaults(options, times=LogitNormal(Triangle()))
    weight = {} if "weight" in rest else {"weight": Chain(Adaptive(), SplitPower(1.0))}
    equation, velocity = (
        Semigroup(Stop.TARGET, velocity_first=velocity_first),
        None if velocity_first else FromMap(flow_map),
    )
    matching = MapMatching(flow_map, path, equation, velocity, split=times.FixedLeg(alpha), **weight, **rest)
    on_diagonal = diagonal_weight or rest.get("weight", Adaptive())
    return with_diagonal_term(diagonal or LogitNormal(Diagonal()), matching, share, **{**rest, "weight": on_diagonal})


def soflow(
    flow_map: FlowMap,
    *,
    first_leg: float | Callable[[float], float] = schedules.Geometric(0.1, 0.002),  # noqa: B008  (frozen)
    share: float = 0.75,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    **options: Unpack[Options],
) -> Objective:
    """SoFlow: the jumps from I_s and from a point soon after it on the path end at the same point; no derivative.

        E w l |q|^2 / 2,    q = (X_{s,t}(I_s) - sg X_{r,t}(I_r)) / (r - s),    r = s + l (t - s)

    with w = sg 1 / (|q|^2 + c), and E w |u_{t,t}(I_t) - dI_t|^2 on `share` of the rows. It is `alphaflow` with a first
    leg that begins short.

    Reference: T. Luo, H. Yuan, Z. Liu, "SoFlow: solution flow models", 2025, arXiv 2512.15657.

    The paper:
        Time runs from data to noise. l falls geometrically from 0.1 to 0.002 on ImageNet, from 1 to 1 / 3200 on
        CIFAR-10; the target is the same network, with the same dropout. Start and end are logit-normal by their own
        numbers (`times.StartAndEnd`), velocity matching is logit-normal(-0.2, 1) on three quarters of the rows. The
        weights are of the mean over dimensions with c = 0.01, here of the sum. Guidance mixes the guided velocity with
        the predicted one; here it is that of `guidance`. For l > 0 with dI the exact map is a zero of the gradient only
        up to terms of order l.

    When to use:
        In the place of `meanflow` without a derivative, or of `alphaflow` with a fixed choice of l. In few dimensions
        put `weight=losses.SplitPower(-1)`: under the adaptive weight the noise of dI turns means into modes.

    Args:
        first_leg: l, a number in (0, 1], or a schedule of progress.
        share: part of the rows with s = t.
        diagonal: law of t there; logit-normal unless given.
        diagonal_weight: weight of the rows with s = t; adaptive, as in the paper, unless given.

    Raises:
        ValueError: `first_leg` is out of range.
    """
    if not callable(first_leg) and not 0 < first_leg <= 1:
        raise ValueError(f"soflow needs first_leg in (0, 1], got {first_leg}.")
    path, rest = with_defaults(options, times=times.StartAndEnd())
    quotient = Chain(SplitPower(-2.0), Adaptive(1.0, 0.01), SplitPower(1.0), Constant(0.5))
    on_diagonal = diagonal_weight or rest.get("weight", Adaptive(1.0, 0.01))
    rest = {"weight": quotient, **rest}
    equation = Semigroup(Stop.TARGET, velocity_first=True)
    matching = MapMatching(flow_map, path, equation, split=times.FixedLeg(first_leg), **rest)
    law = diagonal or LogitNormal(Diagonal(), 0.2)
    return with_diagonal_term(law, matching, share, **{**rest, "weight": on_diagonal})


def _alphaflow(choices: Choices) -> dict[str, Any]:
    weight = choices.mean_weight and Chain(choices.mean_weight, SplitPower(-1.0))
    return {"weight": weight, "diagonal": choices.velocity_times, "times": Triangle()}


def _soflow(choices: Choices) -> dict[str, Any]:
    weight = choices.mean_weight and Chain(choices.mean_weight, SplitPower(-1.0))
    return {"weight": weight, "diagonal": choices.velocity_times}


METHODS = (
    Method(psd, settings=with_diagonal),
    Method(alphaflow, settings=_alphaflow, lower_rate=True),
    Method(soflow, settings=_soflow, lower_rate=True),
    Method(split_meanflow, settings=with_diagonal),
    Method(shortcut, settings=with_own_times),
)
