"""Decimals of the numbers in a file, such as two of prices, and samples rounded to as many on writing."""

from __future__ import annotations

import numpy as np

MAX_DECIMALS = 6
"""Most decimals of a column that is rounded to as many on writing."""


def decimals_of(values: np.ndarray) -> int:
    """The fewest decimals that hold all of some floats `(N,)` of a file as they are; -1 where six are too few."""
    x = values.astype(np.float64)
    return next((k for k in range(MAX_DECIMALS + 1) if (in_decimals(x, k).astype(values.dtype) == values).all()), -1)


def in_decimals(x: np.ndarray, decimals: int, positive: bool = False) -> np.ndarray:
    """Float64 numbers to so many decimals; numbers that are too large to have any are left.

    Args:
        x: the numbers.
        decimals: how many; below 0, the numbers are left.
        positive: keep positive numbers positive: of two decimals the least is then 0.01.
    """
    if decimals < 0:
        return x
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.where(np.abs(x) * 10.0**decimals < 2**53, np.round(x, decimals) + 0.0, x)  # never -0
    return np.where(x > 0, np.maximum(rounded, 10.0**-decimals), rounded) if positive else rounded
