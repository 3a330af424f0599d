"""Bounds on the arguments of networks: what a file says must not make a machine build, or allocate, without end."""

from __future__ import annotations

import math
import reprlib
from numbers import Integral, Real
from typing import Any

SIZE = 2**24
"""Most of a layer's width, of a sample's numbers, of the classes."""
DEPTH = 1_000
"""Most layers, one after the other."""
BLOCKS = 100
"""Most blocks of one level of a U-Net."""
SIDE = 4_096
"""Most pixels along an image."""
TOKENS = 512
"""Most tokens along an image."""
FREQUENCIES = 1_024
"""Most frequencies of the features of one number."""


def whole(network: str, least: int, most: int, **values: Any) -> None:
    """Refuse arguments of `network` that are no whole numbers from `least` to `most`.

    Raises:
        ValueError: one is not.
    """
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{network} needs a whole number {argument}, got {reprlib.repr(value)}.")
    within(network, least, most, **values)


def within(network: str, least: float, most: float, **values: Any) -> None:
    """Refuse arguments of `network` that are no numbers from `least` to `most`.

    Raises:
        ValueError: one is not.
    """
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            raise ValueError(f"{network} needs a number {argument}, got {reprlib.repr(value)}.")
        if value < least:
            raise ValueError(f"{network} needs {argument} >= {least}, got {reprlib.repr(value)}.")
        if value > most:  # type: ignore[operator]
            raise ValueError(f"{network} needs {argument} <= {most}, got {reprlib.repr(value)}.")


def flags(network: str, **values: Any) -> None:
    """Refuse arguments of `network` that are neither true nor false.

    Raises:
        ValueError: one is not.
    """
    for argument, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{network} needs {argument} True or False, got {reprlib.repr(value)}.")
