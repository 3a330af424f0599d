"""The precision of a run with --precision auto: bfloat16 where a step is faster in it, by a few timed steps of both.

Processors without instructions for bfloat16 take longer in it than in float32, and small networks gain nothing.
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
from torch import Tensor

from ..data import Source
from ..maps import FlowMap, Target
from ..objectives import Objective
from ..system.processes import ranks
from ..system.progress import Watch, milliseconds
from ..system.seeds import generator, seeded_globally
from ..velocities import RandomInputs
from .plan import Plan
from .recipes import Recipe

CHOICES = ("float32", "bfloat16")
GAIN = 1.1
"""How many times faster than in float32 a step must be in bfloat16, whose rounding costs accuracy."""
ROWS = 16
"""Rows of a timed step on a CPU, where time is proportional to rows; elsewhere all those that a process takes at a
time."""
TIMED = 3
"""Steps of each kind that are timed, after one that is not."""
ENOUGH_SECONDS = 20.0
"""No further step begins after this time."""


def choose(plan: Plan, flow_map: FlowMap, source: Source, watch: Watch) -> tuple[str, str]:
    """Time steps of the last stage, without compilation, in float32 and in bfloat16.

    Args:
        plan: of the run.
        flow_map: its first map, on the device; left as it is.
        source: the data, on the device.
        watch: progress callback.

    Returns:
        The name of the precision to train in, and a sentence with the times.
    """
    device = next(flow_map.parameters()).device
    seconds: dict[str, list[float]] = {name: [] for name in CHOICES}
    with seeded_globally(device, plan.recipe.seed):
        objective = plan.stages[-1].build(copy.deepcopy(flow_map), Target(flow_map).velocity).to(device).train()
        inputs, end = _inputs(plan, objective, source), time.monotonic() + ENOUGH_SECONDS
        for number in range(TIMED + 1):  # in turns, so that other work on the machine slows both
            watch("timing a step in float32 and in bfloat16", number / (TIMED + 1))
            for name in CHOICES:
                seconds[name].append(_step(objective, inputs, getattr(torch, name)))
            if time.monotonic() > end:
                break
    exact, half = (statistics.median(seconds[name][1:] or seconds[name]) for name in CHOICES)
    chosen = "bfloat16" if exact > GAIN * half else "float32"
    rows = f"{len(inputs.s)} row{'s' * (len(inputs.s) > 1)}"
    said = f"a step of {rows} takes {milliseconds(half)} in bfloat16, {milliseconds(exact)} in float32"
    return chosen, f"precision {chosen}: {said}"


def _inputs(plan: Plan, objective: Objective, source: Source) -> RandomInputs:
    """Random inputs of a step."""
    rows = rows_at_a_time(plan.recipe)
    rows = min(rows, ROWS) if next(objective.parameters()).device.type == "cpu" else rows
    return inputs_of_rows(plan.recipe, objective, source, rows, plan.recipe.off_diagonal_every - 1)


def rows_at_a_time(recipe: Recipe) -> int:
    """Rows that a process takes at a time: a batch is split among processes, and in parts with --accumulate."""
    return recipe.optimiser.batch // (ranks() * recipe.optimiser.accumulate)


def inputs_of_rows(recipe: Recipe, objective: Objective, source: Source, rows: int, step: int) -> RandomInputs:
    """Random inputs of so many rows in the step after `step` others."""
    rng = generator(recipe.seed, device=next(objective.parameters()).device)
    x1, cond = source.sample(rows, rng)
    return objective.draw(x1, cond=cond, generator=rng, progress=0.0, step=step)


def _step(objective: Objective, inputs: RandomInputs, precision: torch.dtype) -> float:
    """Seconds of a loss and its gradient."""
    begun = time.perf_counter()
    compute(objective, inputs, precision)
    return time.perf_counter() - begun


def compute(objective: Objective, inputs: RandomInputs, precision: torch.dtype) -> None:
    """Compute a loss and its gradients, and wait for the device."""
    _, grads = loss_and_gradients(objective, inputs, precision)
    grads[0].flatten()[0].item()


def loss_and_gradients(
    objective: Objective, inputs: RandomInputs, precision: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """The loss in a precision, and its gradients in the parameters that have one; `.grad` is left alone."""
    with torch.autocast(inputs.s.device.type, precision, enabled=precision != torch.float32):
        loss = objective.evaluate(inputs).value
    trained = [value for value in objective.parameters() if value.requires_grad]
    grads = torch.autograd.grad(loss, trained, allow_unused=True)
    return loss, [grad for grad in grads if grad is not None]
