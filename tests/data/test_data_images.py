"""Images: units, drawing and mirroring, averaging down, arrays of images."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import opened, refused

from flowmaps.data import Board, DataWarning, Images, Points, Units, open_data
from flowmaps.data.pixels import area_mean, shrink


def noise(number: int = 5, channels: int = 3, height: int = 4, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, channels, height, width), generator=generator, dtype=torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# units ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (3, 2, 5), (1, 4, 4)])
@pytest.mark.parametrize("numbers", ["none", "one", "each"])
def test_shift_and_scale_go_along_the_first_axis_of_a_sample(shape: tuple[int, ...], numbers: str):
    count = {"none": 0, "one": 1, "each": shape[0]}[numbers]
    shift, scale = tuple(1.0 + k for k in range(count)), tuple(2.0 + k for k in range(count))
    units, x = Units(shape, None, shift, scale), torch.randn(4, *shape, generator=seeded())
    data = units.to_data(x)
    assert data.shape == x.shape
    assert units.dim == int(np.prod(shape))
    for k in range(shape[0]):
        own = min(k, count - 1)
        expected = x[:, k] * scale[own] + shift[own] if count else x[:, k]
        torch.testing.assert_close(data[:, k], expected)
    torch.testing.assert_close(units.to_data(x.expand(7, *x.shape)), data.expand(7, *x.shape))  # trajectories too


def test_every_pixel_comes_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    source = Images(pixels)
    x, _ = source.sample(3, seeded())
    assert (x.dtype, x.shape) == (torch.float32, (3, 1, 16, 16))
    assert (float(x.min()), float(x.max())) == (-1, 1)
    for kept in (x, x.double(), x + 0.003 * torch.randn(x.shape, generator=seeded()).clamp(-1, 1)):
        assert torch.equal(source.units.to_pixels(kept), pixels.expand(3, -1, -1, -1))
    wild = torch.tensor([-9.0, -1.001, 1.001, 9.0]).reshape(1, 1, 2, 2)
    assert Units((1, 2, 2), None, (127.5,), (127.5,), True).to_pixels(wild).flatten().tolist() == [0, 0, 255, 255]


def test_units_survive_the_json_of_a_card():
    import json

    for units in (Units((2,)), Units((3, 4, 4), 2, (127.5,), (127.5,), True, ("cat", "dog"))):
        assert Units.from_dict(json.loads(json.dumps(dataclasses.asdict(units)))) == units
    old = {"dim": 3, "classes": None, "shift": [1.0, 2.0, 3.0], "scale": [1.0, 1.0, 1.0]}
    assert Units.from_dict(old) == Units((3,), None, (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "fields",
    [
        None, {}, {"shape": []}, {"shape": [2.5]}, {"shape": [0]}, {"shape": [True]}, {"shape": 3},
        {"shape": [2], "size": 1},
        {"shape": [3], "shift": [0, 0], "scale": [1, 1]}, {"shape": [3], "shift": [0], "scale": []},
        {"shape": [3], "classes": 3, "names": ["a"]}, {"shape": [3, 4], "pixels": True},
        {"shape": [2, 4, 4], "pixels": True},
    ],
)  # fmt: skip
def test_units_that_are_none(fields: Any):
    with pytest.raises(ValueError, match=r"the run's config.json does not say what its data are like"):
        Units.from_dict(fields)


@pytest.mark.parametrize("wrong", [None, 2, 1.5, True, float("nan"), "x", [], [[]], [2, "a"], {}, {"a": 1}])
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Units)])
def test_a_field_of_another_type_is_refused_or_used(field: str, wrong: Any):
    """Whatever a card says: one line, when it is read or when samples are written."""
    card = {"shape": [3, 2, 2], "shift": [0.0], "scale": [2.0], "classes": 2, "names": ["a", "b"], field: wrong}
    with contextlib.suppress(ValueError):  # what is used does not fail otherwise
        units = Units.from_dict(card)
        units.to_data(torch.zeros(1, *units.shape))
        units.labels_in_turn(3)
        _ = units.pictures and units.to_pixels(torch.zeros(1, *units.shape))


def test_points_have_no_pixels():
    with pytest.raises(ValueError, match="no images"):
        Units((2,)).to_pixels(torch.zeros(1, 2))


# drawing -------------------------------------------------------------------------------------------------------------


def test_images_are_drawn_evenly_with_their_labels():
    pixels = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2).contiguous()
    source = Images(pixels, torch.tensor([0, 1, 2, 0, 1]))
    assert source.classes == 3
    x, labels = source.sample(10_001, seeded())
    rows = source.units.to_pixels(x)[:, 0, 0, 0].long()
    shares = torch.bincount(rows, minlength=5) / len(rows)
    assert float((shares - 0.2).abs().max()) < 4 * (0.16 / 10_001) ** 0.5
    assert labels is not None
    assert torch.equal(labels, rows % 3)
    again, other = source.sample(10_001, seeded())[0], source.sample(10_001, seeded(1))[0]
    assert torch.equal(x, again)
    assert not torch.equal(x, other)


def test_half_of_the_images_are_mirrored_left_to_right():
    source = Images(noise(7), flips=True)
    x, _ = source.sample(4001, seeded())
    drawn = source.units.to_pixels(x)
    plain = (drawn[:, None] == source.pixels).flatten(2).all(2)
    turned = (drawn[:, None] == source.pixels.flip(3)).flatten(2).all(2)
    assert bool((plain.sum(1) + turned.sum(1) == 1).all())  # one or the other, whole
    assert abs(float(turned.any(1).float().mean()) - 0.5) < 4 * 0.5 / 4001**0.5
    counts = torch.stack([plain.sum(0), turned.sum(0)]) / 4001  # independent of the image
    assert float((counts - 1 / 14).abs().max()) < 4 * (1 / 14 / 4001) ** 0.5
    assert not bool((Images(noise(7)).sample(500, seeded())[0] != Images(noise(7)).sample(500, seeded())[0]).any())
    same = Images(noise(7)).sample(500, seeded())[0]
    assert bool(((Images(noise(7)).pixels[:, None] / 127.5 - 1 - same).abs().flatten(2).amax(2).amin(0) < 1e-6).all())


def test_the_cost_of_a_draw_is_not_of_python_per_image(monkeypatch: pytest.MonkeyPatch):
    """As many calls of torch for 4000 images as for 4."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Count.calls += 1
            return func(*args, **(kwargs or {}))

    source, counts = Images(noise(9), torch.arange(9), flips=True), []
    for number in (4, 4000):
        Count.calls = 0
        with Count():
            source.sample(number, seeded())
        counts.append(Count.calls)
    assert counts[0] == counts[1] < 20


