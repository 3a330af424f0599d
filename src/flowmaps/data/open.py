"""Data by name: built-in ones, arrays in files, images in folders and archives, data sets of the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from . import about, arrays, fit, frames, hub, roles, tables
from .labels import LABEL_NAMES
from .latents import file_of, open_latents
from .layouts import SPLITS, NoSplitError
from .options import DataWarning, TableOptions
from .pixels import ImageSet, Resolution, Watch, quiet, shrink, sides
from .places import BUILT_IN, WAYS_TO_GIVE_IMAGES, find_data, layout_of
from .raw import RawTable
from .sources import Board, Images, Points, Source

ALL_ROWS = TableOptions(held_out=0.0)
TEST = "test"
"""In the place of a share that is held out: the images of the data's own test split."""
A_SHARE = "pass a share to hold out of the training images, such as --held-out 0.1"


def open_data(
    name: str,
    *,
    resolution: Resolution = 0,
    flips: bool = False,
    labels: bool = True,
    split: str = "train",
    held_out: float | str = 0.0,
    table: TableOptions = ALL_ROWS,
    watch: Watch | None = None,
) -> Source:
    """The source that a recipe's `data` names; what was left out or guessed is a `DataWarning`, and in its `notes`.

    Args:
        name: `checkerboard`, `digits`, `cifar10`, `imagenet32`; the path of an array file (`.npy`, `.npz`), of a table
            (`.csv`, `.tsv`, `.parquet`, `.feather`, `.xlsx`), of an archive or of a folder of images (docs/data.md); or
            `user/name` on the Hugging Face hub.
        resolution: crop images in their middle and average them down: to a square of so many pixels a side, or to
            `"HxW"` or `(H, W)`, height and width; 0 leaves them as they are, rectangles too.
        flips: mirror images at random as they are drawn.
        labels: without them the data have no classes.
        split: `train`, `test`, or `validation` or `val`, which may stand for `test` and the other way round.
        held_out: share of images or latents that is left out, for samples to be measured against, at least ten; or
            `"test"` for the images of the data's own test split. Of a table it is `table.held_out`.
        table: how a table is read and learned; all its rows are used unless given.
        watch: progress callback.

    Raises:
        ValueError: no such data, or data that cannot be trained on.
    """
    watch = watch or quiet
    table.check()
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    sides(resolution)  # which says what it may be
    _check_held_out(held_out, split)
    options = ImageReading(resolution, flips, labels, held_out)
    if file_of(name) is not None:
        source: Source = _latents(name, options, split)
    elif name in BUILT_IN or not name or tables.is_array_file(name):
        source = _arrays(name, options, split, table)
    else:
        test = _test_set(name, resolution, watch) if held_out == TEST else None
        source = _images(_image_set(name, resolution, split, watch), options, test)
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


class ImageReading(NamedTuple):
    """How images are read and learned, as in `open_data`."""

    resolution: Resolution
    flips: bool
    labels: bool
    held_out: float | str


def _check_held_out(held_out: float | str, split: str) -> None:
    number = isinstance(held_out, (int, float)) and not isinstance(held_out, bool) and 0 <= held_out < 1
    if not number and held_out != TEST:
        raise ValueError(
            f"--held-out must be a share from 0 to below 1, or of images 'test' for the data's own test split, got "
            f"{held_out!r:.40}."
        )
    if held_out and split != "train":
        raise ValueError(f"images are held out of the training split, got held_out={held_out!r} of '{split}'.")


def _latents(name: str, options: ImageReading, split: str) -> Source:
    if split != "train" or options.resolution or options.flips or options.held_out:
        raise ValueError(
            f"the latents in {name} are one set, the training data, of the size and side they were encoded at: leave "
            "out split, --resolution, flips and --held-out."
        )
    return open_latents(name, options.labels)


def _images(images: ImageSet, options: ImageReading, test: ImageSet | None = None) -> Images:
    """The source of a set of images, with or without its labels; with images held out of it, or those of `test`."""
    train, held = (images, test) if test is not None or not options.held_out else _split(images, options.held_out)
    targets, names = (train.labels, train.names) if options.labels else (None, ())
    classes = images.classes or (0 if images.labels is None else int(images.labels.max()) + 1)
    source = Images(train.pixels, targets, names, classes=classes, flips=options.flips)
    if targets is not None:
        source.units = dataclasses.replace(source.units, label_type=images.label_type)
    if held is not None:
        if held.pixels.shape[1:] != source.shape:
            got, wanted = (" x ".join(map(str, shape)) for shape in (held.pixels.shape[1:], source.shape))
            raise ValueError(
                f"the images of the test split are of {got}, those of the training split of {wanted}: pass "
                "--resolution, or a share for --held-out."
            )
        source.held_out, source.held_out_labels = held.pixels, held.labels if options.labels else None
        source.held_out_of = "" if test is None else "the data's own test split"
    source.notes = (*images.notes, *about.held_out_notes(source), *(() if held is None else about.absent_notes(source)))
    source.about = about.image_lines(source, sides(options.resolution) is not None)
    if images.labels is not None and not options.labels:
        source.about = (*source.about[:-1], "labels are there and not learned: pass --labels to learn them")
    return source


