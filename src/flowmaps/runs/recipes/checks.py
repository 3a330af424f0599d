"""Read recipes from JSON; reject wrong types, values out of range, and contradictory options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...training import settings
from ...training.optimisers import Optimiser, uneven
from .fields import Recipe
from .images import ImageRecipe

RENAMED = {
    "from_base": "from_noise_share",
    "late": "velocity_time_power",
    "adaptive": "adaptive_power",
    "careful": "unstable_rate_scale",
    "map_rate": "map_rate_scale",
    "stop": "stop_gradient",
    "shard": "fsdp",
    "keep": "keep_checkpoints",
    "keep_every": "keep_checkpoints_every",
    "snapshot_every": "store_averages_every",
    "patience": "max_skipped_steps",
    "checkpointing": "activation_checkpointing",
    "optimiser.rate": "optimiser.learning_rate",
    "optimiser.floor": "optimiser.final_rate_scale",
    "optimiser.ema": "optimiser.ema_decay",
    "optimiser.emas": "optimiser.ema_decays",
    "optimiser.widths": "optimiser.ema_widths",
    "evaluation.chunk": "evaluation.batch",
    "evaluation.tolerance": "evaluation.solver_tolerance",
    "evaluation.euler": "evaluation.solver_steps",
    "evaluation.reference": "evaluation.reference_images",
}
"""Old names of options, as config.json of older runs has them, and the new ones."""

FLOAT16_SKIPS = 16
"""Steps in a row that the scale of a loss in float16 may take to fall from 2^14 to below 1."""


CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
PIPELINE = "model_index.json"
"""The file that makes a folder a pipeline of diffusers."""


def is_other_model(teacher: str) -> bool:
    """Whether `--teacher` names a model of another library, and not the folder of a run."""
    path = Path(teacher)
    if not teacher or path.name == PIPELINE:  # the latter as a run keeps it, whose model may be gone
        return bool(teacher)
    if path.exists():
        return (path / PIPELINE).exists()
    return bool(CALLABLE.fullmatch(teacher) or ON_HUB.fullmatch(teacher))


def validate(recipe: Recipe, processes: int = 1) -> None:
    """Refuse a recipe that cannot run, before anything heavy starts.

    Args:
        recipe: to be checked.
        processes: number of processes among which a batch is split.

    Raises:
        ValueError: a field of the wrong type or out of range, or fields that contradict each other.
    """
    settings.check(recipe)
    for contradiction in (*_optimiser(recipe.optimiser, processes), *_others(recipe)):
        raise ValueError(contradiction)


def _optimiser(o: Optimiser, processes: int) -> Iterator[str]:
    if (why := uneven(o, processes)) is not None:
        yield f"--optimiser.batch {why}"
    if o.weight_decay and o.kind == "adam":
        yield (
            f"--optimiser.kind adam decays no weights, got --optimiser.weight-decay {o.weight_decay:g}: take "
            "--optimiser.kind adamw, or leave it out."
        )
    if o.weight_decay * o.learning_rate >= 1:
        yield (
            f"--optimiser.weight-decay times --optimiser.learning-rate must be below 1, got {o.weight_decay:g} x "
            f"{o.learning_rate:g}: weights would change their sign."
        )
    if not settings.without_repeats((float(o.ema_decay), *map(float, o.ema_decays))):
        yield (
            f"--optimiser.ema-decays must be other decays than --optimiser.ema-decay, got {o.ema_decay:g} in both: "
            "leave it out."
        )


def _others(recipe: Recipe) -> Iterator[str]:
    if recipe.keep_checkpoints_every % recipe.checkpoint_every:
        yield (
            f"--keep-checkpoints-every must be a multiple of --checkpoint-every, or no checkpoint would be kept for "
            f"it, got {recipe.keep_checkpoints_every} and {recipe.checkpoint_every}."
        )
    if recipe.precision == "float16" and recipe.max_skipped_steps < FLOAT16_SKIPS:
        yield (
            f"--max-skipped-steps must be at least {FLOAT16_SKIPS} with --precision float16, whose first steps may be "
            f"skipped to find the scale of the loss, got {recipe.max_skipped_steps}."
        )
    if recipe.net and is_other_model(recipe.teacher):
        yield f"the network of --teacher {recipe.teacher} is its own, got --net {recipe.net}: leave one of them out."
    if recipe.lora and not is_other_model(recipe.teacher):
        yield (
            f"--lora is for a --teacher of another library, got --lora {recipe.lora} and --teacher "
            f"{recipe.teacher or 'none'}: leave it out."
        )
    if recipe.guidance not in ((), (1,)) and not recipe.label_dropout:
        yield ("--label-dropout must be positive with --guidance, which needs the velocity without labels, got 0.")


def from_dict(fields: object) -> Recipe:
    """A recipe from the JSON of a run's config: older names are read too, younger options have their defaults.

    Raises:
        ValueError: a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        if not isinstance(fields, Mapping):
            raise ValueError(f"it must hold names and values, got {settings.shown(fields)}.")
        if "backbone" in fields and "condition_columns" not in fields:  # of a version that held out no images
            fields = {**fields, "held_out": 0.0}
        recipe = settings.read(ImageRecipe if "backbone" in fields else Recipe, fields, renamed=RENAMED)
        validate(recipe)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the run's config.json has no recipe that this version reads: {error}") from None
    return recipe
