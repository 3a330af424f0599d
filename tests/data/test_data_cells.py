"""Cells that a person reads as a number and a program may not: codes, signs for thousands, decimals, dates."""

from __future__ import annotations

import datetime
import decimal
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from flowmaps.data import DataWarning, Points, TableOptions, open_data

pytestmark = pytest.mark.filterwarnings("ignore::flowmaps.data.DataWarning")
X = np.random.default_rng(0).normal(size=12).round(6)


def opened(path: Path, **options: Any) -> Points:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        source = open_data(str(path), table=TableOptions(**{"held_out": 0.0, **options}))
    assert isinstance(source, Points)
    return source


def written(source: Points) -> dict[str, list[Any]]:
    return {name: values.tolist() for name, values in source.units.to_columns(source.data).items()}


def csv(folder: Path, column: list[str], head: str = "a", separator: str = ",") -> Path:
    path = folder / "a.csv"
    lines = (f"{cell}{separator}{x}" for cell, x in zip(column, X, strict=False))
    path.write_text("\n".join([f"{head}{separator}x", *lines]), encoding="utf-8")
    return path


def parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "a.parquet"
    pandas.DataFrame(columns).to_parquet(path)
    return path


def refused(path: Path, words: str, **options: Any) -> str:
    with pytest.raises(ValueError, match=words) as error:
        opened(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# codes --------------------------------------------------------------------------------------------------------------


CODES = [f"0{1000 + k % 3}" for k in range(12)]


def test_codes_with_leading_zeros_are_no_numbers_unless_asked(tmp_path: Path):
    path = csv(tmp_path, CODES)
    refused(path, "column 'a' holds codes such as '01000'.* --label-column a .*--categories a.*--keep-columns a")
    assert written(opened(path, categories=("a",)))["a"] == CODES
    labelled = opened(path, label_column="a")
    assert labelled.labels is not None
    assert labelled.units.labels_in_file(labelled.labels).tolist() == CODES
    assert written(opened(path, keep_columns=("a",)))["a"] == [int(code) for code in CODES]


def test_zeros_before_decimals_and_alone_are_numbers(tmp_path: Path):
    source = opened(csv(tmp_path, ["0", "0.5", "-0.25", "00.5"] * 3))
    np.testing.assert_allclose(written(source)["a"], [0, 0.5, -0.25, 0.5] * 3, atol=1e-6)
    assert written(opened(csv(tmp_path, ["0", "10", "7", "3"] * 3), keep_columns=("a",)))["a"] == [0, 10, 7, 3] * 3


def test_numbers_as_text_are_asked_about(tmp_path: Path):
    path = parquet(tmp_path, a=["1.5", "2", "3"] * 4, x=X)
    refused(path, "column 'a' holds numbers as text such as '1.5': .*--keep-columns a to learn them as numbers")
    np.testing.assert_allclose(written(opened(path, keep_columns=("a",)))["a"], [1.5, 2, 3] * 4, atol=1e-6)
    huge = csv(tmp_path, [str(10**25 + k) for k in range(12)])
    refused(huge, "column 'a' holds numbers as text")
    refused(huge, "whole numbers of 2\\^53 and more", keep_columns=("a",))
    refused(csv(tmp_path, ["p", "q"] * 6), "column 'a' holds the text 'p'", keep_columns=("a",))


# thousands ----------------------------------------------------------------------------------------------------------


THOUSANDS = {
    "commas": (['"1,234"', '"-12,345"', '"56"'], ",", [1234, -12345, 56], "int64"),
    "commas and decimals": (['"1,234.5"', "7.25", "8"], ",", [1234.5, 7.25, 8], "float64"),
    "spaces": (["1 234", "12 345 678", "9"], ",", [1234, 12345678, 9], "int64"),
    "thin spaces": (["1\u202f234", "2\u00a0345", "9"], ",", [1234, 2345, 9], "int64"),
    "apostrophes": (["1'234.5", "2'345.5", "9"], ",", [1234.5, 2345.5, 9], "float64"),
    "dots": (["1.234.567", "1.234", "12"], ";", [1234567, 1234, 12], "int64"),
    "dots and decimal commas": (["1.234,5", "7,25", "12"], ";", [1234.5, 7.25, 12], "float64"),
    "commas between semicolons": (["1,234,567", "1,234", "12"], ";", [1234567, 1234, 12], "int64"),
}


@pytest.mark.parametrize("kind", THOUSANDS)
def test_signs_for_thousands_are_read_and_told_of(tmp_path: Path, kind: str):
    cells, separator, numbers, dtype = THOUSANDS[kind]
    path = tmp_path / "a.csv"
    path.write_text(f"a{separator}x\n" + "".join(f"{cell}{separator}{k}\n" for k, cell in enumerate(cells)))
    with pytest.warns(DataWarning) as told:
        source = open_data(str(path))
    said = " ".join(str(warning.message) for warning in told)
    assert "column 'a' has signs for thousands: " in said
    assert "decimal commas:" not in said
    values = source.units.to_columns(source.data)["a"]  # type: ignore[attr-defined]
    assert values.dtype == dtype
    np.testing.assert_allclose(values, numbers, rtol=1e-6, atol=1e-3)


def test_what_is_not_so_in_the_whole_column_is_refused(tmp_path: Path):
    refused(
        csv(tmp_path, ['"1,234"', '"56,78"', '"9"'] * 4), "column 'a' holds the text '1,234'.*write numbers as 1234.5"
    )
    refused(
        csv(tmp_path, ['"0,123"', '"1,234"', '"9"'] * 4), "column 'a' holds the text '0,123'.*write numbers as 1234.5"
    )
    refused(csv(tmp_path, ["12%", "3%", "4%"] * 4), "column 'a' holds the text '12%'.*write numbers as 1234.5")
    refused(csv(tmp_path, ["$12", "$3", "$4"] * 4), "column 'a' holds the text '\\$12'.*write numbers as 1234.5")


def test_a_decimal_comma_that_could_be_a_sign_for_thousands_is_told_of(tmp_path: Path):
    path = csv(tmp_path, ["1,234", "3,456", "12,345"], separator=";")
    path.write_text("a;b\n1,234;2\n3,456;5\n12,345;4\n")
    with pytest.warns(DataWarning, match="decimal commas: 1,234 is read as 1.234"):
        open_data(str(path))


# types --------------------------------------------------------------------------------------------------------------


def test_decimals_are_numbers(tmp_path: Path):
    values = [decimal.Decimal("1.25"), decimal.Decimal("2.50"), decimal.Decimal("-3.75")] * 4
    path = parquet(tmp_path, a=values, x=X)
    with pytest.warns(DataWarning, match="column 'a' holds decimals, which are read and written as float64"):
        source = open_data(str(path))
    np.testing.assert_allclose(written(source)["a"], [float(v) for v in values], atol=1e-6)  # type: ignore[arg-type]
    refused(parquet(tmp_path, a=[*values[:11], None], x=X), "row 11 .*: a cell of column 'a' is empty")


DATES = {
    "timestamps": pandas.date_range("2020-01-01", periods=12),
    "with a zone": pandas.date_range("2020-01-01", periods=12, tz="UTC"),
    "dates": [datetime.date(2020, 1, k + 1) for k in range(12)],
    "times": [datetime.time(k, 30) for k in range(12)],
    "spans": pandas.to_timedelta(np.arange(12) + 1, unit="s"),
}


@pytest.mark.parametrize("kind", DATES)
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".xlsx"])
def test_dates_and_times_are_refused_with_the_line_that_makes_them_numbers(tmp_path: Path, kind: str, suffix: str):
    path, frame = tmp_path / f"a{suffix}", pandas.DataFrame({"x": X, "a": DATES[kind]})
    if suffix == ".xlsx" and kind == "with a zone":
        frame["a"] = frame["a"].dt.tz_localize(None)  # which a sheet does not hold
    if suffix == ".xlsx" and kind == "spans":
        frame["a"] = frame["a"].astype(str)
    {".parquet": frame.to_parquet, ".csv": frame.to_csv, ".xlsx": frame.to_excel}[suffix](path, index=False)
    said = refused(path, "column 'a' holds the text .*dates are to be made numbers first.*--drop-columns a")
    assert written(opened(path, drop_columns=("a",))).keys() == {"x"}
    ((unit, to, back),) = re.findall(r"such as (\w+): (.*) \(and back, of the samples: (.*)\); or pass", said)
    assert unit == ("seconds" if kind in ("times", "spans") else "days")
    before = frame["a"].astype(str)
    exec(to, {"pandas": pandas, "frame": frame})
    frame.to_parquet(tmp_path / "b.parquet")
    numbers = written(opened(tmp_path / "b.parquet", keep_columns=("a",)))["a"]
    assert np.diff(numbers) == pytest.approx({"times": 3600.0}.get(kind, 1.0), abs=1e-3)
    exec(back, {"pandas": pandas, "frame": frame})
    ends = re.compile(r"^0 days |\+00:00$| 00:00:00(\+00:00)?$")
    texts = [ends.sub("", text) for text in (*before, *frame["a"].astype(str))]
    assert texts[:12] == texts[12:]


