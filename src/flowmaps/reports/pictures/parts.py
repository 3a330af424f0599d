"""What the pictures share: which samples are drawn, and what classes are called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...data import Units
from ...runs.plan import Plan
from ...shapes import Condition, label_and_numbers

COLUMNS = 10
"""Columns of samples in a picture."""


def steps_nearest_four(plan: Plan) -> int:
    """Of the numbers of steps in which the map of a plan is measured, the nearest to four."""
    return min(plan.evaluation().steps, key=lambda steps: (abs(steps - 4), steps))


def to_pixels(units: Units, x: Tensor) -> Tensor:
    """Samples as pixels, uint8; what is not a number is grey."""
    return units.to_pixels(x.nan_to_num(0.0))


def class_names(units: Units, labels: Tensor | None) -> list[str]:
    """The names of labels `(B,)`; none where there are no labels."""
    return [] if labels is None else [units.names[k] if units.names else f"class {k}" for k in labels.tolist()]


def classes_in(cond: Condition) -> Tensor | None:
    """The labels of classes in a condition, `(B,)`; `None` where it has none."""
    label = label_and_numbers(cond)[0]
    return label if isinstance(label, Tensor) and label.ndim == 1 and not label.is_floating_point() else None


def rows_by_class(labels: Tensor, number: Callable[[int], int]) -> tuple[Tensor, Tensor]:
    """The ten most frequent classes, `(classes,)` in rising order, and rows of each, `(classes, rows)`.

    Args:
        labels: `(B,)`.
        number: takes the number of classes to the number of rows of each; fewer where a class has fewer.
    """
    counts = torch.bincount(labels)
    classes = counts.argsort(descending=True, stable=True)[:10]
    classes = classes[counts[classes] > 0].sort().values
    each = min(number(len(classes)), int(counts[classes].min()))
    return classes, torch.stack([(labels == k).nonzero()[:each, 0] for k in classes])


def ten_rows(number: int, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Ten of `number` rows, or a few less, shared out among the classes; and the label of each."""
    if labels is None:
        return torch.arange(min(COLUMNS, number)), None
    classes, rows = rows_by_class(labels, lambda classes: COLUMNS // classes)
    return rows.flatten(), classes.repeat_interleave(rows.shape[1])
