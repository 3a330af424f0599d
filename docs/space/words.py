"""Short words for the parts of an objective: where the velocity comes from, laws of (s, t), weights, couplings."""

from __future__ import annotations

from typing import Any

from flowmaps import times
from flowmaps.couplings import Carried, Coupling, Independent, MinibatchOT, NoData, Paired
from flowmaps.losses import (
    Adaptive,
    Constant,
    Learned,
    OnJump,
    PerNoise,
    Power,
    PseudoHuber,
    SplitPower,
    TruncatedSNR,
    Weight,
)
from flowmaps.maps import FlowMap, Frozen, Near
from flowmaps.solvers import SolverFlow
from flowmaps.velocities import FromInterpolant, FromMap, FromTeacher, Guided, SelfGuided, Velocity


def name(value: Any) -> str:
    """The words of a class's name: VarianceExploding is "variance exploding"."""
    return "".join(" " + c.lower() if c.isupper() else c for c in type(value).__name__).strip()


def source(velocity: Velocity, flow_map: FlowMap) -> str:
    """Where a velocity comes from."""
    match velocity:
        case Guided():
            return source(velocity.source, flow_map) + ", guided"
        case SelfGuided():
            return "dI, guided"
        case FromInterpolant():
            return "dI"
        case FromTeacher():
            return "teacher"
        case FromMap():
            return whose(velocity.flow_map, flow_map)
    return name(velocity)


def whose(walker: FlowMap, flow_map: FlowMap) -> str:
    """Whose a map is, beside the one that is trained."""
    match walker:
        case Near():
            return whose(walker.flow_map, flow_map)
        case SolverFlow():
            return "teacher, solved"
        case Frozen(decay=decay) if decay is not None:
            return f"average {decay:g}"
        case Frozen(rounds=rounds) if rounds is not None:
            return "frozen, renewed"
        case Frozen():
            return "frozen"
    return "itself" if walker is flow_map else "another map"


def pairs(law: times.Times) -> str:
    """The words of a law of (s, t)."""
    match law:
        case times.Diagonal():
            return "s = t"
        case times.Square():
            return "square"
        case times.Triangle():
            return "s <= t"
        case times.Strip():
            return "strip"
        case times.ToData():
            return "t = 1"
        case times.FromBase():
            return "s = 0"
        case times.Interval():
            return "s <= t, length first"
        case times.Dyadic():
            return "dyadic"
        case times.Cell():
            return "cells of a grid"
        case times.Snapped():
            return pairs(law.law) + ", grid"
        case times.Late():
            return pairs(law.law) + ", late"
        case times.LogitNormal():
            return pairs(law.law) + ", logit-normal"
        case times.LogNormal():
            return pairs(law.law) + ", log-normal"
        case times.Mixture():
            return f"{pairs(law.first)} or {pairs(law.second)}"
    return name(law)


def weight(part: Weight) -> tuple[str, bool]:
    """The words of a weight, and whether it is of the residual of X rather than of u."""
    match part:
        case Constant(value=value):
            return f"{value:g}", False
        case Power(exponent=2):
            return "1", True
        case Power(exponent=exponent):
            return f"|t - s|^{exponent:g}", False
        case Adaptive(power=power):
            return "1 / (|r|^2 + c)" + ("" if power == 1 else f"^{power:g}"), False
        case PseudoHuber():
            return "pseudo-Huber", False
        case Learned():
            return "learned", False
        case OnJump():
            return weight(part.weight)[0], True
        case PerNoise():
            word, on_jump = weight(part.weight)
            return f"{word} / noise", on_jump
        case SplitPower(exponent=exponent):
            word, on_jump = weight(part.weight)
            power = "l" if exponent == 1 else f"l^{exponent:g}"
            return f"{power} {word.removeprefix('1').strip()}".strip(), on_jump
        case TruncatedSNR():
            return "max(SNR, 1)", False
    return name(part), False


def coupling(part: Coupling) -> str:
    """How noise and data are paired."""
    match part:
        case Independent():
            return "independent"
        case NoData():
            return "noise alone"
        case Carried():
            return "noise, solved"
        case MinibatchOT():
            return "optimal in the batch"
        case Paired():
            return "given"
    return name(part)
