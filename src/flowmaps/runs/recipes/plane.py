"""Recipes of points: the checkerboard, the digits, arrays of the user's own."""

from __future__ import annotations

from dataclasses import replace

from .fields import Evaluation, Network, Optimiser, Recipe


def checkerboard() -> Recipe:
    """The 4 x 4 board of the papers: minutes on two cores, measured against its exact law."""
    net = Network(space_frequencies=8)
    return Recipe(
        "checkerboard", data="checkerboard", steps=16_000, teacher_steps=4_000, velocity_time_power=2.0, network=net
    )


def checkerboard_long() -> Recipe:
    """The checkerboard with a larger network and more steps: an hour or more on two cores, minutes on a GPU."""
    return replace(
        checkerboard(),
        name="checkerboard-long",
        steps=30_000,
        teacher_steps=20_000,
        network=Network(width=256, space_frequencies=8),
        optimiser=Optimiser(learning_rate=6e-3),
    )


def digits() -> Recipe:
    """1,797 handwritten digits of 8 x 8 pixels, by class."""
    return Recipe(
        name="digits",
        data="digits",
        steps=3_000,
        teacher_steps=3_000,
        network=Network(width=512, depth=4),
        optimiser=Optimiser(batch=256, learning_rate=1e-3),
        evaluation=Evaluation(samples=5_000),
    )


def points() -> Recipe:
    """Your own points in any dimension: `--data FILE`."""
    return Recipe(
        name="points",
        steps=4_000,
        teacher_steps=4_000,
        network=Network(width=256, depth=4),
        optimiser=Optimiser(batch=512, learning_rate=1e-3),
        evaluation=Evaluation(samples=10_000),
    )
