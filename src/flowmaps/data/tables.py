"""Array files: `.npy`, `.npz` and `.csv`, read without unpickling anything."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".npy", ".npz", ".csv")
NOT_READABLE = "it is damaged, or holds Python objects, which are never unpickled: save arrays of numbers"
ARRAY_NAMES = ("x", "data", "images")  # names of the array in a .npz, the first one that is there is taken


def is_array_file(name: str) -> bool:
    """Whether a recipe's `data` names an array file."""
    return Path(name).suffix.lower() in SUFFIXES


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The array in a file and its labels (or `None`) as they are, of whatever type and shape; nothing is unpickled.

    A `.npz` holds one array, or arrays named `x`, `data` or `images`, and `labels`. A `.csv` holds numbers, one point a
    line, with or without a line of names.

    Raises:
        ValueError: the file is missing, of another kind or damaged.
    """
    if not path.name or path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"data must be 'checkerboard', 'digits' or a file ending in {', '.join(SUFFIXES)}, got {str(path)!r}."
        )
    if not path.is_file():
        raise ValueError(f"there is no file {path}: pass --data FILE with a table of points, one a row.")
    try:
        return _READERS[path.suffix.lower()](path)
    except (OSError, ValueError, EOFError, KeyError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} could not be read as {path.suffix}: {reason}") from None


def _npy(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError:
        raise ValueError(NOT_READABLE) from None
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of arrays: call it .npz")
    return array, None


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception:  # zipfile raises errors of its own kinds
        raise ValueError(NOT_READABLE) from None
    labels = arrays.pop("labels", None)
    for name in ARRAY_NAMES:
        if name in arrays:
            return arrays[name], labels
    if len(arrays) != 1:
        raise ValueError(f"it holds the arrays {sorted(arrays)}: name the points 'x'")
    return next(iter(arrays.values())), labels


def _csv(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with path.open(encoding="utf-8-sig") as file:  # a byte order mark, as spreadsheets write it, is no part of a number
        first = file.readline()
    header = not any(_is_number(word) for word in first.split(","))  # a line of numbers with a hole is no line of names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a file without points, which is an error here
        array = np.loadtxt(path, delimiter=",", skiprows=int(header), ndmin=2, encoding="utf-8-sig")
    if not array.size:
        raise ValueError("it holds no points")
    return array, None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


_READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv}


def table(array: np.ndarray, path: Path) -> Tensor:
    """A finite table `(points, dimensions)` as float64.

    Raises:
        ValueError: it is none.
    """
    _check_real(array, path)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{path} must hold a table (points, dimensions), got shape {array.shape}: save x.reshape(len(x), -1), "
            f"with at least one point."
        )
    _check_finite(array, path)
    return torch.as_tensor(array.astype(np.float64))


def latents(array: np.ndarray, path: Path) -> Tensor:
    """Finite latents `(N, C, H, W)` as float32.

    Raises:
        ValueError: it is none.
    """
    _check_real(array, path)
    if array.ndim != 4 or 0 in array.shape or array.dtype.kind != "f":
        raise ValueError(f"{path} must hold latents (number, channels, height, width) as floats, got {array.shape}.")
    _check_finite(array.reshape(len(array), -1), path)
    return torch.as_tensor(array.astype(np.float32))


def _check_real(array: np.ndarray, path: Path) -> None:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold real numbers, got an array of type {array.dtype}.")


def _check_finite(rows: np.ndarray, path: Path) -> None:
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(rows.astype(np.float32)).all(1)  # what float32 cannot hold counts as infinite
    if bad.any():
        raise ValueError(
            f"{path} has NaN or infinite values in {bad.sum()} of {len(rows)} rows (first: row {bad.argmax()}, "
            f"counted from 0): drop or fill those rows."
        )


def classes(labels: np.ndarray, rows: int, path: Path) -> Tensor:
    """Labels `(rows,)` as int64.

    Raises:
        ValueError: of another number or kind, or out of range.
    """
    if labels.shape != (rows,) or labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < rows:
        raise ValueError(
            f"{path}: labels must be {rows} integers from 0, each below {rows}, "
            f"got {labels.dtype} of shape {labels.shape}: number the classes from 0."
        )
    return torch.as_tensor(labels.astype(np.int64))
