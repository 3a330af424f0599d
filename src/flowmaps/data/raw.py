"""A table as a file has it, before it is decided what each column is; and the words in which a cell is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .numerals import DATE_OR_TIME, NUMBER_WITH_SIGNS, is_code, is_number, texts_of
from .options import listed

DATES_FIRST = "dates are to be made numbers first"
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


def check_complete(raw: RawTable, droppable: bool = False, instead: str = "", learned: bool = False) -> None:
    """Refuse a table with cells that are missing, or no finite numbers, in the columns that it still has.

    Args:
        raw: the table.
        droppable: whether there are other columns, so that all of these may be dropped.
        instead: what to do with a column, in the place of dropping it.
        learned: whether the columns are learned, so that where cells are empty can be learned beside them.

    Raises:
        ValueError: names the first such cell by file, line and column, and says how many cells of each column are so;
            of a column that is empty all over, that it is.
    """
    bad = np.stack([missing(column) for column in raw.columns], axis=1)
    if not bad.any():
        return
    drops = not bad.any(0).all() or droppable
    if (empty := np.flatnonzero(bad.all(0))).size and raw.rows > 1 and all(_is_empty(raw.columns[k]) for k in empty):
        names = [raw.names[k] for k in empty]
        shown = raw.called(names[0]) + " is" if len(names) == 1 else f"the columns {listed(names)} are"
        drop = instead or f"pass {option('--drop-columns', names)}"
        ways = drop if drops or instead else "fill the cells"
        said = [f"{raw.path}: {shown} empty in all {raw.rows:,} rows: {ways}."]
        rest = raw.without(names)
        checks = [lambda: check_complete(rest, droppable, instead, learned)] if rest.names else []
        return refuse_together(raw.path, *checks, said=said)
    raise ValueError(f"{raw.path}, {_gaps(raw, bad, drops, instead, learned)}.")


def _gaps(raw: RawTable, bad: np.ndarray, drops: bool, instead: str, learned: bool) -> str:
    """The first cell that is empty or not finite, how many cells of each column are so, and what to do about them."""
    row = int(bad.any(1).argmax())
    place, within = int(bad[row].argmax()), np.flatnonzero(bad.any(0))
    names, value = [raw.names[k] for k in within], raw.columns[place][row]
    blank = value is None or value != value
    empty = "NaN" if raw.path.suffix.lower() in (".npy", ".npz") else "empty"
    what = empty if blank else f"{value:g}, which single precision does not hold"
    counts = listed([f"{'' if raw.named else 'column '}{raw.names[k]}: {int(bad[:, k].sum()):,}" for k in within])
    cells = [raw.columns[k][bad[:, k]] for k in within]
    blanks = np.concatenate([np.ones(len(x), bool) if x.dtype.kind == "O" else np.isnan(x) for x in cells])
    kinds = empty if blanks.all() else f"{empty} or infinite" if blanks.any() else "infinite"
    rows = f"in {int(bad.any(1).sum()):,} of {raw.rows:,} rows"
    ways = f"{'' if bad.any(1).all() else 'drop those rows, or '}{'mend' if 'infinite' in kinds else 'fill'} the cells"
    if learned and blank and raw.named:
        ways += (
            f", add a column of yes and no that says where (--categories {raw.names[place]}_missing), and empty those "
            "cells of the samples again (docs/data.md)"
        )
    drop = f"; or pass {option('--drop-columns', names)}" if drops else ""
    drop = f"; or {instead}" if instead else drop
    return (
        f"{raw.where(row)}: a cell of {raw.called(raw.names[place])} is {what}. Cells are {kinds} {rows} ({counts}): "
        f"{ways}{drop}"
    )


def _is_empty(cells: np.ndarray) -> bool:
    """Whether all cells are missing, and none is infinite."""
    if cells.dtype.kind == "O":
        return all(value is None for value in cells)
    return cells.dtype.kind == "f" and bool(np.isnan(cells).all())


def refuse_together(path: Path, *checks: Callable[[], None], said: Sequence[str] = ()) -> None:
    """Run checks of a file's columns, and refuse it once for all that they find.

    Args:
        path: of the file, which is named once.
        checks: each raises a `ValueError` that is a sentence.
        said: what has been found already.

    Raises:
        ValueError: one of them has found something.
    """
    found = [*said]
    for check in checks:
        try:
            check()
        except ValueError as error:
            found.append(str(error))
    if found:
        more = [line.removeprefix(f"{path}, ").removeprefix(f"{path}: ") for line in found[1:]]
        raise ValueError(" Also, ".join([found[0], *more]))


def check_numbers(raw: RawTable) -> None:
    """Refuse a table with text in a column.

    Raises:
        ValueError: names the first cell of text by file, line and column, and the other columns that have some; of
            dates, each column.
    """
    text = [k for k, column in enumerate(raw.columns) if column.dtype.kind in "OUS" and not _is_empty(raw.columns[k])]
    said = {raw.names[k]: f"{_why_text(raw, raw.names[k], raw.columns[k])}." for k in text}
    dates = [name for name in said if DATES_FIRST in said[name]]
    others = [name for name in said if name not in dates]
    found = [said[name] for name in (*others[:1], *dates[:3])]
    if len(others) > 1:
        found[0] += f" There is text in {listed(others[1:])} too."
    if len(dates) > 3:
        found[-1] += f" There are dates in {listed(dates[3:])} too."
    refuse_together(raw.path, said=found)


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
    elif classes and DATE_OR_TIME.fullmatch(cell):
        ways = f"{DATES_FIRST}, such as {_as_numbers(name, texts)}; or {instead}"
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
        return f"{place}: {DATES_FIRST}, such as {_as_numbers(name, texts)}; or pass {drop}"
    hint = f"; {WRITE_NUMBERS}" if NUMBER_WITH_SIGNS.fullmatch(cell) else ""
    return f"{place}, one of {len({*texts})} values: {ways} or {drop}{hint}"


def _as_numbers(name: str, texts: list[str]) -> str:
    """The lines of pandas that make a column of a data frame of dates, times or spans one of numbers, and back.

    Dates are counted from 1970, in days where all are at midnight, so that the line back needs no other date.
    """
    own = f"frame[{name!r}]"
    if re.fullmatch(r"(\d+ days?,? )?\d{1,2}:.*", texts[0].strip()):
        whole = " + ':00'" if re.fullmatch(r"\d{1,2}:\d{2}", texts[0].strip()) else ""
        to = f"{own} = pandas.to_timedelta({own}.astype(str){whole}).dt.total_seconds()"
        return f"seconds: {to} (and back, of the samples: {own} = pandas.to_timedelta({own}, unit='s'))"
    word, unit, part = ("days", "D", "days") if all(map(_at_midnight, texts)) else ("seconds", "s", "total_seconds()")
    to = f"{own} = (pandas.to_datetime({own}, utc=True) - pandas.Timestamp(0, tz='UTC')).dt.{part}"
    return f"{word}: {to} (and back, of the samples: {own} = pandas.to_datetime({own}, unit={unit!r}))"


def _at_midnight(text: str) -> bool:
    """Whether a date has no time of the day, or midnight, of UTC where it names a zone."""
    found = re.search(r"\d{1,2}:\d{2}.*", text)
    return found is None or not re.search(r"[1-9A-Ya-y]", found[0])


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
