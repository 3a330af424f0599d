"""Where data are looked for, how they are named and checksummed, and the real CIFAR-10."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import cifar_files, opened, refused, write, write_folder
from places import CIFAR

from flowmaps.data import fingerprint, open_data, resolve

pytest.importorskip("pyarrow", reason="needs the extra 'images'")


# places --------------------------------------------------------------------------------------------------------------


def test_known_names_are_looked_up_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here, set_ = tmp_path / "a" / "b", tmp_path / "given"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("FLOWMAPS_DATA", str(set_))
    for rows, folder in ((1, tmp_path / "a" / "shared" / "data"), (2, here / "data"), (3, set_)):
        write(folder / "cifar10" / "train.parquet", rows=rows)
        assert len(opened(Path("cifar10")).pixels) == rows
        assert resolve("cifar10") == str((folder / "cifar10").resolve())
        assert fingerprint("cifar10") == fingerprint(str(folder / "cifar10"))
    monkeypatch.delenv("FLOWMAPS_DATA")
    assert len(opened(Path("cifar10")).pixels) == 2


@pytest.mark.parametrize(
    "name, words",
    [
        ("cifar10", ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "--data uoft-cs/cifar10"]),
        ("imagenet32", ["Imagenet32_train.zip", "train_data_batch_1", "--data benjamin-paine/imagenet-1k-32x32"]),
    ],
)
def test_known_names_that_are_nowhere_tell_three_ways(
    tmp_path: Path, name: str, words: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWMAPS_DATA", str(tmp_path / "given"))
    for call in (open_data, resolve, fingerprint):
        with pytest.raises(ValueError, match=rf"{name} is not here: looked at .*given/{name}, data/{name}, ") as caught:
            call(name)
        for word in (*words, f"../shared/data/{name}", "--data PATH", "--data FOLDER"):
            assert word in str(caught.value)
    monkeypatch.delenv("FLOWMAPS_DATA")
    with pytest.raises(ValueError, match=r"\$FLOWMAPS_DATA is not set"):
        open_data(name)


def test_names_are_resolved_and_checksummed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.zeros((3, 2)))
    write_folder(tmp_path / "archive", cifar_files())
    assert [resolve(name) for name in ("checkerboard", "digits", "user/name")] == [
        "checkerboard",
        "digits",
        "user/name",
    ]
    assert resolve("a.npy") == str(tmp_path / "a.npy")
    assert resolve("archive") == str(tmp_path / "archive")
    assert [fingerprint(name) for name in ("checkerboard", "digits")] == [None, None]
    assert fingerprint("a.npy") == hashlib.sha256((tmp_path / "a.npy").read_bytes()).hexdigest()
    told: list[float] = []
    before = fingerprint("archive", lambda _, share: told.append(share))
    assert told[-1] == 1
    (tmp_path / "archive").rename(tmp_path / "moved")
    assert fingerprint("moved") == before
    (tmp_path / "moved" / "data_batch_1").rename(tmp_path / "moved" / "data_batch_9")
    assert fingerprint("moved") != before
    with pytest.raises(ValueError, match=r"there is no file missing\.npy"):
        fingerprint("missing.npy")


@pytest.mark.parametrize("inside", [[], ["notes.txt"], ["a.csv.gz", "b"]])
def test_folders_of_nothing_that_is_understood(tmp_path: Path, inside: list[str]):
    for name in inside:
        (tmp_path / name).write_text("")
    refused(tmp_path, f"has no data of a known layout: it has {', '.join(inside) or 'nothing'}.*parquet", "cifar10")
    with pytest.raises(ValueError, match="no data of a known layout"):
        fingerprint(str(tmp_path))


# the real data -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason="CIFAR-10 is not at ../shared/data/cifar10")
def test_the_real_cifar10():
    told: list[float] = []
    train = opened(CIFAR, watch=lambda _, share: told.append(share), flips=True)
    test = opened(CIFAR, split="test")
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for source, number in ((train, 50_000), (test, 10_000)):
        assert source.pixels.shape == (number, 3, 32, 32)
        assert source.labels is not None
        assert source.labels.bincount().tolist() == [number // 10] * 10
        assert source.units.names == names
    assert told[-1] == 1
    assert len(told) > 50
    mean = train.pixels.double().mean((0, 2, 3)) / 255  # known of CIFAR-10, to which a JPEG copy is close
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]).double(), rtol=0, atol=2e-3)
    x, labels = train.sample(64, torch.Generator().manual_seed(0))
    assert x.shape == (64, 3, 32, 32)
    assert labels is not None
