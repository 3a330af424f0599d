"""Folders of images, and what Pillow may read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_cases import colour, opened, refused, save
from PIL import Image

from flowmaps.data import DataWarning, Images, open_data
from flowmaps.data.decode import decode
from flowmaps.data.pixels import area_mean, gather, in_order

# classes and splits ---------------------------------------------------------------------------------------------------


SUFFIXES = {".png": {}, ".PNG": {}, ".bmp": {}, ".webp": {"lossless": True}}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_by_class(tmp_path: Path, suffix: str):
    for k, name in enumerate(["dog/b", "dog/a", "cat/c", "eel/d"]):
        save(tmp_path / f"{name}{suffix}", colour(k), **SUFFIXES[suffix])
    (tmp_path / "notes.txt").write_text("no image")
    source = opened(tmp_path)
    assert source.units.names == ("cat", "dog", "eel")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 1, 2]
    expected = np.stack([colour(k) for k in (2, 1, 0, 3)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(source.pixels.numpy(), expected)
    refused(tmp_path, "no split 'test'", split="test")


def test_folders_of_splits(tmp_path: Path):
    for k, name in enumerate(["train/cat/a", "train/dog/a", "val/dog/b"]):
        save(tmp_path / f"{name}.png", colour(k))
    assert len(opened(tmp_path).pixels) == 2
    for split in ("test", "val", "validation"):
        source = opened(tmp_path, split=split)
        assert source.labels is not None
        assert source.labels.tolist() == [1]  # a dog, though no cat is there
        assert source.units.names == ("cat", "dog")
    save(tmp_path / "val" / "fox" / "a.png", colour())
    refused(tmp_path, "has the classes fox, which .*train does not have", split="test")


def test_a_folder_that_has_only_a_test_split_says_how_to_train_on_it(tmp_path: Path):
    for k, name in enumerate(["test/cat/a", "test/dog/a"]):
        save(tmp_path / f"{name}.png", colour(k))
    refused(tmp_path, f"no split 'train' .*: call it train, or pass --data {tmp_path / 'test'} to train on it")
    assert opened(tmp_path / "test").units.names == ("cat", "dog")  # the advice works


def test_what_a_resolution_does_to_images_is_said(tmp_path: Path):
    for k in range(2):
        save(tmp_path / f"{k}.png", np.concatenate([colour(k)] * 2, axis=1))
    assert not any("cropped" in line for line in opened(tmp_path).about)
    side = min(opened(tmp_path).pixels.shape[2:])
    about = open_data(str(tmp_path), resolution=side // 2).about
    assert "those of another size were cropped to the square in their middle and averaged down to this size" in about


def test_a_flat_folder_has_no_labels(tmp_path: Path):
    for k in range(3):
        save(tmp_path / f"{k}.png", colour(k))
    source = opened(tmp_path)
    assert (source.labels, source.classes, len(source.pixels)) == (None, None, 3)
    save(tmp_path / "cat" / "a.png", colour())
    refused(tmp_path, r"images beside folders of images \(0.png, cat\)")


def test_grey_stays_grey_and_becomes_colour_beside_colour(tmp_path: Path):
    grey = [colour(k)[..., 0] for k in range(3)]
    for k in range(2):
        save(tmp_path / "a" / f"{k}.png", grey[k])
    assert opened(tmp_path / "a").shape == (1, 4, 6)
    for order in ("gc", "cg"):
        for k, kind in enumerate(order):
            save(tmp_path / order / f"{k}.png", grey[2] if kind == "g" else colour(9))
        pixels = opened(tmp_path / order).pixels[order.index("g")].numpy()
        np.testing.assert_array_equal(pixels, np.stack([grey[2]] * 3))


def test_sizes_that_differ_need_a_resolution(tmp_path: Path):
    flat = np.full((12, 9, 3), 40, np.uint8)
    for k, image in enumerate([colour(0, 8, 8), colour(1, 8, 8), flat, colour(3, 16, 24)]):
        save(tmp_path / f"{k}.png", image)
    refused(tmp_path, r"2.png has 9 x 12 pixels, .*0.png has 8 x 8: pass --resolution 8, the least side of all")
    source = opened(tmp_path, resolution=4)
    assert source.shape == (3, 4, 4)
    np.testing.assert_array_equal(source.pixels[0].numpy(), area_mean(colour(0, 8, 8).transpose(2, 0, 1), 4))
    assert source.pixels[2].unique().tolist() == [40]
    middle = colour(3, 16, 24)[:, 4:20].transpose(2, 0, 1)
    np.testing.assert_array_equal(source.pixels[3].numpy(), area_mean(middle, 4))
    refused(
        tmp_path, "0.png has 8 x 8 pixels, fewer than --resolution 9: choose a --resolution of at most 8", resolution=9
    )


def test_damaged_files_are_named(tmp_path: Path):
    for suffix in (".jpg", ".png", ".bmp", ".webp"):
        whole = save(tmp_path / suffix[1:] / f"a{suffix}", colour(0, 32, 32)).read_bytes()
        (tmp_path / suffix[1:] / f"b{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
        (tmp_path / f"empty{suffix[1:]}").mkdir()
        (tmp_path / f"empty{suffix[1:]}" / f"c{suffix}").write_bytes(b"")
        refused(tmp_path / suffix[1:], rf"b{suffix} could not be read as an image")
        refused(tmp_path / f"empty{suffix[1:]}", rf"c{suffix} could not be read as an image")
    save(tmp_path / "ico" / "a.png", Image.fromarray(colour(0, 16, 16)), format="ICO")
    refused(tmp_path / "ico", "it is no PNG, JPEG, BMP, WEBP, TIFF or GIF")


def transparent(alpha: int) -> Image.Image:
    image = Image.fromarray(colour()).convert("RGBA")
    image.putpixel((2, 1), (1, 2, 3, alpha))
    return image


def sixteen() -> Image.Image:
    return Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6))


def keyed() -> Image.Image:
    image = Image.fromarray(colour()).quantize(8)
    image.info["transparency"] = 0
    return image


REFUSED = {
    "alpha": (lambda: transparent(0), "is transparent in places: put it on a background"),
    "half alpha": (lambda: transparent(128), "is transparent in places"),
    "grey with alpha": (lambda: transparent(9).convert("LA"), "is transparent in places"),
    "palette with a hole": (keyed, "is transparent in places"),
    "16 bits": (sixteen, "more than 8 bits a channel"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_images_without_a_plain_meaning_are_refused(tmp_path: Path, kind: str):
    make, words = REFUSED[kind]
    save(tmp_path / "cat" / "a.png", make())
    message = refused(tmp_path, words)
    assert "a.png" in message


@pytest.mark.parametrize("channels", [0, 2, 4, 6])
def test_pngs_of_16_bits_are_refused_whatever_their_channels(tmp_path: Path, channels: int):
    """Pillow would drop half of the bits of those with colour without a word."""
    width, height, samples = 3, 2, {0: 1, 2: 3, 4: 2, 6: 4}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, channels, 0, 0, 0)
    lines = zlib.compress(height * (b"\0" + bytes(2 * samples * width)))

    def chunk(name: bytes, content: bytes) -> bytes:
        seal = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + seal

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path, "a.png has more than 8 bits a channel")


@pytest.mark.parametrize("suffix", [".bmp", ".png", ".jpg", ".webp"])
def test_8_bits_are_never_taken_for_16(tmp_path: Path, suffix: str):
    """Whatever numbers a format keeps beside its kind of pixels, such as 16 bytes a line."""
    for width in (*range(1, 70), 160, 1600):
        path = save(tmp_path / f"a{suffix}", np.zeros((2, width, 3), np.uint8))
        assert decode(path, "x").shape == (2, width, 3)


def test_several_frames_are_refused(tmp_path: Path):
    frames = [Image.fromarray(colour(k)) for k in range(3)]
    save(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:])
    refused(tmp_path, "a.png has 3 frames: save the one that you mean")


def test_modes_whose_meaning_is_kept(tmp_path: Path):
    image = Image.fromarray(colour())
    opaque = transparent(255)
    for name, saved, expected in [
        ("opaque.png", opaque, opaque.convert("RGB")),
        ("opaque grey.png", opaque.convert("LA"), opaque.convert("L")),
        ("palette.png", image.quantize(8), image.quantize(8).convert("RGB")),
        ("bits.png", image.convert("1"), image.convert("1").convert("L")),
    ]:
        path = save(tmp_path / name, saved)
        np.testing.assert_array_equal(decode(path, "x"), np.asarray(expected))
    printed = save(tmp_path / "cmyk.jpg", image.convert("CMYK"), quality=95)
    assert decode(printed, "x").shape == (4, 6, 3)


def test_a_camera_held_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it right
    path = save(tmp_path / "a.png", colour(), exif=exif)
    np.testing.assert_array_equal(decode(path, "x"), np.rot90(colour(), -1))


# in memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 2, 4])
def test_another_number_of_images_than_promised_is_refused(number: int):
    with pytest.raises(ValueError, match=r"image \d: there are \d images or more in the place of"):
        gather([colour(k) for k in range(3)], number, lambda row: f"image {row}")


def test_results_come_in_order_and_errors_come_through():
    import time

    def task(k: int) -> int:
        time.sleep(0.001 * (k % 3))
        if k == 40:
            raise ValueError("forty")
        return k * k

    assert list(in_order(task, range(40))) == [k * k for k in range(40)]
    with pytest.raises(ValueError, match="forty"):
        list(in_order(task, range(50)))


# what is read and what is left out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".gif"])
def test_the_first_frame_of_tiff_and_gif_is_read(tmp_path: Path, suffix: str):
    frames = [Image.fromarray(np.full((4, 6, 3), value, np.uint8)) for value in (40, 90, 200)]
    save(tmp_path / "cat" / f"a{suffix}", frames[0], save_all=True, append_images=frames[1:])
    assert opened(tmp_path).pixels.unique().tolist() == [40]


def test_deeper_folders_belong_to_the_class_at_the_top(tmp_path: Path):
    for k, name in enumerate(["a/0", "a/more/1", "a/more/still/2", "b/2024/3"]):
        save(tmp_path / f"{name}.png", colour(k))
    with pytest.warns(DataWarning, match=r"3 images lie in deeper folders, such as a/more, .* of the first folder"):
        source = open_data(str(tmp_path))
    assert isinstance(source, Images)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 0, 1]
    expected = np.stack([colour(k) for k in range(4)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(source.pixels.numpy(), expected)
    (tmp_path / "b" / "here").symlink_to(tmp_path, target_is_directory=True)
    assert len(opened(tmp_path).pixels) == 4


def test_classes_one_folder_too_deep_are_refused_with_the_way(tmp_path: Path):
    for k, name in enumerate(["animals/cat/0", "animals/dog/1"]):
        save(tmp_path / f"{name}.png", colour(k))
    refused(tmp_path, rf"one folder, animals, and all images in folders inside it \(cat, dog\): pass --data {tmp_path}")
    assert opened(tmp_path / "animals").units.names == ("cat", "dog")


def test_files_that_are_left_out_are_counted_by_kind(tmp_path: Path):
    save(tmp_path / "cat" / "a.png", colour())
    for name in ("cat/b.heic", "cat/c.heic", "notes.txt", "LICENSE", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(DataWarning, match=r"4 files .* were left out: 2 with .heic, 1 with (.txt|no suffix), 1 with"):
        source = open_data(str(tmp_path))
    assert any("cat (1)" in line for line in source.about)


def test_a_class_that_is_called_like_a_split_is_refused(tmp_path: Path):
    """`bus` and `car` would be left out in silence."""
    for name in ("bus", "car", "train"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match=r"has images in bus, car beside train, which name a split: rename train"):
        open_data(str(tmp_path))
    (tmp_path / "train").rename(tmp_path / "trains")
    assert open_data(str(tmp_path)).units.names == ("bus", "car", "trains")
