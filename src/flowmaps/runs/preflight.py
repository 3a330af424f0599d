"""The dry run of `flowmaps train --check`: finds errors before training, and describes what training will take.

Nothing is written.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data import Source
from ..maps import FlowMap, Target
from ..metrics.features import open_features
from ..objectives import Objective
from ..shapes import Field
from ..system.devices import can_compile
from ..system.processes import first_line, in_turn, on_first, ranks
from ..system.progress import Watch, quiet
from ..training import trackers
from ..training.distributed import Engine, start
from ..training.optimisers import MIN_ROWS, build
from ..velocities import RandomInputs
from . import inherit, initial
from .folder import describe, open_source
from .plan import Plan, Stage, resolve
from .recipes import ImageRecipe, Optimiser, Recipe

BYTES_PER_NUMBER = 4
"""Of a number of weights, moments and averages, in float32."""
CONTAINER_MEMORY_FILE = Path("/sys/fs/cgroup/memory.max")
"""The file with a container's memory limit: bytes, or `max`."""


@dataclass(frozen=True)
class Size:
    """Numbers of a stage: `weights` of the map, `trained` of the objective; `beside` them in targets and buffers."""

    stage: Stage
    weights: int
    trained: int
    beside: int

    def checkpoint(self, recipe: Recipe) -> int:
        """Bytes of a checkpoint, at most: weights, two moments, averages, targets."""
        return BYTES_PER_NUMBER * (self.trained * (3 + averages(recipe)) + self.beside)


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
    plan = resolve(recipe)
    engine = start(recipe.device, shard=recipe.fsdp)
    on_first(lambda: resolve(recipe, ranks()) and None)
    trackers.check(recipe.track)
    if folder is not None:
        check_folder(folder)
    if isinstance(recipe, ImageRecipe):
        open_features(recipe.evaluation.features)
    source = in_turn(lambda: open_source(recipe, watch=watch))
    _check_size(recipe, source, engine)
    sizes = _stages(plan, source.to(engine.device), engine.device, watch)
    return [*_plan(plan, source, engine.device, sizes), *_warnings(recipe, folder, engine, sizes), _end(recipe)]


def check_folder(folder: Path) -> None:
    """Raise an error if a new run cannot be written into a folder.

    Raises:
        ValueError: the folder is not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists and is not empty: choose another --out, or go on with --resume.")
    above = _above(folder)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be made in {above}, which cannot be written: choose another --out.")


def _above(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def averages(recipe: Recipe) -> int:
    """How many moving averages a run keeps of its weights."""
    return 1 + len(recipe.optimiser.ema_decays) + len(recipe.optimiser.ema_widths)


def _check_size(recipe: Recipe, source: Source, engine: Engine) -> None:
    """Raise an error if training does not fit the memory; weights are counted without allocating them."""
    with torch.device("meta"):
        weights = _count(initial.new_map(recipe, source.shape, source.classes).parameters())
    need, have = BYTES_PER_NUMBER * weights * (4 + averages(recipe)), _memory(engine.device)
    if have is not None and need > have and not engine.shard:
        raise ValueError(
            f"the network has {weights:,} weights, which with gradients, moments and averages take {_bytes(need)}, "
            f"{engine.device} has {_bytes(have)}: take a smaller network, or several processes with --fsdp."
        )


def _memory(device: torch.device) -> int | None:
    """Bytes that a device has, where that can be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(CONTAINER_MEMORY_FILE.read_text()))
    except (OSError, ValueError):  # no such limit
        return physical


def _stages(plan: Plan, source: Source, device: torch.device, watch: Watch) -> list[Size]:
    """Build the objective of each stage from the map that the stage before leaves, and try it."""
    recipe = plan.recipe
    flow_map = initial.new_map(recipe, source.shape, source.classes)
    teacher: Field | None = None
    if recipe.teacher:
        given = inherit.given_teacher(plan, source, describe(recipe, watch))
        inherit.start_from_teacher(flow_map, given)
        teacher = Target(given.to(device)).velocity
    if recipe.from_run:
        start_map = inherit.given_start(plan, source, describe(recipe, watch))
        inherit.copy_weights(flow_map, start_map, "the run to start from")
    flow_map, sizes = flow_map.to(device), list[Size]()
    for number, stage in enumerate(plan.stages):
        watch(f"stage {stage.name}", number / len(plan.stages))
        objective = stage.build(flow_map, teacher).to(device)
        sizes.append(_try(recipe, stage, objective, source, flow_map))
        if stage.name == "teacher":
            teacher = Target(flow_map).velocity
    watch("done", 1.0)
    return sizes


def _try(recipe: Recipe, stage: Stage, objective: Objective, source: Source, flow_map: FlowMap) -> Size:
    """The numbers of a stage, whose optimiser can be built, and whose loss and gradient at a few rows are finite."""
    trained = check_step(stage.optimiser, objective)
    device = next(iter(trained.values())).device
    x1, cond = source.sample(_rows(recipe), torch.Generator(device).manual_seed(recipe.seed))
    draw = objective.draw(x1, cond=cond, generator=torch.Generator(device).manual_seed(recipe.seed))
    try:
        found = _loss_and_norm(objective, draw, getattr(torch, recipe.precision), list(trained.values()))
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{_rows(recipe)} rows of stage {stage.name} do not fit the memory of {device} ({first_line(error)}): take "
            "a smaller network, or --activation-checkpointing for images."
        ) from None
    if bad := [f"the {what} of stage {stage.name} is {x}" for what, x in found.items() if not math.isfinite(x)]:
        raise ValueError(
            f"{bad[0]} before any step, in {recipe.precision}: look at the data, or take --precision float32."
        )
    targets = [value for target in objective.moving_targets() for value in target.state_dict().values()]
    beside = _count(targets) + _count(objective.buffers())
    return Size(stage, _count(flow_map.parameters()), _count(trained.values()), beside)


