"""The commands `invert` and `restore`: data to noise and back, and data from observations of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import Units
from ..data.frames import TABLE_SUFFIXES, write_table
from ..evaluation.sampling import labels_of_samples, numbers_of_samples
from ..methods import Jumps
from ..reports.figures import save
from ..reports.image_grid import image_grid
from ..shapes import condition_of, label_and_numbers, per_row
from ..system.files import write_atomically
from ..system.seeds import generator
from ..uses import inversion, restoration
from . import conditions
from .degrading import Degrading, degrading
from .options import Invert, Restore
from .rows import Opened, Rows, rows_of
from .sampling import check_kind, check_out, table_columns, write_arrays
from .terminal import console, watching

STREAM = 23  # of the seed
IMAGES_SHOWN = 20
"""Images in a row of a picture."""


def invert(given: Invert) -> None:
    """Data to noise and back, or to data of another class or condition, in a file.

    Raises:
        ValueError: a map that was never trained backwards, data of another shape, or options out of range.
        OSError: the file cannot be written.
    """
    check_out(given.out, given.steps)
    run = Opened(given.folder, given.net)
    check_kind(given.out, given.folder, run.units)
    run.plan.check_backwards(run.folder.path)
    run.plan.check_steps([given.steps])
    with watching("data") as watch:
        rows = rows_of(run, given, watch)
    target = _target(run.units, rows, given.as_label, given.as_condition)
    noise, back, size = list[Tensor](), list[Tensor](), run.plan.recipe.evaluation.batch
    with watching("invert", len(rows.x)) as watch, torch.inference_mode():
        carried = Rows(rows.x, (rows.cond, target.cond))
        for x, (own, other) in carried.chunks(size, run.device, watch, "back and forth"):
            z = inversion.invert(run.flow_map, x, own, to=given.to, steps=given.steps, backwards=True)
            noise.append(z.cpu())
            back.append(inversion.generate(run.flow_map, z, other, start=given.to, steps=given.steps).cpu())
    z, x = torch.cat(noise), torch.cat(back)
    error = per_row((x - rows.x).square()).sqrt()
    arrays = {"noise": z.numpy(), "time": np.array(given.to), "error": error.numpy()}
    result = Rows(x, target.cond, target.values)
    write_rows(given.out, run.units, result, arrays, {"data": rows.x, "x": x})
    evaluations = f"{2 * given.steps} evaluations each: {given.out}"
    if given.as_label is not None or given.as_condition:
        return console.print(f"{len(x):,} rows carried over in {evaluations}", soft_wrap=True)
    share = inversion.relative_error(x, rows.x)
    console.print(f"{len(x):,} rows to time {given.to:g} and back in {evaluations}", soft_wrap=True)
    warning = "; take more --steps, or train longer" if share > inversion.MAX_ERROR else ""
    console.print(f"they come back with an error of {share:.3g} of their spread{warning}", soft_wrap=True)


def _target(units: Units, rows: Rows, label: str | None, words: Sequence[str]) -> Rows:
    """The rows with the conditions to come back with."""
    own, numbers = label_and_numbers(rows.cond)
    conditions.refuse_words(units, words, "--as-condition")
    if label is None and not words:
        return rows
    labels, values = own, rows.values
    if label is not None:
        labels = labels_of_samples(units, len(rows.x), label)
    if words:
        values = {name: np.full(len(rows.x), value) for name, value in conditions.of_words(units, words).items()}
        numbers = numbers_of_samples(units, len(rows.x), values)
    return Rows(rows.x, condition_of(labels, numbers), values)


def restore(given: Restore) -> None:
    """Data restored from observations of them, in a file.

    Raises:
        ValueError: a map without jumps to the data, an operator that does not fit, or options out of range.
        OSError: the file cannot be written.
    """
    check_out(given.out)
    run = Opened(given.folder, given.net)
    check_kind(given.out, given.folder, run.units)
    _check_restore(run, given)
    found = degrading(given.operator, run.units, given.seed)
    operator = found.operator
    with watching("data") as watch:
        rows = _observed_rows(run, given, found) if given.observed else rows_of(run, given, watch)
    y = operator(rows.x) if found.hides or not given.observed else rows.x
    random = generator(given.seed, STREAM)
    y = y + given.noise * torch.randn(y.shape, generator=random)
    longest = 1 / max(operator.norm(), 1e-12) ** 2
    start, done = longest * operator.adjoint(y), list[Tensor]()
    settings = {"step": given.strength * longest, "times": given.times, "draws": given.draws}
    with watching("restore", len(y)) as watch:
        all_rows = Rows(y, (start, rows.cond))
        for part, (first, cond) in all_rows.chunks(run.plan.recipe.evaluation.batch, run.device, watch, given.operator):
            on_device = torch.Generator(run.device).manual_seed(generator(given.seed, STREAM, len(done)).initial_seed())
            options = {**settings, "interpolant": run.plan.interpolant, "generator": on_device}
            done.append(restoration.restore(run.flow_map, part, operator, first, cond, **options).cpu())
    x = torch.cat(done)
    shown = {"start": start, "x": x} if given.observed else {"data": rows.x, "start": start, "x": x}
    write_rows(given.out, run.units, rows._replace(x=x), {}, shown)
    cost = given.times * given.draws
    console.print(f"{len(x):,} rows restored in {cost:,} evaluations each: {given.out}", soft_wrap=True)
    if not given.observed:
        console.print(_improvement(run.units, start, x, rows.x), soft_wrap=True)


def _check_restore(run: Opened, given: Restore) -> None:
    method = run.plan.method
    if method.jumps not in (Jumps.ANY, Jumps.TO_DATA) or run.plan.on_strip:
        raise ValueError(
            f"restore asks a map for jumps from any time to the data, and {method.name} learned others: take a run of "
            "a method of jumps between any two times, or to the data."
        )
    if given.observed and not given.data:
        raise ValueError("--observed is about the rows of --data: pass --data too.")
    if given.observed and given.noise:
        raise ValueError("--noise is added to observations of data, and those of --observed have theirs: leave it out.")
    if given.observed and given.operator.startswith(("keep", "radon")):
        raise ValueError(
            f"--observed is for hide, blur and downsample, got {given.operator}: fm.uses.restore takes a mask of your "
            "own, or a tomogram, in Python."
        )
    if given.times < 1 or given.draws < 1 or not given.strength > 0 or not 0 <= given.noise < math.inf:
        raise ValueError(
            f"restore takes --times and --draws of at least 1, --strength above 0 and --noise of at least 0, got "
            f"{given.times}, {given.draws}, {given.strength:g} and {given.noise:g}."
        )


def _observed_rows(run: Opened, given: Restore, found: Degrading) -> Rows:
    shape = tuple(found.operator(torch.zeros(1, *run.units.shape)).shape[1:])
    with watching("data") as watch:
        return rows_of(run, given, watch, shape=shape, hidden=found.hidden)


def _improvement(units: Units, start: Tensor, x: Tensor, data: Tensor) -> str:
    """How near the start and the restored rows are to the data, in words."""
    if units.pixels:
        before, after = (float(restoration.psnr(one, data).mean()) for one in (start, x))
        return f"PSNR {before:.1f} dB before (A^T y / |A|^2), {after:.1f} dB after"
    before, after = (float((one - data).square().mean().sqrt()) for one in (start, x))
    return (
        f"root mean square error {before:.3g} before (A^T y / |A|^2), {after:.3g} after, in the network's coordinates"
    )


def write_rows(
    out: Path,
    units: Units,
    rows: Rows,
    arrays: Mapping[str, np.ndarray],
    shown: Mapping[str, Tensor],
    column: str = "",
) -> None:
    """Rows in the units of the data in a file, with what else there is.

    Args:
        out: the file.
        units: of the data.
        rows: what was found, with its conditions.
        arrays: other arrays of a .npz.
        shown: rows of data in the network's coordinates, which a picture has above one another and a .npz by name.
        column: the one of `arrays` that a table has as a column too, and that a .npy holds.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        images = [units.to_pixels(x[:IMAGES_SHOWN]) for x in shown.values()]
        save(image_grid(torch.cat(images), len(images), list(shown)), out)
    elif out.suffix in TABLE_SUFFIXES:
        columns = table_columns(units, rows.x, rows.labels, rows.values)
        if column in columns:
            raise ValueError(f"the data have a column {column!r} of their own: take --out FILE.npz.")
        named = units.table is None or units.table.named
        added = {column: arrays[column]} if column else {}
        write_atomically(out, write_table(out, columns | added, named))
    else:
        found = {column: arrays[column]} if column else {}
        found |= {"x": units.to_file(rows.x), **{name: units.to_file(x) for name, x in shown.items()}, **arrays}
        if rows.labels is not None:
            found["labels"] = units.labels_in_file(rows.labels)
        if rows.values:
            found["condition"] = np.stack([rows.values[one.name] for one in units.conditions], axis=1)
        write_arrays(out, found)
