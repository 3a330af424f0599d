"""Several methods side by side: the same data, network, optimiser and wall-clock budget; one table and one figure.

A method's budget covers all its stages, a teacher included, in proportion to their steps. The teacher is trained once
and shared by the methods that distil it. The folder:

compare.json  compare.md  compare.png  samples-METHOD.png  teacher-*.safetensors
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
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console

from ..data import Board, Source, open_data
from ..evaluation import rows as measuring
from ..evaluation.measure import Reference, Sampled, reference
from ..maps import FlowMap, Target
from ..objectives import Objective
from ..reports import figures, tables
from ..runs import initial
from ..runs import plan as plans
from ..runs.folder import describe
from ..runs.preflight import check_folder
from ..runs.recipes import Recipe
from ..storage import models as checkpoint
from ..system import memory
from ..system.devices import can_compile, compiled, pick_device
from ..system.files import write_atomically
from ..training.loop import Step, generator, train
from ..training.state import begin
from .terminal import bar, console

Row = dict[str, Any]
RESULT = "compare.json"
WARM = 3  # steps before the clock starts: compilation is not training
ENDLESS = 10**9  # steps: the budget ends training
LOOK = 0.5  # seconds between looks at the loss, which wait for the device
UNUSED = ("name", "method", "log_every", "checkpoint_every")  # fields of a recipe that change no figure here
DATA = 3  # the stream of the seed for the data that set a picture's scale


def compare(recipe: Recipe, methods: tuple[str, ...], budget: float, folder: Path, *, resume: bool = False) -> None:
    """Train each method for `budget` seconds and measure it; writes the folder, its table after each method.

    Args:
        recipe: data, network, optimiser and evaluation; its method is not used.
        methods: what to compare, in the order of the table.
        budget: seconds of training for each, its teacher included.
        folder: where to.
        resume: go on in a folder that is there, with the methods that it has not.

    Raises:
        ValueError: the folder exists or, to resume, was begun otherwise; the budget is not positive; a method is named
            twice; the recipe cannot run; or every method diverged.
    """
    if not 0 < budget < math.inf:
        raise ValueError(f"--budget must be positive, got {budget} seconds.")
    if not methods or len(set(methods)) != len(methods):
        raise ValueError(f"--methods needs different methods, got {' '.join(methods) or 'none'}.")
    for method in methods:
        plans.check(dataclasses.replace(recipe, method=method))
    about = _about(recipe, budget)
    table: list[Row] = reopen(folder, about) if resume else []
    if not resume:
        check_folder(folder)
    source = open_data(recipe.data, recipe.optimiser.batch).to(pick_device(recipe.device))
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, about, table)
    shared = None
    for method in methods:
        if any(row["method"] == method for row in table):
            console.print(f"{method} is there already.")
            continue
        if shared is None and isinstance(source, Board):  # elsewhere the true flow is the method's own teacher's
            shared = reference(source, None, recipe.evaluation, recipe.seed)
        table += one(dataclasses.replace(recipe, method=method), source, budget, folder, shared, known=table)
        table.sort(key=lambda row: (*methods, row["method"]).index(row["method"]))
        _write(folder, about, table)
    if not any("kl" in row or "energy" in row for row in table if row["sampler"] == "map"):
        raise ValueError("every method diverged: lower --optimiser.rate.")
    picture = figures.save(figures.compare(tables.shown(table)), folder / "compare.png")
    wide = console if console.is_terminal else Console(highlight=False, width=100)
    wide.print(tables.terminal(table, f"{recipe.name}, {budget:g} s of training for each method"))
    console.print(f"picture: {picture}", soft_wrap=True)


def one(
    recipe: Recipe,
    source: Source,
    budget: float,
    folder: Path,
    shared: Reference | None,
    *,
    known: list[Row],
) -> list[Row]:
    """Train and measure one method: its rows. Its samples become a picture.

    A teacher that `known` has rows of is not measured again.
    """
    flow_map, teacher, spent = fit(recipe, source, budget, folder)
    head = {"method": recipe.method, **spent}
    if spent.get("diverged"):
        console.print(f"{recipe.method} diverged: its loss or its weights are not finite.", soft_wrap=True)
        return [{**head, "sampler": "map"}]
    of_teacher = [row for row in known if row["sampler"] == "teacher" and "teacher" in row]
    same = [row for row in of_teacher if row["teacher"] == spent.get("teacher")]
    try:
        found, drawn = measure(recipe, flow_map, teacher, source, shared, solvers=() if same else ("dopri5",))
    except ValueError as error:
        console.print(f"{recipe.method} cannot be measured: {error}", soft_wrap=True)
        return [{**head, "sampler": "map", "diverged": True}]
    if picture := draw(recipe, source, drawn):
        figures.save(picture, folder / f"samples-{recipe.method}.png", dpi=90)
    return [{**row, **head} for row in same[:1]] + [{**head, **row} for row in found]


def fit(recipe: Recipe, source: Source, budget: float, folder: Path) -> tuple[FlowMap, FlowMap | None, Row]:
    """Train one method: the map, its teacher, and what training took. Teachers are kept in the folder."""
    device = pick_device(recipe.device)
    flow_map = initial.new_map(recipe, source.shape, source.classes).to(device)
    teacher: FlowMap | None = None
    stages = plans.stages(recipe)
    total = sum(stage.steps for stage in stages)
    spent: Row = {"budget": budget, "distilled": recipe.method in plans.DISTILLED}
    for number, stage in enumerate(stages):
        share = budget * stage.steps / total
        objective = stage.build(flow_map, teacher and teacher.velocity).to(device)
        kept = folder / teacher_file(objective, share)
        if stage.name == "teacher" and kept.exists():
            flow_map.load_state_dict(checkpoint.load_tensors(kept)[0])
        else:
            spent |= run_stage(recipe, stage.name, number, source, objective, share)
            if spent.get("diverged"):
                break
            if stage.name == "teacher":
                checkpoint.save_tensors(kept, flow_map.state_dict(), {"budget": share})
        if stage.name == "teacher":
            teacher, spent["teacher"] = Target(flow_map), kept.name
    return flow_map, teacher, spent


def teacher_file(objective: Objective, share: float) -> str:
    """The name of a teacher's file: of one share, map and path there is one teacher."""
    kinds = type(objective.flow_map).__name__, type(objective.interpolant).__name__
    return f"teacher-{'-'.join(kinds)}-{share:g}s.safetensors"


