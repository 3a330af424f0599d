"""Several methods side by side: the same data, network and optimiser, and one budget for each, over several seeds.

A method's budget covers all its stages, a teacher included, in proportion to their steps; compilation and measuring are
not in it. It is in optimiser steps, or in seconds: of CPU time of the training process, on a GPU of wall clock.
A teacher is trained once for each seed, and shared by the methods that distil it. `cells` has the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from ..data import Board, Source, fingerprint
from ..maps import FlowMap, Target
from ..objectives import Objective, SplitRows
from ..runs import initial
from ..runs.folder import open_source
from ..runs.plan import Plan, resolve
from ..runs.recipes import Recipe, for_method
from ..runs.recipes.found import found_in, in_options
from ..runs.stages import Stage
from ..storage import models
from ..system import memory
from ..system.devices import compiled, pick_device
from ..system.progress import Watch, quiet
from ..system.seeds import generator
from ..training.loop import Step, train
from ..training.state import State, begin
from .cells import Cell, Cells, alone, contents
from .curves import Curves
from .measure import EvaluationInputs, Row, evaluation_inputs
from .rows import metrics_rows
from .sampling import Samples

Unit = Literal["seconds", "steps"]
"""What a budget is counted in."""
WARM_UP_STEPS = 3  # at least, before the clock starts: compilation is not training
UNLIMITED_STEPS = 10**9  # the budget ends training
SECONDS_BETWEEN_CHECKS = 0.5  # of the loss, for which the host waits for the device
UNUSED_FIELDS = ("name", "method", "log_every", "checkpoint_every")
"""Fields of a recipe that a comparison or a search does not use."""


class Comparison:
    """A comparison of methods in a folder; iterate over `train` to carry it out.

    Several processes may work in one folder at once: each trains what is not done, and not in work elsewhere.

    Args:
        recipe: data, network, optimiser and evaluation; its method is not used.
        methods: what to compare, in the order of the table: names of methods; or a mapping from names of your choice to
            functions that make a plan of the recipe, such as that of a method with other options.
        budget: of the training of each method, its teacher included.
        folder: where to; it must be empty or missing, or have a comparison that was begun with the same options.
        seeds: of the trainings; that of the recipe unless given.
        unit: of the budget.
        resume: refuse to begin anew.
        given: fields of the recipe that the user has set, which settings found for a method leave as they are.

    Attributes:
        rows: of compare.json, of all that is done, when this process last wrote it.
        source: the data, on the device of the recipe.

    Raises:
        ValueError: the folder has something else; the budget is not positive; a method or a seed is named twice; the
            recipe cannot run; or there are fewer steps than a method has stages.
    """

    def __init__(
        self,
        recipe: Recipe,
        methods: Sequence[str] | Mapping[str, Callable[[Recipe], Plan]],
        budget: float,
        folder: Path,
        *,
        seeds: Sequence[int] = (),
        unit: Unit = "seconds",
        resume: bool = False,
        given: Collection[str] = (),
    ) -> None:
        option = "--budget" if unit == "seconds" else "--budget-steps"
        if not 0 < budget < math.inf:
            raise ValueError(f"{option} must be positive, got {budget} {unit}.")
        if recipe.precision == "auto":
            raise ValueError("a comparison needs one --precision for all methods, got auto: take float32 or bfloat16.")
        check_different("--methods", tuple(methods))
        seeds = tuple(seeds) or (recipe.seed,)
        check_different("--seeds", seeds)
        plans = (
            {} if isinstance(methods, Mapping) else {name: partial(_plan, method=name, given=given) for name in methods}
        )
        resolvers = methods if isinstance(methods, Mapping) else plans
        self.plans = {
            Cell(name, seed): resolver(dataclasses.replace(recipe, seed=seed))
            for name, resolver in resolvers.items()
            for seed in seeds
        }
        for plan in self.plans.values():
            list(_shares(plan, budget, unit))
        self.recipe, self.budget, self.folder, self.unit = recipe, budget, folder, unit
        described = _description(recipe, budget, unit)
        self.source = open_source(recipe).to(pick_device(recipe.device))
        self._check_settings()
        self._cells = Cells(folder, described, tuple(methods), seeds, resume=resume)
        self.rows: list[Row] = []
        self._inputs: tuple[int, EvaluationInputs] | None = None

    def _check_settings(self) -> None:
        """Refuse a method that has been trained there at other settings found, as those of another table of them.

        Raises:
            ValueError: its seeds would not be alike.
        """
        here = {cell.method: found_in(plan.recipe) for cell, plan in self.plans.items()}
        for content in contents(self.folder):
            name, row = content["method"], next(iter(content["rows"]), {})
            before = row.get("settings", {})
            if name in here and before != here[name]:
                old, new = (in_options(options) or "none" for options in (before, here[name]))
                raise ValueError(
                    f"{self.folder} has {name} with the settings found {old}, got {new}: choose another --out, or "
                    f"give the settings as options."
                )

    def train(
        self, watch: Watch = quiet, say: Callable[[str], None] = print
    ) -> Iterator[tuple[Cell, dict[str, Samples]]]:
        """Train and measure one cell after the other, each with its rows in compare.json before it is yielded.

        Args:
            watch: progress callback.
            say: prints a line.

        Yields:
            The cell, and the samples of its map by their titles: none where it diverged.

        Raises:
            ValueError: every method diverged.
        """
        for cell in self._cells.take(say):
            found, curves, samples = self._train_and_measure(cell, watch, say)
            self._cells.write(cell, found, curves.thinned())
            with self.joined():
                pass
            yield cell, samples
        with self.joined() as rows:
            measured = any(_is_measured(row) for row in rows)
        if rows and not measured:
            raise ValueError("every method diverged: lower --optimiser.learning-rate.")

    @contextmanager
    def joined(self) -> Iterator[list[Row]]:
        """Context in which compare.json has the rows of all that is done, and no other process writes it."""
        with self._cells.joined() as self.rows:
            yield self.rows

    def _train_and_measure(
        self, cell: Cell, watch: Watch, say: Callable[[str], None]
    ) -> tuple[list[Row], Curves, dict[str, Samples]]:
        """The rows of one cell, the curves of its residuals, and the samples of its map."""
        plan, curves = self.plans[cell], Curves()
        options = {"unit": self.unit, "curves": curves, "watch": watch, "say": say}
        flow_map, teacher, head = train_method(plan, self.source, self.budget, self.folder, **options)
        head |= {"settings": found} if (found := found_in(plan.recipe)) else {}
        if head.get("diverged"):
            say(f"{cell.name} diverged: its loss or its weights are not finite.")
            return [{**head, "sampler": "map"}], curves, {}
        try:
            inputs, solvers = self._shared_inputs(cell.seed), ("heun2" if self.source.units.pictures else "dopri5",)
            rows, samples = measure_method(plan, flow_map, teacher, self.source, inputs, solvers=solvers, watch=watch)
        except ValueError as error:
            say(f"{cell.name} cannot be measured: {error}")
            return [{**head, "sampler": "map", "diverged": True}], curves, {}
        return [{**head, **row} for row in rows], curves, samples

    def _shared_inputs(self, seed: int) -> EvaluationInputs | None:
        """What all methods of a seed are measured against; `None` for points, whose flow is each method's own."""
        if not isinstance(self.source, Board) and not self.source.units.pictures:
            return None
        if self._inputs is None or self._inputs[0] != seed:
            device = pick_device(self.recipe.device)
            self._inputs = seed, evaluation_inputs(self.source, None, self.recipe.evaluation, seed, device)
        return self._inputs[1]


