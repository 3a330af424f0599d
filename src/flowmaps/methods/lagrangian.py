"""Methods of the Lagrangian equation, d_t X_{s,t}(x) = b_t(X_{s,t}(x)): one derivative, along time.

lsd draws its rows as every self-distillation does (`_parts.self_distillation`): the first `share` of a batch at s = t,
uniform, for the velocity; the rest uniform on s <= t (`Triangle`), for the map. `objectives.SplitRows` splits them.
A recipe of `flowmaps train` passes laws, a weight and, for lmd, a stop-gradient of its own (`runs/plan.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch

from ..couplings import NoData
from ..dual import Engine
from ..equations import Lagrangian, Stop
from ..losses import Adaptive, Weight
from ..maps import FlowMap, Target
from ..objectives import MapMatching, Objective, RoundTrip
from ..schedules import Anneal
from ..shapes import Field
from ..times import Diagonal, FromBase, Gap, Interval, LogitNormal, Square, Times
from ..velocities import Velocity
from ._parts import Options, distillation, self_distillation, teacher_velocity, with_defaults
from .method import Choices, Jumps, LearnsFrom, Method, own_weight, with_diagonal, with_own_times

__all__ = ["ayf_lmd", "fmm", "freeflow", "lmd", "lsd", "slim_lsd", "tvm"]


def lmd(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    stop: Stop = Stop.NONE,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Lagrangian map distillation, over the square.

        E |d_t X_{s,t}(I_s) - b_t(X_{s,t}(I_s))|^2

    `stop=Stop.VELOCITY` detaches the teacher's term: no derivative through the teacher, an eighth less work with one of
    the map's size.

    Reference: FMM, corollary 3.7.

    The paper:
        Time runs from noise to data, as here, and (s, t) fills the square, both orders. Nothing is detached: gradients
        go through the derivative in t and through the teacher to the point where it is asked, never into its weights.
        The weight is 1 unless given; samples are drawn with an average of the weights.

    When to use:
        The first choice with a good teacher and a network that can be differentiated in time: a regression without a
        moving target. With `stop=Stop.VELOCITY` where the teacher is large.

    Args:
        teacher: field `(x, t, cond=None) -> like x`.
        stop: where gradients stop.
        engine: how the derivative is taken.
    """
    velocity = teacher_velocity(teacher, flow_map, "lmd", options)
    return distillation(flow_map, Lagrangian(stop, engine), velocity, options, Square())


def fmm(flow_map: FlowMap, *, engine: Engine = "dual", **options: Unpack[Options]) -> RoundTrip:
    """Flow map matching: direct from data, on the square, or with `times=Strip(1 / K)` for K steps.

        E ( |d_t X_{s,t}(X_{t,s}(I_t)) - dI_t|^2 + |X_{s,t}(X_{t,s}(I_t)) - I_t|^2 )

    Reference: FMM, proposition 3.11.

    The paper:
        Time runs from noise to data, as here, both orders of (s, t). Nothing is detached: the pull-back X_{t,s}, the
        jump and its derivative all take gradients. The weight multiplies both terms. The public JAX code of the authors
        leaves the second term out, without which the map is not determined; it is kept here. The paper's jump to t
        starts where the map takes I_t at s; for t = 1 that is never noise which the map tears apart between two modes,
        so that X_{0,1} is hardly trained there. At s = t the loss is that of velocity matching, so that it goes
        together with rows of `lsd`, which start at I_s:
        `objectives.SplitRows(lsd(flow_map, share=2 / 3), fmm(flow_map), 0.75)`.

    When to use:
        To learn an invertible map from data with no teacher and no detached target. It is the most expensive direct
        loss, and easier on a strip (`times=Strip(0.25)`) that `pfmm` then lengthens.

    Args:
        engine: how the derivative is taken.
    """
    path, rest = with_defaults(options, times=Square())
    return RoundTrip(flow_map, path, equation=Lagrangian(engine=engine), **rest)


