"""Array files: `.npy` and `.npz`, read without unpickling anything, and which files are tables at all."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .frames import TABLE_SUFFIXES
from .labels import LABEL_NAMES, SURE_NAMES, look_like_classes
from .raw import RawTable, missing

ARRAY_SUFFIXES = (".npy", ".npz")
SUFFIXES = (*ARRAY_SUFFIXES, *TABLE_SUFFIXES)
NOT_READABLE = "it is damaged, or holds Python objects, which are never unpickled: save arrays of numbers"
ARRAY_NAMES = ("x", "data", "images")  # names of the array in a .npz, the first one that is there is taken


class Arrays(NamedTuple):
    """What an array file holds.

    Attributes:
        array: the points, images or latents.
        labels: of its rows, as they are, or `None`.
        label: name of the array of the labels.
        notes: what was taken for what, and what was left out.
    """

    array: np.ndarray
    labels: np.ndarray | None = None
    label: str = ""
    notes: tuple[str, ...] = ()


def is_array_file(name: str) -> bool:
    """Whether a recipe's `data` names a file of arrays or a table; parquet files of images are none."""
    path = Path(name)
    if path.suffix.lower() == ".parquet":
        from .parquet import has_images

        return path.is_file() and not has_images(path)
    return path.suffix.lower() in SUFFIXES


def read_arrays(path: Path) -> Arrays:
    """The array in a `.npy` or `.npz` file and its labels as they are; nothing is unpickled.

    A `.npz` holds one array, or arrays named `x`, `data` or `images`, and labels under a name of `LABEL_NAMES`.

    Raises:
        ValueError: the file is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}: pass --data FILE with a table of points, one a row.")
    try:
        return (_npy if path.suffix.lower() == ".npy" else _npz)(path)
    except (OSError, ValueError, EOFError, KeyError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} could not be read as {path.suffix}: {reason}") from None


def _npy(path: Path) -> Arrays:
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError:
        raise ValueError(NOT_READABLE) from None
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of arrays: call it .npz")
    return Arrays(array)


def _npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception:  # zipfile raises errors of its own kinds
        raise ValueError(NOT_READABLE) from None
    by_lower = {name.lower(): name for name in arrays}
    main = next((by_lower[name] for name in ARRAY_NAMES if name in by_lower), None)
    if main is None:
        others = [name for name in arrays if name.lower() not in LABEL_NAMES]
        if len(others) != 1:
            raise ValueError(f"it holds the arrays {sorted(arrays)}: name the points 'x'")
        main = others[0]
    label = next((by_lower[name] for name in LABEL_NAMES if by_lower.get(name, main) != main), "")
    notes, labels = [], arrays.get(label)
    if labels is not None and label.lower() not in SURE_NAMES and not look_like_classes(label, labels):
        notes.append(
            f"the array {label!r} has other numbers than classes and is left out: call it 'labels' after cutting it "
            "into classes, or make it a column of the points"
        )
        labels, label = None, ""
    elif labels is not None and label != "labels":
        notes.append(f"the array {label!r} is taken for the classes")
    if left := sorted({*arrays} - {main, label} - ({label} if label else set()) - _named(notes, arrays)):
        notes.append(f"the arrays {', '.join(map(repr, left))} are left out")
    return Arrays(arrays[main], labels, label, tuple(notes))


def _named(notes: list[str], arrays: dict[str, np.ndarray]) -> set[str]:
    """Arrays that a note is about already."""
    return {name for name in arrays if any(f"array {name!r}" in note for note in notes)}


def raw_table(arrays: Arrays, path: Path) -> RawTable:
    """A table `(points, dimensions)` as columns.

    Raises:
        ValueError: it is none.
    """
    array = arrays.array
    check_real(array, path)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{path} must hold a table (points, dimensions), got shape {array.shape}: save x.reshape(len(x), -1), "
            f"with at least one point{_how_to_save_images(array)}."
        )
    names = [str(k + 1) for k in range(array.shape[1])]
    long = array.dtype.kind == "f" and array.dtype.itemsize > 8
    native = array.astype(np.float64 if long else array.dtype.newbyteorder("="))
    raw = RawTable(path, names, [*native.T], named=False, type=native.dtype.name, notes=[*arrays.notes])
    raw.labels, raw.label = arrays.labels, arrays.label
    return raw


def latents(array: np.ndarray, path: Path) -> Tensor:
    """Finite latents `(N, C, H, W)` as float64.

    Raises:
        ValueError: it is none.
    """
    check_real(array, path)
    if array.ndim != 4 or 0 in array.shape or array.dtype.kind != "f":
        raise ValueError(
            f"{path} must hold latents (number, channels, height, width) as floats, got {array.dtype} of shape "
            f"{array.shape}{_how_to_save_images(array)}."
        )
    bad = missing(array.reshape(len(array), -1)).any(axis=1)
    if bad.any():
        raise ValueError(
            f"{path} has NaN or infinite values in {bad.sum()} of {len(array)} rows (first: row {bad.argmax()}, "
            f"counted from 0): drop or fill those rows."
        )
    return torch.as_tensor(array.astype(np.float64))


def _how_to_save_images(array: np.ndarray) -> str:
    """Advice for an array that may be one of images, of another type than uint8."""
    if array.ndim not in (3, 4) or not array.size:
        return ""
    if array.dtype.kind == "f":
        return "; grey images are saved by (255 * x).round().astype('uint8') if x is from 0 to 1"
    fits = array.min() >= 0 and array.max() <= 255
    how = "x.astype('uint8')" if fits else "(x / x.max() * 255).round().astype('uint8')"
    return f"; images are of type uint8, from 0 to 255: save {how}"


def check_real(array: np.ndarray, path: Path) -> None:
    """Refuse an array that does not hold real numbers."""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold real numbers, got an array of type {array.dtype}.")
