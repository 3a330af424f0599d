"""Classes under whatever labels a file has: each row keeps its own, and none is invented."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from flowmaps.data import DataWarning, Images, Points, TableOptions, open_data

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2))
LABELS = {
    "text": np.array(["dog", "cat", "eel"] * 20),
    "bytes": np.array([b"dog", b"cat", b"eel"] * 20),
    "truth": np.arange(60) % 2 == 0,
    "from one": np.arange(60) % 3 + 1,
    "gaps": np.arange(60) % 3 * 7 - 4,
    "floats": (np.arange(60) % 3).astype(float),
    "floats from one": (np.arange(60) % 3 + 1).astype(np.float32),
    "bytes of numbers": (np.arange(60) % 3 + 5).astype(np.uint8),
}


def opened(path: Path, **options: object) -> Points:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        source = open_data(str(path), table=TableOptions(held_out=0.0, **options))  # type: ignore[arg-type]
    assert isinstance(source, Points)
    return source


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_type_come_back(tmp_path: Path, kind: str):
    given = LABELS[kind]
    np.savez(tmp_path / "a.npz", x=X, labels=given)
    source = opened(tmp_path / "a.npz")
    values, numbers = np.unique(given, return_inverse=True)
    assert source.labels is not None
    assert source.labels.tolist() == numbers.tolist()
    assert source.classes == len(values)
    back = source.units.labels_in_file(source.labels)
    expected = given.astype(str) if given.dtype.kind == "S" else given
    assert back.tolist() == expected.tolist()
    if given.dtype.kind not in "US":
        assert back.dtype == given.dtype


@pytest.mark.parametrize("name", ["labels", "label", "y", "targets", "target", "classes", "class", "Labels", "Y"])
def test_labels_under_the_usual_names(tmp_path: Path, name: str):
    np.savez(tmp_path / "a.npz", x=X, **{name: LABELS["from one"]})
    assert opened(tmp_path / "a.npz").classes == 3


def test_what_is_no_label_is_said_to_be_left_out(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=X, y=RNG.normal(size=60), weights=np.ones(60))
    with pytest.warns(DataWarning) as told:
        source = open_data(str(tmp_path / "a.npz"))
    said = " ".join(str(warning.message) for warning in told)
    assert source.classes is None
    assert "array 'y' has other numbers than classes and is left out" in said
    assert "'weights'" in said
    assert any("no classes" in line for line in source.about)


def test_classes_of_images_are_numbered_and_named_too(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=np.zeros((60, 4, 4, 3), np.uint8), y=LABELS["gaps"])
    with pytest.warns(DataWarning):
        source = open_data(str(tmp_path / "a.npz"))
    assert isinstance(source, Images)
    assert source.units.names == ("-4", "3", "10")
    assert source.units.labels_in_file(torch.tensor([2, 0])).tolist() == [10, -4]


def test_a_class_without_rows_is_not_sampled():
    source = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 2, 2, 4]), classes=6)
    assert source.units.absent == (1, 3, 5)
    turns = source.units.labels_in_turn(7)
    assert turns is not None
    assert turns.tolist() == [0, 2, 4, 0, 2, 4, 0]


# columns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["label", "class", "target", "Target"])
@pytest.mark.parametrize("kind", ["text", "truth", "from one", "floats"])
def test_a_column_of_classes_is_found(tmp_path: Path, name: str, kind: str):
    frame = pandas.DataFrame({"a": X[:, 0], name: LABELS[kind], "b": X[:, 1]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    source = opened(tmp_path / "a.csv")
    assert source.shape == (2,)
    assert source.classes == len(set(LABELS[kind].tolist()))
    assert source.units.table is not None
    assert (source.units.table.label, source.units.table.label_place) == (name, 1)
    if kind != "text":
        assert opened(tmp_path / "a.csv", keep_columns=(name,)).shape == (3,)


def test_a_measured_target_and_a_coordinate_are_no_classes(tmp_path: Path):
    pandas.DataFrame({"a": X[:, 0], "target": X[:, 1]}).to_csv(tmp_path / "a.csv", index=False)
    assert (opened(tmp_path / "a.csv").shape, opened(tmp_path / "a.csv").classes) == ((2,), None)
    pandas.DataFrame({"x": X[:, 0], "y": LABELS["from one"]}).to_csv(tmp_path / "b.csv", index=False)
    assert (opened(tmp_path / "b.csv").shape, opened(tmp_path / "b.csv").classes) == ((2,), None)
    assert opened(tmp_path / "b.csv", label_column="y").classes == 3


def test_a_column_of_numbers_is_cut_into_classes(tmp_path: Path):
    pandas.DataFrame({"a": X[:, 0], "age": np.arange(60) / 2, "b": X[:, 1]}).to_csv(tmp_path / "a.csv", index=False)
    source = opened(tmp_path / "a.csv", label_column="age", label_bins=4)
    assert source.labels is not None
    assert source.labels.tolist() == [k // 15 for k in range(60)]
    assert source.units.names[0] == "1: 0 to 7.375"
    with pytest.raises(ValueError, match="--label-bins cuts the numbers of a column: pass --label-column"):
        opened(tmp_path / "a.csv", label_bins=4)
    with pytest.raises(ValueError, match=r"labels must be text, truth values or whole numbers.*--label-bins 10"):
        opened(tmp_path / "a.csv", label_column="a")


def test_labels_that_are_missing_are_named_by_line(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,label\n1.5,x\n2.5,\n3.5,y\n")
    with pytest.raises(ValueError, match=r"line 3: a cell of column 'label' is empty"):
        opened(tmp_path / "a.csv")
