"""The official archives: CIFAR-10 and ImageNet averaged down, both pickled batches of rows.

A row is an image: first all of its red, then its green, then its blue pixels, line by line, so that a batch
`(N, 3 S S)` is `(N, 3, S, S)` as it lies. Archives are read as they are, never unpacked.

References: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009; P. Chrabaszcz, I. Loshchilov,
F. Hutter, "A downsampled variant of ImageNet as an alternative to the CIFAR datasets", 2017, arXiv 1707.08819.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import torch

from . import pickles
from .layouts import Layout, missing_split
from .pixels import ImageSet, Resolution, Watch, shrink

CIFAR = "cifar-10-batches-py"
MAX_ENTRIES = 10_000  # of an archive: later ones are not read


class Batches(Layout):
    """Pickled batches in a folder or an archive."""

    SIDES: ClassVar[tuple[int, ...]]
    FIRST: ClassVar[int]  # the smallest label
    CLASSES: ClassVar[int]
    PARTS: ClassVar[dict[str, tuple[str, ...]]]
    EXTRA: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def places(self) -> list[Path]:
        """The folder or the archives to look in."""

    def files(self) -> list[Path]:
        wanted = {*self.EXTRA, *(name for names in self.PARTS.values() for name in names)}
        found: list[Path] = []
        for place in self.places():
            found += (
                [place] if place.is_file() else [place / name for name in sorted(wanted) if (place / name).is_file()]
            )
        return found

    def read(self, split: str, resolution: Resolution, watch: Watch) -> ImageSet:
        half = "train" if split == "train" else "test"
        wanted, title = self.PARTS[half], f"Reading {self.path.name}"
        pixels, labels, names, found = {}, {}, (), set[str]()
        for place in self.places():
            for name, content in _contents(place, {*wanted, *self.EXTRA}, found):
                where = f"{place}: {name}" if place.is_file() else str(place / name)
                if name in wanted:
                    pixels[name], labels[name] = self._batch(content, where, resolution)
                    watch(title, len(pixels) / len(wanted))
                else:
                    names = _class_names(content, where, self.CLASSES)
        if lacking := [name for name in wanted if name not in pixels]:
            self._refuse_incomplete(split, lacking, found)
        sizes = {name: batch.shape[1:] for name, batch in pixels.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{self.path} has batches of several sizes of images: {sizes}.")
        arrays = [np.concatenate([part[name] for name in wanted]) for part in (pixels, labels)]
        return ImageSet(torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]), names, self.CLASSES)

    def _refuse_incomplete(self, split: str, lacking: list[str], found: set[str]) -> None:
        splits = [half for half, names in self.PARTS.items() if found.issuperset(names)]
        if len(lacking) == len(self.PARTS["train" if split == "train" else "test"]):
            raise missing_split(self.path, split, splits)
        raise ValueError(f"{self.path} lacks {', '.join(lacking)} of split '{split}': unpack the archive again.")

    def _batch(self, content: bytes, where: str, resolution: Resolution) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `(N, 3, S, S)` and labels `(N,)` from 0."""
        fields = pickles.read(content, where)
        data, labels = fields.get("data"), fields.get("labels")
        if not isinstance(data, np.ndarray) or labels is None:
            raise ValueError(f"{where} has {sorted(fields)}, not 'data' and 'labels': it is no batch of images.")
        widths = {3 * side**2: side for side in self.SIDES}
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] not in widths or not len(data):
            rows = " or ".join(f"N x {width}" for width in widths)
            raise ValueError(f"{where}: 'data' must be uint8 of {rows}, got {data.dtype} of shape {data.shape}.")
        side = widths[data.shape[1]]
        numbers = _labels(labels, len(data), self.FIRST, self.CLASSES, where)
        return shrink(data.reshape(-1, 3, side, side), resolution, where), numbers


class Cifar(Batches):
    """CIFAR-10 as its author gives it: `cifar-10-python.tar.gz`, or the folder in it."""

    SIDES, FIRST, CLASSES = (32,), 0, 10
    PARTS: ClassVar = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
    EXTRA = ("batches.meta",)

    @classmethod
    def fits(cls, path: Path) -> bool:
        return is_tar(path) or (path.is_dir() and cls._place(path) is not None)

    @classmethod
    def _place(cls, path: Path) -> Path | None:
        for folder in (path, path / CIFAR):
            if any((folder / name).is_file() for name in (*cls.PARTS["train"], *cls.PARTS["test"])):
                return folder
        archive = path / "cifar-10-python.tar.gz"
        return archive if archive.is_file() else None

    def places(self) -> list[Path]:
        place = self.path if self.path.is_file() else self._place(self.path)
        return [] if place is None else [place]


