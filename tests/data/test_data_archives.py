"""The official archives of CIFAR-10 and of ImageNet averaged down, as they are and as they should not be."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import (
    NAMES,
    cifar_batch,
    cifar_files,
    imagenet_batch,
    imagenet_files,
    opened,
    pixels,
    refused,
    write_folder,
    write_tar,
    write_zips,
)

from flowmaps.data import fingerprint

# CIFAR-10 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["folder", "folder above", "tar", "folder of the tar"])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_in_each_of_its_places(tmp_path: Path, place: str, protocol: int):
    files = cifar_files()
    content = {name: pickle.dumps(value, protocol) for name, value in files.items()}
    path = {
        "folder": lambda: write_folder(tmp_path / "cifar-10-batches-py", content),
        "folder above": lambda: write_folder(tmp_path / "cifar-10-batches-py", content).parent,
        "tar": lambda: write_tar(tmp_path / "cifar-10-python.tar.gz", content),
        "folder of the tar": lambda: write_tar(tmp_path / "cifar-10-python.tar.gz", content).parent,
    }[place]()
    batches = [f"data_batch_{k}" for k in range(1, 6)]
    for split, names in {"train": batches, "test": ["test_batch"], "val": ["test_batch"]}.items():
        source = opened(path, split=split)
        expected = np.concatenate([files[name][b"data"] for name in names]).reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(source.pixels.numpy(), expected)
        assert source.labels is not None
        assert source.labels.tolist() == [label for name in names for label in files[name][b"labels"]]
        assert (source.classes, source.units.names[3]) == (10, "cat")


def test_red_comes_first_then_green_then_blue(tmp_path: Path):
    files = cifar_files()
    row = np.concatenate([np.full(1024, 10), np.full(1024, 20), np.arange(1024) % 256]).astype(np.uint8)
    files["test_batch"][b"data"][2] = row
    image = opened(write_folder(tmp_path / "a", files), split="test").pixels[2]
    assert image[0].unique().tolist() == [10]
    assert image[1].unique().tolist() == [20]
    assert image[2, 1, 5] == 37  # line by line


def test_a_pickle_of_python_2_as_the_original_was_written(tmp_path: Path):
    """Names, texts and pixels are byte strings there; numpy is still `numpy.core`."""
    data = pixels(2)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01bt\x52(K\x01K\x02M\x00\x0c\x86"
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    )  # fmt: skip
    content = b"\x80\x02}q\x01(U\x04data" + array + b"U\x06labels](K\x03K\x09eu."
    files = {name: content for name in cifar_files() if name != "batches.meta"}
    source = opened(write_folder(tmp_path / "a", files), split="test")
    np.testing.assert_array_equal(source.pixels.numpy(), data.reshape(2, 3, 32, 32))
    assert source.labels is not None
    assert source.labels.tolist() == [3, 9]
    assert (source.classes, source.units.names) == (10, ())  # without batches.meta


def test_missing_batches_are_named(tmp_path: Path):
    files = cifar_files()
    del files["data_batch_3"], files["data_batch_5"], files["test_batch"]
    path = write_folder(tmp_path / "a", files)
    refused(path, r"lacks data_batch_3, data_batch_5 of split 'train'")
    refused(path, r"no split 'test'", split="test")
    refused(write_tar(tmp_path / "a.tar.gz", files), "lacks data_batch_3, data_batch_5")


BROKEN = {
    "width": (lambda b: b | {b"data": pixels()[:, :3071]}, r"'data' must be uint8 of N x 3072, got uint8 of shape"),
    "type": (lambda b: b | {b"data": pixels().astype("f4")}, r"must be uint8 of N x 3072, got float32"),
    "flat": (lambda b: b | {b"data": pixels().reshape(-1)}, r"must be uint8 of N x 3072"),
    "no data": (lambda b: {b"labels": b[b"labels"]}, r"has \['labels'\], not 'data' and 'labels'"),
    "no labels": (lambda b: {b"data": b[b"data"]}, r"has \['data'\], not 'data' and 'labels'"),
    "data of texts": (lambda b: b | {b"data": b"pixels"}, r"not 'data' and 'labels'"),
    "few labels": (lambda b: b | {b"labels": b[b"labels"][:-1]}, r"has 7 images and 6 labels"),
    "label 10": (lambda b: b | {b"labels": [0, 1, 10, 3, 4, 5, 6]}, r"must be 0 to 9, got 10 in row 2"),
    "label -1": (lambda b: b | {b"labels": [-1, 1, 1, 3, 4, 5, 6]}, r"must be 0 to 9, got -1 in row 0"),
    "labels of texts": (lambda b: b | {b"labels": [b"0"] * 7}, r"'labels' must be whole numbers"),
    "nested labels": (lambda b: b | {b"labels": [[0] * 7] * 7}, r"'labels' must be whole numbers"),
    "a list": (lambda b: [b], r"it holds a list in the place of a dictionary"),
    "a number as name": (lambda b: {1: b}, r"it holds a name of type int"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_batches_that_are_not_what_they_seem(tmp_path: Path, case: str, packed: bool):
    change, words = BROKEN[case]
    files = cifar_files()
    files["data_batch_4"] = change(files["data_batch_4"])
    path = write_tar(tmp_path / "a.tar.gz", files) if packed else write_folder(tmp_path / "a", files)
    refused(path, words, "data_batch_4")


@pytest.mark.parametrize("names", [NAMES[:9], [1] * 10, b"ten"])
def test_names_of_classes_that_do_not_fit(tmp_path: Path, names: Any):
    files = cifar_files()
    files["batches.meta"] = {b"label_names": names}
    refused(write_folder(tmp_path / "a", files), r"'label_names' must be 10 names", "batches.meta")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_pickles_are_refused(tmp_path: Path, share: float):
    files: dict[str, Any] = cifar_files()
    whole = pickle.dumps(files["test_batch"], 2)
    files["test_batch"] = whole[: int(share * len(whole))]
    refused(write_folder(tmp_path / "a", files), "damaged or cut short", "test_batch", split="test")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_archives_are_refused(tmp_path: Path, share: float):
    whole = write_tar(tmp_path / "a.tar.gz", cifar_files()).read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path / "b.tar.gz", "damaged or cut short")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    (tmp_path / "c.tar.gz").write_bytes(damaged)
    refused(tmp_path / "c.tar.gz", "damaged|no split|lacks")


def test_members_of_a_tar_that_are_no_plain_files_are_passed_over(tmp_path: Path):
    """Links to files outside, folders up, deep folders: nothing is written, nothing outside is read."""
    secret = tmp_path / "secret"
    secret.write_bytes(pickle.dumps(cifar_batch(0), 2))
    before = sorted(tmp_path.iterdir())
    for kind, name in [
        (tarfile.SYMTYPE, "cifar-10-batches-py/test_batch"), (tarfile.LNKTYPE, "cifar-10-batches-py/test_batch"),
        (tarfile.REGTYPE, "../test_batch"), (tarfile.REGTYPE, "/tmp/test_batch"), (tarfile.REGTYPE, "a/b/test_batch"),
        (tarfile.FIFOTYPE, "test_batch"), (tarfile.DIRTYPE, "test_batch"),
    ]:  # fmt: skip
        path = tmp_path / "a.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            member.size = secret.stat().st_size if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(secret.read_bytes()) if member.size else None)
        refused(path, "no split 'test'", split="test")
        path.unlink()
    assert sorted(tmp_path.iterdir()) == before


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            member = tarfile.TarInfo("test_batch")
            data = pickle.dumps(cifar_batch(0), 2)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    refused(tmp_path / "a.tar", "has test_batch twice", split="test")


def test_a_member_larger_than_any_batch_is_refused_before_it_is_read(tmp_path: Path):
    member = tarfile.TarInfo("test_batch")
    member.size = 2**40
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096)))
    refused(tmp_path / "a.tar.gz", "1099511627776 bytes", "test_batch", split="test")


# ImageNet averaged down ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zips"])
@pytest.mark.parametrize("side", [8, 32])
def test_imagenet_in_each_of_its_places(tmp_path: Path, packed: bool, side: int):
    files = imagenet_files(side)
    path = (write_zips if packed else write_folder)(tmp_path / "a", files, 3)
    order = [f"train_data_batch_{k}" for k in range(1, 11)]
    for split, names in {"train": order, "test": ["val_data"]}.items():
        source = opened(path, split=split)
        expected = np.concatenate([files[name]["data"] for name in names]).reshape(-1, 3, side, side)
        np.testing.assert_array_equal(source.pixels.numpy(), expected)
        assert source.labels is not None
        assert source.labels.tolist() == [label - 1 for name in names for label in files[name]["labels"]]
        assert (source.classes, source.units.names) == (1000, ())
    if packed:
        assert len(opened(path / "Imagenet32_train.zip").pixels) == 70
        refused(path / "Imagenet32_train.zip", "no split 'test'", split="test")


@pytest.mark.parametrize("label", [0, 1001])
def test_labels_of_imagenet_are_1_to_1000(tmp_path: Path, label: int):
    files = imagenet_files(8)
    files["val_data"]["labels"][4] = label
    refused(write_folder(tmp_path / "a", files), rf"must be 1 to 1000, got {label} in row 4", "val_data", split="test")


def test_damaged_zips_and_mixed_sizes_are_refused(tmp_path: Path):
    files = imagenet_files(8)
    whole = (write_zips(tmp_path / "a", files) / "Imagenet32_val.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(whole[:-40])
    refused(tmp_path / "b.zip", "damaged or cut short", split="test")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (tmp_path / "c.zip").write_bytes(flipped)
    refused(tmp_path / "c.zip", "damaged", split="test")
    del files["train_data_batch_7"]
    refused(write_zips(tmp_path / "d", files), "lacks train_data_batch_7")
    refused(write_folder(tmp_path / "e", files | {"train_data_batch_7": imagenet_batch(7, 16)}), "several sizes")


def test_archives_are_averaged_down_and_watched(tmp_path: Path):
    files, told = cifar_files(), []
    source = opened(write_folder(tmp_path / "a", files), resolution=8, watch=lambda *said: told.append(said))
    cells = files["data_batch_2"][b"data"].reshape(7, 3, 8, 4, 8, 4).astype(float).mean((3, 5))
    np.testing.assert_array_equal(source.pixels[7:14].numpy(), np.floor(cells + 0.5))
    assert [share for _, share in told] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    refused(tmp_path / "a", r"no multiple of --resolution 7: choose one of 4, 8, 16, 32", resolution=7)


def test_the_fingerprint_follows_the_content_of_all_splits(tmp_path: Path):
    path = write_folder(tmp_path / "a", cifar_files())
    before = fingerprint(str(path))
    (path / "readme.html").write_text("no part of the data")
    assert fingerprint(str(path)) == before
    content = bytearray((path / "test_batch").read_bytes())
    content[-100] ^= 1
    (path / "test_batch").write_bytes(content)
    assert fingerprint(str(path)) not in (None, before)
