"""A method trained on a budget: its stages one after the other, its teacher shared with other methods.

The budget covers all stages, a teacher included, in proportion to their steps; compilation and measuring are not in it.
It is in optimiser steps, or in seconds: of CPU time of the training process, on a GPU of wall clock.
A teacher is trained once for each seed and its own settings, and shared by the methods that distil it.
"""

from __future__ import annotations

import hashlib
import inspect
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from ..data import Source
from ..maps import FlowMap, Target
from ..objectives import Objective, SplitRows
from ..runs import initial
from ..runs.changes import in_words
from ..runs.plan import Plan
from ..runs.stages import Stage
from ..storage import models
from ..system import memory
from ..system.devices import compiled, pick_device
from ..system.progress import Watch, quiet
from ..system.seeds import generator
from ..training.loop import Step, train
from ..training.state import State, begin
from .cells import alone
from .curves import Curves
from .measure import Row

Unit = Literal["seconds", "steps"]
"""What a budget is counted in."""
WARM_UP_STEPS = 3  # at least, before the clock starts: compilation is not training
UNLIMITED_STEPS = 10**9  # the budget ends training
SECONDS_BETWEEN_CHECKS = 0.5  # of the loss, for which the host waits for the device


def train_method(
    plan: Plan,
    source: Source,
    budget: float,
    folder: Path,
    *,
    unit: Unit = "seconds",
    clock: Callable[[], float] | None = None,
    curves: Curves | None = None,
    watch: Watch = quiet,
    say: Callable[[str], None] = print,
) -> tuple[FlowMap, FlowMap | None, Row]:
    """Train one method: its map, its teacher, and what training took.

    A teacher is kept in the folder; where another process trains it, this one waits.

    Args:
        plan: of the method, whose recipe has the seed.
        source: the data, on the device.
        budget: of all stages together.
        folder: of the teachers.
        unit: of the budget.
        clock: of a budget in seconds; `clock_of` the device unless given.
        curves: what the residuals are shown to.
        watch: progress callback.
        say: prints a line.
    """
    device = pick_device(plan.recipe.device)
    flow_map = initial.new_map(plan.recipe, source.shape, source.classes, source.units.condition_dim).to(device)
    teacher: FlowMap | None = None
    options = {"unit": unit, "clock": clock, "curves": curves, "watch": watch, "say": say}
    training: Row = {"budget": budget, "distilled": plan.method.distils}
    for stage, share in shares(plan, budget, unit):
        objective = stage.build(flow_map, teacher and teacher.velocity).to(device)
        for name in ("ms_per_step", "mb_per_step"):  # of the last stage, or of none
            training.pop(name, None)
        train_it = partial(train_stage, plan, stage, source, objective, share, **options)
        if stage.name == "teacher":
            weights = folder / teacher_file(stage, objective, share, plan.recipe.seed, unit)
            with alone(weights, say):
                training |= _teacher_from(weights, flow_map) or _teacher_into(weights, flow_map, train_it)
        else:
            training |= train_it()
        if training.get("diverged"):
            break
        if stage.name == "teacher":
            teacher, training["teacher"] = Target(flow_map), weights.name
    return flow_map, teacher, training


def shares(plan: Plan, budget: float, unit: Unit) -> Iterator[tuple[Stage, float]]:
    """The stages of a plan, each with its share of the budget; whole steps add up to the budget, and each has one.

    Raises:
        ValueError: there are fewer steps than stages.
    """
    stages = [stage for stage in plan.stages if stage.steps]
    if unit == "steps" and budget < len(stages):
        raise ValueError(
            f"{plan.method.name} has {len(stages)} stages, for which --budget-steps must be at least {len(stages)}, "
            f"got {budget}."
        )
    left, steps = budget, sum(stage.steps for stage in stages)
    for k, stage in enumerate(stages):
        share = left * stage.steps / steps
        if unit == "steps":
            share = min(max(1, round(share)), left - (len(stages) - 1 - k))
        yield stage, share
        left, steps = left - share, steps - stage.steps


def _teacher_from(weights: Path, flow_map: FlowMap) -> Row:
    """Load a teacher that is there: what its training took; an empty row where it is not there."""
    if not weights.exists():
        return {}
    try:
        tensors, extra = models.load_tensors(weights)
        training = extra["training"]
    except (ValueError, KeyError):
        raise ValueError(f"{weights} is damaged: delete it, and it is trained again.") from None
    try:
        flow_map.load_state_dict(tensors)
    except RuntimeError:
        raise ValueError(
            f"{weights} is the teacher of another network: compare methods of unlike networks in a folder each."
        ) from None
    return training


def _teacher_into(weights: Path, flow_map: FlowMap, train_it: Callable[[], Row]) -> Row:
    """Train a teacher and keep it, unless it diverges."""
    training = train_it()
    if not training.get("diverged"):
        tensors = {name: value.contiguous() for name, value in flow_map.state_dict().items()}
        models.save_tensors(weights, tensors, {"training": training})
    return training