def _plan(recipe: Recipe, method: str, given: Collection[str]) -> Plan:
    return resolve(for_method(recipe, method, given))


def check_different(option: str, values: Sequence[object]) -> None:
    """Refuse an option without values, or with one twice.

    Raises:
        ValueError: it is so.
    """
    if not values or len(set(values)) != len(values):
        what = option.removeprefix("--")
        raise ValueError(f"{option} needs different {what}, got {' '.join(map(str, values)) or 'none'}.")


def _is_measured(row: Row) -> bool:
    return row["sampler"] == "map" and any(name in row for name in ("kl", "energy", "fd"))


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
    for stage, share in _shares(plan, budget, unit):
        objective = stage.build(flow_map, teacher and teacher.velocity).to(device)
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


def _shares(plan: Plan, budget: float, unit: Unit) -> Iterator[tuple[Stage, float]]:
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
    tensors, extra = models.load_tensors(weights)
    flow_map.load_state_dict(tensors)
    return extra["training"]


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
    kinds = type(objective.flow_map).__name__, type(objective.interpolant).__name__
    guided = () if objective.guidance is None else (objective.guidance,)
    settings = repr((stage.optimiser, objective.times, type(objective.weight).__name__, *guided))
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
    title = f"{plan.method.name}, {stage.name}"
    say(f"{title}, seed {recipe.seed}: training for {budget:g} {unit} ...")
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
    seconds, finite = take_steps(_seen(run(**limit), stage.name, curves), title, watch)
    state.use_averages()
    say(f"{title}, seed {recipe.seed}: {state.step:,} steps in {time.perf_counter() - begun:.0f} s")
    training = _taken(stage, state, seconds, device, turns)
    if peak is not None:
        training["mb_per_step"] = round(peak / 1e6, 3)
    if not finite or not all(bool(value.isfinite().all()) for value in state.parameters.values()):
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


def take_steps(steps: Iterator[Step], title: str, watch: Watch) -> tuple[list[float], bool]:
    """Take steps while the loss is finite, as far as it is checked now and then: the seconds of each step, and whether
    the loss stayed finite."""
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
            if not bool(step.loss.value.isfinite()):
                return seconds, False
    return seconds, True


def measure_method(
    plan: Plan,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    inputs: EvaluationInputs | None,
    *,
    solvers: Sequence[str],
    watch: Watch = quiet,
) -> tuple[list[Row], dict[str, Samples]]:
    """The rows of one method, and the samples of its map by their titles."""
    flow_map, teacher = plan.as_sampled(flow_map, teacher)
    rows, samples = list[Row](), dict[str, Samples]()
    total = len(plan.evaluation().steps) + len(solvers)

    def watch_method(title: str, share: float) -> None:
        watch(f"{plan.method.name}, {title}", (len(rows) + share) / total)

    options = {"solvers": solvers, "watch": watch_method}
    for title, row, drawn in metrics_rows(plan, flow_map, teacher, source, plan.recipe.seed, inputs, **options):
        rows.append(row)
        if row["sampler"] == "map":
            samples[title] = drawn
    return rows, samples


def _description(recipe: Recipe, budget: float, unit: Unit) -> Row:
    """What compare.json says of a comparison beside its methods, seeds and rows."""
    fields = dataclasses.asdict(recipe).items()
    options = {name: value for name, value in fields if name not in (*UNUSED_FIELDS, "seed")}
    clock = "CPU time of the training process" if pick_device(recipe.device).type == "cpu" else "wall clock"
    counted = f"seconds of {clock}, without compilation" if unit == "seconds" else "optimiser steps"
    description = {"recipe": recipe.name, "budget_in": counted, "budget": budget, "options": options}
    return json.loads(json.dumps(description | {"data_sha256": fingerprint(recipe.data)}))