def run_stage(
    recipe: Recipe, stage: str, number: int, source: Source, objective: Objective, budget: float
) -> dict[str, Any]:
    """Train one stage for `budget` seconds, less if it diverges: what a step took, and whether it did.

    The time of a step is the median on the CPU, elsewhere the mean: there the host runs ahead of the device.
    """
    device = pick_device(recipe.device)
    torch.compiler.reset()  # a function is compiled for a few objectives only, for others it would run as it is
    evaluate = compiled(objective.evaluate, console.print) if recipe.compile else None
    state = begin(objective, plans.optimiser(recipe, stage), evaluate=evaluate)
    seed = generator(recipe.seed, number).initial_seed()
    run = partial(train, state, source, plans.optimiser(recipe, stage), seed=seed, device=device)
    for _ in islice(run(steps=ENDLESS), WARM):
        pass
    state.zero_grad()  # gradients count
    step = run(steps=ENDLESS)
    peak = memory.peak(lambda: next(step), device)
    with bar() as progress:
        task = progress.add_task(recipe.method, total=100, note=stage)
        times, finite = follow(run(steps=ENDLESS, budget=budget), stage, partial(progress.update, task))
    state.use_averages()
    console.print(f"{recipe.method}, {stage}: {state.step:,} steps in {sum(times):.0f} s", soft_wrap=True)
    typical = statistics.median if device.type == "cpu" else statistics.mean
    spent: Row = {"ms_per_step": round(1e3 * typical(times or [budget]), 3)}
    if peak is not None:
        spent["mb_per_step"] = round(peak / 1e6, 3)
    if not finite or not all(bool(value.isfinite().all()) for value in state.parameters.values()):
        spent["diverged"] = True
    return spent


