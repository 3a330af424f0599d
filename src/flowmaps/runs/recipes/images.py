"""Recipes of images: CIFAR-10, ImageNet 32x32, and a small one for a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Le, Len, Predicate

from ...data.options import TableOptions
from ...data.pixels import RECTANGLE
from ...system.names import printable
from ...training.settings import Count, CountOrZero, ShareBelowOne
from .fields import Depth, Evaluation, Frequencies, Optimiser, Points, Recipe, Samples, SolverSteps, Width

Pixels = Annotated[int, Ge(1), Le(2**14)]


def height_x_width_such_as_16x32(text: str) -> bool:
    """Whether a text is a height and a width, such as 16x32."""
    match = RECTANGLE.fullmatch(text)
    return match is not None and max(int(match[1]), int(match[2])) <= 2**14


def a_share_below_1_or_test(text: str) -> bool:
    """Whether a text in the place of a share names the test split."""
    return text == "test"


@dataclass(frozen=True)
class UNetNetwork:
    """The U-Net; its fields are those of `flowmaps.nn.UNet`."""

    width: Width = 128
    """Channels of the first level."""
    multipliers: Annotated[tuple[Annotated[int, Ge(1), Le(1_024)], ...], Len(1, 16)] = (2, 2, 2)
    """Channels of each level, as multiples of the width; each has half the resolution of the last."""
    blocks: Annotated[int, Ge(1), Le(100)] = 4
    """Residual blocks of a level."""
    attention: Annotated[tuple[Pixels, ...], Len(0, 16)] = (16,)
    """Resolutions with self-attention."""
    head: Width = 64
    """Channels of a head of attention."""
    dropout: ShareBelowOne = 0.13
    """Share of activations dropped while training the teacher, or a map without one."""
    patch: Pixels = 1
    """Patch size: each square of this many pixels a side is one position of the network."""
    frequencies: Frequencies = 8
    """Frequencies of the features of s and t - s."""


@dataclass(frozen=True)
class DiTNetwork:
    """The transformer, with --backbone dit; its fields are those of `flowmaps.nn.DiT`."""

    patch: Pixels = 2
    """Side of the square of pixels that is one token."""
    width: Width = 384
    """Hidden width."""
    depth: Depth = 12
    """Blocks."""
    heads: Annotated[int, Ge(1), Le(2**12)] = 6
    """Heads of attention."""
    ratio: Annotated[float, Gt(0), Le(100)] = 4.0
    """Hidden width of a block's MLP, as a multiple of --dit.width."""
    dropout: ShareBelowOne = 0.0
    """Share of activations dropped while training the teacher, or a map without one."""
    frequencies: Frequencies = 8
    """Frequencies of the features of s and t - s."""
    norm: Literal["layer", "rms"] = "layer"
    """Norm of tokens, without parameters: `rms` does not subtract their mean (arXiv 2511.19797)."""


@dataclass(frozen=True)
class ImageEvaluation(Evaluation):
    """Settings of the evaluation after training."""

    samples: Samples = 50_000
    """Samples for each row of the table; use 50,000 for results to be quoted."""
    reference_images: CountOrZero = 0
    """Number of images that samples are compared with, spread evenly over those held out, or over the data where none
    are; 0 for all."""
    points: Points = 5_000
    """Samples for kernel distance, precision, recall and map error; for latents those for W2, fewer if latents are
    large."""
    batch: Count = 500
    """Batch size of sampling."""
    solver_steps: SolverSteps = 18
    """Steps of the Heun solver for the teacher's ODE, two network evaluations each."""
    features: Annotated[str, Len(1, 4_096), Predicate(printable)] = "efficientnet-lite0:128"
    """Network whose features are compared: `efficientnet-lite0:SIZE` with the size in pixels that images are enlarged
    to, `inception`, or `inception:FILE` with its weights."""


@dataclass(frozen=True)
class ImageRecipe(Recipe):
    """Options of a run on images; `network` is an option of points only."""

    backbone: Literal["unet", "dit"] = "unet"
    """The network: a U-Net or a transformer."""
    resolution: Annotated[int, Ge(0), Le(2**14)] | Annotated[str, Predicate(height_x_width_such_as_16x32)] = 0
    """Crop images in their middle and average them down to a square of this many pixels a side, or to HxW, height and
    width, as in 16x32; 0 leaves them as they are, rectangles too."""
    held_out: Annotated[float, Interval(ge=0, lt=1)] | Annotated[str, Predicate(a_share_below_1_or_test)] = field(
        default=0.0, kw_only=True
    )  # type: ignore[assignment]
    """Share of the images that is not trained on, and that samples are measured against; `test` for the images of the
    data's own test split. With 0 samples are measured against the images that are trained on, as is usual."""
    flips: bool = True
    """Mirror images at random while training; latents are never mirrored."""
    labels: bool = False
    """Learn the classes of the data; without them the map is unconditional."""
    activation_checkpointing: bool = False
    """Activation checkpointing: the backward pass computes activations of blocks again. Less memory, more time."""
    unet: UNetNetwork = field(default_factory=UNetNetwork)
    dit: DiTNetwork = field(default_factory=DiTNetwork)
    evaluation: ImageEvaluation = field(default_factory=ImageEvaluation)


