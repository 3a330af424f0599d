"""An image grid holds the pixels it was given, one for one, in the PNG too; words fit where they stand."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from report_cases import texts_of, tiles_of

from flowmaps.reports import figures
from flowmaps.reports.image_grid import (
    BLOCK_GAP,
    DPI,
    GAP,
    MARGIN,
    MAX_IMAGE_WIDTH,
    MAX_WIDTH,
    image_grid,
    ink_on_paper,
)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def png(figure: Figure, tmp_path: Path) -> np.ndarray:
    content = figures.save(figure, tmp_path / "grid.png").read_bytes()
    return np.rint(255 * imread(io.BytesIO(content))[..., :3]).astype(np.uint8)


@pytest.mark.parametrize("shape", [(6, 3, 7, 5), (6, 1, 32, 32), (6, 3, 32, 32)])
def test_every_pixel_is_where_it_was_and_as_it_was(shape: tuple[int, ...], tmp_path: Path):
    images = noise(*shape)
    figure = image_grid(images, 2, ["a", "b\nfainter"], columns=["x", "y", "z"])
    shown = tiles_of(figure, 2, 3, *shape[2:])
    np.testing.assert_array_equal(shown, np.broadcast_to(np.moveaxis(images.numpy(), 1, 3), shown.shape))
    assert texts_of(figure) == ["a", "b", "fainter", "x", "y", "z"]
    canvas, page = np.asarray(figure.axes[0].images[0].get_array()), png(figure, tmp_path)
    high, wide = canvas.shape[:2]
    bottom, right = page.shape[0] - MARGIN, page.shape[1] - MARGIN
    np.testing.assert_array_equal(page[bottom - high : bottom, right - wide : right], canvas)
    assert (page[bottom:] == 255).all()


def test_blocks_stand_apart_under_their_titles():
    images = noise(10, 3, 8, 8)
    figure = image_grid(images, 2, blocks={"map": 3, "data": 2})
    shown = tiles_of(figure, 2, 5, 8, 8, (3, 2))
    np.testing.assert_array_equal(shown, np.moveaxis(images.numpy(), 1, 3))
    assert texts_of(figure) == ["map", "data"]
    across = np.asarray(figure.axes[0].images[0].get_array()).shape[1]
    tile = (across - 3 * GAP - BLOCK_GAP) / 5
    middles = [text.get_position()[0] for text in figure.axes[0].texts]
    assert middles == pytest.approx([1.5 * tile + GAP, across - tile - GAP / 2])


def test_grey_images_of_any_range_are_ink_on_paper():
    images = torch.arange(6 * 64, dtype=torch.float32).reshape(6, 8, 8) - 100
    found = ink_on_paper(images)
    expected = 255 * (1 - np.arange(6 * 64) / (6 * 64 - 1))  # the least value is white, the greatest black
    assert (found.dtype, found.shape) == (torch.uint8, (6, 1, 8, 8))
    np.testing.assert_allclose(found.flatten().numpy(), expected, atol=0.51)


@pytest.mark.parametrize("side", [4, 28, 32, 64, 256])
def test_a_picture_is_no_wider_than_a_page_and_its_tiles_no_wider_than_they_need(side: int):
    figure = image_grid(noise(20, 3, side, side), 2, ["1 step", "4 steps"])
    assert figure.get_figwidth() * DPI <= MAX_WIDTH + 1e-6
    tile = (figure.axes[0].get_position().width * figure.get_figwidth() * DPI - 9 * GAP) / 10
    assert 120 < tile <= MAX_IMAGE_WIDTH


def test_images_too_large_are_averaged_not_thinned_out():
    board = (torch.arange(512)[:, None] + torch.arange(512)) % 2 * 200  # every other pixel: thinning shows one of two
    canvas = np.asarray(image_grid(board.to(torch.uint8).expand(20, 1, -1, -1), 2).axes[0].images[0].get_array())
    inside = canvas[:100, :100].astype(float)
    assert inside.mean() == pytest.approx(100, abs=2)
    assert inside.std() < 20


def test_words_too_long_are_set_smaller_then_cut():
    names = ["aquarium_fish", "a very, very long name of a class that nobody needs", "$x"]
    figure = image_grid(noise(30, 3, 8, 8), 3, ["label " * 20, "", ""], columns=[*names, *"abcdefg"])
    words = texts_of(figure)
    assert words[0].startswith("label label")
    assert words[0].endswith("…")
    assert words[3] == "aquarium_fish"
    assert words[4].endswith("…")
    assert words[5] == "$x"
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    heads = boxes[3:]
    assert all(before.x1 <= after.x0 + 1 for before, after in itertools.pairwise(heads))
    assert boxes[0].x0 >= 0
    assert max(box.y1 for box in boxes) <= figure.get_figheight() * DPI


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: image_grid(torch.zeros(4, 3, 8, 8), 2), r"images of uint8, .*got torch.float32 of \(4, 3, 8, 8\)"),
        (lambda: image_grid(noise(4, 2, 8, 8), 2), r"got torch.uint8 of \(4, 2, 8, 8\)"),
        (lambda: image_grid(noise(0, 3, 8, 8), 1), r"shape \(N, 1 or 3, H, W\)"),
        (lambda: image_grid(noise(5, 3, 8, 8), 2), "multiple of rows, got 5 images in 2 rows"),
        (lambda: image_grid(noise(4, 3, 8, 8), 2, ["one"]), "needs 2 labels and 2 columns or none, got 1 and 0"),
        (lambda: image_grid(noise(4, 3, 8, 8), 2, blocks={"a": 3}), r"share out all 2 columns.*got \{'a': 3\}"),
        (lambda: image_grid(noise(4, 3, 8, 8), 2, blocks={"a": 2, "b": 0}), "at least one to each"),
    ],
)
def test_refusals(draw, message: str):
    with pytest.raises(ValueError, match=message):
        draw()
