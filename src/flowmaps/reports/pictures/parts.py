"""What the pictures share: which samples are shown, what they are called, and how they are made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...data import Units
from ...evaluation.measure import Sampled
from ...evaluation.rows import Start, Walk
from ...runs.recipes import Recipe
from ...system.progress import Watch as Watch
from ...system.progress import quiet as quiet

FEW = 4  # the number of steps that is shown where only one is
ACROSS = 10  # columns of samples


def few_steps(recipe: Recipe) -> int:
    """Of the numbers of steps that a recipe measures, the nearest to four."""
    return min(recipe.evaluation.steps, key=lambda steps: (abs(steps - FEW), steps))


def count(steps: int) -> str:
    """A number of steps in words."""
    return f"{steps} step" + "s" * (steps > 1)


def pixels(units: Units, x: Tensor) -> Tensor:
    """Samples as pixels; what is not a number as grey."""
    return units.to_pixels(x.nan_to_num(0.0))


def names(units: Units, kinds: Tensor | None) -> list[str]:
    """What classes are called."""
    return [] if kinds is None else [units.names[k] if units.names else f"class {k}" for k in kinds.tolist()]


def by_class(labels: Tensor, each: Callable[[int], int]) -> tuple[Tensor, Tensor]:
    """The ten classes that are most frequent, in order, and rows of each, `(classes, number)`: at most `each(classes)`
    of a class, and as many of one as of another."""
    counts = torch.bincount(labels)
    kinds = counts.argsort(descending=True, stable=True)[:10]
    kinds = kinds[counts[kinds] > 0].sort().values
    number = min(each(len(kinds)), int(counts[kinds].min()))
    return kinds, torch.stack([(labels == k).nonzero()[:number, 0] for k in kinds])


def selected(sampled: Sampled) -> tuple[Tensor | None, Tensor]:
    """Ten rows of a sample, or a few less, shared out among the classes; and the class of each."""
    if sampled.cond is None:
        return None, torch.arange(min(ACROSS, len(sampled.x)))
    kinds, rows = by_class(sampled.cond, lambda number: ACROSS // number)
    return kinds.repeat_interleave(rows.shape[1]), rows.flatten()


def walked(walk: Walk, start: Start, chunk: int, device: torch.device, tick: Callable[[float], None]) -> Tensor:
    """Run a sampler over its starts, `chunk` rows at a time."""
    points, number = [], len(start.x)
    with torch.inference_mode():
        for first in range(0, number, chunk):
            points.append(walk(start.rows(slice(first, first + chunk), device))[0].float().cpu())
            tick(min(first + chunk, number) / number)
    return torch.cat(points)
