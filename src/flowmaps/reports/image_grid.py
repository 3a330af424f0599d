"""Many images in one figure, pixel by pixel: rows with labels, columns with names, blocks of columns with titles.

One array holds all images and is drawn once, each pixel of an image as a square of whole pixels of the PNG, so that
nothing is smoothed and nothing is lost; hundreds of axes would take minutes and round their edges differently.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from torch import Tensor
from torch.nn.functional import interpolate

from .style import FAINT, INK

DPI = 144  # of figures.save; lengths below are pixels at it
MAX_WIDTH, MAX_IMAGE_WIDTH = 1960, 200  # of the figure and of an image in it: a report shows them at half the size
GAP, BLOCK_GAP, MARGIN, TEXT_GAP = 4, 36, 8, 14  # between images, between blocks, round the figure, beside text
TEXT_SIZE, MIN_TEXT_SIZE = 12.0, 8.5  # in points
MAX_LABEL_WIDTH = 340


def image_grid(
    images: Tensor,
    rows: int,
    labels: Sequence[str] = (),
    *,
    columns: Sequence[str] = (),
    blocks: Mapping[str, int] | None = None,
) -> Figure:
    """Images of 0..255 in rows, the first row first, every pixel drawn as it is.

    Args:
        images: uint8 `(N, C, H, W)` with C of 1 (grey) or 3; N a multiple of `rows`. Images too large for the picture
            are averaged down.
        rows: how many rows.
        labels: a label for each row, such as "4 steps"; a second line in it is fainter. None by default.
        columns: a name for each column, such as the class asked for; none by default.
        blocks: title -> number of columns, from the left: columns set apart under a title of their own. They add up to
            the columns there are; all in one block without title by default.

    Raises:
        ValueError: the images are of another kind, N is no multiple of `rows`, or labels, columns or blocks do not fit.
    """
    across = _check(images, rows, labels, columns, blocks)
    left = max((_width(line, TEXT_SIZE) for label in labels for line in label.split("\n")), default=0.0)
    left = MARGIN + round(min(left, MAX_LABEL_WIDTH) + TEXT_GAP if left else 0)
    gaps = _gaps(across, blocks or {})
    pixels = _scaled(images, (MAX_WIDTH - left - MARGIN - sum(gaps)) // across)
    height, width = pixels.shape[1:3]
    x = np.arange(across) * width + np.cumsum([0, *gaps])[:across]
    y = np.arange(rows) * (height + GAP)
    canvas = np.full((y[-1] + height, x[-1] + width, 3), 255, dtype=np.uint8)
    for image, (top, start) in zip(pixels, itertools.product(y, x), strict=True):
        canvas[top : top + height, start : start + width] = image
    page = _Page.with_margins(canvas, left, 30 * (bool(columns) + bool(blocks)))
    for label, top in zip(labels, y, strict=False):
        page.label(label, top + height / 2)
    page.head(columns, x + width / 2, width + GAP)
    page.titles(blocks or {}, x + width / 2, -7 - 30 * bool(columns))
    return page.figure


def ink_on_paper(images: Tensor) -> Tensor:
    """Grey images of any range as uint8 `(N, 1, H, W)`, for `image_grid`: the least value white, the greatest black.

    Args:
        images: `(N, H, W)`, finite.
    """
    images = images.double()
    low, high = float(images.min()), float(images.max())
    ink = (images[:, None] - low) / max(high - low, 1e-12)
    return (1 - ink).mul(255).round().to(torch.uint8)


def _check(
    images: Tensor, rows: int, labels: Sequence[str], columns: Sequence[str], blocks: Mapping[str, int] | None
) -> int:
    """The number of columns; images, labels, columns and blocks that do not fit are refused."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"an image grid needs images of uint8, shape (N, 1 or 3, H, W), got {images.dtype} of "
            f"{tuple(images.shape)}: units.to_pixels makes them."
        )
    if rows < 1 or len(images) % rows:
        raise ValueError(f"the number of images must be a multiple of rows, got {len(images)} images in {rows} rows.")
    across = len(images) // rows
    if len(labels) not in (0, rows) or len(columns) not in (0, across):
        raise ValueError(f"needs {rows} labels and {across} columns or none, got {len(labels)} and {len(columns)}.")
    if blocks and (min(blocks.values()) < 1 or sum(blocks.values()) != across):
        raise ValueError(f"blocks must share out all {across} columns, at least one to each, got {dict(blocks)}.")
    return across