OF_POINTS = ("network", *(f.name for f in fields(TableOptions) if f.name != "held_out"))
"""The fields of a recipe that one of images does not use."""


def cifar10(method: str, *, steps: int = 200_000) -> ImageRecipe:
    """CIFAR-10 on one GPU: the set-up of arXiv 2505.18825, with Adam for RAdam."""
    return ImageRecipe(
        f"cifar10-{method}",
        method=method,
        data="cifar10",
        steps=steps,
        teacher_steps=400_000,
        unstable_rate_scale=1.0,
        map_rate_scale=0.2,
        precision="auto",
        checkpoint_every=5_000,
        show_every=5_000,
        log_every=200,
        optimiser=Optimiser(batch=512, learning_rate=5e-3, warmup=2_000, clip=1.0, ema_decay=0.9999, beta2=0.99),
    )


def cifar10_tiny() -> ImageRecipe:
    """CIFAR-10 at 16 x 16 pixels by class, with a small network: ten minutes on two CPU cores."""
    return replace(
        cifar10("lmd"),
        name="cifar10-tiny",
        resolution=16,
        labels=True,
        steps=1_000,
        teacher_steps=2_000,
        map_rate_scale=0.1,
        compile=False,
        stop_gradient="target",
        checkpoint_every=500,
        show_every=500,
        log_every=25,
        unet=UNetNetwork(width=64, multipliers=(1, 2), blocks=2, attention=(), dropout=0.0, patch=2),
        optimiser=Optimiser(batch=64, learning_rate=2e-2, warmup=100, clip=1.0, ema_decay=0.997, beta2=0.99),
        evaluation=ImageEvaluation(samples=2_000, points=1_000, batch=250, features="efficientnet-lite0:64"),
    )


def imagenet32(method: str) -> ImageRecipe:
    """ImageNet at 32 x 32 pixels on one GPU: the CIFAR-10 recipe with more steps and without dropout."""
    recipe = cifar10(method, steps=400_000)
    return replace(
        recipe, name=f"imagenet32-{method}", data="imagenet32", teacher_steps=800_000, unet=UNetNetwork(dropout=0.0)
    )


def images() -> ImageRecipe:
    """Your own images, of any size the network can halve, by the folders of their classes: `--data FOLDER`."""
    return replace(
        cifar10("lmd", steps=50_000),
        name="images",
        data="",
        teacher_steps=100_000,
        labels=True,
        evaluation=ImageEvaluation(samples=10_000),
    )


KINDS = {
    "teacher": ("flow_matching", "the velocity alone"),
    "lmd": ("lmd", "distilled by the Lagrangian equation from a teacher (--teacher DIR, else trained first)"),
    "emd": ("emd", "distilled by the Eulerian equation from a teacher (--teacher DIR, else trained first)"),
    "fmm": ("fmm", "flow map matching from the data, on a strip of 0.25"),
    "lsd": ("lsd", "Lagrangian self-distillation, from the data"),
    "meanflow": ("meanflow", "MeanFlow, from the data"),
}
"""Last word of a recipe's name -> its method, and its description in --help."""


def _recipe(build: Callable[[str], ImageRecipe], kind: str) -> ImageRecipe:
    recipe, method = build(kind), KINDS[kind][0]
    if method not in ("lmd", "emd"):  # the sum is what is trained: the teacher's steps
        recipe = replace(recipe, steps=recipe.teacher_steps // 2, teacher_steps=recipe.teacher_steps // 2)
    if method == "fmm":  # jumps of at most 0.25
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, steps=(4, 8, 16)))
    return replace(recipe, method=method)


def _named(name: str, build: Callable[[str], ImageRecipe], kind: str) -> Callable[[], ImageRecipe]:
    made = partial(_recipe, build, kind)
    made.__doc__ = f"{name}: {KINDS[kind][1]}."  # type: ignore[attr-defined]
    return made


IMAGES: dict[str, Callable[[], ImageRecipe]] = {"images": images, "cifar10-tiny": cifar10_tiny} | {
    f"{data}-{kind}": _named(name, build, kind)
    for data, name, build in (("cifar10", "CIFAR-10", cifar10), ("imagenet32", "ImageNet 32x32", imagenet32))
    for kind in KINDS
}
