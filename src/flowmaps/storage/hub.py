"""Flow maps on the Hugging Face Hub: the folder of `save`, or of a run, with a model card that says how to sample it.

README.md  config.json  weights.safetensors        and of a run: metrics.json, a picture
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .. import maps
from ..system.files import write_atomically
from . import cards, models
from .model_card import PICTURE, README, model_card

METRICS = "metrics.json"
LOCAL_PATHS = ("data", "teacher", "from_run")
"""Entries of a recipe that may be paths of this machine."""


def save_pretrained(flow_map: maps.FlowMap, folder: str | Path, **options: Any) -> Path:
    """`save` under the name that Hugging Face users know, with a model card, replacing what is there."""
    written = models.save(flow_map, folder, overwrite=True, **options)
    write_atomically(written / README, model_card(cards.read(written), written.absolute().name))
    return written


def push_to_hub(flow_map: maps.FlowMap | str | Path, repository: str, *, private: bool = False, **options: Any) -> str:
    """Upload a flow map, or the folder of a finished run, to the Hugging Face Hub, with a model card.

    Of a run the map, its card, `metrics.json` and one picture are uploaded. Paths of this machine in its card are cut
    to their last name.

    Args:
        flow_map: the map, or the folder of `flowmaps train`, `fm.fit` or `save`.
        repository: `user/name`, made if it is missing.
        private: make it a private one.
        options: as in `save`, for a map.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the folder has no map, or options are given for a folder; as in `save`.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if isinstance(flow_map, maps.FlowMap):
            models.save(flow_map, folder, **options)
        else:
            if options:
                raise ValueError(f"{next(iter(options))}=... is for a map, got the folder {flow_map}: leave it out.")
            _copy(Path(flow_map), folder)
        rows = json.loads((folder / METRICS).read_text())["rows"] if (folder / METRICS).exists() else []
        card = model_card(cards.read(folder), repository, rows, picture=(folder / PICTURE).exists())
        write_atomically(folder / README, card)
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repository, folder_path=name).commit_url


def _copy(run: Path, folder: Path) -> None:
    """Copy what is uploaded of a run.

    Raises:
        ValueError: there is no map, or it is damaged.
    """
    card = cards.read(run)
    if "map" not in card or not (run / models.WEIGHTS).is_file():
        raise ValueError(f"{run} has no map: the run did not finish (resume it).")
    models.read_weights(run / models.WEIGHTS, card.get("sha256"))
    recipe = card.get("recipe") or {}
    for entry in LOCAL_PATHS:
        if (path := Path(str(recipe.get(entry) or ""))).is_absolute():
            recipe[entry] = "/".join(path.parts[-2:]) if path.name == "model_index.json" else path.name
    if (card.get("units") or {}).get("vae"):  # a folder of this machine
        card["units"]["vae"] = ""
    write_atomically(folder / cards.CARD, json.dumps(card, indent=2) + "\n")
    for name in (models.WEIGHTS, METRICS, PICTURE):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)


def from_pretrained(
    name: str | Path,
    net: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    classes: Sequence[type] = (),
    **options: Any,
) -> maps.FlowMap:
    """Load a flow map from a folder or from the Hugging Face Hub (`user/name`).

    Args:
        name: a folder, or a repository.
        net: the network, or a function without arguments that makes it, where it is not one of flowmaps' own; its
            weights are replaced.
        classes: as in `load`.
        options: for `huggingface_hub.snapshot_download`, such as `revision`.

    Raises:
        ValueError: as in `load`, options of a download for a folder, or `net` makes no network.
    """
    if Path(name).is_dir():
        if options:
            raise ValueError(f"{name} is a folder, and {next(iter(options))}=... is for a download: leave it out.")
        return models.load(name, _made(net), classes=classes)
    from huggingface_hub import snapshot_download

    folder = snapshot_download(str(name), allow_patterns=[models.WEIGHTS, cards.CARD], **options)
    return models.load(folder, _made(net), classes=classes)


def _made(net: nn.Module | Callable[[], nn.Module] | None) -> nn.Module | None:
    """The network, made where it is a function that makes it."""
    if net is None or isinstance(net, nn.Module):
        return net
    made = net() if callable(net) else net
    if not isinstance(made, nn.Module):
        raise ValueError(f"net is a network, or a function that makes one, got {made!r:.100}: pass net=lambda: Mine().")
    return made
