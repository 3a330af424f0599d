"""Several methods side by side: the same data, network, optimiser and wall-clock budget.

A method's budget covers all its stages, a teacher included, in proportion to their steps. The teacher is trained once
and shared by the methods that distil it. The folder gets compare.json and the weights of the teacher.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from ..data import Board, Source, fingerprint
from ..maps import FlowMap, Target
from ..objectives import Objective
from ..runs import initial
from ..runs.folder import check_new, open_source
from ..runs.plan import Plan, Stage, resolve
from ..runs.recipes import Recipe
from ..storage import models
from ..system import memory
from ..system.devices import compiled, pick_device
from ..system.files import write_atomically
from ..system.progress import Watch, quiet
from ..system.seeds import generator
from ..training.loop import Step, train
from ..training.state import begin
from .measure import EvaluationInputs, Row, evaluation_inputs
from .rows import metrics_rows
from .sampling import Samples

RESULT_FILE = "compare.json"
WARM_UP_STEPS = 3  # before the clock starts: compilation is not training
UNLIMITED_STEPS = 10**9  # the budget ends training
SECONDS_BETWEEN_CHECKS = 0.5  # of the loss, for which the host waits for the device
IRRELEVANT_FIELDS = ("name", "method", "log_every", "checkpoint_every")  # fields of a recipe that change no metric here


class Comparison:
    """A comparison of methods in a folder; iterate over `train` to carry it out.

    Args:
        recipe: data, network, optimiser and evaluation; its method is not used.
        methods: what to compare, in the order of the table.
        budget: seconds of training for each method, its teacher included.
        folder: where to; it must be empty or missing.
        resume: go on in a folder that is there, with the methods that it has not.

    Attributes:
        rows: of compare.json, of the methods that are done.
        source: the data, on the device of the recipe.

    Raises:
        ValueError: the folder exists or, to resume, was begun otherwise; the budget is not positive; a method is named
            twice; or the recipe cannot run.
    """

    def __init__(
        self, recipe: Recipe, methods: tuple[str, ...], budget: float, folder: Path, *, resume: bool = False
    ) -> None:
        if not 0 < budget < math.inf:
            raise ValueError(f"--budget must be positive, got {budget} seconds.")
        if recipe.precision == "auto":
            raise ValueError("a comparison needs one --precision for all methods, got auto: take float32 or bfloat16.")
        if not methods or len(set(methods)) != len(methods):
            raise ValueError(f"--methods needs different methods, got {' '.join(methods) or 'none'}.")
        self.plans = [resolve(dataclasses.replace(recipe, method=method)) for method in methods]
        self.recipe, self.methods, self.budget, self.folder = recipe, methods, budget, folder
        self.rows: list[Row] = read_rows(folder, _description(recipe, budget)) if resume else []
        if not resume:
            check_new(folder)
        self.source = open_source(recipe).to(pick_device(recipe.device))
        folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def train(
        self, watch: Watch = quiet, say: Callable[[str], None] = print
    ) -> Iterator[tuple[str, dict[str, Samples]]]:
        """Train and measure the methods one by one, each with its rows in compare.json before it is yielded.

        Args:
            watch: progress callback.
            say: prints a line.

        Yields:
            The method, and the samples of its map by their titles: none where it diverged.

        Raises:
            ValueError: every method diverged.
        """
        inputs = None
        for plan in self.plans:
            method = plan.method.name
            if any(row["method"] == method for row in self.rows):
                say(f"{method} has its rows in {RESULT_FILE} already.")
                continue
            if inputs is None and isinstance(self.source, Board):  # other data: the flow is of the method's own teacher
                inputs = evaluation_inputs(self.source, None, self.recipe.evaluation, self.recipe.seed)
            rows, samples = self._train_and_measure(plan, inputs, watch, say)
            self.rows += rows
            self.rows.sort(key=lambda row: (*self.methods, row["method"]).index(row["method"]))
            self._write()
            yield method, samples
        if not any("kl" in row or "energy" in row for row in self.rows if row["sampler"] == "map"):
            raise ValueError("every method diverged: lower --optimiser.learning-rate.")

    def _train_and_measure(
        self, plan: Plan, inputs: EvaluationInputs | None, watch: Watch, say: Callable[[str], None]
    ) -> tuple[list[Row], dict[str, Samples]]:
        """The rows of one method, and the samples of its map. A teacher that has a row is not measured again."""
        options = {"watch": watch, "say": say}
        flow_map, teacher, training = train_method(plan, self.source, self.budget, self.folder, **options)
        method = plan.method.name
        head = {"method": method, **training}
        if training.get("diverged"):
            say(f"{method} diverged: its loss or its weights are not finite.")
            return [{**head, "sampler": "map"}], {}
        of_teachers = [row for row in self.rows if row["sampler"] == "teacher" and "teacher" in row]
        known = [row for row in of_teachers if row["teacher"] == training.get("teacher")][:1]
        solvers = () if known else ("dopri5",)
        try:
            rows, samples = measure_method(plan, flow_map, teacher, self.source, inputs, solvers=solvers, watch=watch)
        except ValueError as error:
            say(f"{method} cannot be measured: {error}")
            return [{**head, "sampler": "map", "diverged": True}], {}
        return [{**row, **head} for row in known] + [{**head, **row} for row in rows], samples

    def _write(self) -> None:
        content = {**_description(self.recipe, self.budget), "rows": self.rows}
        write_atomically(self.folder / RESULT_FILE, json.dumps(content, indent=2) + "\n")


def train_method(
    plan: Plan, source: Source, budget: float, folder: Path, *, watch: Watch = quiet, say: Callable[[str], None] = print
) -> tuple[FlowMap, FlowMap | None, Row]:
    """Train one method: its map, its teacher, and what training took. Teachers are kept in the folder."""
    device = pick_device(plan.recipe.device)
    flow_map = initial.new_map(plan.recipe, source.shape, source.classes, source.units.condition_dim).to(device)
    teacher: FlowMap | None = None
    total = sum(stage.steps for stage in plan.stages)
    training: Row = {"budget": budget, "distilled": plan.method.distils}
    for stage in plan.stages:
        seconds = budget * stage.steps / total
        objective = stage.build(flow_map, teacher and teacher.velocity).to(device)
        weights = folder / teacher_file(objective, seconds)
        if stage.name == "teacher" and weights.exists():
            flow_map.load_state_dict(models.load_tensors(weights)[0])
        else:
            training |= train_stage(plan, stage, source, objective, seconds, watch=watch, say=say)
            if training.get("diverged"):
                break
            if stage.name == "teacher":
                models.save_tensors(weights, flow_map.state_dict(), {"budget": seconds})
        if stage.name == "teacher":
            teacher, training["teacher"] = Target(flow_map), weights.name
    return flow_map, teacher, training


def teacher_file(objective: Objective, seconds: float) -> str:
    """The name of a teacher's file, by which methods of the same map, path and seconds of training share a teacher."""
    kinds = type(objective.flow_map).__name__, type(objective.interpolant).__name__
    return f"teacher-{'-'.join(kinds)}-{seconds:g}s.safetensors"


