"""Parquet files, and data sets of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import KINDS, colour, encoded, opened, refused, save, write

from flowmaps.data import Images, fingerprint, open_data, resolve

datasets = pytest.importorskip("datasets", reason="needs the extra 'images'")
pytest.importorskip("pyarrow", reason="needs the extra 'images'")


def expected(rows: int = 5, seed: int = 0) -> np.ndarray:
    return np.stack([colour(seed + k) for k in range(rows)]).transpose(0, 3, 1, 2)


# parquet -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "data", "plain_text"])
@pytest.mark.parametrize("image", ["img", "image"])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_parquet_of_the_hub(tmp_path: Path, folder: str, image: str, label: str):
    for k in range(2):
        write(tmp_path / folder / f"train-0000{k}-of-00002.parquet", image=image, label=label, seed=10 * k)
    write(tmp_path / folder / "test-00000-of-00001.parquet", image=image, label=label, rows=3, seed=50)
    source, test = opened(tmp_path), opened(tmp_path, split="test")
    np.testing.assert_array_equal(source.pixels.numpy(), np.concatenate([expected(), expected(seed=10)]))
    np.testing.assert_array_equal(test.pixels.numpy(), expected(3, 50))
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 0, 1] * 2
    assert source.units.names == test.units.names == tuple(KINDS)
    assert opened(tmp_path, labels=False).classes is None


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 700])
def test_rows_stay_in_order_over_many_chunks(tmp_path: Path, rows: int):
    told = []
    write(tmp_path / "train.parquet", rows=rows)
    source = opened(tmp_path, watch=lambda *said: told.append(said))
    np.testing.assert_array_equal(source.pixels.numpy(), expected(rows))
    assert source.labels is not None
    assert source.labels.tolist() == [k % 3 for k in range(rows)]
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] == 1


def test_other_ways_to_lay_out_a_table(tmp_path: Path):
    plain = write(tmp_path / "a.parquet", about=None, label=None)
    assert opened(plain).classes is None
    assert opened(write(tmp_path / "b.parquet", about=None)).classes == 3
    assert opened(write(tmp_path / "b.parquet", about="no json")).units.names == ()
    cells = [encoded(colour(k)) for k in range(5)]
    np.testing.assert_array_equal(opened(write(tmp_path / "c.parquet", cells=cells)).pixels.numpy(), expected())
    strange = write(tmp_path / "d.parquet", image="scan", more={"caption": ["x"] * 5})
    np.testing.assert_array_equal(opened(strange).pixels.numpy(), expected())
    refused(write(tmp_path / "e.parquet", image="scan", more={"mask": cells}), "has no column of images among scan")
    refused(write(tmp_path / "f.parquet", cells=[1] * 5), "has no column of images among img, label")
    assert opened(write(tmp_path / "g.parquet", more={"image_embedding": cells})).shape == (3, 4, 6)


def test_splits_of_parquet(tmp_path: Path):
    write(tmp_path / "cifar10-validation.parquet", rows=2)
    refused(tmp_path, r"no split 'train' \(it has validation;")
    for split in ("test", "val", "validation"):
        assert len(opened(tmp_path, split=split).pixels) == 2
    write(tmp_path / "cifar10-test.parquet", rows=4)
    assert [len(opened(tmp_path, split=split).pixels) for split in ("test", "val")] == [4, 2]
    write(tmp_path / "cifar10-test.parquet", rows=4, labels=[-1] * 4)  # kept back, as in challenges
    assert len(opened(tmp_path, split="test").pixels) == 2
    with pytest.raises(ValueError, match="there is no split 'dev': choose one of train, test, validation, val"):
        open_data(str(tmp_path), split="dev")


def test_rows_that_are_refused_are_named(tmp_path: Path):
    good = [{"bytes": encoded(colour(k)), "path": None} for k in range(5)]

    def case(words: str, **changes: Any) -> None:
        write(tmp_path / "train-00000-of-00002.parquet", rows=3)
        write(tmp_path / "train-00001-of-00002.parquet", **changes)
        message = refused(tmp_path, words)
        assert "train-00001-of-00002.parquet" in message

    jpeg = encoded(colour(0, 64, 64), "JPEG")
    case(r"row 1 of .* could not be read as an image", cells=[good[0], {"bytes": jpeg[:-300], "path": ""}, *good[2:]])
    case(r"row 2 of .* has no image: its bytes are missing", cells=[*good[:2], {"bytes": None, "path": "a"}, *good[3:]])
    case(
        r"row 0 of .* has 2 x 7 pixels, .*row 0 of", cells=[{"bytes": encoded(colour(0, 7, 2)), "path": ""}, *good[1:]]
    )
    case(r"row 4 of .* has the label 3, allowed are 0 to 2", labels=[0, 1, 2, 0, 3])
    case(r"row 1 of .* has the label -1", labels=[0, -1, 2, 0, 1])
    case(r"row 3 of .* has no label", labels=[0, 1, 2, None, 1])
    case(r"has other columns than", label="labels")


def test_damaged_and_missing_parquet_files(tmp_path: Path):
    whole = write(tmp_path / "a.parquet").read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-20], b"x" * 100):
        (tmp_path / "b.parquet").write_bytes(content)
        refused(tmp_path / "b.parquet", "is no parquet file or damaged")
    write(tmp_path / "c" / "train-00000-of-00003.parquet")
    refused(tmp_path / "c", "has 1 of 3 parquet files")


@pytest.mark.parametrize("missing", ["PIL", "pyarrow", "pyarrow.parquet", "datasets"])
def test_what_is_not_installed_is_named(tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    name = "user/name" if missing == "datasets" else str(tmp_path)
    with pytest.raises(ValueError, match=r"pip install 'flowmaps\[images\]'"):
        open_data(name)


# the hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set that the hub's library finds under the name `user/animals`."""
    folder = tmp_path / "hub"
    write(folder / "train-00000-of-00001.parquet", rows=300)
    write(folder / "validation-00000-of-00001.parquet", rows=4, seed=7)
    load = datasets.load_dataset

    def local(name: str) -> Any:
        assert name == "user/animals"
        files = {half: str(folder / f"{half}-00000-of-00001.parquet") for half in ("train", "validation")}
        return load("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    return folder


def test_a_data_set_of_the_hub_is_read_like_its_files(hub: Path):
    for split in ("train", "test", "val"):
        found, local = open_data("user/animals", split=split), opened(hub, split=split)
        assert isinstance(found, Images)
        assert torch.equal(found.pixels, local.pixels)
        assert found.labels is not None
        assert local.labels is not None
        assert torch.equal(found.labels, local.labels)
        assert found.units == local.units
    assert resolve("user/animals") == "user/animals"
    first = fingerprint("user/animals")
    assert first
    assert fingerprint("user/animals") == first


def test_images_that_the_hubs_library_keeps_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for k in range(4):
        save(tmp_path / "animals" / "train" / KINDS[k % 2] / f"{k}.png", colour(k))
    load = datasets.load_dataset

    def local(name: str) -> Any:
        return load("imagefolder", data_dir=str(tmp_path / "animals"), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    found, files = open_data("user/animals"), opened(tmp_path / "animals")
    assert isinstance(found, Images)
    assert found.units == files.units
    assert sorted(map(str, found.pixels.tolist())) == sorted(map(str, files.pixels.tolist()))
    with pytest.raises(ValueError, match=r"animals has no split 'test' \(it has train;"):
        open_data("user/animals", split="test")


def test_a_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def fail(name: str) -> Any:
        raise ConnectionError(f"Couldn't reach '{name}'\non the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for call in (open_data, fingerprint):
        with pytest.raises(
            ValueError, match=r"no file or folder user/name here.*OfflineModeIsEnabled.*HF_HUB_OFFLINE"
        ) as e:
            call("user/name")
        assert "\n" not in str(e.value)


def test_the_hub_truly_offline(tmp_path: Path):
    """The library itself, told that there is no network."""
    import os
    import subprocess
    import sys

    words = "from flowmaps.data import open_data\ntry: open_data('user/name')\nexcept ValueError as e: print(e)"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", words], env=env, capture_output=True, text=True, check=True).stdout
    assert "there is no file or folder user/name here" in found
    assert "HF_HUB_OFFLINE" in found


@pytest.mark.parametrize("labels", [["eel", "cat", "eel", "dog", "cat"], [True, False, True, True, False]])
def test_labels_may_be_text(tmp_path: Path, labels: list):
    source = opened(write(tmp_path / "a.parquet", about=None, labels=labels))
    assert source.units.names == tuple(map(str, sorted(set(labels))))
    assert source.labels is not None
    assert [source.units.names[k] for k in source.labels.tolist()] == list(map(str, labels))
