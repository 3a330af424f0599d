"""Images and latents held out of the training, by a share or by the data's own split; rectangles by --resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import ROWS, cifar_files, colour, opened, refused, save, write_folder

from flowmaps.data import DataWarning, Images, Points, open_data
from flowmaps.data.about import compared_with
from flowmaps.data.pixels import area_mean, middle, shrink, sides

pytestmark = pytest.mark.filterwarnings("ignore::flowmaps.data.DataWarning")


def write_array(path: Path, rows: int = 60) -> np.ndarray:
    """Images that are all different, and their labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 4, 6, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(rows) % 3)
    return pixels


def rows_of(pixels: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in pixels}


def test_a_share_of_the_images_is_neither_trained_on_nor_lost(tmp_path: Path):
    every = torch.from_numpy(write_array(tmp_path / "a.npz")).movedim(3, 1).contiguous()
    source = opened(tmp_path / "a.npz", held_out=0.25)
    assert source.held_out is not None
    assert (len(source.pixels), len(source.held_out)) == (45, 15)
    assert rows_of(source.pixels) | rows_of(source.held_out) == rows_of(every)
    assert source.real is source.held_out
    again = opened(tmp_path / "a.npz", held_out=0.25)
    assert torch.equal(again.pixels, source.pixels)  # the same ones for every run, and in a resume
    x, labels = source.reference(1_000, torch.Generator())
    assert torch.equal(source.units.to_pixels(x), source.held_out)
    order = {image.numpy().tobytes(): k % 3 for k, image in enumerate(every)}
    assert labels.tolist() == [order[image.numpy().tobytes()] for image in source.held_out]
    assert opened(tmp_path / "a.npz").real.shape[0] == 60


def test_what_samples_are_measured_against_is_said(tmp_path: Path):
    write_array(tmp_path / "a.npz")
    with pytest.warns(DataWarning, match="only 15 images are held out: a Fréchet distance to so few is too large"):
        held = opened(tmp_path / "a.npz", held_out=0.25)
    assert "samples are measured against 15 images that are held out, and not trained on" in held.about
    assert compared_with(held) == ["Samples are measured against 15 images that are held out, and not trained on."]
    assert compared_with(held, 4)[0].startswith("Samples are measured against 4 of 15 images")
    usual = opened(tmp_path / "a.npz")
    assert (
        "samples are measured against the images that are trained on, as is usual for Fréchet distances" in usual.about
    )


def test_the_test_split_of_an_archive_is_taken_where_it_is_asked_for(tmp_path: Path):
    source = opened(write_folder(tmp_path / "cifar", cifar_files()), held_out="test")
    test = opened(tmp_path / "cifar", split="test")
    assert source.held_out is not None
    assert torch.equal(source.held_out, test.pixels)
    assert len(source.pixels) == 5 * ROWS  # all of the training split
    assert f"{ROWS} images of the data's own test split, and not trained on" in compared_with(source)[0]


def test_the_test_split_of_a_folder_is_taken(tmp_path: Path):
    for k in range(4):
        save(tmp_path / f"train/{'cat' if k % 2 else 'dog'}/{k}.png", colour(k))
    save(tmp_path / "test/cat/9.png", colour(9))
    source = opened(tmp_path, held_out="test")
    assert source.held_out is not None
    np.testing.assert_array_equal(source.held_out[0].numpy(), colour(9).transpose(2, 0, 1))
    assert source.held_out_labels is not None
    assert source.held_out_labels.tolist() == [0]
    save(tmp_path / "test/cat/9.png", colour(9, 8, 8))
    words = "images of the test split are of 3 x 8 x 8, those of the training split of 3 x 4 x 6: pass --resolution"
    with pytest.raises(ValueError, match=words):
        opened(tmp_path, held_out="test")
    assert opened(tmp_path, held_out="test", resolution=4).held_out is not None  # the advice works


def test_what_cannot_be_held_out_is_refused(tmp_path: Path):
    write_array(tmp_path / "a.npz")
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(50, 2)))
    save(tmp_path / "flat/0.png", colour())
    for name, held, words in (
        ("a.npz", 0.1, "--held-out 0.1 of 60 images is fewer than 10: hold out more, or none, --held-out 0"),
        ("a.npz", 1.0, "--held-out must be a share from 0 to below 1, or of images 'test'"),
        ("a.npz", "train", "--held-out must be a share from 0 to below 1, or of images 'test'"),
        ("a.npz", "test", "has no split 'test': pass a share to hold out of .*, such as --held-out 0.1"),
        ("flat", "test", "has no split 'test'.*: pass a share to hold out of .*, such as --held-out 0.1"),
        ("table.npy", 0.5, "is no set of images or latents: pass held_out=0, and of a table table.held_out"),
    ):
        with pytest.raises(ValueError, match=words):
            open_data(str(tmp_path / name), held_out=held)
    with pytest.raises(ValueError, match=r"held out of the training split, got held_out=0.1 of 'test'"):
        open_data(str(tmp_path / "flat"), held_out=0.1, split="test")


