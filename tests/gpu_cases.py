"""The benchmark on a GPU made small: its files, and its parts as they are called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import image_cases
import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # it is no package: its files import each other as scripts do

import gpu_cifar10  # pyright: ignore[reportMissingImports]
import gpu_fit  # pyright: ignore[reportMissingImports]
import gpu_needs  # pyright: ignore[reportMissingImports]
import gpu_report  # pyright: ignore[reportMissingImports]
import gpu_speed  # pyright: ignore[reportMissingImports]
import gpu_weights  # pyright: ignore[reportMissingImports]

__all__ = ["gpu_cifar10", "gpu_fit", "gpu_needs", "gpu_report", "gpu_speed", "gpu_weights"]

OPTIONS = """--no-compile --precision float32 --resolution 8 --log-every 1 --optimiser.batch 8 --optimiser.warmup 4
    --unet.width 8 --unet.multipliers 1 --unet.blocks 1 --unet.head 8 --unet.patch 2 --unet.attention 4
    --evaluation.points 20 --evaluation.batch 64 --evaluation.solver-steps 2 --evaluation.solver-tolerance 0.05"""
TINY = OPTIONS.split()
LENGTHS = (9, 5, 5)
MIB = 2**20
Part = Callable[..., None]


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Quick features, small matrices."""
    image_cases.quick_features(patch, "gpu_fit", "gpu_cifar10")
    patch.setattr(gpu_speed, "SIZES", {"cpu": (512, 5)})


def part_in(folder: Path) -> Part:
    """Do a part in a folder. In no minutes it takes one step, in a minute all of them."""

    def do(*words: object, minutes: float = 1, lengths: tuple[int, ...] = LENGTHS) -> None:
        folders = ["--results", folder / "results", "--runs", folder / "runs"]
        limits = ["--device", "cpu", "--minutes", minutes, "--samples", 100, "--lengths", *lengths]
        gpu_cifar10.main([str(word) for word in [*words, *folders, *limits, *TINY]])

    return do


def refused_in(folder: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """A part that ends with code 2 and one line, which it returns."""
    part = part_in(folder)

    def do(*words: object, **limits: float) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            part(*words, **limits)
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert error.startswith("gpu_cifar10: ")
        assert error.count("\n") == 1
        return error

    return do


def found(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def card(folder: Path, name: str) -> dict:
    return json.loads((folder / "weights" / f"{name}.json").read_text())
