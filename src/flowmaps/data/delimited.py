"""Text tables in whatever dialect they are written: separators, decimal commas, encodings, names or none.

The dialect is told from the first lines; the numbers are read by pandas, exactly.
"""

from __future__ import annotations

import csv
import io
import re
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .dialect import LINES_LOOKED_AT, SEPARATORS, Text, read_text
from .numerals import is_code, is_number, texts_of, without_thousands
from .raw import RawTable

WHOLE = re.compile(r"\s*\d+\s*")
CALENDAR_YEARS = range(1000, 3000)


def read_delimited(path: Path, header: str, pandas: Any) -> RawTable:
    """The columns of a text table.

    Args:
        path: of the file.
        header: `names`, `none`, or `auto`: told from the first lines.
        pandas: the library.

    Raises:
        ValueError: it has no rows, or they cannot be told apart.
    """
    text = read_text(path)
    first = list(islice(text.records(), LINES_LOOKED_AT))
    if not first:
        raise ValueError("it holds no points")
    top, *below = [line for line in islice(io.StringIO(text.body), LINES_LOOKED_AT) if line.strip()]
    quoted = top.count('"') == 2 * len(first[0][1]) and bool(below) and '"' not in below[0]
    named, said = has_names([cells for _, cells in first], header, decimal=text.decimal, quoted=quoted)
    names = [cell.strip() for cell in first[0][1]] if named else []
    numbers = _numbers(text, pandas, first, named)
    if not len(numbers):
        raise ValueError("it holds no points")
    columns = [as_column(numbers[k]) for k in range(numbers.shape[1])]
    places: list[int] = []

    def where(row: int) -> str:
        if not places:
            places.extend(line for line, _ in text.records())
        return f"line {places[row + named]}"

    notes = [*text.notes, *said]
    names, columns = _matched(names, columns, notes, first)
    columns = _with_codes(columns, text, pandas, first, named)
    raw = RawTable(path, names, columns, named=named, where=where, notes=notes)
    read_thousands(raw, text.decimal)
    return raw


def read_thousands(raw: RawTable, decimal: str) -> None:
    """Make columns of text numbers where all their cells have signs for thousands."""
    for k, (name, column) in enumerate(zip(raw.names, raw.columns, strict=True)):
        if column.dtype.kind == "O" and (found := without_thousands(column, decimal)) is not None:
            raw.columns[k] = found[0]
            raw.asides[name] = f"{raw.called(name)} has signs for thousands: {found[1]}"


def _with_codes(
    columns: list[np.ndarray], text: Text, pandas: Any, first: list[tuple[int, list[str]]], named: bool
) -> list[np.ndarray]:
    """The columns, as text where numbers would lose the leading zeros of codes."""
    ends = rf'[{re.escape(text.separator)}"\n]'
    if not re.search(rf"(?:^|{ends}|\s)0\d+\s*(?:$|{ends})", text.body):
        return columns
    cells = _numbers(text, pandas, first, named, dtype=str)
    found = [as_column(cells[k]) for k in range(len(columns))]
    pairs = zip(columns, found, strict=True)
    return [own if own.dtype.kind == "O" or not is_code(texts_of(read)) else read for own, read in pairs]


def has_names(
    records: list[list[str]], header: str, *, decimal: str = ".", quoted: bool = False
) -> tuple[bool, list[str]]:
    """Whether the first line has the names of the columns, and what to say about it.

    Args:
        records: the cells of the first lines.
        header: `names`, `none`, or `auto`.
        decimal: the sign in front of decimals.
        quoted: whether the cells of the first line alone stand in quotes.

    Raises:
        ValueError: it could be names or numbers.
    """
    if header != "auto":
        return header == "names", []
    first, rest = [cell.strip() for cell in records[0]], records[1:]
    numbers = [is_number(_with_point(cell, decimal)) for cell in first]
    if not all(numbers):
        below = [[_with_point(line[k], decimal) for line in rest if len(line) > k] for k in range(len(first))]
        heads = [
            bool(cell) and not number and all(not b.strip() or is_number(b) for b in column) and bool(rest)
            for cell, number, column in zip(first, numbers, below, strict=True)
        ]
        return any(heads) or not any(numbers) or not rest, []
    names = quoted or _numbers_are_names(first, rest)
    if names is None:
        raise ValueError(
            f"its first line {','.join(first)[:60]} could be names of columns or numbers: pass --header names or "
            "--header none"
        )
    return names, [f"its first line {','.join(first)[:60]} was taken for the names of the columns"] if names else []