def test_a_source_goes_to_a_device():
    for source in (Images(noise(), torch.arange(5)), Points(torch.randn(5, 2), None, torch.zeros(2), torch.ones(2))):
        meta = source.to("meta")
        assert type(meta) is type(source)
        assert meta.units == source.units
        tensors = [value for value in vars(meta).values() if isinstance(value, torch.Tensor)]
        assert tensors
        assert all(value.device.type == "meta" for value in tensors)
        assert all(v.device.type == "cpu" for v in vars(source).values() if isinstance(v, torch.Tensor))
    board = open_data("checkerboard")
    assert board.to("cpu").sample(3, seeded())[0].shape == (3, 2)


@pytest.mark.parametrize(
    "pixels, labels",
    [
        (noise().float(), None), (noise()[0], None), (noise(channels=2), None), (noise(0), None),
        (noise(), torch.zeros(4, dtype=torch.int64)), (noise(), torch.zeros(5)),
        (noise(), torch.tensor([0, 1, 2, -1, 0])),
    ],
)  # fmt: skip
def test_images_that_are_none(pixels: torch.Tensor, labels: torch.Tensor | None):
    with pytest.raises(ValueError, match=r"images are uint8|labels of"):
        Images(pixels, labels)


# averaging down ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side, resolution", [(8, 4), (12, 4), (12, 3), (6, 1), (5, 5), (32, 8)])
@pytest.mark.parametrize("number", [1, 300])
def test_shrinking_is_the_mean_rounded_half_up(side: int, resolution: int, number: int):
    pixels = noise(number, 3, side, side).numpy()
    times = side // resolution
    sums = sum(pixels[:, :, i::times, j::times].astype(np.int64) for i in range(times) for j in range(times))
    np.testing.assert_array_equal(shrink(pixels, resolution, "x"), np.floor(np.asarray(sums) / times**2 + 0.5))


def test_halves_are_rounded_up():
    cell = np.array([[0, 0], [1, 1]], np.uint8)
    assert area_mean(cell, 1).item() == 1
    assert area_mean(255 * np.ones((2, 4, 4), np.uint8), 2).min() == 255


def test_rectangles_are_cropped_in_the_middle():
    pixels = noise(2, 1, 6, 10).numpy()
    np.testing.assert_array_equal(shrink(pixels, 6, "x"), pixels[..., 2:8])
    assert shrink(pixels, 0, "x") is pixels


@pytest.mark.parametrize("resolution", [5, 64])
def test_resolutions_that_do_not_divide_are_refused(tmp_path: Path, resolution: int):
    np.save(tmp_path / "a.npy", noise(2, 3, 32, 32).numpy())
    words = rf"no multiple of --resolution {resolution}: choose one of 4, 8, 16, 32"
    refused(tmp_path / "a.npy", words, resolution=resolution)
    with pytest.raises(ValueError, match="--resolution must be 0"):
        open_data(str(tmp_path / "a.npy"), resolution=-1)


def test_labels_and_splits_of_points():
    assert open_data("digits").classes == 10
    plain = open_data("digits", labels=False)
    assert (plain.classes, plain.sample(3, seeded())[1]) == (None, None)
    assert isinstance(open_data("checkerboard", split="test"), Board)  # drawn afresh each time
    with pytest.raises(ValueError, match="digits has no split 'test'"):
        open_data("digits", split="test")
    for name in ("checkerboard", "digits"):
        settings: dict[str, Any]
        for settings in ({"resolution": 4}, {"flips": True}):
            with pytest.raises(ValueError, match=f"{name} has no images: --resolution and --flips"):
                open_data(name, **settings)


