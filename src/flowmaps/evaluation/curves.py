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

    Reading them waits for the device; `see` does not.
    """

    def __init__(self) -> None:
        self._stages: dict[str, _Raw] = {}

    def see(self, stage: str, step: Step) -> None:
        """The residuals of a step of a stage."""
        self._stages.setdefault(stage, _Raw()).see(step.number, step.loss.parts)

    def thinned(self, points: int = POINTS) -> dict[str, Curve]:
        """The curve of each stage, of so many points at most."""
        return {stage: raw.thinned(points) for stage, raw in self._stages.items()}


class _Raw:
    """The residuals of every `stride`-th step, where the stride doubles as the steps become many."""

    def __init__(self) -> None:
        self.stride, self.names = 1, list[str]()
        self.steps, self.values = list[int](), list[Tensor]()

    def see(self, number: int, parts: Mapping[str, Tensor]) -> None:
        self.names = self.names or list(parts)
        if number % self.stride or list(parts) != self.names:
            return
        self.steps.append(number)
        self.values.append(torch.stack([part.detach().float().mean() for part in parts.values()]))
        if len(self.steps) > MAX_RAW_POINTS:
            self.stride *= 2
            kept = [k for k, step in enumerate(self.steps) if step % self.stride == 0]
            self.steps, self.values = [self.steps[k] for k in kept], [self.values[k] for k in kept]

    def thinned(self, points: int) -> Curve:
        rows = torch.stack(self.values).cpu().tolist()
        columns = dict(zip(self.names, zip(*rows, strict=True), strict=True))
        return {name: _medians(values, points) for name, values in {"step": self.steps, **columns}.items()}


def _medians(values: Sequence[float], points: int) -> list[float | None]:
    """The medians of `points` parts of the values, as equal as may be; of each value alone where there are fewer."""
    points, medians = min(points, len(values)), list[float | None]()
    ends = [len(values) * k // points for k in range(points + 1)]
    for low, high in pairwise(ends):
        part = [value for value in values[low:high] if math.isfinite(value)]
        median = statistics.median_low(part) if part else None
        medians.append(float(f"{median:.{DIGITS}g}") if isinstance(median, float) else median)
    return medians
