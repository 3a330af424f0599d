"""Pictures of images: samples beside data, from the same noise in more and more steps, and between two noises."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...data import Source, Units
from ...evaluation.sampling import SOLVED, Inputs, Samples, map_sampler, sample
from ...maps import FlowMap
from ...runs.plan import Plan
from ...storage.models import device_of
from ...system.progress import Watch, quiet
from ...system.seeds import generator
from ..image_grid import image_grid
from .parts import COLUMNS, class_names, classes_in, rows_by_class, steps_nearest_four, ten_rows, to_pixels

DATA_STREAM, END_STREAM = 11, 12  # streams of the seed
DATA_COLUMNS = 3


def samples_nearest_four(samples: Mapping[str, Samples]) -> tuple[str, Samples]:
    """The map's samples in the number of steps nearest to four, and their title."""
    of_map = [pair for pair in samples.items() if not pair[0].startswith(SOLVED)]
    return min(of_map, key=lambda pair: (abs(pair[1].nfe - 4), pair[1].nfe))


def grid(source: Source, title: str, samples: Samples, seed: int) -> Figure:
    """The first 100 samples beside 30 images of the data; with classes a row a class, at most ten of them."""
    units, draws = source.units, generator(seed, DATA_STREAM)
    numbers = classes_in(samples.cond)
    if numbers is None:
        height = min(COLUMNS, len(samples.x) // COLUMNS)
        x, labels = samples.x[: height * COLUMNS], []
        data = units.to_pixels(source.sample(height * DATA_COLUMNS, draws)[0])
    else:
        classes, found = rows_by_class(numbers, lambda number: COLUMNS * max(1, 10 // number))
        rows_each = max(1, found.shape[1] // COLUMNS)
        height, x = len(classes) * rows_each, samples.x[found[:, : rows_each * COLUMNS].flatten()]
        labels = [name if k == 0 else "" for name in class_names(units, classes) for k in range(rows_each)]
        data = _data_of(source, classes, rows_each * DATA_COLUMNS, draws)
    left = to_pixels(units, x).unflatten(0, (height, -1))
    images = torch.cat([left, data.unflatten(0, (height, -1))], 1)
    blocks = {f"map, {title}": left.shape[1], "data": DATA_COLUMNS}
    return image_grid(images.flatten(0, 1), height, labels, blocks=blocks)


def steps_grid(units: Units, samples: Mapping[str, Samples]) -> Figure:
    """One row per number of steps, the teacher's solver last: ten samples, from the same noise in every row."""
    titles = {title: title for title in samples if not title.startswith(SOLVED)}
    for title in [title for title in samples if title.startswith(SOLVED)][:1]:
        titles[title] = "\n".join(f"{title}, {samples[title].nfe} evals".split(", ", 1))
    first = next(iter(samples.values()))
    rows, labels = ten_rows(len(first.x), classes_in(first.cond))
    images = torch.cat([to_pixels(units, samples[title].x[rows]) for title in titles])
    return image_grid(images, len(titles), list(titles.values()), columns=class_names(units, labels))


def interpolations(
    plan: Plan,
    flow_map: FlowMap,
    units: Units,
    *,
    rows: int = 6,
    columns: int = 10,
    watch: Watch = quiet,
) -> Figure:
    """Images between those of two noises, a row for each pair of noises and class.

    x0(a) = cos(a) x0 + sin(a) x0', a from 0 to 90 degrees: a standard normal for every a, which a straight mixture is
    not. The noise that a sampler adds on the way is the same along a row.

    Args:
        plan: of the run.
        flow_map: the map.
        units: of the data.
        rows: pairs of noises.
        columns: angles.
        watch: progress callback.
    """
    ends = torch.randn(2, rows, 1, *units.shape, generator=generator(plan.recipe.seed, END_STREAM))
    angle = torch.linspace(0, math.pi / 2, columns).reshape(-1, *(1,) * len(units.shape))
    x0 = (angle.cos() * ends[0] + angle.sin() * ends[1]).flatten(0, 1)
    labels = None if units.classes is None else torch.linspace(0, units.classes - 1, rows).round().long()
    inputs = Inputs(x0, None if labels is None else labels.repeat_interleave(columns))
    sampler, inputs = map_sampler(flow_map, plan.sampler(steps_nearest_four(plan)), inputs, plan.recipe.seed)
    if inputs.fresh_noise is not None:
        noise = inputs.fresh_noise.unflatten(1, (rows, columns))[:, :, :1]
        inputs = inputs._replace(fresh_noise=noise.expand(-1, -1, columns, *units.shape).flatten(1, 2))
    options = {"chunk": plan.recipe.evaluation.batch, "device": device_of(flow_map), "title": "interpolation"}
    x = sample(sampler, inputs, **options, watch=watch).x
    heads = [f"{round(90 * k / (columns - 1))}°" for k in range(columns)]
    names = class_names(units, labels)
    return image_grid(to_pixels(units, x), rows, names, columns=["a = " + heads[0], *heads[1:]])


def _data_of(source: Source, classes: Tensor, each: int, draws: torch.Generator) -> Tensor:
    """`each` images of each class as pixels, `(classes * each, C, H, W)`; white where too few of a rare class came."""
    found: dict[int, list[Tensor]] = {k: [] for k in classes.tolist()}
    for _ in range(40):
        x, labels = source.sample(256, draws)
        assert labels is not None
        for k, images in found.items():
            images += to_pixels(source.units, x[labels == k][: each - len(images)])
        if all(len(images) == each for images in found.values()):
            break
    blank = torch.full_like(next(images[0] for images in found.values() if images), 255)
    return torch.stack([image for images in found.values() for image in images + [blank] * (each - len(images))])
