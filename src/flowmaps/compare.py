"""Several methods side by side: the same data, network, optimiser and wall-clock budget; one table and one figure.

A method's budget covers all its stages, a teacher included, in proportion to their steps. The teacher is trained once
and shared by the methods that distil it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from . import evaluate as measuring
from . import figures, recipes
from .commands import bar, console
from .data import Board, Source, open_data
from .files import write_atomically
from .maps import FlowMap, Frozen
from .recipes import Recipe, Stage
from .runs import compiled, pick_device
from .shapes import Field
from .train import begin, generator, train

WARM = 3  # steps before the clock starts: compilation is not training


def compare(recipe: Recipe, methods: tuple[str, ...], budget: float, folder: Path) -> None:
    """Train each method for `budget` seconds and measure it; writes compare.json, compare.md and compare.png.

    Raises:
        ValueError: the folder exists, the budget is not positive, or the recipe cannot run.
    """
    recipes.validate(recipe)
    if not 0 < budget < math.inf:
        raise ValueError(f"--budget must be positive, got {budget} seconds.")
    if not methods or len(set(methods)) != len(methods):
        raise ValueError(f"--methods needs different methods, got {' '.join(methods) or 'none'}.")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} already exists and is not empty: choose another --out.")
    source = open_data(recipe.data, recipe.optimiser.batch)
    folder.mkdir(parents=True, exist_ok=True)
    teachers: dict[float, Frozen] = {}
    table: list[dict[str, Any]] = []
    shared: measuring.Reference | None = None
    for method in methods:
        mine = dataclasses.replace(recipe, method=method)
        flow_map, teacher, spent = fit(mine, source, budget, teachers)
        if all(bool(value.isfinite().all()) for value in flow_map.state_dict().values()):
            if shared is None and isinstance(source, Board):  # elsewhere the true flow is the method's own teacher's
                shared = measuring.reference(source, flow_map.velocity, recipe.evaluation, recipe.seed)
            measured = measuring.rows(flow_map, teacher, source, recipe.evaluation, recipe.seed, shared, euler=False)
            table += [{"method": method, **spent, **row} for _, row, _ in measured]
        else:
            console.print(f"{method} diverged: its weights are not finite.", soft_wrap=True)
            table.append({"method": method, **spent, "sampler": "map", "diverged": True})
        result = {"recipe": recipe.name, "seed": recipe.seed, "budget": budget, "rows": table}
        write_atomically(folder / "compare.json", json.dumps(result, indent=2) + "\n")
    if not any("steps" in row for row in table):
        raise ValueError("every method diverged: lower --optimiser.rate.")
    picture = figures.save(figures.compare(shown(table)), folder / "compare.png")
    console.print(_terminal(table, recipe, budget))
    write_atomically(folder / "compare.md", markdown(table))
    console.print(f"picture: {picture}", soft_wrap=True)


def fit(
    recipe: Recipe, source: Source, budget: float, teachers: dict[float, Frozen]
) -> tuple[FlowMap, FlowMap | None, dict[str, Any]]:
    """Train one method: the map, its teacher, and what training took."""
    device = pick_device(recipe.device)
    flow_map = recipes.new_map(recipe, source.dim, source.classes).to(device)
    teacher: FlowMap | None = None
    stages = recipes.stages(recipe)
    total = sum(stage.steps for stage in stages)
    pace = 0.0
    for number, stage in enumerate(stages):
        share = budget * stage.steps / total
        if stage.name == "teacher" and share in teachers:
            flow_map.load_state_dict(teachers[share].flow_map.state_dict())
        else:
            pace = run_stage(recipe, stage, number, source, flow_map, teacher and teacher.velocity, share)
        if stage.name == "teacher":
            teachers[share] = Frozen(flow_map)
            teacher = teachers[share]
    return flow_map, teacher, {"ms_per_step": round(pace, 2), "budget": budget}


def run_stage(
    recipe: Recipe, stage: Stage, number: int, source: Source, flow_map: FlowMap, teacher: Field | None, budget: float
) -> float:
    """Train one stage for `budget` seconds; milliseconds a step."""
    device = pick_device(recipe.device)
    state = begin(stage.build(flow_map, teacher).to(device), recipe.optimiser)
    evaluate = compiled(state, console.print) if recipe.compile else None
    seed = int(generator(recipe.seed, number).initial_seed())
    settings = {"seed": seed, "device": device, "evaluate": evaluate}
    for _ in train(state, source, recipe.optimiser, steps=WARM, **settings):
        pass
    with bar() as progress:
        task = progress.add_task(recipe.method, total=100, note=stage.name)
        for step in train(state, source, recipe.optimiser, steps=10**9, budget=budget, **settings):
            if step.number % recipe.log_every == 0:
                residuals = ", ".join(f"{name} {part.mean():.3g}" for name, part in step.loss.parts.items())
                progress.update(task, completed=int(100 * step.progress), note=f"{stage.name} | {residuals}")
    state.use_averages()
    console.print(f"{recipe.method}, {stage.name}: {state.step:,} steps in {budget:.0f} s", soft_wrap=True)
    return 1e3 * budget / max(state.step - WARM, 1)


def shown(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the figure: all maps, and the one teacher that is distilled."""
    teachers = [row for row in table if row["sampler"] == "teacher" and row["method"] in recipes.DISTILLED]
    return [row for row in table if row["sampler"] == "map"] + teachers[:1]


def summary(table: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A line a method: the figure of quality in each number of jumps, for its ODE, and what a step costs."""
    key = "kl" if any("kl" in row for row in table) else "energy"
    jumps = sorted({row["steps"] for row in table if row["sampler"] == "map" and "steps" in row})
    heading = ["method", *(f"{n} step{'s' * (n > 1)}" for n in jumps), "dopri5", "error", "ms/step"]

    def value(row: dict[str, Any]) -> str:
        return f"{row[key] - (row['kl_floor'] if key == 'kl' else 0):.4f}"

    lines = []
    for method in dict.fromkeys(row["method"] for row in table):
        mine = [row for row in table if row["method"] == method]
        if "diverged" in mine[0]:
            lines.append([method, "diverged", *["–"] * (len(heading) - 3), f"{mine[0]['ms_per_step']:.1f}"])
            continue
        by_jumps = {row["steps"]: row for row in mine if row["sampler"] == "map"}
        ode = next(row for row in mine if row.get("solver") == "dopri5")
        first = by_jumps[jumps[0]]
        line = [method, *(value(by_jumps[n]) for n in jumps), value(ode), f"{first['map_error']:.4f}"]
        lines.append([*line, f"{first['ms_per_step']:.1f}"])
    return heading, lines


def _terminal(table: list[dict[str, Any]], recipe: Recipe, budget: float) -> Table:
    heading, lines = summary(table)
    figure = r"KL above floor \[nats]" if any("kl" in row for row in table) else "energy distance to data"
    title = f"{recipe.name}, {budget:g} s of training for each method: {figure} of the map in N steps"
    caption = "dopri5: the ODE of the teacher, or of the map's own diagonal; error: mean squared, of one jump"
    result = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for k, name in enumerate(heading):
        result.add_column(name, justify="right" if k else "left", no_wrap=True)
    for line in lines:
        result.add_row(*line)
    return result


def markdown(table: list[dict[str, Any]]) -> str:
    """The summary as a Markdown table."""
    heading, lines = summary(table)
    rows = [heading, ["---"] + ["---:"] * (len(heading) - 1), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)