def test_times_without_seconds_get_a_line_that_works(tmp_path: Path):
    frame = pandas.DataFrame({"x": X, "a": [f"{k:02}:{k + 7:02}" for k in range(12)]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    to, _ = re.findall(r"such as seconds: (.*) \(and back, .*: (.*)\); or", refused(tmp_path / "a.csv", "dates are"))[0]
    exec(to, {"pandas": pandas, "frame": frame})
    assert frame["a"].tolist() == [3600.0 * k + 60 * (k + 7) for k in range(12)]


def test_rows_are_not_to_be_dropped_where_all_have_gaps(tmp_path: Path):
    frame = pandas.DataFrame({"x": X, "a": X, "b": X})
    frame.loc[::2, "a"] = np.nan
    frame.loc[1::2, "b"] = np.nan
    frame.to_csv(tmp_path / "a.csv", index=False)
    said = refused(tmp_path / "a.csv", "in 12 of 12 rows .*: fill the cells")
    assert "drop those rows" not in said


def test_times_of_the_day_are_kept_in_seconds_and_come_back(tmp_path: Path):
    when = pandas.Series(pandas.date_range("2021-03-05", periods=12, freq="6h"))
    path, frame = tmp_path / "a.csv", pandas.DataFrame({"x": X, "a": when})
    frame.to_csv(path, index=False)
    said = refused(path, "such as seconds: ")
    to, back = re.findall(r"such as seconds: (.*) \(and back, of the samples: (.*)\); or pass", said)[0]
    for line in (to, back):
        exec(line, {"pandas": pandas, "frame": frame})
    assert frame["a"].tolist() == when.tolist()


def test_all_columns_that_cannot_be_read_are_told_of_at_once(tmp_path: Path):
    dates = [f"2024-01-{k + 1:02}" for k in range(12)]
    frame = pandas.DataFrame({"x": X, "start": dates, "end": dates, "town": ["p", "q"] * 6, "gap": X, "none": None})
    frame.loc[3:4, "gap"] = np.nan
    frame.loc[4, "x"] = np.nan
    frame.to_csv(tmp_path / "a.csv", index=False)
    said = refused(tmp_path / "a.csv", "column 'none' is empty in all 12 rows: pass --drop-columns none. Also, line 5")
    assert said.count("a.csv") == 1
    assert "a cell of column 'gap' is empty. Cells are empty in 2 of 12 rows (x: 1, gap: 2): drop those rows" in said
    assert "line 2: column 'town' holds the text 'p', one of 2 values" in said
    assert all(f"line 2: column '{name}' holds the text '2024-01-01': dates are" in said for name in ("start", "end"))
    frame = frame.assign(same=3)
    frame.to_csv(tmp_path / "a.csv", index=False)
    options = {"condition_columns": ("gap", "same"), "categories": ("town",), "drop_columns": ("none", "start")}
    said = refused(tmp_path / "a.csv", "line 6: a cell of column 'x' is empty", **options)
    assert "column 'end' holds the text" in said
    assert "a cell of column 'gap' is empty" in said
    assert "column 'same' is 3 in all rows" in said


def test_the_ways_round_empty_cells_work(tmp_path: Path):
    frame = pandas.DataFrame({"x": X, "gap": X})
    frame.loc[3:4, "gap"] = np.nan
    frame.to_csv(tmp_path / "a.csv", index=False)
    said = refused(tmp_path / "a.csv", r"drop those rows, or fill the cells, add a column of yes and no.*; or pass")
    assert "(--categories gap_missing)" in said
    frame["gap_missing"] = np.where(frame["gap"].isna(), "yes", "no")
    frame.fillna({"gap": frame["gap"].median()}).to_csv(tmp_path / "b.csv", index=False)
    drawn = written(opened(tmp_path / "b.csv", categories=("gap_missing",)))
    assert drawn["gap_missing"] == frame["gap_missing"].tolist()


def test_columns_of_other_things_are_said_to_be_text(tmp_path: Path):
    path = parquet(tmp_path, a=DATES["dates"], b=[[1, 2]] * 12, x=X)
    with pytest.warns(DataWarning) as told:
        open_data(str(path), table=TableOptions(held_out=0.0, label_column="a", drop_columns=("b",)))
    said = [str(warning.message) for warning in told]
    assert any("column 'a' holds values of type date, which are read and written as text" in line for line in said)
    assert not any("'b'" in line for line in said)


EXTENSIONS = {
    "Int32": (pandas.array([1, 2, 3, 5] * 3, dtype="Int32"), "int32"),
    "UInt8": (pandas.array([1, 2, 3, 5] * 3, dtype="UInt8"), "uint8"),
    "Float32": (pandas.array([1.5, 2, 3, 5] * 3, dtype="Float32"), "float32"),
    "boolean": (pandas.array([True, False] * 6, dtype="boolean"), "bool"),
}


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_nullable_types_are_those_of_numpy_and_their_gaps_are_missing(tmp_path: Path, kind: str):
    values, dtype = EXTENSIONS[kind]
    source = opened(parquet(tmp_path, a=values, x=X))
    found = source.units.to_columns(source.data)["a"]
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(float), np.asarray(values, float), atol=1e-6)
    gaps = values.copy()
    gaps[7] = None
    refused(parquet(tmp_path, a=gaps, x=X), "row 7 .*: a cell of column 'a' is empty")


@pytest.mark.parametrize("dtype", ["string", "category"])
def test_nullable_text_is_classes_and_its_gaps_are_missing(tmp_path: Path, dtype: str):
    source = opened(parquet(tmp_path, label=pandas.Series(["p", "q"] * 6, dtype=dtype), x=X))
    assert source.units.names == ("p", "q")
    gaps = pandas.Series(["p", None] * 6, dtype=dtype)
    refused(parquet(tmp_path, label=gaps, x=X), "row 1 .*: a cell of column 'label' is empty.*--drop-columns label")


def test_long_doubles_are_float64(tmp_path: Path):
    array = np.stack([X, -X], 1).astype(np.longdouble)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_allclose(written(opened(tmp_path / "a.npy"))["1"], X, atol=1e-6)


# shapes -------------------------------------------------------------------------------------------------------------


def test_empty_lines_at_the_end_are_left_out(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1.5,2\n3,4\n,\n , \n")
    with pytest.warns(DataWarning, match="2 lines without a cell at its end are left out"):
        assert len(open_data(str(path)).data) == 2  # type: ignore[attr-defined]
    path.write_text("a,b\n1.5,2\n,\n3,4\n")
    refused(path, "line 3: a cell of column 'a' is empty")


def test_columns_without_names_are_named_by_their_places(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b,,\n1,2,3,4\n3,4,5,7\n")
    refused(tmp_path / "a.csv", "columns 3 and 4 have no names: name them, or pass --header none")


@pytest.mark.parametrize("content, shape", [("a,b\n1,2\n", (1, 2)), ("3\n", (1, 1)), ("a\n1\n2\n", (2, 1))])
def test_small_tables_are_read(tmp_path: Path, content: str, shape: tuple[int, int]):
    (tmp_path / "a.csv").write_text(content)
    assert opened(tmp_path / "a.csv").data.shape == shape


def test_a_table_of_one_row_says_so(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.warns(DataWarning, match="only one row is trained on: samples will be copies of it"):
        open_data(str(tmp_path / "a.csv"))


def test_a_wide_table_comes_back(tmp_path: Path):
    frame = pandas.DataFrame(np.random.default_rng(0).normal(size=(40, 500)).round(4)).add_prefix("c")
    frame.to_csv(tmp_path / "a.csv", index=False)
    source = opened(tmp_path / "a.csv")
    assert list(written(source)) == list(frame)
    assert len(source.about) < 40  # one screen


# options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"held_out": 1.0}, "--held-out must be a share from 0 to below 1, got 1.0"),
        ({"held_out": float("nan")}, "--held-out must be a share from 0 to below 1, got nan"),
        ({"held_out": -0.1}, "--held-out must be a share from 0 to below 1, got -0.1"),
        ({"held_out": "a"}, "--held-out must be a share from 0 to below 1, got 'a'"),
        ({"label_column": "b", "label_bins": -1}, "--label-bins must be a whole number from 0 to 1,000, got -1"),
        ({"drop_columns": "ab"}, "--drop-columns must be names of columns, such as .*, got 'ab'"),
        ({"transform": "log"}, "--transform must be names of columns, such as .*, got 'log'"),
        ({"integers": "no"}, "--integers must be round or float, got 'no'"),
        ({"header": "no"}, "--header must be auto, names or none, got 'no'"),
        ({"transform": ("b=log", "b=asinh")}, "--transform is given twice for the column b: b=log and b=asinh"),
        ({"transform": ("log", "asinh")}, "--transform is given twice for all columns: log and asinh"),
        ({"transform": ("b=log",), "categories": ("b",)}, "--transform b=log is for numbers, and --categories has b"),
        ({"transform": ("b=log",), "label_column": "b"}, "--transform names the column 'b', which has the classes"),
        ({"label_column": "b", "drop_columns": ("b",)}, "column 'b' is given to --drop-columns and --label-column"),
        ({"label_column": "b", "categories": ("b",)}, "column 'b' is given to --categories and --label-column"),
        ({"keep_columns": ("b",), "drop_columns": ("b",)}, "column 'b' is given to --drop-columns and --keep-columns"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_in_a_line(tmp_path: Path, options: dict, words: str):
    (tmp_path / "a.csv").write_text("a,b\n1.5,2\n3,4\n")
    refused(tmp_path / "a.csv", words, **options)


# what a stranger reads ------------------------------------------------------------------------------------------------


def test_all_columns_of_text_are_named_at_once(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b,c,d\n1.5,p,q,2020-01-02\n3,r,s,2020-01-03\n")
    refused(tmp_path / "a.csv", "column 'b' holds the text 'p'.* There is text in c too. Also, line 2: column 'd'")


def test_a_column_that_is_called_an_id_is_asked_about(tmp_path: Path):
    frame = pandas.DataFrame({"order_id": 100 + np.arange(12) * 7 % 13, "x": X})
    frame.to_csv(tmp_path / "a.csv", index=False)
    refused(tmp_path / "a.csv", "column 'order_id' looks like an index .*--drop-columns order_id")


def test_columns_are_shown_in_the_order_of_the_file(tmp_path: Path):
    frame = pandas.DataFrame({"x": X, "constant": 1.5, "z": -X})
    frame.to_csv(tmp_path / "a.csv", index=False)
    shown = [line.split()[0] for line in opened(tmp_path / "a.csv").about]
    assert shown[1:5] == ["column", "x", "constant", "z"]


@pytest.mark.parametrize("scale", [1e-300, 1e-170])
def test_numbers_whose_squares_underflow_are_no_constant(tmp_path: Path, scale: float):
    np.save(tmp_path / "a.npy", np.stack([X * scale, X], 1))
    source = opened(tmp_path / "a.npy")
    np.testing.assert_allclose(written(source)["1"], X * scale, rtol=1e-5)
    assert source.data.std(0).tolist() == pytest.approx([1, 1], rel=1e-5)


def test_a_first_line_of_names_without_rows_is_no_row(tmp_path: Path):
    (tmp_path / "a.csv").write_text("0,True\n")
    refused(tmp_path / "a.csv", "it holds no points")
