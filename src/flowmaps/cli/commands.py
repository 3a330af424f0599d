"""The commands `train`, `train --check` and `evaluate`, with progress on the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shlex
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from ..data import Source, Units
from ..data.about import compared_with
from ..evaluation.measure import Row
from ..evaluation.rows import metrics_rows
from ..evaluation.sampling import OF_MAP, Samples
from ..maps import FlowMap
from ..methods import Jumps
from ..reports import pictures, report, tables
from ..runs import changes as recipe_changes
from ..runs import run as runs
from ..runs.folder import RunFolder
from ..runs.plan import Plan
from ..runs.preflight import check_packages, preflight
from ..runs.prepare import in_bytes
from ..runs.recipes import ImageRecipe, Recipe, validate
from ..runs.stages import Stage
from ..system.devices import can_compile
from ..system.files import write_atomically
from ..system.memory import high_water
from ..system.processes import leave, ranks
from ..system.progress import in_words
from ..training.guards import signals
from ..training.loop import Step
from ..training.settings import values
from .terminal import FIRST, bar, console, watching

IMAGES_KEPT = 10_000
"""Images of each row that are kept for the pictures: ten of each of a thousand classes."""


def check(recipe: Recipe, folder: Path | None) -> None:
    """Dry run of `train`: check the recipe, and print what its training will take; nothing is written."""
    with watching("check") as watch:
        lines = preflight(recipe, folder, watch)
    leave()
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    resume_from: str | None = None,
    minutes: float | None = None,
    resume_command: str = "",
) -> None:
    """Train a recipe into a folder, then evaluate it.

    Args:
        recipe: what to run.
        folder: where to.
        resume: go on with the run in the folder.
        resume_from: name of the checkpoint to go on from.
        minutes: stop after so many minutes of training; the run can be resumed.
        resume_command: the command that resumes the run, printed where it is stopped.
    """
    if minutes is not None and not minutes > 0:
        raise ValueError(f"--minutes must be positive, got {minutes:g}.")
    check_packages(recipe)
    with signals(lambda line: console.print(line, soft_wrap=True)) as asked:
        with watching("data") as watch:
            options = {"resume": resume, "resume_from": resume_from}
            run = runs.Run.open(recipe, folder, **options, say=console.print, watch=watch)
        for note in run.source.notes:
            console.print(f"{recipe.data}: {note}.", soft_wrap=True, markup=False)
        if run.checkpoint:
            console.print(f"going on from {run.checkpoint} of {folder}", soft_wrap=True)
        spread = f", {'sharded over' if run.placement.shard else 'on'} {ranks()} processes" if ranks() > 1 else ""
        about = f"training {recipe.name} with {recipe.method} into {folder}: {run.plan.summary()}{spread}"
        console.print(about, soft_wrap=True)
        end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        follow(run, lambda: bool(asked()) or time.monotonic() > end)
        if run.trainer is not None and run.trainer.stopped:
            limit = "a signal to another process" if minutes is None else f"{minutes:g} minute{'s' * (minutes != 1)}"
            stage, step = run.at
            launcher = ", under the same launcher" if ranks() > 1 else ""
            stopped = f"stopped after {asked() or limit}, at step {step:,} of {stage}; go on with{launcher}:"
            console.print(f"{stopped}\n  {resume_command}", soft_wrap=True)
            return
    console.print(_cost(run), soft_wrap=True)
    leave()
    if FIRST:  # the evaluation takes one process
        try:
            evaluate(run.folder, {}, None, run.source)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted while measuring; the map is trained and saved: flowmaps evaluate {folder} measures it."
            ) from None


def _cost(run: runs.Run) -> str:
    """What a training has taken, in words: steps, seconds, and the most memory of this process."""
    assert run.trainer is not None
    steps = sum(stage.steps for stage in run.plan.stages)
    used = high_water(run.placement.device)
    memory = "" if used is None else f", at most {in_bytes(used)} of memory on {run.placement.device}"
    return f"trained: {steps:,} steps in {run.trainer.seconds:,.1f} s{memory}"


def follow(run: runs.Run, stop: Callable[[], bool] = lambda: False) -> None:
    """Train a run under a progress bar, or with a line now and then where there is no terminal; draw previews.

    Args:
        run: opened.
        stop: asked after each step: whether to save and stop.

    Raises:
        ValueError: a tracker cannot begin; or as in `Run.train`.
    """
    current, begun, first, printed = None, 0.0, 0, 0.0
    recipe, say_once = run.plan.recipe, _once(run.say)
    with bar() as progress, contextlib.closing(run.train(stop)) as steps:
        shown = _StageBars(run, progress)
        for stage, step in steps:
            assert run.trainer is not None
            seconds = run.trainer.seconds
            if stage is not current:
                current, begun, first = stage, seconds, step.number
            if recipe.show_every and step.number % recipe.show_every == 0:
                shown.update(stage.name, step.number, "drawing")
                _show(run, stage.name, step.number, say_once)
            last = step.number == stage.steps
            if not last and step.number % recipe.log_every:
                continue
            pace = (step.number - first) / max(seconds - begun, 1e-9)
            begun, first = seconds, step.number  # the pace since the last line: compiling is long over
            loss, residuals = _losses(run.trainer.logged, step)
            shown.update(stage.name, step.number, f"{loss}, {pace:.3g} steps/s")
            if not console.is_terminal and (last or seconds - printed > PRINT_EVERY):
                printed = seconds
                left = "" if last or not pace else f", {in_words((stage.steps - step.number) / pace)} to go"
                left += _what_follows(run, stage) if left else ""
                done = f"{stage.name}, step {step.number:,} of {stage.steps:,}"
                words = f"{done}: {loss} ({residuals}); {pace:.3g} steps/s, {seconds:.0f} s so far{left}"
                console.print(words, soft_wrap=True)


def _what_follows(run: runs.Run, stage: Stage) -> str:
    """The stages that come after one, in words; nothing after the last."""
    names = [other.name for other in run.plan.stages]
    return "".join(f", then the {name}" for name in names[names.index(stage.name) + 1 :])


PRINT_EVERY = 10.0
"""Seconds between lines of progress where there is no terminal."""


class _StageBars:
    """Progress bars, one for each stage of a run; the first one is shown before the first step, which may be slow."""

    def __init__(self, run: runs.Run, progress: Progress) -> None:
        self._progress, self._tasks = progress, dict[str, TaskID]()
        self._steps = {stage.name: stage.steps for stage in run.plan.stages}
        self._first = "compiling" if run.plan.compiles(run.placement.device) and can_compile() else "starting"
        stage, step = run.at
        self._add(stage, step, "reading checkpoint" if run.checkpoint else self._first)
        if not console.is_terminal:
            console.print(f"{self._first} ...")

    def _add(self, stage: str, step: int, note: str) -> None:
        self._tasks[stage] = self._progress.add_task(stage, total=self._steps[stage], completed=step, note=note)

    def update(self, stage: str, step: int, note: str) -> None:
        """Move a stage's bar to a step, with a note beside it; after the last step add the bar of the next stage."""
        if stage not in self._tasks:  # the run was resumed at the end of the stage before
            self._add(stage, step, note)
        self._progress.update(self._tasks[stage], completed=step, note=note)
        names = list(self._steps)
        following = names[names.index(stage) + 1 :][:1] if step == self._steps[stage] else []
        for name in following:
            if name not in self._tasks:
                self._add(name, 0, self._first)


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """A callback that passes on its first message alone."""
    left = [say]
    return lambda text: left.pop()(text) if left else None


