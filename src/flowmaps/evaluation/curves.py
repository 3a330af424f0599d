"""Curves of the residuals of a training, thinned to a hundred points that are medians of many steps.

n_k, r_k = median over the k-th part of the training of (step, mean over the batch of |residual|^2)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..training.loop import Step

MAX_RAW_POINTS = 4_096
"""Points that are kept while training goes on; where there are more, every other one is dropped."""
POINTS = 100
"""Points of a thinned curve."""
DIGITS = 4
"""Significant digits of its values."""

Curve = dict[str, list[float | None]]
"""Numbers of steps, `step`, and beside them the residuals by their names; `None` where none was finite."""


class Curves:
    """The residuals of the stages of a training: unweighted, squared, mean over the batch.

    Steps of different terms, which take turns, are thinned each by themselves. Reading the curves waits for the device;
    `see` does not.
    """

    def __init__(self) -> None:
        self._stages: dict[str, dict[tuple[str, ...], _Raw]] = {}

    def see(self, stage: str, step: Step) -> None:
        """The residuals of a step of a stage."""
        parts = step.loss.parts
        self._stages.setdefault(stage, {}).setdefault(tuple(parts), _Raw()).see(step.number, parts)

    def thinned(self, points: int = POINTS) -> dict[str, Curve]:
        """The curve of each stage, of so many points at most."""
        return {stage: _thinned(raws, points) for stage, raws in self._stages.items()}


class _Raw:
    """The residuals of every `stride`-th step that is seen, where the stride doubles as the steps become many."""

    def __init__(self) -> None:
        self.stride, self.seen = 1, 0
        self.steps, self.values = list[int](), list[Tensor]()

    def see(self, number: int, parts: Mapping[str, Tensor]) -> None:
        self.seen += 1
        if self.seen % self.stride:
            return
        self.steps.append(number)
        self.values.append(torch.stack([part.detach().float().mean() for part in parts.values()]))
        if len(self.steps) > MAX_RAW_POINTS:
            self.stride *= 2
            self.steps, self.values = self.steps[1::2], self.values[1::2]


def _thinned(raws: Mapping[tuple[str, ...], _Raw], points: int) -> Curve:
    rows = list[dict[str, float]]()
    for names, raw in raws.items():
        values = torch.stack(raw.values).cpu().tolist()
        found = (dict(zip(names, row, strict=True)) for row in values)
        rows += [{"step": step, **row} for step, row in zip(raw.steps, found, strict=True)]
    rows.sort(key=lambda row: row["step"])
    columns = ["step", *dict.fromkeys(name for names in raws for name in names)]
    return {name: _medians([row.get(name, math.nan) for row in rows], points) for name in columns}


def _medians(values: Sequence[float], points: int) -> list[float | None]:
    """The medians of `points` parts of the values, as equal as may be; of each value alone where there are fewer."""
    points, medians = min(points, len(values)), list[float | None]()
    ends = [len(values) * k // points for k in range(points + 1)]
    for low, high in pairwise(ends):
        part = [value for value in values[low:high] if math.isfinite(value)]
        median = statistics.median_low(part) if part else None
        medians.append(float(f"{median:.{DIGITS}g}") if isinstance(median, float) else median)
    return medians
