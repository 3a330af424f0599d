"""Images in memory: many decoded images made into one array, and arrays averaged down to a smaller size.

The mean of an area, rounded half up, is what a coarser camera would have seen: no ringing, no aliasing, and exact.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..system.progress import Watch as Watch
from ..system.progress import quiet as quiet

HALF_RANGE = 127.5
"""Pixels 0..255 are to a network -1..1: x / HALF_RANGE - 1."""
A = TypeVar("A")
B = TypeVar("B")
MOST_LOOKED_AT = 2_000
"""Images whose sizes are looked at after the first one that has another size."""
CHUNK = 256  # images that a thread works on at a time: enough that starting it costs little


Resolution = int | str | tuple[int, int]
"""Size to which images are averaged down: 0 for as they are, pixels of each side, or height and width: 16, "16x32"."""
RECTANGLE = re.compile(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})")


def sides(resolution: Resolution) -> tuple[int, int] | None:
    """Height and width of a resolution; `None` for images as they are.

    Raises:
        ValueError: it is not a resolution: negative, or of another form.
    """
    match = RECTANGLE.fullmatch(resolution) if isinstance(resolution, str) else None
    both = (int(match[1]), int(match[2])) if match else resolution
    if isinstance(both, str) and both.isdecimal():
        both = int(both)
    if isinstance(both, int) and not isinstance(both, bool):
        both = (both, both)
    if both == (0, 0):
        return None
    if not isinstance(both, tuple) or len(both) != 2 or any(type(n) is not int or n < 1 for n in both):
        raise ValueError(
            "--resolution must be 0 (as it is), a number of pixels, or HEIGHTxWIDTH such as 16x32, got "
            f"{resolution!s:.40}."
        )
    return both


class ImageSet(NamedTuple):
    """The images of a split.

    Attributes:
        pixels: `(N, C, H, W)`, uint8.
        labels: `(N,)`, int64, or `None`.
        names: of the classes; none where the files do not name them.
        classes: their number; 0 where only the labels tell it.
        label_type: numpy's name of the type of the labels in the file; empty where they are 0..K-1.
        notes: what was left out or guessed: a sentence each.
    """

    pixels: Tensor
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    classes: int = 0
    label_type: str = ""
    notes: tuple[str, ...] = ()


def middle(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest rectangle in the middle of images `(..., H, W)` whose sides are as `height` to `width`."""
    across, down = array.shape[-1], array.shape[-2]
    if down * width <= across * height:  # as high as the image
        kept = down, down * width // height
    else:
        kept = across * height // width, across
    kept = max(1, kept[0]), max(1, kept[1])
    top, left = (down - kept[0]) // 2, (across - kept[1]) // 2
    return array[..., top : top + kept[0], left : left + kept[1]]


def shrink(pixels: np.ndarray, resolution: Resolution, where: str) -> np.ndarray:
    """Images `(N, C, H, W)` uint8 cropped to a resolution's shape and averaged down to it; unchanged if that is 0.

    Raises:
        ValueError: the sides are no multiple of the resolution.
    """
    if (size := sides(resolution)) is None:
        return pixels
    cropped = middle(pixels, *size)
    if not is_multiple(cropped.shape[-2:], size):
        raise ValueError(_no_multiple(pixels.shape[-2:], cropped.shape[-2:], size, where))
    if cropped.shape[-2:] == size:
        return np.ascontiguousarray(cropped)
    means = np.empty((*cropped.shape[:2], *size), np.uint8)
    for first in range(0, len(cropped), CHUNK):
        means[first : first + CHUNK] = area_mean(cropped[first : first + CHUNK], size)
    return means


def is_multiple(whole: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether both sides are the same multiple of a size."""
    return whole[0] % size[0] == 0 and whole[0] * size[1] == whole[1] * size[0]


def _no_multiple(have: tuple[int, ...], whole: tuple[int, ...], size: tuple[int, int], where: str) -> str:
    """The refusal of a resolution that does not divide the sides of images, and those that do."""
    if size[0] == size[1]:
        side = whole[0]
        fits = ", ".join(str(n) for n in range(min(4, side), side + 1) if side % n == 0)
        return (
            f"{where} has images of {side} pixels a side, no multiple of --resolution {size[0]}: choose one of {fits}."
        )
    common = math.gcd(*have)
    fits = ", ".join(f"{have[0] // n}x{have[1] // n}" for n in range(common, 0, -1) if common % n == 0)
    return (
        f"{where} has images of {have[0]} x {have[1]} pixels (height x width), of which --resolution "
        f"{size[0]}x{size[1]} is no whole part: without cropping there are {fits}."
    )


def area_mean(pixels: np.ndarray, resolution: Resolution) -> np.ndarray:
    """The exact mean of each cell of images `(..., H, W)` uint8, rounded half up; the sides are one multiple of it."""
    size = sides(resolution)
    assert size is not None
    times = pixels.shape[-2] // size[0]
    cells = pixels.reshape(*pixels.shape[:-2], size[0], times, size[1], times)
    sums = cells.sum((-3, -1), dtype=np.uint32)
    return ((2 * sums + times**2) // (2 * times**2)).astype(np.uint8)


def gather(images: Iterable[np.ndarray], number: int, where: Callable[[int], str]) -> Tensor:
    """One array `(N, C, H, W)` of decoded images `(H, W)` or `(H, W, 3)` that have one size.

    A set of grey images has one channel; with a colour image among them all have three.

    Args:
        images: in their order, `number` of them.
        number: N.
        where: what to call an image in an error.

    Raises:
        ValueError: there are none, or their sizes differ.
    """
    pixels, size, row = np.empty((0, 1, 0, 0), np.uint8), (0, 0), -1
    remaining = iter(images)
    for row, image in enumerate(remaining):
        if not row:
            size = image.shape[:2]
            pixels = _allocate((number, 3 if image.ndim == 3 else 1, *size), where(0))
        if row == number:
            break
        if image.shape[:2] != size:
            more = [other.shape[:2] for other in itertools.islice(remaining, MOST_LOOKED_AT)]
            least, seen = min(map(min, [size, image.shape[:2], *more])), row + 1 + len(more)
            which = "all" if seen == number else f"the first {seen:,}"
            raise ValueError(
                f"{where(row)} has {image.shape[1]} x {image.shape[0]} pixels, {where(0)} has {size[1]} x {size[0]}: "
                f"pass --resolution {least}, the least side of {which}, or less, to which they are cropped in the "
                "middle and averaged."
            )
        if image.ndim == 3 and pixels.shape[1] == 1:
            pixels = np.repeat(pixels, 3, axis=1)
        pixels[row] = image.transpose(2, 0, 1) if image.ndim == 3 else image
    if row + 1 != number or not number:
        raise ValueError(f"{where(max(row, 0))}: there are {row + 1} images or more in the place of {number}.")
    return torch.from_numpy(pixels)


def _allocate(shape: tuple[int, ...], where: str) -> np.ndarray:
    """An uninitialised array of pixels, or an error that says what to do where memory is short."""
    try:
        return np.empty(shape, np.uint8)
    except MemoryError:
        raise ValueError(
            f"{shape[0]} images as large as {where} ({shape[3]} x {shape[2]}) do not fit into memory: pass a smaller "
            f"--resolution."
        ) from None


def in_order(task: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Results of `task` in the order of `items`, computed by threads that run only a little ahead of the caller."""
    workers = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(task, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
