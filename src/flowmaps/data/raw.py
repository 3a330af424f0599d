"""A table as a file has it, before it is decided what each column is; and the words in which a cell is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .numerals import DATE_OR_TIME, NUMBER_WITH_SIGNS, is_code, is_number, texts_of
from .options import listed

WRITE_NUMBERS = "write numbers as 1234.5, with no other sign"
INSTALL = "pip install 'flowmaps[tables]'"


@dataclass
class RawTable:
    """Columns of a file, or of an array.

    Attributes:
        path: of the file.
        names: of the columns, all different; their numbers from 1 where `named` is false.
        columns: each `(N,)`: numbers, truth values, or text as objects, where `None` is a missing cell.
        named: whether the names are those of the file.
        type: numpy's name of the type of all numbers, where the file has one.
        where: takes the number of a row to its place in the file, such as "line 3".
        notes: what was left out or guessed while reading.
        asides: name of a column -> how it was read, said if the column is used.
        labels: `(N,)` labels beside the columns, and the name of their array; or `None`.
        label: the name of that array.
        unnamed: what a column that has no name in the file is called; empty where all have names.
    """

    path: Path
    names: list[str]
    columns: list[np.ndarray]
    named: bool = True
    type: str = "float64"
    where: Callable[[int], str] = field(default=lambda row: f"row {row} (counted from 0)")
    notes: list[str] = field(default_factory=list)
    asides: dict[str, str] = field(default_factory=dict)
    labels: np.ndarray | None = None
    label: str = ""
    unnamed: str = ""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.columns[0]) if self.columns else 0

    def called(self, name: str) -> str:
        """A column in a message."""
        return f"column {name!r}" if self.named else f"column {name}"

    def without(self, names: list[str], why: str = "") -> RawTable:
        """The table without some columns, and with a note that says why."""
        kept = [k for k, name in enumerate(self.names) if name not in names]
        notes = [*self.notes, why] if why else self.notes
        changes: dict[str, Any] = vars(self) | {
            "names": [self.names[k] for k in kept], "columns": [self.columns[k] for k in kept], "notes": notes
        }  # fmt: skip
        return RawTable(**changes)


def missing(column: np.ndarray) -> np.ndarray:
    """Which cells of a column are missing or not finite in single precision, `(N,)`."""
    if column.dtype.kind == "O":
        return np.array([value is None for value in column], bool)
    if column.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return ~np.isfinite(column.astype(np.float32))  # what float32 cannot hold counts as infinite
    return np.zeros(len(column), bool)


def check_complete(raw: RawTable, droppable: bool = False, instead: str = "") -> None:
    """Refuse a table with cells that are missing, or no finite numbers, in the columns that it still has.

    Args:
        raw: the table.
        droppable: whether there are other columns, so that all of these may be dropped.
        instead: what to do with a column, in the place of dropping it.

    Raises:
        ValueError: names the first such cell by file, line and column, and says how many rows have one.
    """
    bad = np.stack([missing(column) for column in raw.columns], axis=1)
    if not bad.any():
        return
    rows = bad.any(1)
    row = int(rows.argmax())
    place = int(bad[row].argmax())
    name, within = raw.names[place], [raw.names[k] for k in np.flatnonzero(bad.any(0))]
    value = raw.columns[place][row]
    what = "is missing" if value is None or value != value else f"is {value:g}, which single precision does not hold"
    drop = "" if len(within) == len(raw.names) and not droppable else f", or pass {option('--drop-columns', within)}"
    drop = f", or {instead}" if instead else drop
    raise ValueError(
        f"{raw.path}, {raw.where(row)}: {raw.called(name)} {what}. There are NaN or infinite values in {rows.sum()} of "
        f"{raw.rows} rows (first: row {row}, counted from 0): drop or fill those rows{drop}."
    )


def check_numbers(raw: RawTable) -> None:
    """Refuse a table with text in a column.

    Raises:
        ValueError: names the first cell of text by file, line and column, and the other columns that have some.
    """
    text = [name for name, column in zip(raw.names, raw.columns, strict=True) if column.dtype.kind in "OUS"]
    if text:
        others = f" There is text in {listed(text[1:])} too." if len(text) > 1 else ""
        raise ValueError(f"{_why_text(raw, text[0], raw.columns[raw.names.index(text[0])])}.{others}")


def refuse_text(raw: RawTable, name: str, why: str, instead: str, classes: str = "") -> None:
    """Refuse a column to condition on that has text.

    Args:
        raw: the table.
        name: of the column.
        why: what takes numbers.
        instead: what to do with the column otherwise.
        classes: what to do with a column of classes; empty for a file beside that of the training.

    Raises:
        ValueError: names the first cell of text by file, line and column, and says how to make it a number.
    """
    column = raw.columns[raw.names.index(name)]
    texts = texts_of(column)
    row = next((k for k, value in enumerate(column) if value is not None and not is_number(str(value))), 0)
    cell = str(column[row]).strip()
    ways = f"write numbers there, or {instead}"
    if 2 * sum(map(is_number, texts)) >= len(texts):
        ways = f"mend or drop such cells, or {instead}"
    elif classes and DATE_OR_TIME.fullmatch(cell):  # in a file beside that of the training seconds count from its start
        ways = f"dates are to be made numbers first, such as seconds: {_in_seconds(name, cell)}; or {instead}"
    elif NUMBER_WITH_SIGNS.fullmatch(cell):
        ways = f"{WRITE_NUMBERS}, or {instead}"
    elif classes:
        ways = classes
    raise ValueError(
        f"{raw.path}, {raw.where(row)}: {raw.called(name)} holds the text {str(column[row])[:40]!r}, and {why}: {ways}."
    )


def _why_text(raw: RawTable, name: str, column: np.ndarray) -> str:
    """What the first cell of text in a column is, and what can be done about it."""
    texts = texts_of(column)
    classes, categories, keep, drop = (
        option(f"--{flag}", [name]) for flag in ("label-column", "categories", "keep-columns", "drop-columns")
    )
    row = next((k for k, value in enumerate(column) if value is not None and not is_number(str(value))), -1)
    place = f"{raw.path}, {raw.where(max(row, 0))}: {raw.called(name)} holds"
    ways = f"pass {classes} to learn them as classes, {categories} to learn them as a column of categories,"
    if row < 0:
        kind, zeros = ("codes", " without leading zeros") if is_code(texts) else ("numbers as text", "")
        keep += f" to learn them as numbers{zeros}"
        return f"{place} {kind} such as {texts[0][:40]!r}: {ways} {keep}, or {drop}"
    cell = str(column[row]).strip()
    place = f"{place} the text {str(column[row])[:40]!r}"
    if 2 * sum(map(is_number, texts)) >= len(texts):
        return (
            f"{place} among numbers: mend or drop such cells (a second line of headings or of units is one), or pass "
            f"{drop}"
        )
    if DATE_OR_TIME.fullmatch(cell):
        seconds = f"dates are to be made numbers first, such as seconds: {_in_seconds(name, cell)}"
        return f"{place}: {seconds}; or pass {drop}"
    hint = f"; {WRITE_NUMBERS}" if NUMBER_WITH_SIGNS.fullmatch(cell) else ""
    return f"{place}, one of {len({*texts})} values: {ways} or {drop}{hint}"


def _in_seconds(name: str, text: str) -> str:
    """The line of pandas that makes a column of a data frame of dates, times or spans one of seconds."""
    if re.fullmatch(r"(\d+ days?,? )?\d{1,2}:.*", text.strip()):
        return f"frame[{name!r}] = pandas.to_timedelta(frame[{name!r}].astype(str)).dt.total_seconds()"
    return f"when = pandas.to_datetime(frame[{name!r}]); frame[{name!r}] = (when - when.min()).dt.total_seconds()"


def check_whole(raw: RawTable, name: str, numbers: np.ndarray, ways: str = "") -> None:
    """Refuse whole numbers that float64 does not hold.

    Args:
        raw: the table.
        name: of the column.
        numbers: of the column, `(N,)`.
        ways: what to do about it, in the place of dropping the column.

    Raises:
        ValueError: the column has some.
    """
    if np.abs(numbers).max(initial=0) >= 2**53:
        raise ValueError(
            f"{raw.path}: {raw.called(name)} has whole numbers of 2^53 and more, which floating point does not hold: "
            f"{ways or 'pass ' + option('--drop-columns', [name]) + ', or subtract a constant first'}."
        )


def in_digits(value: float, spread: float, least: int = 6) -> str:
    """A number as text: whole numbers in full, others with `least` digits, or more to be within spread / 1000."""
    if value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    texts = (f"{value:.{digits}g}" for digits in range(least, 18))
    return next((text for text in texts if abs(float(text) - value) <= spread / 1_000), repr(value))


def option(flag: str, names: list[str]) -> str:
    """The words of a command line that give names to an option; a name that begins with a dash needs `=`."""
    import shlex

    if any(name.startswith("-") for name in names):
        return " ".join(shlex.quote(f"{flag}={name}") for name in names)
    return f"{flag} {shlex.join(names)}"