def _gaps(across: int, blocks: Mapping[str, int]) -> list[int]:
    """Pixels between columns, one number fewer than there are columns."""
    gaps = [GAP] * across
    for last in itertools.accumulate(blocks.values()):
        gaps[last - 1] = BLOCK_GAP
    return gaps[:-1]


def _scaled(images: Tensor, room: int) -> np.ndarray:
    """Images `(N, H', W', 3)` no wider than `room` pixels: each pixel a square, or a mean where images are wider."""
    room = max(1, min(room, MAX_IMAGE_WIDTH))
    factor = room / max(images.shape[2:])
    if factor < 1:
        size = [max(1, int(factor * length)) for length in images.shape[2:]]
        images = interpolate(images.float(), size=size, mode="area").round().to(torch.uint8)
    pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
    return pixels.repeat(max(1, int(factor)), axis=1).repeat(max(1, int(factor)), axis=2)


@dataclass(frozen=True)
class _Page:
    """A figure with a canvas of images in it; text is placed in pixels of the canvas."""

    figure: Figure
    across: int

    @classmethod
    def with_margins(cls, canvas: np.ndarray, left: int, top: int) -> _Page:
        """A page on which each pixel of the canvas is one of the PNG, with room for text at the left and above."""
        height, width = canvas.shape[:2]
        whole = (left + width + MARGIN, top + height + 2 * MARGIN)
        figure = Figure(figsize=(whole[0] / DPI, whole[1] / DPI), dpi=DPI)
        place = (left / whole[0], MARGIN / whole[1], width / whole[0], height / whole[1])
        ax = figure.add_axes(place)
        ax.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
        ax.set_axis_off()
        return cls(figure, width)

    def write(self, text: str, x: float, y: float, size: float) -> None:
        """A line centred over x."""
        self.figure.axes[0].text(x, y, text, size=size, color=INK, ha="center", va="baseline", parse_math=False)

    def head(self, names: Sequence[str], middles: np.ndarray, room: float) -> None:
        """Names over the columns, in one size, cut where even the smallest is too wide."""
        size = min((_fitting(name, room) for name in names), default=TEXT_SIZE)
        for name, x in zip(names, middles, strict=False):
            self.write(_shortened(name, size, room), x, -7, size)

    def titles(self, blocks: Mapping[str, int], middles: np.ndarray, y: float) -> None:
        """Titles over blocks of columns."""
        first = 0
        for title, number in blocks.items():
            self.write(title, (middles[first] + middles[first + number - 1]) / 2, y, TEXT_SIZE)
            first += number

    def label(self, text: str, y: float) -> None:
        """A row's label to the left of it, its second line fainter and smaller."""
        first, *more = [_shortened(line, TEXT_SIZE, MAX_LABEL_WIDTH) for line in text.split("\n")]
        options = {"ha": "right", "va": "center_baseline", "parse_math": False}
        ax = self.figure.axes[0]
        ax.text(-TEXT_GAP, y - 16 * bool(more), first, size=TEXT_SIZE, color=INK, **options)
        for k, line in enumerate(more):
            ax.text(-TEXT_GAP, y + 14 + 28 * k, line, size=TEXT_SIZE - 2, color=FAINT, **options)


def _width(text: str, size: float) -> float:
    """How wide a line of text is, in pixels, and a little more: letters are set on whole pixels."""
    if not text.strip():
        return 0.0
    return 1.03 * TextPath((0, 0), text.replace("$", "S"), size=size).get_extents().width * DPI / 72


def _fitting(text: str, room: float) -> float:
    """The size of text at which a line goes into so many pixels, or the smallest."""
    return max(MIN_TEXT_SIZE, min(TEXT_SIZE, TEXT_SIZE * 0.94 * room / max(_width(text, TEXT_SIZE), 1.0)))


def _shortened(text: str, size: float, room: float) -> str:
    """A line cut to so many pixels."""
    if _width(text, size) <= room:
        return text
    fitting = bisect.bisect_right(range(1, len(text)), room, key=lambda length: _width(text[:length] + "…", size))
    return text[: max(fitting, 1)].rstrip() + "…"
