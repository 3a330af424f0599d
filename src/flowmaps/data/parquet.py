"""Parquet files of the Hugging Face layout, read where they are, without a copy in a cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .layouts import SPLITS, Layout, missing_split
from .pixels import CHUNK, ImageSet, Resolution, Watch
from .rows import IMAGE_COLUMNS, INSTALL, Rows, columns_of_images, labels_hidden, one_line, read

SPLIT = re.compile(r"(?:^|[-_.])(train|test|validation|valid|val)(?=[-_.])")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


class Parquet(Layout):
    """Parquet files in a folder, in its `data/` or its only subfolder that has some; or one file.

    A file belongs to the split in its name (`train-00000-of-00002.parquet`); without any such name all are of training.
    """

    @classmethod
    def fits(cls, path: Path) -> bool:
        return bool(_parquets(path))

    def files(self) -> list[Path]:
        return _parquets(self.path)

    def read(self, split: str, resolution: Resolution, watch: Watch) -> ImageSet:
        splits: dict[str, list[Path]] = {}
        for file in self.files():
            found = SPLIT.findall(file.name)
            splits.setdefault(found[0] if found else "train", []).append(file)
        chosen = [name for name in SPLITS[split] if name in splits]
        if not chosen:
            raise missing_split(self.path, split, sorted(splits))
        for name in chosen[:-1]:
            if not labels_hidden(rows := _rows(splits[name], self.path)):
                return read(rows, resolution, watch)
        return read(_rows(splits[chosen[-1]], self.path), resolution, watch)


def has_images(path: Path) -> bool:
    """Whether a parquet file has a column of images; a file that cannot be read counts as one."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return True
    try:
        schema = pyarrow.parquet.read_schema(path)
        return bool(columns_of_images(schema) or {*schema.names} & {*IMAGE_COLUMNS})
    except (pyarrow.ArrowException, OSError):
        return True


def _parquets(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    for folder in (path, path / "data"):
        if found := sorted(folder.glob("*.parquet")):
            return found
    inside = [
        found for folder in sorted(path.iterdir()) if folder.is_dir() and (found := sorted(folder.glob("*.parquet")))
    ]
    return inside[0] if len(inside) == 1 else []


def _rows(files: list[Path], path: Path) -> Rows:
    """The rows of the files of one split.

    Raises:
        ValueError: files are damaged, missing or unlike one another.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"parquet files are read with pyarrow: {INSTALL}.") from error
    whole = {int(match[2]) for file in files if (match := SHARD.search(file.name))}
    if whole and max(whole) != len(files):
        raise ValueError(f"{path} has {len(files)} of {max(whole)} parquet files ({files[0].name}...): get the others.")
    opened = []
    for file in files:
        try:
            opened.append(pyarrow.parquet.ParquetFile(file))
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file} is no parquet file or damaged ({one_line(error)}): get it again.") from None
        if opened[-1].schema_arrow != opened[0].schema_arrow:
            raise ValueError(f"{file} has other columns than {files[0]}: keep the files of one data set in a folder.")
    starts = np.cumsum([0] + [part.metadata.num_rows for part in opened])

    def tables(columns: list[str]) -> Iterator[Any]:
        for file, part in zip(files, opened, strict=True):
            try:
                yield from part.iter_batches(CHUNK, columns=columns)
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{file} is damaged ({one_line(error)}): get it again.") from None

    def where(row: int) -> str:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return f"row {row - starts[file]} of {files[min(file, len(files) - 1)]}"

    return Rows(int(starts[-1]), opened[0].schema_arrow, tables, where, f"Reading {path.name}")
