"""Methods of the Eulerian equation, d_s X_{s,t}(x) + grad X_{s,t}(x) b_s(x) = 0: one derivative, in time and space.

D u = d_s u + grad u . b_s is the derivative of u_{s,t} along the flow at its start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from ..dual import Engine
from ..equations import Eulerian, Stop
from ..losses import Adaptive, Constant, Weight
from ..maps import Endpoint, FlowMap
from ..objectives import MapMatching, Objective
from ..schedules import Anneal
from ..shapes import Field
from ..times import Diagonal, Interval, LogitNormal, Mixture, Square, Times, ToData, Triangle
from ..velocities import Velocity
from ._parts import Options, distillation, self_distillation, teacher_velocity, with_defaults, with_diagonal_term
from .method import Choices, LearnsFrom, Method, with_diagonal

__all__ = [
    "anyflow",
    "ayf_emd",
    "emd",
    "esd",
    "eulerian_estimation",
    "improved_meanflow",
    "meanflow",
    "pixel_meanflow",
    "slim_esd",
]


def emd(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    stop: Stop = Stop.NONE,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Eulerian map distillation, over the square.

        E |d_s X_{s,t}(I_s) + grad X_{s,t}(I_s) b_s(I_s)|^2

    Reference: FMM, corollary 3.8.

    The paper:
        Time runs from noise to data, as here, and (s, t) fills the square, both orders. Nothing is detached: gradients
        go through the Jacobian of the map in space. The weight is 1 unless given. The paper reports it far behind LMD
        on images: the derivative in space is steep where the flow separates modes.

    When to use:
        To compare with `lmd`, and as the limit of consistency distillation over all pairs. For samples prefer `lmd` or
        `ayf_emd`, which regresses on a detached side.

    Args:
        teacher: field `(x, t, cond=None) -> like x`.
        stop: where gradients stop.
        engine: how the derivative is taken.
    """
    velocity = teacher_velocity(teacher, flow_map, "emd", options)
    return distillation(flow_map, Eulerian(stop, engine), velocity, options, Square())


def eulerian_estimation(flow_map: FlowMap, *, engine: Engine = "dual", **options: Unpack[Options]) -> Objective:
    """Eulerian estimation, on s <= t: a direct method whose true map is a stationary point; its loss need not fall.

        E |d_s X_{s,t}(I_s) + sg(grad X_{s,t}(I_s) dI_s)|^2

    Reference: FMM, section 3.6.

    The paper:
        Time runs from noise to data, as here. The spatial term grad X . dI is detached, d_s X is not: the noise of dI
        is then in the target alone, but the update is no gradient of a loss that the map would minimise. The weight is
        1 unless given.

    When to use:
        To see consistency training without a step. Expect noisy gradients; `meanflow` is the form that is used on
        images. On the checkerboard it diverges or learns nothing at the recipe's first settings; with a learned weight
        it trains (docs/tuning.md), and stays far from `lsd` (docs/choosing.md).

    Args:
        engine: how the derivative is taken.
    """
    path, rest = with_defaults(options, times=Triangle())
    return MapMatching(flow_map, path, Eulerian(Stop.TANGENT, engine), **rest)


