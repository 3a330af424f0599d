"""Tables in files: every usual dialect is read to the same numbers, and what is wrong is named by line and column."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from flowmaps.data import DataWarning, Points, TableOptions, open_data
from flowmaps.data.frames import read_table, write_table

NAMES = ["depth", "width, outer", "2020"]
ROWS = np.random.default_rng(0).normal(3.0, 2.0, (12, 3)).round(6)


def opened(path: Path, **options: Any) -> Points:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        source = open_data(str(path), table=TableOptions(held_out=0.0, **options))
    assert isinstance(source, Points)
    return source


def rows(source: Points) -> np.ndarray:
    return source.to_data(source.data).numpy()


def names(source: Points) -> list[str]:
    assert source.units.table is not None
    return [column.name for column in source.units.table.columns]


def refused(path: Path, words: str, **options: Any) -> str:
    with pytest.raises(ValueError, match=words) as error:
        opened(path, **options)
    assert path.name in str(error.value)
    return str(error.value)


def written(separator: str, decimal: str = ".", quote: bool = False) -> str:
    """`ROWS` under `NAMES` in a dialect."""

    def cell(value: object) -> str:
        text = repr(value).replace(".", decimal) if isinstance(value, float) else str(value)
        return f'"{text}"' if quote or separator in text else text

    lines = [NAMES, *ROWS.tolist()]
    return "".join(separator.join(map(cell, line)) + "\n" for line in lines)


DIALECTS = {
    "commas": written(",").encode(),
    "quotes": written(",", quote=True).encode(),
    "semicolons": written(";").encode(),
    "decimal commas": written(";", ",").encode(),
    "tabs": written("\t").encode(),
    "tabs and decimal commas": written("\t", ",").encode(),
    "bars": written("|").encode(),
    "a word on the separator": b"sep=;\n" + written(";").encode(),
    "blank lines": ("\n\n" + written(",").replace("\n", "\n\n")).encode(),
    "comments": b"# made by hand\n# in 2026\n" + written(",").encode(),
    "Windows": written(",").replace("\n", "\r\n").encode(),
    "spaces": written(",").replace(",", ", ").replace("width,  outer", "width, outer").encode(),
    "a mark": written(",").encode("utf-8-sig"),
    "UTF-16": written(",").encode("utf-16"),
    "UTF-16 without a mark": written(",").encode("utf-16-le"),
    "no line at the end": written(",").rstrip("\n").encode(),
}


@pytest.mark.parametrize(
    "dialect, suffix", [*((name, ".csv") for name in DIALECTS), *((name, ".tsv") for name in DIALECTS if "tab" in name)]
)
def test_every_dialect_gives_the_same_table(tmp_path: Path, dialect: str, suffix: str):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(DIALECTS[dialect])
    source = opened(path)
    assert names(source) == NAMES
    np.testing.assert_array_equal(np.column_stack(read_table(path).columns), ROWS)  # exactly
    np.testing.assert_allclose(rows(source), ROWS, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".feather", ".xlsx"])
def test_what_is_written_is_read_with_names_and_types(tmp_path: Path, suffix: str):
    columns = {
        "length": ROWS[:, 0],
        "count": np.arange(12) * 3 % 7,
        "kind": np.array(list("abcabcabcabc"), dtype=object),
        "ripe": np.arange(12) % 2 == 0,
    }
    path = tmp_path / f"a{suffix}"
    path.write_bytes(write_table(path, columns))
    raw = read_table(path)
    assert raw.names == list(columns)
    for found, expected in zip(raw.columns, columns.values(), strict=True):
        assert found.dtype.kind == expected.dtype.kind
        np.testing.assert_array_equal(found, expected)
    source = opened(path, label_column="kind", keep_columns=("count",))
    assert (source.units.names, source.classes) == (("a", "b", "c"), 3)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2] * 4


# names --------------------------------------------------------------------------------------------------------------


BODY = "".join(",".join(f"{v:.6f}" for v in row) + "\n" for row in ROWS)
HEADS = {
    "a,b,c": ["a", "b", "c"],
    "0,1,2": ["0", "1", "2"],
    "2019,2020,2021": ["2019", "2020", "2021"],
    "age,income,2020": ["age", "income", "2020"],
    '"0","1","2"': ["0", "1", "2"],
    '"1.5","2.5","3.5"': ["1.5", "2.5", "3.5"],
    "": ["1", "2", "3"],
}


@pytest.mark.parametrize("head", HEADS)
def test_numbers_may_be_names(tmp_path: Path, head: str):
    path = tmp_path / "a.csv"
    path.write_text((head + "\n" if head else "") + BODY)
    source = opened(path)
    assert (names(source), len(source.data)) == (HEADS[head], 12)
    np.testing.assert_allclose(source.units.shift, ROWS.mean(0), atol=1e-6)
    if not {*head} - {*'0123456789,."'}:
        assert opened(path, header="none").data.shape == (12 + bool(head), 3)


def test_a_first_line_that_could_be_either_is_asked_about(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("0,1\n" + "1,0\n0,0\n" * 6)
    refused(path, "first line 0,1 could be names of columns or numbers: pass --header names or --header none")
    assert opened(path, header="names").data.shape == (12, 2)
    assert opened(path, header="none").data.shape == (13, 2)


def test_whole_numbers_below_one_and_two_are_no_names(tmp_path: Path):
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    assert opened(tmp_path / "a.csv").data.shape == (2, 2)


def test_names_of_two_columns_differ(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,a\n1,2\n3,4\n")
    refused(tmp_path / "a.csv", "two columns called 'a': rename one")


# the index ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".xlsx"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_index_of_a_data_frame_is_left_out(tmp_path: Path, suffix: str, shuffled: bool):
    frame = pandas.DataFrame(ROWS, columns=NAMES)
    frame = frame.sample(frac=1, random_state=0) if shuffled else frame
    path = tmp_path / f"a{suffix}"
    {".csv": frame.to_csv, ".parquet": lambda p: frame.to_parquet(p, index=True), ".xlsx": frame.to_excel}[suffix](path)
    source = opened(path)
    assert names(source) == NAMES
    np.testing.assert_allclose(rows(source), frame.to_numpy(), rtol=1e-5, atol=1e-5)


def test_row_names_of_r_are_left_out(tmp_path: Path):
    text = "a,b\n" + "".join(f'"{k + 1}",{k / 2},{-k}\n' for k in range(9))
    (tmp_path / "a.csv").write_text(text)
    assert names(opened(tmp_path / "a.csv")) == ["a", "b"]


def test_a_column_that_may_be_an_index_is_asked_about(tmp_path: Path):
    path = tmp_path / "a.csv"
    pandas.DataFrame({"patient": np.arange(1, 13), "x": ROWS[:, 0]}).to_csv(path, index=False)
    refused(path, "'patient' looks like an index .*--drop-columns patient .*--keep-columns patient")
    assert names(opened(path, drop_columns=("patient",))) == ["x"]
    assert names(opened(path, keep_columns=("patient",))) == ["patient", "x"]


# what is refused ----------------------------------------------------------------------------------------------------


REFUSED = {
    "a,b\n1,2\n1,\n1,2\n": r"line 3: a cell of column 'b' is empty.* in 1 of 3 rows .*--drop-columns b",
    "\na,b\n1,2\n\n1,NA\n": r"line 5: a cell of column 'b' is empty",
    '"a\nb",c\n1,2\n1,\n': r"line 4: a cell of column 'c' is empty",
    "a,b\n1,2\ninf,2\n": r"line 3: a cell of column 'a' is inf, .*Cells are infinite in 1 of 2 rows \(a",
    "a,b\n1,cat\n2,dog\n": r"line 2: column 'b' holds the text 'cat', one of 2 values: pass --label-column b",
    "a,b\nm,kg\n1,2\n3,4\n5,6\n": r"line 2: column 'a' holds the text 'm' among numbers: .*heading",
    "a,b\n1,2\n3\n": r"line 3 has 1 cell, the others have 2",
    "a,b\n1,2\n3,4,5\n": r"line 3 has 3 cells, the others have 2",
    "a\n1,5\n2,5\n": r"names 1 columns, the lines below have 2|holds no points|line 2",
    "a;b\n1;2\n3\n": r"line 3 has 1 cell, the others have 2",
    "1,2\n3,x\n4,5\n": r"line 2: column 2 holds the text 'x' among numbers",
    "a,b\n1,2020-01-02\n2,2020-01-03\n": r"column 'b' holds the text '2020-01-02'.*dates are to be made numbers",
}  # fmt: skip


@pytest.mark.parametrize("content", REFUSED)
def test_what_is_wrong_is_named_by_line_and_column(tmp_path: Path, content: str):
    (tmp_path / "a.csv").write_text(content)
    refused(tmp_path / "a.csv", REFUSED[content])


@pytest.mark.parametrize("suffix", [".parquet", ".xlsx"])
def test_missing_cells_of_other_files_are_named_by_row(tmp_path: Path, suffix: str):
    frame = pandas.DataFrame({"a": [1.5, 2.5, None], "b": [1.0, 2.0, 3.0]})
    path = tmp_path / f"a{suffix}"
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_excel(path, index=False)
    refused(path, r"row (2 \(counted from 0\)|4 of the sheet): a cell of column 'a' is empty")
    assert names(opened(path, drop_columns=("a",))) == ["b"]  # the advice works


def test_columns_that_are_not_there_are_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b\n1.5,2\n3,4\n")
    for option in ("drop_columns", "keep_columns", "categories"):
        refused(tmp_path / "a.csv", rf"no column 'c' for --{option.replace('_', '-')}: it has a, b", **{option: ("c",)})
    refused(tmp_path / "a.csv", "no column 'c' for --label-column", label_column="c")
    refused(tmp_path / "a.csv", "no column left to learn", drop_columns=("a", "b"))
    with pytest.raises(ValueError, match=r"--transform names the column 'c', which is not learned, of a, b"):
        opened(tmp_path / "a.csv", transform=("c=log",))
    with pytest.raises(ValueError, match=r"--transform must be KIND or COLUMN=KIND .*, got 'sqrt'"):
        opened(tmp_path / "a.csv", transform=("sqrt",))


def test_what_was_guessed_is_said(tmp_path: Path):
    (tmp_path / "a.csv").write_text(";a;label\n" + "".join(f"{k};1,{k};x\n" for k in range(9)))
    with pytest.warns(DataWarning) as told:
        source = open_data(str(tmp_path / "a.csv"))
    said = " ".join(str(warning.message) for warning in told)
    for words in (
        "semicolons",
        "decimal commas",
        "numbers the rows and is left out",
        "'label' is taken for the classes",
    ):
        assert words in said
    assert len(source.notes) == len(told)


def test_options_of_a_table_are_refused_for_other_data():
    with pytest.raises(ValueError, match="digits is no table: --drop-columns is for tables alone"):
        open_data("digits", table=TableOptions(drop_columns=("a",)))
    assert open_data("digits", table=TableOptions()).classes == 10
