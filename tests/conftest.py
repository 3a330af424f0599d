"""Shapes in signatures are checked in the test run, where neither the compiler nor a `Dual` passes through.

And what runs on images have in common: small data, quick features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import shapecheck

shapecheck.install()


@pytest.fixture(scope="session")
def image_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `cifar10` and `imagenet32` with a few images."""
    import image_cases

    return image_cases.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small_images(image_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These data in the place of the real ones, and features that take no time."""
    import image_cases

    monkeypatch.setenv("FLOWMAPS_DATA", str(image_data))
    image_cases.quick_features(monkeypatch)


@pytest.fixture
def part(tmp_path: Path, small_images: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A part of the benchmark on a GPU, made small."""
    import gpu_cases

    gpu_cases.make_small(monkeypatch)
    return gpu_cases.part_in(tmp_path)


@pytest.fixture
def refused(part: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """A part of it that is refused, which returns the line that is said."""
    import gpu_cases

    return gpu_cases.refused_in(tmp_path, capsys)
