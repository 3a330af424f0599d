"""Data by name: built-in ones, arrays in files, images in folders and archives, data sets of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from . import hub, tables
from .layouts import SPLITS
from .pixels import ImageSet, Watch, quiet, shrink
from .places import BUILT_IN, WAYS_TO_GIVE_IMAGES, find_data, layout_of
from .sources import Board, Images, Points, Source


def open_data(
    name: str,
    batch: int = 1,
    *,
    resolution: int = 0,
    flips: bool = False,
    labels: bool = True,
    split: str = "train",
    watch: Watch | None = None,
) -> Source:
    """The source that a recipe's `data` names.

    Args:
        name: `checkerboard`, `digits`, `cifar10`, `imagenet32`; the path of an array file (`.npy`, `.npz`, `.csv`), of
            an archive or of a folder of images (docs/data.md); or `user/name` on the Hugging Face hub.
        batch: rows of a training batch, no more than the data have.
        resolution: average images down to this many pixels a side; 0 leaves them as they are.
        flips: mirror images at random as they are drawn.
        labels: without them the data have no classes.
        split: `train`, `test`, or `validation` or `val`, which may stand for `test` and the other way round.
        watch: progress callback.

    Raises:
        ValueError: no such data, or data that cannot be trained on.
    """
    watch = watch or quiet
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if resolution < 0:
        raise ValueError(f"--resolution must be 0 (as it is) or a number of pixels, got {resolution}.")
    if name in BUILT_IN or not name or tables.is_array_file(name):
        source = _arrays(name, resolution, flips, labels, split)
    else:
        source = _images(_image_set(name, resolution, split, watch), flips, labels)
    if (rows := _rows(source)) is not None and rows < batch:
        raise ValueError(f"{name} has {rows} rows, fewer than a batch of {batch}: pass --optimiser.batch {rows}.")
    return source


def _rows(source: Source) -> int | None:
    """The number of rows of a source; `None` for one that draws afresh."""
    if isinstance(source, Images):
        return len(source.pixels)
    return len(source.data) if isinstance(source, Points) else None


def _images(images: ImageSet, flips: bool, labels: bool) -> Images:
    """The source of a set of images, with or without its labels."""
    pixels, targets, names, classes = images
    if not labels:
        targets, names = None, ()
    return Images(pixels, targets, names, classes=classes, flips=flips)


def _arrays(name: str, resolution: int, flips: bool, labels: bool, split: str) -> Source:
    """Built-in data, and arrays in files."""
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
    else:
        source = _array(Path(name), resolution, flips, labels)
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


def _array(path: Path, resolution: int, flips: bool, labels: bool) -> Source:
    array, targets = tables.read_arrays(path)
    if array.dtype == np.uint8 and array.ndim in (3, 4) and 0 not in array.shape:
        pixels = torch.from_numpy(shrink(_channels_first(array, path), resolution, str(path)))
        return _images(ImageSet(pixels, _labels_of(targets, array, path, True)), flips, labels)
    if array.ndim == 4:
        data = tables.latents(array, path)
        shift, scale = data.double().mean((0, 2, 3)), data.double().std((0, 2, 3))
    else:
        data = tables.table(array, path)
        shift, scale = data.mean(0), data.std(0)
    varies = scale > 1e-12 * shift.abs().clamp_min(1e-300)  # a constant column has rounding for a deviation
    return Points(data, _labels_of(targets, array, path, labels), shift, torch.where(varies, scale, 1))


def _labels_of(targets: np.ndarray | None, array: np.ndarray, path: Path, labels: bool) -> torch.Tensor | None:
    return tables.classes(targets, len(array), path) if labels and targets is not None else None


def _channels_first(array: np.ndarray, path: Path) -> np.ndarray:
    """Images `(N, C, H, W)` of an array whose channels are first, last or, of grey images, not there."""
    if array.ndim == 3:
        return array[:, None]
    first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
    if first == last:
        says = "could have its channels first or last" if first else "has no axis of 1 or 3 channels"
        raise ValueError(
            f"{path} of shape {array.shape} {says}: save images as uint8 (number, height, width, 3), or "
            f"(number, height, width) for grey ones."
        )
    return array if first else np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def _image_set(name: str, resolution: int, split: str, watch: Watch) -> ImageSet:
    path = find_data(name)
    if path is None and hub.is_hub(name):
        return hub.read_hub(name, split, resolution, watch)
    return layout_of(name, path).read(split, resolution, watch)