class Downsampled(Batches):
    """ImageNet averaged down, as image-net.org gives it: zip archives of training and validation, or what is in them.

    Labels there are 1 to 1000, in an order of their own; they are given as 0 to 999.
    """

    SIDES, FIRST, CLASSES = (8, 16, 32, 64), 1, 1000
    PARTS: ClassVar = {"train": tuple(f"train_data_batch_{k}" for k in range(1, 11)), "test": ("val_data",)}

    @classmethod
    def fits(cls, path: Path) -> bool:
        return path.suffix.lower() == ".zip" if path.is_file() else bool(cls._places(path))

    @classmethod
    def _places(cls, path: Path) -> list[Path]:
        if any((path / name).is_file() for names in cls.PARTS.values() for name in names):
            return [path]
        return sorted(p for p in path.glob("*.zip") if p.is_file() and p.name.lower().startswith("imagenet"))

    def places(self) -> list[Path]:
        return [self.path] if self.path.is_file() else self._places(self.path)


def _labels(labels: Any, rows: int, first: int, classes: int, where: str) -> np.ndarray:
    if isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu":
        labels = labels.tolist()
    if type(labels) is not list or any(type(label) is not int for label in labels):
        raise ValueError(f"{where}: 'labels' must be whole numbers, one an image.")
    if len(labels) != rows:
        raise ValueError(f"{where} has {rows} images and {len(labels)} labels: download it again.")
    for row, label in enumerate(labels):
        if not first <= label < first + classes:
            raise ValueError(
                f"{where}: labels must be {first} to {first + classes - 1}, got {label} in row {row} (counted from 0)."
            )
    return np.array(labels, np.int64) - first


def _class_names(content: bytes, where: str, classes: int) -> tuple[str, ...]:
    found = pickles.read(content, where).get("label_names")
    if type(found) is not list or len(found) != classes or any(type(name) not in (bytes, str) for name in found):
        raise ValueError(f"{where}: 'label_names' must be {classes} names.")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in found)


def _contents(place: Path, wanted: set[str], found: set[str]) -> Iterator[tuple[str, bytes]]:
    """The wanted files of a folder or an archive: names and contents. Names of all files are added to `found`.

    Raises:
        ValueError: the archive is damaged.
    """
    reading = _folder if place.is_dir() else _tar if is_tar(place) else _zip
    try:
        yield from reading(place, wanted, found)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{place} is damaged or cut short ({reason}): download it again.") from None


def is_tar(path: Path) -> bool:
    """Whether a file is a tar archive by its name."""
    return path.is_file() and path.name.lower().endswith((".tar.gz", ".tgz", ".tar"))


def _folder(place: Path, wanted: set[str], found: set[str]) -> Iterator[tuple[str, bytes]]:
    found.update(path.name for path in place.iterdir() if path.is_file())
    for name in sorted(wanted & found):
        _check_size((place / name).stat().st_size, str(place / name))
        yield name, (place / name).read_bytes()


def _tar(place: Path, wanted: set[str], found: set[str]) -> Iterator[tuple[str, bytes]]:
    """Members are read in passing; whatever is no regular file of a wanted name is passed over."""
    with tarfile.open(place, "r|*") as archive:
        for member in islice(archive, MAX_ENTRIES):
            _check_size(member.size, f"{place}: {member.name}")
            if not member.isreg() or member.issparse():
                continue
            name = _wanted_name(member.name, place, wanted, found)
            if name is not None and (file := archive.extractfile(member)) is not None:
                yield name, file.read()


def _zip(place: Path, wanted: set[str], found: set[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(place) as archive:
        for member in islice(archive.infolist(), MAX_ENTRIES):
            if member.is_dir() or (name := _wanted_name(member.filename, place, wanted, found)) is None:
                continue
            _check_size(member.file_size, f"{place}: {name}")
            with archive.open(member) as file:
                yield name, file.read(member.file_size + 1)  # one more: to its end, where its checksum is looked at


def _wanted_name(member: str, place: Path, wanted: set[str], found: set[str]) -> str | None:
    """The name of an archive's file if it is wanted and at the top or one folder down."""
    path = PurePosixPath(member)
    if len(path.parts) > 2 or ".." in path.parts or path.is_absolute():
        return None
    if path.name in wanted & found:
        raise ValueError(f"{place} has {path.name} twice: download it again.")
    found.add(path.name)
    return path.name if path.name in wanted else None


def _check_size(size: int, where: str) -> None:
    if size > pickles.MAX_BYTES:
        raise ValueError(f"{where} has {size} bytes, a batch of an image archive at most {pickles.MAX_BYTES}.")
