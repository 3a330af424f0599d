"""How long a run will take: from steps of each stage and evaluations of its networks that are timed.

They are timed without compilation, of all rows that a process takes at a time; or, where fewer take a quarter of a
second, of those, and the time is taken to be proportional to the rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from ..data import Source
from ..maps import FlowMap
from ..methods import Jumps
from ..objectives import Objective
from ..system.processes import ranks
from ..system.seeds import generator, seeded_globally
from ..training.optimisers import MIN_ROWS
from .plan import Plan
from .precision import loss_and_gradients
from .recipes import Recipe

LONG_SECONDS = 0.25
"""Where so many rows take this long, no more are tried."""
TIMED = 3
"""Calls that are timed, after one that is not, if that one is short."""
GROWTH = 4
"""How many times more rows are tried next."""
DOPRI5_EVALUATIONS = 100
"""Of the adaptive solver for a sample; it takes 90 to 120 for the recipes' teachers."""


def step_seconds(recipe: Recipe, objective: Objective, source: Source) -> tuple[float, int]:
    """Seconds of an optimiser step of a stage, the mean over terms that take turns; and the rows that were tried.

    Args:
        recipe: of the run.
        objective: of the stage, on its device.
        source: the data, on the same device.
    """
    own, device = recipe.optimiser, next(objective.parameters()).device
    precision, turns = getattr(torch, recipe.precision), recipe.off_diagonal_every

    def step(rows: int, number: int) -> None:
        rng = generator(recipe.seed, device=device)
        x1, cond = source.sample(rows, rng)
        _, grads = loss_and_gradients(
            objective, objective.draw(x1, cond=cond, generator=rng, progress=0.0, step=number), precision
        )
        grads[0].flatten()[0].item()  # waits for the device

    whole = own.batch // (ranks() * own.accumulate)
    with seeded_globally(device, recipe.seed):
        last, rows = _seconds(lambda rows: step(rows, turns - 1), whole)
        others = _seconds(lambda rows: step(rows, 0), whole)[0] if turns > 1 else 0.0
    return own.accumulate * (last + (turns - 1) * others) / turns, rows


def measuring_seconds(plan: Plan, flow_map: FlowMap, teacher: FlowMap | None, source: Source) -> float:
    """Seconds of drawing the samples that the evaluation measures: by the map, and by the ODE of its teacher.

    Args:
        plan: of the run.
        flow_map: its map, on its device.
        teacher: a teacher from elsewhere, whose network may be another.
        source: the data, on the same device.
    """
    settings, device = plan.evaluation(), next(flow_map.parameters()).device
    of_ode = DOPRI5_EVALUATIONS + settings.solver_steps * (2 if source.units.pictures else 1)  # dopri5, Heun or Euler
    solved = plan.method.distils or plan.method.jumps is not Jumps.TO_DATA
    flow_map, teacher = plan.as_sampled(flow_map, teacher)

    def evaluations_of(velocity: FlowMap) -> float:
        def evaluate(rows: int) -> None:
            x, cond = source.sample(rows, generator(plan.recipe.seed, device=device))
            with torch.inference_mode():
                velocity.velocity(x, torch.full((rows,), 0.5, device=device), cond).flatten()[0].item()

        whole = min(settings.batch, settings.samples)
        return _seconds(evaluate, whole)[0] / whole

    of_map = evaluations_of(flow_map)
    of_flow = (of_map if teacher is None else evaluations_of(teacher)) if solved else 0.0
    return settings.samples * (sum(settings.steps) * of_map + of_ode * of_flow)


def _seconds(work: Callable[[int], None], whole: int) -> tuple[float, int]:
    """Seconds of some work on all rows, as far as can be told by trying no more rows than take long; and those rows."""
    rows, found = min(whole, 2 * MIN_ROWS), (0.0, 0)
    while True:
        try:
            taken = _timed(work, rows)
            if taken < LONG_SECONDS:  # the first call of a kind may be slow
                taken = statistics.median(_timed(work, rows) for _ in range(TIMED))
        except torch.OutOfMemoryError:  # compiled they may fit
            if not found[1]:
                raise
            return found
        found = taken * whole / rows, rows
        if rows == whole or taken >= LONG_SECONDS:
            return found
        rows = min(whole, GROWTH * rows)


def _timed(work: Callable[[int], None], rows: int) -> float:
    begun = time.perf_counter()
    work(rows)
    return time.perf_counter() - begun
