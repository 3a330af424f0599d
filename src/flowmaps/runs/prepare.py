"""What a run needs before its first step: its plan, device, data and map, checked before anything is written."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..data import Source, fingerprint
from ..maps import FlowMap, Target
from ..storage import models
from ..system.processes import each, in_turn, number_launched, on_first, ranks
from ..system.progress import Watch, quiet
from ..training.distributed import Placement, start
from ..training.optimisers import build
from . import inherit, initial, other_models, precision
from .folder import START, check_new, open_source
from .plan import Plan, resolve
from .recipes import Recipe

BYTES_PER_NUMBER = 4
"""Of a number of weights, moments and averages, in float32."""
CONTAINER_MEMORY_FILE = Path("/sys/fs/cgroup/memory.max")
"""The file with a container's memory limit: bytes, or `max`."""


class Prepared(NamedTuple):
    """A run before its first step.

    Attributes:
        plan: of its recipe, with the precision that --precision auto chose.
        placement: device and processes.
        source: the data, on the device.
        data_sha256: checksum of the data.
        flow_map: the map with its first weights, on the device.
        teacher: the map that --teacher names, or `None`.
        chosen: a sentence that says what --precision auto chose; empty if the recipe names a precision.
    """

    plan: Plan
    placement: Placement
    source: Source
    data_sha256: str | None
    flow_map: FlowMap
    teacher: FlowMap | None = None
    chosen: str = ""


def prepare(recipe: Recipe, folder: Path | None, *, resume: bool = False, watch: Watch = quiet) -> Prepared:
    """Check the recipe, the device, the folder and the data, and make the first map; each process calls this.

    Args:
        recipe: of the run.
        folder: its --out; not looked at if it is `None`.
        resume: whether the run has begun: then the folder is not looked at, no precision is chosen, and the first
            weights are not inherited from other runs, as those of a checkpoint follow.
        watch: progress callback.

    Raises:
        ValueError: the run cannot begin.
    """
    plan = resolve(recipe, processes=number_launched())
    placement = start(recipe.device, shard=recipe.fsdp)
    if folder is not None and not resume:
        on_first(lambda: check_new(folder))
    source = in_turn(lambda: open_source(recipe, watch=watch)).to(placement.device)
    data_sha256 = on_first(lambda: fingerprint(recipe.data, watch))
    if plan.of_other_model:
        flow_map, teacher = each(lambda: _of_other_model(plan, source, placement, folder if resume else None))
    else:
        flow_map, teacher = each(lambda: _first_map(recipe, source, placement)), None
    ready = Prepared(plan, placement, source, data_sha256, flow_map, teacher)
    if not resume and not plan.of_other_model:
        ready = ready._replace(teacher=each(lambda: inherit.start_from_others(flow_map, plan, source, data_sha256)))
    each(lambda: _check_steps(plan, flow_map))
    if recipe.precision == "auto" and not resume:
        chosen, said = on_first(lambda: precision.choose(plan, flow_map, source, watch))
        ready = ready._replace(plan=replace(plan, recipe=replace(recipe, precision=chosen)), chosen=said)
    return ready


def _first_map(recipe: Recipe, source: Source, placement: Placement) -> FlowMap:
    """A new map on the device, unless its training does not fit the memory; weights are counted before they exist."""
    shapes = source.shape, source.classes, source.units.condition_dim
    if recipe.net:  # whose constructor may not know the meta device
        flow_map = initial.new_map(recipe, *shapes, source.conditions(2))
        _check_memory(recipe, count(flow_map.parameters()), placement)
        return flow_map.to(placement.device)
    if source.units.features:
        raise ValueError(
            f"the condition of {recipe.data} is features, and the networks of flowmaps take classes: give --net "
            "module:Class, a network of your own (docs/latents.md)."
        )
    with torch.device("meta"):
        weights = count(initial.new_map(recipe, *shapes).parameters())
    _check_memory(recipe, weights, placement)
    return initial.new_map(recipe, *shapes).to(placement.device)


def _of_other_model(
    plan: Plan, source: Source, placement: Placement, folder: Path | None
) -> tuple[FlowMap, FlowMap | None]:
    """The student of a model of another library, and a map with its velocity; of a resume, the student alone.

    Args:
        plan: of the run.
        source: its data.
        placement: where its map goes.
        folder: of the run that goes on, which has a copy of the student.

    Raises:
        ValueError: there is no such model, or the data do not go with it.
    """
    if folder is not None:
        return _without_dropout(models.load(folder / START)).to(placement.device), None
    torch.manual_seed(plan.recipe.seed)
    model = other_models.open_model(plan.recipe.teacher, plan.recipe.guidance, plan.recipe.lora)
    other_models.check(model, plan.recipe, source, plan.method)
    _check_memory(plan.recipe, count(p for p in model.student.parameters() if p.requires_grad), placement)
    return _without_dropout(model.student).to(placement.device), other_models.teacher_map(model).to(placement.device)


def _without_dropout(student: FlowMap) -> FlowMap:
    """A student whose network stays as its teacher's is, in evaluation mode, whatever mode it came or was loaded in."""
    student.eval().training = True  # of the map alone: the trainer leaves the modes of such a map as they are
    return student


def _check_memory(recipe: Recipe, weights: int, placement: Placement) -> None:
    """Refuse a network whose weights, gradients, moments and averages do not fit the memory."""
    need, have = BYTES_PER_NUMBER * weights * (4 + averages(recipe)), _memory(placement.device)
    if have is not None and need > have and not placement.shard:
        raise ValueError(
            f"the network has {weights:,} weights, which with gradients, moments and averages take {in_bytes(need)}, "
            f"{placement.device} has {in_bytes(have)}: take a smaller network, or several processes with --fsdp."
        )


def averages(recipe: Recipe) -> int:
    """How many moving averages a run keeps of its weights."""
    return 1 + len(recipe.optimiser.ema_decays) + len(recipe.optimiser.ema_widths)


def count(tensors: Iterable[torch.Tensor]) -> int:
    """How many numbers tensors have together."""
    return sum(tensor.numel() for tensor in tensors)


def in_bytes(number: int) -> str:
    """A number of bytes in words, such as "1.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1_000:
            return f"{number:.3g} {unit}"
        number /= 1_000  # type: ignore[assignment]
    return f"{number:,.3g} TB"


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


def _check_steps(plan: Plan, flow_map: FlowMap) -> None:
    """Refuse a batch that a stage cannot split into equal parts, an optimiser that does not suit the weights, and turns
    of an objective that has none."""
    own = plan.recipe.optimiser
    if ranks() * own.accumulate == 1 and own.kind != "muon" and plan.recipe.off_diagonal_every == 1:
        return
    for stage in plan.stages:
        objective = stage.build(copy.deepcopy(flow_map), Target(flow_map).velocity)
        build({name: value for name, value in objective.named_parameters() if value.requires_grad}, stage.optimiser)
        objective.micro_batches(own.batch * objective.draws, ranks() * own.accumulate)
