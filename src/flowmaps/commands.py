"""What the commands do, with progress on the terminal."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from . import checkpoint, figures, plans, report, runs
from . import evaluate as measuring
from .data import Source, Units
from .files import write_atomically
from .maps import FlowMap
from .recipes import Recipe
from .shapes import Guide
from .train import generator

console = Console(highlight=False)


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


def train(recipe: Recipe, folder: Path, *, resume: bool = False) -> None:
    """Train a recipe into a folder, then evaluate it."""
    run = runs.Run.open(recipe, folder, resume=resume, say=console.print)
    plan = ", then ".join(f"{stage.steps:,} steps of {stage.name}" for stage in plans.stages(recipe))
    console.print(f"training {recipe.name} with {recipe.method} into {folder}: {plan}", soft_wrap=True)
    follow(run)
    evaluate(folder, {}, None)


def follow(run: runs.Run) -> None:
    """Train a run under a progress bar, or with a line now and then where there is no terminal."""
    task, current, begun = None, None, 0.0
    with bar() as progress:
        for stage, step in run.train():
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


def evaluate(folder: Path, changes: Mapping[str, Any], seed: int | None) -> None:
    """Measure a run; print the table; write metrics.json, the figures and the report."""
    recipe, flow_map, teacher, source = runs.load_run(folder)
    recipe = dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, **changes))
    seed = recipe.seed if seed is None else seed
    plans.check(dataclasses.replace(recipe, seed=seed))
    flow_map, teacher, recipe = plans.measured(recipe, flow_map, teacher)
    settings = recipe.evaluation
    rows, drawn = [], {}
    fast = recipe.compile and settings.samples >= 100_000 and runs.can_compile()
    console.print(f"measuring with {settings.samples:,} samples a row")
    if recipe.data == "checkerboard" and settings.samples < 100_000:
        console.print("KL by so few samples is mostly its floor: quote figures of --samples 1000000.", soft_wrap=True)
    with bar() as progress:
        task = progress.add_task("measure", total=len(settings.steps) + 2, note="reference")

        def watch(title: str, share: float) -> None:
            progress.update(task, completed=len(rows) + share, note=f"{title}, {share:.0%}")

        options = {"restart": measuring.restarts(recipe), "compiled": fast, "watch": watch}
        for title, row, sampled in measuring.rows(flow_map, teacher, source, settings, seed, **options):
            rows.append(row)
            drawn[title] = sampled
            if not console.is_terminal:
                console.print(f"{title}: {sampled.seconds:.1f} s")
    metrics = {"recipe": recipe.name, "method": recipe.method, "seed": seed, "rows": rows}
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    pictures = draw(folder, recipe, flow_map, teacher, source, rows, drawn)
    config = dataclasses.asdict(recipe)
    path = report.write(folder, f"{recipe.name}: {recipe.method}", config, rows, pictures, notes(recipe, folder))
    console.print(report.table(rows, f"{recipe.name}, {recipe.method}"))
    console.print(f"picture: {next(iter(pictures.values()))}", soft_wrap=True)
    console.print(f"report:  {path}", soft_wrap=True)


def notes(recipe: Recipe, folder: Path) -> list[str]:
    """What a reader of the report should know first."""
    seconds = checkpoint.read_card(folder).get("seconds", 0.0)
    stages = ", then ".join(f"{stage.steps:,} steps of {stage.name}" for stage in plans.stages(recipe))
    words = [f"A flow map learned by {recipe.method}: {stages}; {seconds / 60:.1f} minutes of training."]
    if recipe.method in plans.TO_DATA:
        words.append(
            f"{recipe.method} learns jumps to t = 1 alone: several steps go there, add fresh noise, and jump again."
        )
    elif recipe.method not in plans.DISTILLED:
        words.append(
            f"{recipe.method} has no teacher of its own: the rows called teacher solve the flow of the velocity that "
            f"the map has learned on its diagonal, u at s = t."
        )
    return words


def draw(
    folder: Path,
    recipe: Recipe,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    rows: list[measuring.Row],
    drawn: dict[str, measuring.Sampled],
) -> dict[str, Path]:
    """The figures of a run as files, by caption."""
    data, _ = source.sample(min(200_000, recipe.evaluation.samples), generator(recipe.seed, 3))
    made = {}
    if recipe.data == "digits":
        made["Digits of the class above each column, drawn in N steps from the same noise."] = "digits", _digits(drawn)
    elif source.dim == 2:
        panels = {"data": source.to_data(data)} | {
            title: source.to_data(made.x[: len(data)]) for title, made in drawn.items()
        }
        made["Samples beside the data."] = "samples", figures.samples(panels)
        if recipe.method not in plans.TO_DATA:
            made["One jump from noise to each time t, over the flow itself."] = (
                "trajectories",
                _trajectories(flow_map, teacher, source),
            )
    made["Quality against network evaluations a sample."] = "quality", figures.quality(rows)
    log = runs.read_log(folder)
    if log:
        made["Loss and unweighted residuals while training."] = "losses", figures.losses(log)
    return {caption: figures.save(figure, folder / f"{name}.png") for caption, (name, figure) in made.items()}


def _digits(drawn: dict[str, measuring.Sampled]) -> Any:
    """A row a sampler: two digits of each class, from the same noise in every row."""
    titles, labels = list(drawn), next(iter(drawn.values())).cond
    assert labels is not None
    found = [(labels == k).nonzero()[:2, 0] for k in range(10)]
    rows = torch.cat([at for k in (0, 1) for at in (which[k : k + 1] for which in found)])
    images = torch.cat([drawn[title].x[rows].reshape(-1, 8, 8) for title in titles]).clamp(-1, 1)
    return figures.image_grid(images, len(titles), titles, columns=[str(int(k)) for k in labels[rows]])


def _trajectories(flow_map: FlowMap, teacher: FlowMap | None, source: Source) -> Any:
    """30 paths of the map, each point one jump from the start, over the exact flow or the teacher's."""
    starts = torch.randn(30, 2, generator=generator(0, 4))
    times = torch.linspace(0, 1, 33)
    device = checkpoint.device_of(flow_map)
    x, t = starts.repeat(len(times), 1).to(device), times.repeat_interleave(len(starts)).to(device)
    labels = _labels(source.units, len(starts), None)
    cond = None if labels is None else labels.repeat(len(times)).to(device)
    with torch.inference_mode():
        jumps = flow_map(x, torch.zeros_like(t), t, cond)
        exact = measuring.true_flow(source, (flow_map if teacher is None else teacher).velocity, x, t, cond)
    shape = (len(times), len(starts), 2)
    name = "exact flow" if hasattr(source, "exact") else "teacher's flow"
    paths = [source.to_data(p.float().cpu()).reshape(shape) for p in (exact, jumps)]
    data, _ = source.sample(5_000, generator(0, 5))
    return figures.trajectories(paths[0][0], *paths, background=source.to_data(data), exact=name)


