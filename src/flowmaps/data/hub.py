"""Data sets of the Hugging Face hub, by its own library, which keeps them in its own cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .layouts import SPLITS, missing_split
from .pixels import CHUNK, ImageSet, Resolution, Watch
from .rows import INSTALL, Rows, labels_hidden, one_line, read

HUB = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub(name: str) -> bool:
    """Whether a name has the form `user/name` of the Hugging Face hub, and nothing of that name is here."""
    return HUB.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()


def read_hub(name: str, split: str, resolution: Resolution, watch: Watch) -> ImageSet:
    """The images of a split of a data set of the Hugging Face hub; it is fetched into the hub's cache.

    Raises:
        ValueError: it cannot be reached, is not there, or has no images.
    """
    watch(f"Fetching {name}", 0.0)
    splits = load(name)
    found = [_rows(splits[candidate], name, candidate) for candidate in SPLITS[split] if candidate in splits]
    if not found:
        raise missing_split(Path(name), split, list(splits))
    return read(next((rows for rows in found if not labels_hidden(rows)), found[-1]), resolution, watch)


def load(name: str) -> Any:
    """The `datasets.Dataset` of each split of a data set, by the name of the split.

    Raises:
        ValueError: it cannot be reached or is not there.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"data of the Hugging Face hub come with its library: {INSTALL}.") from error
    try:
        return datasets.load_dataset(name)
    except Exception as error:  # of the network, the hub, the cache, the files: each library has its own
        raise ValueError(
            f"there is no file or folder {name} here, and it could not be read from the Hugging Face hub "
            f"({one_line(error)}): check the name and the connection, that HF_HUB_OFFLINE is not set, and for data "
            f"behind terms of use accept them on the hub and log in with 'hf auth login'."
        ) from None


def version(name: str) -> str:
    """The version of a data set on the hub: a hash of the commit and the files, made by the hub's library.

    Raises:
        ValueError: as in `load`, or it has no split that can be trained on.
    """
    splits = load(name)
    known = [candidate for names in SPLITS.values() for candidate in names if candidate in splits]
    if not known:
        raise missing_split(Path(name), "train", list(splits))
    return str(splits[known[0]]._fingerprint)


def _rows(data: Any, name: str, split: str) -> Rows:
    def tables(columns: list[str]) -> Iterator[Any]:
        return data.select_columns(columns).with_format("arrow").iter(CHUNK)

    def where(row: int) -> str:
        return f"row {row} of {name} ({split})"

    return Rows(len(data), data.features.arrow_schema, tables, where, f"Reading {name}", paths=True)
