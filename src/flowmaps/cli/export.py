"""The command `export`: the map of a run and its sampler as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import Units
from ..interop.export import SUFFIXES, export
from ..interop.onnx_file import PRECISIONS
from ..runs.folder import RunFolder
from ..runs.own_networks import load_network
from ..storage import cards, models
from .terminal import console, watching

MAX_STEPS = 1_000
"""Each step is written out in the file."""


def export_run(
    folder: Path, out: Path, *, steps: int = 4, precision: str = "float32", net: str = "", raw: bool = False
) -> None:
    """Write the map of a run, or of `flowmaps.save`, with its sampler to a file; print its error.

    Args:
        folder: of a finished run, or of a map.
        out: the file, which must not exist.
        steps: jumps from noise to data.
        precision: of its weights, as of `flowmaps.export`.
        net: network of the user's own that the map is of, `module:Class`.
        raw: leave samples in the network's coordinates.

    Raises:
        ValueError: the options are not for this map, or out of range; or `out` exists.
        OSError: `out` cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out must end in {' or '.join(SUFFIXES)}, got {out}.")
    if out.exists():
        raise ValueError(f"{out} already exists: choose another --out, or remove it.")
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"--steps must be from 1 to {MAX_STEPS:,}, got {steps:,}.")
    if precision not in PRECISIONS:
        raise ValueError(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision}.")
    card = cards.read(folder)
    if "recipe" in card:
        given = _of_run(folder, steps, raw, net)
    else:
        given = {"flow_map": models.load(folder, load_network(net) if net else None), "steps": steps}
    out.parent.mkdir(parents=True, exist_ok=True)
    with watching("export") as watch:
        watch("tracing, then comparing with the map", 0.0)
        written = export(**given, path=out, precision=precision)  # type: ignore[arg-type]
    console.print(str(written), soft_wrap=True, markup=False)
    console.print(f"its samples: {written.metadata['samples']}", soft_wrap=True, markup=False)


def _of_run(folder: Path, steps: int, raw: bool, net: str) -> dict[str, Any]:
    """The map of a run as it is sampled, its sampler, the units of its data and what the file says of it."""
    run = RunFolder.open(folder, net)
    run.plan.check_steps([steps])
    flow_map, _ = run.plan.as_sampled(run.load_map(), None)
    units: Units = run.units
    about: dict[str, Any] = {"recipe": run.recipe.name, "method": run.plan.method.name}
    if len(run.recipe.guidance) == 2:
        about["guidance_weights"] = list(run.recipe.guidance)
    given = {"flow_map": flow_map, "steps": run.plan.sampler(steps), "metadata": about, "shape": units.shape}
    if units.features:
        given["cond"] = run.open_source().conditions(2)
    elif run.recipe.net or run.plan.of_other_model:  # whose conditions the network does not say
        given["cond"] = units.labels_in_turn(units.classes or 0)
    return given | ({} if raw else {"units": units})
