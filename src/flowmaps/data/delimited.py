"""Text tables in whatever dialect they are written: separators, decimal commas, encodings, names or none.

The dialect is told from the first lines; the numbers are read by pandas, exactly.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .raw import RawTable, is_number

SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
LINES_LOOKED_AT = 200
"""Lines from which the dialect is told."""
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+(e[+-]?\d+)?\s*", re.IGNORECASE)
WHOLE = re.compile(r"\s*\d+\s*")
CALENDAR_YEARS = range(1000, 3000)


class Text(NamedTuple):
    """The text of a table and its dialect.

    Attributes:
        body: from the first line that counts.
        before: how many lines of the file are before it.
        separator: one of `SEPARATORS`, or the one that the file names.
        decimal: the sign in front of decimals.
        notes: what was guessed.
    """

    body: str
    before: int
    separator: str
    decimal: str
    notes: list[str]

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """The lines that are not blank, as their numbers in the file and their cells."""
        lines = csv.reader(io.StringIO(self.body, newline=""), delimiter=self.separator, skipinitialspace=True)
        first = 1
        for cells in lines:
            if cells and (len(cells) > 1 or cells[0].strip()):
                yield self.before + first, cells
            first = lines.line_num + 1


def read_delimited(path: Path, header: str, pandas: Any) -> RawTable:
    """The columns of a text table.

    Args:
        path: of the file.
        header: `names`, `none`, or `auto`: told from the first lines.
        pandas: the library.

    Raises:
        ValueError: it has no rows, or they cannot be told apart.
    """
    text = _text(path)
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
    return RawTable(path, names, columns, named=named, where=where, notes=notes)


def _text(path: Path) -> Text:
    content, notes = path.read_bytes(), []
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content[:4]:
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(f"it is no text in {encoding} ({error.reason}): save it as UTF-8") from None
        text = content.decode("cp1252", "replace")
        notes.append("it is no UTF-8: read as Windows-1252, check names and text with accents")
    if "\0" in text:
        raise ValueError("it holds zero bytes, which no text table has: save it as UTF-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    before, separator, start = 0, "", 0
    while start < len(text):
        end = text.find("\n", start)
        line = text[start:] if end < 0 else text[start:end]
        if match := re.fullmatch(r'"?sep=(.)"?', line.strip(), re.IGNORECASE):
            separator = match[1]
        elif line.strip() and not line.lstrip().startswith("#"):
            break
        before, start = before + 1, len(text) if end < 0 else end + 1
    body = text[start:]
    separator = separator or ("\t" if path.suffix.lower() == ".tsv" else _separator(body))
    decimal = "," if separator != "," and _has_decimal_commas(body, separator) else "."
    if separator not in (",", "\t") or decimal == ",":
        also = " and decimal commas" if decimal == "," else ""
        notes.append(f"read with {SEPARATORS.get(separator, repr(separator))} between the columns{also}")
    return Text(body, before, separator, decimal, notes)


def _separator(body: str) -> str:
    """The separator that all of the first lines have equally often, outside quotes; else most of them, or commas."""
    lines = [line for line in islice(io.StringIO(body), LINES_LOOKED_AT) if line.strip()]
    best, most = ",", 0.0
    for sign in SEPARATORS:
        cells = [len(cells) for cells in csv.reader(lines, delimiter=sign)]
        usual = max({*cells} - {1}, key=cells.count, default=1)
        share = cells.count(usual) / len(cells) if usual > 1 else 0.0
        if share > most:
            best, most = sign, share
    return best if most >= 0.5 else ","


def _has_decimal_commas(body: str, separator: str) -> bool:
    cells = [cell for line in _first_records(body, separator) for cell in line]
    commas = sum(DECIMAL_COMMA.fullmatch(cell) is not None for cell in cells)
    return commas > 0 and not any("." in cell and is_number(cell) for cell in cells)


def _first_records(body: str, separator: str) -> list[list[str]]:
    return list(islice(csv.reader(io.StringIO(body, newline=""), delimiter=separator), LINES_LOOKED_AT))


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
        return any(heads) or not any(numbers), []
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


def _numbers(text: Text, pandas: Any, first: list[tuple[int, list[str]]], named: bool) -> Any:
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
    options: dict[str, Any] = {"sep": text.separator, "decimal": text.decimal, "header": None, "skipinitialspace": True}
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
    if not gaps.any() and all(isinstance(value, (bool, np.bool_)) for value in values):
        return values.astype(bool)
    return np.array([None if gap else str(value) for gap, value in zip(gaps, values, strict=True)], dtype=object)
