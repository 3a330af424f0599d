"""What is made of a finished run: samples in a file, and a run with another average for weights."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Units
from ..evaluation import rows as measuring
from ..evaluation.measure import SAMPLES
from ..maps import FlowMap
from ..reports.figures import save
from ..reports.image_figures import tiles
from ..runs import plan as plans
from ..runs.folder import read_recipe
from ..runs.recipes import Recipe
from ..shapes import Guide
from ..storage import models as checkpoint
from ..system.devices import pick_device
from ..system.files import sync_folder, write_atomically
from ..training import averages, reconstruct
from ..training.log import LOG
from ..training.loop import generator
from .terminal import bar, console

MOST, STEPS = 2**31, 100_000
"""Numbers of all samples together, 8 GB of them; and jumps."""
LOOSE = 0.05
"""Relative error of a fit of profiles that is worth a word."""
WRONG = 0.5
"""One that is no longer that average."""


def sample(
    folder: Path,
    out: Path,
    *,
    steps: int = 4,
    number: int = 10_000,
    label: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
) -> None:
    """Draw samples from a run's map into a file.

    Args:
        folder: of a finished run.
        out: the file, which must not exist.
        steps: jumps from noise to data.
        number: how many samples.
        label: their class; all in turn unless given.
        seed: of the noise.
        guidance: weight, for a map that takes one; 1 unless given.

    Raises:
        ValueError: the options are not for this map, or out of range; or `out` exists.
        OSError: it cannot be written.
    """
    _check_sampling(out, steps, number)
    card, device = checkpoint.read_card(folder), pick_device("auto")
    recipe, flow_map = read_recipe(folder), checkpoint.load(folder).to(device)
    plans.check_steps(recipe, [steps])
    flow_map, _, _ = plans.measured(recipe, flow_map, None)
    units, again = Units.from_dict(card.get("units")), measuring.restarts(recipe)
    if out.suffix == ".png" and not units.pixels:
        raise ValueError(f"{folder} makes samples of shape {units.shape}, which are no images: take --out FILE.npz.")
    most = MOST // (math.prod(units.shape) * (1 if again is None else 2 * steps))  # restarts take noise for each step
    if number > most:
        raise ValueError(
            f"--number must be at most {most:,} here, got {number:,}: take several files, each by a --seed."
        )
    labels = _labels(units, number, label)
    x0 = torch.randn(number, *units.shape, generator=generator(seed, SAMPLES))
    whole = measuring.Start(x0, labels if guidance is None else _guide(recipe, labels, guidance))
    walk, whole, _ = measuring.stepping(flow_map, steps, whole, again, seed)
    x = _walked(walk, whole, recipe.evaluation.chunk, device, f"{steps} steps")
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, units, x, labels)
    console.print(f"{number:,} samples in {steps} steps: {out}", soft_wrap=True)


def _check_sampling(out: Path, steps: int, number: int) -> None:
    """Refuse what no map can do."""
    if out.suffix not in (".npz", ".npy", ".png"):
        raise ValueError(f"--out must end in .npz, .npy or (for images) .png, got {out}.")
    if out.exists():
        raise ValueError(f"{out} already exists: choose another --out, or remove it.")
    for name, value in {"number": number, "steps": steps}.items():
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    if steps > STEPS:
        raise ValueError(f"--steps must be at most {STEPS:,}, got {steps:,}.")


def _walked(walk: measuring.Walk, start: measuring.Start, chunk: int, device: torch.device, note: str) -> Tensor:
    """The samples that a sampler makes of its starts, `chunk` rows at a time, under a bar."""
    number, points = len(start.x), []
    with bar() as progress:
        task = progress.add_task("sample", total=number, note=note)
        for first in range(0, number, chunk):
            points.append(walk(start.rows(slice(first, first + chunk), device))[0].cpu())
            progress.update(task, completed=min(first + chunk, number))
    return torch.cat(points)


def _write(out: Path, units: Units, x: Tensor, labels: Tensor | None) -> None:
    """Samples as a file: numbers in the units of the data, images as pixels `(N, H, W, C)`, or as one picture."""
    if out.suffix == ".png":
        rows = max(rows for rows in range(1, math.isqrt(len(x)) + 1) if len(x) % rows == 0)
        save(tiles(units.to_pixels(x), rows), out)
        return
    arrays = {"x": units.to_pixels(x).movedim(1, 3).numpy() if units.pixels else units.to_data(x).numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    buffer = io.BytesIO()
    np.save(buffer, arrays["x"]) if out.suffix == ".npy" else np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(out, buffer.getvalue())


def _guide(recipe: Recipe, labels: Tensor | None, weight: float) -> Guide:
    if len(recipe.guidance) != 2:
        raise ValueError(
            f"this map takes no guidance weight, got --guidance {weight:g}: train with --guidance LOW HIGH."
        )
    if not recipe.guidance[0] <= weight <= recipe.guidance[1]:
        raise ValueError(f"--guidance must be from {recipe.guidance[0]:g} to {recipe.guidance[1]:g}, got {weight:g}.")
    return Guide(labels, torch.full((len(labels),), weight))  # type: ignore[arg-type]


def _labels(units: Units, number: int, label: int | None) -> Tensor | None:
    if units.classes is None:
        if label is not None:
            raise ValueError(f"these data have no classes, got --label {label}: leave it out.")
        return None
    if label is None:
        return torch.arange(number) % units.classes
    if not 0 <= label < units.classes:
        raise ValueError(f"--label must be from 0 to {units.classes - 1}, got {label}.")
    return torch.full((number,), label)


def average(
    folder: Path,
    out: Path,
    *,
    width: float | None = None,
    decay: float | None = None,
    step: int | None = None,
    stage: str = "map",
) -> None:
    """Make a run like one that is there, with another of its averages for weights.

    Args:
        folder: of a finished run.
        out: folder of the new one.
        width: relative width of a power-function average, made of the snapshots that the run left.
        decay: of an average that the run kept; one of the two is given.
        step: the average of a width is over the steps up to this one; all of them unless given.
        stage: the stage whose map gets it; that of an earlier one is the folder of its name.

    Raises:
        ValueError: the options do not go together, the run has no such average, or `out` exists.
        OSError: `out` cannot be written.
    """
    if (width is None) == (decay is None):
        raise ValueError("average needs one of --width, such as 0.08, and --decay, such as 0.9999.")
    if step is not None and decay is not None:
        raise ValueError("--step goes with --width: the average of a decay is that of the last step, leave it out.")
    if out.exists():
        raise ValueError(f"{out} already exists: choose another --out, or remove it.")
    recipe = read_recipe(folder)
    stages = [entry.name for entry in plans.stages(recipe)]
    if stage not in stages:
        raise ValueError(f"--stage must be one of the stages of this run, {', '.join(stages)}, got {stage}.")
    checkpoint.load(folder)  # refuses a run that has not finished
    within = "" if stage == stages[-1] else stage
    flow_map, (values, about) = checkpoint.load(folder / within), _average(folder, recipe, stage, width, decay, step)
    _adopt(flow_map, values)
    _write_run(folder, out, within, flow_map, {"of": str(folder.resolve()), "stage": stage} | about)
    said = f"{out} is the run {folder} with this average for the weights of its {stage}"
    console.print(f"{said}; flowmaps evaluate {out} measures it.", soft_wrap=True)


def _average(
    folder: Path, recipe: Recipe, stage: str, width: float | None, decay: float | None, step: int | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An average by the names of its parameters, and what it is."""
    if width is None:
        assert decay is not None
        return _kept(folder, recipe, stage, decay), {"decay": decay}
    error = reconstruct.relative_error(folder, stage, width, step)
    if error > WRONG:
        raise ValueError(
            f"the snapshots do not give this average (relative error {error:.2g}): take another --width, or for --step "
            "one at which there is a snapshot; or train with more --optimiser.widths or a smaller --snapshot-every."
        )
    if error > LOOSE:
        console.print(
            f"the snapshots give this average with a relative error of {error:.2g}, which is large: take another "
            "--width or --step, or train with more --optimiser.widths or a smaller --snapshot-every.",
            soft_wrap=True,
        )
    with bar() as progress:
        progress.add_task("average", total=None, note="reading snapshots")
        values = reconstruct.reconstruct(folder, stage, width, step)
    return values, {"width": width, "step": step, "error": round(error, 6)}


