"""Consistency models: t = 1, and a first step along the velocity that is short, or a derivative.

    X_{s,1}(I_s)  =  X_{w,1}(I_w),    w one step nearer to the data

I_w is on the path of the same pair (training), or where the teacher's solver leads (distillation). As the step tends to
0 this is the Eulerian equation at t = 1, which sCT and sCD take at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Unpack

from .. import schedules, times
from ..dual import Engine
from ..equations import Eulerian, Semigroup, Stop
from ..interpolants import Trigonometric
from ..losses import Adaptive, Chain, Huber, Learned, PerNoise, PseudoHuber, TowardsNoise, Weight
from ..maps import FlowMap
from ..maps import Trigonometric as TrigonometricMap
from ..objectives import Compare, MapMatching, Objective
from ..schedules import Anneal
from ..shapes import Field
from ..times import Diagonal, LogNormal, Times, ToData
from ..velocities import Velocity
from ._parts import (
    Options,
    base_std,
    loss_of_jumps,
    solver_jumps,
    teacher_velocity,
    with_defaults,
    with_diagonal_term,
)
from .method import Jumps, LearnsFrom, Method

__all__ = [
    "consistency_distillation",
    "consistency_training",
    "easy_consistency_tuning",
    "facm",
    "improved_consistency_training",
    "scd",
    "sct",
]

_EQUATION = Semigroup(Stop.TARGET, velocity_first=True)
_TRIGONOMETRIC = Trigonometric()
_WARMUP = Anneal(0.0, 1.0, 0.1)


def consistency_training(
    flow_map: FlowMap,
    *,
    cells: int | Callable[[float], int] = schedules.SquareRoot(),  # noqa: B008  (frozen)
    target: FlowMap | None = None,
    **options: Unpack[Options],
) -> Objective:
    """Consistency training (CT): two neighbouring points of a path, on a grid that grows finer, jump to the same datum.

        E |X_{s,1}(I_s) - sg X_{w,1}(I_w)|^2,    (s, w) = (k, k + 1) / cells

    On `VarianceExploding(80, 7)`, with the base `Normal(80)`, equal cells are the paper's grid in sigma.

    Reference: Y. Song et al., "Consistency models", 2023, arXiv 2303.01469, algorithm 3.

    The paper:
        Time is sigma, from data to noise: its noisier neighbour is our s. Only the noisier side takes gradients; the
        other is taken with an average whose decay follows the number of cells, `target=Target(flow_map, decay=...)`
        here with one decay. The weight lambda = 1 multiplies a distance of X, on images
        LPIPS (`distance=`, see `flowmaps.losses`); here the squared norm.
        openai/consistency_models counts cells in the exponent of that decay where the paper counts times;
        Kinyugo/consistency_models has another schedule of cells. I_w is on the path of the pair, not on the trajectory
        through I_s: the exact map is a zero of the gradient only up to terms of the order of a cell.

    When to use:
        From data alone, when only jumps to the data end are wanted. Its successors `improved_consistency_training`,
        `easy_consistency_tuning` and `sct` learn better ones.

    Args:
        cells: number of cells, or a schedule of progress.
        target: sg, the map of the neighbour: the map itself unless given; the paper's is an average,
            `Target(flow_map, decay=0.95)`.
    """
    path, rest = with_defaults(options, times=times.Snapped(ToData(), cells), **loss_of_jumps(options))
    return MapMatching(flow_map, path, _EQUATION, split=times.CellLeg(cells), target=target, **rest)


def improved_consistency_training(
    flow_map: FlowMap,
    *,
    cells: int | Callable[[float], int] = schedules.Doubling(),  # noqa: B008  (frozen)
    huber: float | None = None,
    **options: Unpack[Options],
) -> Objective:
    """Improved consistency training (iCT): log-normal noise, a pseudo-Huber distance, grids that double.

        E (sqrt(|X_{s,1}(I_s) - sg X_{w,1}(I_w)|^2 + c^2) - c) / (sigma_s - sigma_w)

    on neighbours of a grid as in `consistency_training`, sigma = omega / beta the ratio of noise to signal.

    Reference: Y. Song, P. Dhariwal, "Improved techniques for training consistency models", 2023, arXiv 2310.14189.

    The paper:
        Time is sigma, from data to noise. The other side is taken with the same weights, detached, without an average:
        an average biases the limit of many cells. The weight 1 / (sigma_s - sigma_w) multiplies the pseudo-Huber
        distance of the whole vector. Kinyugo/consistency_models takes that distance
        element by element, which is another loss.

    When to use:
        Consistency models from data alone and from scratch. For a start from a trained velocity see
        `easy_consistency_tuning`.

    Args:
        cells: number of cells, or a schedule of progress.
        huber: c; the paper's 0.00054 sqrt(d) for d dimensions unless given.
    """
    (path, rest), scale = with_defaults(options), base_std(options)
    law = times.Snapped(LogNormal(ToData(), path, -1.1, 2.0, scale), cells)
    defaults = {"times": law, "distance": PseudoHuber(huber), "weight": PerNoise(path, scale)}
    return MapMatching(flow_map, path, _EQUATION, split=times.CellLeg(cells), compare=Compare.JUMP, **defaults | rest)


def easy_consistency_tuning(
    flow_map: FlowMap, *, split: times.LegLaw | None = None, **options: Unpack[Options]
) -> Objective:
    """Easy consistency tuning (ECT): the first step goes all the way to the data; training halves it again and again.

        E |X_{s,1}(I_s) - sg X_{w,1}(I_w)| / (sigma_s - sigma_w),    sigma_w as `ShrinkingLeg` says

    sigma = omega / beta is the ratio of noise to signal. It starts from a trained velocity.

    Reference: Z. Geng et al., "Consistency models made easy", 2024, arXiv 2406.14548.

    The paper:
        Time is sigma, from data to noise. The other side is taken with the same weights, detached, without an average.
        A step that goes all the way to the data makes the target x1 itself, so training starts as denoising. The weight
        1 / (t - r) multiplies the norm, not its square. locuslab/ect starts at a = 1, the paper at a = 0; for ImageNet
        the code weighs by 1 / t^2 + 1 / sigma_d^2 instead.

    When to use:
        To turn a trained velocity into a map to the data end in little time, without keeping the teacher.

    Args:
        split: law of the step; `ShrinkingLeg(interpolant)` unless given.
    """
    (path, rest), scale = with_defaults(options), base_std(options)
    defaults = {
        "times": LogNormal(ToData(), path, -1.1, 2.0, scale),
        "distance": PseudoHuber(1e-4),  # the norm, without its kink
        "weight": PerNoise(path, scale),
    }
    split = times.ShrinkingLeg(path, scale=scale) if split is None else split
    return MapMatching(flow_map, path, _EQUATION, split=split, compare=Compare.JUMP, **defaults | rest)


def consistency_distillation(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    cells: int | Callable[[float], int] = 17,
    solver: str = "heun2",
    target: FlowMap | None = None,
    **options: Unpack[Options],
) -> Objective:
    """Consistency distillation (CD): neighbours on a grid, one step of the teacher's solver apart.

        E |X_{s,1}(I_s) - sg X_{w,1}(solver_{s,w}(I_s))|^2,    (s, w) = (k, k + 1) / cells

    Reference: Y. Song et al., "Consistency models", 2023, arXiv 2303.01469, algorithm 2.

    The paper:
        Time is sigma, from data to noise: its noisier neighbour is our s. Only that side takes gradients; the teacher's
        step and the other side are detached. The weight lambda = 1 multiplies a distance of X, on images LPIPS. The
        step is one of Heun's in sigma, here in t. The released CIFAR-10 run has no average (18 times, so 17 cells),
        those on ImageNet and LSUN decay 0.95. The LCM script of huggingface/diffusers does without an average too.

    When to use:
        From a teacher, when only jumps to the data end are wanted and derivatives are not available. Its limit without
        a step is `scd`.

    Args:
        teacher: field `(x, t, cond=None) -> like x`.
        cells: number of cells, or a schedule of progress.
        solver: a method of fixed step (see `flowmaps.solvers.integrate`).
        target: sg, the map of the neighbour: the map itself unless given; the paper's is an average,
            `Target(flow_map, decay=0.95)`.
    """
    flow = solver_jumps(teacher_velocity(teacher, flow_map, "consistency_distillation", options), solver, 1)
    path, rest = with_defaults(options, times=times.Snapped(ToData(), cells), **loss_of_jumps(options))
    return MapMatching(flow_map, path, _EQUATION, flow, split=times.CellLeg(cells), target=target, **rest)


def _continuous(
    flow_map: FlowMap,
    velocity: Velocity | None,
    equation: Eulerian,
    warmup: Callable[[float], float],
    options: Options,
) -> Objective:
    """sCM. Its law of sigma, for data of std 1/2, is here in units of the base's std, which is the data's too."""
    path, scale = options.get("interpolant") or _TRIGONOMETRIC, base_std(options)
    law = LogNormal(ToData(), path, -1.0 + math.log(2 * scale), 1.4, scale)
    path, rest = with_defaults(options, path, times=law, weight=Learned())
    return MapMatching(flow_map, path, equation, velocity, warmup=warmup, **rest)


def sct(
    flow_map: FlowMap,
    *,
    warmup: Callable[[float], float] = _WARMUP,
    normalise: float | None = 0.05 * math.pi,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Simple, stable, scalable consistency training (sCT), for a `Trigonometric` map: t = 1, tangent normalised.

        E |v - sg(v - g / (|g| + c))|^2 / e^w + w,    g = a (a (v - b) + k (r - a (v - b))),    b = dI_s,
        v = pi / 2 net(I_s, s, 1),    a = sin(pi s / 2),    r = u_{s,1} - b - (1 - s) D u_{s,1} = -dX_{s,1}(x_s) / ds

    Reference: C. Lu, Y. Song, "Simplifying, stabilizing and scaling continuous-time consistency models", 2024, arXiv
    2410.11081, algorithm 1.

    The paper:
        Time is an angle, from data to noise: tp = pi (1 - s) / 2. All but the network's output is detached; the target
        is the same network, without an average. The learned weight multiplies the squared norm; the factor 1 / tan tp
        of the paper's weight is already in g, as its outer a = cos tp. The warm-up scales only the bracket with the
        derivative. The log-normal law is of sigma, for data of standard deviation 0.5 as in the paper; for a standard
        deviation of 1 it has mean -0.3. NVlabs/Sana and NVlabs/FastGen multiply by 1 / tan tp once more; FastGen
        normalises by the root mean square, not by the norm.

    When to use:
        Consistency models from data without a grid of steps, for networks whose derivative in (x, s) is stable. It
        needs a `Trigonometric` map, and in practice a start from a trained velocity. Its learned weight has parameters
        of its own: optimise `objective.parameters()`.

    Args:
        warmup: k as a schedule of progress.
        normalise: c; the paper's 0.1 in a time that runs to pi / 2. `None` for the plain residual of u.
        engine: how the derivative is taken.
    """
    return _continuous(flow_map, None, Eulerian(Stop.TARGET, engine, normalise=normalise), warmup, options)


