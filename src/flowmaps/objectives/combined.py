"""Objectives made of others: each on its share of the rows, or all on the same rows.

    SplitRows    (n first(rows 1..n) + (B - n) second(rows n+1..B)) / B,    n = share B
    in_turns     the same, with all rows of the second objective in one step of several
    Sum          sum_k scale_k term_k

The objectives must share their map, interpolant, coupling, guidance and draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..shapes import Batch, Condition
from ..velocities import RandomInputs
from .base import DrawnTimes, Loss, Moment, Objective
from .matching import MapMatching, VelocityMatching


class SplitRows(Objective):
    """The first share of the rows for one objective, the rest for another; the loss is the mean over all rows.

    The number of rows is fixed, not drawn: with a share of 0.75 the first 384 of 512 rows, in each batch and on each
    device.

    Args:
        first, second: objectives of one map, interpolant and coupling.
        share: share of the rows that `first` takes, between 0 and 1.
        every: `second` has rows only in the last of so many steps, then every * (1 - share) of them; in the others
            `first` takes all. Over all steps the shares, and the expected gradient, are those of every = 1. With
            share = 3/4 and every = 4 the last step is all `second` (Pocket TTS). In training the objective must be told
            the step; in evaluation mode a draw without it is that of a last step.

    Raises:
        ValueError: the objectives do not go together, or the rows of `second` do not fit one step of so many.
    """

    def __init__(self, first: Objective, second: Objective, share: float = 0.75, every: int = 1) -> None:
        if not 0 < share < 1:
            raise ValueError(f"SplitRows needs 0 < share < 1, got {share}.")
        most = math.floor(1 / (1 - share) + 1e-9)
        if type(every) is not int or not 1 <= every <= most:
            raise ValueError(
                f"SplitRows needs a whole number 1 <= every <= {most} with share={share:g}, whose second objective has "
                f"{1 - share:g} of the rows, got {every!r}: take one of these, or a larger share."
            )
        _check_shared([first, second], "SplitRows")
        super().__init__(first.flow_map, first.interpolant, times=first.times, **first.shared())
        self.first, self.second, self.share, self.every = first, second, share, every

    def draw_inputs(self, x1: Batch, x0: Batch | None, cond: Condition, at: Moment) -> RandomInputs:
        """`draw` of arguments that were checked: where the second objective has no turn, the first has all rows."""
        if self._second_has_turn(at.step):
            return super().draw_inputs(x1, x0, cond, at)
        inputs = self.first.draw_inputs(x1, x0, cond, at)
        first = self.first.counts(len(inputs.x1)) or (len(inputs.x1),)
        return inputs._replace(counts=(*first, *[0] * self.second.number_of_parts))

    def _second_has_turn(self, step: int | None) -> bool:
        """Whether the second objective has rows in the step after `step` others."""
        if self.every == 1 or (step is None and not self.training):
            return True
        if step is None:
            raise ValueError(
                f"the second term of this objective has its turn in one of {self.every} steps, and was not told the "
                "step: call objective(x1, progress=step / steps, step=step)."
            )
        return (step + 1) % self.every == 0

    def rows_of_first(self, rows: int) -> int:
        """How many of `rows` the first objective takes in a step where both have rows, at least one each; 0 if the
        second takes all.

        Raises:
            ValueError: fewer than two rows.
        """
        if rows < 2:
            raise ValueError(f"a batch for two objectives needs at least 2 rows, got {rows}.")
        share = self.share if self.every == 1 else 1 - self.every * (1 - self.share)
        return 0 if share < 1e-9 else min(max(round(share * rows), 1), rows - 1)

    def _divides(self, rows: int, number: int) -> bool:
        return (
            rows % number == 0
            and rows >= 2 * number
            and self.rows_of_first(rows) == number * self.rows_of_first(rows // number)
        )

    def micro_batches(self, rows: int, number: int) -> Tensor:
        n = self.rows_of_first(rows)
        if not self._divides(rows, number):
            enough = next(k for k in range(rows + 1, 1_000 * (rows + number)) if self._divides(k, number))
            raise ValueError(
                f"a batch of {rows} rows, {n} of them for the first objective, has no {number} equal parts with the "
                f"same share: take {enough} rows."
            )
        return torch.cat([self.first.micro_batches(n, number), n + self.second.micro_batches(rows - n, number)], 1)

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> DrawnTimes:
        n = self.rows_of_first(len(x1))
        first = self.first.draw_times(x1[:n], generator, progress)
        second = self.second.draw_times(x1[n:], generator, progress)
        s, t, split, warmup = (torch.cat(pair) for pair in zip(first, second, strict=True))
        return s, t, split, warmup

    @property
    def number_of_parts(self) -> int:
        return self.first.number_of_parts + self.second.number_of_parts

    def counts(self, rows: int) -> tuple[int, ...]:
        n = self.rows_of_first(rows)
        return (*(self.first.counts(n) or (n,)), *(self.second.counts(rows - n) or (rows - n,)))

    def _rows_of_first(self, inputs: RandomInputs) -> int:
        """How many of the rows of a draw were drawn for the first objective.

        Raises:
            ValueError: rows were taken out of the draw in another way than by `rows`.
        """
        rows, counts = len(inputs.x1), inputs.counts
        if not counts:  # made by hand, or by an objective of one part
            return self.rows_of_first(rows)
        if sum(counts) != rows:
            raise ValueError(
                f"a draw of {sum(counts)} rows was cut to {rows} by hand, and which of them are on the diagonal is not "
                "known: cut it by draw.rows(slice(start, stop)), or draw for each part of the batch."
            )
        return sum(counts[: self.first.number_of_parts])

    def evaluate(self, inputs: RandomInputs) -> Loss:
        rows, n = len(inputs.x1), self._rows_of_first(inputs)
        if inputs.counts:
            _check_places(self.first, inputs.s[:n], inputs.t[:n])
            _check_places(self.second, inputs.s[n:], inputs.t[n:])
        mine, first, second = self.first.number_of_parts, inputs.rows(slice(n)), inputs.rows(slice(n, None))
        first = first._replace(counts=first.counts[:mine])
        second = second._replace(counts=second.counts[mine:])
        if n == rows:
            return self.first.evaluate(first)
        if n == 0:
            return self.second.evaluate(second)
        one, two = self.first.evaluate(first), self.second.evaluate(second)
        parts = [{name: nn.functional.pad(part, (0, rows - n)) for name, part in one.parts.items()}]
        parts += [{name: nn.functional.pad(part, (n, 0)) for name, part in two.parts.items()}]
        return Loss((n * one.value + (rows - n) * two.value) / rows, _merged(parts))


def in_turns(objective: Objective, every: int) -> SplitRows:
    """A self-distillation whose rows off the diagonal all come in one of `every` steps, and the velocity's in the rest.

        objective = fm.objectives.in_turns(fm.methods.lsd(flow_map), 4)       # the map's loss on a quarter of the steps

    The share of rows on the diagonal, over all steps, stays as it is, and with it the expected gradient: see
    `SplitRows`. All rows of a step may then be of one kind, and most steps cost no more than velocity matching.

    Args:
        objective: a `SplitRows`, as `fm.methods.lsd`, `esd`, `psd`, `meanflow` and others return.
        every: number of steps in which the second term has one turn.

    Raises:
        ValueError: the objective is of another kind, or the rows do not fit one step of so many.
    """
    if not isinstance(objective, SplitRows):
        raise ValueError(
            f"in_turns is for an objective whose terms split the rows of a batch, such as fm.methods.lsd(flow_map), "
            f"got {type(objective).__name__}, all of whose rows are of one kind: leave it out."
        )
    return SplitRows(objective.first, objective.second, objective.share, every)


class Sum(Objective):
    """A weighted sum of objectives on the same random inputs.

    Args:
        terms: objectives of one map, interpolant and coupling; times are drawn by the law of the first.
        scales: factor of each term; 1 unless given.

    Raises:
        ValueError: a number of factors other than that of the terms, or a term with a law of its own that is not the
            first.
    """

    def __init__(self, terms: list[Objective], scales: list[float] | None = None) -> None:
        scales = [1.0] * len(terms) if scales is None else scales
        if not terms or len(scales) != len(terms):
            raise ValueError(f"Sum needs a factor for each of its terms, got {len(terms)} terms and {scales}.")
        _check_shared(terms, "Sum")
        for term in terms[1:]:
            if isinstance(term, MapMatching) and (term.split is not None or term.warmup is not None):
                raise ValueError(
                    "a Sum draws times by the law of its first term: put the term with a split or warm-up first."
                )
        super().__init__(terms[0].flow_map, terms[0].interpolant, times=terms[0].times, **terms[0].shared())
        self.terms, self.scales = nn.ModuleList(terms), scales

    def micro_batches(self, rows: int, number: int) -> Tensor:
        arranged = [term.micro_batches(rows, number) for term in self.terms if isinstance(term, (SplitRows, Sum))]
        # all terms arrange rows alike: each micro-batch takes every number-th row
        return arranged[0] if arranged else super().micro_batches(rows, number)

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> DrawnTimes:
        first: Objective = self.terms[0]  # type: ignore[assignment]
        return first.draw_times(x1, generator, progress)

    @property
    def number_of_parts(self) -> int:
        return self.terms[0].number_of_parts  # type: ignore[return-value]

    def counts(self, rows: int) -> tuple[int, ...]:
        first: Objective = self.terms[0]  # type: ignore[assignment]
        return first.counts(rows)

    def evaluate(self, inputs: RandomInputs) -> Loss:
        known = len(inputs.counts) or 1
        losses = [
            term.evaluate(inputs if term.number_of_parts == known else inputs._replace(counts=()))  # type: ignore[operator]
            for term in self.terms
        ]
        value = sum(scale * loss.value for scale, loss in zip(self.scales, losses, strict=True))
        return Loss(value, _merged([loss.parts for loss in losses]))  # type: ignore[arg-type]


def _check_places(part: Objective, s: Tensor, t: Tensor) -> None:
    """Refuse a draw in which a part on the diagonal has rows of another; on the CPU, where this waits for nothing.

    Raises:
        ValueError: it has.
    """
    if torch.compiler.is_compiling() or not s.is_cpu or not isinstance(part, VelocityMatching):
        return
    if torch.equal(s, t) or not part.on_diagonal:
        return
    raise ValueError(
        "rows of a draw were moved by hand: some are on the diagonal, s = t, and their places say which. Keep their "
        "order: shuffle x1 before objective.draw, and cut a draw by draw.rows(slice(start, stop))."
    )


def _check_shared(parts: list[Objective], name: str) -> None:
    if any(isinstance(part, SplitRows) and part.every > 1 for part in parts):
        raise ValueError(f"an objective whose terms take turns is no part of a {name}: leave out its every=.")
    first = parts[0]
    for other in parts[1:]:
        if other.flow_map is not first.flow_map or other.interpolant != first.interpolant:
            raise ValueError(f"the objectives of a {name} must share their flow map and their interpolant.")
        if other.shared() != first.shared():
            raise ValueError(f"the objectives of a {name} must share their coupling, guidance and draws.")


def _merged(several: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The parts of several losses in one dictionary; parts of the same name are added."""
    total: dict[str, Tensor] = {}
    for parts in several:
        for name, part in parts.items():
            total[name] = total[name] + part if name in total else part
    return total
