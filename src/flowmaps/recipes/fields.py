"""Recipes: the only place where hyper-parameters live.

A recipe is a function that returns a frozen `Recipe`; each of its fields is an option of `flowmaps train`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Network:
    """The multilayer perceptron; its fields are those of `flowmaps.nn.MLP`."""

    width: int = 128
    """Hidden width."""
    depth: int = 4
    """Hidden layers."""
    residual: bool = True
    """Add each hidden layer to its input."""
    time_frequencies: int = 4
    """Frequencies of the features of s and t - s."""
    space_frequencies: int = 0
    """Frequencies of the features of x; 0 for plain x."""
    modulation: int = 32
    """Width of the embedding of (s, t) that scales and shifts each layer; 0 for none."""


@dataclass(frozen=True)
class Optimiser:
    """Adam with warm-up, cosine decay, clipping and an exponential moving average of the weights."""

    batch: int = 1024
    """Rows of a batch."""
    rate: float = 8e-3
    """Highest learning rate."""
    warmup: int = 200
    """Steps over which the rate rises."""
    floor: float = 0.01
    """Last learning rate, as a share of the highest."""
    clip: float = 10.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Decay of the moving average of the weights."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured at the end."""

    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of jumps."""
    samples: int = 1_000_000
    """Samples for KL."""
    points: int = 5_000
    """Points for W2, energy distance and map error."""
    chunk: int = 10_000
    """Samples generated at a time."""
    tolerance: float = 1e-5
    """Tolerance of the teacher's dopri5."""
    euler: int = 80
    """Steps of the teacher's Euler solver."""


@dataclass(frozen=True)
class Recipe:
    """All that a run depends on."""

    name: str
    """Name of the recipe."""
    method: str = "lmd"
    """How the map is learned: the name of a function of `flowmaps.methods`."""
    data: str = ""
    """`checkerboard`, `digits`, or a file (.npy, .npz, .csv) with one point a row."""
    steps: int = 6_000
    """Optimiser steps of the map (shared out among its stages)."""
    teacher_steps: int = 6_000
    """Optimiser steps of the teacher, for a method that needs one; the others add them to their own."""
    interpolant: Literal["linear", "trigonometric", "variance-preserving"] = "linear"
    """Path between noise and data."""
    times: Literal["triangle", "square"] = "triangle"
    """Pairs (s, t) of a distillation: s <= t, enough to sample, or the whole square, to encode data as noise too."""
    from_base: float = 0.25
    """Share of a distillation's rows that start from noise, s = 0, where one-step samples do."""
    late: float = 1.0
    """Pull of the times of velocity matching towards the data, t <- 1 - (1 - t)^late: 1 for none."""
    adaptive: float = 0.5
    """Power of the adaptive weight of lmd, emd and neural_operator, 0 for none: 0.5 makes jumps between modes sharp."""
    guidance: tuple[float, ...] = ()
    """Guidance weights to learn, for data with classes: none; one weight; or the lowest and the highest, between which
    `flowmaps sample --guidance` chooses. 1 is the plain conditional law."""
    label_dropout: float = 0.1
    """Share of the rows whose label is dropped, with --guidance."""
    careful: float = 0.25
    """Rate of the methods that are unstable at the full one (esd, meanflow, sct, ayf_emd and their kin), as a share."""
    learned_weight: bool = False
    """Weigh (s, t) by a learned w_{s,t} instead, where a method has no weight of its own."""
    seed: int = 0
    """Seed of weights, batches, times and samples."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`: CUDA if there is a GPU, else the CPU."""
    compile: bool = True
    """Compile the objective (a minute at the start, twice the speed afterwards); off where no compiler is found."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of log.jsonl."""
    network: Network = field(default_factory=Network)
    optimiser: Optimiser = field(default_factory=Optimiser)
    evaluation: Evaluation = field(default_factory=Evaluation)


def checkerboard() -> Recipe:
    """The 4 x 4 board of the papers: minutes on two cores, measured against its exact law."""
    net = Network(space_frequencies=8)
    return Recipe("checkerboard", data="checkerboard", steps=16_000, teacher_steps=4_000, late=2.0, network=net)


def checkerboard_long() -> Recipe:
    """The board at length: an hour or more on two cores, minutes on a GPU."""
    return replace(
        checkerboard(),
        name="checkerboard-long",
        steps=30_000,
        teacher_steps=20_000,
        network=Network(width=256, space_frequencies=8),
        optimiser=Optimiser(rate=6e-3),
    )


def digits() -> Recipe:
    """1,797 handwritten digits of 8 x 8 pixels, by class."""
    return Recipe(
        name="digits",
        data="digits",
        steps=3_000,
        teacher_steps=3_000,
        network=Network(width=512, depth=4),
        optimiser=Optimiser(batch=256, rate=1e-3),
        evaluation=Evaluation(samples=5_000),
    )


