"""References kept in files, and the metrics of a row, with a small feature network that counts its work."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowmaps.metrics.features import extract
from flowmaps.metrics.images import Statistics, frechet_distance, kernel_distance, precision_recall
from flowmaps.metrics.reference import Reference, cache_folder, reference
from flowmaps.metrics.row import image_metrics


class Counting:
    """Mean and deviation of each channel; counts the images that it saw."""

    dim, checksum = 6, "c0ffee"

    def __init__(self, name: str = "moments"):
        self.name, self.seen = name, 0

    def __call__(self, images: Tensor, /) -> Tensor:
        self.seen += len(images)
        x = images.float()
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


class Anonymous:
    """As `Counting`, without a checksum: nobody knows whether its weights are the same tomorrow."""

    name, dim = "moments", 6

    def __init__(self):
        self.inner = Counting()

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.inner(images)


def pixels(number: int, seed: int = 0, channels: int = 3) -> Tensor:
    return torch.randint(
        0, 256, (number, channels, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def same(a: Reference, b: Reference) -> bool:
    one, other = a.statistics, b.statistics
    tensors = zip((one.mean, one.cov, a.points), (other.mean, other.cov, b.points), strict=True)
    heads = (one.number, one.features), (other.number, other.features)
    return heads[0] == heads[1] and all(torch.equal(x, y) for x, y in tensors)


@pytest.fixture(autouse=True)
def strict():
    """No warning but those that a test asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Kept -----------------------------------------------------------------------------------------------------------------


def test_a_reference_is_that_of_all_images_with_points_spread_evenly(tmp_path: Path):
    images, features = pixels(101), Counting()
    made = reference(features, images, keep=5, cache=tmp_path)
    x = extract(Counting(), images)
    assert made.statistics.number == 101
    torch.testing.assert_close(made.statistics.cov, x.double().T.cov())
    assert torch.equal(made.points, x[[0, 25, 50, 75, 100]])


def test_it_is_computed_once_and_comes_back_to_the_last_bit(tmp_path: Path):
    folder, first, second = tmp_path / "new" / "folder", Counting(), Counting()
    made = reference(first, pixels(40), cache=folder)
    assert (first.seen, len(list(folder.iterdir()))) == (40, 1)
    assert same(reference(second, pixels(40), cache=folder), made)
    assert second.seen == 0


@pytest.mark.parametrize("change", ["pixel", "number", "network", "weights", "keep", "shape"])
def test_anything_else_is_another_file(change: str, tmp_path: Path):
    images, other, features, keep = pixels(40), pixels(40), Counting(), 5000
    reference(Counting(), images, cache=tmp_path)
    if change == "pixel":
        other[7, 1, 2, 3] ^= 1
    elif change == "number":
        other = other[:39]
    elif change == "network":
        features = Counting("others")
    elif change == "weights":
        features.checksum = "decaf"
    elif change == "keep":
        keep = 7
    else:
        other = other.reshape(40, 3, 5, 4)
    reference(features, other, keep=keep, cache=tmp_path)
    assert features.seen == len(other)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_network_without_a_checksum_is_never_kept(tmp_path: Path):
    for _ in range(2):
        features = Anonymous()
        reference(features, pixels(10), cache=tmp_path)
        assert features.inner.seen == 10
    assert not list(tmp_path.iterdir())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # a bit of a number: still a well-formed file
    path.write_bytes(bytes(content))


def scribble(path: Path) -> None:
    path.write_text("not a reference")


def foreign(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path)


def renamed(path: Path) -> None:
    """A whole and honest file, of another key."""
    reference(Counting(), pixels(40, seed=1), cache=path.parent / "other")
    os.replace(next((path.parent / "other").iterdir()), path)


def recounted(path: Path) -> None:
    with safe_open(path, "pt") as file:
        head = file.metadata() | {"number": "50000"}
    save_file(load_file(path), path, head)


