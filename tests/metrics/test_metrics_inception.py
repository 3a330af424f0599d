"""Inception v3 with made-up weights of the published names and shapes: the published sizes, pools and resize."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowmaps.metrics import inception
from flowmaps.metrics.features import open_features


def test_the_resize_reads_pixel_k_at_k_times_the_ratio():
    x = torch.arange(5.0).reshape(1, 1, 1, 5).expand(1, 1, 5, 5)
    got = inception.resized(x, 8)[0, 0, 0]
    expected = (torch.arange(8) * 5 / 8).clamp_max(4)  # the last pixel goes on to the border
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(inception.resized(x.mT, 8), inception.resized(x, 8).mT)
    assert torch.equal(inception.resized(x, 5), x)


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The convolutions of the published weights: name and shape (out, in, rows, columns)."""

    def block(name: str, into: int, branches: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        for layer in branches.split():
            part, out, *rest = layer.split(":")
            rows, columns = (int(k) for k in (rest[1] if len(rest) > 1 else "1x1").split("x"))
            yield f"Mixed_{name}.branch{part}", (int(out), int(rest[0]) if rest and rest[0] else into, rows, columns)

    yield from {
        "Conv2d_1a_3x3": (32, 3, 3, 3), "Conv2d_2a_3x3": (32, 32, 3, 3), "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1), "Conv2d_4a_3x3": (192, 80, 3, 3),
    }.items()  # fmt: skip
    double = "3x3dbl_1:64 3x3dbl_2:96:64:3x3 3x3dbl_3:96:96:3x3"
    for name, into, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        yield from block(name, into, f"1x1:64 5x5_1:48 5x5_2:64:48:5x5 {double} _pool:{pool}")
    yield from block("6a", 288, f"3x3:384::3x3 {double}")
    for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        single = f"7x7_1:{c} 7x7_2:{c}:{c}:1x7 7x7_3:192:{c}:7x1"
        twice = f"7x7dbl_1:{c} 7x7dbl_2:{c}:{c}:7x1 7x7dbl_3:{c}:{c}:1x7 7x7dbl_4:{c}:{c}:7x1 7x7dbl_5:192:{c}:1x7"
        yield from block(name, 768, f"1x1:192 {single} {twice} _pool:192")
    seven = "7x7x3_1:192 7x7x3_2:192:192:1x7 7x7x3_3:192:192:7x1 7x7x3_4:192:192:3x3"
    yield from block("7a", 768, f"3x3_1:192 3x3_2:320:192:3x3 {seven}")
    for name, into in (("7b", 1280), ("7c", 2048)):
        three = "3x3_1:384 3x3_2a:384:384:1x3 3x3_2b:384:384:3x1"
        twice = "3x3dbl_1:448 3x3dbl_2:384:448:3x3 3x3dbl_3a:384:384:1x3 3x3dbl_3b:384:384:3x1"
        yield from block(name, into, f"1x1:320 {three} {twice} _pool:192")


@pytest.fixture(scope="module")
def made_up() -> inception.Network:
    """Inception with weights of the published names and shapes, drawn at random."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes():
        fan = shape[1] * shape[2] * shape[3]
        state[f"{name}.conv.weight"] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
        ones = torch.ones(shape[0])
        parts = {"weight": ones, "bias": 0 * ones, "running_mean": 0 * ones, "running_var": ones}
        state |= {f"{name}.bn.{part}": value for part, value in parts.items()}
    return inception.Network(state)


def test_inception_takes_the_published_shapes_and_gives_the_published_sizes(made_up: inception.Network):
    convolutions = [layer for layer in made_up.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == len(list(shapes())) == 94
    head, norms = 1000 * 2049, 2 * sum(layer.out_channels for layer in convolutions)
    assert sum(layer.weight.numel() for layer in convolutions) + head + norms == 23_834_568  # with a thousand classes
    sizes, x = [], torch.randn(1, 3, 299, 299)
    with torch.inference_mode():
        for layer in made_up.layers:
            x = layer(x)
            sizes.append(tuple(x.shape[1:3]))
    widths = [149, 147, 147, 73, 73, 71, 35, 35, 35, 35, 17, 17, 17, 17, 17, 8, 8, 8]
    channels = [32, 32, 64, 64, 80, 192, 192, 256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048]
    assert sizes == list(zip(channels, widths, strict=True))


def test_inceptions_average_leaves_the_padding_out_and_its_last_pool_is_the_maximum(made_up: inception.Network):
    *_, averaging, last = made_up.layers
    x = torch.randn(1, 1280, 1, 1).abs().expand(-1, -1, 8, 8)
    pooled = averaging(x)[:, -192:]
    torch.testing.assert_close(pooled, pooled[..., 4:5, 4:5].expand_as(pooled))  # constant up to the border
    y = torch.randn(1, 2048, 8, 8)
    after = last.branches[-1][1]
    torch.testing.assert_close(last(y)[:, -192:], after(F.max_pool2d(y, 3, 1, 1)))


def test_offline_the_error_says_how_to_get_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(url: str, *_args, **_options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"could not be downloaded: .*no network.* 'inception:/path/to/weights.pth'"):
        open_features("inception")
    kept = tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    torch.save({"fc.weight": torch.ones(1)}, kept)
    with pytest.raises(ValueError, match=r"pt_inception.*is not the published weights"):
        open_features("inception")
