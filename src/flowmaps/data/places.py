"""Where the data of a name are, in which layout, and whether they are still the same."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from . import hub, tables
from .archives import Cifar, Downsampled
from .folders import Folder
from .latents import file_of
from .layouts import Layout
from .parquet import Parquet
from .pixels import Watch, quiet

BLOCK_BYTES = 2**20  # bytes read at a time

LAYOUTS: tuple[type[Layout], ...] = (Cifar, Downsampled, Parquet, Folder)  # the first one that fits is taken
BUILT_IN = ("checkerboard", "digits")
DOWNLOADS = {
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
WAYS_TO_GIVE_IMAGES = (
    "For images pass 'cifar10', 'imagenet32', an official archive, a folder of parquet files or of images by class, or "
    "the name user/name of a data set on the Hugging Face hub"
)


def candidates(name: str) -> list[Path]:
    """The paths at which the data of a known name are searched, in this order."""
    own = os.environ.get("FLOWMAPS_DATA")
    folders = [Path(own)] if own else []
    return [folder / name for folder in (*folders, Path("data"), Path("..", "shared", "data"))]


def find_data(name: str) -> Path | None:
    """The path that a name stands for, or `None` if there is none.

    Raises:
        ValueError: data of a known name are in none of the folders that are searched.
    """
    if name not in DOWNLOADS:
        return Path(name) if Path(name).exists() else None
    for path in candidates(name):
        if path.exists():
            return path
    official, on_hub = DOWNLOADS[name]
    looked = ", ".join(map(str, candidates(name)))
    unset = "" if os.environ.get("FLOWMAPS_DATA") else " ($FLOWMAPS_DATA is not set)"
    raise ValueError(
        f"{name} is not here: looked at {looked}{unset}. Three ways to get it: (1) put {official}, into one of these "
        f"folders, or give its path by --data PATH; (2) from the Hugging Face hub by --data {on_hub}; (3) a folder of "
        f"parquet files, or of images with a subfolder a class, by --data FOLDER."
    )


def layout_of(name: str, path: Path | None) -> Layout:
    """The layout of the image files at `path`.

    Raises:
        ValueError: there is no file or folder, or its layout is unknown.
    """
    if path is None:
        if Path(name).suffix or os.sep in name:
            raise ValueError(_unknown_data(name) + f": there is no file or folder {name}. {WAYS_TO_GIVE_IMAGES}.")
        raise ValueError(_unknown_data(name) + f". {WAYS_TO_GIVE_IMAGES}.")
    for kind in LAYOUTS:
        if kind.fits(path):
            return kind(path)
    if path.is_file():
        raise ValueError(_unknown_data(name) + f". {WAYS_TO_GIVE_IMAGES}.")
    inside = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
    raise ValueError(f"{path} has no data of a known layout: it has {inside}. {WAYS_TO_GIVE_IMAGES}.")


def _unknown_data(name: str) -> str:
    return f"data must be 'checkerboard', 'digits' or a file ending in {', '.join(tables.SUFFIXES)}, got {name!r}"


def resolve(name: str) -> str:
    """The name of data by which any working directory finds them: an absolute path for files and folders, else `name`.

    Raises:
        ValueError: data of a known name are in none of the folders that are searched.
    """
    if name in BUILT_IN or not name:
        return name
    path = find_data(name)
    return name if path is None else str(path.resolve())


def fingerprint(name: str, watch: Watch | None = None) -> str | None:
    """A checksum of the data that a name stands for, of all splits; `None` for the program's own.

    Of a file it is the SHA-256; of a folder, the SHA-256 of its files' names, sizes and contents; of a data set on the
    Hugging Face hub, its version there.

    Args:
        name: as in `open_data`.
        watch: progress callback.

    Raises:
        ValueError: no such data.
    """
    if name in BUILT_IN or not name:
        return None
    if (latents := file_of(name)) is not None:
        return _file_checksum(latents, watch or quiet)
    if tables.is_array_file(name):
        return _file_checksum(Path(name))
    path = find_data(name)
    if path is None and hub.is_hub(name):
        return hub.version(name)
    found = layout_of(name, path)
    files = found.files()
    if files == [found.path]:
        return _file_checksum(found.path, watch or quiet)
    total, done, checksum = sum(file.stat().st_size for file in files), 0, hashlib.sha256()
    for file in files:
        inside = file.relative_to(found.path).as_posix()
        checksum.update(f"{inside}\0{file.stat().st_size}\0{_file_checksum(file)}\n".encode())
        done += file.stat().st_size
        (watch or quiet)(f"Checking {found.path.name}", done / max(total, 1))
    return checksum.hexdigest()


def _file_checksum(path: Path, watch: Watch = quiet) -> str:
    if not path.is_file():
        raise ValueError(f"there is no file {path}: restore it, or pass --data with another.")
    checksum, size, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            checksum.update(block)
            done += len(block)
            watch(f"Checking {path.name}", min(1.0, done / size))
    return checksum.hexdigest()
