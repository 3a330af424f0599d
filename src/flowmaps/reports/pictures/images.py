"""Pictures of images: samples beside data, from the same noise in more and more steps, and between two noises."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...data import Source, Units
from ...evaluation.measure import Sampled
from ...evaluation.rows import Start, restarts, stepping
from ...maps import FlowMap
from ...runs.recipes import Recipe
from ...storage.models import device_of
from ...training.loop import generator
from ..image_figures import tiles
from .parts import ACROSS, FEW, Watch, by_class, few_steps, names, pixels, quiet, selected, walked

EXAMPLES, ENDS = 11, 12  # streams of the seed
BESIDE = 3  # columns of data


def nearest(drawn: Mapping[str, Sampled]) -> tuple[str, Sampled]:
    """The map's samples in the number of steps nearest to four, and their title."""
    maps = [pair for pair in drawn.items() if not pair[0].startswith("teacher")]
    return min(maps, key=lambda pair: (abs(pair[1].nfe - FEW), pair[1].nfe))


def grid(source: Source, title: str, sampled: Sampled, seed: int) -> Figure:
    """100 samples as they came beside 30 images of the data; with classes a row a class, at most ten of them."""
    units, draws = source.units, generator(seed, EXAMPLES)
    if sampled.cond is None:
        height = min(ACROSS, len(sampled.x) // ACROSS)
        x, labels = sampled.x[: height * ACROSS], []
        beside = units.to_pixels(source.sample(height * BESIDE, draws)[0])
    else:
        kinds, found = by_class(sampled.cond, lambda number: ACROSS * max(1, 10 // number))
        folds = max(1, found.shape[1] // ACROSS)
        height, x = len(kinds) * folds, sampled.x[found[:, : folds * ACROSS].flatten()]
        labels = [name if k == 0 else "" for name in names(units, kinds) for k in range(folds)]
        beside = _examples(source, kinds, folds * BESIDE, draws)
    left = pixels(units, x).unflatten(0, (height, -1))
    images = torch.cat([left, beside.unflatten(0, (height, -1))], 1)
    return tiles(images.flatten(0, 1), height, labels, blocks={f"map, {title}": left.shape[1], "data": BESIDE})


def strip(units: Units, drawn: Mapping[str, Sampled]) -> Figure:
    """A row a number of steps, the teacher's solver last: ten samples from the same noise in every row."""
    solved = [title for title in drawn if title.startswith("teacher")][:1]
    shown = {title: title for title in drawn if not title.startswith("teacher")}
    shown |= {title: "\n".join(f"{title}, {drawn[title].nfe} evals".split(", ", 1)) for title in solved}
    kinds, chosen = selected(next(iter(drawn.values())))
    images = torch.cat([pixels(units, drawn[title].x[chosen]) for title in shown])
    return tiles(images, len(shown), list(shown.values()), columns=names(units, kinds))


def interpolations(
    recipe: Recipe,
    flow_map: FlowMap,
    units: Units,
    *,
    rows: int = 6,
    columns: int = 10,
    watch: Watch = quiet,
) -> Figure:
    """Images between those of two noises, a row a pair and a class.

    x0(a) = cos(a) x0 + sin(a) x0', a from 0 to 90 degrees: a standard normal for every a, which a straight mixture is
    not. Noise that a sampler adds on the way is the same along a row.
    """
    ends = torch.randn(2, rows, 1, *units.shape, generator=generator(recipe.seed, ENDS))
    angle = torch.linspace(0, math.pi / 2, columns).reshape(-1, *(1,) * len(units.shape))
    x0 = (angle.cos() * ends[0] + angle.sin() * ends[1]).flatten(0, 1)
    kinds = None if units.classes is None else torch.linspace(0, units.classes - 1, rows).round().long()
    start = Start(x0, None if kinds is None else kinds.repeat_interleave(columns))
    walk, start, _ = stepping(flow_map, few_steps(recipe), start, restarts(recipe), recipe.seed)
    if start.fresh is not None:
        fresh = start.fresh.unflatten(1, (rows, columns))[:, :, :1]
        start = start._replace(fresh=fresh.expand(-1, -1, columns, *units.shape).flatten(1, 2))
    x = walked(walk, start, recipe.evaluation.chunk, device_of(flow_map), lambda share: watch("interpolation", share))
    heads = [f"{round(90 * k / (columns - 1))}°" for k in range(columns)]
    return tiles(pixels(units, x), rows, names(units, kinds), columns=["a = " + heads[0], *heads[1:]])


def _examples(source: Source, kinds: Tensor, each: int, draws: torch.Generator) -> Tensor:
    """`each` images of each class as pixels, `(classes * each, C, H, W)`; white where a rare class has shown fewer."""
    found: dict[int, list[Tensor]] = {k: [] for k in kinds.tolist()}
    for _ in range(40):
        x, labels = source.sample(256, draws)
        assert labels is not None
        for k, kept in found.items():
            kept += pixels(source.units, x[labels == k][: each - len(kept)])
        if all(len(kept) == each for kept in found.values()):
            break
    blank = torch.full(source.shape, 255, dtype=torch.uint8)
    return torch.stack([image for kept in found.values() for image in kept + [blank] * (each - len(kept))])
