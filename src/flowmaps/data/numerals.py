"""Cells of text that are numbers to a person: signs for thousands, codes with leading zeros, numbers as text, dates."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

LEADING_ZERO = re.compile(r"0\d+")
DIGITS = re.compile(r"\d+")
DATE_OR_TIME = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(\D.*)?|(\d+ days?,? )?\d{1,2}:\d{2}(\D.*)?")
NUMBER_WITH_SIGNS = re.compile(r"[^\w.,]{0,3}\d[\d.,'\u2019\s]*([^\w.,]{0,3}|[A-Z]{3})")
SPACES = (" ", "\u00a0", "\u202f")
THOUSANDS = (*((sign, ".") for sign in (",", "'", "\u2019", *SPACES)), *((sign, ",") for sign in (".", "'", *SPACES)))
"""Signs between thousands, each with the sign in front of decimals that it goes with."""


def is_number(word: str) -> bool:
    """Whether a cell of text is a number."""
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word


def is_code(words: Iterable[str]) -> bool:
    """Whether all of some cells are digits alone, and some begin with a zero that a number would not have."""
    found = [word.strip() for word in words]
    return all(map(DIGITS.fullmatch, found)) and any(map(LEADING_ZERO.fullmatch, found))


def texts_of(column: np.ndarray) -> list[str]:
    """The cells of a column of text that are not missing."""
    return [str(value) for value in column if value is not None]


def without_thousands(column: np.ndarray, decimal: str) -> tuple[np.ndarray, str] | None:
    """A column of text `(N,)` as numbers, if all its cells have signs for thousands or are too short for one.

    Args:
        column: text, `None` where a cell is missing.
        decimal: the sign in front of decimals in the file. The other one, or a second sign in a cell, makes it sure
            that a sign is one for thousands.

    Returns:
        The numbers and an example of how one is read; `None` if the column is not so.
    """
    cells = [re.sub(rf"[{''.join(SPACES[1:])}]", " ", text.strip()) for text in texts_of(column)]
    for sign, point in THOUSANDS:
        one, dot = re.escape(sign), re.escape(point)
        long = re.compile(rf"[+-]?[1-9]\d{{0,2}}({one}\d{{3}})+({dot}\d*)?")
        short = re.compile(rf"[+-]?\d{{1,3}}({dot}\d*)?")
        found = [cell for cell in cells if long.fullmatch(cell)]
        sure = sign != decimal and (point == decimal or sign not in ".,")
        sure = sure or any(cell.count(sign) > 1 or point in cell for cell in found)
        if not found or not sure or not all(long.fullmatch(cell) or short.fullmatch(cell) for cell in cells):
            continue
        plain = lambda cell: cell.replace(sign, "").replace(point, ".")  # noqa: B023, E731
        numbers = as_numbers([None if v is None else plain(re.sub(r"\s", " ", str(v).strip())) for v in column])
        return numbers, f"{found[0]} is read as {plain(found[0])}"
    return None


def as_numbers(words: Iterable[str | None]) -> np.ndarray:
    """Cells that are numbers, as an array of whole numbers where all are, else of floats; NaN where one is missing."""
    cells = list(words)
    if all(word is not None and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", word) for word in cells):
        return np.array([int(word) for word in cells if word is not None], np.int64)
    return np.array([np.nan if word is None else float(word) for word in cells], np.float64)