def scd(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    warmup: Callable[[float], float] = _WARMUP,
    normalise: float | None = 0.05 * math.pi,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Simple, stable, scalable consistency distillation (sCD): as `sct`, with b the teacher's velocity.

    Reference: 2410.11081, algorithm 1.

    The paper:
        As `sct`: the same network is the target, no average, the learned weight multiplies the squared norm, the
        warm-up the bracket with the derivative. The teacher is detached; it is an average of the trained diffusion
        model, guided where labels are given. NVlabs/rcm changes the first bracket's factor in the warm-up.

    When to use:
        From a teacher on the trigonometric path, for one or two steps to the data end. On other paths or for jumps
        between any two times take `ayf_emd`. Its learned weight has parameters of its own: optimise
        `objective.parameters()`.

    Args:
        teacher: field `(x, t, cond=None) -> like x` of the flow of the trigonometric interpolant.
        warmup: k as a schedule of progress.
        normalise: c; the paper's 0.1 in a time that runs to pi / 2. `None` for the plain residual of u.
        engine: how the derivative is taken.
    """
    velocity = teacher_velocity(teacher, flow_map, "scd", options)
    return _continuous(flow_map, velocity, Eulerian(Stop.TARGET, engine, normalise=normalise), warmup, options)


def facm(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    share: float = 0.5,
    diagonal: Times | None = None,
    diagonal_weight: Weight | None = None,
    engine: Engine = "dual",
    **options: Unpack[Options],
) -> Objective:
    """Flow-anchored consistency model: the Eulerian equation at t = 1, and velocity matching as an anchor.

        E w d(u_{s,1}(I_s) - sg(b + (1 - s) D u_{s,1}(I_s))),    w = (1 - s^(1/2)) cos(pi s / 2) / (d + c)^(1/2)

    with d the Huber distance, whose gradient is the residual clipped to [-1, 1], and E |u_{s,s}(I_s) - b|^2 on `share`
    of the rows. b is the teacher's velocity, or dI_s.

    Reference: Y. Peng et al., "Flow-anchored consistency models", 2025, arXiv 2507.03738.

    The paper:
        Time runs from noise to data, as here. All but u is detached. In ali-vilab/FACM each row serves both terms; here
        half of the rows serve each. Its adaptive factor is of the mean over dimensions of the clipped square, after
        the factor 1 - s^(1/2), here of the sum d, before it; its anchor adds one minus the cosine similarity of the two
        velocities, left out here. The noise is log-normal(-0.8, 1.6) in tan(pi (1 - s) / 2). The teacher is guided:
        pass `guidance`. Their network of one time gets 2 - s for the anchor; ours has two times.

    When to use:
        Consistency distillation on images where `scd` loses the velocity and becomes unstable. Without a teacher, in
        few dimensions, put `weight=losses.Constant(), distance=losses.squared`.

    Args:
        teacher: field `(x, t, cond=None) -> like x`; dI unless given.
        share: part of the rows on the diagonal, the anchor.
        diagonal: law of t there; that of s off the diagonal unless given.
        diagonal_weight: weight of the rows on the diagonal; 1 unless given.
        engine: how the derivative is taken.
    """
    velocity = None if teacher is None else teacher_velocity(teacher, flow_map, "facm", options)
    law, distance = LogNormal(ToData(), _TRIGONOMETRIC, -0.8, 1.6), options.get("distance")
    weight = Chain(Adaptive(0.5, 1e-3), TowardsNoise())
    path, rest = with_defaults(options, times=law, distance=Huber(), weight=weight)
    matching = MapMatching(flow_map, path, Eulerian(Stop.TARGET, engine), velocity, **rest)
    anchor = {**rest, "distance": distance, "weight": diagonal_weight}
    return with_diagonal_term(diagonal or replace(law, law=Diagonal()), matching, share, velocity, **anchor)


_TRIGONOMETRIC_MAP: dict[str, Any] = {"interpolant": _TRIGONOMETRIC, "flow_map": TrigonometricMap}

METHODS = (
    Method(consistency_distillation, LearnsFrom.TEACHER, Jumps.TO_DATA),
    Method(
        facm,
        LearnsFrom.TEACHER,
        Jumps.TO_DATA,
        settings=lambda choices: {"diagonal": choices.velocity_times, "diagonal_weight": choices.weight},
        lower_rate=True,
    ),
    Method(scd, LearnsFrom.TEACHER, Jumps.TO_DATA, lower_rate=True, **_TRIGONOMETRIC_MAP),
    Method(easy_consistency_tuning, LearnsFrom.VELOCITY, Jumps.TO_DATA, lower_rate=True, starts_along_velocity=True),
    Method(consistency_training, jumps=Jumps.TO_DATA),
    Method(improved_consistency_training, jumps=Jumps.TO_DATA, lower_rate=True),
    Method(sct, jumps=Jumps.TO_DATA, lower_rate=True, **_TRIGONOMETRIC_MAP),
)