def test_classes_are_counted_over_all_images(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=[0] * 39 + [1])
    for share in (0.3, 0.9):
        source = opened(tmp_path / "a.npz", held_out=share)
        assert source.classes == 2
        assert source.labels is not None
        said = any("no image that is trained on has the class 1: it is not sampled" in note for note in source.notes)
        assert said == (1 not in source.labels)
    assert said


def test_latents_are_held_out_and_standardised_by_the_others(tmp_path: Path):
    data = np.random.default_rng(0).normal(3, 2, (100, 2, 4, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", data)
    source = open_data(str(tmp_path / "a.npy"), held_out=0.2)
    assert isinstance(source, Points)
    assert source.held_out is not None
    assert (len(source.data), len(source.held_out)) == (80, 20)
    assert source.data.mean((0, 2, 3)).abs().max() < 1e-6
    back = source.to_data(torch.cat([source.data, source.held_out])).numpy()
    np.testing.assert_allclose(np.sort(back.ravel()), np.sort(data.ravel()), atol=1e-5)
    assert "samples are measured against 20 rows that are held out" in source.about
    with pytest.raises(ValueError, match="of 100 latents is fewer than 10"):
        open_data(str(tmp_path / "a.npy"), held_out=0.05)


# rectangles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, both",
    [
        (0, None),
        ("0", None),
        (16, (16, 16)),
        ("16", (16, 16)),
        ("16x32", (16, 32)),
        ("16X32", (16, 32)),
        ((4, 8), (4, 8)),
    ],
)
def test_a_resolution_is_one_number_or_two(given: Any, both: Any):
    assert sides(given) == both


@pytest.mark.parametrize("given", [-1, "x", "16x", "0x4", "16x32x3", "-4x4", True, 1.5, (4, 0), (1, 2, 3), None])
def test_resolutions_that_are_none(given: Any):
    with pytest.raises(ValueError, match=r"--resolution must be 0 \(as it is\), a number of pixels, or HEIGHTxWIDTH"):
        sides(given)


@pytest.mark.parametrize(
    "size, kept",
    [
        ((2, 4), (slice(2, 10), slice(0, 16))),
        ((6, 4), (slice(0, 12), slice(4, 12))),
        ((3, 4), (slice(None), slice(None))),
    ],
)
def test_images_are_cropped_in_the_middle_and_averaged_down(size: tuple[int, int], kept: tuple[slice, slice]):
    image = colour(0, 12, 16).transpose(2, 0, 1)
    np.testing.assert_array_equal(middle(image, *size), image[:, kept[0], kept[1]])
    height, width = image[:, kept[0], kept[1]].shape[1:]
    cells = image[:, kept[0], kept[1]].reshape(3, size[0], height // size[0], size[1], width // size[1])
    means = np.floor(cells.mean((2, 4), dtype=np.float64) + 0.5)
    np.testing.assert_array_equal(shrink(image[None], size, "x")[0], means)
    np.testing.assert_array_equal(area_mean(image[:, kept[0], kept[1]], size), means)


def test_files_and_arrays_become_rectangles(tmp_path: Path):
    for k, (height, width) in enumerate([(8, 16), (9, 16), (16, 32), (13, 40)]):
        save(tmp_path / f"files/{k}.png", colour(k, height, width))
    source = opened(tmp_path / "files", resolution="4x8")
    assert source.shape == (3, 4, 8)
    for k, image in enumerate([colour(0, 8, 16), colour(1, 9, 16)[:8], colour(2, 16, 32)]):
        np.testing.assert_array_equal(source.pixels[k].numpy(), area_mean(image.transpose(2, 0, 1), (4, 8)))
    said = "were cropped to the rectangle of this shape in their middle and averaged down to this size"
    assert f"those of another size {said}" in source.about
    refused(
        tmp_path / "files", "0.png has 16 x 8 pixels, fewer than --resolution 8x24: .*at most 8x16", resolution="8x24"
    )
    write_array(tmp_path / "a.npz")  # of 4 x 6
    assert opened(tmp_path / "a.npz", resolution="2x3").shape == (3, 2, 3)
    assert opened(tmp_path / "a.npz", resolution="2x1").shape == (3, 2, 1)
    words = r"4 x 6 pixels \(height x width\), of which --resolution 3x4 is no whole part: .*there are 2x3, 4x6"
    refused(tmp_path / "a.npz", words, resolution="3x4")


def test_the_images_of_a_source_go_to_a_device_without_those_held_out(tmp_path: Path):
    write_array(tmp_path / "a.npz")
    source = opened(tmp_path / "a.npz", held_out=0.25).to("meta")
    assert isinstance(source, Images)
    assert source.held_out is not None
    assert source.pixels.device.type == "meta"
    assert source.held_out.device.type == "cpu"
