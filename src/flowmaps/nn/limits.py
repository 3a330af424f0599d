"""Limits on the arguments of networks, so that a file from a stranger cannot make `load` build an endless network."""

from __future__ import annotations

import math
import reprlib
from numbers import Integral, Real
from typing import Any

MAX_SIZE = 2**24
"""Width of a layer, numbers in a sample, number of classes."""
MAX_DEPTH = 1_000
"""Layers, one after the other."""
MAX_BLOCKS = 100
"""Blocks of one level of a U-Net."""
MAX_PIXELS = 4_096
"""Pixels along one side of an image."""
MAX_TOKENS = 512
"""Tokens along one side of an image."""
MAX_FREQUENCIES = 1_024
"""Frequencies of the Fourier features of one number."""


def check_integer(network: str, least: int, most: int, **values: Any) -> None:
    """Check that arguments of `network` are whole numbers from `least` to `most`.

    Raises:
        ValueError: an argument is not.
    """
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{network} needs a whole number {argument}, got {reprlib.repr(value)}.")
    check_number(network, least, most, **values)


def sides(network: str, resolution: Any) -> tuple[int, int]:
    """Height and width of images: of a number that is both, or of the two.

    Raises:
        ValueError: it is neither a whole number nor two of them, each from 1 to `MAX_PIXELS`.
    """
    both = resolution if isinstance(resolution, (tuple, list)) else (resolution, resolution)
    if len(both) != 2:
        raise ValueError(
            f"{network} needs resolution as one number, or height and width, got {reprlib.repr(resolution)}."
        )
    for side in both:
        check_integer(network, 1, MAX_PIXELS, resolution=side)
    return int(both[0]), int(both[1])


def check_number(network: str, least: float, most: float, **values: Any) -> None:
    """Check that arguments of `network` are numbers from `least` to `most`.

    Raises:
        ValueError: an argument is not.
    """
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            raise ValueError(f"{network} needs a number {argument}, got {reprlib.repr(value)}.")
        if value < least:
            raise ValueError(f"{network} needs {argument} >= {least}, got {reprlib.repr(value)}.")
        if value > most:  # type: ignore[operator]
            raise ValueError(f"{network} needs {argument} <= {most}, got {reprlib.repr(value)}.")


def check_bool(network: str, **values: Any) -> None:
    """Check that arguments of `network` are True or False.

    Raises:
        ValueError: an argument is not.
    """
    for argument, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{network} needs {argument} True or False, got {reprlib.repr(value)}.")
