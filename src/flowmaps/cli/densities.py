"""The command `likelihood`: log densities of data under the flow of a run, in the units of the data."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..data import Units
from ..maps import FlowMap
from ..methods import Jumps
from ..shapes import Condition
from ..system.seeds import generator
from ..uses import likelihood
from .options import Likelihood
from .rows import Opened, rows_of
from .sampling import check_kind, check_out
from .terminal import console, watching
from .uses import write_rows

STREAM = 25  # of the seed
MAX_EXACT_DIM = 64
"""Greatest dimension whose divergence is exact unless told otherwise."""


def log_densities(given: Likelihood) -> None:
    """Log densities of data in a file, and their mean on the terminal.

    Raises:
        ValueError: a map without a velocity or without jumps backwards, data of another shape, or options out of range.
        OSError: the file cannot be written.
    """
    _check_likelihood(given)
    run = Opened(given.folder, given.net)
    if given.out.suffix == ".png":
        raise ValueError(f"--out of log densities must be a file of arrays or a table, got {given.out}.")
    check_kind(given.out, given.folder, run.units)
    flow, whose = _flow(run, given)
    with watching("data") as watch:
        rows = rows_of(run, given, watch)
    x1 = rows.x
    if run.units.pixels:
        x1 = likelihood.dequantise(run.units.to_pixels(x1), generator(given.seed, STREAM))
    probes = given.probes if given.probes is not None else int(run.units.dim > MAX_EXACT_DIM)
    found, size = list[likelihood.LogLikelihood](), run.plan.recipe.evaluation.batch
    with watching("likelihood", len(x1)) as watch:
        for x, cond in rows._replace(x=x1).chunks(size, run.device, watch, whose):
            found.append(_log_likelihood(flow, x, cond, given, probes, generator(given.seed, STREAM, len(found))))
    scale = _log_scale(run.units)
    value = torch.cat([one.value.cpu() for one in found]) - (scale or 0.0)
    noise = torch.cat([one.points.cpu() for one in found])
    arrays = {"log_density": value.numpy(), "noise": noise.numpy()}
    if run.units.pixels:
        arrays["bits_per_dimension"] = likelihood.bits_per_dimension(value, x1, 1.0).numpy()
    write_rows(given.out, run.units, rows, arrays, {}, column="log_density")
    cost = round(sum(one.evaluations for one in found) / len(found))
    where = "the units of the data" if scale is not None else "the network's coordinates"
    console.print(f"{len(x1):,} log densities of {whose}, in {cost:,} evaluations each: {given.out}", soft_wrap=True)
    console.print(f"mean {_mean(value)} nats, in {where}", soft_wrap=True)
    if run.units.pixels:
        console.print(f"{_mean(torch.from_numpy(arrays['bits_per_dimension']))} bits per dimension", soft_wrap=True)


def _check_likelihood(given: Likelihood) -> None:
    check_out(given.out, given.steps)
    if given.probes is not None and (given.probes < 0 or given.by == "jumps"):
        why = "must be 0 or more" if given.by == "ode" else "is of --by ode alone: leave it out"
        raise ValueError(f"--probes {why}, got {given.probes}.")
    if not 0 < given.tolerance < 1:
        raise ValueError(f"--tolerance must be between 0 and 1, got {given.tolerance:g}.")


def _flow(run: Opened, given: Likelihood) -> tuple[FlowMap, str]:
    """Whose log density it is, and that in words."""
    method = run.plan.method
    if given.by == "jumps":
        run.plan.check_backwards(run.folder.path)
        run.plan.check_steps([given.steps])
        return run.flow_map, "the map's jumps"
    if (teacher := run.folder.load_teacher()) is not None:
        teacher = run.plan.as_sampled(run.flow_map, teacher.to(run.device))[1]
        assert teacher is not None
        return teacher, "the teacher's flow"
    if method.jumps not in (Jumps.ANY, Jumps.NONE):
        raise ValueError(
            f"the map of {run.folder.path} has no velocity to solve ({method.name} learned jumps "
            f"{method.jumps.value}): take a run with a teacher, or of a method of jumps between any two times."
        )
    return run.flow_map, "the flow of the map's own velocity"


def _log_likelihood(
    flow: FlowMap, x1: Tensor, cond: Condition, given: Likelihood, probes: int, random: torch.Generator
) -> likelihood.LogLikelihood:
    if given.by == "jumps":
        return likelihood.jumps_log_likelihood(flow, x1, cond, steps=given.steps, backwards=True)
    on_device = torch.Generator(x1.device).manual_seed(random.initial_seed())
    estimate = {"estimator": "hutchinson", "probes": probes, "generator": on_device} if probes else {}
    return likelihood.log_likelihood(flow, x1, cond, rtol=given.tolerance, atol=given.tolerance, **estimate)


def _log_scale(units: Units) -> float | None:
    """log |det| of the network's coordinates to the units of the data; `None` where these have no density."""
    if (units.table is not None and not units.table.plain) or 0 in units.scale:
        return None
    repeated = units.dim // max(len(units.scale), 1)
    found = repeated * sum(math.log(abs(scale)) for scale in units.scale)
    if units.table is not None and units.table.whitening:
        found += float(np.linalg.slogdet(np.array(units.table.whitening))[1])
    return found


def _mean(values: Tensor) -> str:
    """The mean with its standard error."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{float(values.mean()):.4g} ± {error:.2g}"
