"""Distances of points to data, and of real rows to one another: what a perfect sampler would read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..data import Points, Source
from ..shapes import label_and_numbers
from ..system.progress import Watch, quiet
from ..system.seeds import generator

Row = dict[str, Any]
"""A row of metrics.json or compare.json: a sampler and its metrics."""
FLOOR_STREAM = 26  # of the seed
MAX_NUMBERS_OF_POINTS = 2**22
"""Most numbers in the points of W2 and energy distance, which take hours for thousands of latents."""


def most_points(source: Source, points: int) -> int:
    """How many of some points are compared at most."""
    return min(points, max(500, MAX_NUMBERS_OF_POINTS // source.dim))


def with_numbers(rows: Tensor, numbers: Tensor | None) -> Tensor:
    """Rows `(B, D)` together with the numbers on which they are conditioned, the first B of `numbers`."""
    return rows if numbers is None else torch.cat([rows, numbers[: len(rows)].to(rows)], 1)


def distances(rows: Tensor, data: Tensor, *, energy: bool = True, watch: Watch = quiet) -> Row:
    """`w2`, `sliced_w2` and `energy` of rows to data, the first two of as many rows of each."""
    watch("W2", 0.0)
    pairs = min(len(rows), len(data))
    found = {"w2": metrics.wasserstein2(rows[:pairs], data[:pairs])}
    found["sliced_w2"] = metrics.sliced_wasserstein2(rows[:pairs], data[:pairs], generator=generator(0))
    if energy:
        watch("energy distance", 0.5)
        found["energy"] = metrics.energy_distance(rows, data)
    return found


def real_distances(source: Points, most: int, seed: int, watch: Watch = quiet) -> Row:
    """The distances between real rows: of held-out rows to as many that are trained on; where none are held out,
    between two halves of the data.

    Args:
        source: the data.
        most: rows of each that are compared.
        seed: of the choice of rows.
        watch: progress callback.

    Returns:
        `w2_floor`, `sliced_w2_floor` and `energy_floor`. The first two, which depend on the number of rows, are left
        out where there are fewer of each than samples are compared with; all are where there are fewer than two.
    """
    order = torch.randperm(len(source.data), generator=generator(seed, FLOOR_STREAM))
    held = source.held_out
    number = min(most, len(order) // 2 if held is None else min(len(held), len(order)))
    if number < 2:
        return {}
    own, others = (_rows(source, order[first : first + number]) for first in (0, number))
    if held is not None:
        others = with_numbers(source.units.to_measure(held[:number]), label_and_numbers(source.held_out_cond)[1])
    found = distances(own, others, watch=lambda what, share: watch(f"real rows, {what}", share))
    as_many = number == (most if held is None else min(most, len(held)))
    return {f"{name}_floor": value for name, value in found.items() if as_many or name == "energy"}


def _rows(source: Points, rows: Tensor) -> Tensor:
    """Rows of the data in the coordinates in which they are measured, with their numbers."""
    numbers = None if source.numbers is None else source.numbers[rows]
    return with_numbers(source.units.to_measure(source.data[rows]), numbers)