def _numbers_are_names(first: list[str], rest: list[list[str]]) -> bool | None:
    """Whether a first line of numbers has names, as data frames number their columns; `None` if that is open."""
    if not rest or not all(WHOLE.fullmatch(cell) for cell in first) or len(set(first)) < len(first):
        return False
    counted = [int(cell) for cell in first] == list(range(len(first)))
    columns = [[line[k] for line in rest if len(line) > k] for k in range(len(first))]
    decimals = [any(not WHOLE.fullmatch(cell.strip().lstrip("+-")) for cell in column) for column in columns]
    if all(decimals):
        return len(first) > 1 or counted
    years = all(int(cell) in CALENDAR_YEARS for cell in first) and len(first) > 1
    below = [cell for column in columns for cell in column if WHOLE.fullmatch(cell)]
    if years and not any(int(cell) in CALENDAR_YEARS for cell in below):
        return True
    if counted and len(first) > 1:
        return True if len(first) > 2 and any(decimals) else None
    return False


def _with_point(cell: str, decimal: str) -> str:
    return cell.replace(",", ".") if decimal == "," else cell


def _numbers(text: Text, pandas: Any, first: list[tuple[int, list[str]]], named: bool, **options: Any) -> Any:
    """The rows below the names as a data frame.

    Raises:
        ValueError: a line has more or fewer cells than the others.
    """
    body = io.StringIO(text.body)
    if named and len(first) > 1:
        for _ in range(first[1][0] - first[0][0]):
            body.readline()
    elif named:
        return ()
    options |= {"sep": text.separator, "decimal": text.decimal, "header": None, "skipinitialspace": True}
    if int(pandas.__version__.split(".")[0]) < 3:  # later versions read floats exactly
        options["float_precision"] = "round_trip"
    try:
        found = pandas.read_csv(body, **options, low_memory=False)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, csv.Error) as error:
        widths = [len(cells) for _, cells in first]
        _refuse_ragged(text, max({*widths}, key=widths.count))
        raise ValueError(" ".join(str(error).split())) from None
    if found.iloc[:, -1].isna().any():  # a short line is filled up
        _refuse_ragged(text, found.shape[1], named)
    return found


def _refuse_ragged(text: Text, width: int, named: bool = False) -> None:
    for number, (line, cells) in enumerate(text.records()):
        if len(cells) != width and not (named and number == 0):
            hint = "" if text.separator != "," else " (with decimal commas, put semicolons between the columns)"
            raise ValueError(
                f"line {line} has {len(cells)} cell{'s' * (len(cells) != 1)}, the others have {width}: mend the line, "
                f"or put quotes round cells that have {SEPARATORS.get(text.separator, 'separators')} in them{hint}"
            )


def _matched(
    names: list[str], columns: list[np.ndarray], notes: list[str], first: list[tuple[int, list[str]]]
) -> tuple[list[str], list[np.ndarray]]:
    """Names and columns of equal number: an empty last column is left out, row names of R get an empty name.

    Raises:
        ValueError: their numbers differ otherwise.
    """
    empty = columns[-1].dtype.kind == "f" and bool(np.isnan(columns[-1]).all())
    if len(columns) > 1 and empty and (len(names) == len(columns) - 1 or not "".join(names[len(columns) - 1 :])):
        notes.append("its last column is empty, after a comma at the end of each line, and is left out")
        names, columns = names[: len(columns) - 1], columns[:-1]
    if not names:
        return [str(k + 1) for k in range(len(columns))], columns
    if len(names) == len(columns) - 1 and _are_row_names(columns[0]):
        names = ["", *names]
    if len(names) == len(columns) and names.count("") > 1:
        empty = [str(k + 1) for k, name in enumerate(names) if not name]
        raise ValueError(f"columns {' and '.join(empty)} have no names: name them, or pass --header none")
    if len(names) != len(columns):
        raise ValueError(
            f"line {first[0][0]} names {len(names)} columns, the lines below have {len(columns)}: mend the names, or "
            "pass --header none"
        )
    return names, columns


def _are_row_names(column: np.ndarray) -> bool:
    """Whether a column has the names of the rows, as R writes them without a head: 1, 2, 3, ... or texts."""
    if len(column) < 5:
        return False
    return len({*column.tolist()}) == len(column) and (
        column.dtype.kind == "O" or bool((column == np.arange(1, len(column) + 1)).all())
    )


def as_column(series: Any) -> np.ndarray:
    """A column of a data frame as numbers, truth values, or text as objects with `None` for missing cells."""
    kind, gaps = getattr(series.dtype, "kind", "O"), series.isna().to_numpy()
    if kind in "biuf" and isinstance(series.dtype, np.dtype):
        return series.to_numpy()
    if kind in "biuf":  # a type of pandas for numbers with missing cells
        return series.to_numpy(dtype=np.float64, na_value=np.nan) if gaps.any() else np.array(series.tolist())
    values = series.astype(object).to_numpy()
    if not gaps.all() and all(isinstance(value, Decimal) for value in values[~gaps]):
        return np.array([np.nan if gap else float(value) for gap, value in zip(gaps, values, strict=True)])
    if not gaps.any() and all(isinstance(value, (bool, np.bool_)) for value in values):
        return values.astype(bool)
    return np.array([None if gap else str(value) for gap, value in zip(gaps, values, strict=True)], dtype=object)
