"""Measuring a run: the map in N jumps beside its teacher's ODE, against the exact law where there is one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import metrics
from .checkpoint import device_of
from .data import Board, Source
from .maps import FlowMap
from .plans import TO_DATA, interpolant
from .recipes import Evaluation, Recipe
from .samplers import Jump, Restart
from .shapes import Batch, Condition, Field, Time, on_each
from .solvers import SolverFlow
from .train import generator

Row = dict[str, Any]
SAMPLES, EXACT, LABELS, FRESH = 1, 2, 6, 7  # streams of the seed
FAR = 1e3  # data are of order one: a sample farther away, or not finite, is lost

Restarts = Callable[[int], Restart]
"""The sampler in N steps of a map that is trained for jumps to t = 1 alone."""


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

    `flow` is X_{0,1} of the first points of `x0`, from the exact flow or from the teacher's solved to 1e-6; `None`
    where there is neither.
    """

    x0: Tensor
    cond: Tensor | None
    data: Tensor
    flow: Tensor | None
    floor: float | None


def reference(
    source: Source, teacher: Field | None, settings: Evaluation, seed: int, device: torch.device | str = "cpu"
) -> Reference:
    """Draw the noise and the data of an evaluation, and solve the flow from the first points, if there is one."""
    number = max(settings.samples, settings.points)
    x0 = torch.randn(number, source.dim, generator=generator(seed, SAMPLES))
    _, cond = (None, None) if source.classes is None else source.sample(number, generator(seed, LABELS))
    data, _ = source.sample(settings.points, generator(seed, EXACT))
    starts, labels = x0[: settings.points], None if cond is None else cond[: settings.points]
    flow = None
    if teacher is not None or isinstance(source, Board):
        with torch.inference_mode():
            labels = labels if labels is None else labels.to(device)
            flow = true_flow(source, teacher, starts.to(device), torch.ones(len(starts), device=device), labels).cpu()
    floor = metrics.kl_floor(source.exact, settings.samples, seed) if isinstance(source, Board) else None
    return Reference(x0[: settings.samples], cond, data, flow, floor)


