"""Objectives made of others: a share of the rows for each, or a sum on one draw."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..shapes import Batch
from ..velocities import Draw
from .base import Drawn, Loss, Objective
from .matching import MapMatching


class Split(Objective):
    """The first share of the rows for one objective, the rest for another; the loss is the mean over all rows.

    The share is a number of rows, not a chance: 0.75 of 512 rows are the same 384 in each batch, on each device. Rows
    of a batch are exchangeable, and their times are drawn row by row.

    Args:
        first, second: objectives of one map, interpolant and coupling.
        share: part of the rows that `first` takes, between 0 and 1.
    """

    def __init__(self, first: Objective, second: Objective, share: float = 0.75) -> None:
        if not 0 < share < 1:
            raise ValueError(f"Split needs 0 < share < 1, got {share}.")
        _check_shared([first, second], "Split")
        super().__init__(first.flow_map, first.interpolant, times=first.times, **first.shared())
        self.first, self.second, self.share = first, second, share

    def cut(self, rows: int) -> int:
        """How many of `rows` the first objective takes: at least one each.

        Raises:
            ValueError: fewer than two rows.
        """
        if rows < 2:
            raise ValueError(f"a batch that is split between two objectives needs at least 2 rows, got {rows}.")
        return min(max(round(self.share * rows), 1), rows - 1)

    def _divides(self, rows: int, number: int) -> bool:
        return rows % number == 0 and rows >= 2 * number and self.cut(rows) == number * self.cut(rows // number)

    def shares(self, rows: int, number: int) -> Tensor:
        cut = self.cut(rows)
        if not self._divides(rows, number):
            more = next(k for k in range(rows + 1, 1_000 * (rows + number)) if self._divides(k, number))
            raise ValueError(
                f"a batch of {rows} rows, {cut} of them for the first objective, has no {number} equal parts with the "
                f"same share: take {more} rows."
            )
        return torch.cat([self.first.shares(cut, number), cut + self.second.shares(rows - cut, number)], 1)

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> Drawn:
        cut = self.cut(len(x1))
        first = self.first.draw_times(x1[:cut], generator, progress)
        second = self.second.draw_times(x1[cut:], generator, progress)
        s, t, split, warm = (torch.cat(pair) for pair in zip(first, second, strict=True))
        return s, t, split, warm

    def evaluate(self, draw: Draw) -> Loss:
        rows = len(draw.x1)
        cut = self.cut(rows)
        one, two = self.first.evaluate(draw.rows(slice(None, cut))), self.second.evaluate(draw.rows(slice(cut, None)))
        first = {name: nn.functional.pad(part, (0, rows - cut)) for name, part in one.parts.items()}
        second = {name: nn.functional.pad(part, (cut, 0)) for name, part in two.parts.items()}
        return Loss((cut * one.value + (rows - cut) * two.value) / rows, _together([first, second]))


class Sum(Objective):
    """A weighted sum of objectives on one draw.

    Args:
        terms: objectives of one map, interpolant and coupling; the times of the first are drawn for all.
        scales: their factors; 1 unless given.
    """

    def __init__(self, terms: list[Objective], scales: list[float] | None = None) -> None:
        scales = [1.0] * len(terms) if scales is None else scales
        if not terms or len(scales) != len(terms):
            raise ValueError(f"Sum needs a factor for each of its terms, got {len(terms)} terms and {scales}.")
        _check_shared(terms, "Sum")
        for term in terms[1:]:
            if isinstance(term, MapMatching) and (term.split is not None or term.warmup is not None):
                raise ValueError("a Sum draws by the laws of its first term: put one with a split or warm-up first.")
        super().__init__(terms[0].flow_map, terms[0].interpolant, times=terms[0].times, **terms[0].shared())
        self.terms, self.scales = nn.ModuleList(terms), scales

    def shares(self, rows: int, number: int) -> Tensor:
        arranged = [term.shares(rows, number) for term in self.terms if isinstance(term, (Split, Sum))]
        # they agree: each takes every so-manieth row
        return arranged[0] if arranged else super().shares(rows, number)

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> Drawn:
        first: Objective = self.terms[0]  # type: ignore[assignment]
        return first.draw_times(x1, generator, progress)

    def evaluate(self, draw: Draw) -> Loss:
        losses = [term.evaluate(draw) for term in self.terms]  # type: ignore[operator]
        value = sum(scale * loss.value for scale, loss in zip(self.scales, losses, strict=True))
        return Loss(value, _together([loss.parts for loss in losses]))  # type: ignore[arg-type]


def _check_shared(parts: list[Objective], name: str) -> None:
    first = parts[0]
    for other in parts[1:]:
        if other.flow_map is not first.flow_map or other.interpolant != first.interpolant:
            raise ValueError(f"the objectives of a {name} must share their flow map and their interpolant.")
        if other.shared() != first.shared():
            raise ValueError(f"the objectives of a {name} must share their coupling and their guidance.")


def _together(several: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Parts of several losses in one dictionary; parts of one name add up."""
    total: dict[str, Tensor] = {}
    for parts in several:
        for name, part in parts.items():
            total[name] = total[name] + part if name in total else part
    return total
