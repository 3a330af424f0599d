"""Data by name: built-in ones, arrays in files, images in folders and archives, data sets of the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import torch

from . import about, arrays, fit, frames, hub, roles, tables
from .labels import LABEL_NAMES
from .layouts import SPLITS
from .options import DataWarning, TableOptions
from .pixels import ImageSet, Watch, quiet, shrink
from .places import BUILT_IN, WAYS_TO_GIVE_IMAGES, find_data, layout_of
from .raw import RawTable
from .sources import Board, Images, Points, Source

ALL_ROWS = TableOptions(held_out=0.0)


def open_data(
    name: str,
    *,
    resolution: int = 0,
    flips: bool = False,
    labels: bool = True,
    split: str = "train",
    table: TableOptions = ALL_ROWS,
    watch: Watch | None = None,
) -> Source:
    """The source that a recipe's `data` names; what was left out or guessed is a `DataWarning`, and in its `notes`.

    Args:
        name: `checkerboard`, `digits`, `cifar10`, `imagenet32`; the path of an array file (`.npy`, `.npz`), of a table
            (`.csv`, `.tsv`, `.parquet`, `.feather`, `.xlsx`), of an archive or of a folder of images (docs/data.md); or
            `user/name` on the Hugging Face hub.
        resolution: crop images to the square in their middle and average it down to this many pixels a side; 0 leaves
            them as they are, rectangles too.
        flips: mirror images at random as they are drawn.
        labels: without them the data have no classes.
        split: `train`, `test`, or `validation` or `val`, which may stand for `test` and the other way round.
        table: how a table is read and learned; all its rows are used unless given.
        watch: progress callback.

    Raises:
        ValueError: no such data, or data that cannot be trained on.
    """
    watch = watch or quiet
    table.check()
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if resolution < 0:
        raise ValueError(f"--resolution must be 0 (as it is) or a number of pixels, got {resolution}.")
    if name in BUILT_IN or not name or tables.is_array_file(name):
        source = _arrays(name, resolution, flips, labels, split, table)
    else:
        source = _images(_image_set(name, resolution, split, watch), resolution, flips, labels)
    if table != ALL_ROWS and (source.units.table is None) and _asks(table):
        raise ValueError(f"{name} is no table: {_asks(table)} is for tables alone, leave it out.")
    for note in source.notes:
        warnings.warn(f"{name}: {note}.", DataWarning, stacklevel=2)
    return source


def _asks(table: TableOptions) -> str:
    """The first option of a table that is not as usual, apart from the share that is held out."""
    usual = TableOptions()
    changed = [f.name for f in dataclasses.fields(table) if getattr(table, f.name) != getattr(usual, f.name)]
    return next((f"--{name.replace('_', '-')}" for name in changed if name != "held_out"), "")


def _images(images: ImageSet, resolution: int, flips: bool, labels: bool) -> Images:
    """The source of a set of images, with or without its labels."""
    targets, names = (images.labels, images.names) if labels else (None, ())
    source = Images(images.pixels, targets, names, classes=images.classes, flips=flips)
    if targets is not None:
        source.units = dataclasses.replace(source.units, label_type=images.label_type)
    source.notes, source.about = images.notes, about.image_lines(source, resolution > 0)
    if images.labels is not None and not labels:
        source.about = (*source.about[:-1], "labels are there and not learned: pass --labels to learn them")
    return source


def _arrays(name: str, resolution: int, flips: bool, labels: bool, split: str, table: TableOptions) -> Source:
    """Built-in data, arrays and tables in files."""
    if not name:
        raise ValueError(
            f"no data given: pass --data with 'checkerboard', 'digits' or a file ending in "
            f"{', '.join(tables.SUFFIXES)}. {WAYS_TO_GIVE_IMAGES}."
        )
    if split != "train" and name != "checkerboard":
        raise ValueError(f"{name} has no split '{split}': an array is one set of points, the training data.")
    if name == "checkerboard":
        source: Source = Board()
    elif name == "digits":
        source = _digits(labels)
    elif Path(name).suffix.lower() in tables.ARRAY_SUFFIXES:
        source = _array(Path(name), resolution, flips, labels, table)
    else:
        source = _table(frames.read_table(Path(name), table.header), labels, table)
    if (resolution or flips) and not isinstance(source, Images):
        raise ValueError(f"{name} has no images: --resolution and --flips are for images alone.")
    return source


def _digits(labels: bool) -> Points:
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("the digits come with scikit-learn: pip install 'flowmaps[digits]'.") from error
    pixels, targets = load_digits(return_X_y=True)
    data = torch.as_tensor(pixels, dtype=torch.float32)
    return Points(data, torch.as_tensor(targets) if labels else None, torch.full((64,), 8.0), torch.full((64,), 8.0))


def _array(path: Path, resolution: int, flips: bool, labels: bool, table: TableOptions) -> Source:
    found = tables.read_arrays(path)
    pixels, note = (found.array, "") if arrays.holds_pixels(found.array) else arrays.float_images(found.array, path)
    if pixels is not None:
        images = arrays.image_set(found, pixels, path)
        shrunk = torch.from_numpy(shrink(images.pixels.numpy(), resolution, str(path)))
        images = images._replace(pixels=shrunk, notes=(*images.notes, *([note] if note else [])))
        return _images(images, resolution, flips, labels)
    if found.array.ndim == 4:
        source = arrays.points_of_latents(found, path, labels)
        source.notes, source.about = found.notes, about.latent_lines(source)
        return source
    return _table(tables.raw_table(found, path), labels, table)


def _table(raw: RawTable, labels: bool, table: TableOptions) -> Points:
    """The points of a table, with the classes that one of its columns or an array beside it has."""
    assigned = roles.assign(raw, table, labels)
    source = fit.points_of(assigned, table)
    source.notes = about.table_notes(assigned, source)
    source.about = about.table_lines(assigned, source)
    if source.classes is None:
        source.about = (*source.about, f"no classes: no column or array of labels ({', '.join(LABEL_NAMES)}) was found")
    return source


def _image_set(name: str, resolution: int, split: str, watch: Watch) -> ImageSet:
    path = find_data(name)
    if path is None and hub.is_hub(name):
        return hub.read_hub(name, split, resolution, watch)
    return layout_of(name, path).read(split, resolution, watch)
