"""The reference of samples: statistics and some features of the real images, computed once and kept in a file.

A file is named by what it is computed from (pixels, network, weights) and holds a checksum of its numbers. A file that
is damaged, or of something else, is computed anew, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..system.files import write_atomically
from .features import Checksummed, Features, Watch, check_pixels, extract, spread
from .images import Statistics

_FORMAT = 1  # of a file: files of another format are not found
_TENSORS = ("mean", "cov", "points")


@dataclass(frozen=True)
class Reference:
    """Real images as features.

    Args:
        statistics: of all of them.
        points: features of some, spread evenly over them, `(n, D)` float32: for kernel distance, precision and recall.
    """

    statistics: Statistics
    points: Tensor


def reference(
    features: Features,
    images: Tensor,
    *,
    keep: int = 5000,
    cache: str | os.PathLike[str] | None = None,
    batch: int = 32,
    device: torch.device | str | None = None,
    watch: Watch | None = None,
) -> Reference:
    """The reference of real images, from its file where there is one.

    Only features of a network with a `checksum` of its weights are kept in a file: another network may have changed.

    Args:
        features: the network.
        images: pixels, uint8, `(N, C, H, W)` with C of 1 or 3.
        keep: how many images' features to keep as points, at least 1.
        cache: folder of the files; by default `cache_folder()`. It is made; one that cannot be written is no error.
        batch: images at a time, as in `extract`.
        device: where to compute, as in `extract`.
        watch: progress callback.

    Raises:
        ValueError: the images are no such pixels, `keep` is below 1, or the network returned what it should not.

    Warns:
        UserWarning: a file was damaged or another's, or could not be written.
    """
    check_pixels(images)
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}: 5,000 is a good number.")
    path = key = None
    if isinstance(features, Checksummed):
        key = _key(features.name, features.checksum, images, keep)
        path = Path(cache_folder() if cache is None else cache) / f"reference-{key[:24]}.safetensors"
        if (found := _read(path, key, features)) is not None:
            return found
    x = extract(features, images, batch=batch, device=device, watch=watch)
    made = Reference(Statistics.of(x, features.name), x[spread(len(x), keep)].clone())
    if path is not None and key is not None:
        _write(path, key, made)
    return made


def cache_folder() -> Path:
    """The folder of the files: `FLOWMAPS_CACHE`, or `flowmaps` in `XDG_CACHE_HOME`, or `~/.cache/flowmaps`."""
    if own := os.environ.get("FLOWMAPS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowmaps"


def _key(name: str, checksum: str, images: Tensor, keep: int) -> str:
    """SHA-256 of all that a reference is made from."""
    head = [_FORMAT, name, checksum, keep, list(images.shape)]
    digest = hashlib.sha256(json.dumps(head).encode())
    for part in images.split(4096):
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _checksum(key: str, number: int, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the numbers in a file and of its key."""
    digest = hashlib.sha256(json.dumps([key, number]).encode())
    for name in _TENSORS:
        digest.update(str(tuple(tensors[name].shape)).encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, key: str, features: Features) -> Reference | None:
    """The reference in a file; `None` where there is no file, and with a warning where it is not to be trusted."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            head = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        number = int(head["number"])
        if head["key"] != key or head["sha256"] != _checksum(key, number, tensors):
            raise ValueError("its checksum is another")
        statistics = Statistics(number, tensors["mean"], tensors["cov"], features.name)
        return Reference(statistics, tensors["points"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        warnings.warn(
            f"the kept reference {path} is damaged or another's ({error}): it is computed anew.", stacklevel=3
        )
        return None


def _write(path: Path, key: str, made: Reference) -> None:
    """Write a reference to its file; a folder that cannot be written is a warning, no error."""
    statistics = made.statistics
    tensors = {"mean": statistics.mean, "cov": statistics.cov, "points": made.points}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    head = {"key": key, "number": str(statistics.number), "sha256": _checksum(key, statistics.number, tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(tensors, head))
    except OSError as error:
        warnings.warn(
            f"the reference cannot be kept in {path.parent} ({error}): it is computed again the next time. "
            "Set FLOWMAPS_CACHE to a folder that can be written.",
            stacklevel=3,
        )
