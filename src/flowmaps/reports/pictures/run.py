"""The figures of a run as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ...data import Source
from ...evaluation.measure import Row, Sampled
from ...maps import FlowMap
from ...runs.recipes import Recipe
from ...training.log import read_log
from .. import figures
from .images import grid, interpolations, nearest, strip
from .inversion import invert
from .parts import Watch, count, few_steps, quiet
from .points import digits, plane

Made = dict[str, tuple[str, Figure]]


class Pictures(NamedTuple):
    """Caption -> PNG file, in the order of display, and what belongs in metrics.json beside its rows."""

    files: dict[str, Path]
    numbers: dict[str, Any]


def draw(
    folder: Path,
    recipe: Recipe,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    rows: Sequence[Row],
    drawn: Mapping[str, Sampled],
    *,
    watch: Watch = quiet,
) -> Pictures:
    """Draw the figures of a run into its folder.

    Args:
        folder: of the run.
        recipe, flow_map, teacher: as `plans.measured` gave them.
        source: the data, on any device.
        rows: of metrics.json.
        drawn: title of a row -> its samples, all from the same noise and labels.
        watch: told what is being drawn and how much of it is done, from 0 to 1.
    """
    made, numbers = Made(), {}
    source = source.to("cpu")
    if recipe.data == "digits":
        made["Digits of the class above each column, drawn in N steps from the same noise."] = "digits", digits(drawn)
    elif source.units.pixels:
        made, numbers = _images(recipe, flow_map, teacher, source, drawn, watch)
    elif source.shape == (2,):
        made = plane(recipe, flow_map, teacher, source, drawn)
    made["Quality against network evaluations a sample."] = "quality", figures.quality(rows)
    log = read_log(folder)
    if log:
        made["Loss and unweighted residuals while training."] = "losses", figures.losses(log)
    files = {caption: figures.save(figure, folder / f"{name}.png") for caption, (name, figure) in made.items()}
    return Pictures(files, numbers)


def _images(
    recipe: Recipe,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    drawn: Mapping[str, Sampled],
    watch: Watch,
) -> tuple[Made, dict[str, Any]]:
    """The four pictures of a map of images, and how well it inverts."""
    units, few = source.units, few_steps(recipe)
    title, sampled = nearest(drawn)
    kinds = "" if sampled.cond is None else ", a row a class"
    beside = f"Samples of the map in {title}, as they came{kinds}; beside them images of the data."
    solver = ", and the flow itself by a solver" if any(name.startswith("teacher") for name in drawn) else ""
    steps = f"More and more steps{solver}: every row starts from the same noise."
    between = (
        "Between two draws of noise, x0 at the left and x0' at the right: cos(a) x0 + sin(a) x0' taken to an image in "
        f"{count(few)}."
    )
    made: Made = {
        beside: ("samples", grid(source, title, sampled, recipe.seed)),
        steps: ("strip", strip(units, drawn)),
        between: ("interpolation", interpolations(recipe, flow_map, units, watch=partial(_share, watch, 0.0, 0.25))),
    }
    inverted = invert(recipe, flow_map, teacher, source, watch=partial(_share, watch, 0.25, 1.0))
    if inverted is None:
        return made, {}
    made[inverted.caption(units)] = "inversion", inverted.figure(units)
    return made, {"inversion": inverted.numbers(units)}


def _share(watch: Watch, first: float, last: float, title: str, share: float) -> None:
    """Tell of a part of the work, from `first` to `last`."""
    watch(title, first + (last - first) * share)
