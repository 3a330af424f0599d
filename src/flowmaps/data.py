"""Data sets as sources of batches: the checkerboard, the digits, and arrays of the user's own.

A source draws `(x1, cond)` from a generator, in coordinates that suit a network (about unit scale), and turns samples
back into the data's own units.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .exact import Checkerboard

SUFFIXES = (".npy", ".npz", ".csv")


@dataclass(frozen=True)
class Units:
    """What it takes to read a map's samples: the network sees (data - shift) / scale, dimension by dimension.

    Args:
        dim: numbers a sample.
        classes: number of classes, or `None`.
        shift, scale: `dim` numbers each; none for data that the network sees as they are.
    """

    dim: int
    classes: int | None = None
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def to_data(self, x: Tensor) -> Tensor:
        """From the network's coordinates to the data's units, `(B, dim)`."""
        return x * x.new_tensor(self.scale) + x.new_tensor(self.shift) if self.scale else x

    @classmethod
    def from_dict(cls, fields: Any) -> Units:
        """From the JSON of a card.

        Raises:
            ValueError: it is none.
        """
        try:
            return cls(**{**fields, "shift": tuple(fields["shift"]), "scale": tuple(fields["scale"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"the run's config.json does not say what its data are like ({error!r}).") from None


class Source(ABC):
    """A law of data, in the network's coordinates."""

    units: Units

    @property
    def dim(self) -> int:
        """Numbers a sample."""
        return self.units.dim

    @property
    def classes(self) -> int | None:
        """Number of classes, or `None`."""
        return self.units.classes

    @abstractmethod
    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """`number` points `(B, dim)` in the network's coordinates, and their labels `(B,)` or `None`."""

    def to_data(self, x: Tensor) -> Tensor:
        """From the network's coordinates to the data's units."""
        return self.units.to_data(x)


class Board(Source):
    """The checkerboard, drawn afresh each time, with its exact law at hand as `exact`."""

    def __init__(self) -> None:
        self.exact, self.units = Checkerboard(), Units(2)

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        return self.exact.sample(number, generator=generator).float(), None


class Points(Source):
    """Rows of an array, drawn with replacement.

    Args:
        data: `(N, dim)`, finite.
        labels: `(N,)` integers, or `None`.
        shift, scale: the network sees (data - shift) / scale, each `(dim,)`.
    """

    def __init__(self, data: Tensor, labels: Tensor | None, shift: Tensor, scale: Tensor) -> None:
        self.labels, self.data = labels, ((data - shift) / scale).float()
        classes = None if labels is None else int(labels.max()) + 1
        self.units = Units(data.shape[1], classes, tuple(shift.tolist()), tuple(scale.tolist()))

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        rows = torch.randint(len(self.data), (number,), generator=generator)
        return self.data[rows], None if self.labels is None else self.labels[rows]


def is_file(name: str) -> bool:
    """Whether a recipe's `data` names a file rather than data of flowmaps' own."""
    return Path(name).suffix.lower() in SUFFIXES


def open_data(name: str, batch: int = 1) -> Source:
    """The source that a recipe's `data` names.

    Args:
        name: `checkerboard`, `digits`, or the path of a `.npy`, `.npz` or `.csv` file.
        batch: rows of a training batch, no more than the array has.

    Raises:
        ValueError: no such data, or data that cannot be trained on.
    """
    if name == "checkerboard":
        return Board()
    if name == "digits":
        return _digits()
    if not name:
        raise ValueError(
            f"no data given: pass --data with 'checkerboard', 'digits' or a file ending in {', '.join(SUFFIXES)}."
        )
    data, labels = read_array(Path(name))
    if len(data) < batch:
        raise ValueError(
            f"{name} has {len(data)} rows, fewer than a batch of {batch}: pass --optimiser.batch {len(data)}."
        )
    shift, scale = data.mean(0), data.std(0)
    varies = scale > 1e-12 * shift.abs().clamp_min(1e-300)  # a constant column has rounding for a deviation
    return Points(data, labels, shift, torch.where(varies, scale, 1))


def _digits() -> Source:
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("the digits come with scikit-learn: pip install 'flowmaps[digits]'.") from error
    pixels, targets = load_digits(return_X_y=True)
    data, labels = torch.as_tensor(pixels, dtype=torch.float32), torch.as_tensor(targets)
    return Points(data, labels, torch.full((64,), 8.0), torch.full((64,), 8.0))


def read_array(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read points `(N, dim)` as float64, and labels `(N,)` from a `.npz` that has an array `labels`.

    A `.npz` holds one array, or arrays named `x` (or `data`) and `labels`. A `.csv` holds numbers, one point a line,
    with or without a line of names. Nothing is unpickled.

    Raises:
        ValueError: the file is missing, of another kind, damaged, or its array is no finite table of numbers.
    """
    if not path.name or path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"data must be 'checkerboard', 'digits' or a file ending in {', '.join(SUFFIXES)}, got {str(path)!r}."
        )
    if not path.is_file():
        raise ValueError(f"there is no file {path}: pass --data FILE with a table of points, one a row.")
    try:
        array, labels = _READERS[path.suffix.lower()](path)
    except (OSError, ValueError, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())
        if "allow_pickle" in reason:  # numpy's advice, which is not ours
            reason = "it holds Python objects, which are never unpickled: save an array of numbers"
        raise ValueError(f"{path} could not be read as {path.suffix}: {reason}") from None
    return _table(array, path), None if labels is None else _classes(labels, len(array), path)


def _npy(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of arrays: call it .npz")
    return array, None


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile raises errors of its own kinds
        raise ValueError(f"it is no archive of arrays ({error})") from error
    labels = arrays.pop("labels", None)
    for name in ("x", "data"):
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


def _table(array: np.ndarray, path: Path) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold real numbers, got an array of type {array.dtype}.")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{path} must hold a table (points, dimensions), got shape {array.shape}: save x.reshape(len(x), -1), "
            f"with at least one point."
        )
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(array.astype(np.float32)).all(1)  # what float32 cannot hold counts as infinite
    if bad.any():
        raise ValueError(
            f"{path} has NaN or infinite values in {bad.sum()} of {len(array)} rows (first: row {bad.argmax()}, "
            f"counted from 0): drop or fill those rows."
        )
    return torch.as_tensor(array.astype(np.float64))


def _classes(labels: np.ndarray, rows: int, path: Path) -> Tensor:
    if labels.shape != (rows,) or labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < rows:
        raise ValueError(
            f"{path}: labels must be {rows} integers from 0, each below {rows}, "
            f"got {labels.dtype} of shape {labels.shape}: number the classes from 0."
        )
    return torch.as_tensor(labels.astype(np.int64))
