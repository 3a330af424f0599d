"""What all ways to lay out images in files have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from .pixels import Pictures, Watch

SPLITS = {  # what a split may be called, the first that is there
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
        """Whether what is at `path` has this layout, by its names alone."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that it is made of, of all splits, in a fixed order."""

    @abstractmethod
    def read(self, split: str, resolution: int, watch: Watch) -> Pictures:
        """The images of a split, averaged down to `resolution` where that is not 0.

        Args:
            split: a name of `SPLITS`.
            resolution: the size of a side, or 0.
            watch: told what is read and the share that is done.

        Raises:
            ValueError: no such split, or files that are damaged or not what they seem.
        """


def missing_split(path: Path, split: str, found: list[str]) -> ValueError:
    """The error of a split that is not there."""
    has = f"it has {', '.join(found)}" if found else "it has none"
    return ValueError(f"{path} has no split '{split}' ({has}; {' or '.join(SPLITS[split])} would do).")