def points() -> Recipe:
    """An array of the user's own: `--data FILE`, any dimension."""
    return Recipe(
        name="points",
        steps=4_000,
        teacher_steps=4_000,
        network=Network(width=256, depth=4),
        optimiser=Optimiser(batch=512, rate=1e-3),
        evaluation=Evaluation(samples=10_000),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "checkerboard": checkerboard,
    "checkerboard-long": checkerboard_long,
    "digits": digits,
    "points": points,
}


def validate(recipe: Recipe) -> None:
    """Refuse a recipe that cannot run, before anything heavy starts.

    Raises:
        ValueError: a field out of range.
    """
    n, o, e = recipe.network, recipe.optimiser, recipe.evaluation
    rules = [
        ("steps", recipe.steps, recipe.steps >= 1, "at least 1"),
        ("teacher-steps", recipe.teacher_steps, recipe.teacher_steps >= 1, "at least 1"),
        ("checkpoint-every", recipe.checkpoint_every, recipe.checkpoint_every >= 1, "at least 1"),
        ("log-every", recipe.log_every, recipe.log_every >= 1, "at least 1"),
        ("adaptive", recipe.adaptive, 0 <= recipe.adaptive <= 1, "from 0 to 1"),
        ("from-base", recipe.from_base, 0 <= recipe.from_base <= 1, "from 0 to 1"),
        ("guidance", recipe.guidance, _are_weights(recipe.guidance), "none, one or two positive weights, rising"),
        ("label-dropout", recipe.label_dropout, 0 <= recipe.label_dropout < 1, "at least 0 and below 1"),
        ("careful", recipe.careful, 0 < recipe.careful <= 1, "positive and at most 1"),
        ("late", recipe.late, 1 <= recipe.late <= 10, "from 1 to 10"),
        ("seed", recipe.seed, 0 <= recipe.seed < 2**32, "from 0 to 2^32 - 1"),
        ("network.width", n.width, n.width >= 1, "at least 1"),
        ("network.depth", n.depth, n.depth >= 1, "at least 1"),
        ("network.modulation", recipe.network.modulation, recipe.network.modulation >= 0, "at least 0"),
        ("network.time-frequencies", n.time_frequencies, n.time_frequencies >= 0, "at least 0"),
        ("network.space-frequencies", n.space_frequencies, n.space_frequencies >= 0, "at least 0"),
        ("optimiser.batch", o.batch, o.batch >= 2, "at least 2"),
        ("optimiser.rate", o.rate, math.isfinite(o.rate) and o.rate > 0, "positive"),
        ("optimiser.warmup", o.warmup, o.warmup >= 0, "at least 0"),
        ("optimiser.floor", o.floor, 0 <= o.floor <= 1, "from 0 to 1"),
        ("optimiser.clip", o.clip, o.clip > 0, "positive"),
        ("optimiser.ema", o.ema, 0 <= o.ema < 1, "at least 0 and below 1"),
        ("evaluation.steps", e.steps, len(e.steps) > 0 and min(e.steps, default=0) >= 1, "one or more numbers >= 1"),
        ("evaluation.samples", e.samples, e.samples >= 100, "at least 100"),
        ("evaluation.points", e.points, e.points >= 10, "at least 10"),
        ("evaluation.chunk", e.chunk, e.chunk >= 1, "at least 1"),
        ("evaluation.tolerance", e.tolerance, 0 < e.tolerance < 1, "between 0 and 1"),
        ("evaluation.euler", e.euler, e.euler >= 1, "at least 1"),
    ]
    for name, value, good, allowed in rules:
        if not good:
            raise ValueError(f"--{name} must be {allowed}, got {value}.")


def _are_weights(weights: tuple[float, ...]) -> bool:
    return len(weights) <= 2 and all(0 < weight < math.inf for weight in weights) and list(weights) == sorted(weights)


def from_dict(fields: object) -> Recipe:
    """A recipe from the JSON of a run's config.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type.
    """
    try:
        values: dict[str, Any] = dict(fields)  # type: ignore[call-overload]
        values["network"] = Network(**values["network"])
        values["optimiser"] = Optimiser(**values["optimiser"])
        evaluation = values["evaluation"]
        values["evaluation"] = Evaluation(**{**evaluation, "steps": tuple(evaluation["steps"])})
        values["guidance"] = tuple(values.get("guidance", ()))
        recipe = Recipe(**values)
        validate(recipe)
    except (TypeError, KeyError) as error:
        raise ValueError(f"the run's config.json has no recipe that this version reads ({error}).") from None
    return recipe
