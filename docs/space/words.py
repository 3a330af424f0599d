"""Short words for the parts of an objective: where the velocity comes from, laws of (s, t), weights, couplings."""

from __future__ import annotations

from typing import Any

from flowmaps import times
from flowmaps.couplings import Coupling, FlowPairs, Independent, MinibatchOT, NoData, Paired
from flowmaps.losses import (
    Adaptive,
    Cauchy,
    Chain,
    Constant,
    Distance,
    Huber,
    Learned,
    Perceptual,
    PerNoise,
    Power,
    PseudoHuber,
    SplitPower,
    TowardsNoise,
    TruncatedSNR,
    Weight,
    absolute,
    squared,
)
from flowmaps.maps import FlowMap, Target, VelocityForShortJumps
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
    """In words, which map it is: the one in training, or what became of it."""
    match walker:
        case VelocityForShortJumps():
            return whose(walker.flow_map, flow_map)
        case SolverFlow():
            return "teacher, solved"
        case Target(decay=decay) if decay is not None:
            return f"average {decay:g}"
        case Target(rounds=rounds) if rounds is not None:
            return "frozen, renewed"
        case Target():
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
        case times.Gap():
            return "s <= t, long"
        case times.StartAndEnd():
            return "s <= t, each logit-normal"
        case times.Dyadic():
            return "dyadic"
        case times.Cell():
            return "cells of a grid"
        case times.Snapped():
            return pairs(law.law) + ", grid"
        case times.TowardsData():
            return pairs(law.law) + ", late"
        case times.Within():
            return pairs(law.law) + f", in [{law.low:g}, {law.high:g}]"
        case times.LogitNormal():
            return pairs(law.law) + ", logit-normal"
        case times.LogNormal():
            return pairs(law.law) + ", log-normal"
        case times.Mixture():
            return f"{pairs(law.first)} or {pairs(law.second)}"
    return name(law)


def loss(distance: Distance, part: Weight) -> str:
    """The words of a weight, and of a distance other than the squared norm: "1 / noise", "pseudo-Huber / noise"."""
    factor = weight(part)
    if distance is squared:
        return factor
    match distance:
        case PseudoHuber():
            words = "pseudo-Huber"
        case Huber():
            return "Huber" if factor == "1" else "Huber, weighed"
        case Cauchy() | Perceptual():
            words = name(distance)
        case _:
            words = "L1" if distance is absolute else getattr(distance, "__name__", name(distance))
    return words + factor.removeprefix("1") if factor == "1" or factor.startswith("1 /") else f"{factor} {words}"


def weight(part: Weight) -> str:
    """The words of a weight; that of `Power(2)`, which makes a residual of u one of X, is "1"."""
    match part:
        case Constant(value=value):
            return f"{value:g}"
        case Power(exponent=2):
            return "1"
        case Power(exponent=exponent):
            return f"|t - s|^{exponent:g}"
        case Adaptive(power=power):
            return "1 / (|r|^2 + c)" + ("" if power == 1 else f"^{power:g}")
        case Learned():
            return "learned"
        case PerNoise():
            return "1 / noise"
        case SplitPower(exponent=exponent):
            return "l" if exponent == 1 else f"l^{exponent:g}"
        case Chain() if quotient_of_first_leg(part):
            return "l / (|r|^2 + c l^2)"
        case Chain():
            *first, last = [weight(inner) for inner in part.weights]  # type: ignore[arg-type]
            return " ".join([last, *(word.removeprefix("1").strip() for word in reversed(first))]).strip()
        case TowardsNoise():
            return "near the noise"
        case TruncatedSNR():
            return "max(SNR, 1)"
    return name(part)


def quotient_of_first_leg(chain: Chain) -> bool:
    """Whether a chain is the adaptive weight of r / l, times l."""
    match list(chain.weights):
        case [SplitPower(exponent=-2), Adaptive(power=1), SplitPower(exponent=1), Constant()]:
            return True
    return False


def coupling(part: Coupling) -> str:
    """How noise and data are paired."""
    match part:
        case Independent():
            return "independent"
        case NoData():
            return "noise alone"
        case FlowPairs():
            return "noise, solved"
        case MinibatchOT():
            return "optimal in the batch"
        case Paired():
            return "given"
    return name(part)
