"""The base class of all layouts of image files, and the names of splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from .pixels import ImageSet, Resolution, Watch

SPLITS = {  # names that a split may have in the files, the first one that is there is taken
    "train": ("train",),
    "test": ("test", "validation", "val", "valid"),
    "validation": ("validation", "val", "valid", "test"),
    "val": ("validation", "val", "valid", "test"),
}


class Layout(ABC):
    """Images in files of one layout.

    Args:
        path: a folder or a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @abstractmethod
    def fits(cls, path: Path) -> bool:
        """Whether the file or folder at `path` has this layout, by its names alone."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files of all splits, in a fixed order."""

    @abstractmethod
    def read(self, split: str, resolution: Resolution, watch: Watch) -> ImageSet:
        """The images of a split, averaged down to `resolution` where that is not 0.

        Args:
            split: a name of `SPLITS`.
            resolution: of the images, or 0.
            watch: progress callback.

        Raises:
            ValueError: there is no such split, or files are damaged or of another kind.
        """


class NoSplitError(ValueError):
    """A split is not there."""


def missing_split(path: Path, split: str, found: list[str]) -> NoSplitError:
    """The error of a split that is not there."""
    has = f"it has {', '.join(found)}" if found else "it has none"
    inside = next((name for name in found if (path / name).is_dir()), "")
    hint = f": call it train, or pass --data {path / inside} to train on it" if split == "train" and inside else ""
    return NoSplitError(f"{path} has no split '{split}' ({has}; {' or '.join(SPLITS[split])} would do){hint}.")
