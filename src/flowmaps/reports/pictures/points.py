"""Pictures of points: densities and trajectories in the plane, and digits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure

from ...data import Points, Source
from ...evaluation.measure import true_flow
from ...evaluation.sampling import SOLVED, Samples
from ...maps import FlowMap
from ...methods import Jumps
from ...runs.plan import Plan
from ...runs.recipes import Recipe
from ...shapes import on_each
from ...storage.models import device_of
from ...system.seeds import generator
from .. import figures, histograms
from ..image_grid import image_grid, ink_on_paper
from .images import samples_nearest_four
from .parts import classes_in

DATA_STREAM, START_STREAM, BACKGROUND_STREAM, COLUMNS_STREAM = 3, 4, 5, 27  # streams of the seed
MAX_ROWS = 100_000
"""Rows of data in the histograms of the columns of a table."""


def plane(
    plan: Plan, flow_map: FlowMap, teacher: FlowMap | None, source: Source, samples: Mapping[str, Samples]
) -> dict[str, tuple[str, Figure]]:
    """Samples beside the data, and trajectories unless the map learns jumps to t = 1 alone: caption -> name, figure."""
    number = min(200_000, plan.recipe.evaluation.samples)
    data, _ = source.sample(number, generator(plan.recipe.seed, DATA_STREAM))
    names = {title: title if title.startswith(SOLVED) else f"map, {title}" for title in samples}
    panels = {names[title]: source.to_data(drawn.x[: len(data)]) for title, drawn in samples.items()}
    made = {
        "Samples beside the data.": ("samples", figures.samples({"data": source.to_data(data)} | panels)),
    }
    if plan.method.jumps is not Jumps.TO_DATA:
        paths = trajectories(flow_map, teacher, source)
        made["One jump from noise to each time t, over the flow itself."] = "trajectories", paths
    return made


def columns(source: Source, samples: Mapping[str, Samples], seed: int) -> tuple[str, Figure]:
    """The columns of a table, of the data and of the map's samples: caption and figure."""
    table, data = source.units.table, source.sample(MAX_ROWS, generator(seed, COLUMNS_STREAM))[0]
    assert table is not None
    if isinstance(source, Points) and len(source.data) <= MAX_ROWS:
        data = source.data
    title, drawn = samples_nearest_four(samples)
    number = len(table.columns)
    which = f"The first {histograms.MAX_COLUMNS} of {number} columns" if number > histograms.MAX_COLUMNS else "Columns"
    caption = f"{which} of the data that are trained on, and of samples in {title}; the ends beyond 0.5 % are cut off."
    return caption, histograms.columns(table, source.to_data(data), source.to_data(drawn.x))


def trajectories(flow_map: FlowMap, teacher: FlowMap | None, source: Source) -> Figure:
    """30 paths of the map, each point one jump from the start, over the exact flow or the teacher's."""
    starts = torch.randn(30, 2, generator=generator(0, START_STREAM))
    times = torch.linspace(0, 1, 33)
    device = device_of(flow_map)
    x, t = starts.repeat(len(times), 1).to(device), times.repeat_interleave(len(starts)).to(device)
    turns = source.conditions(len(starts))
    cond = on_each(turns, lambda value: value.repeat(len(times), *(1,) * (value.ndim - 1)).to(device))
    with torch.inference_mode():
        jumps = flow_map(x, torch.zeros_like(t), t, cond)
        exact = true_flow(source, (flow_map if teacher is None else teacher).velocity, x, t, cond)
    shape = (len(times), len(starts), 2)
    name = "exact flow" if hasattr(source, "exact") else "teacher's flow"
    paths = [source.to_data(p.float().cpu()).reshape(shape) for p in (exact, jumps)]
    data, _ = source.sample(5_000, generator(0, BACKGROUND_STREAM))
    return figures.trajectories(paths[0][0], *paths, background=source.to_data(data), exact=name)


def digits(samples: Mapping[str, Samples], each: int = 2) -> Figure:
    """A row a title: `each` digits of each class, the class above its column, from the same noise in every row."""
    labels = classes_in(next(iter(samples.values())).cond)
    assert labels is not None
    found = [(labels == k).nonzero()[:each, 0] for k in range(10)]
    rows = torch.cat([of_class[n : n + 1] for n in range(each) for of_class in found])
    images = torch.cat([drawn.x[rows].reshape(-1, 8, 8) for drawn in samples.values()])
    images = ink_on_paper(images.nan_to_num(1.0).clamp(-1, 1))
    return image_grid(images, len(samples), list(samples), columns=[str(int(k)) for k in labels[rows]])


def map_samples(recipe: Recipe, source: Source, samples: Mapping[str, Samples]) -> Figure | None:
    """Samples of one map by their titles: in the plane beside each other on the data's scale, or digits.

    `None` where there are no samples, or no such picture of the data.
    """
    if not samples:
        return None
    if recipe.data == "digits":
        return digits(samples, each=1)
    if not source.units.in_plane:
        return None
    number = 200_000 if recipe.evaluation.samples >= figures.MIN_POINTS_OF_HISTOGRAM else 4_000
    data, _ = source.to("cpu").sample(number, generator(recipe.seed, DATA_STREAM))
    panels = {title: source.to_data(drawn.x[:number]) for title, drawn in samples.items()}
    return figures.samples(panels, reference=source.to_data(data))