# arrays --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["channels first", "channels last", "grey", "grey first", "grey last"])
@pytest.mark.parametrize("name", ["x", "data", "images", "npy"])
def test_arrays_of_images(tmp_path: Path, kind: str, name: str):
    pixels = noise(6, 3 if kind.startswith("channels") else 1).numpy()
    array = {
        "channels last": pixels.transpose(0, 2, 3, 1),
        "grey": pixels[:, 0],
        "grey last": pixels.transpose(0, 2, 3, 1),
    }
    array, path = array.get(kind, pixels), tmp_path / ("a.npy" if name == "npy" else "a.npz")
    if name == "npy":
        np.save(path, array)
    else:
        arrays: dict[str, Any] = {name: array, "labels": np.arange(6) % 4}
        np.savez(path, **arrays)
    source = opened(path, flips=True)
    np.testing.assert_array_equal(source.pixels.numpy(), pixels)
    assert source.units.pixels
    assert source.shape == (pixels.shape[1], 4, 6)
    assert source.classes == (None if name == "npy" else 4)
    assert opened(path, labels=False).classes is None
    assert opened(path, labels=False).labels is None
    refused(path, "no split 'test'", split="test")


@pytest.mark.parametrize("shape", [(5, 4, 6, 2), (5, 3, 6, 3), (5, 1, 1, 1), (5, 4, 3, 4)])
def test_arrays_whose_channels_are_unclear_are_refused(tmp_path: Path, shape: tuple[int, ...]):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    refused(tmp_path / "a.npy", r"could have its channels|no axis of 1 or 3", str(shape))


@pytest.mark.parametrize(
    "array", [np.zeros((5, 3, 4, 4), np.int64), np.zeros((5, 4, 4)), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_arrays_of_neither_images_nor_latents_are_refused(tmp_path: Path, array: np.ndarray):
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", "must hold")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_latents_are_scaled_channel_by_channel(tmp_path: Path, dtype: str):
    array = np.random.default_rng(0).normal(size=(50, 4, 3, 5)) * [[[[1]], [[5]], [[0.1]], [[0]]]] + 2
    np.savez(tmp_path / "a.npz", x=array.astype(dtype), labels=np.arange(50) % 3)
    source = open_data(str(tmp_path / "a.npz"))
    assert isinstance(source, Points)
    assert (source.shape, source.classes, source.units.pixels) == ((4, 3, 5), 3, False)
    torch.testing.assert_close(source.data.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-2)
    torch.testing.assert_close(source.data.std((0, 2, 3)), torch.tensor([1.0, 1, 1, 0]), rtol=1e-2, atol=0)
    expected = torch.as_tensor(array.astype(dtype)).float()
    torch.testing.assert_close(source.to_data(source.data), expected, rtol=1e-3, atol=1e-3)
    for words, settings in {"no images: --resolution": {"resolution": 1}, "no images: --res": {"flips": True}}.items():
        refused(tmp_path / "a.npz", words, **settings)
    array[7, 1, 0, 0] = np.nan
    np.save(tmp_path / "b.npy", array)
    refused(tmp_path / "b.npy", r"NaN or infinite values in 1 of 50 rows \(first: row 7")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("span", ["0 to 1", "-1 to 1", "0 to 255"])
def test_floats_with_the_channels_last_are_images(tmp_path: Path, channels: int, span: str):
    pixels = noise(6, channels, 8, 8).numpy()
    scaled = {"0 to 1": pixels / 255, "-1 to 1": pixels / 127.5 - 1, "0 to 255": pixels.astype(float)}[span]
    np.save(tmp_path / "a.npy", scaled.transpose(0, 2, 3, 1).astype("f4"))
    with pytest.warns(DataWarning, match=rf"read as images of {channels} channels, from {span}"):
        source = open_data(str(tmp_path / "a.npy"))
    assert isinstance(source, Images)
    np.testing.assert_array_equal(source.pixels.numpy(), pixels)


def test_floats_that_could_be_images_or_latents_are_refused_with_the_channels_named(tmp_path: Path):
    np.save(tmp_path / "a.npy", 3 * np.random.default_rng(0).normal(size=(5, 8, 8, 3)))
    refused(tmp_path / "a.npy", r"could be images with 3 channels last.*x.transpose\(0, 3, 1, 2\)")


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 3, 4, 4), (5, 4, 4, 3)])
@pytest.mark.parametrize("greatest", [255, 4000])
def test_whole_numbers_of_another_type_are_refused_with_advice_that_works(tmp_path: Path, shape: Any, greatest: int):
    x = np.random.default_rng(0).integers(0, greatest + 1, shape)
    x.flat[0] = greatest
    np.save(tmp_path / "a.npy", x)
    message = refused(tmp_path / "a.npy", r"images are of type uint8, from 0 to 255: save ")
    advice = message.rpartition("save ")[2].removesuffix(".")
    np.save(tmp_path / "b.npy", eval(advice, {"x": x}))
    assert len(opened(tmp_path / "b.npy").pixels) == 5
