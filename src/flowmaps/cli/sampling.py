"""The commands `sample` and `average`: samples of a finished run in a file, and a run with another average."""

from __future__ import annotations

import io
import math
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
from .terminal import console, watching

MAX_STEPS = 100_000


def sample(folder: Path, out: Path, *, steps: int = 4, number: int = 10_000, **options: Any) -> None:
    """Draw samples from a run's map into a file.

    Args:
        folder: of a finished run.
        out: the file, which must not exist.
        steps, number, options: as in `RunSampler.sample`.

    Raises:
        ValueError: the options are not for this map, or out of range; or `out` exists.
        OSError: `out` cannot be written.
    """
    _check(out, steps, number)
    run = RunSampler(folder)
    if out.suffix == ".png" and not run.units.pixels:
        raise ValueError(
            f"{folder} makes samples of shape {run.units.shape}, which are no images: take --out FILE.npz."
        )
    if out.suffix in TABLE_SUFFIXES and len(run.units.shape) != 1:
        raise ValueError(f"{folder} makes samples of shape {run.units.shape}, which are no rows: take --out FILE.npz.")
    with watching("sample", number) as watch:
        x, labels = run.sample(steps, number, **options, watch=watch)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, run.units, x, labels)
    console.print(f"{number:,} samples in {steps} steps: {out}", soft_wrap=True)


def _check(out: Path, steps: int, number: int) -> None:
    """Check the options that do not depend on the run."""
    if out.suffix not in (*ARRAY_SUFFIXES, *TABLE_SUFFIXES, ".png"):
        raise ValueError(
            f"--out must end in {', '.join((*ARRAY_SUFFIXES, *TABLE_SUFFIXES))} or (for images) .png, got {out}."
        )
    if out.suffix in TABLE_SUFFIXES:
        pandas_for(out.suffix)
    if out.exists():
        raise ValueError(f"{out} already exists: choose another --out, or remove it.")
    for name, value in {"number": number, "steps": steps}.items():
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    if steps > MAX_STEPS:
        raise ValueError(f"--steps must be at most {MAX_STEPS:,}, got {steps:,}.")


def _write(out: Path, units: Units, x: Tensor, labels: Tensor | None) -> None:
    """Samples as a file, in the units, types and names of the data: an array, a table, or images as one picture."""
    if out.suffix == ".png":
        rows = max(rows for rows in range(1, math.isqrt(len(x)) + 1) if len(x) % rows == 0)
        save(image_grid(units.to_pixels(x), rows), out)
    elif out.suffix in TABLE_SUFFIXES:
        named = units.table is None or units.table.named
        write_atomically(out, write_table(out, table_columns(units, x, labels), named))
    else:
        arrays, buffer = {"x": units.to_file(x)}, io.BytesIO()
        if labels is not None:
            values = units.labels_in_file(labels)
            arrays["labels"] = values.astype(str) if values.dtype.kind == "O" else values  # objects would be pickled
        np.save(buffer, arrays["x"]) if out.suffix == ".npy" else np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(out, buffer.getvalue())


def table_columns(units: Units, x: Tensor, labels: Tensor | None) -> dict[str, np.ndarray]:
    """Samples as columns by name, the classes where the file has them, or last.

    Raises:
        ValueError: the samples are images or latents.
    """
    columns, table = units.to_columns(x), units.table
    if labels is None:
        return columns
    at = len(columns) if table is None or table.label_place < 0 else table.label_place
    named, values = list(columns.items()), units.labels_in_file(labels)
    name = "label" if table is None else table.label or "label"
    return dict([*named[:at], (name, values), *named[at:]])


def average(folder: Path, out: Path, average: Average) -> None:
    """Write a run like a finished one, with another of its averages for weights.

    Args:
        folder: of the finished run.
        out: folder of the new run, which must not exist.
        average: which one.

    Raises:
        ValueError: the run has no such average, or `out` exists.
        OSError: `out` cannot be written.
    """
    with watching("average") as watch:
        watch("reading stored averages", 0.0)
        save_averaged(folder, out, average, partial(console.print, soft_wrap=True))
    message = f"{out} is the run {folder} with this average for the weights of its {average.stage}"
    console.print(f"{message}; flowmaps evaluate {out} measures it.", soft_wrap=True)
