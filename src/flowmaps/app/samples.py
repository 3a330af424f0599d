"""The same noise in a few steps of the map, and by the flow that it jumps along, with what each takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..evaluation.sampling import OF_MAP, OF_TEACHER, Samples, ode_sampler, sample, steps_in_words
from ..shapes import label_of
from ..system.progress import Watch, quiet
from .opened import TEACHER, Asked, OpenRun

T = TypeVar("T")
STEPS = (1, 2, 4, 8)
"""Numbers of steps to show, unless they are given."""
MAX_STEPS, MAX_SAMPLES = 128, 20_000
"""Most steps and samples of a page; `flowmaps sample` takes more."""
TOLERANCE = 1e-5
"""Relative and absolute, of dopri5."""


@dataclass(frozen=True)
class Drawn:
    """Samples by one sampler.

    Attributes:
        title: of the sampler, such as "4 steps" or "teacher, dopri5".
        samples: with the seconds and network evaluations that they took.
        solved: whether they are of the flow by its solver, and not of the map.
    """

    title: str
    samples: Samples
    solved: bool = False


def same_noise(
    run: OpenRun, asked: Asked, steps: Sequence[int] = STEPS, *, beside: bool = True, watch: Watch = quiet
) -> Iterator[Drawn]:
    """Samples of the map in each number of steps, then of the flow by dopri5, all from one noise.

    Args:
        run: the run.
        asked: which samples.
        steps: numbers of steps; those that the map does not support are left out, unless none is left.
        beside: whether to solve the flow: of the teacher, or of the map's own velocity where there is none.
        watch: progress callback.

    Raises:
        ValueError: a number of steps or of samples is out of range or not for this map; or as in `OpenRun.inputs`.
    """
    _check(run, asked, steps)
    inputs = run.inputs(asked)
    run.sampler.draw(max(steps), inputs.rows(slice(1), run.device), asked.seed)  # the first call of a network is slow
    for number in steps:
        yield Drawn(steps_in_words(number), run.sampler.draw(number, inputs, asked.seed, watch))
    if beside and (flow := run.flow(asked.guidance)) is not None:
        solver = ode_sampler(flow[0].velocity, rtol=TOLERANCE, atol=TOLERANCE)
        options = {"chunk": run.plan.recipe.evaluation.batch, "device": run.device}
        title = f"{OF_TEACHER if flow[1] == TEACHER else OF_MAP}, dopri5"
        watch(title, 0.0)
        yield Drawn(title, sample(solver, inputs._replace(cond=label_of(inputs.cond)), **options, title=title), True)


def _check(run: OpenRun, asked: Asked, steps: Sequence[int]) -> None:
    """Refuse numbers of steps and samples that are out of range."""
    if not steps:
        raise ValueError(f"choose a number of steps, such as {', '.join(map(str, STEPS))}.")
    if not all(1 <= number <= MAX_STEPS for number in steps):
        raise ValueError(f"steps must be from 1 to {MAX_STEPS} here, got {', '.join(map(str, steps))}.")
    if asked.number is not None and not 1 <= asked.number <= MAX_SAMPLES:
        raise ValueError(f"the number of samples must be from 1 to {MAX_SAMPLES:,} here, got {asked.number:,}.")
    run.plan.check_steps(steps)


def timings(drawn: Sequence[Drawn]) -> list[list[str]]:
    """A row for each sampler: its title, evaluations, seconds, and how many times faster than the flow's solver."""
    flow = next((one.samples.seconds for one in drawn if one.solved), None)
    rows = []
    for one in drawn:
        taken = one.samples
        faster = "" if flow is None or one.solved else f"{flow / max(taken.seconds, 1e-9):,.3g}"
        rows.append([one.title, str(taken.nfe), seconds_in_words(taken.seconds), faster])
    return rows


def seconds_in_words(seconds: float) -> str:
    """Such as 31 ms or 2.4 s."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What some work gives, and the seconds that it takes."""
    begun = time.perf_counter()
    return work(), time.perf_counter() - begun
