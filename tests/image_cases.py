"""Runs on images made small: the official archives with a few images, networks of a few channels, features of means."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import data_cases
import pytest
import torch
from run_cases import open_run
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from flowmaps.data import Images
from flowmaps.runs.recipes import RECIPES, DiTNetwork, ImageEvaluation, ImageRecipe, Optimiser, UNetNetwork
from flowmaps.training.log import read_log

OPTIONS = """--precision bfloat16 --steps 3 --teacher-steps 2 --no-compile --device cpu --resolution 8 --log-every 1
    --optimiser.batch 6 --optimiser.warmup 1 --unet.width 8 --unet.multipliers 1 --unet.blocks 1 --unet.head
    8 --unet.patch 2 --unet.attention --evaluation.samples 100 --evaluation.points 20 --evaluation.batch 64
    --evaluation.solver-steps 2 --evaluation.solver-tolerance 0.05"""
TINY = OPTIONS.split()

UNET = UNetNetwork(width=8, multipliers=(1,), blocks=1, attention=(), head=8, patch=2, dropout=0.1)
DIT = DiTNetwork(width=16, depth=1, heads=2, patch=4)
SMALL = dataclasses.replace(
    RECIPES["cifar10-lmd"](),
    name="small",
    precision="bfloat16",
    resolution=8,
    steps=5,
    teacher_steps=4,
    compile=False,
    device="cpu",
    checkpoint_every=3,
    log_every=1,
    unet=UNET,
    dit=DIT,
    optimiser=Optimiser(batch=6, learning_rate=1e-2, warmup=2, ema_decay=0.9),
    evaluation=ImageEvaluation(steps=(1, 4), samples=100, points=20, batch=64, solver_tolerance=0.05, solver_steps=2),
)


class Means:
    """Features that take no time: means of the quarters of an image."""

    name, dim = "means of quarters", 12

    def __call__(self, images: Tensor) -> Tensor:
        return adaptive_avg_pool2d(images.float(), 2).flatten(1) / 64


def write_data(folder: Path) -> Path:
    """A folder of data with `cifar10`, of 35 images, and `imagenet32`, of 70."""
    data_cases.write_folder(folder / "cifar10", data_cases.cifar_files())
    data_cases.write_folder(folder / "imagenet32", data_cases.imagenet_files())
    return folder


def quick_features(patch: pytest.MonkeyPatch, *modules: str) -> None:
    """`Means` wherever the program, and the modules given, would open a network of features."""
    for module in ("flowmaps.evaluation.measure", "flowmaps.runs.preflight", *modules):
        patch.setattr(f"{module}.open_features", lambda spec: Means())


def trained(recipe: ImageRecipe, folder: Path) -> Path:
    """A run that is trained to its end."""
    list(open_run(recipe, folder).train())
    return folder


def losses(folder: Path) -> list[tuple[str, int, float]]:
    return [(line["stage"], line["step"], line["loss"]) for line in read_log(folder)]


def images(rows: int = 40, labels: bool = True, side: int = 8) -> Images:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (rows, 3, side, side), dtype=torch.uint8, generator=rng)
    return Images(pixels, torch.arange(rows) % 4 if labels else None)