def follow(steps: Iterator[Step], stage: str, show: Callable[..., None]) -> tuple[list[float], bool]:
    """Take steps as long as the loss is finite, looking now and then: the seconds of each, and whether it still is."""
    times: list[float] = []
    looked = before = time.perf_counter()
    for step in steps:
        now = time.perf_counter()
        times.append(now - before)
        before = now
        if now - looked > LOOK:
            looked = now
            residuals = ", ".join(f"{name} {part.mean():.3g}" for name, part in step.loss.parts.items())
            show(completed=int(100 * step.progress), note=f"{stage} | {residuals}")
            if not bool(step.loss.value.isfinite()):
                return times, False
    return times, True


def measure(
    recipe: Recipe,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    shared: Reference | None,
    *,
    solvers: Sequence[str],
) -> tuple[list[Row], dict[str, Sampled]]:
    """The rows of one method, and by title the samples of its map."""
    flow_map, teacher, recipe = plans.measured(recipe, flow_map, teacher)
    settings, restart = recipe.evaluation, measuring.restarts(recipe)
    fast = recipe.compile and settings.samples >= 100_000 and can_compile()
    found, drawn = [], {}
    with bar() as progress:
        task = progress.add_task(recipe.method, total=len(settings.steps) + len(solvers), note="measuring")

        def watch(title: str, share: float) -> None:
            progress.update(task, completed=len(found) + share, note=f"{title}, {share:.0%}")

        options = {"restart": restart, "solvers": solvers, "compiled": fast, "watch": watch}
        for title, row, sampled in measuring.rows(flow_map, teacher, source, settings, recipe.seed, shared, **options):
            found.append(row)
            if row["sampler"] == "map":
                drawn[title] = sampled
    return found, drawn


def draw(recipe: Recipe, source: Source, drawn: dict[str, Sampled]) -> Figure | None:
    """The samples of one map: in the plane beside each other on the data's scale, digits a row a number of steps."""
    if recipe.data == "digits":
        labels = next(iter(drawn.values())).cond
        assert labels is not None
        rows = torch.cat([(labels == k).nonzero()[:1, 0] for k in range(10)])
        images = torch.cat([sampled.x[rows].reshape(-1, 8, 8) for sampled in drawn.values()])
        return figures.image_grid(images.nan_to_num(1.0).clamp(-1, 1), len(drawn), list(drawn))
    if source.dim != 2:
        return None
    number = 200_000 if recipe.evaluation.samples >= figures.SCATTER_BELOW else 4_000
    data, _ = source.to("cpu").sample(number, generator(recipe.seed, DATA))
    panels = {title: source.to_data(sampled.x[:number]) for title, sampled in drawn.items()}
    return figures.samples(panels, reference=source.to_data(data))


def reopen(folder: Path, about: Row) -> list[Row]:
    """The rows of a comparison to go on with.

    Raises:
        ValueError: there is none, it is damaged, or it was begun with other options.
    """
    path = folder / RESULT
    if not path.exists():
        raise ValueError(f"{folder} has no {RESULT}: there is nothing to resume; leave out --resume.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows, old = found["rows"], {name: found.get(name) for name in about}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): choose another --out.") from None
    for option, was, now in _differences(old, about):
        raise ValueError(
            f"{folder} was begun with {option} {was}, got {now}: resume with what it began with, or choose "
            f"another --out."
        )
    return rows


def _about(recipe: Recipe, budget: float) -> Row:
    """What a comparison is, as it reads in its file."""
    described = describe(recipe)
    options = {name: value for name, value in described["recipe"].items() if name not in UNUSED}
    about = {"recipe": recipe.name, "seed": recipe.seed, "budget": budget, "options": options}
    return json.loads(json.dumps(about | {"data_sha256": described["data_sha256"]}))


def _differences(old: Any, new: Row, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two descriptions differ: the option, what it was and what it is."""
    for name, value in new.items():
        was = old.get(name) if isinstance(old, dict) else None
        if isinstance(value, dict):
            yield from _differences(was, value, "--" if name == "options" else f"{prefix}{name}.")
        elif was != value:
            words = {"recipe": "the recipe", "data_sha256": "a data file of checksum"}
            yield words.get(name, f"--{prefix.removeprefix('--')}{name}".replace("_", "-")), was, value


def _write(folder: Path, about: Row, table: list[Row]) -> None:
    write_atomically(folder / RESULT, json.dumps({**about, "rows": table}, indent=2) + "\n")
    if table:
        write_atomically(folder / "compare.md", tables.markdown(table))
