"""The dry run of `flowmaps train --check`: finds errors before training, and describes what training will take.

Nothing is written.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data import Source
from ..data.options import listed
from ..maps import FlowMap, Target
from ..metrics.features import open_features
from ..objectives import Objective
from ..system.devices import can_compile
from ..system.processes import first_line, ranks
from ..system.progress import Watch, in_words, milliseconds, quiet
from ..training import trackers
from ..training.distributed import Placement
from ..training.optimisers import MIN_ROWS
from ..velocities import RandomInputs
from . import changes
from .duration import GROWTH, Seconds, measuring_seconds, step_seconds
from .folder import nearest_existing
from .precision import loss_and_gradients, rows_at_a_time
from .prepare import BYTES_PER_NUMBER, Prepared, averages, count, in_bytes, prepare
from .recipes import ImageRecipe, Recipe
from .stages import Stage


@dataclass(frozen=True)
class Size:
    """What a stage takes.

    Attributes:
        stage: the stage.
        weights: numbers in the map.
        trained: numbers that the optimiser trains: the map, and what the objective trains besides.
        untrained: numbers in moving targets and buffers, which a checkpoint has too.
        step: the time of a step, without compilation.
    """

    stage: Stage
    weights: int
    trained: int
    untrained: int
    step: Seconds

    def checkpoint(self, recipe: Recipe) -> int:
        """Bytes of a checkpoint, at most: weights, two moments, averages, targets."""
        return BYTES_PER_NUMBER * (self.trained * (3 + averages(recipe)) + self.untrained)


def preflight(recipe: Recipe, folder: Path | None = None, watch: Watch = quiet) -> list[str]:
    """Check all that a run needs, and try a few rows of each of its stages.

    Args:
        recipe: of the run.
        folder: its --out; not looked at if it is `None`.
        watch: progress callback.

    Returns:
        The plan of the run, line by line.

    Raises:
        ValueError: it cannot run.
    """
    ready = prepare(recipe, folder, watch=watch)
    check_packages(recipe)
    sizes = _stages(ready, watch)
    watch("evaluation", 1.0)
    measuring = measuring_seconds(ready.plan, ready.flow_map, ready.teacher, ready.source)
    lines = _plan(ready, sizes, measuring)
    return [*lines, *_warnings(recipe, folder, ready.placement, sizes), _end(ready, sizes)]


def check_packages(recipe: Recipe) -> None:
    """Raise an error if a tracker or the feature network of the evaluation is not installed.

    Raises:
        ValueError: names what to install.
    """
    trackers.check(recipe.track)
    if isinstance(recipe, ImageRecipe):
        open_features(recipe.evaluation.features)


def _stages(ready: Prepared, watch: Watch) -> list[Size]:
    """Build the objective of each stage from the map that the stage before leaves, and try it."""
    plan, flow_map, device, sizes = ready.plan, ready.flow_map, ready.placement.device, list[Size]()
    teacher = None if ready.teacher is None else Target(ready.teacher.to(device)).velocity
    for number, stage in enumerate(plan.stages):
        watch(f"stage {stage.name}", number / len(plan.stages))
        objective = stage.build(flow_map, teacher).to(device)
        sizes.append(_try(plan.recipe, stage, objective, ready.source, flow_map))
        if stage.name == "teacher":
            teacher = Target(flow_map).velocity
    return sizes


def _try(recipe: Recipe, stage: Stage, objective: Objective, source: Source, flow_map: FlowMap) -> Size:
    """What a stage takes; an error if its loss or gradient at a few rows is not finite."""
    trained = [value for value in objective.parameters() if value.requires_grad]
    device = trained[0].device
    x1, cond = source.sample(_rows(recipe), torch.Generator(device).manual_seed(recipe.seed))
    when = {"progress": 0.0, "step": recipe.off_diagonal_every - 1}
    draw = objective.draw(x1, cond=cond, generator=torch.Generator(device).manual_seed(recipe.seed), **when)
    try:
        found = _loss_and_norm(objective, draw, getattr(torch, recipe.precision))
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{_rows(recipe)} rows of stage {stage.name} do not fit the memory of {device} ({first_line(error)}): take "
            "a smaller network, or --activation-checkpointing for images."
        ) from None
    rather = "" if recipe.precision == "float32" else ", or take --precision float32"
    if bad := [f"the {what} of stage {stage.name} is {x}" for what, x in found.items() if not math.isfinite(x)]:
        raise ValueError(f"{bad[0]} before any step, in {recipe.precision}: look at the data{rather}.")
    targets = [value for target in objective.moving_targets() for value in target.state_dict().values()]
    untrained = count(targets) + count(objective.buffers())
    step = step_seconds(recipe, objective, source)
    return Size(stage, count(flow_map.parameters()), count(trained), untrained, step)


def _rows(recipe: Recipe) -> int:
    """Number of rows to try: a few of those that a process computes at a time."""
    return min(rows_at_a_time(recipe), 2 * MIN_ROWS)


def _loss_and_norm(objective: Objective, draw: RandomInputs, precision: torch.dtype) -> dict[str, float]:
    """The loss and gradient norm, which is 0 in float16, where the unscaled gradient is not checked."""
    loss, grads = loss_and_gradients(objective, draw, precision)
    norm = 0.0 if precision == torch.float16 else torch.stack([grad.float().norm() for grad in grads]).norm().item()
    return {"loss": loss.item(), "gradient": norm}


# words ---------------------------------------------------------------------------------------------------------------


def _plan(ready: Prepared, sizes: list[Size], measuring: float) -> list[str]:
    plan, source, device = ready.plan, ready.source, ready.placement.device
    recipe, o = plan.recipe, plan.recipe.optimiser
    classes = "no classes" if source.classes is None else f"{source.classes} classes"
    if source.units.conditions:
        classes += f", conditioned on {listed([own.name for own in source.units.conditions])}"
    kept = ", ".join(f"{decay:g}" for decay in (o.ema_decay, *o.ema_decays))
    widths = (
        f", and power functions of width {', '.join(f'{width:g}' for width in o.ema_widths)}" if o.ema_widths else ""
    )
    often = (
        f", and each at a multiple of {recipe.keep_checkpoints_every:,} steps" if recipe.keep_checkpoints_every else ""
    )
    size = max(size.checkpoint(recipe) for size in sizes)
    name = "cpu" if device.type == "cpu" else str(device)
    compiles = plan.compiles(device) and can_compile()
    sample = "a row" if len(source.shape) == 1 else "an image" if source.units.pictures else "a sample"
    lines = {
        "recipe": f"{recipe.name}, {recipe.method}",
        "data": f"{recipe.data}, {' x '.join(map(str, source.shape))} numbers {sample}, {classes}",
        "stages": plan.summary(),
        "weights": f"{sizes[-1].weights:,}" + (f", adapters of rank {recipe.lora} are trained" if recipe.lora else ""),
        "step": f"{o.kind}, {_parts(recipe)}",
        "averages": f"decay {kept}{widths}",
        "checkpoint": f"{in_bytes(size)}, every {recipe.checkpoint_every:,} steps; "
        f"the last {recipe.keep_checkpoints} kept{often}",
        "device": f"{name}, {recipe.precision}, {'compiled' if compiles else 'not compiled'}",
        "time": _time(sizes, measuring, compiles),
    }
    lines |= {"precision": ready.chosen.removeprefix("precision ")} if ready.chosen else {}
    changed = changes.lines(plan, source.classes, source.units.condition_dim)
    found = [*source.about, *(f"note: {note}" for note in source.notes)]
    shown = [f"{about:<11}{said}" for about, said in lines.items()]
    place = 1 + list(lines).index("data")
    shown[place:place] = [f"{'':<11}{line}" for line in found]
    return [
        *shown,
        "changes    what this recipe sets differently from its methods:",
        *(f"{'':<11}{line}" for line in changed),
    ]


def _time(sizes: list[Size], measuring: float, compiles: bool) -> str:
    """About how long training and the drawing of samples take."""
    training = sum(size.stage.steps * size.step.value for size in sizes)
    steps = ", ".join(f"{milliseconds(size.step.value)} a step of {size.stage.name}" for size in sizes)
    faster = ", timed without compilation, which in most cases halves it" if compiles else ""
    return (
        f"about {in_words(training)} of training ({steps}{faster}); then about {in_words(measuring)} of drawing the "
        "samples that are measured"
    )


def _parts(recipe: Recipe) -> str:
    batch, parts = recipe.optimiser.batch, recipe.optimiser.accumulate
    each = f", {batch // ranks():,} for each of {ranks()} processes" if ranks() > 1 else ""
    taken = f", taken in {parts:,} parts of {batch // ranks() // parts:,}" if parts > 1 else ""
    return f"{batch:,} rows{each}{taken}"


def _end(ready: Prepared, sizes: list[Size]) -> str:
    rows, whole = min(size.step.rows for size in sizes), rows_at_a_time(ready.plan.recipe)
    untried = [*["a whole batch"] * (rows < whole), *["compilation"] * ready.plan.compiles(ready.placement.device)]
    words = f"; {' and '.join(untried)} {'were' if len(untried) > 1 else 'was'} not tried" if untried else ""
    return f"this recipe can run: a forward and a backward pass on {rows:,} rows of each stage were run{words}."


def _warnings(recipe: Recipe, folder: Path | None, placement: Placement, sizes: list[Size]) -> list[str]:
    lines = []
    if recipe.compile and not can_compile():
        lines.append("warning: no C++ compiler found: training runs without torch.compile, at half the speed.")
    if placement.shard and ranks() == 1:
        lines.append("warning: --fsdp shards among processes, and there is only one: see accelerate launch.")
    for size in sizes:
        if not size.step.fits:
            lines.append(
                f"warning: {rows_at_a_time(recipe):,} rows of stage {size.stage.name} may not fit the memory of "
                f"{placement.device}: without compilation {size.step.rows:,} do, and {GROWTH} times as many do not; "
                "raise --optimiser.accumulate, or lower --optimiser.batch."
            )
    need, free = _disk(recipe, sizes), shutil.disk_usage(nearest_existing(folder or Path())).free
    if need > free:
        lines.append(
            f"warning: checkpoints and averages take up to {in_bytes(need)}, and {in_bytes(free)} are free there: "
            "lower --keep-checkpoints, raise --keep-checkpoints-every or --store-averages-every, or choose another "
            "--out."
        )
    return lines


def _disk(recipe: Recipe, sizes: list[Size]) -> int:
    """Bytes that a run may take: the checkpoints that are kept and one in writing, averages, maps of stages."""
    widest = max(size.checkpoint(recipe) for size in sizes)
    total = (recipe.keep_checkpoints + 1) * widest
    for size in sizes:
        total += size.checkpoint(recipe) * (
            size.stage.steps // recipe.keep_checkpoints_every if recipe.keep_checkpoints_every else 0
        )
        stored = (size.stage.steps // recipe.store_averages_every + 1) * len(recipe.optimiser.ema_widths)
        total += BYTES_PER_NUMBER * (size.trained * (stored + len(recipe.optimiser.ema_decays)) + size.weights)
    return total
