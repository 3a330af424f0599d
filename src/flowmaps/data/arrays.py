"""Arrays of images and of latents: which of them an array holds, by its type, shape and range."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from .fit import LEAST_HELD_OUT, held_out_rows
from .labels import classes_of
from .pixels import ImageSet
from .sources import Points
from .tables import Arrays, latents

MAX_CHANNELS = 4
"""An axis of more is no axis of colours."""


def holds_pixels(array: np.ndarray) -> bool:
    """Whether an array has uint8 images."""
    return array.dtype == np.uint8 and array.ndim in (3, 4) and 0 not in array.shape


def image_set(arrays: Arrays, pixels: np.ndarray, path: Path) -> ImageSet:
    """Images `(N, H, W)`, `(N, C, H, W)` or `(N, H, W, C)` of uint8, with their labels."""
    pixels = _channels_first(pixels, path)
    if arrays.labels is None:
        return ImageSet(torch.from_numpy(pixels), notes=arrays.notes)
    found = classes_of(arrays.labels, len(pixels), str(path))
    said = (*arrays.notes, f"the classes are {found.said}") if found.said else arrays.notes
    return ImageSet(torch.from_numpy(pixels), found.numbers, found.names, label_type=found.type, notes=said)


def float_images(array: np.ndarray, path: Path) -> tuple[np.ndarray | None, str]:
    """Floats `(N, H, W, 1 or 3)` as uint8 pixels and a note on how; `None` for latents `(N, C, H, W)`.

    Raises:
        ValueError: they could be images or latents.
    """
    if array.dtype.kind != "f" or array.ndim != 4 or array.shape[3] not in (1, 3) or array.shape[1] <= MAX_CHANNELS:
        return None, ""
    if array.shape[2] <= MAX_CHANNELS or not np.isfinite(array).all():
        return None, ""
    low, high = float(array.min()), float(array.max())
    shift, scale, said = 0.0, 1.0, "0 to 255"
    if low >= 0 and high <= 1:
        scale, said = 255.0, "0 to 1, times 255"
    elif low >= -1 and high <= 1:
        shift, scale, said = 127.5, 127.5, "-1 to 1, times 127.5 plus 127.5"
    elif low < 0 or high > 255:
        raise ValueError(
            f"{path} of shape {array.shape} could be images with {array.shape[3]} channels last, whose floats are from "
            f"0 to 1, -1 to 1 or 0 to 255, but it has {low:g} to {high:g}: scale them and save uint8; or latents: save "
            "x.transpose(0, 3, 1, 2), with the channels first."
        )
    pixels = np.clip(np.round(array.astype(np.float64) * scale + shift), 0, 255).astype(np.uint8)
    return pixels, f"floats with the channels last are read as images of {array.shape[3]} channels, from {said}"


def points_of_latents(arrays: Arrays, path: Path, labels: bool, held_out: float = 0.0) -> Points:
    """Latents `(N, C, H, W)`, each channel standardised; a share of them held out."""
    every, dims = latents(arrays.array, path), (0, 2, 3)
    held = torch.from_numpy(held_out_rows(len(every), held_out))
    if held_out and not len(held):
        raise ValueError(
            f"--held-out {held_out:g} of {len(every)} latents is fewer than {LEAST_HELD_OUT}: hold out more."
        )
    chosen = torch.ones(len(every), dtype=torch.bool).index_fill_(0, held, False)
    data = every[chosen]
    shift, scale = data.mean(dims), data.std(dims) if data[:, 0].numel() > 1 else torch.zeros(data.shape[1]).double()
    low, high = data.amin(dims), data.amax(dims)
    shift = torch.where(low == high, low, shift)
    found = None if arrays.labels is None or not labels else classes_of(arrays.labels, len(every), str(path))
    numbers, names = (None, ()) if found is None else (found.numbers[chosen], found.names)
    points = Points(data, numbers, shift, torch.where(low == high, 0, scale), names)
    if len(held):
        divisor = torch.where((low == high) | (scale == 0), 1, scale)
        points.held_out = ((every[held] - shift[:, None, None]) / divisor[:, None, None]).float()
    kind = "" if found is None else found.type
    points.units = dataclasses.replace(points.units, type=arrays.array.dtype.name, label_type=kind)
    return points


def _channels_first(array: np.ndarray, path: Path) -> np.ndarray:
    """Images `(N, C, H, W)` of an array whose channels are first, last or, of grey images, not there."""
    if array.ndim == 3:
        return array[:, None]
    first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
    if first == last:
        says = "could have its channels first or last" if first else "has no axis of 1 or 3 channels"
        raise ValueError(
            f"{path} of shape {array.shape} {says}: save images as uint8 (number, height, width, 3), or "
            f"(number, height, width) for grey ones."
        )
    return array if first else np.ascontiguousarray(array.transpose(0, 3, 1, 2))
