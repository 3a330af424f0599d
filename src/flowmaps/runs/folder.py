"""The folder of a run, read: its recipe, its data, its log, what it has learned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..data import Images, Source, Units, fingerprint, open_data, resolve
from ..maps import FlowMap
from ..storage import models as checkpoint
from ..system.devices import pick_device
from ..system.progress import Watch
from . import plan as plans
from . import recipes
from .recipes import ImageRecipe, Recipe

FREE = ("device", "compile", "shard", "log_every", "checkpoint_every", "keep", "keep_every", "snapshot_every",
        "show_every", "track", "patience", "checkpointing", "evaluation", "optimiser.accumulate")  # fmt: skip
"""What may differ on resuming."""


def source_of(recipe: Recipe, split: str = "train", watch: Watch | None = None) -> Source:
    """The data of a recipe.

    Raises:
        ValueError: as in `open_data`.
    """
    batch = recipe.optimiser.batch if split == "train" else 1
    if not isinstance(recipe, ImageRecipe):
        return open_data(recipe.data, batch, split=split, watch=watch)
    options: dict[str, Any] = {"resolution": recipe.resolution, "labels": recipe.labels}
    source = open_data(recipe.data, batch, split=split, watch=watch, **options)
    if isinstance(source, Images):  # latents have no mirror
        source.flips = recipe.flips
    return source


def anywhere(recipe: Recipe) -> Recipe:
    """The recipe with its paths absolute, to be found again from wherever the run is resumed, measured or sampled."""
    teacher = str(Path(recipe.teacher).resolve()) if recipe.teacher else ""
    return dataclasses.replace(recipe, data=resolve(recipe.data), teacher=teacher)


def describe(recipe: Recipe, watch: Watch | None = None) -> dict[str, Any]:
    """What a run's card says of its recipe, and of the files that its data are read from."""
    return {"recipe": dataclasses.asdict(recipe), "data_sha256": fingerprint(recipe.data, watch)}


def check_data(card: dict[str, Any], described: dict[str, Any]) -> None:
    """Refuse data other than those that a run began with.

    Args:
        card: of the run.
        described: from `describe`, now.

    Raises:
        ValueError: their content has changed.
    """
    if card.get("data_sha256") not in (None, described["data_sha256"]):
        raise ValueError(
            f"{described['recipe']['data']} has changed since the run began: restore it, or train again into another "
            "--out."
        )


def finished(folder: Path, card: dict[str, Any]) -> bool:
    """Whether a run has been trained to its end: its card is the last to be written."""
    return (folder / checkpoint.WEIGHTS).exists() and "map" in card


def check_resumable(folder: Path, recipe: Recipe, described: dict[str, Any]) -> None:
    """Refuse to go on with another recipe than the run began with; `described` from `describe`.

    Raises:
        ValueError: there is no run, it has finished, or its recipe differs.
    """
    card = checkpoint.read_card(folder)
    if finished(folder, card):
        raise ValueError(f"{folder} has finished training: there is nothing to resume; see flowmaps evaluate {folder}.")
    old, new = _options(recipes.from_dict(card.get("recipe"))), _options(recipe)
    for name, value in new.items():
        if not {name, name.split(".")[0]} & set(FREE) and old.get(name) != value:
            option = name.replace("_", "-")
            raise ValueError(
                f"{folder} was begun with --{option} {old.get(name)}, got {value}: resume with the options it began "
                "with."
            )
    check_data(card, described)


def _options(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe as options, `optimiser.rate` and the like."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(recipe).items():
        flat |= {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run.

    Raises:
        ValueError: the folder is no run, or of another version.
    """
    card = checkpoint.read_card(folder)
    if card.get("recipe") is None:
        raise ValueError(
            f"{folder}/config.json has no recipe that this version reads: it holds a map saved by flowmaps.save, not a "
            f"run; read it with flowmaps.load."
        )
    return recipes.from_dict(card["recipe"])


def load_run(
    folder: Path, watch: Watch | None = None, source: Source | None = None
) -> tuple[Recipe, FlowMap, FlowMap | None, Source]:
    """A finished run: recipe, map, its teacher (or `None`) and data.

    Args:
        folder: of the run.
        watch: told what is read of the data, and the share that is done.
        source: the data, where they are at hand.

    Raises:
        ValueError: as in `checkpoint.load`; or the data have changed since.
    """
    recipe = read_recipe(folder)
    try:
        device = pick_device(recipe.device)
    except ValueError:  # trained on another machine
        device = pick_device("auto")
    flow_map = checkpoint.load(folder).to(device)
    teacher = None
    if recipe.method in plans.DISTILLED:
        teacher = checkpoint.load(folder / "teacher").to(device)
    if source is None:
        source = source_of(recipe, watch=watch)
        check_data(checkpoint.read_card(folder), describe(recipe, watch))
    return recipe, flow_map, teacher, source


def given_teacher(recipe: Recipe, source: Source, described: dict[str, Any]) -> FlowMap:
    """The map whose velocity is the teacher that a recipe names; `described` from `describe`.

    Raises:
        ValueError: the folder is no finished run, or its velocity is another than that of the recipe's flow: of other
            data, another path, or without what guidance needs.
    """
    folder = Path(recipe.teacher)
    flow_map, theirs, card = checkpoint.load(folder), read_recipe(folder), checkpoint.read_card(folder)
    units = Units.from_dict(card.get("units"))
    begun = f"the teacher in {folder} was trained"
    if units != source.units or card.get("data_sha256") != described["data_sha256"]:
        raise ValueError(
            f"{begun} on other data, {_data_of(theirs, units)}, than {_data_of(recipe, source.units)}: give both the "
            "same --data, --resolution and --labels."
        )
    if checkpoint.load_interpolant(folder) != plans.interpolant(recipe):
        raise ValueError(
            f"{begun} on the path {theirs.interpolant}, {recipe.method} takes {recipe.interpolant} here: give both the "
            "same --interpolant, and a method of the trigonometric path (sct, scd) no --teacher."
        )
    if theirs.method in plans.TO_DATA + plans.FROM_BASE:
        raise ValueError(
            f"{begun} by {theirs.method}, whose map has no velocity: take a run of flow_matching, or the folder "
            "teacher/ of a run that trained its own."
        )
    if not recipe.guidance and theirs.guidance not in ((), (1.0,)):
        had = " ".join(f"{weight:g}" for weight in theirs.guidance)
        raise ValueError(
            f"{begun} with --guidance {had}: its velocity is guided, train one without, or pass it here too."
        )
    needed = recipe.guidance if recipe.method in plans.HELD else (1.0,)
    if recipe.guidance and theirs.guidance != needed:
        had, take = (" ".join(f"{weight:g}" for weight in weights) for weights in (theirs.guidance, needed))
        plain = "" if needed == recipe.guidance else ", which drops labels and guides none"
        raise ValueError(
            f"{begun} {'with --guidance ' + had if had else 'without --guidance'}: for {recipe.method} with --guidance "
            f"train it with --guidance {take}{plain}."
        )
    return flow_map


def _data_of(recipe: Recipe, units: Units) -> str:
    classes = "no classes" if units.classes is None else f"{units.classes} classes"
    return f"{recipe.data} ({' x '.join(map(str, units.shape))}, {classes})"
