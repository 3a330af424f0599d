"""Previews: pictures of samples while a run is trained, from the same noise each time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ...data import Source
from ...evaluation.sampling import Inputs, Samples, map_sampler, sample, steps_in_words
from ...maps import FlowMap, VelocityForShortJumps
from ...methods import Jumps
from ...runs.plan import Plan
from ...runs.recipes import Recipe
from ...runs.run import Run
from ...runs.stages import STRIP_WIDTH
from ...samplers import Jump, MultistepConsistency
from ...storage.models import device_of
from ...system.processes import first_line, on_first, ranks
from ...system.seeds import generator
from .. import figures
from ..image_grid import image_grid
from .parts import to_pixels
from .points import digits

FOLDER = "previews"
NOISE_STREAM, DATA_STREAM = 14, 15  # streams of the seed
POINTS, DIGITS = 2_000, 20  # samples
IMAGE_ROWS, DATA_COLUMNS = 8, 4  # as many columns of samples as rows
MAP_STEPS, EULER_STEPS = (1, 4), 8


def preview(run: Run, stage: str, step: int, say: Callable[[str], None]) -> Path | None:
    """Draw samples of a run that is being trained, with its averages for weights; every process calls this.

    The preview changes no weight, and no random number that the training draws. A picture that cannot be drawn or
    written, for whatever reason, is left out, and `say` prints why.

    Args:
        run: between two of its steps.
        stage: name of the stage.
        step: steps taken in the stage.
        say: prints a line.

    Returns:
        The file, previews/STAGE-STEP.png in the folder of the run; `None` where no picture can be drawn.
    """
    if run.trainer is None or not can_preview(run.plan.recipe, run.source):
        return None
    path = run.folder.path / FOLDER / f"{stage}-{step:08d}.png"

    def draw() -> Path | None:
        try:
            figure = preview_figure(run.plan, stage, flow_map, run.source)
            total = next(one.steps for one in run.plan.stages if one.name == stage)
            figures.add_heading(figure, f"{stage}, step {step:,} of {total:,}")
            path.parent.mkdir(exist_ok=True)
            return figures.save(figure, path, dpi=96 if run.source.units.in_plane else 144)
        except Exception as error:  # of whatever kind: memory, a disk, a version
            reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            say(f"{path} cannot be made ({reason}): the training goes on without such pictures.")
            return None

    with run.trainer.averaged() as flow_map:
        return on_first(draw)


def can_preview(recipe: Recipe, source: Source) -> bool:
    """Whether samples of these data make a picture: points of the plane, digits, images."""
    return source.units.in_plane or recipe.data == "digits" or source.units.pictures


def preview_figure(plan: Plan, stage: str, flow_map: FlowMap, source: Source) -> Figure:
    """Samples of a map as a stage leaves it, beside data.

    Args:
        plan: of the run.
        stage: name of the stage.
        flow_map: the map, in evaluation mode.
        source: the data, on the device of the map.
    """
    recipe, units, device = plan.recipe, source.units, device_of(flow_map)
    number = IMAGE_ROWS**2 if units.pictures else DIGITS if recipe.data == "digits" else POINTS
    x0 = torch.randn(number, *source.shape, generator=generator(recipe.seed, NOISE_STREAM))
    noise = Inputs(x0, source.conditions(number))
    chunk, samples = _chunk(recipe, units.pictures), dict[str, Samples]()
    for title, sampled_map, scheme in samplers_of_stage(plan, stage, flow_map):
        sampler, inputs = map_sampler(sampled_map, scheme, noise, recipe.seed)
        drawn = sample(sampler, inputs, chunk=chunk, device=device)
        samples[title] = replace(drawn, x=drawn.x.nan_to_num())
    if recipe.data == "digits":
        return digits(samples)
    draws = generator(recipe.seed, DATA_STREAM, device=device)
    data = source.sample(IMAGE_ROWS * DATA_COLUMNS if units.pictures else POINTS, draws)[0].float().cpu()
    columns = {title: drawn.x for title, drawn in samples.items()}
    if not units.pictures:
        return figures.samples({title: units.to_data(x) for title, x in ({"data": data} | columns).items()})
    rows = [to_pixels(units, x).unflatten(0, (IMAGE_ROWS, -1)) for x in (*columns.values(), data)]
    blocks = dict.fromkeys(columns, IMAGE_ROWS) | {"data": DATA_COLUMNS}
    return image_grid(torch.cat(rows, 1).flatten(0, 1), IMAGE_ROWS, blocks=blocks)


def _chunk(recipe: Recipe, images: bool) -> int:
    """Rows at a time: of images no more than a training step has in this process, for which there is memory."""
    rows = recipe.optimiser.batch // (ranks() * recipe.optimiser.accumulate)
    return min(recipe.evaluation.batch, rows if images else POINTS)


def samplers_of_stage(
    plan: Plan, stage: str, flow_map: FlowMap
) -> list[tuple[str, FlowMap, Jump | MultistepConsistency]]:
    """How a stage's map is sampled while it is trained: titles, maps and samplers.

    A teacher is a velocity, whose jumps are Euler's steps; a map of a strip goes from noise to data in jumps of the
    strip's width.
    """
    sampled_map, teacher = plan.as_sampled(flow_map, flow_map)
    if stage == "teacher":
        guided = sampled_map if plan.method.copies_teacher or teacher is None else teacher
        return [(f"velocity, {EULER_STEPS} Euler steps", VelocityForShortJumps(guided, 1.0), Jump(EULER_STEPS))]
    if stage == "strip":
        steps = math.ceil(1 / STRIP_WIDTH)
        return [(steps_in_words(steps), sampled_map, Jump(steps))]
    several = (*MAP_STEPS, EULER_STEPS) if plan.method.jumps is Jumps.NONE else MAP_STEPS
    return [(steps_in_words(steps), sampled_map, plan.sampler(steps)) for steps in plan.supported_steps(several)]
