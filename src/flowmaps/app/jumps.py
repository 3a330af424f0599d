r"""Where points go under X_{s,t}, and the trajectories along which they should.

x_s = X_{0,s}(x0),      X_{s,r}(x_s) for r from s to t, one jump each,      dx_r = b_r(x_r) dr from the same x_s
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluation.sampling import Inputs, guide
from ..maps import FlowMap
from ..methods import Jumps
from ..modules import evaluating
from ..runs.stages import STRIP_WIDTH
from ..samplers import Jump
from ..shapes import Condition, label_of, on_each
from ..solvers import SolverFlow
from ..system.seeds import generator
from ..times import grid
from .opened import Asked, OpenRun

PATHS, PATH_TIMES, IMAGE_TIMES = 48, 25, 5
"""Points whose trajectories are drawn, and times along them; of images."""
TOLERANCE = 1e-4
"""Relative and absolute, of the flow's solver."""
PATH_STREAM = 25  # of the seed


@dataclass(frozen=True)
class Jumped:
    """Points that were carried from time s to time t, on the CPU.

    Attributes:
        s, t: the times.
        noise: x0, `(N, *shape)`.
        start, end: x_s and X_{s,t}(x_s), `(N, *shape)`.
        times: from s to t, `(T,)`.
        map_paths: of the first points at these times, by one jump each, `(T, n, *shape)`.
        flow_paths: of the flow from the same points, or `None` where there is none.
        cond: conditions of the points.
        seconds: of the jump of all N points from s to t.
        unsolved: why the flow could not be solved, where it could not.
    """

    s: float
    t: float
    noise: Tensor
    start: Tensor
    end: Tensor
    times: Tensor
    map_paths: Tensor
    flow_paths: Tensor | None
    cond: Condition
    seconds: float
    unsolved: str = ""


@torch.no_grad()
def jump(run: OpenRun, asked: Asked, s: float, t: float, *, along_flow: bool = True) -> Jumped:
    """Carry points of time s to time t by one jump of the map.

    The points of time s are those to which the map takes noise; of a map of jumps to the data alone, noised data.

    Args:
        run: the run.
        asked: the noise and its conditions.
        s, t: the times, in [0, 1].
        along_flow: whether to solve the flow from the same points too.

    Raises:
        ValueError: the map has not learned such a jump; or as in `OpenRun.inputs`.
    """
    check_jump(run, s, t)
    inputs = run.on_device(run.inputs(asked))
    start, cond = _points_at(run, asked, inputs, s)
    few = on_each(cond, lambda value: value[:PATHS])
    zero = start.new_zeros(len(start))
    with evaluating(run.flow_map):
        run.flow_map(start, zero + s, zero + t, cond).cpu()  # the first call of a batch takes longer
        begun = time.perf_counter()
        end = run.flow_map(start, zero + s, zero + t, cond).cpu()
        seconds = time.perf_counter() - begun
    times = torch.linspace(s, t, IMAGE_TIMES if run.units.pictures else PATH_TIMES)
    paths = _map_paths(run.flow_map, start[:PATHS], times, few)
    flow = run.flow(asked.guidance) if along_flow and s != t else None
    solved, unsolved = None, ""
    if flow is not None:
        try:
            solved = _flow_paths(flow[0], start[:PATHS], times, label_of(few)).cpu()
        except ValueError as error:  # the map's own jumps are shown all the same
            unsolved = str(error)
    points = inputs.x0.cpu(), start.cpu(), end
    return Jumped(s, t, *points, times, paths.cpu(), solved, on_each(cond, Tensor.cpu), seconds, unsolved)


def check_jump(run: OpenRun, s: float, t: float) -> None:
    """Refuse a jump that the map has not learned.

    Raises:
        ValueError: it has not, or a time is outside [0, 1].
    """
    method = run.plan.method
    if not (0 <= s <= 1 and 0 <= t <= 1):
        raise ValueError(f"s and t must be from 0 (noise) to 1 (data), got {s:g} and {t:g}.")
    if t < s:
        run.plan.check_backwards(run.folder)
    wanted = {Jumps.TO_DATA: ("t = 1", t == 1), Jumps.FROM_BASE: ("s = 0", s == 0)}
    needed, met = wanted.get(method.jumps, ("", True))
    if not met and s != t:
        raise ValueError(f"{method.name} learned jumps {method.jumps.value}: take {needed}, got s = {s:g}, t = {t:g}.")
    if run.plan.on_strip and abs(t - s) > STRIP_WIDTH + 1e-9:
        raise ValueError(
            f"{method.name} of images learned jumps of at most {STRIP_WIDTH:g}: bring s and t nearer, got s = {s:g}, "
            f"t = {t:g}."
        )


def _points_at(run: OpenRun, asked: Asked, inputs: Inputs, s: float) -> tuple[Tensor, Condition]:
    """Points of time s, `(N, *shape)`, and their conditions, on the device of the run."""
    x0 = inputs.x0
    if s == 0:
        return x0, inputs.cond
    if run.plan.method.jumps is Jumps.TO_DATA:
        return _noised_data(run, asked, x0, s)
    steps = 1 if not run.plan.on_strip else math.ceil(s / STRIP_WIDTH)
    return Jump(grid=grid(steps, 0.0, s))(run.flow_map, x0, inputs.cond), inputs.cond


def _noised_data(run: OpenRun, asked: Asked, x0: Tensor, s: float) -> tuple[Tensor, Condition]:
    """Points of the path at time s between noise and data of the class that is asked for, and their conditions."""
    random = generator(asked.seed, PATH_STREAM)
    x1, cond = run.data_of(asked.label, len(x0), random)
    cond = cond if asked.guidance is None else guide(run.plan.recipe, cond, len(x0), asked.guidance)
    latent = torch.randn(x0.shape, generator=random).to(x0) if run.plan.interpolant.noisy else None
    x = run.plan.interpolant.point(x0, x1.to(x0), x0.new_full((len(x0),), s), latent)
    return x, on_each(cond, lambda value: value.to(run.device))


def _map_paths(flow_map: FlowMap, start: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """X_{s,r}(x_s) at each time r, `(T, n, *shape)`."""
    s = start.new_full((len(start),), float(times[0]))
    with evaluating(flow_map):
        return torch.stack([flow_map(start, s, torch.full_like(s, float(r)), cond) for r in times])


def _flow_paths(flow: FlowMap, start: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The flow from the same points, solved from each time to the next, `(T, n, *shape)`."""
    solver = SolverFlow(flow.velocity, rtol=TOLERANCE, atol=TOLERANCE)
    return Jump(grid=times.tolist()).path(solver, start, cond)
