"""The folder of a run, read: its recipe, its data, its log, what it has learned."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import checkpoint, plans, recipes
from .data import Source, fingerprint, open_data
from .devices import pick_device
from .maps import FlowMap
from .recipes import ImageRecipe, Recipe

LOG = "log.jsonl"
FREE = ("device", "compile", "log_every", "checkpoint_every", "evaluation")  # what may differ on resuming


def source_of(recipe: Recipe, split: str = "train", watch: Callable[[str, float], None] | None = None) -> Source:
    """The data of a recipe.

    Raises:
        ValueError: as in `open_data`.
    """
    options: dict[str, Any] = {}
    if isinstance(recipe, ImageRecipe):
        options = {"resolution": recipe.resolution, "flips": recipe.flips, "labels": recipe.labels, "watch": watch}
    return open_data(recipe.data, recipe.optimiser.batch, split=split, **options)


def describe(recipe: Recipe) -> dict[str, Any]:
    """What a run's card says of its recipe, and of the file that its data are read from."""
    return {"recipe": dataclasses.asdict(recipe), "data_sha256": fingerprint(recipe.data)}


def check_data(card: dict[str, Any], recipe: Recipe) -> None:
    """Refuse a data file other than the one that a run began with.

    Raises:
        ValueError: its content has changed.
    """
    if card.get("data_sha256") not in (None, describe(recipe)["data_sha256"]):
        raise ValueError(
            f"{recipe.data} has changed since the run began: restore it, or train again into another --out."
        )


def check_resumable(folder: Path, recipe: Recipe) -> None:
    """Refuse to go on with another recipe than the run began with.

    Raises:
        ValueError: there is no run, it has finished, or its recipe differs.
    """
    card = checkpoint.read_card(folder)
    if (folder / checkpoint.WEIGHTS).exists() and "map" in card:  # the card is the last to be written
        raise ValueError(f"{folder} has finished training: there is nothing to resume; see flowmaps evaluate {folder}.")
    old, new = _options(recipes.from_dict(card.get("recipe"))), _options(recipe)
    for name, value in new.items():
        if name.split(".")[0] not in FREE and old[name] != value:
            option = name.replace("_", "-")
            raise ValueError(
                f"{folder} was begun with --{option} {old[name]}, got {value}: resume with the options it began with."
            )
    check_data(card, recipe)


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


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; a last line cut short by a crash is left out."""
    lines = []
    if (folder / LOG).exists():
        for line in (folder / LOG).read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return lines


def load_run(folder: Path) -> tuple[Recipe, FlowMap, FlowMap | None, Source]:
    """A finished run: recipe, map, its teacher (or `None`) and data.

    Raises:
        ValueError: as in `checkpoint.load`.
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
    source = source_of(recipe)
    check_data(checkpoint.read_card(folder), recipe)
    return recipe, flow_map, teacher, source
