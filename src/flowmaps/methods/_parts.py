"""What the methods are put together with: their common options, a teacher, a diagonal term.

`self_distillation` (lsd, esd, psd): the first `share` of the rows at s = t, uniform unless `diagonal` is given; the
rest by `times`, `Triangle` unless given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..equations import Equation
from ..interpolants import Interpolant, Linear
from ..losses import Power, Weight
from ..maps import FlowMap, as_target
from ..modules import modules_of
from ..objectives import Common, Compare, MapMatching, Objective, SplitRows, VelocityMatching
from ..shapes import Field
from ..solvers import SolverFlow
from ..times import LegLaw, Times, Triangle
from ..velocities import FromMap, FromTeacher, Guidance, Guided, Velocity


class Options(Common, total=False):
    """Options of every method.

    `interpolant`: the path, `Linear()` unless the paper has its own. `times`: the law of (s, t) off the diagonal.
    `distance`: of the residual; the squared norm unless the paper has its own. `weight`: w_{s,t}; a
    self-distillation applies it off the diagonal, and its `diagonal_weight` on it. `coupling`: the law of (x0, x1).
    `guidance`: classifier-free guidance, and label dropout. `draws`: of noise and times for each row of data.
    """

    interpolant: Interpolant | None
    times: Times | None


def with_defaults(
    options: Options, path: Interpolant | None = None, **defaults: Any
) -> tuple[Interpolant, dict[str, Any]]:
    """The interpolant, and the other options over a method's defaults."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return given.pop("interpolant", path or Linear()), {**defaults, **given}


def loss_of_jumps(options: Options) -> dict[str, Any]:
    """Compare X and not u: the weight (t - s)^2 on the squared residual of u, or the distance that is given, of X."""
    return {"weight": Power(2)} if options.get("distance") is None else {"compare": Compare.JUMP}


def base_std(options: Options) -> float:
    """Standard deviation of the base."""
    coupling = options.get("coupling")
    return 1.0 if coupling is None else coupling.base.std


def teacher_velocity(teacher: Velocity | Field | None, flow_map: FlowMap, method: str, options: Options) -> Velocity:
    """The teacher as a source of velocity, guided where guidance is asked for.

    Raises:
        ValueError: there is none, or it is the map itself or shares its parameters.
    """
    if teacher is None:
        raise ValueError(
            f"{method} needs a teacher, got none: pass teacher=fn with fn(x, t, cond=None) -> like x, for instance "
            f"another map's .velocity, or take a method that learns from data (fmm, lsd, esd, psd)."
        )
    mine = set(flow_map.parameters())
    for used in _modules_of_teacher(teacher):
        if used is flow_map or not mine.isdisjoint(used.parameters()):
            raise ValueError(
                f"{method}: the teacher is the map itself, or shares parameters with it, and a teacher does not move "
                f"with the map: pass Target(flow_map).velocity, a copy of it."
            )
    velocity = teacher if isinstance(teacher, Velocity) else FromTeacher(teacher)
    if isinstance(velocity, FromMap):
        velocity = FromMap(as_target(velocity.flow_map))
    guidance: Guidance | None = options.get("guidance")
    if guidance is not None and isinstance(velocity, Guided):
        raise ValueError(f"{method}: the teacher is guided already, and guidance was given: leave one of them out.")
    return velocity if guidance is None else Guided(velocity, guidance)


def _modules_of_teacher(teacher: Velocity | Field) -> list[nn.Module]:
    """The modules whose weights a teacher uses; those of a `FromMap` are copied and left out."""
    if not isinstance(teacher, Velocity):
        return modules_of(teacher)
    return [used for part in teacher.modules() if isinstance(part, FromTeacher) for used in part.used]


def distillation(
    flow_map: FlowMap,
    equation: Equation,
    velocity: Velocity,
    options: Options,
    times: Times,
    *,
    warmup: Callable[[float], float] | None = None,
) -> Objective:
    """An equation with a teacher's velocity."""
    path, rest = with_defaults(options, times=times)
    return MapMatching(flow_map, path, equation, velocity, warmup=warmup, **rest)


def solver_jumps(velocity: Velocity, method: str, steps: int) -> FromMap:
    """The jumps of a solver along a velocity, as a source for the legs of a semigroup."""
    return FromMap(SolverFlow(velocity, method=method, steps=steps))


def self_distillation(
    flow_map: FlowMap,
    equation: Equation,
    share: float,
    diagonal: Times | None,
    options: Options,
    *,
    velocity: Velocity | None = None,
    split: LegLaw | None = None,
    diagonal_weight: Weight | None = None,
    target: FlowMap | None = None,
) -> Objective:
    """`share` of the rows match a velocity, the rest obey the equation with that of the map, or its target, on s <= t.

    `weight` is that of the equation, a function of (x, s, t) without noise, on which a weight may be adaptive.
    """
    path, rest = with_defaults(options, times=Triangle())
    own = FromMap(flow_map if target is None else as_target(target))
    equal = MapMatching(flow_map, path, equation, own, split=split, **rest)
    return with_diagonal_term(diagonal, equal, share, velocity, **{**rest, "weight": diagonal_weight})


def with_diagonal_term(
    diagonal: Times | None, off_diagonal: Objective, share: float, velocity: Velocity | None = None, **rest: Any
) -> Objective:
    """`share` of the rows match the velocity, the rest are those of another objective."""
    rest = {name: value for name, value in rest.items() if name in Common.__annotations__}
    path, flow_map = off_diagonal.interpolant, off_diagonal.flow_map
    return SplitRows(VelocityMatching(flow_map, path, velocity, times=diagonal, **rest), off_diagonal, share)
