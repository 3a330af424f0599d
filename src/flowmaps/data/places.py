"""Where the data of a name are, in which layout, and whether they are still the same."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from . import hub, tables
from .archives import Cifar, Downsampled
from .folders import Folder
from .layouts import Layout
from .parquet import Parquet
from .pixels import Watch, quiet

BLOCK = 2**20  # bytes read at a time

LAYOUTS: tuple[type[Layout], ...] = (Cifar, Downsampled, Parquet, Folder)  # the first that fits
OWN = ("checkerboard", "digits")
KNOWN = {
    "cifar10": (
        "the official archive, https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "uoft-cs/cifar10",
    ),
    "imagenet32": (
        "the official archives, Imagenet32_train.zip and Imagenet32_val.zip (train_data_batch_1 to _10 and val_data), "
        "for whoever has signed in at https://image-net.org/download-images",
        "benjamin-paine/imagenet-1k-32x32",
    ),
}
WAYS = (
    "For images pass 'cifar10', 'imagenet32', an official archive, a folder of parquet files or of images by class, or "
    "the name user/name of a data set on the Hugging Face hub"
)


def places(name: str) -> list[Path]:
    """Where the data of a known name are looked for, in this order."""
    given = os.environ.get("FLOWMAPS_DATA")
    folders = [Path(given)] if given else []
    return [folder / name for folder in (*folders, Path("data"), Path("..", "shared", "data"))]


def place(name: str) -> Path | None:
    """The path that a name stands for, or `None` if there is none.

    Raises:
        ValueError: data of a known name are in none of their places.
    """
    if name not in KNOWN:
        return Path(name) if Path(name).exists() else None
    for path in places(name):
        if path.exists():
            return path
    official, on_hub = KNOWN[name]
    looked = ", ".join(map(str, places(name)))
    unset = "" if os.environ.get("FLOWMAPS_DATA") else " ($FLOWMAPS_DATA is not set)"
    raise ValueError(
        f"{name} is not here: looked at {looked}{unset}. Three ways to get it: (1) put {official}, into one of these "
        f"folders, or give its path by --data PATH; (2) from the Hugging Face hub by --data {on_hub}; (3) a folder of "
        f"parquet files, or of images with a subfolder a class, by --data FOLDER."
    )


def layout(name: str, path: Path | None) -> Layout:
    """How the images at `path` lie in their files.

    Raises:
        ValueError: there is nothing, or nothing that is understood.
    """
    if path is None:
        if Path(name).suffix or os.sep in name:
            raise ValueError(_unknown(name) + f": there is no file or folder {name}. {WAYS}.")
        raise ValueError(_unknown(name) + f". {WAYS}.")
    for kind in LAYOUTS:
        if kind.fits(path):
            return kind(path)
    if path.is_file():
        raise ValueError(_unknown(name) + f". {WAYS}.")
    inside = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
    raise ValueError(f"{path} has no data that are understood: it has {inside}. {WAYS}.")


def _unknown(name: str) -> str:
    return f"data must be 'checkerboard', 'digits' or a file ending in {', '.join(tables.SUFFIXES)}, got {name!r}"


def resolve(name: str) -> str:
    """The name under which data are found again from any folder: absolute for files and folders, unchanged for others.

    Raises:
        ValueError: data of a known name are in none of their places.
    """
    if name in OWN or not name:
        return name
    path = place(name)
    return name if path is None else str(path.resolve())


def fingerprint(name: str, watch: Watch | None = None) -> str | None:
    """A checksum of the data that a name stands for, of all splits; `None` for the program's own.

    It is the SHA-256 of a file, of a folder that of its files' names, sizes and contents, and of a data set on the
    Hugging Face hub its version there.

    Args:
        name: as in `open_data`.
        watch: told that it is checked, and the share that is done.

    Raises:
        ValueError: no such data.
    """
    if name in OWN or not name:
        return None
    if tables.is_file(name):
        return _of_file(Path(name))
    path = place(name)
    if path is None and hub.is_hub(name):
        return hub.version(name)
    found = layout(name, path)
    files = found.files()
    if files == [found.path]:
        return _of_file(found.path, watch or quiet)
    total, done, seal = sum(file.stat().st_size for file in files), 0, hashlib.sha256()
    for file in files:
        inside = file.relative_to(found.path).as_posix()
        seal.update(f"{inside}\0{file.stat().st_size}\0{_of_file(file)}\n".encode())
        done += file.stat().st_size
        (watch or quiet)(f"Checking {found.path.name}", done / max(total, 1))
    return seal.hexdigest()


def _of_file(path: Path, watch: Watch = quiet) -> str:
    if not path.is_file():
        raise ValueError(f"there is no file {path}: restore it, or pass --data with another.")
    seal, size, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            seal.update(block)
            done += len(block)
            watch(f"Checking {path.name}", min(1.0, done / size))
    return seal.hexdigest()
