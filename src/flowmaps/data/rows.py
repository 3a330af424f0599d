"""Images in the rows of Arrow tables, as the Hugging Face hub keeps them.

A row has an image, a struct of `bytes` (a whole image file) and `path`, or the bytes alone, and mostly a label; the
names of the classes are in the schema's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .decode import decode, pillow
from .labels import classes_of
from .pixels import ImageSet, Resolution, Watch, gather, in_order

IMAGE_COLUMNS, LABEL_COLUMNS = ("img", "image"), ("label", "labels", "fine_label")
INSTALL = "pip install 'flowmaps[images]'"


class Rows(NamedTuple):
    """Rows of a table.

    Attributes:
        number: of rows.
        schema: of Arrow.
        tables: takes names of columns to tables (or batches) of about `CHUNK` rows of them.
        where: takes a row's number to its name in an error.
        title: of the progress bar while the rows are read.
        paths: whether a row may hold the path of an image file in the place of its bytes, as in the hub's own cache.
    """

    number: int
    schema: Any
    tables: Callable[[list[str]], Iterable[Any]]
    where: Callable[[int], str]
    title: str
    paths: bool = False


def labels_hidden(rows: Rows) -> bool:
    """Whether the labels of a split are withheld, all of them -1; only the first chunk is looked at."""
    label = next((name for name in LABEL_COLUMNS if name in rows.schema.names), None)
    first = next(iter(rows.tables([label])), None) if label else None
    return first is not None and first.num_rows > 0 and set(first.column(label).to_pylist()) == {-1}


def read(rows: Rows, resolution: Resolution, watch: Watch) -> ImageSet:
    """The images of all rows, decoded.

    Args:
        rows: at least one.
        resolution: crop and average the images down to this size; 0 leaves them as they are.
        watch: progress callback.

    Raises:
        ValueError: there are no images, or one cannot be read, or a label is missing or out of range.
    """
    pillow()
    image, label = _columns(rows)
    labels: list[Any] = []

    def chunks() -> Iterator[tuple[int, list[Any]]]:
        first = 0
        for table in rows.tables([image] if label is None else [image, label]):
            if label is not None:
                labels.extend(_labels(table.column(label), first, rows))
            yield first, table.column(image).to_pylist()
            first += table.num_rows

    def task(chunk: tuple[int, list[Any]]) -> list[np.ndarray]:
        cells = enumerate(chunk[1], chunk[0])
        return [decode(_content(cell, rows, row), rows.where(row), resolution) for row, cell in cells]

    def images() -> Iterator[np.ndarray]:
        done = 0
        for part in in_order(task, chunks()):
            yield from part
            done += len(part)
            watch(rows.title, min(1.0, done / rows.number))

    pixels = gather(images(), rows.number, rows.where)
    if label is None:
        return ImageSet(pixels)
    return _labelled(pixels, labels, label, rows)


def _labelled(pixels: torch.Tensor, labels: list[Any], label: str, rows: Rows) -> ImageSet:
    """Images with their labels: whole numbers as they are, text and truth values as the names of classes."""
    if not _whole(rows, label):
        found = classes_of(np.array(labels, dtype=object), rows.number, rows.where(0))
        return ImageSet(pixels, found.numbers, found.names, label_type="str")
    names = _names(rows, label)
    return ImageSet(pixels, _checked_labels(np.array(labels, np.int64), names, rows), names)


def _checked_labels(numbers: np.ndarray, names: tuple[str, ...], rows: Rows) -> torch.Tensor:
    """The labels `(N,)`; a label that is out of range is refused."""
    allowed = len(names) or rows.number
    if (bad := np.flatnonzero((numbers < 0) | (numbers >= allowed))).size:
        raise ValueError(
            f"{rows.where(int(bad[0]))} has the label {numbers[bad[0]]}, allowed are 0 to {allowed - 1}: choose a "
            f"split with labels, or number the classes from 0."
        )
    return torch.from_numpy(numbers)


def columns_of_images(schema: Any) -> list[str]:
    """The names of the columns of a schema of Arrow that hold image files."""
    from pyarrow import types

    def holds_images(kind: Any) -> bool:
        return _is_bytes(types, kind) or (
            types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(types, kind.field("bytes").type)
        )

    return [field.name for field in schema if holds_images(field.type)]


def _columns(rows: Rows) -> tuple[str, str | None]:
    """The names of the columns of images and of labels (or `None`)."""
    from pyarrow import types

    fields, found = {field.name: field.type for field in rows.schema}, columns_of_images(rows.schema)
    named = [name for name in IMAGE_COLUMNS if name in found]
    image = next(iter(named or (found if len(found) == 1 else [])), None)
    if image is None:
        raise ValueError(
            f"{rows.where(0)} has no column of images among {', '.join(fields) or 'none'}: it must be named "
            f"{' or '.join(IMAGE_COLUMNS)} and hold the bytes of an image file, or a struct of bytes and path."
        )
    return image, next((name for name in LABEL_COLUMNS if name in fields and _are_labels(types, fields[name])), None)


def _are_labels(types: Any, kind: Any) -> bool:
    """Whether a column of a type of Arrow may have labels: whole numbers, truth values or text."""
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)
    return types.is_integer(kind) or types.is_boolean(kind) or text


def _whole(rows: Rows, label: str) -> bool:
    """Whether labels are whole numbers."""
    from pyarrow import types

    return types.is_integer(rows.schema.field(label).type)


def _is_bytes(types: Any, kind: Any) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind)


def _content(cell: Any, rows: Rows, row: int) -> bytes | Path:
    """The bytes of a row's image file, or its path."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content:
        return content
    if path and rows.paths:
        return Path(path)
    raise ValueError(f"{rows.where(row)} has no image: its bytes are missing.")


def _labels(column: Any, first: int, rows: Rows) -> list[Any]:
    """The labels of a chunk, whose first row has the number `first`."""
    values = column.to_pylist()
    if None in values:
        raise ValueError(f"{rows.where(first + values.index(None))} has no label: fill it, or leave the row out.")
    return values


def _names(rows: Rows, label: str | None) -> tuple[str, ...]:
    """The names of the classes from the metadata of the schema; none where there are none."""
    try:
        about = json.loads((rows.schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    usable = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if usable else ()


def one_line(error: Exception) -> str:
    """The type and the message of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