def sample(
    folder: Path, out: Path, steps: int, number: int, label: int | None, seed: int, guidance: float | None = None
) -> None:
    """Draw samples from a run's map into a file."""
    if out.suffix not in (".npz", ".npy"):
        raise ValueError(f"--out must end in .npz or .npy, got {out}.")
    if out.exists():
        raise ValueError(f"{out} already exists: choose another --out, or remove it.")
    if number < 1:
        raise ValueError(f"--number must be at least 1, got {number}.")
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}.")
    card = checkpoint.read_card(folder)
    device = runs.pick_device("auto")
    recipe, flow_map = runs.read_recipe(folder), checkpoint.load(folder).to(device)
    flow_map, _, known = plans.measured(recipe, flow_map, None)
    if recipe.method in plans.FROM_BASE and steps not in known.evaluation.steps:
        raise ValueError(f"a map of {recipe.method} jumps from noise alone, got --steps {steps}: take --steps 1.")
    units = Units.from_dict(card.get("units"))
    labels = _labels(units, number, label)
    x0 = torch.randn(number, units.dim, generator=generator(seed, measuring.SAMPLES))
    chunk, points = recipe.evaluation.chunk, []
    whole = measuring.Start(x0, labels if guidance is None else _guide(recipe, labels, guidance))
    walk, whole, _ = measuring.stepping(flow_map, steps, whole, measuring.restarts(recipe), seed)
    with bar() as progress:
        task = progress.add_task("sample", total=number, note=f"{steps} steps")
        for start in range(0, number, chunk):
            points.append(walk(whole.rows(slice(start, start + chunk), device))[0].cpu())
            progress.update(task, completed=min(start + chunk, number))
    arrays = {"x": units.to_data(torch.cat(points)).numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    buffer = io.BytesIO()
    np.save(buffer, arrays["x"]) if out.suffix == ".npy" else np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, buffer.getvalue())
    console.print(f"{number:,} samples in {steps} steps: {out}", soft_wrap=True)


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
