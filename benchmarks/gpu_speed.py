"""How fast a run trains, and how fast it could.

    MFU = operations of a step x steps a second / operations a second of a large matrix product

A step's operations are those of forward and backward, the tangent's and the teacher's among them, as torch counts
those of matrix products and convolutions, a multiplication and an addition as two. The ceiling is measured, not read
off a data sheet: the median product of two matrices of 8192 x 8192 normal numbers on the same device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowmaps.data import Source
from flowmaps.maps import Target
from flowmaps.objectives import Objective
from flowmaps.runs import inherit, initial
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import Recipe
from flowmaps.storage import models as checkpoint
from flowmaps.system import memory
from flowmaps.system.seeds import generator

ROWS = 16  # of the batch whose operations are counted: those of any other are in proportion
LEAST = 0.2  # seconds that an interval of the log must have to be timed: it is written to 0.01
SIZES = {"cuda": (8192, 50), "cpu": (1024, 15)}  # of the matrices, and how many products


def fresh(recipe: Recipe, source: Source, folder: Path, device: torch.device) -> Objective:
    """The objective of a run's last stage on a new map, with the run's teacher where it has one."""
    flow_map = initial.new_map(recipe, source.shape, source.classes).to(device)
    teacher = None
    if recipe.teacher:
        given = checkpoint.load(folder / "teacher").to(device)
        inherit.start_from_teacher(flow_map, given)
        teacher = Target(given).velocity
    return resolve(recipe).stages[-1].build(flow_map, teacher).to(device)


def step_of(objective: Objective, source: Source, rows: int, recipe: Recipe, device: torch.device) -> Callable[[], Any]:
    """A step of loss and gradient on some rows, without the optimiser."""
    rng = generator(0, device=device)
    x1, cond = source.sample(rows, rng)
    draw = objective.draw(x1, cond=cond, generator=rng)
    precision = getattr(torch, recipe.precision)

    def step() -> None:
        objective.zero_grad(set_to_none=True)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            loss = objective.evaluate(draw)
        loss.value.backward()

    return step


def operations(recipe: Recipe, source: Source, folder: Path, device: torch.device) -> float:
    """Floating-point operations of a step of a run, forward and backward."""
    objective, batch = fresh(recipe, source, folder, device), recipe.optimiser.batch
    rows = min(batch, ROWS)
    step = step_of(objective, source, rows, recipe, device)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels are not all counted
        step()
    return counter.get_total_flops() * batch / rows


def ceiling(device: torch.device, precision: str) -> float:
    """Operations a second of large matrix products."""
    size, number = SIZES.get(device.type, SIZES["cpu"])
    a, b = torch.randn(2, size, size, device=device, dtype=getattr(torch, precision))
    out, times = torch.empty_like(a), []
    for _ in range(number + 5):
        _wait(device)
        begun = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(times[5:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps_a_second(log: Sequence[dict[str, Any]], first: int) -> float | None:
    """Median over the intervals between lines of a log, after step `first`; the first interval, when it compiles, is
    left out. `None` where the log has not two lines."""
    lines = [line for line in log if line["step"] > first]
    if len(lines) < 2:
        return None
    paces, last = [], lines[0]
    for line in lines[1:]:
        if (seconds := line["seconds"] - last["seconds"]) >= LEAST:
            paces.append((line["step"] - last["step"]) / seconds)
            last = line
    whole = (lines[-1]["step"] - lines[0]["step"]) / max(lines[-1]["seconds"] - lines[0]["seconds"], 0.01)
    return statistics.median(paces) if paces else whole


def begin_peak(device: torch.device) -> None:
    """From now on the peak of the memory counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device, recipe: Recipe, source: Source, folder: Path) -> int | None:
    """Bytes: on CUDA the most that was allocated since `begin_peak`, on the CPU what one more step allocates."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    objective = fresh(recipe, source, folder, device)
    return memory.peak(step_of(objective, source, recipe.optimiser.batch, recipe, device), device)
