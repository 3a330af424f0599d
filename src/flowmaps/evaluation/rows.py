"""The rows of metrics.json: the map in N steps and its teacher by ODE solvers, measured against the data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from ..data import Board, Source
from ..maps import FlowMap
from ..methods import Jumps
from ..runs.plan import Plan
from ..runs.recipes import Evaluation
from ..samplers import Jump, MultistepConsistency
from ..shapes import Field
from ..solvers import ADAPTIVE
from ..storage.models import device_of
from ..system.devices import can_compile
from ..system.progress import Watch, quiet
from .measure import EvaluationInputs, Row, evaluation_inputs, measure
from .sampling import (
    OF_MAP,
    OF_TEACHER,
    CompiledMap,
    Inputs,
    Sampler,
    Samples,
    map_sampler,
    ode_sampler,
    sample,
    steps_in_words,
)

MIN_SAMPLES_TO_COMPILE = 100_000
"""Samples of a row from which compiling the networks saves more time than it takes."""


def metrics_rows(
    plan: Plan,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    seed: int,
    inputs: EvaluationInputs | None = None,
    *,
    solvers: Sequence[str] | None = None,
    ode_rows: bool = True,
    fewer: Mapping[int, int] = MappingProxyType({}),
    watch: Watch = quiet,
) -> Iterator[tuple[str, Row, Samples]]:
    """Rows of metrics.json one by one, each with a title and its samples.

    The rows of the teacher come first. Without a teacher the map's own velocity, u at s = t, takes its place, unless
    the map is trained for jumps to t = 1 alone: then it has no velocity. For many samples the networks are compiled,
    outside the seconds that are measured.

    Args:
        plan: of the run, with the settings of its evaluation.
        flow_map, teacher: as `plan.as_sampled` gave them, on any device.
        source: the data.
        seed: of noise and data.
        inputs: from `evaluation_inputs`, where several maps share it.
        solvers: of the teacher's ODE; dopri5 and Euler's, for images dopri5 and Heun's, unless given. The samples by
            the first one are what the map's are measured against too.
        ode_rows: whether the ODE has rows. If not, the first solver takes only the points of the checkerboard that the
            map's are measured against, which may be few beside the samples; other data have no such reference then.
        fewer: samples of the map's row of a number of steps, where they are fewer than those of the settings: the first
            ones. Its KL has no floor.
        watch: progress callback: called with the title of the row in work and the share of it that is done.
    """
    settings, device = plan.evaluation(), device_of(flow_map)
    whose = OF_MAP if teacher is None else OF_TEACHER
    if teacher is None and plan.method.jumps is not Jumps.TO_DATA:
        teacher = flow_map
    if inputs is None:
        inputs = evaluation_inputs(source, teacher and teacher.velocity, settings, seed, device, watch)
    if solvers is None:
        solvers = ("dopri5", "heun2" if source.units.pictures else "euler")
    noise = Inputs(inputs.x0, inputs.cond)
    if not ode_rows:
        if teacher is not None and solvers and isinstance(source, Board):
            title, _, sampler, start = _solver(teacher.velocity, whose, solvers[0], settings, noise)
            first = start.rows(slice(settings.points), inputs.x0.device)
            of_ode = sample(sampler, first, chunk=settings.batch, device=device, title=title, watch=watch)
            _, inputs = measure(of_ode, source, inputs, settings, becomes_reference=True)
        solvers = ()
    if plan.recipe.compile and settings.samples >= MIN_SAMPLES_TO_COMPILE and can_compile():
        flow_map, teacher = CompiledMap(flow_map), teacher and CompiledMap(teacher)
    velocity = None if teacher is None else teacher.velocity
    of_teacher = () if velocity is None else (_solver(velocity, whose, name, settings, noise) for name in solvers)
    of_map = (_steps(flow_map, steps, plan.sampler(steps), noise, seed) for steps in settings.steps)
    for title, row, sampler, start in itertools.chain(of_teacher, of_map):
        options = {"chunk": settings.batch, "device": device, "title": title, "watch": watch}
        watch(title, 0.0)
        if row["sampler"] == "map" and row["steps"] in fewer:
            start = start.rows(slice(fewer[row["steps"]]), start.x0.device)
        samples = sample(sampler, start, **options, warm_up=True)
        values, inputs = measure(
            samples,
            source,
            inputs,
            settings,
            along_flow=start.fresh_noise is None,
            becomes_reference=row.get("solver") == next(iter(solvers), ""),
            watch=lambda what, share, title=title: watch(f"{title}, {what}", share),
        )
        yield title, row | values, samples


def _solver(
    velocity: Field, whose: str, solver: str, settings: Evaluation, inputs: Inputs
) -> tuple[str, Row, Sampler, Inputs]:
    """A solver of an ODE: its title, the first entries of its row, its sampler, and what it starts from."""
    row: Row = {"sampler": "teacher", "solver": solver}
    if whose == OF_MAP:
        row |= {"velocity": "own"}
    if solver in ADAPTIVE:
        row |= {"tolerance": settings.solver_tolerance}
        sampler = ode_sampler(velocity, method=solver, rtol=settings.solver_tolerance, atol=settings.solver_tolerance)
    else:
        row |= {"steps": settings.solver_steps}
        sampler = ode_sampler(velocity, method=solver, steps=settings.solver_steps)
    return f"{whose}, {solver}", row, sampler, inputs


def _steps(
    flow_map: FlowMap, steps: int, scheme: Jump | MultistepConsistency, inputs: Inputs, seed: int
) -> tuple[str, Row, Sampler, Inputs]:
    """The map in a number of steps, as in `_solver`."""
    sampler, inputs = map_sampler(flow_map, scheme, inputs, seed)
    row: Row = {"sampler": "map", "steps": steps}
    row |= {} if inputs.fresh_noise is None else {"fresh_noise": True}
    return steps_in_words(steps), row, sampler, inputs
