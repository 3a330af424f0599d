"""A folder of image files: one subfolder a class, with or without `train/` and `test/` above them, or no subfolders."""

from __future__ import annotations

from pathlib import Path

import torch

from .decode import IMAGE_SUFFIXES, decode, pillow
from .layouts import SPLITS, Layout, missing_split
from .pixels import CHUNK, ImageSet, Watch, gather, in_order

SPLIT_FOLDERS = tuple(dict.fromkeys(name for names in SPLITS.values() for name in names))


class Folder(Layout):
    """Image files; classes are numbered in the alphabetical order of their folders.

    A folder without `train/` or `test/` is the training split. The classes of all splits are those of training.
    """

    @classmethod
    def fits(cls, path: Path) -> bool:
        return path.is_dir() and any(_image_files(folder) for folder in _folders(path))

    def files(self) -> list[Path]:
        return [file for folder in _folders(self.path) for file in _image_files(folder)]

    def read(self, split: str, resolution: int, watch: Watch) -> ImageSet:
        pillow()
        root = self._split(split)
        files, labels = _image_files(root), []
        names = tuple(folder.name for folder in _subfolders(root) if _image_files(folder))
        if files and names:
            raise ValueError(
                f"{root} has images beside folders of images ({files[0].name}, {names[0]}): put each into the folder "
                f"of its class, or all of them into one without folders."
            )
        names = self._classes(root, names)
        for label, name in enumerate(names):
            inside = _image_files(root / name)
            files, labels = files + inside, labels + [label] * len(inside)
        if not files:
            raise ValueError(f"{root} has no images ({', '.join(IMAGE_SUFFIXES)}): put them there, one folder a class.")
        title = f"Reading {self.path.name}"

        def task(first: int) -> list:
            return [decode(file, str(file), resolution) for file in files[first : first + CHUNK]]

        def images():
            for number, chunk in enumerate(in_order(task, range(0, len(files), CHUNK))):
                yield from chunk
                watch(title, min(1.0, (number + 1) * CHUNK / len(files)))

        pixels = gather(images(), len(files), lambda row: str(files[row]))
        return ImageSet(pixels, torch.tensor(labels) if names else None, names)

    def _split(self, split: str) -> Path:
        splits = [name for name in SPLIT_FOLDERS if (self.path / name).is_dir()]
        for name in SPLITS[split]:
            if name in splits:
                return self.path / name
        if splits or split != "train":
            raise missing_split(self.path, split, splits or ["train"])
        return self.path

    def _classes(self, root: Path, names: tuple[str, ...]) -> tuple[str, ...]:
        """The classes by which labels are numbered: a split without one of them numbers the others as training does."""
        trained = self.path / "train"
        if root in (trained, self.path) or not names or not trained.is_dir():
            return names
        classes = tuple(folder.name for folder in _subfolders(trained) if _image_files(folder))
        if unknown := sorted({*names} - {*classes}):
            raise ValueError(f"{root} has the classes {', '.join(unknown)}, which {trained} does not have.")
        return classes


def _subfolders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _folders(path: Path) -> list[Path]:
    """The folder, those in it, and those in its splits."""
    inside = _subfolders(path)
    return [path, *inside, *(deep for folder in inside if folder.name in SPLIT_FOLDERS for deep in _subfolders(folder))]


def _image_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(
        file for file in path.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )  # fmt: skip
