"""What the commands do, with progress on the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from ..data import Source, Units
from ..evaluation import rows as measuring
from ..evaluation.measure import Row, Sampled, open_features
from ..maps import FlowMap
from ..reports import pictures, report
from ..runs import plan as plans
from ..runs import run as runs
from ..runs import trackers
from ..runs.folder import load_run
from ..runs.preflight import compiles, preflight
from ..runs.recipes import ImageRecipe, Recipe
from ..storage import checkpoints as snapshots
from ..storage import models as checkpoint
from ..system.devices import can_compile
from ..system.files import write_atomically
from ..system.processes import leave, ranks
from ..training.guards import signals
from ..training.loop import Step
from .terminal import FIRST, bar, console, watching

SHOWN = 10_000  # images of a row that are kept for the pictures: ten of each of a thousand classes


def check(recipe: Recipe, folder: Path | None) -> None:
    """Try all of a recipe but its training, and say what it would take; nothing is written."""
    with watching("check") as watch:
        lines = preflight(recipe, folder, watch)
    leave()
    for line in lines:
        console.print(line, soft_wrap=True)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    resume_from: str | None = None,
    minutes: float | None = None,
    again: str = "",
) -> None:
    """Train a recipe into a folder, then evaluate it.

    Args:
        recipe: what to run.
        folder: where to.
        resume: go on with a run that is there.
        resume_from: go on from this checkpoint of it.
        minutes: stop after so many of training, to be resumed.
        again: the command that goes on with a run that was stopped.
    """
    if minutes is not None and not minutes > 0:
        raise ValueError(f"--minutes must be positive, got {minutes:g}.")
    _check_packages(recipe)
    with signals() as asked:
        with watching("data") as watch:
            options = {"resume": resume, "resume_from": resume_from}
            run = runs.Run.open(recipe, folder, **options, say=console.print, watch=watch)
        if run.resume_from:
            console.print(f"going on from {run.resume_from} of {folder}", soft_wrap=True)
        plan = ", then ".join(f"{stage.steps:,} steps of {stage.name}" for stage in plans.stages(recipe))
        console.print(f"training {recipe.name} with {recipe.method} into {folder}: {plan}{_on(run)}", soft_wrap=True)
        end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        follow(run, lambda: bool(asked()) or time.monotonic() > end)
        if run.stopped:
            own = "a signal to another process" if minutes is None else f"{minutes:g} minute{'s' * (minutes != 1)}"
            why = asked() or own
            stage, step = run.at
            how = "go on with, under the same launcher:" if ranks() > 1 else "go on with:"
            console.print(f"stopped after {why}, at step {step:,} of {stage}; {how}\n  {again}", soft_wrap=True)
            return
    leave()
    if FIRST:  # it measures alone
        evaluate(folder, {}, None, run.source)


def _check_packages(recipe: Recipe) -> None:
    """What is not installed is told of before the training, not after it."""
    trackers.check(recipe.track)
    if isinstance(recipe, ImageRecipe):
        open_features(recipe.evaluation.features)


def _on(run: runs.Run) -> str:
    """What is said of several processes."""
    kind = "sharded over" if run.engine.shard else "on"
    return f", {kind} {ranks()} processes" if ranks() > 1 else ""


def follow(run: runs.Run, stop: Callable[[], bool] = lambda: False) -> None:
    """Train a run under a progress bar, or with a line now and then where there is no terminal; tell the trackers, and
    draw what the map can do by then.

    Args:
        run: opened.
        stop: asked after each step: whether to save and stop.

    Raises:
        ValueError: a tracker cannot begin; or as in `Run.train`.
    """
    current, begun, first = None, 0.0, 0
    every, shows, before, say = run.recipe.log_every, run.recipe.show_every, _before(run.recipe), _once(run.say)
    with bar() as progress:
        shown = _Bars(run, progress)
        with contextlib.closing(_trackers(run)) as told, contextlib.closing(run.train(stop)) as steps:
            for stage, step in steps:
                if stage is not current:
                    current, begun, first = stage, run.seconds, step.number
                last, at = step.number == stage.steps, before[stage.name] + step.number
                logs = last or not step.number % every
                if logs:
                    told.log(trackers.values_of(run.logged), at)
                if shows and step.number % shows == 0:
                    shown.update(stage.name, step.number, "drawing")
                    _show(run, stage.name, step.number, told, at, say)
                if not logs:
                    continue
                pace = (step.number - first) / max(run.seconds - begun, 1e-9)
                begun, first = run.seconds, step.number  # the pace of late: compiling is long over
                note = f"{_losses(run.logged, step)} | {pace:.0f} steps/s"
                shown.update(stage.name, step.number, note)
                if not console.is_terminal and (last or step.number % (20 * every) == 0):
                    words = f"{stage.name} {step.number}/{stage.steps}: {note}, {run.seconds:.0f} s"
                    console.print(words, soft_wrap=True)


class _Bars:
    """A bar for each stage of a run; it is there before the first step is, which may take a minute."""

    def __init__(self, run: runs.Run, progress: Progress) -> None:
        self._progress, self._tasks = progress, dict[str, TaskID]()
        self._steps = {stage.name: stage.steps for stage in plans.stages(run.recipe)}
        self._first = "compiling" if compiles(run.recipe, run.engine.device) else "starting"
        stage, step = _place(run)
        self._add(stage, step, "reading checkpoint" if run.resume_from else self._first)

    def _add(self, stage: str, step: int, note: str) -> None:
        self._tasks[stage] = self._progress.add_task(stage, total=self._steps[stage], completed=step, note=note)

    def update(self, stage: str, step: int, note: str) -> None:
        """A stage's steps by now, and what is said of them; after its last one the next stage has a bar."""
        if stage not in self._tasks:  # that of the checkpoint had ended
            self._add(stage, step, note)
        self._progress.update(self._tasks[stage], completed=step, note=note)
        names = list(self._steps)
        following = names[names.index(stage) + 1 :][:1] if step == self._steps[stage] else []
        for name in following:
            if name not in self._tasks:
                self._add(name, 0, self._first)


