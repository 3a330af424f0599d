"""Pictures of points: densities and trajectories in the plane, and digits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure

from ...data import Source
from ...evaluation.measure import Sampled, true_flow
from ...maps import FlowMap
from ...runs import plan as plans
from ...runs.recipes import Recipe
from ...storage.models import device_of
from ...training.loop import generator
from .. import figures

BEHIND, STARTS, PATHS = 3, 4, 5  # streams of the seed


def plane(
    recipe: Recipe, flow_map: FlowMap, teacher: FlowMap | None, source: Source, drawn: Mapping[str, Sampled]
) -> dict[str, tuple[str, Figure]]:
    """Samples beside the data, and trajectories where the map has them."""
    data, _ = source.sample(min(200_000, recipe.evaluation.samples), generator(recipe.seed, BEHIND))
    panels = {title: source.to_data(sampled.x[: len(data)]) for title, sampled in drawn.items()}
    made = {
        "Samples beside the data.": ("samples", figures.samples({"data": source.to_data(data)} | panels)),
    }
    if recipe.method not in plans.TO_DATA:
        paths = trajectories(flow_map, teacher, source)
        made["One jump from noise to each time t, over the flow itself."] = "trajectories", paths
    return made


def trajectories(flow_map: FlowMap, teacher: FlowMap | None, source: Source) -> Figure:
    """30 paths of the map, each point one jump from the start, over the exact flow or the teacher's."""
    starts = torch.randn(30, 2, generator=generator(0, STARTS))
    times = torch.linspace(0, 1, 33)
    device = device_of(flow_map)
    x, t = starts.repeat(len(times), 1).to(device), times.repeat_interleave(len(starts)).to(device)
    classes = source.classes
    cond = None if classes is None else (torch.arange(len(starts)) % classes).repeat(len(times)).to(device)
    with torch.inference_mode():
        jumps = flow_map(x, torch.zeros_like(t), t, cond)
        exact = true_flow(source, (flow_map if teacher is None else teacher).velocity, x, t, cond)
    shape = (len(times), len(starts), 2)
    name = "exact flow" if hasattr(source, "exact") else "teacher's flow"
    paths = [source.to_data(p.float().cpu()).reshape(shape) for p in (exact, jumps)]
    data, _ = source.sample(5_000, generator(0, PATHS))
    return figures.trajectories(paths[0][0], *paths, background=source.to_data(data), exact=name)


def digits(drawn: Mapping[str, Sampled]) -> Figure:
    """A row a sampler: two digits of each class, from the same noise in every row."""
    titles, labels = list(drawn), next(iter(drawn.values())).cond
    assert labels is not None
    found = [(labels == k).nonzero()[:2, 0] for k in range(10)]
    rows = torch.cat([at for k in (0, 1) for at in (which[k : k + 1] for which in found)])
    images = torch.cat([drawn[title].x[rows].reshape(-1, 8, 8) for title in titles]).clamp(-1, 1)
    return figures.image_grid(images, len(titles), titles, columns=[str(int(k)) for k in labels[rows]])
