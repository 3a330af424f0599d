"""Networks of images that are not square: shapes, a square as a special case, saving, training, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from image_nets import DIT, UNET, randomise

import flowmaps as fm
from flowmaps import dual
from flowmaps.nn import DiT, Network, UNet
from flowmaps.nn.dit import sine_positions

KINDS: dict[str, tuple[type[Network], dict[str, Any]]] = {"unet": (UNet, UNET), "dit": (DiT, DIT)}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each network in turn."""
    return request.param


def build(kind: str, resolution: Any) -> Network:
    made, options = KINDS[kind]
    torch.manual_seed(0)
    net = made(2, resolution, **options)
    randomise(net)
    return net.double().eval()


def inputs(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, height, width, generator=generator, dtype=torch.float64)
    s, t = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    return x, s, t


def test_two_equal_sides_are_a_square(kind: str):
    one, two = build(kind, 4), build(kind, (4, 4))
    assert one.arguments == two.arguments
    assert torch.equal(one(*inputs(4, 4)), two(*inputs(4, 4)))


@pytest.mark.parametrize("sides", [(4, 8), (8, 4), (4, 12)])
def test_every_pixel_of_a_rectangle_depends_on_every_one(kind: str, sides: tuple[int, int]):
    """Attention sees all of a picture; nothing is cut off or cyclic."""
    net = build(kind, sides)
    x, s, t = inputs(*sides)
    assert net(x, s, t).shape == x.shape
    x.requires_grad_()
    for row, column in ((0, 0), (sides[0] - 1, sides[1] - 1)):
        (slope,) = torch.autograd.grad(net(x, s, t)[:, :, row, column].sum(), x)
        assert bool((slope.abs().amax((0, 1)) > 0).all())
    with pytest.raises(ValueError, match=rf"takes x of shape \(B, 2, {sides[0]}, {sides[1]}\)"):
        net(x.transpose(2, 3), s, t)


def test_the_derivative_of_a_rectangle_is_right(kind: str):
    net, (x, s, t) = build(kind, (4, 8)), inputs(4, 8)
    v = torch.randn_like(x)
    _, tangent = dual.jvp(lambda x: net(x, s, t), (x,), (v,))
    h = 1e-5
    with torch.no_grad():
        expected = (net(x + h * v, s, t) - net(x - h * v, s, t)) / (2 * h)
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7)


def test_tokens_of_a_rectangle_are_told_by_row_and_column():
    wide, square = sine_positions(2, 5, 16).reshape(2, 5, 16), sine_positions(5, 5, 16).reshape(5, 5, 16)
    assert torch.equal(wide, square[:2])
    assert torch.equal(sine_positions(5, 2, 16).reshape(5, 2, 16), square[:, :2])


def test_a_rectangle_is_saved_and_loaded(tmp_path: Path, kind: str):
    net = build(kind, (4, 8)).float()
    fm.save(fm.maps.AverageVelocity(net), tmp_path / "map")
    loaded = fm.load(tmp_path / "map")
    x, s, t = (value.float() for value in inputs(4, 8))
    torch.testing.assert_close(loaded(x, s, t), fm.maps.AverageVelocity(net)(x, s, t))
    assert loaded.net.arguments["resolution"] == (4, 8)  # type: ignore[union-attr, index]


@pytest.mark.parametrize("resolution", [(4, 6), (6, 4), (4, 8, 8), (4, 0), "48", (4.0, 8)])
def test_sides_that_do_not_fit_are_refused(resolution: Any):
    for made, options in ((UNet, {**UNET, "patch": 2}), (DiT, {**DIT, "patch": 4})):
        with pytest.raises(ValueError, match="resolution"):
            made(2, resolution, **options)
