"""What a row of an objective costs: evaluations of the map and the teacher, counted during one step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flowmaps.couplings import FlowPairs
from flowmaps.dual import Dual
from flowmaps.maps import FlowMap
from flowmaps.objectives import Objective, SplitRows
from flowmaps.shapes import Batch, Condition
from flowmaps.velocities import FromTeacher, Velocity

ROWS, DIM = 16, 2
"""The batch of noise and zeros on which a step is counted, unless one is given."""


@dataclass
class Cost:
    """What one row off the diagonal costs.

    `forward`: evaluations of the map or of its copies, without gradient; `gradient`: with a gradient; `derivative`:
    with a derivative in s, t or x, each of the value and its tangent. `teacher`: evaluations of the teacher
    without gradient; `teacher_gradient`: with a gradient to its input. `work`: the matrix products of the whole step,
    forwards and backwards, in units of those of one evaluation of the map.
    """

    forward: int = 0
    gradient: int = 0
    derivative: int = 0
    teacher: int = 0
    teacher_gradient: int = 0
    work: float = 0.0


def cost(objective: Objective, x1: Batch | None = None, cond: Condition = None) -> Cost:
    """Run one step of an objective on its rows off the diagonal, on a copy, and count.

    Derivatives are recognised with the engine "dual" alone; those of other engines count as evaluations.

    Args:
        objective: the objective.
        x1: a batch of data, `(B, *shape)`; sixteen rows of zeros in the plane unless given.
        cond: condition, one a row.

    Returns:
        The counts, and the work, a row.
    """
    copied = copy.deepcopy(objective)
    part = copied.second if isinstance(copied, SplitRows) else copied
    x1 = torch.zeros(ROWS, DIM) if x1 is None else x1
    unit = FlopCounterMode(display=False)
    with unit, torch.no_grad():
        part.flow_map.velocity(x1, torch.full_like(x1[(...,) + (0,) * (x1.ndim - 1)], 0.5), cond)
    count, flops = Cost(), FlopCounterMode(display=False)
    with _counting(part, count), flops:
        part(x1, cond=cond, progress=1.0).value.backward()
    count.work = flops.get_total_flops() / max(unit.get_total_flops(), 1)
    return count


@contextmanager
def _counting(objective: Objective, count: Cost) -> Iterator[None]:
    """Count evaluations while the context lasts."""
    teachers = {module for module in _modules(objective) if isinstance(module, FromTeacher)}
    inside = {inner for teacher in teachers for inner in teacher.modules()}
    maps = {module for module in _modules(objective) if isinstance(module, FlowMap)} - inside
    nets = {net for module in maps for net in module.children() if not isinstance(net, (FlowMap, Velocity))}

    def of_map(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if any(isinstance(value, Dual) for value in inputs):
            count.derivative += 1
        elif output.requires_grad:
            count.gradient += 1
        else:
            count.forward += 1

    def of_teacher(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if output.requires_grad:
            count.teacher_gradient += 1
        else:
            count.teacher += 1

    handles = [net.register_forward_hook(of_map) for net in nets]
    handles += [teacher.register_forward_hook(of_teacher) for teacher in teachers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _modules(objective: Objective) -> set[nn.Module]:
    """All the modules of an objective, those of its coupling too."""
    found = set(objective.modules())
    if isinstance(objective.coupling, FlowPairs):
        found |= set(objective.coupling.flow.modules())
    return found
