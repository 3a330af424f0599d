"""Tables in files: read into columns, and written from columns, by pandas and what it reads each format with."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from . import delimited
from .dialect import LINES_LOOKED_AT
from .raw import INSTALL, RawTable

TEXT_SUFFIXES = (".csv", ".tsv")
TABLE_SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".feather", ".xlsx")
NEEDS = {".parquet": "pyarrow", ".feather": "pyarrow", ".xlsx": "openpyxl"}


def pandas_for(suffix: str) -> Any:
    """Pandas, with what it reads and writes files of a suffix with.

    Raises:
        ValueError: one of them is not installed.
    """
    try:
        import pandas

        if suffix in NEEDS:
            __import__(NEEDS[suffix])
    except ImportError as error:
        needs = " and ".join(["pandas", *([NEEDS[suffix]] if suffix in NEEDS else [])])
        raise ValueError(f"{suffix} files are read and written with {needs}: {INSTALL}.") from error
    return pandas


def read_table(path: Path, header: str = "auto") -> RawTable:
    """The columns of a table in a file ending in one of `TABLE_SUFFIXES`.

    Args:
        path: of the file.
        header: of text tables and spreadsheets, whether the first line has the names: `auto`, `names` or `none`.

    Raises:
        ValueError: it is missing, damaged, of another kind, has no rows, or two columns of one name.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"there is no file {path}: pass --data FILE with a table of points, one a row.")
    pandas = pandas_for(suffix)
    try:
        if suffix in TEXT_SUFFIXES:
            raw = delimited.read_delimited(path, header, pandas)
        elif suffix == ".xlsx":
            raw = _sheet(path, header, pandas)
        else:
            raw = _arrow(path, suffix)
        if not raw.rows:
            raise ValueError("it holds no points")
        if twice := sorted({name for name in raw.names if raw.names.count(name) > 1}):
            raise ValueError(f"it has two columns called {twice[0]!r}: rename one")
    except Exception as error:  # each library has errors of its own kinds for damaged files
        reason = " ".join(str(error).split())[:600] or type(error).__name__
        raise ValueError(f"{path} could not be read as {path.suffix}: {reason}.".replace("..", ".")) from None
    return raw


def _arrow(path: Path, suffix: str) -> RawTable:
    import pyarrow.feather
    import pyarrow.parquet

    read = pyarrow.parquet.read_table if suffix == ".parquet" else pyarrow.feather.read_table
    frame = read(path).to_pandas(ignore_metadata=True)
    return _of_frame(path, frame)


def _of_frame(path: Path, frame: Any, named: bool = True, notes: Sequence[str] = ()) -> RawTable:
    names = [str(name) for name in frame.columns]
    columns = [delimited.as_column(frame.iloc[:, k]) for k in range(frame.shape[1])]
    names = ["" if name.startswith("__index_level_") else name for name in names]
    raw = RawTable(path, names, columns, named=named, notes=[*notes])
    raw.asides = {
        name: said for k, name in enumerate(names) if (said := _type_said(raw.called(name), frame.iloc[:, k]))
    }
    delimited.read_thousands(raw, ".")
    return raw


def _type_said(called: str, series: Any) -> str:
    """How values are read that are no numbers, truth values or text; empty if they are."""
    value = next(iter(series.dropna()), "")
    if isinstance(value, Decimal):
        return f"{called} holds decimals, which are read and written as float64"
    if isinstance(value, (str, bool, int, float, np.number, np.bool_)):
        return ""
    return f"{called} holds values of type {type(value).__name__}, which are read and written as text"


def _sheet(path: Path, header: str, pandas: Any) -> RawTable:
    """The first sheet of a workbook, from its first row that is not empty."""
    book = pandas.ExcelFile(path, engine="openpyxl")
    cells = pandas.read_excel(book, sheet_name=0, header=None)
    notes = []
    if len(book.sheet_names) > 1:
        notes.append(f"of {len(book.sheet_names)} sheets the first one, {book.sheet_names[0]!r}, is read")
    full = cells.notna().any(axis=1)
    if not full.any():
        raise ValueError("it holds no points")
    start, end = int(full.to_numpy().argmax()), len(full) - int(full.to_numpy()[::-1].argmax())
    cells = cells.iloc[start:end].dropna(axis=1, how="all")
    records = [[_cell_text(value) for value in row] for row in cells.head(LINES_LOOKED_AT).to_numpy(object)]
    (named, said), first = delimited.has_names(records, header), records[0]
    notes += said
    body = (cells.iloc[1:] if named else cells).reset_index(drop=True)
    body.columns = first if named else [str(k + 1) for k in range(body.shape[1])]
    raw = _of_frame(path, body.infer_objects(), named, notes)
    raw.where = lambda row: f"row {start + named + row + 1} of the sheet"
    return raw


def _cell_text(value: Any) -> str:
    """A cell of a sheet as a text table has it."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def write_table(path: Path, columns: Mapping[str, np.ndarray], named: bool = True) -> bytes:
    """A table as the content of a file ending in one of `TABLE_SUFFIXES`.

    Args:
        path: of the file.
        columns: the values by name, `(N,)` each.
        named: whether a text table has a line of names.

    Raises:
        ValueError: a library is not installed.
    """
    suffix = path.suffix.lower()
    frame, buffer = pandas_for(suffix).DataFrame(dict(columns)), io.BytesIO()
    if suffix in TEXT_SUFFIXES:
        return frame.to_csv(index=False, header=named, sep="\t" if suffix == ".tsv" else ",").encode()
    if suffix == ".parquet":
        frame.to_parquet(buffer, index=False, engine="pyarrow")
    elif suffix == ".feather":
        frame.to_feather(buffer)
    else:
        frame.to_excel(buffer, index=False, header=named, engine="openpyxl")
    return buffer.getvalue()