def _place(run: runs.Run) -> tuple[str, int]:
    """The stage of a run and the steps taken of it, from which it goes on."""
    stages = [stage.name for stage in plans.stages(run.recipe)]
    stage, _, step = (run.resume_from or "").removesuffix(snapshots.BEFORE).rpartition("-")
    return (stage, int(step)) if stage in stages and step.isdecimal() else (stages[0], 0)


def _trackers(run: runs.Run) -> trackers.Trackers:
    """The trackers of a run, at the step from which it goes on."""
    stage, step = _place(run)
    config, first = dataclasses.asdict(run.recipe), _before(run.recipe)[stage] + step
    return trackers.open_trackers(run.recipe.track, run.folder, config, first=first, say=console.print)


def _before(recipe: Recipe) -> dict[str, int]:
    """Steps before each stage, which trackers count too."""
    stages = plans.stages(recipe)
    return {stage.name: sum(before.steps for before in stages[:k]) for k, stage in enumerate(stages)}


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Words that are said a single time."""
    left = [say]
    return lambda text: left.pop()(text) if left else None


def _show(run: runs.Run, stage: str, step: int, told: trackers.Trackers, at: int, say: Callable[[str], None]) -> None:
    """Draw samples of a run that is being trained; of the first picture it is said where it is."""
    path = pictures.show(run, stage, step, say)
    if path is None:
        return
    told.show(f"{stage}/samples", path, at)
    if len(list(path.parent.glob("*.png"))) == 1:
        console.print(f"samples by now: {path}, and more every {run.recipe.show_every:,} steps", soft_wrap=True)


def _losses(logged: Mapping[str, Any], step: Step) -> str:
    """The loss and its parts as they were logged, and how many steps were skipped."""

    def number(name: str) -> str:
        return "-" if logged[name] is None else f"{logged[name]:.3g}"

    parts = ", ".join(f"{name} {number(name)}" for name in step.loss.parts)
    skipped = f" | {logged['skipped']} skipped" if "skipped" in logged else ""
    return f"loss {number('loss')} | {parts}{skipped}"


def evaluate(folder: Path, changes: Mapping[str, Any], seed: int | None, source: Source | None = None) -> None:
    """Measure a run, on data at hand or read again; print the table; write metrics.json, figures and the report."""
    with watching("data") as watch:
        recipe, flow_map, teacher, source = load_run(folder, watch, source)
    if "features" in changes and not isinstance(recipe, ImageRecipe):
        raise ValueError(f"--features is for images, {recipe.name} is a recipe of points: leave it out.")
    recipe = dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, **changes))
    seed = recipe.seed if seed is None else seed
    plans.check(dataclasses.replace(recipe, seed=seed))
    plans.check_steps(recipe, changes.get("steps", ()))
    flow_map, teacher, recipe = plans.measured(recipe, flow_map, teacher)
    rows, drawn = _measured(recipe, flow_map, teacher, source, seed)
    metrics: dict[str, Any] = {"recipe": recipe.name, "method": recipe.method, "seed": seed, "rows": rows}
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    with watching("draw") as watch:
        shown = pictures.draw(folder, recipe, flow_map, teacher, source, rows, drawn, watch=watch)
    if shown.numbers:
        write_atomically(folder / "metrics.json", json.dumps(metrics | shown.numbers, indent=2) + "\n")
    config = dataclasses.asdict(recipe)
    path = report.write(folder, f"{recipe.name}: {recipe.method}", config, rows, shown.files, notes(recipe, folder))
    console.print(report.table(rows, f"{recipe.name}, {recipe.method}"))
    console.print(f"picture: {next(iter(shown.files.values()))}", soft_wrap=True)
    console.print(f"report:  {path}", soft_wrap=True)


def _measured(
    recipe: Recipe, flow_map: FlowMap, teacher: FlowMap | None, source: Source, seed: int
) -> tuple[list[Row], dict[str, Sampled]]:
    """The rows of metrics.json, and by their titles samples for the pictures."""
    settings, rows, drawn = recipe.evaluation, [], {}
    fast = recipe.compile and settings.samples >= 100_000 and can_compile()
    console.print(f"measuring with {settings.samples:,} samples a row")
    if few := _few(recipe, source.units):
        console.print(few, soft_wrap=True)
    with bar() as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the covariance", UserWarning)  # it has been said
        task = progress.add_task("measure", total=len(settings.steps) + 2, note="reference")

        def watch(title: str, share: float) -> None:
            progress.update(task, completed=len(rows) + share, note=f"{title}, {share:.0%}")

        options = {"restart": measuring.restarts(recipe), "compiled": fast, "watch": watch}
        for title, row, sampled in measuring.rows(flow_map, teacher, source, settings, seed, **options):
            rows.append(row)
            progress.update(task, completed=len(rows), note=f"{title}, 100%")
            drawn[title] = sampled.first(SHOWN) if source.units.pixels else sampled
            if not console.is_terminal:
                console.print(f"{title}: {sampled.seconds:.1f} s")
    return rows, drawn


def _few(recipe: Recipe, units: Units) -> str | None:
    """What is to be said of the number of samples."""
    number = recipe.evaluation.samples
    if recipe.data == "checkerboard" and number < 100_000:
        return "KL of so few samples lies high above its floor: quote figures of 1,000,000 (--evaluation.samples)."
    if not units.pixels or number >= 10_000:
        return None
    singular = ", and below some 1,300 means nothing" if number < 1_300 else ""
    return (
        f"The Fréchet distance of {number:,} samples is too large by an amount that depends on their number{singular}: "
        "compare rows with one another, and quote figures of --samples 50000."
    )


def notes(recipe: Recipe, folder: Path) -> list[str]:
    """What a reader of the report should know first."""
    seconds = checkpoint.read_card(folder).get("seconds", 0.0)
    stages = ", then ".join(f"{stage.steps:,} steps of {stage.name}" for stage in plans.stages(recipe))
    words = [f"A flow map learned by {recipe.method}: {stages}; {seconds / 60:.1f} minutes of training."]
    kept = checkpoint.read_card(folder).get("average")
    if isinstance(kept, dict):
        kind = f"the relative width {kept['width']}" if "width" in kept else f"the decay {kept.get('decay')}"
        words.append(f"The weights of its {kept.get('stage')} are the average of {kind} of the run {kept.get('of')}.")
    if recipe.teacher:
        words.append(f"Its teacher is the velocity of the run in {recipe.teacher}, of which teacher/ is a copy.")
    if recipe.method in plans.TO_DATA:
        words.append(
            f"{recipe.method} learns jumps to t = 1 alone: several steps go there, add fresh noise, and jump again."
        )
    elif recipe.method not in plans.DISTILLED:
        words.append(
            f"{recipe.method} has no teacher of its own: the rows called teacher solve the flow of the velocity that "
            f"the map has learned on its diagonal, u at s = t."
        )
    if limits := plans.limits(recipe):
        words.append(f"{limits}.")
    return words
