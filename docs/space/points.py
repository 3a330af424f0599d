"""The coordinates of an objective, read off its parts.

Each axis is a function from a part to a word; two objectives with the same word on an axis make the same choice there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from flowmaps import times
from flowmaps.equations import Equation, Eulerian, Lagrangian, Semigroup, Stop
from flowmaps.losses import Power
from flowmaps.maps import AverageVelocity
from flowmaps.objectives import Compare, MapMatching, Objective, RoundTrip, SplitRows, Sum, VelocityMatching
from flowmaps.velocities import FromInterpolant, FromMap

from . import words

NONE = "–"
"""The word where an axis does not apply."""
Main: TypeAlias = MapMatching | RoundTrip | VelocityMatching


@dataclass(frozen=True)
class Coordinates:
    """Where an objective lies in the space of methods, a few words an axis.

    `equation`, `path` (interpolant), `velocity` (where it comes from), `pairs` (law of (s, t) off the diagonal), `legs`
    (derivative or legs of the right-hand side), `split` (law of the first leg's share l), `stop` (what is detached),
    `target` (whose network stands on the right-hand side), `compared` (what the residual is of), `weight` (on that),
    `tangent` (normalised, warmed up), `diagonal` (rows that match a velocity), `coupling` (of noise and data).
    """

    equation: str
    path: str
    velocity: str
    pairs: str
    legs: str
    split: str
    stop: str
    target: str
    compared: str
    weight: str
    tangent: str
    diagonal: str
    coupling: str


def coordinates(objective: Objective) -> Coordinates:
    """The coordinates of an objective, read off what it is composed of."""
    main = off_diagonal(objective)
    equation = None if isinstance(main, VelocityMatching) else main.equation
    return Coordinates(
        equation=_equation(equation),
        path=words.name(main.interpolant),
        velocity=words.source(main.velocity, main.flow_map) + (", along itself" if _own(equation) else ""),
        pairs=words.pairs(main.times),
        legs=_legs(equation),
        split=_split(main),
        stop=_stop(equation),
        target=_target(main),
        compared=_compared(main),
        weight=words.loss(main.distance, main.weight),
        tangent=_tangent(main),
        diagonal=_diagonal(objective),
        coupling=words.coupling(main.coupling),
    )


def off_diagonal(objective: Objective) -> Main:
    """The part of an objective that looks at s and t; the objective itself where it looks at s = t alone.

    Raises:
        ValueError: it is of a class that this module does not know.
    """
    match objective:
        case SplitRows():
            return off_diagonal(objective.second)
        case Sum():
            return off_diagonal(objective.terms[0])  # type: ignore[arg-type]
        case MapMatching() | RoundTrip() | VelocityMatching():
            return objective
    raise ValueError(f"no coordinates are known for a {type(objective).__name__}: add it to docs/space/points.py.")


# the axes -------------------------------------------------------------------------------------------------------------


def _equation(equation: Equation | None) -> str:
    return "velocity" if equation is None else type(equation).__name__


def _own(equation: Equation | None) -> bool:
    return isinstance(equation, Eulerian) and equation.along_own_velocity


def _legs(equation: Equation | None) -> str:
    match equation:
        case Lagrangian():
            return "derivative in t"
        case Eulerian(step=None):
            return "derivative in (x, s)"
        case Eulerian():
            return "velocity, then a jump"
        case Semigroup(legs=1):
            return "velocity"
        case Semigroup(velocity_first=True):
            return "velocity, then a jump"
        case Semigroup(legs=2):
            return "two jumps"
        case Semigroup():
            return f"{equation.legs} jumps"
    return NONE


def _split(main: Main) -> str:
    if not isinstance(main, MapMatching):
        return NONE
    match main.equation, main.split:
        case Eulerian(step=float(step)), _:
            return f"step {step:g}"
        case Semigroup(legs=1), _:
            return "all the way"
        case Semigroup(legs=legs), None:
            return f"1/{legs}"
        case Semigroup(), times.UniformLeg():
            return "uniform"
        case Semigroup(), times.FixedLeg(value=float(value)):
            return f"{value:g}"
        case Semigroup(), times.FixedLeg(value=schedule) if callable(schedule):
            return f"{schedule(0.0):g} to {schedule(1.0):g}"
        case Semigroup(), times.CellLeg():
            return "one cell"
        case Semigroup(), times.ShrinkingLeg():
            return "shrinks"
    return NONE


def _stop(equation: Equation | None) -> str:
    if equation is None:
        return NONE
    if isinstance(equation, Semigroup):  # the legs are the whole right-hand side: every stop but NONE is that
        return "nothing" if equation.stop is Stop.NONE else "all but u"
    return {
        Stop.NONE: "nothing",
        Stop.VELOCITY: "velocity",
        Stop.TANGENT: "velocity, d/dx",
        Stop.TARGET: "all but u",
    }[equation.stop]


def _target(main: Main) -> str:
    match main:
        case VelocityMatching():
            return NONE
        case MapMatching(equation=Semigroup(velocity_first=velocity_first, legs=legs)):
            if velocity_first and legs == 1:
                return NONE
            source = main.velocity
            walker = source.flow_map if isinstance(source, FromMap) and not velocity_first else main.target
            return words.whose(main.flow_map if walker is None else walker, main.flow_map)
    return "itself"


def _compared(main: Main) -> str:
    match main:
        case RoundTrip():
            return "u and X"
        case MapMatching(compare=Compare.DATA):
            return "X at the data end"
        case MapMatching(compare=Compare.JUMP):
            return "X"
        case MapMatching(equation=Equation(normalise=float())) if not isinstance(main.flow_map, AverageVelocity):
            return "output"
    return "X" if isinstance(main.weight, Power) and main.weight.exponent == 2 else "u"


def _tangent(main: Main) -> str:
    if isinstance(main, VelocityMatching):
        return NONE
    parts = [] if main.equation.normalise is None else ["normalised"]
    if isinstance(main, MapMatching) and main.warmup is not None:
        parts += [f"warmed up to {main.warmup(1.0):g}"]
    return ", ".join(parts) or NONE


def _diagonal(objective: Objective) -> str:
    match objective:
        case VelocityMatching():
            return "all rows"
        case SplitRows(first=VelocityMatching() as diagonal):
            source = words.source(diagonal.velocity, diagonal.flow_map)
            return f"{objective.share:.0%}" + ("" if isinstance(diagonal.velocity, FromInterpolant) else f", {source}")
        case Sum() if any(isinstance(term, VelocityMatching) for term in objective.terms):
            return "beside, all rows"
    return NONE