@pytest.mark.parametrize("damage", [cut, flip, scribble, foreign, renamed, recounted])
def test_a_file_that_is_damaged_or_anothers_is_computed_anew(damage, tmp_path: Path):
    made = reference(Counting(), pixels(40), cache=tmp_path)
    path = next(tmp_path.iterdir())
    damage(path)
    features = Counting()
    with pytest.warns(UserWarning, match=r"the kept reference .*damaged or another's.* computed anew"):
        assert same(reference(features, pixels(40), cache=tmp_path), made)
    assert features.seen == 40
    assert same(reference(Counting(), pixels(40), cache=tmp_path), made)  # mended, no more warnings


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")  # holds for root too, unlike permissions
    with pytest.warns(UserWarning, match=r"cannot be kept in .*file.* Set FLOWMAPS_CACHE"):
        made = reference(Counting(), pixels(40), cache=blocked)
    assert made.statistics.number == 40


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("FLOWMAPS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "flowmaps"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "flowmaps"
    monkeypatch.setenv("FLOWMAPS_CACHE", str(tmp_path / "own"))
    reference(Counting(), pixels(9))
    assert len(list((tmp_path / "own").iterdir())) == 1


def test_refusals(tmp_path: Path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        reference(Counting(), pixels(4), keep=0, cache=tmp_path)
    with pytest.raises(ValueError, match=r"images must be uint8"):
        reference(Counting(), pixels(4).float(), cache=tmp_path)


# Metrics of a row -----------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_functions(tmp_path: Path):
    features, real, samples = Counting(), pixels(60), pixels(50, seed=1) // 2
    ref = reference(features, real, keep=45, cache=tmp_path)
    x = extract(features, samples)
    own, teacher = (Statistics.of(extract(features, s), "moments") for s in (samples, pixels(50, seed=2)))
    got = image_metrics(samples, ref, features, teacher, subsets=4)
    kd = kernel_distance(x, ref.points, subsets=4, size=45)
    precision, recall = precision_recall(ref.points, x[:45])
    assert got == {
        "fd": frechet_distance(own, ref.statistics),
        "fd_teacher": frechet_distance(own, teacher),
        "fd_name": "FD (moments, 50 samples)",
        "kd": kd[0],
        "kd_std": kd[1],
        "precision": precision,
        "recall": recall,
    }
    assert image_metrics(x, ref, features, teacher, subsets=4) == got  # of features that were extracted before
    assert "fd_teacher" not in image_metrics(x, ref, features, subsets=4)
    assert image_metrics(x, ref, features, subsets=4, seed=1)["kd"] != got["kd"]


def test_the_images_themselves_are_at_no_distance_and_damage_is(tmp_path: Path):
    features, real = Counting(), pixels(60)
    ref = reference(features, real, cache=tmp_path)
    own = image_metrics(real, ref, features, subsets=2)
    assert own["fd"] == pytest.approx(0, abs=1e-6)
    assert (own["precision"], own["recall"]) == (1, 1)
    dark = image_metrics(real // 3, ref, features, subsets=2)
    assert dark["fd"] > 1000
    assert dark["kd"] > own["kd"] + 1
    assert (dark["precision"], dark["recall"]) == (0, 0)


def test_few_samples_have_a_distance_and_no_neighbours(tmp_path: Path):
    features = Counting()
    ref = reference(features, pixels(60), cache=tmp_path)
    with pytest.warns(UserWarning, match="3 images in 6 features"):
        got = image_metrics(pixels(3, seed=1), ref, features)
    assert set(got) == {"fd", "fd_name"}
    with pytest.raises(ValueError, match=r"'others' .* and 'moments'"):
        image_metrics(pixels(9, seed=1), ref, Counting("others"))


def test_grey_images_do(tmp_path: Path):
    features, grey = Counting(), pixels(20, channels=1)
    ref = reference(features, grey, cache=tmp_path)
    got = image_metrics(grey.repeat(1, 3, 1, 1), ref, features, subsets=1)
    assert got["fd"] == pytest.approx(0, abs=1e-5)


def test_precision_of_fewer_samples_is_against_points_of_all_the_data():
    """Data in the order of their classes: the first points of the reference are of the first class alone."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([0.0, 100.0]).repeat_interleave(40)[:, None]
    real = classes + torch.randn(80, 4, generator=generator)
    samples = torch.tensor([0.0, 100.0]).repeat(20)[:, None] + torch.randn(40, 4, generator=generator)
    network = type("Four", (), {"name": "four", "dim": 4})()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = image_metrics(samples, Reference(Statistics.of(real, "four"), real), network, subsets=2)
    assert float(found["recall"]) > 0.6
    assert float(found["precision"]) > 0.6