def train_stage(
    plan: Plan,
    stage: Stage,
    source: Source,
    objective: Objective,
    budget: float,
    *,
    watch: Watch = quiet,
    say: Callable[[str], None] = print,
) -> Row:
    """Train one stage for `budget` seconds, fewer if it diverges: what a step took, and whether the stage diverged.

    The time of a step is the median on the CPU, elsewhere the mean: there the host runs ahead of the device.
    """
    recipe, device = plan.recipe, pick_device(plan.recipe.device)
    torch.compiler.reset()  # torch.compile's recompile limit would make later objectives run eagerly
    evaluate = compiled(objective.evaluate, say) if recipe.compile else None
    state = begin(objective, stage.optimiser, evaluate=evaluate, precision=getattr(torch, recipe.precision))
    seed = generator(recipe.seed, plan.stages.index(stage)).initial_seed()
    run = partial(train, state, source, stage.optimiser, seed=seed, device=device)
    for _ in islice(run(steps=UNLIMITED_STEPS), WARM_UP_STEPS):
        pass
    state.zero_grad()  # so the gradients are included in the measured peak
    step = run(steps=UNLIMITED_STEPS)
    peak = memory.peak(lambda: next(step), device)
    title = f"{plan.method.name}, {stage.name}"
    seconds, finite = take_steps(run(steps=UNLIMITED_STEPS, budget=budget), title, watch)
    state.use_averages()
    say(f"{title}: {state.step:,} steps in {sum(seconds):.0f} s")
    typical = statistics.median if device.type == "cpu" else statistics.mean
    training: Row = {"ms_per_step": round(1e3 * typical(seconds or [budget]), 3)}
    if peak is not None:
        training["mb_per_step"] = round(peak / 1e6, 3)
    if not finite or not all(bool(value.isfinite().all()) for value in state.parameters.values()):
        training["diverged"] = True
    return training


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


def read_rows(folder: Path, description: Row) -> list[Row]:
    """The rows of a comparison to go on with.

    Raises:
        ValueError: there is no comparison, it is damaged, or it was begun with other options.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        raise ValueError(f"{folder} has no {RESULT_FILE}: there is nothing to resume; leave out --resume.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows, old = content["rows"], {name: content.get(name) for name in description}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): choose another --out.") from None
    words, before = {"recipe": "the recipe", "data_sha256": "a data file of checksum"}, _flat(old)
    for name, value in _flat(description).items():
        if before.get(name) != value:
            option = words.get(name) or f"--{name.removeprefix('options.').replace('_', '-')}"
            raise ValueError(
                f"{folder} was begun with {option} {before.get(name)}, got {value}: resume with what it began with, "
                "or choose another --out."
            )
    return rows


def _description(recipe: Recipe, budget: float) -> Row:
    """What compare.json says of a comparison beside its rows."""
    fields = dataclasses.asdict(recipe).items()
    options = {name: value for name, value in fields if name not in IRRELEVANT_FIELDS}
    description = {"recipe": recipe.name, "seed": recipe.seed, "budget": budget, "options": options}
    return json.loads(json.dumps(description | {"data_sha256": fingerprint(recipe.data)}))


def _flat(values: Row, prefix: str = "") -> Row:
    """Nested objects of a JSON text as one, with names such as `options.optimiser.batch`."""
    flat: Row = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
