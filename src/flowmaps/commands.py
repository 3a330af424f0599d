"""What the commands do, with progress on the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from . import checkpoint, pictures, plans, report, runs
from . import evaluate as measuring
from .data import Source, Units
from .devices import can_compile, pick_device
from .figures import save
from .files import write_atomically
from .folders import load_run, read_recipe
from .image_figures import tiles
from .maps import FlowMap
from .measure import SAMPLES, Row, Sampled, Watch, open_features
from .recipes import ImageRecipe, Recipe
from .shapes import Guide
from .train import generator

console = Console(highlight=False)
SHOWN = 10_000  # images of a row that are kept for the pictures: ten of each of a thousand classes


def bar() -> Progress:
    """A progress bar with room for numbers; nothing where the output is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextlib.contextmanager
def watching(what: str) -> Iterator[Watch]:
    """A progress bar that is told a title and a share from 0 to 1."""
    with bar() as progress:
        task = progress.add_task(what, total=1, note="")
        yield lambda title, share: progress.update(task, completed=share, note=title)


def train(recipe: Recipe, folder: Path, *, resume: bool = False, minutes: float | None = None) -> None:
    """Train a recipe into a folder, then evaluate it; after so many minutes stop, to be resumed."""
    if minutes is not None and not minutes > 0:
        raise ValueError(f"--minutes must be positive, got {minutes:g}.")
    if isinstance(recipe, ImageRecipe):
        open_features(recipe.evaluation.features)  # missing weights are told of before the training, not after it
    with watching("data") as watch:
        run = runs.Run.open(recipe, folder, resume=resume, say=console.print, watch=watch)
    plan = ", then ".join(f"{stage.steps:,} steps of {stage.name}" for stage in plans.stages(recipe))
    console.print(f"training {recipe.name} with {recipe.method} into {folder}: {plan}", soft_wrap=True)
    if not follow(run, minutes):
        after = f"{minutes:g} minute{'s' * (minutes != 1)}"
        console.print(f"stopped after {after}: go on with the same command and --resume.", soft_wrap=True)
        return
    evaluate(folder, {}, None, run.source)


def follow(run: runs.Run, minutes: float | None = None) -> bool:
    """Train a run under a progress bar, or with a line now and then where there is no terminal; whether to the end."""
    task, current, begun = None, None, 0.0
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    with bar() as progress, contextlib.closing(run.train()) as steps:
        for stage, step in steps:
            if time.monotonic() > end:
                return False
            if stage is not current:
                current, begun, first = stage, run.seconds, step.number
                task = progress.add_task(stage.name, total=stage.steps, note="compiling")
            if step.number % run.recipe.log_every and step.number != stage.steps:
                continue
            pace = (step.number - first) / max(run.seconds - begun, 1e-9)
            left = ", ".join(f"{name} {part.mean():.3g}" for name, part in step.loss.parts.items())
            note = f"loss {step.loss.value:.3g} | {left} | {pace:.0f} steps/s"
            progress.update(task, completed=step.number, note=note)  # type: ignore[arg-type]
            if not console.is_terminal and (
                step.number % (20 * run.recipe.log_every) == 0 or step.number == stage.steps
            ):
                console.print(f"{stage.name} {step.number}/{stage.steps}: {note}, {run.seconds:.0f} s", soft_wrap=True)
    return True


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
        return "KL by so few samples is mostly its floor: quote figures of --samples 1000000."
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


def sample(
    folder: Path, out: Path, steps: int, number: int, label: int | None, seed: int, guidance: float | None = None
) -> None:
    """Draw samples from a run's map into a file."""
    if out.suffix not in (".npz", ".npy", ".png"):
        raise ValueError(f"--out must end in .npz, .npy or (for images) .png, got {out}.")
    if out.exists():
        raise ValueError(f"{out} already exists: choose another --out, or remove it.")
    if number < 1:
        raise ValueError(f"--number must be at least 1, got {number}.")
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}.")
    card = checkpoint.read_card(folder)
    device = pick_device("auto")
    recipe, flow_map = read_recipe(folder), checkpoint.load(folder).to(device)
    plans.check_steps(recipe, [steps])
    flow_map, _, _ = plans.measured(recipe, flow_map, None)
    units = Units.from_dict(card.get("units"))
    if out.suffix == ".png" and not units.pixels:
        raise ValueError(f"{folder} makes samples of shape {units.shape}, which are no images: take --out FILE.npz.")
    labels = _labels(units, number, label)
    x0 = torch.randn(number, *units.shape, generator=generator(seed, SAMPLES))
    chunk, points = recipe.evaluation.chunk, []
    whole = measuring.Start(x0, labels if guidance is None else _guide(recipe, labels, guidance))
    walk, whole, _ = measuring.stepping(flow_map, steps, whole, measuring.restarts(recipe), seed)
    with bar() as progress:
        task = progress.add_task("sample", total=number, note=f"{steps} steps")
        for start in range(0, number, chunk):
            points.append(walk(whole.rows(slice(start, start + chunk), device))[0].cpu())
            progress.update(task, completed=min(start + chunk, number))
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, units, torch.cat(points), labels)
    console.print(f"{number:,} samples in {steps} steps: {out}", soft_wrap=True)


def _write(out: Path, units: Units, x: torch.Tensor, labels: torch.Tensor | None) -> None:
    """Samples as a file: numbers in the units of the data, images as pixels `(N, H, W, C)`, or as one picture."""
    if out.suffix == ".png":
        rows = max(rows for rows in range(1, math.isqrt(len(x)) + 1) if len(x) % rows == 0)
        save(tiles(units.to_pixels(x), rows), out)
        return
    arrays = {"x": units.to_pixels(x).movedim(1, 3).numpy() if units.pixels else units.to_data(x).numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    buffer = io.BytesIO()
    np.save(buffer, arrays["x"]) if out.suffix == ".npy" else np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(out, buffer.getvalue())


def _guide(recipe: Recipe, labels: torch.Tensor | None, weight: float) -> Guide:
    if len(recipe.guidance) != 2:
        raise ValueError(
            f"this map takes no guidance weight, got --guidance {weight:g}: train with --guidance LOW HIGH."
        )
    if not recipe.guidance[0] <= weight <= recipe.guidance[1]:
        raise ValueError(f"--guidance must be from {recipe.guidance[0]:g} to {recipe.guidance[1]:g}, got {weight:g}.")
    return Guide(labels, torch.full((len(labels),), weight))  # type: ignore[arg-type]


def _labels(units: Units, number: int, label: int | None) -> torch.Tensor | None:
    if units.classes is None:
        if label is not None:
            raise ValueError(f"these data have no classes, got --label {label}: leave it out.")
        return None
    if label is None:
        return torch.arange(number) % units.classes
    if not 0 <= label < units.classes:
        raise ValueError(f"--label must be from 0 to {units.classes - 1}, got {label}.")
    return torch.full((number,), label)
