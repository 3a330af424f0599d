"""Data taken back to noise by the map, and carried to the data again, or to another class."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluation.sampling import guide, labels_of_samples
from ..shapes import Condition, condition_of, label_and_numbers, on_each
from ..system.progress import Watch, quiet
from ..system.seeds import generator
from ..uses import inversion
from .opened import IMAGES, POINTS, Asked, OpenRun
from .samples import seconds_in_words

STREAM = 27  # of the seed
MAX_STEPS = 64


@dataclass(frozen=True)
class Carried:
    """Data, what they were taken back to, and what came of it: in the network's coordinates, `(N, *shape)`.

    Attributes:
        data: rows of the run's data, held-out ones where there are any.
        noise: the same at time `to`.
        back: the same at time 1 again.
        labels: classes of the data, or `None`.
        target: the class that they came back as; `None` for their own.
        error: root mean square distance from the data over their spread, where they came back as their own class.
        seconds: that it took.
        evaluations: of the network for each row.
    """

    data: Tensor
    noise: Tensor
    back: Tensor
    labels: Tensor | None
    target: str | None
    error: float | None
    seconds: float
    evaluations: int

    def text(self) -> str:
        """What was done, how well and how fast, in a line."""
        what = f"{len(self.data):,} rows in {self.evaluations} evaluations each, {seconds_in_words(self.seconds)}"
        if self.error is None:
            return f"{what}; they come back as {self.target}"
        return f"{what}; they come back with an error of {self.error:.3g} of their spread"


@torch.no_grad()
def carry(
    run: OpenRun,
    asked: Asked,
    *,
    steps: int = 4,
    to: float = 0.0,
    target: str | None = None,
    watch: Watch = quiet,
) -> Carried:
    """Take data back to time `to`, and then to the data of their own class or of another one.

    Args:
        run: the run.
        asked: of the seed and the guidance.
        steps: jumps either way.
        to: the time to go back to, in [0, 1): 0 is noise.
        target: the class to come back as, by its name; their own unless given.
        watch: progress callback.

    Raises:
        ValueError: the map was never trained backwards, an option is out of range, or the data cannot be read.
    """
    run.plan.check_backwards(run.folder)
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps must be from 1 to {MAX_STEPS} here, got {steps}.")
    run.plan.check_steps([steps])
    watch("data", 0.0)
    data, cond = run.source(watch).reference(IMAGES if run.units.pictures else POINTS, generator(asked.seed, STREAM))
    goal = _other_class(run, cond, len(data), target)
    own, other = (_on(run, one, len(data), asked.guidance) for one in (cond, goal))
    begun = time.perf_counter()
    watch("to noise", 0.1)
    noise = inversion.invert(run.flow_map, data.to(run.device), own, to=to, steps=steps, backwards=True)
    watch("and back", 0.5)
    back = inversion.generate(run.flow_map, noise, other, start=to, steps=steps).cpu()
    seconds = time.perf_counter() - begun
    label = label_and_numbers(cond)[0]
    return Carried(
        data,
        noise.cpu(),
        back,
        label if isinstance(label, Tensor) and label.ndim == 1 else None,
        target,
        None if target is not None else inversion.relative_error(back, data),
        seconds,
        2 * steps,
    )


def _other_class(run: OpenRun, cond: Condition, number: int, target: str | None) -> Condition:
    """The condition of the data with another class."""
    if target is None:
        return cond
    return condition_of(labels_of_samples(run.units, number, target), label_and_numbers(cond)[1])


def _on(run: OpenRun, cond: Condition, number: int, guidance: float | None) -> Condition:
    """A condition on the device of the run, with a guidance weight where one is given."""
    guided = cond if guidance is None else guide(run.plan.recipe, cond, number, guidance)
    return on_each(guided, lambda value: value.to(run.device))
