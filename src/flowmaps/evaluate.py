"""Measuring a run: the map in N jumps beside its teacher's ODE, against the exact law where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import metrics
from .checkpoint import device_of
from .data import Board, Source
from .maps import FlowMap
from .recipes import Evaluation
from .samplers import Jump
from .shapes import Batch, Condition, Field, Time
from .solvers import SolverFlow
from .train import generator

Row = dict[str, Any]
SAMPLES, EXACT, LABELS = 1, 2, 6  # streams of the seed


@dataclass(frozen=True)
class Sampled:
    """Samples in the network's coordinates, their labels, evaluations each, and the seconds they took."""

    x: Tensor
    cond: Tensor | None
    nfe: int
    seconds: float


@dataclass(frozen=True)
class Reference:
    """What samples are measured against: the same noise and labels for all, fresh data, and the flow's own answer.

    `flow` is X_{0,1} of the first points of `x0`, from the exact flow or from the teacher's solved to 1e-6.
    """

    x0: Tensor
    cond: Tensor | None
    data: Tensor
    flow: Tensor
    floor: float | None


def reference(
    source: Source, teacher: Field, settings: Evaluation, seed: int, device: torch.device | str = "cpu"
) -> Reference:
    """Draw the noise and the data of an evaluation, and solve the flow from the first points."""
    number = max(settings.samples, settings.points)
    x0 = torch.randn(number, source.dim, generator=generator(seed, SAMPLES))
    _, cond = (None, None) if source.classes is None else source.sample(number, generator(seed, LABELS))
    data, _ = source.sample(settings.points, generator(seed, EXACT))
    starts, labels = x0[: settings.points], None if cond is None else cond[: settings.points]
    with torch.inference_mode():
        labels = labels if labels is None else labels.to(device)
        flow = true_flow(source, teacher, starts.to(device), torch.ones(len(starts), device=device), labels).cpu()
    floor = metrics.kl_floor(source.exact, settings.samples, seed) if isinstance(source, Board) else None
    return Reference(x0[: settings.samples], cond, data, flow, floor)


def true_flow(source: Source, teacher: Field, x0: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """X_{0,t}(x0): of the exact flow where it is known, else of the teacher's, solved to 1e-6; `(B, dim)`."""
    zero = torch.zeros_like(t)
    if isinstance(source, Board):
        x, s, r = (value.cpu().double() for value in (x0, zero, t))  # some devices have no float64
        return source.exact.flow_map(x, s, r).to(x0)
    return SolverFlow(teacher, rtol=1e-6, atol=1e-6)(x0, zero, t, cond)


Walk = Callable[[Tensor, Tensor | None], tuple[Tensor, int]]
"""A sampler: from noise and labels to samples, and the evaluations that it took."""


def jumping(flow_map: FlowMap, steps: int) -> Walk:
    """The map in `steps` jumps."""
    jump = Jump(steps)
    return lambda x, cond: (jump(flow_map, x, cond), steps)


def solving(teacher: Field, **solver: Any) -> Walk:
    """The teacher's flow by a solver of `SolverFlow`."""
    flow = SolverFlow(teacher, **solver)

    def walk(x: Tensor, cond: Tensor | None) -> tuple[Tensor, int]:
        zero = x.new_zeros(len(x))
        return flow(x, zero, 1 + zero, cond), flow.nfe

    return walk


class Compiled(FlowMap):
    """A map with its network compiled, for batches of one size."""

    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.fast = torch.compile(flow_map.average_velocity, dynamic=False)

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return self.fast(x, s, t, cond)


def generate(walk: Walk, ref: Reference, chunk: int, device: torch.device, tick: Callable[[float], None]) -> Sampled:
    """Run a sampler over the noise, `chunk` rows at a time; evaluations are the mean over chunks, to the nearest."""
    points, spent = [], []
    with torch.inference_mode():
        walk(ref.x0[:chunk].to(device), None if ref.cond is None else ref.cond[:chunk].to(device))  # warm, not timed
        begun = time.perf_counter()
        for start in range(0, len(ref.x0), chunk):
            part = slice(start, start + chunk)
            x, nfe = walk(ref.x0[part].to(device), None if ref.cond is None else ref.cond[part].to(device))
            points.append(x.cpu())
            spent.append(nfe)
            tick(min(start + chunk, len(ref.x0)) / len(ref.x0))
    seconds = time.perf_counter() - begun
    return Sampled(torch.cat(points), ref.cond, round(sum(spent) / len(spent)), seconds)


def measure(sampled: Sampled, source: Source, ref: Reference, settings: Evaluation) -> Row:
    """The figures of one sampler, a part of a row of metrics.json."""
    x, few = source.to_data(sampled.x), settings.points
    data = source.to_data(ref.data)
    row: Row = {"nfe": sampled.nfe, "samples": len(x)}
    if isinstance(source, Board):
        row |= {"kl": metrics.kl(source.exact.cell_masses(50), x), "kl_floor": ref.floor}
    row["w2"] = metrics.wasserstein2(x[:few], data[: len(x[:few])])
    row["sliced_w2"] = metrics.sliced_wasserstein2(x[:few], data[: len(x[:few])], generator=generator(0))
    if not isinstance(source, Board):
        row["energy"] = metrics.energy_distance(x[:few], data)
    row["map_error"] = metrics.map_error(x[:few], source.to_data(ref.flow)[: len(x)])
    return row | {"seconds": sampled.seconds}


def rows(
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    settings: Evaluation,
    seed: int,
    ref: Reference | None = None,
    *,
    euler: bool = True,
    compiled: bool = False,
    watch: Callable[[str, float], None] = lambda title, share: None,
) -> Iterator[tuple[str, Row, Sampled]]:
    """Rows of metrics.json one by one, each with a title and its samples.

    The teacher comes first, by adaptive dopri5 and by Euler; without one the map's own diagonal stands in for it.

    Args:
        flow_map: the map, on any device, its teacher on the same.
        teacher: the map whose diagonal is its teacher, or `None`.
        source: the data.
        settings: what to measure.
        seed: of noise and data.
        ref: from `reference`, where several maps share it.
        euler: measure the teacher by Euler's method too.
        compiled: compile both networks, outside the seconds that are measured.
        watch: told the title of the row under way and how much of it is done, from 0 to 1.
    """
    teacher, device = flow_map if teacher is None else teacher, device_of(flow_map)
    ref = reference(source, teacher.velocity, settings, seed, device) if ref is None else ref
    if compiled:
        flow_map, teacher = Compiled(flow_map), Compiled(teacher)
    velocity = teacher.velocity
    accurate: Row = {"sampler": "teacher", "solver": "dopri5", "tolerance": settings.tolerance}
    precise = solving(velocity, rtol=settings.tolerance, atol=settings.tolerance)
    walks: list[tuple[str, Row, Walk]] = [("teacher, dopri5", accurate, precise)]
    if euler:
        head: Row = {"sampler": "teacher", "solver": "euler", "steps": settings.euler}
        walks.append(("teacher, euler", head, solving(velocity, method="euler", steps=settings.euler)))
    for steps in settings.steps:
        title = f"{steps} step" + "s" * (steps > 1)
        walks.append((title, {"sampler": "map", "steps": steps}, jumping(flow_map, steps)))
    for title, head, walk in walks:
        sampled = generate(walk, ref, settings.chunk, device, partial(watch, title))
        yield title, head | measure(sampled, source, ref, settings), sampled
