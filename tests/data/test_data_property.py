"""Tables drawn at random come back with their values, names and types, or are refused in one line: nothing else."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowmaps.data import Points, TableOptions, open_data

WORDS = ["a", "b b", "00", "007", "1", "1.5", "1,234", "x;y", 'q"q', "é", "True", "NA", "2020-01-02", "12:30", " c "]
NAMES = ["a", "b", "x", "y", "label", "class", "target", "id", "index", "0", "1", "2020"]
NAMES += ["", "a,b", "a=b", "--x", "é", "-1", "True"]
COLUMNS: dict[str, st.SearchStrategy] = {
    "float64": st.one_of(st.floats(-1e6, 1e6, allow_subnormal=False), st.sampled_from([0.0, 1.5, 1e9 + 0.25, -3e-7])),
    "int64": st.one_of(st.integers(0, 3), st.integers(-1000, 1000), st.sampled_from([2**53, 2**62, -(10**9)])),
    "bool": st.booleans(),
    "str": st.sampled_from(WORDS),
    "codes": st.sampled_from(["001", "010", "100"]),
    "constant": st.just(0.1),
    "out of range": st.sampled_from([1.0, float("inf"), -1e300]),
}


class Made(NamedTuple):
    """A table, the file that it is written to, and what is said about it."""

    frame: pandas.DataFrame
    suffix: str
    separator: str
    decimal: str
    options: dict[str, Any]


@st.composite
def tables(draw: st.DrawFn) -> Made:
    rows = draw(st.sampled_from([0, 1, 2, 4, 7, 9, 9, 9]))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=draw(st.integers(0, 9)) > 0))
    columns = []
    for _ in names:
        kind = draw(st.sampled_from(["float64", "float64", *COLUMNS]))
        cells: list[Any] = draw(st.lists(COLUMNS[kind], min_size=rows, max_size=rows))
        if rows and draw(st.integers(0, 9)) == 0:
            cells[draw(st.integers(0, rows - 1))] = None
        columns.append(pandas.Series(cells, dtype=object if None in cells or kind in ("str", "codes") else None))
    frame = pandas.concat(columns, axis=1) if columns else pandas.DataFrame()
    frame.columns = names
    options: dict[str, Any] = {}
    for name in {*names} - {""}:
        option = draw(st.sampled_from(["", "", "", "", "label_column", "categories", "keep_columns", "drop_columns"]))
        if option:
            options[option] = name if option == "label_column" else (*options.get(option, ()), name)
    suffix = draw(st.sampled_from([".csv", ".csv", ".tsv", ".parquet"]))
    separator = "\t" if suffix == ".tsv" else draw(st.sampled_from([",", ";", "\t", "|"]))
    decimal = draw(st.sampled_from([".", ","])) if separator != "," else "."
    return Made(frame, suffix, separator, decimal, options)


def write(made: Made, path: Path) -> bool:
    """Write a table; whether a file can hold it."""
    if made.suffix != ".parquet":
        made.frame.to_csv(path, index=False, sep=made.separator, decimal=made.decimal)
        return True
    if not made.frame.columns.is_unique or any(
        len({type(v) for v in made.frame[name] if v is not None}) > 1 for name in made.frame
    ):
        return False
    made.frame.to_parquet(path, index=False)
    return True


def as_text(value: Any) -> str:
    return str(value).strip()


def same(found: np.ndarray, expected: pandas.Series) -> bool:
    """Whether values that came back are those of a column; floats went through float32 beside their spread."""
    if found.dtype.kind == "O" or expected.dtype == object:
        return list(map(as_text, found)) == list(map(as_text, expected)) or (
            found.dtype.kind in "biuf" and same(found, pandas.Series([float(as_text(v)) for v in expected]))
        )
    wanted = expected.to_numpy(np.float64)
    return bool(np.allclose(found.astype(np.float64), wanted, rtol=1e-6, atol=1e-5 * (np.ptp(wanted) or 1e-300)))


def check(made: Made, path: Path) -> None:
    if not write(made, path):
        return
    refusal = ""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            source = open_data(str(path), table=TableOptions(held_out=0.0, **made.options))
        except ValueError as error:
            refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert path.name in refusal or refusal.startswith(("--", "column "))
        return
    assert isinstance(source, Points)
    said = " ".join(str(warning.message) for warning in told)
    columns = source.units.to_columns(source.data)
    table = source.units.table
    assert table is not None
    if source.labels is not None and table.label:
        columns[table.label] = source.units.labels_in_file(source.labels)
    if not table.named:
        assert all(name.lstrip("-").replace(".", "").isdigit() for name in made.frame.columns)  # a row of numbers
        return
    left = [name for name in map(as_text, made.frame.columns) if name not in columns]
    for name in left:
        dropped = name in made.options.get("drop_columns", ()) or "left out" in said or "without a name" in said
        assert dropped, (name, said)
    for name, values in columns.items():
        if name in made.frame.columns:
            assert same(values, pandas.Series(made.frame[name])), (name, values, made.frame[name])


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(made=tables())
def test_a_table_comes_back_or_is_refused_in_a_line(tmp_path: Path, made: Made):
    check(made, tmp_path / f"a{made.suffix}")
