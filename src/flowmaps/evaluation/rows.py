"""Measuring a run: the map in N jumps beside its teacher's ODE, against the exact law where there is one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import Images, Source
from ..maps import FlowMap
from ..runs.plan import TO_DATA, interpolant
from ..runs.recipes import Evaluation, Recipe
from ..samplers import Jump, MultistepConsistency
from ..shapes import Batch, Condition, Field, Time, on_each
from ..solvers import ADAPTIVE, SolverFlow
from ..storage.models import device_of
from ..training.loop import generator
from .measure import Reference, Row, Sampled, Watch, measure, quiet, reference

FRESH = 7  # stream of the seed

Restarts = Callable[[int], MultistepConsistency]
"""The sampler in N steps of a map that is trained for jumps to t = 1 alone."""


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


def restarting(flow_map: FlowMap, restart: MultistepConsistency) -> Walk:
    """The map in jumps to the data, fresh noise added after each but the last."""
    return lambda start: (restart(flow_map, start.x, start.fresh, start.cond), len(restart.grid))


def restarts(recipe: Recipe) -> Restarts | None:
    """How a recipe's map takes N steps if it is trained for jumps to t = 1 alone, from k / N; `None` for `Jump`."""
    if recipe.method not in TO_DATA:
        return None
    path = interpolant(recipe)
    return lambda steps: MultistepConsistency([k / steps for k in range(steps)], path)


def fresh_noise(restart: MultistepConsistency, shape: Sequence[int], seed: int) -> Tensor | None:
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
        walk(start.rows(slice(chunk), device))[0].cpu()  # warm, not timed, and done before the clock starts
        begun = time.perf_counter()
        for first in range(0, number, chunk):
            x, nfe = walk(start.rows(slice(first, first + chunk), device))
            points.append(x.cpu())
            spent.append(nfe)
            tick(min(first + chunk, number) / number)
    seconds = time.perf_counter() - begun
    return Sampled(torch.cat(points), start.cond, round(sum(spent) / len(spent)), seconds)


def rows(
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    settings: Evaluation,
    seed: int,
    ref: Reference | None = None,
    *,
    restart: Restarts | None = None,
    solvers: Sequence[str] | None = None,
    compiled: bool = False,
    watch: Watch = quiet,
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
        solvers: those by which the teacher is measured; dopri5 and Euler's, for images Heun's, unless given.
        compiled: compile both networks, outside the seconds that are measured.
        watch: told the title of the row under way and how much of it is done, from 0 to 1.
    """
    device = device_of(flow_map)
    if teacher is None and restart is None:
        teacher = flow_map
    if ref is None:
        ref = reference(source, teacher and teacher.velocity, settings, seed, device, watch)
    if solvers is None:
        solvers = ("dopri5", "heun2" if isinstance(source, Images) else "euler")
    if compiled:
        flow_map, teacher = Compiled(flow_map), teacher and Compiled(teacher)
    walks = [] if teacher is None else [_solver(teacher.velocity, solver, settings) for solver in solvers]
    plain = Start(ref.x0, ref.cond)

    def named(title: str) -> Watch:
        return lambda what, share: watch(f"{title}, {what}", share)

    for title, head, walk in walks:
        sampled = generate(walk, plain, settings.chunk, device, partial(watch, title))
        solved = head["solver"] == "dopri5"
        row, ref = measure(sampled, source, ref, settings, solved=solved, watch=named(title))
        yield title, head | row, sampled
    for steps in settings.steps:
        walk, start, head = stepping(flow_map, steps, plain, restart, seed)
        title = f"{steps} step" + "s" * (steps > 1)
        sampled = generate(walk, start, settings.chunk, device, partial(watch, title))
        follows = "restart" not in head
        row, ref = measure(sampled, source, ref, settings, follows=follows, watch=named(title))
        yield title, head | row, sampled


def _solver(velocity: Field, solver: str, settings: Evaluation) -> tuple[str, Row, Walk]:
    """A teacher's solver: its title, the head of its row, its walk."""
    title, head = f"teacher, {solver}", {"sampler": "teacher", "solver": solver}
    if solver not in ADAPTIVE:
        walk = solving(velocity, method=solver, steps=settings.euler)
        return title, head | {"steps": settings.euler}, walk
    tolerance = settings.tolerance
    return title, head | {"tolerance": tolerance}, solving(velocity, method=solver, rtol=tolerance, atol=tolerance)