def teacher_file(stage: Stage, objective: Objective, budget: float, seed: int, unit: Unit = "seconds") -> str:
    """The name of a teacher's file, by which methods share one: those with the same map, path, budget, seed, settings
    of the optimiser, times, weight and guidance."""
    flow_map, path, weight = objective.flow_map, objective.interpolant, objective.weight
    kinds = type(flow_map).__name__, type(path).__name__
    guided = () if objective.guidance is None else (objective.guidance,)
    # arguments that are not at their defaults; the map's network is that of the recipe
    own = [words for part in (path, weight) if not (words := in_words(part)).endswith("()")]
    own += [
        f"{name}={value:g}"
        for name, known in inspect.signature(type(flow_map)).parameters.items()
        if isinstance(value := getattr(flow_map, name, None), float) and value != known.default
    ]
    settings = repr((stage.optimiser, objective.times, type(weight).__name__, *guided, *own))
    digest = hashlib.sha256(settings.encode()).hexdigest()[:6]
    return f"teacher-{'-'.join(kinds)}-{budget:g}-{unit}-{seed}-{digest}.safetensors"


def train_stage(
    plan: Plan,
    stage: Stage,
    source: Source,
    objective: Objective,
    budget: float,
    *,
    unit: Unit = "seconds",
    clock: Callable[[], float] | None = None,
    curves: Curves | None = None,
    watch: Watch = quiet,
    say: Callable[[str], None] = print,
) -> Row:
    """Train one stage for its budget, shorter if it diverges: what a step took, and whether the stage diverged.

    The time of a step is the median on the CPU, elsewhere the mean: there the host runs ahead of the device. Where
    terms take turns it is that of a round, by its number of steps. Arguments are as in `train_method`.
    """
    recipe, device = plan.recipe, pick_device(plan.recipe.device)
    title, cpu = f"{recipe.method}, {stage.name}", "CPU " if unit == "seconds" and device.type == "cpu" else ""
    say(f"{title}, seed {recipe.seed}: training for {budget:g} {cpu}{unit} ...")
    torch.compiler.reset()  # torch.compile's recompile limit would make later objectives run eagerly
    evaluate = compiled(objective.evaluate, say) if plan.compiles(device) else None
    state = begin(objective, stage.optimiser, evaluate=evaluate, precision=getattr(torch, recipe.precision))
    seed = generator(recipe.seed, plan.stages.index(stage)).initial_seed()
    steps = UNLIMITED_STEPS if unit == "seconds" else int(budget)
    run = partial(train, state, source, stage.optimiser, seed=seed, device=device, steps=steps)
    turns = objective.every if isinstance(objective, SplitRows) else 1  # each term has had one when the clock starts
    for _ in islice(run(), max(WARM_UP_STEPS, 2 * turns - 1)):
        pass
    state.zero_grad()  # so the gradients are included in the measured peak
    step = run()
    peak = memory.peak(lambda: next(step, None), device)
    limit = {"budget": budget, "clock": clock or clock_of(device)} if unit == "seconds" else {}
    begun = time.perf_counter()
    lost = partial(_is_lost, state, recipe.max_skipped_steps)
    seconds, finite = take_steps(_seen(run(**limit), stage.name, curves), title, watch, lost)
    state.use_averages()
    say(f"{title}, seed {recipe.seed}: {state.step:,} steps in {time.perf_counter() - begun:.0f} s of wall-clock time")
    training = _taken(stage, state, seconds, device, turns)
    if peak:  # none where the budget was spent before
        training["mb_per_step"] = round(peak / 1e6, 3)
    if not finite or lost() or not all(bool(value.isfinite().all()) for value in state.parameters.values()):
        training["diverged"] = True
    return training


def _taken(stage: Stage, state: State, seconds: list[float], device: torch.device, turns: int) -> Row:
    """The number of steps of a stage, and what one took, unless the budget was spent before the clock started."""
    rounds = [statistics.fmean(seconds[k : k + turns]) for k in range(0, len(seconds) - turns + 1, turns)]
    typical = statistics.median if device.type == "cpu" else statistics.mean
    cost = {"ms_per_step": round(1e3 * typical(rounds), 3)} if rounds else {}
    return {**cost, f"{stage.name}_steps": state.step}


def clock_of(device: torch.device) -> Callable[[], float]:
    """The clock of a budget in seconds: CPU time of this process; beside another device wall-clock time."""
    return time.process_time if device.type == "cpu" else time.monotonic


def _seen(steps: Iterator[Step], stage: str, curves: Curves | None) -> Iterator[Step]:
    """The same steps, shown to the curves."""
    for step in steps:
        if curves is not None:
            curves.see(stage, step)
        yield step


def _is_lost(state: State, patience: int) -> bool:
    """Whether the last `patience` steps had no finite gradient and were skipped, or all steps so far."""
    state.guard.read_norms()
    return state.guard.consecutive_skips >= min(patience, max(state.step, 1))


def take_steps(steps: Iterator[Step], title: str, watch: Watch, lost: Callable[[], bool]) -> tuple[list[float], bool]:
    """Take steps while the loss is finite and nothing is lost, as far as that is checked now and then: the seconds of
    each step, and whether it stayed so."""
    seconds: list[float] = []
    checked = before = time.perf_counter()
    for step in steps:
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
        if now - checked > SECONDS_BETWEEN_CHECKS:
            checked = now
            residuals = ", ".join(f"{name} {part.mean():.3g}" for name, part in step.loss.parts.items())
            watch(f"{title} | {residuals}", step.progress)
            if lost() or not bool(step.loss.value.isfinite()):
                return seconds, False
    return seconds, True
