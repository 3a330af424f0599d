"""Rows of a run for its report; and pictures of images read back: the pixels of each image, the words beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from flowmaps.reports.image_grid import BLOCK_GAP, GAP

ROWS = [
    {
        "sampler": "teacher",
        "solver": "dopri5",
        "nfe": 98,
        "kl": 0.0662,
        "kl_floor": 0.00068,
        "w2": 0.05,
        "seconds": 40.123,
    },
    {"sampler": "map", "steps": 4, "nfe": 4, "kl": 0.1, "kl_floor": 0.00068, "w2": 0.07, "seconds": 0.4},
]


def tiles_of(
    figure: Figure, rows: int, columns: int, height: int, width: int, blocks: Sequence[int] = ()
) -> np.ndarray:
    """The images of a picture by `image_grid`, `(rows * columns, height, width, 3)`, uint8."""
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    high = (canvas.shape[0] - (rows - 1) * GAP) // rows
    gaps = [GAP] * (columns - 1)
    for k in np.cumsum(blocks)[:-1]:
        gaps[k - 1] = BLOCK_GAP
    wide = (canvas.shape[1] - sum(gaps)) // columns
    assert high % height == wide % width == 0, "a pixel is a whole number of pixels"
    found = []
    for row in range(rows):
        for column in range(columns):
            top, left = row * (high + GAP), column * wide + sum(gaps[:column])
            tile = canvas[top : top + high, left : left + wide].reshape(height, high // height, width, wide // width, 3)
            assert (tile == tile[:, :1, :, :1]).all(), "a pixel has one colour"
            found.append(tile[:, 0, :, 0])
    return np.stack(found)


def texts_of(figure: Figure) -> list[str]:
    """The words of a picture: labels, names of columns, titles of blocks."""
    return [text.get_text() for text in figure.axes[0].texts]
