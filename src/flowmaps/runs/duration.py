"""How long a run will take: from the loss and gradient of each stage, and evaluations of its networks, that are timed.

They are timed without compilation, of all rows that a process takes at a time; or, where fewer take a quarter of a
second, of those, and the time is taken to be proportional to the rows. Optimiser, averages and metrics are left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..data import Source
from ..maps import FlowMap
from ..methods import Jumps
from ..objectives import Objective
from ..system.seeds import generator, seeded_globally
from ..training.optimisers import MIN_ROWS
from .plan import Plan
from .precision import compute, inputs_of_rows, rows_at_a_time
from .recipes import Recipe

LONG_SECONDS = 0.25
"""Where so many rows take this long, no more are tried."""
TIMED = 3
"""Calls of which the median is taken, where one is short."""
GROWTH = 4
"""How many times more rows are tried next."""
DOPRI5_EVALUATIONS = 100
"""Of the adaptive solver for a sample; it takes 90 to 120 for the recipes' teachers."""


def step_seconds(recipe: Recipe, objective: Objective, source: Source) -> Seconds:
    """Seconds of the loss and the gradient of a step of a stage, the mean over terms that take turns.

    Args:
        recipe: of the run.
        objective: of the stage, on its device.
        source: the data, on the same device.
    """
    precision, turns = getattr(torch, recipe.precision), recipe.off_diagonal_every

    def of_step(number: int) -> Seconds:
        def work(rows: int) -> None:
            compute(objective, inputs_of_rows(recipe, objective, source, rows, number), precision)

        return _seconds(work, rows_at_a_time(recipe))

    with seeded_globally(next(objective.parameters()).device, recipe.seed):
        last = of_step(turns - 1)
        others = of_step(0).value if turns > 1 else 0.0
    return last._replace(value=recipe.optimiser.accumulate * (last.value + (turns - 1) * others) / turns)


def measuring_seconds(plan: Plan, flow_map: FlowMap, teacher: FlowMap | None, source: Source) -> float:
    """Seconds of drawing the samples that the evaluation measures: by the map, and by the ODE of its teacher.

    Args:
        plan: of the run.
        flow_map: its map, on its device.
        teacher: a teacher from elsewhere, whose network may be another; a teacher that the run trains has that of the
            map.
        source: the data, on the same device.
    """
    settings, device = plan.evaluation(), next(flow_map.parameters()).device
    of_ode = DOPRI5_EVALUATIONS + settings.solver_steps * (2 if source.units.pictures else 1)  # dopri5, Heun or Euler
    solved = plan.method.distils or plan.method.jumps is not Jumps.TO_DATA
    if teacher is None and plan.method.distils:
        teacher = flow_map
    flow_map, teacher = plan.as_sampled(flow_map, teacher)  # guided, where they are
    rows = min(settings.batch, settings.samples)

    def seconds_of(velocity: FlowMap) -> float:
        def evaluate(rows: int) -> None:
            x, cond = source.sample(rows, generator(plan.recipe.seed, device=device))
            with torch.inference_mode():
                velocity.velocity(x, torch.full((rows,), 0.5, device=device), cond).flatten()[0].item()

        return _seconds(evaluate, rows).value / rows

    with seeded_globally(device, plan.recipe.seed):
        of_map = seconds_of(flow_map)
        of_flow = (of_map if teacher is None else seconds_of(teacher)) if solved else 0.0
    drawn = settings.samples + rows  # the first rows are drawn twice, so that no time is of a first call
    return drawn * (sum(settings.steps) * of_map + of_ode * of_flow)


class Seconds(NamedTuple):
    """The time of some work.

    Attributes:
        value: seconds of the whole work.
        rows: that were tried.
        fits: whether no memory was too small for more.
    """

    value: float
    rows: int
    fits: bool = True


def _seconds(work: Callable[[int], None], whole: int) -> Seconds:
    """Seconds of some work on all rows, as far as can be told by trying no more rows than take long."""
    rows, found = min(whole, 2 * MIN_ROWS), Seconds(0.0, 0)
    while True:
        try:
            taken = min(_timed(work, rows) for _ in range(2))  # the first call of a kind may be slow
            if taken < LONG_SECONDS:
                taken = statistics.median(_timed(work, rows) for _ in range(TIMED))
        except torch.OutOfMemoryError:
            if not found.rows:
                raise
            return found._replace(fits=False)
        found = Seconds(taken * whole / rows, rows)
        if rows == whole or taken >= LONG_SECONDS:
            return found
        rows = min(whole, GROWTH * rows)


def _timed(work: Callable[[int], None], rows: int) -> float:
    begun = time.perf_counter()
    work(rows)
    return time.perf_counter() - begun