def _rows(recipe: Recipe) -> int:
    """Number of rows to try: a few of those that a process computes at a time."""
    return min(recipe.optimiser.batch // (ranks() * recipe.optimiser.accumulate), 2 * MIN_ROWS)


def _loss_and_norm(
    objective: Objective, draw: RandomInputs, precision: torch.dtype, trained: list[torch.Tensor]
) -> dict[str, float]:
    """A loss and the norm of its gradient, which is not kept; in float16, whose scale makes room for it, 0."""
    with torch.autocast(draw.s.device.type, precision, enabled=precision != torch.float32):
        loss = objective.evaluate(draw).value
    grads = [grad for grad in torch.autograd.grad(loss, trained, allow_unused=True) if grad is not None]
    norm = 0.0 if precision == torch.float16 else torch.stack([grad.float().norm() for grad in grads]).norm().item()
    return {"loss": loss.item(), "gradient": norm}


def check_steps(plan: Plan, flow_map: FlowMap) -> None:
    """Refuse steps that cannot be taken; the map stays as it is.

    Raises:
        ValueError: as in `check_step`.
    """
    optimiser = plan.recipe.optimiser
    if ranks() * optimiser.accumulate == 1 and optimiser.kind != "muon":
        return
    for stage in plan.stages:
        check_step(stage.optimiser, stage.build(copy.deepcopy(flow_map), Target(flow_map).velocity))


def check_step(settings: Optimiser, objective: Objective) -> Mapping[str, torch.Tensor]:
    """Raise an error if the optimiser does not suit the weights, or the batch does not split into equal parts.

    Returns:
        The trained parameters by name.

    Raises:
        ValueError: a training step cannot be taken.
    """
    trained = {name: value for name, value in objective.named_parameters() if value.requires_grad}
    build(trained, settings)
    objective.micro_batches(settings.batch, ranks() * settings.accumulate)
    return trained


def _count(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


# words ---------------------------------------------------------------------------------------------------------------


def _plan(plan: Plan, source: Source, device: torch.device, sizes: list[Size]) -> list[str]:
    recipe, o = plan.recipe, plan.recipe.optimiser
    classes = "no classes" if source.classes is None else f"{source.classes} classes"
    kept = ", ".join(f"{decay:g}" for decay in (o.ema_decay, *o.ema_decays))
    widths = (
        f", and power functions of width {', '.join(f'{width:g}' for width in o.ema_widths)}" if o.ema_widths else ""
    )
    often = (
        f", and each at a multiple of {recipe.keep_checkpoints_every:,} steps" if recipe.keep_checkpoints_every else ""
    )
    size = max(size.checkpoint(recipe) for size in sizes)
    name = "cpu" if device.type == "cpu" else str(device)
    compiled = "compiled" if plan.compiles(device) and can_compile() else "not compiled"
    lines = {
        "recipe": f"{recipe.name}, {recipe.method}",
        "data": f"{recipe.data}, {' x '.join(map(str, source.shape))} numbers a row, {classes}",
        "stages": plan.summary(),
        "weights": f"{sizes[-1].weights:,}",
        "step": f"{o.kind}, {_parts(recipe)}",
        "averages": f"decay {kept}{widths}",
        "checkpoint": f"{_bytes(size)}, every {recipe.checkpoint_every:,} steps; "
        f"the last {recipe.keep_checkpoints} kept{often}",
        "device": f"{name}, {recipe.precision}, {compiled}",
    }
    return [f"{about:<11}{said}" for about, said in lines.items()]


def _parts(recipe: Recipe) -> str:
    batch, parts = recipe.optimiser.batch, recipe.optimiser.accumulate
    each = f", {batch // ranks():,} for each of {ranks()} processes" if ranks() > 1 else ""
    taken = f", taken in {parts:,} parts of {batch // ranks() // parts:,}" if parts > 1 else ""
    return f"{batch:,} rows{each}{taken}"


def _end(recipe: Recipe) -> str:
    return (
        f"nothing stands against this recipe: {_rows(recipe)} rows of each stage were tried, forwards and backwards; "
        "what was not is a whole batch, and compilation."
    )


def _warnings(recipe: Recipe, folder: Path | None, engine: Engine, sizes: list[Size]) -> list[str]:
    lines = []
    if recipe.compile and not can_compile():
        lines.append("warning: no C++ compiler found: training runs without torch.compile, at half the speed.")
    if engine.shard and ranks() == 1:
        lines.append("warning: --fsdp shards among processes, and there is only one: see accelerate launch.")
    need, free = _disk(recipe, sizes), shutil.disk_usage(_above(folder or Path())).free
    if need > free:
        lines.append(
            f"warning: checkpoints and averages take up to {_bytes(need)}, and {_bytes(free)} are free there: lower "
            "--keep-checkpoints, raise --keep-checkpoints-every or --store-averages-every, or choose another --out."
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


def _bytes(number: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1_000:
            return f"{number:.3g} {unit}"
        number /= 1_000  # type: ignore[assignment]
    return f"{number:,.3g} TB"
