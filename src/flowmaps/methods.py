"""A paper is a point of one space: equation x source of velocity x law of (s, t) x weight x stop-gradient x diagonal
term.

Each function returns the objective of a method, composed of those parts, and takes as options what the paper leaves
open. `coupling` and `weight` go to the objective (see `flowmaps.objectives.Objective`); `engine` to
`flowmaps.dual.jvp`.

References: "FMM" is 2406.07507, "SD" is 2505.18825.
"""

from __future__ import annotations

from torch import nn

from .couplings import Coupling
from .dual import Engine
from .equations import Equation, Eulerian, Lagrangian, Semigroup, Stop
from .interpolants import Interpolant, Linear
from .maps import FlowMap, Frozen
from .objectives import MapMatching, Objective, RoundTrip, Split, VelocityMatching
from .shapes import Field
from .times import Square, Times, Triangle
from .velocities import FromInterpolant, FromMap, FromTeacher, Velocity
from .weights import Power, Weight

_LINEAR = Linear()


def flow_matching(
    flow_map: FlowMap,
    *,
    interpolant: Interpolant = _LINEAR,
    times: Times | None = None,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
) -> Objective:
    """Velocity matching, E |u_{t,t}(I_t) - dI_t|^2: teaches the velocity b on the diagonal (2210.02747, 2303.08797)."""
    return VelocityMatching(flow_map, interpolant, times=times, coupling=coupling, weight=weight)


def lmd(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    interpolant: Interpolant = _LINEAR,
    times: Times | None = None,
    stop: Stop = Stop.NONE,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
    engine: Engine = "dual",
) -> Objective:
    """Lagrangian map distillation, E |d_t X_{s,t}(I_s) - b_t(X_{s,t}(I_s))|^2 over the square (FMM, corollary 3.7).

    `stop=Stop.VELOCITY` detaches the teacher's term: no derivative through the teacher, a third cheaper.
    """
    velocity, times = _teacher(teacher, flow_map, "lmd"), Square() if times is None else times
    equation = Lagrangian(stop, engine)
    return MapMatching(flow_map, interpolant, equation, velocity, times=times, coupling=coupling, weight=weight)


def emd(
    flow_map: FlowMap,
    *,
    teacher: Velocity | Field | None = None,
    interpolant: Interpolant = _LINEAR,
    times: Times | None = None,
    stop: Stop = Stop.NONE,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
    engine: Engine = "dual",
) -> Objective:
    """Eulerian map distillation, E |d_s X_{s,t}(I_s) + grad X_{s,t}(I_s) b_s(I_s)|^2 over the square (FMM, cor.
    3.8)."""
    velocity, times = _teacher(teacher, flow_map, "emd"), Square() if times is None else times
    equation = Eulerian(stop, engine)
    return MapMatching(flow_map, interpolant, equation, velocity, times=times, coupling=coupling, weight=weight)


def fmm(
    flow_map: FlowMap,
    *,
    interpolant: Interpolant = _LINEAR,
    times: Times | None = None,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
    engine: Engine = "dual",
) -> Objective:
    """Flow map matching, direct from data, both terms (FMM, proposition 3.11); on the square, or `times=Strip(1 /
    K)`."""
    equation = Lagrangian(engine=engine)
    return RoundTrip(flow_map, interpolant, equation=equation, times=times, coupling=coupling, weight=weight)


def pfmm(
    flow_map: FlowMap,
    *,
    frozen: FlowMap | None = None,
    interpolant: Interpolant = _LINEAR,
    legs: int = 4,
    times: Times | None = None,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
) -> Objective:
    """Progressive flow map matching, E |X_{s,t}(I_s) - (frozen map in `legs` jumps)(I_s)|^2 (FMM, lemma 3.13).

    `frozen` is a copy of `flow_map` as it is now unless given: train the map on a strip of width 1/legs first. A
    `Frozen` is taken as it is, so that the caller can `refresh` it; any other map is copied. The residual is that of
    u: the weight `Power(2)`, (t - s)^2, makes it that of X, and one that is given takes its place.
    """
    frozen = flow_map if frozen is None else frozen
    frozen, times = frozen if isinstance(frozen, Frozen) else Frozen(frozen), Square() if times is None else times
    equation, weight = Semigroup(Stop.TARGET, legs=legs), Power(2) if weight is None else weight
    return MapMatching(flow_map, interpolant, equation, FromMap(frozen), times=times, coupling=coupling, weight=weight)


