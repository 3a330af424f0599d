"""Classifier-free guidance: the velocity b(none) + w (b(label) - b(none)) in the place of b(label).

`Guidance` holds the guidance weight w, the label dropout, and the times between which guidance acts. The sources
`velocities.Guided` (a teacher) and `velocities.SelfGuided` (learning from data) compute the guided velocity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .maps import FlowMap
from .shapes import (
    Batch,
    Condition,
    Field,
    GuidedCondition,
    Time,
    check_null,
    condition_of,
    label_and_numbers,
    label_of,
    like,
    on_pairs,
)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance in training, the same for all methods.

        b^w = b(none) + w (b(label) - b(none)),    w = weight for t in the interval, 1 outside

    A method with a teacher distils the teacher's b^w. A method that learns from data takes b(none), and in part
    b(label), from the map in training (see `flowmaps.velocities.SelfGuided`).

    References: 2207.12598 (guidance), 2404.07724 (interval), 2406.02507 (a weaker model as the negative), 2210.03142
    and 2512.02012 (the weight as an input).

    Args:
        weight: w; a pair (low, high) draws log w uniformly for each row and gives w to the network, in a
            `GuidedCondition`, so that samples can be drawn at any weight in between.
        classes: number of classes; the label `classes` means no label. Needed for `dropout` of labels.
        dropout: share of the rows whose label is replaced by `classes`, and whose numbers by NaN, for the map to learn
            b(none) too.
        interval: times between which guidance acts.
        mix: kappa, the share of b(label) that a method without a teacher takes from the map, not from dI (MeanFlow,
            2505.13447, section 4.2); `None` for 1 - 1/w, which gives dI the factor 1 (improved MeanFlow, 2512.02012).
        negative: a weaker field `(x, t, cond)` in the place of b(none): autoguidance.
        condition_dim: how many numbers the condition has; a row of NaN means none. Needed for `dropout` of numbers.
        null: the condition that means none, such as the features of an empty prompt: a tree like the condition, with
            one row; it replaces `classes` and `condition_dim`. A teacher is called with it too; without `null`, with no
            condition.
    """

    weight: float | tuple[float, float] = 1.0
    classes: int | None = None
    dropout: float = 0.1
    interval: tuple[float, float] = (0.0, 1.0)
    mix: float | None = 0.0
    negative: Field | None = None
    condition_dim: int | None = None
    null: Condition = None

    def __post_init__(self) -> None:
        low, high = self.weight if isinstance(self.weight, tuple) else (self.weight, self.weight)
        if not 0 < low <= high:
            raise ValueError(f"Guidance needs a weight > 0, or a pair 0 < low <= high, got {self.weight}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Guidance needs a dropout in [0, 1), got {self.dropout}.")
        if self.null is not None and (self.classes is not None or self.condition_dim is not None):
            raise ValueError("no condition is either null= or classes= and condition_dim=, got both: leave one out.")
        if self.condition_dim is not None and self.condition_dim < 1:
            raise ValueError(f"Guidance needs condition_dim >= 1, or None for no numbers, got {self.condition_dim}.")
        check_null(self.null, "Guidance")
        if self.dropout and not self.knows_none:
            raise ValueError(
                "Guidance drops labels: pass classes=, the number of classes, or dropout=0, or for features null=, "
                f"those of no condition; got classes={self.classes}."
            )
        if self.mix is not None and not 0 <= self.mix < 1:
            raise ValueError(f"Guidance needs a mix in [0, 1), or None for 1 - 1/w, got {self.mix}.")
        check_interval("Guidance", self.interval)

    def condition(self, cond: Condition, x1: Batch, generator: torch.Generator | None = None) -> Condition:
        """The condition to train with: a copy with a share `dropout` of its rows replaced by those of `without`.

        If `weight` is a pair, the condition comes in a `GuidedCondition`, with a weight drawn for each row.

        Raises:
            ValueError: there is no condition, or a weight is given with it.
        """
        if cond is None:
            raise ValueError("guidance needs a condition: call objective(x1, cond=labels).")
        if isinstance(cond, GuidedCondition):
            raise ValueError(
                "guidance draws the weights itself, got cond=GuidedCondition(...): call objective(x1, cond=labels)."
            )
        if self.dropout:
            if self.null is None:
                self._check_droppable(cond, x1)
            drop = torch.rand(len(x1), device=x1.device, generator=generator) < self.dropout
            cond = on_pairs(cond, self.without(cond), lambda own, none: torch.where(like(drop, own), none, own))
        if not isinstance(self.weight, tuple):
            return cond
        uniform = torch.rand(len(x1), dtype=x1.dtype, device=x1.device, generator=generator)
        low, high = (math.log(weight) for weight in self.weight)
        return GuidedCondition(cond, torch.exp(low + (high - low) * uniform))

    @property
    def knows_none(self) -> bool:
        """Whether there is a label, or there are numbers or features, that mean no condition."""
        return bool(self.classes) or self.condition_dim is not None or self.null is not None

    def without(self, cond: Condition) -> Condition:
        """The condition that means none, in the shapes of `cond`: `null`, or `classes` as label and NaN as numbers."""
        if self.null is not None:
            return on_pairs(label_of(cond), self.null, lambda own, none: none.to(own).expand(own.shape))
        label, numbers = label_and_numbers(cond) if self.condition_dim is not None else (label_of(cond), None)
        none = None if label is None else torch.full_like(label, self.classes)  # type: ignore[arg-type]
        return condition_of(none, None if numbers is None else torch.full_like(numbers, math.nan))

    def _check_droppable(self, cond: Condition, x1: Batch) -> None:
        """Refuse a condition that is not made of the labels and numbers that can be dropped."""
        label, numbers = label_and_numbers(cond) if self.condition_dim is not None else (cond, None)
        if self.classes is not None or label is not None:
            fits = isinstance(label, Tensor) and not label.is_floating_point() and label.shape == x1.shape[:1]
            if self.classes is None or not fits:
                more = (
                    "" if self.condition_dim is None else f", and numbers of shape ({len(x1)}, {self.condition_dim}),"
                )
                raise ValueError(
                    f"only integer labels of shape ({len(x1)},){more} can be dropped, got {_shown(label)}: pass "
                    "dropout=0."
                )
        if self.condition_dim is not None and (numbers is None or numbers.shape != (len(x1), self.condition_dim)):
            raise ValueError(
                f"only numbers of shape ({len(x1)}, {self.condition_dim}) can be dropped, got {_shown(numbers)}: pass "
                "dropout=0."
            )

    def weights(self, t: Time, cond: Condition) -> Time:
        """w of each row, `(B,)`: 1 outside the interval, and for rows with neither a label nor numbers.

        Raises:
            ValueError: w is drawn for each row, and the condition is not a `GuidedCondition` with these weights.
        """
        if isinstance(cond, GuidedCondition):
            w = cond.weight.to(t.dtype)
        elif isinstance(self.weight, tuple):
            raise ValueError(
                f"this guidance has weights from {self.weight}: pass cond=GuidedCondition(labels, weights)."
            )
        else:
            w = torch.full_like(t, self.weight)
        inside = within(t, self.interval)
        label, numbers = label_and_numbers(cond) if self.condition_dim is not None else (label_of(cond), None)
        given = list[Tensor]()
        if self.classes is not None and label is not None:
            given.append(label != self.classes)
        if numbers is not None:
            given.append(~numbers.isnan().all(1))
        if self.null is not None and label is not None:
            on_pairs(label, self.without(label), lambda own, none: given.append((own != none).flatten(1).any(1)))
        return torch.where(inside & torch.stack(given).any(0) if given else inside, w, 1)