def _kept(folder: Path, recipe: Recipe, stage: str, decay: float) -> dict[str, Tensor]:
    """The weights of an average of a decay, by the names of the parameters."""
    if decay == recipe.optimiser.ema:
        raise ValueError(f"the average of the decay {decay:g} is the map of {folder} itself: take that.")
    path = folder / averages.FOLDER / f"{stage}-decay-{decay:g}.safetensors"
    if not path.is_file():
        found = sorted(p.stem.rpartition("-")[2] for p in path.parent.glob(f"{stage}-decay-*.safetensors"))
        there = f"of the decays {', '.join(found)[:200]}" if found else "of no decay"
        raise ValueError(
            f"{path.parent} has averages {there} of the stage {stage}, got {decay:g}: train with --optimiser.emas "
            f"{decay:g}."
        )
    return checkpoint.load_tensors(path)[0]


@torch.no_grad()
def _adopt(flow_map: FlowMap, values: Mapping[str, Tensor]) -> None:
    """Put an average of an objective's parameters into its map, which is one of its parts."""
    prefix, own = "flow_map.", dict(flow_map.named_parameters())
    values = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    fits = all(n in own and (own[n].shape, own[n].dtype) == (v.shape, v.dtype) for n, v in values.items())
    if not values or not fits:
        raise ValueError("the averages are of another network than the map: restore them, or train again.")
    for name, value in values.items():
        own[name].copy_(value)


def _write_run(folder: Path, out: Path, within: str, flow_map: FlowMap, about: dict[str, Any]) -> None:
    """A copy of a run, complete or not there at all, with another map in it or in a folder `within` it.

    It is likely to be published: nothing is taken along but the files of a run, and nothing through a link.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as made:
        new = Path(made) / "run"
        new.mkdir()
        _copy(folder, new, (checkpoint.CARD, checkpoint.WEIGHTS, LOG))
        for name in ("teacher", "strip"):
            if os.path.lexists(folder / name):
                _refuse_other(folder / name, Path.is_dir)
                (new / name).mkdir()
                _copy(folder / name, new / name, (checkpoint.CARD, checkpoint.WEIGHTS))
        where = new / within
        path, extra = checkpoint.load_interpolant(where), checkpoint.read_card(where) | {"average": about}
        checkpoint.save(flow_map, where, interpolant=path, extra=extra, overwrite=True)
        sync_folder(new)
        new.rename(out)
        sync_folder(out.parent)


def _copy(folder: Path, new: Path, names: tuple[str, ...]) -> None:
    """Copy those files of a folder that are there."""
    for name in names:
        if os.path.lexists(folder / name):
            _refuse_other(folder / name, Path.is_file)
            write_atomically(new / name, (folder / name).read_bytes())


def _refuse_other(path: Path, kind: Callable[[Path], bool]) -> None:
    if path.is_symlink() or not kind(path):
        raise ValueError(f"{path} is a link or a pipe, which is not copied: put what belongs there in its place.")
