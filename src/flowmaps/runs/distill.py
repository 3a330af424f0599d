"""The usual recipe to distil a trained model, and what is found in that model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..interop import Model
from ..interop.conditions import ClassCondition, Decoder
from ..methods import lmd
from ..storage.cards import CARD
from ..storage.methods import method_of
from ..training.optimisers import Optimiser
from .folder import RunFolder
from .other_models import open_model
from .recipes import RECIPES, ImageRecipe, Recipe
from .recipes.checks import PIPELINE, is_other_model

NAME = "distilled"
"""Of the recipe of a distillation."""
COMMON: dict[str, Any] = {
    "method": lmd.__name__,
    "steps": 10_000,
    "map_rate_scale": 1.0,
    "checkpoint_every": 500,
    "show_every": 0,
    "log_every": 50,
    "optimiser": Optimiser(batch=64, learning_rate=3e-4, warmup=100, clip=1.0, ema_decay=0.999),
}
"""What a distillation of a trained model changes of the recipes of images and points."""
WARM_START_STEPS = 2_000
"""Steps in which a student learns the velocity that its network's output is not."""


def recipe_for(teacher: str, guidance: tuple[float, ...] = (), lora: int = 0) -> tuple[Recipe, list[str]]:
    """The usual recipe to distil a teacher, and what was found, in lines.

    Args:
        teacher: a folder of a run, or a model of another library.
        guidance, lora: as of `open_model`.

    Raises:
        ValueError: there is no such teacher.
    """
    if not is_other_model(teacher):
        _check_teacher(teacher)
        other = RunFolder.open(Path(teacher)).recipe
        method = other.method if method_of(other.method).distils else lmd.__name__
        found = f"teacher    a run of {other.method} on {other.data}"
        return replace(other, name=NAME, method=method, teacher=teacher, from_run=""), [found]
    model = open_model(teacher, guidance, lora)
    usual = usual_recipe(images=model.shape is not None and len(model.shape) == 3)
    usual = replace(usual, teacher=teacher, teacher_steps=0 if model.exact else WARM_START_STEPS)
    if isinstance(usual, ImageRecipe):
        latents = isinstance(model.decode, Decoder)  # which have no resolution to be brought to
        height, width = model.shape[-2:] if model.shape and not latents else (0, 0)
        resolution = height if height == width else f"{height}x{width}"
        labels = isinstance(model.condition, ClassCondition)
        usual = replace(usual, resolution=resolution, labels=labels)
    return usual, _found(model)


def usual_recipe(*, images: bool = True) -> Recipe:
    """The recipe of a distillation, before anything is known of the model."""
    usual: Recipe = replace(RECIPES["images" if images else "points"](), name=NAME)
    usual = replace(usual, **COMMON, teacher_steps=WARM_START_STEPS)
    if isinstance(usual, ImageRecipe):
        return replace(usual, evaluation=replace(usual.evaluation, samples=2_000, points=1_000))
    return usual


def _check_teacher(teacher: str) -> None:
    """Refuse what is neither a run nor a pipeline.

    Raises:
        ValueError: it is none; the line says what may be given.
    """
    path = Path(teacher)
    kinds = (
        "--teacher is a folder that save_pretrained of a pipeline of diffusers wrote, the name of one on the hub, a "
        "folder of a run, or module:callable"
    )
    if not path.exists():
        raise ValueError(f"there is no folder {teacher}: {kinds}.")
    if (path.parent / PIPELINE).exists():
        raise ValueError(f"{teacher} is a part of a pipeline of diffusers: give the folder around it, {path.parent}.")
    if not (path / CARD).exists():
        raise ValueError(f"{teacher} has neither {PIPELINE} nor {CARD}: {kinds}.")


def _found(model: Model) -> list[str]:
    """What was found in a model: what it is, and what its student trains."""
    weights = list(model.student.parameters())
    trained = sum(p.numel() for p in weights if p.requires_grad)
    frozen = sum(p.numel() for p in weights) - trained
    start = "has the teacher's velocity from the start" if model.exact else "learns the teacher's velocity first"
    return [
        f"teacher    {model.about or type(model.teacher).__name__}",
        f"student    on the linear path, {frozen:,} parameters are frozen, {trained:,} parameters are trained; it "
        f"{start}",
    ]
