"""The pictures of a run, drawn and written as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ...data import Source
from ...evaluation.measure import Row
from ...evaluation.quality import quality_of
from ...evaluation.sampling import SOLVED, Samples, steps_in_words
from ...maps import FlowMap
from ...runs.plan import Plan
from ...system.progress import Watch, quiet
from ...training.log import read_log
from .. import figures
from .images import grid, interpolations, samples_nearest_four, steps_grid
from .inversion import invert
from .parts import classes_in, steps_nearest_four
from .points import columns, digits, plane

Made = dict[str, tuple[str, Figure]]
"""Caption of a figure -> the name of its file without .png, and the figure."""


class Pictures(NamedTuple):
    """The pictures of a run.

    Attributes:
        files: caption -> PNG file, in the order of display.
        numbers: entries of metrics.json beside its rows.
    """

    files: dict[str, Path]
    numbers: dict[str, Any]


def draw(
    folder: Path,
    plan: Plan,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    rows: Sequence[Row],
    samples: Mapping[str, Samples],
    *,
    watch: Watch = quiet,
) -> Pictures:
    """Draw the pictures of a run, and write them into its folder as PNG files.

    Args:
        folder: of the run.
        plan: of the run.
        flow_map, teacher: as `plan.as_sampled` gave them.
        source: the data, on any device.
        rows: of metrics.json.
        samples: title of a row -> its samples, all from the same noise and labels.
        watch: progress callback.
    """
    made, numbers = Made(), {}
    source = source.to("cpu")
    if plan.recipe.data == "digits":
        made["Digits of the class above each column, drawn in N steps from the same noise."] = "digits", digits(samples)
    elif source.units.pictures:
        made, numbers = _images(plan, flow_map, teacher, source, samples, watch)
    elif source.units.in_plane:
        made = plane(plan, flow_map, teacher, source, samples)
    if source.units.table is not None:
        caption, figure = columns(source, samples, plan.recipe.seed)
        made[caption] = "columns", figure
    metric = quality_of(rows)
    if any(metric.of(row) is not None for row in rows):
        made["Quality against network evaluations a sample."] = "quality", figures.quality(rows)
    log = read_log(folder)
    if log:
        made["Loss and unweighted residuals while training."] = "losses", figures.losses(log)
    files = {caption: figures.save(figure, folder / f"{name}.png") for caption, (name, figure) in made.items()}
    return Pictures(files, numbers)


def _images(
    plan: Plan,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    samples: Mapping[str, Samples],
    watch: Watch,
) -> tuple[Made, dict[str, Any]]:
    """The four pictures of a map of images, and the numbers of its inversion."""
    units = source.units
    title, drawn = samples_nearest_four(samples)
    classes = "" if classes_in(drawn.cond) is None else ", a row a class"
    beside = f"Samples of the map in {title}, as they came{classes}; beside them images of the data."
    solver = ", and the flow itself by a solver" if any(name.startswith(SOLVED) for name in samples) else ""
    steps = f"More and more steps{solver}: every row starts from the same noise."
    between = (
        "Between two draws of noise, x0 at the left and x0' at the right: cos(a) x0 + sin(a) x0' taken to an image in "
        f"{steps_in_words(steps_nearest_four(plan))}."
    )
    made: Made = {
        beside: ("samples", grid(source, title, drawn, plan.recipe.seed)),
        steps: ("strip", steps_grid(units, samples)),
    }
    if not units.features:
        made[between] = "interpolation", interpolations(plan, flow_map, units, watch=partial(_part, watch, 0.0, 0.25))
    if units.vae:  # an error of latents is none of pixels
        return made, {}
    inversion = invert(plan, flow_map, teacher, source, watch=partial(_part, watch, 0.25, 1.0))
    if inversion is None:
        return made, {}
    made[inversion.caption(units)] = "inversion", inversion.figure(units)
    return made, {"inversion": inversion.numbers(units)}


def _part(watch: Watch, first: float, last: float, title: str, share: float) -> None:
    """The progress callback of a part of the work, from the share `first` to the share `last`."""
    watch(title, first + (last - first) * share)
