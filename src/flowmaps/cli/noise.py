"""The noise of `sample --noise`: an array of a file, with the classes and conditions that stand beside it there."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data import Units
from ..data.options import listed
from ..evaluation.sampling import labels_of_samples

NAME, TIME, LABELS, CONDITION = "noise", "time", "labels", "condition"
"""Arrays of a file that `invert` writes: the noise, its time, and what it is taken back with."""


class Noise(NamedTuple):
    """What samples start from.

    Attributes:
        x0: the noise, `(N, *shape)`, float32.
        labels: numbers of the classes, `(N,)`; `None` where the file or the map has none.
        values: of the columns to condition on, by name, `(N,)` each; empty where the file or the map has none.
    """

    x0: Tensor
    labels: Tensor | None
    values: Mapping[str, np.ndarray]


def read(path: Path, units: Units, number: int | None = None) -> Noise:
    """The noise of a .npz file.

    Args:
        path: the file.
        units: of the run.
        number: of samples, where it is given too.

    Raises:
        ValueError: the file is missing, damaged or has no noise; or what it has does not go with the map.
    """
    if path.suffix.lower() != ".npz":
        raise ValueError(f"--noise must end in .npz, a file with an array 'noise', got {path}.")
    if not path.is_file():
        raise ValueError(f"there is no file {path}: flowmaps invert writes one.")
    wanted = (NAME, TIME, *[LABELS] * (units.classes is not None), *[CONDITION] * bool(units.conditions))
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            arrays = {name: archive[name] for name in wanted if name in names}
    except (OSError, ValueError, EOFError, TypeError, MemoryError, zipfile.BadZipFile) as error:  # a TypeError of .npy
        raise ValueError(f"{path} could not be read as noise: {' '.join(str(error).split())}.") from None
    if NAME not in arrays:
        has = listed(sorted(names)) or "none"
        raise ValueError(f"{path} could not be read as noise: it has no array 'noise' (its arrays: {has}): call it so.")
    x0 = _checked(path, arrays[NAME], units)
    if number not in (None, len(x0)):
        raise ValueError(f"{path} has noise for {len(x0):,} samples, got --number {number:,}: leave it out.")
    time = arrays.get(TIME, np.zeros(1))
    if (time != 0).any():
        raise ValueError(
            f"{path} has points of time {time.flat[0]}, and samples start from noise, time 0: write it by flowmaps "
            "invert without --to."
        )
    for name in (LABELS, CONDITION):
        rows = len(arrays[name]) if name in arrays and arrays[name].ndim else 0
        if name in arrays and rows != len(x0):
            raise ValueError(f"{path} has {len(x0):,} rows of noise and {rows:,} of {name!r}.")
    labels = _numbers(path, arrays[LABELS], units) if LABELS in arrays else None
    return Noise(x0, labels, _values(path, arrays[CONDITION], units) if CONDITION in arrays else {})


def _checked(path: Path, array: np.ndarray, units: Units) -> Tensor:
    """The noise in float32."""
    fits = array.dtype.kind == "f" and array.ndim and len(array) and array.shape[1:] == units.shape
    with np.errstate(over="ignore"):
        x0 = array.astype(np.float32) if fits else np.zeros(0)
    if not fits or not np.isfinite(x0).all():
        rows = " x ".join(map(str, units.shape))
        raise ValueError(
            f"the noise of {path} must be finite floats in float32, {rows} numbers a sample, got {array.dtype} of "
            f"shape {array.shape}."
        )
    return torch.from_numpy(x0)


def _numbers(path: Path, labels: np.ndarray, units: Units) -> Tensor:
    """The numbers of the classes of labels as the data have them."""
    names, places = np.unique(labels.astype(str), return_inverse=True)
    try:
        numbers = [labels_of_samples(units, 1, str(name)) for name in names]
    except ValueError as error:
        raise ValueError(f"the array 'labels' of {path}: {error}") from None
    return torch.cat([number for number in numbers if number is not None])[torch.from_numpy(places)]


def _values(path: Path, condition: np.ndarray, units: Units) -> dict[str, np.ndarray]:
    """The columns to condition on, by their names."""
    names = [own.name for own in units.conditions]
    if condition.dtype.kind not in "biuf" or condition.shape[1:] != (len(names),) or not np.isfinite(condition).all():
        raise ValueError(
            f"the array 'condition' of {path} must be finite numbers of {listed(names)}, a row a sample, got "
            f"{condition.dtype} of shape {condition.shape}."
        )
    return dict(zip(names, condition.T, strict=True))