def _split(images: ImageSet, share: float | str) -> tuple[ImageSet, ImageSet]:
    """The images that are trained on, and a share that is held out."""
    assert not isinstance(share, str)
    held = fit.held_out_rows(len(images.pixels), share)
    if not len(held):
        raise ValueError(
            f"--held-out {share:g} of {len(images.pixels)} images is fewer than {fit.LEAST_HELD_OUT}: hold out more, "
            "or none, --held-out 0."
        )
    train = np.setdiff1d(np.arange(len(images.pixels)), held)

    def some(rows: np.ndarray) -> ImageSet:
        chosen = torch.from_numpy(rows)
        labels = None if images.labels is None else images.labels[chosen]
        return images._replace(pixels=images.pixels[chosen], labels=labels)

    return some(train), some(held)


def _arrays(name: str, options: ImageReading, split: str, table: TableOptions) -> Source:
    """Built-in data, arrays and tables in files."""
    if not name:
        raise ValueError(
            f"no data given: pass --data with 'checkerboard', 'digits' or a file ending in "
            f"{', '.join(tables.SUFFIXES)}. {WAYS_TO_GIVE_IMAGES}."
        )
    if (split != "train" or options.held_out == TEST) and name != "checkerboard":
        held = options.held_out == TEST
        why = A_SHARE if held else "an array is one set of points, the training data"
        raise ValueError(f"{name} has no split '{TEST if held else split}': {why}.")
    if name == "checkerboard":
        source: Source = Board()
    elif name == "digits":
        source = _digits(options.labels)
    elif Path(name).suffix.lower() in tables.ARRAY_SUFFIXES:
        source = _array(Path(name), options, table)
    else:
        source = _table(frames.read_table(Path(name), table.header), options.labels, table)
    if (sides(options.resolution) or options.flips) and not isinstance(source, Images):
        raise ValueError(f"{name} has no images: --resolution and --flips are for images alone.")
    if options.held_out and (source.units.table is not None or name in BUILT_IN):
        raise ValueError(f"{name} is no set of images or latents: pass held_out=0, and of a table table.held_out.")
    return source


def _digits(labels: bool) -> Points:
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("the digits come with scikit-learn: pip install 'flowmaps[digits]'.") from error
    pixels, targets = load_digits(return_X_y=True)
    data = torch.as_tensor(pixels, dtype=torch.float32)
    return Points(data, torch.as_tensor(targets) if labels else None, torch.full((64,), 8.0), torch.full((64,), 8.0))


def _array(path: Path, options: ImageReading, table: TableOptions) -> Source:
    found = tables.read_arrays(path)
    pixels, note = (found.array, "") if arrays.holds_pixels(found.array) else arrays.float_images(found.array, path)
    if pixels is not None:
        images = arrays.image_set(found, pixels, path)
        shrunk = torch.from_numpy(shrink(images.pixels.numpy(), options.resolution, str(path)))
        images = images._replace(pixels=shrunk, notes=(*images.notes, *([note] if note else [])))
        return _images(images, options)
    if found.array.ndim == 4:
        assert not isinstance(options.held_out, str)
        source = arrays.points_of_latents(found, path, options.labels, options.held_out)
        source.notes, source.about = found.notes, about.latent_lines(source)
        return source
    return _table(tables.raw_table(found, path), options.labels, table)


def _table(raw: RawTable, labels: bool, table: TableOptions) -> Points:
    """The points of a table, with the classes that one of its columns or an array beside it has."""
    assigned = roles.assign(raw, table, labels)
    source = fit.points_of(assigned, table)
    source.notes = about.table_notes(assigned, source)
    source.about = about.table_lines(assigned, source)
    if source.classes is None:
        source.about = (*source.about, f"no classes: no column or array of labels ({', '.join(LABEL_NAMES)}) was found")
    return source


def _test_set(name: str, resolution: Resolution, watch: Watch) -> ImageSet:
    """The images of the data's own test split."""
    try:
        return _image_set(name, resolution, "test", watch)
    except NoSplitError as error:
        raise NoSplitError(f"{str(error).removesuffix('.')}: {A_SHARE}.") from None


def _image_set(name: str, resolution: Resolution, split: str, watch: Watch) -> ImageSet:
    path = find_data(name)
    if path is None and hub.is_hub(name):
        return hub.read_hub(name, split, resolution, watch)
    return layout_of(name, path).read(split, resolution, watch)
