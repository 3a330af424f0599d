"""A folder of image files: one subfolder a class, with or without `train/` and `test/` above them, or no subfolders.

Images in deeper folders belong to the class at the top. Files that are no images are left out, counted and named.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from .decode import IMAGE_SUFFIXES, decode, pillow
from .layouts import SPLITS, Layout, missing_split
from .options import listed
from .pixels import CHUNK, ImageSet, Resolution, Watch, gather, in_order

SPLIT_FOLDERS = tuple(dict.fromkeys(name for names in SPLITS.values() for name in names))


class Folder(Layout):
    """Image files; classes are numbered in the alphabetical order of their folders.

    A folder without `train/` or `test/` is the training split. The classes of all splits are those of training.
    """

    @classmethod
    def fits(cls, path: Path) -> bool:
        return path.is_dir() and any(_is_image(file) for file in _visible_files(path))

    def files(self) -> list[Path]:
        return [file for file in _visible_files(self.path) if _is_image(file)]

    def read(self, split: str, resolution: Resolution, watch: Watch) -> ImageSet:
        pillow()
        root = self._split(split)
        files, labels = _images_beside(root), []
        names = tuple(folder.name for folder in _subfolders(root) if _images_within(folder))
        if files and names:
            raise ValueError(
                f"{root} has images beside folders of images ({files[0].name}, {names[0]}): put each into the folder "
                f"of its class, or all of them into one without folders."
            )
        _refuse_classes_below(root, names)
        names = self._classes(root, names)
        for label, name in enumerate(names):
            inside = _images_within(root / name)
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
        return ImageSet(pixels, torch.tensor(labels) if names else None, names, notes=_notes(root, files))

    def _split(self, split: str) -> Path:
        splits = [name for name in SPLIT_FOLDERS if (self.path / name).is_dir()]
        others = [folder.name for folder in _subfolders(self.path) if folder.name not in SPLIT_FOLDERS]
        others = [name for name in others if splits and _images_within(self.path / name)]
        if others:
            raise ValueError(
                f"{self.path} has images in {listed(others, 4)} beside {listed(splits, 4)}, which name a split: rename "
                f"{splits[0]} if it is a class, or move {others[0]} away."
            )
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
        classes = tuple(folder.name for folder in _subfolders(trained) if _images_within(folder))
        if unknown := sorted({*names} - {*classes}):
            raise ValueError(f"{root} has the classes {', '.join(unknown)}, which {trained} does not have.")
        return classes


def _refuse_classes_below(root: Path, names: tuple[str, ...]) -> None:
    """Refuse one folder whose images are all in several folders of its own, which are the classes."""
    if len(names) != 1 or _images_beside(root / names[0]):
        return
    below = [folder.name for folder in _subfolders(root / names[0]) if _images_within(folder)]
    if len(below) > 1:
        raise ValueError(
            f"{root} has one folder, {names[0]}, and all images in folders inside it ({listed(below, 4)}): pass "
            f"--data {root / names[0]} if those are the classes, or move the images up into {names[0]}."
        )


def _notes(root: Path, files: list[Path]) -> tuple[str, ...]:
    """What was left out of a folder, and which images lie in deeper folders."""
    notes, read = [], {*files}
    left = Counter(file.suffix.lower() or "no suffix" for file in _visible_files(root) if file not in read)
    if left:
        kinds = listed([f"{number:,} with {suffix}" for suffix, number in left.most_common()], 6)
        one = left.total() == 1
        files_were = f"{left.total():,} {'file that is' if one else 'files that are'} not read as images"
        notes.append(f"{files_were} {'was' if one else 'were'} left out: {kinds}")
    deeper = [file for file in files if len(file.relative_to(root).parts) > 2]
    if deeper:
        notes.append(
            f"{len(deeper):,} images lie in deeper folders, such as {deeper[0].parent.relative_to(root)}, and belong "
            "to the class of the first folder"
        )
    return tuple(notes)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _subfolders(path: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and links back to where they are."""
    found = (folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    above = (path.resolve(), *path.resolve().parents)
    return sorted(folder for folder in found if not folder.is_symlink() or folder.resolve() not in above)


def _visible_files(path: Path) -> list[Path]:
    """All files below a folder, in order, without hidden ones and those of hidden folders."""
    if not path.is_dir():
        return []
    beside = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    return beside + [file for folder in _subfolders(path) for file in _visible_files(folder)]


def _images_beside(path: Path) -> list[Path]:
    inside = path.iterdir() if path.is_dir() else ()
    return sorted(file for file in inside if _is_image(file) and not file.name.startswith(".") and file.is_file())


def _images_within(path: Path) -> list[Path]:
    return [file for file in _visible_files(path) if _is_image(file)]