def lsd(
    flow_map: FlowMap,
    *,
    share: float = 0.75,
    stop: Stop = Stop.VELOCITY,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    target: FlowMap | None = None,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Lagrangian self-distillation.

        E |d_t X_{s,t}(I_s) - sg u_{t,t}(X_{s,t}(I_s))|^2, s <= t;    E |u_{t,t}(I_t) - dI_t|^2 on `share` of the rows

    Reference: SD, equation 94.

    The paper:
        Time runs from noise to data, as here. The map's own velocity at the end of the jump is detached, the derivative
        in t is not. Residuals are summed over dimensions; three quarters of the rows are on the diagonal and the mean
        is over all rows. The weight may be learned, exp(-w) L + w. The velocity is that of the weights in training, not
        of an average.

    When to use:
        The first choice from data alone: one derivative, in time only. The paper finds it best of the three
        self-distillations on images.

    Args:
        share: part of the rows on the diagonal.
        stop: where gradients stop.
        diagonal: law of t there; uniform unless given.
        diagonal_weight: weight of the rows on the diagonal; 1 unless given. An adaptive one would learn a mode of dI
            in the place of its mean.
        target: the map whose velocity is taken at the far end, such as an average, `Target(flow_map, decay=0.999)`; the
            map itself unless given.
        engine: how the derivative is taken.
    """
    equation, own = Lagrangian(stop, engine), {"diagonal_weight": diagonal_weight, "target": target}
    return self_distillation(flow_map, equation, share, diagonal, options, **own)


def slim_lsd(
    flow_map: FlowMap,
    *,
    share: float = 0.75,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    target: FlowMap | None = None,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Slim Lagrangian self-distillation: LSD in which everything but u is detached.

        E |u_{s,t}(I_s) + sg((t - s) d_t u_{s,t}(I_s) - u_{t,t}(X_{s,t}(I_s)))|^2, s <= t;    E |u_{t,t}(I_t) - dI_t|^2

    the second on `share` of the rows. It is `lsd` with `Stop.TARGET`: no gradient goes through the derivative.

    Reference: "slim" self-distillation, 2026, arXiv 2609.16222.

    The paper:
        Time runs from noise to data, as here. The derivative in t and the velocity at the end of the jump are detached,
        so that the backward pass is that of plain regression: 1.5 to 2 times less memory than `lsd` by its figures. The
        update is no longer the gradient of a loss; what the paper proves is that the true map is the only stationary
        point of the expected update. Written from a summary of the paper; rows and weight are those of `lsd`.

    When to use:
        In the place of `lsd` where memory limits the network or the batch. A step costs less too, and its tangent needs
        no second derivative, so that fused attention kernels with a forward-mode tangent will do (`dual.flash`). On the
        checkerboard it diverged on one of three seeds, and on none at half the rate (docs/choosing.md).

    Args:
        share: part of the rows on the diagonal.
        diagonal: law of t there; uniform unless given.
        diagonal_weight: weight of the rows on the diagonal; 1 unless given. An adaptive one would learn a mode of dI
            in the place of its mean.
        target: the map whose velocity is taken at the far end, such as an average, `Target(flow_map, decay=0.999)`; the
            map itself unless given.
        engine: how the derivative is taken.
    """
    own: dict[str, Any] = {"diagonal": diagonal, "diagonal_weight": diagonal_weight, "target": target}
    return lsd(flow_map, share=share, stop=Stop.TARGET, engine=engine, **own, **options)


def tvm(
    flow_map: FlowMap,
    *,
    share: float = 0.5,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    target: FlowMap | None = None,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Terminal velocity matching: LSD on long jumps, the velocity at their end that of an average of the map.

        E |d_t X_{s,t}(I_s) - sg v_t(X_{s,t}(I_s))|^2, s <= t;    E |u_{t,t}(I_t) - dI_t|^2 on `share` of the rows

    with v_t = u_{t,t} of the average.

    Reference: L. Zhou et al., "Terminal velocity matching", 2025, arXiv 2511.19797.

    The paper:
        Time runs from data to noise: its logit-normal(-0.4, 1) is (0.4, 1) here. The length of a jump is
        logit-normal(-0.8, 1), its end logit-normal(-0.4, 1) where there is room for it (`times.Gap`), and the time of
        the velocity matching logit-normal(-0.4, 1) on its own. The average has decay 0.99, the gradient goes through
        the derivative, the weight is 1. In lumalabs/tvm every row is used in both terms; here each term takes half of
        the rows, so that the loss is half of theirs. Under guidance of weight w their network has 1 / w as an input,
        its output is multiplied by w and the loss by 1 / w^2: that is part of the network, and left out here. Its
        transformer normalises by RMS without learned scales, to be Lipschitz.

    When to use:
        In the place of `lsd` on images, where its paper found the average to halve the one-step FID (10.2 to 4.9);
        2505.18825 saw no gain from an average.

    Args:
        share: part of the rows on the diagonal.
        diagonal: law of t there; logit-normal unless given.
        diagonal_weight: weight of the rows on the diagonal; 1 unless given. An adaptive one would learn a mode of dI
            in the place of its mean.
        target: the map whose velocity is taken at the far end; an average of decay 0.99 unless given.
        engine: how the derivative is taken.
    """
    options = {**options, "times": options.get("times") or Gap()}
    target = Target(flow_map, decay=0.99) if target is None else target
    own: dict[str, Any] = {"diagonal": diagonal or LogitNormal(Diagonal()), "diagonal_weight": diagonal_weight}
    return lsd(flow_map, share=share, target=target, engine=engine, **own, **options)


def ayf_lmd(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    warmup: Callable[[float], float] = Anneal(0.0, 0.99, 0.1),  # noqa: B008  (frozen)
    normalise: float | None = 0.1,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Align your flow, Lagrangian: LMD as a regression, its tangent normalised and warmed up.

        E |u_{s,t}(I_s) - sg(u_{s,t}(I_s) - r / (|r| + c))|^2,   r = u_{s,t}(I_s) + k (t - s) d_t u - b_t(X_{s,t}(I_s))

    Reference: A. Sabour, S. Fidler, K. Kreis, "Align your flow", 2025, arXiv 2506.14603.

    The paper:
        Time runs from data to noise. All but u is detached; the target is the same network, without an average. The
        weight multiplies the residual of u. Warm-up to 0.99 and normalisation are those of the Eulerian form, which
        public ports apply there only. The paper finds this form better in two dimensions and over-smooth on images.

    When to use:
        From a teacher in few dimensions, where `lmd` itself is unstable: no gradient goes through a derivative or the
        teacher.

    Args:
        teacher: field `(x, t, cond=None) -> like x`; the paper's is guided: pass `guidance`.
        warmup: k as a schedule of progress.
        normalise: c; `None` for the plain residual of u.
        engine: how the derivative is taken.
    """
    equation, velocity = (
        Lagrangian(Stop.TARGET, engine, normalise=normalise),
        teacher_velocity(teacher, flow_map, "ayf_lmd", options),
    )
    return distillation(flow_map, equation, velocity, options, Interval(), warmup=warmup)


def freeflow(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    stop: Stop = Stop.TARGET,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """FreeFlow's prediction loss: distillation from noise alone, without data.

        E w |u_{0,t}(x0) - sg(b_t(X_{0,t}(x0)) - t d_t u_{0,t}(x0))|^2,    w = sg 1 / (|.|^2 + c)

    Its second loss, which corrects the law of the samples by an online model of their velocity, is not part of it.

    Reference: S. Tong et al., "Flow map distillation without data", 2025, arXiv 2511.19428.

    The paper:
        Time runs from noise to data along the jump. The whole right-hand side is detached, derivative and teacher
        (`Stop.TARGET`): the residual equals that of LMD at s = 0, only its gradient differs. The weight
        is 1 / (|r|^2 / d + c) of d dimensions, here of the sum. The teacher is guided. The public code samples only,
        and the law of t is not known to us: uniform here.

    When to use:
        From a teacher without its data, for one step from noise. With data at hand take `lmd`, which learns all pairs;
        without the correction its errors along t go unseen.

    Args:
        teacher: field `(x, t, cond=None) -> like x`.
        stop: where gradients stop; the paper detaches the right-hand side.
        engine: how the derivative is taken.

    Raises:
        ValueError: `times` draws pairs with s > 0.
    """
    equation, velocity = Lagrangian(stop, engine), teacher_velocity(teacher, flow_map, "freeflow", options)
    path, rest = with_defaults(options, times=FromBase(), coupling=NoData(), weight=Adaptive(1.0, 1e-2))
    if rest["times"].pair(torch.full((3, 1), 0.5))[0].any():
        raise ValueError(f"freeflow knows points at s = 0 only, got {rest['times']}: take a law with s = 0.")
    return MapMatching(flow_map, path, equation, velocity, **rest)


def _distilled(choices: Choices) -> dict[str, Any]:
    return {"times": choices.pairs, "weight": choices.residual_weight, "stop": choices.stop}


METHODS = (
    Method(lmd, LearnsFrom.TEACHER, settings=_distilled),
    Method(ayf_lmd, LearnsFrom.TEACHER, settings=lambda choices: {"times": choices.pairs}, lower_rate=True),
    Method(freeflow, LearnsFrom.TEACHER, Jumps.FROM_BASE),
    Method(fmm, settings=lambda choices: {**own_weight(choices), "times": choices.strip}, strip_on_images=True),
    Method(lsd, settings=with_diagonal),
    Method(slim_lsd, settings=with_diagonal),
    Method(tvm, settings=with_own_times),
)