def true_flow(source: Source, teacher: Field | None, x0: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """X_{0,t}(x0): of the exact flow where it is known, else of the teacher's, solved to 1e-6; `(B, dim)`."""
    zero = torch.zeros_like(t)
    if isinstance(source, Board):
        x, s, r = (value.cpu().double() for value in (x0, zero, t))  # some devices have no float64
        return source.exact.flow_map(x, s, r).to(x0)
    assert teacher is not None
    return SolverFlow(teacher, rtol=1e-6, atol=1e-6)(x0, zero, t, cond)


class Start(NamedTuple):
    """What a sampler starts from: noise `(B, dim)`, labels `(B,)`, and noise to add on the way, `(rounds, B, dim)`."""

    x: Tensor
    cond: Condition
    fresh: Tensor | None = None

    def rows(self, part: slice, device: torch.device) -> Start:
        """Some of the rows, on a device."""
        cond = on_each(self.cond, lambda value: value[part].to(device))
        return Start(self.x[part].to(device), cond, None if self.fresh is None else self.fresh[:, part].to(device))


Walk = Callable[[Start], tuple[Tensor, int]]
"""A sampler: from noise to samples, and the evaluations that it took."""


def jumping(flow_map: FlowMap, steps: int) -> Walk:
    """The map in `steps` jumps."""
    jump = Jump(steps)
    return lambda start: (jump(flow_map, start.x, start.cond), steps)


def restarting(flow_map: FlowMap, restart: Restart) -> Walk:
    """The map in jumps to the data, fresh noise added after each but the last."""
    return lambda start: (restart(flow_map, start.x, start.fresh, start.cond), len(restart.grid))


def restarts(recipe: Recipe) -> Restarts | None:
    """How a recipe's map takes N steps if it is trained for jumps to t = 1 alone, from k / N; `None` for `Jump`."""
    if recipe.method not in TO_DATA:
        return None
    path = interpolant(recipe)
    return lambda steps: Restart([k / steps for k in range(steps)], path)


def fresh_noise(restart: Restart, shape: Sequence[int], seed: int) -> Tensor | None:
    """The noise that `restart` adds on the way to samples of a shape `(B, dim)`; `None` where it adds none."""
    rounds = (len(restart.grid) - 1) * (2 if restart.interpolant.noisy else 1)
    return torch.randn(rounds, *shape, generator=generator(seed, FRESH, rounds)) if rounds else None


def stepping(
    flow_map: FlowMap, steps: int, start: Start, restart: Restarts | None, seed: int
) -> tuple[Walk, Start, Row]:
    """The map in N steps, by jumps or by restarts: the walk, what it starts from, and the head of its row."""
    head: Row = {"sampler": "map", "steps": steps}
    if restart is None or steps == 1:
        return jumping(flow_map, steps), start, head
    sampler = restart(steps)
    start = start._replace(fresh=fresh_noise(sampler, start.x.shape, seed))
    return restarting(flow_map, sampler), start, head | {"restart": True}


def solving(teacher: Field, **solver: Any) -> Walk:
    """The teacher's flow by a solver of `SolverFlow`; NaN where it finds no step."""
    flow = SolverFlow(teacher, **solver)

    def walk(start: Start) -> tuple[Tensor, int]:
        zero = start.x.new_zeros(len(start.x))
        try:
            return flow(start.x, zero, 1 + zero, start.cond), flow.nfe
        except ValueError:
            return torch.full_like(start.x, math.nan), flow.nfe

    return walk


class Compiled(FlowMap):
    """A map with its network compiled, for batches of one size."""

    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.fast = torch.compile(flow_map.average_velocity, dynamic=False)

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return self.fast(x, s, t, cond)


def generate(walk: Walk, start: Start, chunk: int, device: torch.device, tick: Callable[[float], None]) -> Sampled:
    """Run a sampler over the noise, `chunk` rows at a time; evaluations are the mean over chunks, to the nearest."""
    points, spent, number = [], [], len(start.x)
    with torch.inference_mode():
        walk(start.rows(slice(chunk), device))  # warm, not timed
        begun = time.perf_counter()
        for first in range(0, number, chunk):
            x, nfe = walk(start.rows(slice(first, first + chunk), device))
            points.append(x.cpu())
            spent.append(nfe)
            tick(min(first + chunk, number) / number)
    seconds = time.perf_counter() - begun
    return Sampled(torch.cat(points), start.cond, round(sum(spent) / len(spent)), seconds)


def measure(sampled: Sampled, source: Source, ref: Reference, settings: Evaluation, *, follows: bool = True) -> Row:
    """The figures of one sampler, a part of a row of metrics.json.

    Samples that are lost are counted, and taken to lie at a distance; where all are lost there are no figures.

    Args:
        sampled: the samples.
        source: the data.
        ref: what to measure against.
        settings: how many points.
        follows: whether the samples lie where the flow ends that starts from the same noise.
    """
    row: Row = {"nfe": sampled.nfe, "samples": len(sampled.x)}
    lost = ~(sampled.x.abs() <= FAR).flatten(1).all(1)
    if bool(lost.any()):
        row["lost"] = int(lost.sum())
        if bool(lost.all()):
            return row | {"seconds": sampled.seconds}
    x, few = source.to_data(sampled.x.nan_to_num(FAR).clamp(-FAR, FAR)), settings.points
    data = source.to_data(ref.data)
    if isinstance(source, Board):
        row |= {"kl": metrics.kl(source.exact.cell_masses(50), x), "kl_floor": ref.floor}
    row["w2"] = metrics.wasserstein2(x[:few], data[: len(x[:few])])
    row["sliced_w2"] = metrics.sliced_wasserstein2(x[:few], data[: len(x[:few])], generator=generator(0))
    if not isinstance(source, Board):
        row["energy"] = metrics.energy_distance(x[:few], data)
    if follows and ref.flow is not None:
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
    restart: Restarts | None = None,
    solvers: Sequence[str] = ("dopri5", "euler"),
    compiled: bool = False,
    watch: Callable[[str, float], None] = lambda title, share: None,
) -> Iterator[tuple[str, Row, Sampled]]:
    """Rows of metrics.json one by one, each with a title and its samples.

    The teacher comes first, by adaptive dopri5 and by Euler; without one the map's own diagonal stands in for it,
    unless the map is trained for jumps to t = 1 alone and has none.

    Args:
        flow_map: the map, on any device, its teacher on the same.
        teacher: the map whose diagonal is its teacher, or `None`.
        source: the data.
        settings: what to measure.
        seed: of noise and data.
        ref: from `reference`, where several maps share it.
        restart: from `restarts`: the sampler for each number of steps; jumps unless given.
        solvers: those by which the teacher is measured.
        compiled: compile both networks, outside the seconds that are measured.
        watch: told the title of the row under way and how much of it is done, from 0 to 1.
    """
    device = device_of(flow_map)
    if teacher is None and restart is None:
        teacher = flow_map
    ref = reference(source, teacher and teacher.velocity, settings, seed, device) if ref is None else ref
    if compiled:
        flow_map, teacher = Compiled(flow_map), teacher and Compiled(teacher)
    walks = [] if teacher is None else [_solver(teacher.velocity, solver, settings) for solver in solvers]
    plain = Start(ref.x0, ref.cond)
    for title, head, walk in walks:
        sampled = generate(walk, plain, settings.chunk, device, partial(watch, title))
        yield title, head | measure(sampled, source, ref, settings), sampled
    for steps in settings.steps:
        walk, start, head = stepping(flow_map, steps, plain, restart, seed)
        title = f"{steps} step" + "s" * (steps > 1)
        sampled = generate(walk, start, settings.chunk, device, partial(watch, title))
        yield title, head | measure(sampled, source, ref, settings, follows="restart" not in head), sampled


def _solver(velocity: Field, solver: str, settings: Evaluation) -> tuple[str, Row, Walk]:
    """A teacher's solver: its title, the head of its row, its walk."""
    title, head = f"teacher, {solver}", {"sampler": "teacher", "solver": solver}
    if solver == "euler":
        walk = solving(velocity, method="euler", steps=settings.euler)
        return title, head | {"steps": settings.euler}, walk
    tolerance = settings.tolerance
    return title, head | {"tolerance": tolerance}, solving(velocity, method=solver, rtol=tolerance, atol=tolerance)
