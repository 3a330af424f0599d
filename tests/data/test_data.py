"""Sources of data: what is read, how it is scaled, and what is refused, with a word on how to mend it."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmaps.data import Board, Points, TableOptions, frames, open_data, roles, tables


def table(rows: int = 7, dim: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, (rows, dim))


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The points in a file, and their labels."""
    if path.suffix.lower() in tables.ARRAY_SUFFIXES:
        raw = tables.raw_table(tables.read_arrays(path), path)
    else:
        raw = frames.read_table(path)
    found = roles.assign(raw, TableOptions())
    points = torch.as_tensor(np.stack([column.astype("f8") for column in found.raw.columns], axis=1))
    return points, None if found.classes is None else found.classes.numbers


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i4", "u1", ">f8"])
def test_npy_of_any_real_type(tmp_path: Path, dtype: str):
    array = (table() * 2).clip(0).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    data, labels = read(tmp_path / "a.npy")
    assert labels is None
    assert data.dtype == torch.float64
    np.testing.assert_array_equal(data.numpy(), array.astype("f8"))


@pytest.mark.parametrize("name", ["x", "data", "anything"])
def test_npz_with_and_without_labels(tmp_path: Path, name: str):
    array, classes = table().astype("f4"), np.array([0, 2, 1, 1, 0, 2, 2], dtype="i2")
    np.savez(tmp_path / "a.npz", **{name: array})
    np.savez_compressed(tmp_path / "b.npz", labels=classes, **{name: array})
    for file in ("a.npz", "b.npz"):
        np.testing.assert_array_equal(read(tmp_path / file)[0].numpy(), array)
    assert read(tmp_path / "a.npz")[1] is None
    labels = read(tmp_path / "b.npz")[1]
    assert labels is not None
    assert labels.tolist() == classes.tolist()
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    "header", ["", "x,y,z\n", '"first, of all","y","z"\n', "# made by hand\n", "\ufeff", "\ufeffx,y,z\n"]
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_csv_with_and_without_a_line_of_names(tmp_path: Path, header: str, ending: str):
    array = table().astype("f4")
    text = header + "".join(",".join(repr(float(v)) for v in row) + "\n" for row in array)
    (tmp_path / "a.csv").write_bytes(text.replace("\n", ending).encode())
    np.testing.assert_array_equal(read(tmp_path / "a.csv")[0].numpy(), array)


def test_csv_of_one_column_or_one_row(tmp_path: Path):
    (tmp_path / "a.csv").write_text("1\n2\n3\n")
    (tmp_path / "b.csv").write_text("1,2,3\n")
    assert read(tmp_path / "a.csv")[0].tolist() == [[1], [2], [3]]
    assert read(tmp_path / "b.csv")[0].tolist() == [[1, 2, 3]]


