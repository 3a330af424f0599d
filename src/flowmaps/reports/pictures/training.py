"""Pictures while training: a few samples of the map as it is, from the same noise each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ...data import Source
from ...evaluation.measure import Sampled
from ...evaluation.rows import Start, restarts, stepping
from ...maps import FlowMap, VelocityForShortJumps
from ...runs import plan as plans
from ...runs.recipes import Recipe
from ...runs.run import Run
from ...storage.models import device_of
from ...system.processes import first_line, on_first, ranks
from ...training.loop import generator
from .. import figures
from ..image_figures import tiles
from .parts import count, pixels, walked
from .points import digits

FOLDER = "shown"
NOISE, BESIDE = 14, 15  # streams of the seed
POINTS, DIGITS, SIDE, DATA = 2_000, 20, 8, 4  # numbers of samples; rows of images, and columns of data beside them
STEPS, EULER = (1, 4), 8  # of a map, and of a velocity


def show(run: Run, stage: str, step: int, say: Callable[[str], None] | None = None) -> Path | None:
    """Draw samples of a run that is being trained, with its averages for weights; every process calls this.

    Nothing that the training draws, and none of its weights, is changed by it. A picture that cannot be drawn or
    written, for whatever reason, is told of and left out.

    Args:
        run: between two of its steps.
        stage: name of the stage.
        step: steps taken in it.
        say: where words go; the run's unless given.

    Returns:
        The file, shown/STAGE-STEP.png in the folder of the run; `None` where there is nothing to see.
    """
    if not can_show(run.recipe, run.source):
        return None
    path = run.folder.path / FOLDER / f"{stage}-{step:08d}.png"

    def draw() -> Path | None:
        try:
            figure = during(run.recipe, stage, flow_map, run.source)
            path.parent.mkdir(exist_ok=True)
            return figures.save(figure, path, dpi=96 if run.source.shape == (2,) else 144)
        except Exception as error:  # of whatever kind: memory, a disk, a version
            reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            (say or run.say)(f"{path} cannot be made ({reason}): the training goes on without such pictures.")
            return None

    with run.averaged() as flow_map:
        return on_first(draw)


def can_show(recipe: Recipe, source: Source) -> bool:
    """Whether samples of these data can be seen: points of the plane, digits, images."""
    return source.shape == (2,) or recipe.data == "digits" or source.units.pixels


def during(recipe: Recipe, stage: str, flow_map: FlowMap, source: Source) -> Figure:
    """Samples of a map as a stage leaves it, beside data.

    Args:
        recipe: of the run.
        stage: name of the stage.
        flow_map: the map, in evaluation mode.
        source: the data, on the device of the map.
    """
    units, device = source.units, device_of(flow_map)
    number = SIDE**2 if units.pixels else DIGITS if recipe.data == "digits" else POINTS
    x0 = torch.randn(number, *source.shape, generator=generator(recipe.seed, NOISE))
    start = Start(x0, None if units.classes is None else torch.arange(number) % units.classes)
    chunk, drawn = _chunk(recipe, units.pixels), dict[str, Sampled]()
    for title, sampler, steps in samplers(recipe, stage, flow_map):
        again = restarts(recipe) if stage == "map" else None
        walk, begun, _ = stepping(sampler, steps, start, again, recipe.seed)
        x = walked(walk, begun, chunk, device, lambda share: None)
        drawn[title] = Sampled(x.nan_to_num(), start.cond, steps, 0.0)
    if recipe.data == "digits":
        return digits(drawn)
    draws = generator(recipe.seed, BESIDE, device=device)
    data = source.sample(SIDE * DATA if units.pixels else POINTS, draws)[0].float().cpu()
    if not units.pixels:
        return figures.samples({"data": units.to_data(data)} | {k: units.to_data(s.x) for k, s in drawn.items()})
    rows = [pixels(units, x).unflatten(0, (SIDE, -1)) for x in (*(s.x for s in drawn.values()), data)]
    blocks = dict.fromkeys(drawn, SIDE) | {"data": DATA}
    return tiles(torch.cat(rows, 1).flatten(0, 1), SIDE, blocks=blocks)


def _chunk(recipe: Recipe, images: bool) -> int:
    """Rows at a time: of images no more than a process takes with gradients, for which there is memory."""
    rows = recipe.optimiser.batch // (ranks() * recipe.optimiser.accumulate)
    return min(recipe.evaluation.chunk, rows if images else POINTS)


def samplers(recipe: Recipe, stage: str, flow_map: FlowMap) -> list[tuple[str, FlowMap, int]]:
    """What a stage's map knows by now: titles, maps to jump with, and numbers of jumps.

    A teacher is a velocity, whose jumps are Euler's steps; a map of a strip goes from noise to data in jumps of its
    width.
    """
    own, teacher, _ = plans.measured(recipe, flow_map, flow_map)
    if stage == "teacher":
        guided = own if recipe.method in plans.HELD or teacher is None else teacher
        return [(f"velocity, {EULER} Euler steps", VelocityForShortJumps(guided, 1.0), EULER)]
    if stage == "strip":
        return [(count(plans.LEAST), own, plans.LEAST)]
    several = (*STEPS, EULER) if recipe.method in plans.DIAGONAL else STEPS
    return [(count(steps), own, steps) for steps in plans.known_steps(recipe, several)]
