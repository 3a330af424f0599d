"""The commands `sample` and `average`: samples of a finished run in a file, and a run with another average."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data import Units
from ..data.frames import TABLE_SUFFIXES, pandas_for, write_table
from ..data.tables import ARRAY_SUFFIXES
from ..evaluation.sampling import RunSampler
from ..reports.figures import save
from ..reports.image_grid import image_grid
from ..runs.average import Average, save_averaged
from ..system.files import write_atomically
from . import conditions
from .noise import read as read_noise
from .terminal import console, watching

MAX_STEPS = 100_000


def sample(
    folder: Path,
    out: Path,
    *,
    steps: int = 4,
    number: int | None = None,
    label: str | None = None,
    condition: Sequence[str] = (),
    condition_file: Path | None = None,
    noise: Path | None = None,
    net: str = "",
    **options: Any,
) -> None:
    """Draw samples from a run's map into a file.

    Args:
        folder: of a finished run.
        out: the file, which must not exist.
        steps: as in `RunSampler.sample`.
        number, label, condition, condition_file: as in `conditions.given`.
        noise: file of the noise to start from, as of `noise.read`.
        net: as of `RunSampler`.
        options: further ones of `RunSampler.sample`.

    Raises:
        ValueError: the options are not for this map, or out of range; or `out` exists.
        OSError: `out` cannot be written.
    """
    check_out(out, steps, number)
    run = RunSampler(folder, net)
    check_kind(out, folder, run.units)
    given, options["noise"] = _given(run, number, label, condition, condition_file, noise, options.get("seed", 0))
    for note in given.notes(run.units):
        console.print(note, soft_wrap=True, markup=False)
    with watching("sample", given.number) as watch:
        options |= {"label": given.label, "values": given.values}
        x, labels = run.sample(steps, given.number, **options, watch=watch)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, run.units, x, labels, given.values)
    console.print(f"{given.number:,} samples in {steps} steps: {out}", soft_wrap=True)
    if said := conditions.in_turn(given, run.units, run.plan.recipe):
        console.print(said, soft_wrap=True, markup=False)


def _given(
    run: RunSampler,
    number: int | None,
    label: str | None,
    condition: Sequence[str],
    condition_file: Path | None,
    noise: Path | None,
    seed: int,
) -> tuple[conditions.Given, Tensor | None]:
    """The conditions, and the noise if a file of it is given, whose own conditions hold where no others are given."""
    if noise is None:
        return conditions.given(run, number, label, condition, condition_file, seed), None
    start = read_noise(noise, run.units, number)
    if condition or condition_file is not None or not (start.values or start.labels is not None):
        return conditions.given(run, len(start.x0), label, condition, condition_file, seed), start.x0
    return conditions.Given(len(start.x0), start.values, start.labels if label is None else label), start.x0


def check_kind(out: Path, folder: Path, units: Units) -> None:
    """Refuse a picture of samples that are no images, and a table of samples that are no rows.

    Raises:
        ValueError: the file is of such a kind.
    """
    if out.suffix == ".png" and not units.pictures:
        raise ValueError(f"{folder} makes samples of shape {units.shape}, which are no images: take --out FILE.npz.")
    if out.suffix in TABLE_SUFFIXES and len(units.shape) != 1:
        raise ValueError(f"{folder} makes samples of shape {units.shape}, which are no rows: take --out FILE.npz.")


def check_out(out: Path, steps: int = 1, number: int | None = None) -> None:
    """Check the options that do not depend on the run.

    Raises:
        ValueError: a file of another kind, or that exists, or a number out of range.
    """
    if out.suffix not in (*ARRAY_SUFFIXES, *TABLE_SUFFIXES, ".png"):
        raise ValueError(
            f"--out must end in {', '.join((*ARRAY_SUFFIXES, *TABLE_SUFFIXES))} or (for images) .png, got {out}."
        )
    if out.suffix in TABLE_SUFFIXES:
        pandas_for(out.suffix)
    if out.exists():
        raise ValueError(f"{out} already exists: choose another --out, or remove it.")
    for name, value in {"number": number, "steps": steps}.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    if steps > MAX_STEPS:
        raise ValueError(f"--steps must be at most {MAX_STEPS:,}, got {steps:,}.")


def _write(
    out: Path, units: Units, x: Tensor, labels: Tensor | None, values: Mapping[str, np.ndarray] | None = None
) -> None:
    """Samples as a file, in the units, types and names of the data: an array, a table, or images as one picture."""
    if out.suffix == ".png":
        rows = max(rows for rows in range(1, math.isqrt(len(x)) + 1) if len(x) % rows == 0)
        save(image_grid(units.to_pixels(x), rows), out)
    elif out.suffix in TABLE_SUFFIXES:
        named = units.table is None or units.table.named
        write_atomically(out, write_table(out, table_columns(units, x, labels, values), named))
    else:
        arrays = {"x": units.to_file(x)}
        if units.vae:
            arrays = {"x": units.to_pixels(x).movedim(1, 3).numpy(), "latents": arrays["x"]}
        if labels is not None:
            arrays["labels"] = units.labels_in_file(labels)
        if values:
            given = [np.broadcast_to(values[one.name], len(x)) for one in units.conditions]
            arrays["condition"] = np.stack(given, axis=1)
        write_arrays(out, arrays)


def write_arrays(out: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays by name as .npz, or the first one as .npy; text is written as numpy's own."""
    buffer = io.BytesIO()
    plain = {name: array.astype(str) if array.dtype.kind == "O" else array for name, array in arrays.items()}
    if out.suffix == ".npy":
        np.save(buffer, next(iter(plain.values())))
    else:
        np.savez_compressed(buffer, **plain)  # type: ignore[arg-type]  # objects would be pickled
    write_atomically(out, buffer.getvalue())


def table_columns(
    units: Units, x: Tensor, labels: Tensor | None, values: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Samples as columns by name; classes and the columns that are conditioned on where the file has them, or last.

    Args:
        units: of the data.
        x: samples in the network's coordinates.
        labels: their classes.
        values: of the columns that they are conditioned on, by name.

    Raises:
        ValueError: the samples are images or latents.
    """
    columns, table = units.to_columns(x), units.table
    given = {} if values is None else {name: np.broadcast_to(column, len(x)) for name, column in values.items()}
    placed = [(own.place, own.name, own.written(given[own.name])) for own in units.conditions if given]
    if labels is not None:
        at = len(columns) + len(placed) if table is None or table.label_place < 0 else table.label_place
        name = "label" if table is None else table.label or "label"
        placed.append((at, name, units.labels_in_file(labels)))
    named = list(columns.items())
    for at, name, column in sorted(placed, key=lambda entry: entry[0]):  # each place is among all before it
        named.insert(at, (name, column))
    return dict(named)


def average(folder: Path, out: Path, average: Average, net: str = "") -> None:
    """Write a run like a finished one, with another of its averages for weights.

    Args:
        folder: of the finished run.
        out: folder of the new run, which must not exist.
        average: which one.
        net: as of `RunFolder.open`.

    Raises:
        ValueError: the run has no such average, or `out` exists.
        OSError: `out` cannot be written.
    """
    with watching("average") as watch:
        watch("reading stored averages", 0.0)
        save_averaged(folder, out, average, partial(console.print, soft_wrap=True), net)
    message = f"{out} is the run {folder} with this average for the weights of its {average.stage}"
    console.print(f"{message}; flowmaps evaluate {out} measures it.", soft_wrap=True)