def esd(
    flow_map: FlowMap,
    *,
    share: float = 0.75,
    stop: Stop = Stop.TANGENT,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    target: FlowMap | None = None,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Eulerian self-distillation.

        E |d_s X_{s,t}(I_s) + sg(grad X_{s,t}(I_s) u_{s,s}(I_s))|^2, s <= t;    E |u_{t,t}(I_t) - dI_t|^2 on `share`

    Reference: SD, equation 94.

    The paper:
        Time runs from noise to data, as here. The spatial term grad X . u_{s,s} is detached, d_s X is not. Shares and
        weight are those of `lsd`. On the paper's checkerboard its KL is 0.098 in one step, beside LSD's 0.086; on
        images it diverges.

    When to use:
        To study the Eulerian side of self-distillation. For samples take `lsd`; if you want the Eulerian equation from
        data, `meanflow` detaches more. On the checkerboard it trains for some 2,000 steps, best with a strong adaptive
        weight and many rows at s = 0 (docs/tuning.md); then its residual explodes, and its map stays far from `lsd`.

    Args:
        share: part of the rows on the diagonal.
        stop: where gradients stop.
        diagonal: law of t there; uniform unless given.
        diagonal_weight: weight of the rows on the diagonal; 1 unless given. An adaptive one would learn a mode of dI
            in the place of its mean.
        target: the map whose velocity is taken at the start, such as an average, `Target(flow_map, decay=0.999)`; the
            map itself unless given.
        engine: how the derivative is taken.
    """
    equation, own = Eulerian(stop, engine), {"diagonal_weight": diagonal_weight, "target": target}
    return self_distillation(flow_map, equation, share, diagonal, options, **own)


def slim_esd(
    flow_map: FlowMap,
    *,
    share: float = 0.75,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    target: FlowMap | None = None,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Slim Eulerian self-distillation: ESD in which everything but u is detached.

        E |u_{s,t}(I_s) - sg(v_s(I_s) + (t - s) D u_{s,t}(I_s))|^2, s <= t;    E |v_t(I_t) - dI_t|^2 on `share`

    with the map's own velocity v_t = u_{t,t} and D u = d_s u + grad u . v_s. It is `esd` with `Stop.TARGET`: no
    gradient goes through a derivative.

    Reference: "slim" self-distillation, 2026, arXiv 2609.16222.

    The paper:
        Time runs from noise to data, as here. Velocity and derivative are detached, the derivative in s included, which
        `esd` keeps: 1.5 to 2 times less memory by its figures. The update is no longer the gradient of a loss; what the
        paper proves is that the true map is the only stationary point of the expected update. Written from a
        summary of the paper; rows and weight are those of `esd`.

    When to use:
        In the place of `esd` where memory limits the network or the batch. MeanFlow with the map's own velocity in the
        place of dI, so that the noise of dI stays on the diagonal.

    Args:
        share: part of the rows on the diagonal.
        diagonal: law of t there; uniform unless given.
        diagonal_weight: weight of the rows on the diagonal; 1 unless given. An adaptive one would learn a mode of dI
            in the place of its mean.
        target: the map whose velocity is taken at the start, such as an average, `Target(flow_map, decay=0.999)`; the
            map itself unless given.
        engine: how the derivative is taken.
    """
    own: dict[str, Any] = {"diagonal": diagonal, "diagonal_weight": diagonal_weight, "target": target}
    return esd(flow_map, share=share, stop=Stop.TARGET, engine=engine, **own, **options)


def meanflow(
    flow_map: FlowMap,
    *,
    share: float = 0.75,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """MeanFlow: the Eulerian equation with dI, its right-hand side detached.

        E w |u_{s,t}(I_s) - sg(dI_s + (t - s) D u_{s,t}(I_s))|^2,    D along dI,    w = sg 1 / (|.|^2 + c)

    and E w |u_{t,t}(I_t) - dI_t|^2 on `share` of the rows.

    Reference: Z. Geng et al., "Mean flows for one-step generative modeling", 2025, arXiv 2505.13447.

    The paper:
        Time runs from data to noise: its logit-normal(-0.4, 1) is (0.4, 1) here. The whole right-hand side is detached;
        the target is the same network, without an average. The weight 1 / (|r|^2 + c) is of the sum over dimensions and
        multiplies diagonal and other rows alike; c = 1e-3 in the paper, 0.01 in Gsunshine/meanflow, which also takes
        the noisier of two times on the diagonal, where here it is one of the law.
        haidog-yaqub/MeanFlow takes the mean over dimensions, lucidrains one coin for the whole batch.

    When to use:
        From data alone on images, where it is well tried. In few dimensions put `weight=losses.Constant()`: an adaptive
        weight would learn a mode of dI in the place of its mean.

    Args:
        share: part of the rows with s = t.
        diagonal: law of t there; logit-normal unless given.
        diagonal_weight: weight of the rows with s = t; `weight`, as in the paper, unless given.
        engine: how the derivative is taken.
    """
    equation = Eulerian(Stop.TARGET, engine)
    return _meanflow(flow_map, equation, share, (diagonal, diagonal_weight), options)


def improved_meanflow(
    flow_map: FlowMap,
    *,
    share: float = 0.5,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Improved MeanFlow: the derivative along the map's own velocity, so that the target alone has the noise of dI.

        E w |u_{s,t}(I_s) - (t - s) sg(D u_{s,t}(I_s)) - dI_s|^2,    D along u_{s,s}(I_s),    w = sg 1 / (|.|^2 + c)

    and E w |u_{t,t}(I_t) - dI_t|^2 on `share` of the rows. The direction is the network at s = t; the paper's auxiliary
    head for it belongs to the network.

    Reference: Z. Geng et al., "Improved mean flows", 2025, arXiv 2512.02012, equation 12.

    The paper:
        Time runs from data to noise, as in `meanflow`. The whole derivative is detached, direction included, and so is
        the target: at one direction the gradient is that of MeanFlow. The direction is the network at s = t, or in the
        released code, Lyy-iiis/imeanflow, a second head with a loss of its own. Half of the rows are on the diagonal, c
        = 0.01 in the code. haidog-yaqub/MeanFlow takes the guiding velocities at the row's own (s, t).

    When to use:
        In the place of `meanflow`, for one more forward pass: the derivative no longer carries the noise of dI. In few
        dimensions put `weight=losses.Constant()`.

    Args:
        share: part of the rows with s = t.
        diagonal: law of t there; logit-normal unless given.
        diagonal_weight: weight of the rows with s = t; `weight`, as in the paper, unless given.
        engine: how the derivative is taken.
    """
    equation = Eulerian(Stop.TARGET, engine, along_own_velocity=True)
    return _meanflow(flow_map, equation, share, (diagonal, diagonal_weight), options)


def pixel_meanflow(
    flow_map: FlowMap,
    *,
    share: float = 0.5,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Pixel MeanFlow: improved MeanFlow for an `Endpoint` map, u_{s,t}(x) = (net(x, s, t) - x) / (1 - s).

        E w |u_{s,t}(I_s) - (t - s) sg(D u_{s,t}(I_s)) - dI_s|^2,    D along u_{s,s}(I_s),    w = sg 1 / (|.|^2 + c)

    and E w |u_{t,t}(I_t) - dI_t|^2 on `share` of the rows: the loss is one of velocities, the output one of data.

    Reference: "Pixel mean flows", 2026, arXiv 2601.22158.

    The paper:
        Time runs from data to noise; its x = z_t - t u is the output of the network of `maps.Endpoint`: with
        another map this is `improved_meanflow`. Data near a manifold are easier to return than noise: patches of
        16 pixels, without a latent space, will do. A perceptual loss beside it, near the data alone, is not part of
        this: pass `distance=Perceptual(...)`. Written from a summary of the paper; all else is `improved_meanflow`.

    When to use:
        On pixels rather than latents, with large patches. In few dimensions put `weight=losses.Constant()`.

    Args:
        share: part of the rows with s = t.
        diagonal: law of t there; logit-normal unless given.
        diagonal_weight: weight of the rows with s = t; `weight`, as in the paper, unless given.
        engine: how the derivative is taken.
    """
    own: dict[str, Any] = {"diagonal": diagonal, "diagonal_weight": diagonal_weight}
    return improved_meanflow(flow_map, share=share, engine=engine, **own, **options)


def anyflow(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    share: float = 0.5,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    engine: Engine = "finite-difference",
    **options: Unpack[Options],
) -> Objective:
    """AnyFlow's first stage: MeanFlow by central differences, from a trained velocity, half of the jumps to the data.

        E w |u_{s,t}(I_s) - sg(dI_s + (t - s) D u_{s,t}(I_s))|^2,    D along dI,    w = sg 1 / (|.|^2 + c)

    and E |u_{t,t}(I_t) - dI_t|^2 on `share` of the rows. Off the diagonal one half has t = 1, the other any s <= t.
    With a teacher its velocity stands in the place of dI.

    Reference: "AnyFlow", 2026, arXiv 2605.13724, first stage.

    The paper:
        Time runs from data to noise. The derivative is a central difference of two forward passes, which any network
        allows; it starts from a trained velocity. Half of the rows are on the diagonal, a quarter go to the data end, a
        quarter anywhere. Off the diagonal NVlabs/AnyFlow divides each row's loss by its own value and multiplies by the
        batch's mean loss on the diagonal: that factor is 1 here, so that a loss stays a mean over rows. Times are
        shifted towards the noise for video; guidance is fused into the prediction; here it is that of `guidance`. The
        second stage, on its own samples, is not part of this.

    When to use:
        As `meanflow`, from a trained velocity, with a network whose derivative cannot be taken. In few dimensions put
        `weight=losses.Constant()`.

    Args:
        teacher: field `(x, t, cond=None) -> like x`, guided by `guidance`; dI unless given.
        share: part of the rows with s = t.
        diagonal: law of t there; uniform unless given.
        diagonal_weight: weight of the rows with s = t; 1 unless given.
        engine: how the derivative is taken; the paper's is "finite-difference".
    """
    rest: dict[str, Any] = {**options, "times": options.get("times") or Mixture(ToData(), Triangle(), 0.5)}
    rest["weight"] = options.get("weight") or Adaptive(1.0, 1e-5)
    on_diagonal = diagonal or Diagonal(), diagonal_weight or Constant()
    velocity = None if teacher is None else teacher_velocity(teacher, flow_map, "anyflow", options)
    return _meanflow(flow_map, Eulerian(Stop.TARGET, engine), share, on_diagonal, rest, velocity)  # type: ignore[arg-type]


def _meanflow(
    flow_map: FlowMap,
    equation: Eulerian,
    share: float,
    on_diagonal: tuple[Times | None, Weight | None],
    options: Options,
    velocity: Velocity | None = None,
) -> Objective:
    path, rest = with_defaults(options, times=LogitNormal(Triangle()), weight=Adaptive())
    matching = MapMatching(flow_map, path, equation, velocity, **rest)
    law, weight = on_diagonal[0] or LogitNormal(Diagonal()), on_diagonal[1] or rest["weight"]
    return with_diagonal_term(law, matching, share, velocity, **{**rest, "weight": weight})


def ayf_emd(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    warmup: Callable[[float], float] = Anneal(0.0, 0.99, 0.1),  # noqa: B008  (frozen)
    normalise: float | None = 0.1,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Align your flow, Eulerian: EMD as a regression on s <= t, its tangent normalised and warmed up.

        E |u_{s,t}(I_s) - sg(u_{s,t}(I_s) - r / (|r| + c))|^2,   r = u_{s,t}(I_s) - b_s(I_s) - k (t - s) D u_{s,t}(I_s)

    Reference: A. Sabour, S. Fidler, K. Kreis, "Align your flow", 2025, arXiv 2506.14603.

    The paper:
        Time runs from data to noise. All but u is detached; the target is the same network, without an average. The
        weight multiplies the residual of u. The tangent is divided by its norm + 0.1 after the warm-up, which scales
        the derivative and stops at 0.99: the last hundredth keeps a pull to the teacher's velocity. The paper draws the
        length t - s first, as here, and guides the teacher with a weaker one, by a weight that the student is given. No
        official code; the ports tec-works/FlowWithMe and revsic/flowmodels
        disagree on the law and on u or X.

    When to use:
        From a teacher on images, for jumps between any two times: its paper reports better few-step samples than those
        of sCD. In few dimensions try `lmd` first, which is simpler.

    Args:
        teacher: field `(x, t, cond=None) -> like x`; the paper's is guided: pass `guidance`.
        warmup: k as a schedule of progress.
        normalise: c; `None` for the plain residual of u.
        engine: how the derivative is taken.
    """
    equation, velocity = (
        Eulerian(Stop.TARGET, engine, normalise=normalise),
        teacher_velocity(teacher, flow_map, "ayf_emd", options),
    )
    return distillation(flow_map, equation, velocity, options, Interval(), warmup=warmup)


def _on_triangle(choices: Choices) -> dict[str, Any]:
    return {"weight": choices.mean_weight, "diagonal": choices.velocity_times, "times": Triangle()}


def _from_velocity(choices: Choices) -> dict[str, Any]:
    on_diagonal = {"diagonal": choices.velocity_times, "diagonal_weight": choices.weight}
    return {"weight": choices.mean_weight, **on_diagonal}


METHODS = (
    Method(
        emd,
        LearnsFrom.TEACHER,
        settings=lambda choices: {"times": choices.pairs, "weight": choices.residual_weight, "stop": choices.stop},
    ),
    Method(ayf_emd, LearnsFrom.TEACHER, settings=lambda choices: {"times": choices.pairs}, lower_rate=True),
    Method(eulerian_estimation, lower_rate=True),
    Method(esd, settings=with_diagonal, lower_rate=True),
    Method(slim_esd, settings=with_diagonal, lower_rate=True),
    Method(meanflow, settings=_on_triangle, lower_rate=True),
    Method(improved_meanflow, settings=_on_triangle, lower_rate=True),
    Method(pixel_meanflow, settings=_on_triangle, flow_map=Endpoint, lower_rate=True),
    Method(anyflow, LearnsFrom.VELOCITY, settings=_from_velocity, starts_along_velocity=True, lower_rate=True),
)