def test_a_hole_in_the_first_line_is_not_taken_for_names(tmp_path: Path):
    """Dropping the line would lose a point without a word."""
    (tmp_path / "a.csv").write_text("1,,3\n4,5,6\n")
    with pytest.raises(ValueError, match=r"a.csv, line 1: a cell of column 2 is empty"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("suffix", [".NPY", ".Csv"])
def test_suffixes_in_any_case(tmp_path: Path, suffix: str):
    array = np.array([[1.0, 2.0], [3.0, 4.0]])
    path = tmp_path / f"a{suffix}"
    if suffix == ".NPY":
        with path.open("wb") as file:
            np.save(file, array)
    else:
        path.write_text("1,2\n3,4\n")
    assert read(path)[0].tolist() == array.tolist()


# refusing ------------------------------------------------------------------------------------------------------------


def refused(path: Path, words: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be a second line on the terminal
        with pytest.raises(ValueError, match=words) as caught:
            read(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named_by_row(tmp_path: Path, value: float):
    array = table()
    array[4, 1] = array[6, 0] = value
    np.save(tmp_path / "a.npy", array)
    refused(
        tmp_path / "a.npy",
        r"row 4 \(counted from 0\): a cell of column 2 .* in 2 of 7 rows \(column 1: 1, column 2: 1\)",
    )
    np.savetxt(tmp_path / "a.csv", array, delimiter=",")
    refused(tmp_path / "a.csv", r"line 5: .* 2 of 7 rows")


def test_values_too_large_for_single_precision_are_not_finite_either(tmp_path: Path):
    array = table()
    array[2, 2] = 1e39
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", r"row 2 .* is 1e\+39, which single precision.* in 1 of 7 rows \(column 3: 1\)")


@pytest.mark.parametrize("shape", [(6,), (6, 2, 3), (), (0, 3), (6, 0)])
def test_arrays_of_another_rank_are_refused(tmp_path: Path, shape: tuple[int, ...]):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    message = refused(tmp_path / "a.npy", r"must hold a table \(points, dimensions\), got shape")
    assert str(shape) in message


@pytest.mark.parametrize("array", [np.array([["a", "b"]]), np.zeros((3, 2), "c8"), np.zeros((3, 2), "M8[s]")])
def test_arrays_of_no_real_numbers_are_refused(tmp_path: Path, array: np.ndarray):
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", "must hold real numbers, got an array of type")


def test_objects_are_refused_and_never_unpickled(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").write_text, ("",))

    objects = np.empty((2, 2), dtype=object)
    objects[:] = Trap()
    np.save(tmp_path / "a.npy", objects)
    np.savez(tmp_path / "a.npz", x=objects)
    np.savez(tmp_path / "b.npz", x=table(), labels=objects[0])
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npy", "a.npz", "b.npz", "c.npy"):
        message = refused(tmp_path / name, "could not be read as")
        assert "allow_pickle" not in message  # no advice to unpickle
    assert not (tmp_path / "sprung").exists()


def test_archives_that_leave_a_choice_are_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", first=table(), second=table())
    refused(tmp_path / "a.npz", r"it holds the arrays \['first', 'second'\]: name the points 'x'")
    np.savez(tmp_path / "b.npz", labels=np.zeros(3, int))
    refused(tmp_path / "b.npz", "name the points 'x'")


@pytest.mark.parametrize(
    "labels", [np.zeros(6, int), np.zeros((7, 1), int), np.zeros(7) + 0.5, np.full(7, np.nan), np.zeros(7, "c8")]
)  # fmt: skip
def test_labels_that_are_refused(tmp_path: Path, labels: np.ndarray):
    np.savez(tmp_path / "a.npz", x=table(), labels=labels)
    refused(tmp_path / "a.npz", r"labels must be (7 values, one a row|text, truth values or whole numbers), got ")


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.npy", b""),
        ("a.npy", b"no array"),
        ("a.npz", b""),
        ("a.npz", b"PK\x03\x04 no archive"),
        ("a.csv", b"1,2\n3\n"),
        ("a.csv", b"1;2\n3\n"),
        ("a.parquet", b"PAR1 no table"),
        ("a.feather", b""),
        ("a.xlsx", b"PK\x03\x04 no workbook"),
        ("a.csv", b"\xff\xfe1,2"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, f"could not be read as {name[1:]}")


@pytest.mark.parametrize("content", [b"", b"x,y\n", b"\n\n"])
def test_csv_files_without_points_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.csv").write_bytes(content)
    refused(tmp_path / "a.csv", "it holds no points")


def test_truncated_and_misnamed_files_are_refused(tmp_path: Path):
    np.save(tmp_path / "a.npy", table())
    np.savez(tmp_path / "b.npz", x=table())
    whole, archive = (tmp_path / "a.npy").read_bytes(), (tmp_path / "b.npz").read_bytes()
    (tmp_path / "c.npy").write_bytes(whole[:-10])
    (tmp_path / "c.npz").write_bytes(archive[:-30])
    (tmp_path / "d.npy").write_bytes(archive)
    (tmp_path / "d.npz").write_bytes(whole)
    for name in ("c.npy", "c.npz", "d.npy", "d.npz"):
        refused(tmp_path / name, "could not be read as")


def test_names_that_are_no_data(tmp_path: Path):
    for name in ("checkerbord", "a.txt", "a"):
        with pytest.raises(
            ValueError,
            match=rf"'checkerboard', 'digits' or a file ending in .npy, .npz, .csv, .tsv, .parquet, .*, got '{name}'",
        ):
            open_data(name)
    with pytest.raises(ValueError, match=r"no data given: pass --data with"):
        open_data("")
    with pytest.raises(ValueError, match=r"there is no file .*missing.npy"):
        open_data(str(tmp_path / "missing.npy"))
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match=r"there is no file .*folder.npy"):
        open_data(str(tmp_path / "folder.npy"))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_may_be_larger_than_a_table(tmp_path: Path, rows: int):
    """Rows are drawn with replacement."""
    array = table(rows)
    np.save(tmp_path / "a.npy", array)
    source = open_data(str(tmp_path / "a.npy"))
    drawn = source.to_data(source.sample(500, seeded())[0])
    assert drawn.isfinite().all()
    found = {tuple(row) for row in drawn.numpy().round(4).tolist()}
    assert found == {tuple(row) for row in array.round(4).tolist()}


# drawing -------------------------------------------------------------------------------------------------------------


def test_points_are_scaled_to_unit_and_back(tmp_path: Path):
    array = table(101, 3) * [1.0, 10.0, 0.01] + [0.0, 500.0, -3.0]
    np.save(tmp_path / "a.npy", array)
    source = open_data(str(tmp_path / "a.npy"))
    assert isinstance(source, Points)
    assert source.dim == 3
    torch.testing.assert_close(source.data.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(source.data.std(0), torch.ones(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(source.to_data(source.data).double(), torch.as_tensor(array), rtol=1e-5, atol=1e-4)
    drawn, labels = source.sample(20, seeded())
    assert labels is None
    rows = {tuple(row) for row in source.data.tolist()}
    assert all(tuple(row) in rows for row in drawn.tolist())


def test_a_column_that_never_changes_stays_finite(tmp_path: Path):
    array = table(9, 2)
    array[:, 1] = 7.0
    np.save(tmp_path / "a.npy", array)
    source = open_data(str(tmp_path / "a.npy"))
    x, _ = source.sample(5, seeded())
    assert x[:, 1].tolist() == [0] * 5
    assert source.to_data(x)[:, 1].tolist() == [7] * 5


def test_labels_stay_with_their_points(tmp_path: Path):
    array, classes = table(50), np.arange(50) % 4
    np.savez(tmp_path / "a.npz", x=array, labels=classes)
    source = open_data(str(tmp_path / "a.npz"))
    assert source.classes == 4
    x, labels = source.sample(33, seeded())
    assert labels is not None
    for row, label in zip(source.to_data(x).double(), labels, strict=True):
        nearest = int(np.abs(array - row.numpy()).sum(1).argmin())
        assert classes[nearest] == label


def test_draws_are_even_and_follow_the_generator(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.arange(5.0)[:, None])
    source = open_data(str(tmp_path / "a.npy"))
    x = source.to_data(source.sample(10_001, seeded())[0]).round()
    counts = torch.bincount(x[:, 0].long(), minlength=5) / 10_001
    assert float((counts - 0.2).abs().max()) < 4 * (0.16 / 10_001) ** 0.5
    for kind in (source, Board(), open_data("digits")):
        one, same, other = (kind.sample(11, seeded(k))[0] for k in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_the_board_fills_its_eight_cells_evenly():
    source = open_data("checkerboard")
    assert isinstance(source, Board)
    assert (source.dim, source.classes) == (2, None)
    x, labels = source.sample(20_001, seeded())
    assert labels is None
    assert x.dtype == torch.float32
    assert torch.equal(source.to_data(x), x)
    cells = ((x + 1) / 0.5).floor().clamp(0, 3).long()
    counts = torch.bincount(4 * cells[:, 0] + cells[:, 1], minlength=16) / len(x)
    filled = counts > 0
    assert int(filled.sum()) == 8
    assert float((counts[filled] - 0.125).abs().max()) < 4 * (0.125 * 0.875 / len(x)) ** 0.5
    colours = {(k // 4 + k % 4) % 2 for k in filled.nonzero()[:, 0].tolist()}
    assert len(colours) == 1  # cells of one colour touch at corners only


def test_the_digits_are_scikit_learns_in_unit_scale():
    from sklearn.datasets import load_digits

    source = open_data("digits")
    assert isinstance(source, Points)
    assert (source.dim, source.classes, len(source.data)) == (64, 10, 1797)
    assert float(source.data.min()) == -1
    assert float(source.data.max()) == 1
    expected = load_digits()
    torch.testing.assert_close(source.to_data(source.data).double(), torch.as_tensor(expected.data))
    assert source.labels is not None
    assert source.labels.tolist() == expected.target.tolist()
