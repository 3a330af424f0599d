"""The dialect of a text table: its encoding, where it begins and ends, what separates cells and decimals."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from .numerals import is_number

SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
LINES_LOOKED_AT = 200
"""Lines from which the dialect is told."""
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+(e[+-]?\d+)?\s*", re.IGNORECASE)
SEVERAL_COMMAS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3}){2,}(\.\d*)?")
"""A number whose commas can only stand between thousands."""


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
        first, body = 1, self.body.split("\n")
        for cells in lines:
            if cells and (len(cells) > 1 or cells[0].strip() or '"' in body[first - 1]):  # an empty cell in quotes
                yield self.before + first, cells
            first = lines.line_num + 1


def read_text(path: Path) -> Text:
    """The text of a file and its dialect, told from the first lines.

    Raises:
        ValueError: it is no text.
    """
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
        also = _decimal_comma_said(body, separator) if decimal == "," else ""
        notes.append(f"read with {SEPARATORS.get(separator, repr(separator))} between the columns{also}")
    return Text(_without_empty_end(body, separator, notes), before, separator, decimal, notes)


def _decimal_comma_said(body: str, separator: str) -> str:
    """A word on decimal commas, with an example where all of them could be signs for thousands."""
    cells = [cell.strip() for line in _first_records(body, separator) for cell in line if "," in cell]
    cells = [cell for cell in cells if DECIMAL_COMMA.fullmatch(cell)]
    open_to_doubt = all(re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", cell) for cell in cells)
    example = f": {cells[0]} is read as {cells[0].replace(',', '.')}" if open_to_doubt else ""
    return f" and decimal commas{example}"


def _without_empty_end(body: str, separator: str, notes: list[str]) -> str:
    """The text without lines of separators alone at its end, as spreadsheets write them, and a note on those."""
    lines = body.split("\n")
    kept = len(lines)
    while kept and not lines[kept - 1].strip(separator + ' "'):
        kept -= 1
    if left := sum(separator in line for line in lines[kept:]):
        notes.append(f"{left} line{'s' * (left > 1)} without a cell at its end are left out")
    return body if not left else "\n".join(lines[:kept]) + "\n"


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
    return commas > 0 and not any(
        ("." in cell and is_number(cell)) or SEVERAL_COMMAS.fullmatch(cell.strip()) for cell in cells
    )


def _first_records(body: str, separator: str) -> list[list[str]]:
    return list(islice(csv.reader(io.StringIO(body, newline=""), delimiter=separator), LINES_LOOKED_AT))
