"""Classes of rows under whatever labels a file has: text, truth values, whole numbers with gaps or from 1.

labels (N,)  ->  0..K-1 in the order of the labels, with their names; no class is without a row
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LABEL_NAMES = ("labels", "label", "classes", "class", "targets", "target", "y")  # the first one that is there is taken
SURE_NAMES = ("labels", "label", "classes", "class")
"""Names of labels whatever they look like; a `target` or `y` may be a number that is measured."""
MAX_LIKELY = 100
"""Most classes of a column that is taken for classes by its name and its looks."""
TYPES = ("bool", "str", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
         "float16", "float32", "float64")  # fmt: skip


class Classes(NamedTuple):
    """The classes of rows.

    Attributes:
        numbers: `(N,)`, int64, 0..K-1, each of which some row has.
        names: of the classes; none where the labels are 0..K-1 already.
        type: numpy's name of the type of the labels, `str` for text; empty where `names` is.
        said: a sentence about what was changed; empty if nothing was.
    """

    numbers: Tensor
    names: tuple[str, ...] = ()
    type: str = ""
    said: str = ""


def classes_of(labels: np.ndarray, rows: int, where: str) -> Classes:
    """The classes of labels `(rows,)` of text, truth values or whole numbers.

    Args:
        labels: as the file has them; text as an array of strings or objects.
        rows: how many there must be.
        where: what has the labels, in an error.

    Raises:
        ValueError: they are of another shape, missing, or numbers that are not whole.
    """
    if labels.shape != (rows,):
        raise ValueError(f"{where}: labels must be {rows} values, one a row, got an array of shape {labels.shape}.")
    kind = labels.dtype.kind
    if kind == "O" and any(value is None or value != value for value in labels):
        row = next(k for k, value in enumerate(labels) if value is None or value != value)
        raise ValueError(f"{where}: the label of row {row} (counted from 0) is missing: fill it or drop the row.")
    if kind not in "biufUSO":
        raise ValueError(f"{where}: labels must be text, truth values or whole numbers, got {labels.dtype}.")
    if kind == "f" and not whole(labels):
        raise ValueError(
            f"{where}: labels must be text, truth values or whole numbers, got numbers that are not whole or not "
            f"finite: round them, call the array otherwise, or (of a table) cut them into classes with --label-bins 10."
        )
    values, numbers = np.unique(_text(labels) if kind in "USO" else labels, return_inverse=True)
    numbers = torch.as_tensor(numbers.reshape(-1).astype(np.int64))
    if kind in "iu" and np.array_equal(values, np.arange(len(values))):
        return Classes(numbers)
    names = tuple(str(int(v)) if kind == "f" else str(v) for v in values)
    from_zero = kind == "f" and names == tuple(map(str, range(len(names))))
    said = "" if from_zero else f"numbered 0 to {len(names) - 1} in the order of their labels"
    return Classes(numbers, names, "str" if kind in "USO" else labels.dtype.name, said)


def look_like_classes(name: str, values: np.ndarray) -> bool:
    """Whether a column or an array is taken for classes, by its name and its values."""
    name = name.lower()
    if name not in LABEL_NAMES or values.ndim != 1 or not len(values):
        return False
    if values.dtype.kind in "bUSO":
        return True
    if values.dtype.kind not in "iuf" or not whole(values):
        return False
    number = len(np.unique(values))
    return name in SURE_NAMES or number <= 2 or (number <= MAX_LIKELY and 2 * number <= len(values))


def in_bins(numbers: np.ndarray, bins: int, where: str) -> np.ndarray:
    """The intervals in which numbers `(N,)` lie, as text: `bins` of them with equally many numbers each.

    Raises:
        ValueError: the values are no numbers, or have too few different ones.
    """
    if numbers.dtype.kind not in "iuf":
        raise ValueError(f"{where} has no numbers, which --label-bins could cut: leave --label-bins out.")
    values = numbers.astype(np.float64)
    edges = np.quantile(values, np.linspace(0, 1, bins + 1))
    if len(np.unique(edges)) < bins + 1:
        raise ValueError(
            f"{where} has {len(np.unique(values))} different values, too few for --label-bins {bins} classes with "
            "equally many rows: take fewer, or 0 to learn each value as a class."
        )
    found = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    digits = len(str(bins - 1))
    names = [f"{k + 1:0{digits}}: {edges[k]:.6g} to {edges[k + 1]:.6g}" for k in range(bins)]
    return np.array(names, dtype=object)[found]


def whole(values: np.ndarray) -> bool:
    """Whether all of some numbers are whole, finite and exact in float64."""
    numbers = values.astype(np.float64)
    return bool((np.isfinite(numbers) & (np.abs(numbers) < 2**53)).all() and (numbers == np.round(numbers)).all())


def as_in_file(numbers: np.ndarray, names: tuple[str, ...], kind: str) -> np.ndarray:
    """The labels of a file again: class numbers `(N,)` as values of the file's type."""
    if not names or not kind:
        return numbers
    values: Any = [name == "True" for name in names] if kind == "bool" else names
    return np.array(values, dtype=object if kind == "str" else None).astype(object if kind == "str" else kind)[numbers]


def _text(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "replace")
    return labels.astype(str)