def _show(run: runs.Run, stage: str, step: int, say_once: Callable[[str], None]) -> None:
    """Draw a preview and give it to the trackers; after the first one, print where previews are."""
    path = pictures.preview(run, stage, step, say_once)
    if path is None or run.trainer is None:
        return
    run.trainer.trackers.show(f"{stage}/samples", path, run.trainer.steps_before + step)
    if len(list(path.parent.glob("*.png"))) == 1:
        every = run.plan.recipe.show_every
        console.print(f"samples so far: {path}, and more every {every:,} steps", soft_wrap=True)


def _losses(logged: Mapping[str, Any], step: Step) -> tuple[str, str]:
    """The logged loss, with the number of skipped steps if there are any; and its unweighted residuals, in words."""

    def number(name: str) -> str:
        return "-" if logged[name] is None else f"{logged[name]:.3g}"

    residuals = ", ".join(f"{name} {number(name)}" for name in step.loss.parts)
    skipped = f", {logged['skipped']} steps skipped" if "skipped" in logged else ""
    return f"loss {number('loss')}{skipped}", f"unweighted: {residuals}"


def evaluate(folder: RunFolder, changes: Mapping[str, Any], seed: int | None, source: Source | None = None) -> None:
    """Measure a run; print the table; write metrics.json, pictures and the report.

    Args:
        folder: of the run.
        changes: settings of the evaluation that differ from those of its recipe.
        seed: of noise and data; that of the recipe unless given.
        source: the data, read again unless given.
    """
    recipe, path = folder.recipe, folder.path
    if "features" in changes and not isinstance(recipe, ImageRecipe):
        raise ValueError(f"--features is for images, {recipe.name} is a recipe of points: leave it out.")
    seed = recipe.seed if seed is None else seed
    validate(dataclasses.replace(recipe, seed=seed))
    plan = folder.plan.with_evaluation(changes)
    flow_map, teacher = folder.load_map(), folder.load_teacher()
    with watching("data") as watch:
        source = folder.open_source(watch) if source is None else source
    device = folder.device
    flow_map, teacher = plan.as_sampled(flow_map.to(device), teacher and teacher.to(device))
    rows, samples = _measured(plan, flow_map, teacher, source, seed)
    metrics: dict[str, Any] = {"recipe": recipe.name, "method": recipe.method, "seed": seed, "rows": rows}
    write_atomically(path / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    with watching("draw") as watch:
        shown = pictures.draw(path, plan, flow_map, teacher, source, rows, samples, watch=watch)
    if shown.numbers:
        write_atomically(path / "metrics.json", json.dumps(metrics | shown.numbers, indent=2) + "\n")
    config = values(dataclasses.replace(plan.recipe, evaluation=plan.evaluation()))
    compared = compared_with(source, getattr(plan.evaluation(), "reference_images", 0))
    found = [] if (line := tables.conclusion(rows)) is None else [line]
    said = {
        "notes": [*notes(folder), *found, *compared],
        "changes": recipe_changes.rows(plan, source.classes, source.units.condition_dim),
    }
    written = report.write(path, f"{recipe.name}: {recipe.method}", config, rows, shown.files, **said)
    console.print(tables.run_table(rows, f"{recipe.name}, {recipe.method}"))
    for line in found:
        console.print(f"\n{line}", soft_wrap=True, markup=False)
    drawn = ", ".join(file.name for file in shown.files.values())
    console.print(f"\npictures: {drawn} in {path}\nreport:   {written}", soft_wrap=True, markup=False)
    sampled = shlex.join(["flowmaps", "sample", str(path), "--steps", str(pictures.steps_nearest_four(plan))])
    kind = "png" if source.units.pictures else "npz" if source.units.table is None else "csv"
    console.print(f"more:     {sampled} --out samples.{kind}", soft_wrap=True, markup=False)


def _measured(
    plan: Plan, flow_map: FlowMap, teacher: FlowMap | None, source: Source, seed: int
) -> tuple[list[Row], dict[str, Samples]]:
    """The rows of metrics.json, and by their titles samples for the pictures."""
    settings, rows, samples = plan.evaluation(), [], {}
    console.print(f"measuring with {settings.samples:,} samples a row")
    if warning := _few_samples(plan.recipe, source.units):
        console.print(warning, soft_wrap=True)
    with bar() as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the covariance", UserWarning)  # it has been said
        task = progress.add_task("measure", total=len(settings.steps) + 2, note="reference")

        said = list[str]()

        def watch(title: str, share: float) -> None:
            part = any(f"{title}, ".startswith(f"{one}, ") for one in said)  # of what was announced
            if not console.is_terminal and not part:
                said.append(title)
                console.print(f"{title} ...", soft_wrap=True, markup=False)
            progress.update(task, completed=len(rows) + share, note=f"{title}, {share:.0%}")

        for title, row, drawn in metrics_rows(plan, flow_map, teacher, source, seed, watch=watch):
            rows.append(row)
            progress.update(task, completed=len(rows), note=f"{title}, 100%")
            samples[title] = drawn.first(IMAGES_KEPT) if source.units.pictures else drawn
            console.print(tables.row_in_words(title, row), soft_wrap=True, markup=False)
    return rows, samples


def _few_samples(recipe: Recipe, units: Units) -> str | None:
    """A warning that there are too few samples for values that can be reported; `None` where there are enough."""
    number = recipe.evaluation.samples
    if recipe.data == "checkerboard" and number < 100_000:
        return (
            "KL is too large by about its floor with so few samples: read it above floor, and report values from "
            "flowmaps evaluate --samples 1000000."
        )
    if not units.pictures or number >= 10_000:
        return None
    singular = ", and below some 1,300 means nothing" if number < 1_300 else ""
    return (
        f"The Fréchet distance of {number:,} samples is too large by an amount that depends on their number{singular}: "
        "compare rows with one another, and report values from flowmaps evaluate --samples 50000."
    )


def notes(folder: RunFolder) -> list[str]:
    """The paragraphs above the table of a report: how the map was learned, and from what."""
    plan, seconds, kept = folder.plan, folder.card.get("seconds", 0.0), folder.card.get("average")
    name, method = plan.method.name, plan.method
    words = [f"A flow map learned by {name}: {plan.summary()}; {seconds / 60:.1f} minutes of training."]
    if not folder.finished:
        words.append(f"It is being made longer: its map is that of {folder.trained_steps:,} steps of its last stage.")
    if isinstance(kept, dict):
        kind = f"the relative width {kept['width']}" if "width" in kept else f"the decay {kept.get('decay')}"
        words.append(f"The weights of its {kept.get('stage')} are the average of {kind} of the run {kept.get('of')}.")
    if plan.recipe.teacher:
        kind = "model" if plan.of_other_model else "run in"
        words.append(f"Its teacher is the velocity of the {kind} {plan.recipe.teacher}, of which teacher/ is a copy.")
    if plan.recipe.lora:
        words.append(f"Adapters of rank {plan.recipe.lora} and the second time are trained: adapter.safetensors.")
    if plan.recipe.from_run:
        words.append(f"Its training started from the weights of the run in {plan.recipe.from_run}.")
    if method.jumps is Jumps.TO_DATA:
        words.append(f"{name} learns jumps to t = 1 alone: several steps go there, add fresh noise, and jump again.")
    elif not method.distils:
        words.append(
            f"{name} has no teacher of its own: the rows called {OF_MAP} solve the flow of the velocity that the map "
            "has learned on its diagonal, u at s = t."
        )
    if limits := plan.limits():
        words.append(f"{limits}.")
    units = folder.units if "units" in folder.card else None
    if units is not None and units.conditions:
        names = ", ".join(own.name for own in units.conditions)
        words.append(
            f"It is conditioned on {names}: samples have the values of held-out rows, or of rows that are trained on "
            "where none are held out, and distances are between rows together with these values."
        )
    if units is not None and units.table is not None:
        words.append("Distances are between standardised columns.")
    return words