def eulerian_estimation(
    flow_map: FlowMap,
    *,
    interpolant: Interpolant = _LINEAR,
    times: Times | None = None,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
    engine: Engine = "dual",
) -> Objective:
    """Eulerian estimation, E |d_s X_{s,t}(I_s) + sg(grad X_{s,t}(I_s) dI_s)|^2 on s <= t (FMM, section 3.6).

    The true map is a critical point of the update; no descent is promised.
    """
    equation, times = Eulerian(Stop.TANGENT, engine), Triangle() if times is None else times
    velocity = FromInterpolant(interpolant)
    return MapMatching(flow_map, interpolant, equation, velocity, times=times, coupling=coupling, weight=weight)


def lsd(
    flow_map: FlowMap,
    *,
    interpolant: Interpolant = _LINEAR,
    share: float = 0.75,
    stop: Stop = Stop.VELOCITY,
    times: Times | None = None,
    diagonal: Times | None = None,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
    engine: Engine = "dual",
) -> Objective:
    """Lagrangian self-distillation, with `share` of the rows on the diagonal (SD, equation 94)."""
    return _self_distilled(flow_map, interpolant, Lagrangian(stop, engine), share, times, diagonal, coupling, weight)


def esd(
    flow_map: FlowMap,
    *,
    interpolant: Interpolant = _LINEAR,
    share: float = 0.75,
    stop: Stop = Stop.TANGENT,
    times: Times | None = None,
    diagonal: Times | None = None,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
    engine: Engine = "dual",
) -> Objective:
    """Eulerian self-distillation, with `share` of the rows on the diagonal (SD, equation 94)."""
    return _self_distilled(flow_map, interpolant, Eulerian(stop, engine), share, times, diagonal, coupling, weight)


def psd(
    flow_map: FlowMap,
    *,
    interpolant: Interpolant = _LINEAR,
    share: float = 0.75,
    midpoint: bool = False,
    stop: Stop = Stop.VELOCITY,
    times: Times | None = None,
    diagonal: Times | None = None,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
) -> Objective:
    """Progressive self-distillation: split uniform (PSD-U), or at the `midpoint` (PSD-M) (SD, equation 94)."""
    return _self_distilled(
        flow_map, interpolant, Semigroup(stop), share, times, diagonal, coupling, weight, uniform_split=not midpoint
    )


def _self_distilled(
    flow_map: FlowMap,
    interpolant: Interpolant,
    equation: Equation,
    share: float,
    times: Times | None,
    diagonal: Times | None,
    coupling: Coupling | None,
    weight: Weight | None,
    *,
    uniform_split: bool = False,
) -> Objective:
    """`share` of the rows match the velocity, the rest obey the equation with the map's own velocity, on s <= t."""
    common = {"coupling": coupling, "weight": weight}
    matching = VelocityMatching(flow_map, interpolant, times=diagonal, **common)
    times, velocity = Triangle() if times is None else times, FromMap(flow_map)
    own = MapMatching(flow_map, interpolant, equation, velocity, times=times, uniform_split=uniform_split, **common)
    return Split(matching, own, share)


def _teacher(teacher: Velocity | Field | None, flow_map: FlowMap, method: str) -> Velocity:
    """The teacher as a source of velocity.

    Raises:
        ValueError: there is none, or it is the map itself or shares its parameters, which it would freeze.
    """
    if teacher is None:
        raise ValueError(
            f"{method} needs a teacher, got none: pass teacher=fn with fn(x, t, cond=None) -> like x, for instance "
            f"another map's .velocity, or take a method that learns from data (fmm, lsd, esd, psd)."
        )
    source = teacher.fn if isinstance(teacher, FromTeacher) else teacher
    owner = getattr(source, "__self__", source)
    if isinstance(owner, nn.Module) and not isinstance(owner, Velocity):
        mine = set(flow_map.parameters())
        if owner is flow_map or not mine.isdisjoint(owner.parameters()):
            raise ValueError(
                f"{method}: the teacher is the map itself, or shares parameters with it, and a teacher is frozen: pass "
                f"Frozen(flow_map).velocity, a copy of it."
            )
    return teacher if isinstance(teacher, Velocity) else FromTeacher(teacher)