def within(t: Time, interval: tuple[float, float]) -> Tensor:
    """Whether each time lies in the interval, ends included: booleans, `(B,)`."""
    return (t >= interval[0]) & (t <= interval[1])


def _shown(label: Any) -> str:
    return f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)


def check_interval(name: str, interval: tuple[float, float]) -> None:
    """Check that an interval lies inside [0, 1].

    Raises:
        ValueError: the interval does not.
    """
    if not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"{name} needs an interval inside [0, 1], got {interval}.")


class AtWeight(FlowMap):
    """A map that takes the guidance weight as an input, at one fixed weight: its conditions are plain labels.

    Args:
        flow_map: the map, of conditions `GuidedCondition(cond, weight)`.
        weight: the weight.
    """

    def __init__(self, flow_map: FlowMap, weight: float) -> None:
        super().__init__()
        self.flow_map, self.weight = flow_map, weight

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        guide = cond if isinstance(cond, GuidedCondition) else GuidedCondition(cond, torch.full_like(s, self.weight))
        return self.flow_map.average_velocity(x, s, t, guide)


class GuidedMap(FlowMap):
    """u(none) + weight (u(label) - u(none)) of another map; at s = t this is its guided velocity.

    Args:
        flow_map: the map.
        weight: guidance weight.
    """

    def __init__(self, flow_map: FlowMap, weight: float) -> None:
        super().__init__()
        self.flow_map, self.weight = flow_map, weight

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        none = self.flow_map.average_velocity(x, s, t, None)
        return torch.lerp(none, self.flow_map.average_velocity(x, s, t, cond), self.weight)
