"""Flow maps on disk: `weights.safetensors` and a JSON card, `config.json`. Nothing is ever unpickled.

The card keeps the class of the map, the constructor arguments of its network, the interpolant and the checksum of the
weights; what else a writer wants to keep (a recipe, a scaling) stands under names of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from .. import interpolants, maps
from ..system.files import write_atomically
from . import cards
from .cards import CARD, FORMAT

WEIGHTS = "weights.safetensors"


def save(
    flow_map: maps.FlowMap,
    folder: str | Path,
    *,
    interpolant: interpolants.Interpolant | None = None,
    extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a flow map to a folder, which is made if it is missing.

    Args:
        flow_map: an `AverageVelocity`, `Endpoint` or `Trigonometric` map of any network; or one of a class of your own
            whose constructor's arguments are its attributes of the same names.
        folder: where to.
        interpolant: the path that it was trained on; `Linear()` unless given. One of a class of your own is told in the
            same way, as a dataclass does.
        extra: more entries for the card, such as a recipe.
        overwrite: replace a map that is there.

    Returns:
        The folder.

    Raises:
        ValueError: the folder has a map (or another card) already, or something is of a kind that is not saved;
            nothing is written then.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder: choose another name.")
    for name in (WEIGHTS, CARD):
        if (folder / name).exists() and not overwrite:
            raise ValueError(
                f"{folder} already holds a flow map ({name}): choose another folder, or pass overwrite=True."
            )
    path = cards.encode(interpolants.Linear() if interpolant is None else interpolant)
    return _write(flow_map, folder, {**(extra or {}), "map": cards.describe(flow_map), "interpolant": path})


def save_weights(flow_map: maps.FlowMap, folder: Path, extra: Mapping[str, Any]) -> Path:
    """Write the weights of a map that no card describes, such as one of a user's own class; a card holds `extra` alone.

    They are read by `flow_map.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))`.
    """
    return _write(flow_map, folder, extra)


def _write(flow_map: maps.FlowMap, folder: Path, card: Mapping[str, Any]) -> Path:
    """Write the weights, tied ones once per name, and the card with their SHA-256."""
    weights = cards.plain_weights(flow_map)
    if double := [name for name, value in weights.items() if value.dtype == torch.complex128]:
        raise ValueError(f"{double[0]} is of torch.complex128, which safetensors has not: save it as torch.complex64.")
    content = safetensors.save({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()})
    card = {**card, "format": FORMAT, "sha256": hashlib.sha256(content).hexdigest()}
    try:
        text = json.dumps(card, indent=2) + "\n"
    except TypeError as error:
        raise ValueError(
            f"the card cannot be written as JSON ({error}): give extra entries of numbers, text and lists."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, content)
    write_atomically(folder / CARD, text)
    return folder


def load(folder: str | Path, net: nn.Module | None = None, *, classes: Sequence[type] = ()) -> maps.FlowMap:
    """Read a flow map, in evaluation mode.

    A network or map of a user's own is built again if its class has been imported already, is of a library that
    `fm.interop` knows, or is one of `classes`, and the arguments of its constructor are its attributes of the same
    names (or a mapping `net.arguments` or `net.config`); a network without these is built of its parts, layers and
    plain attributes. Nothing else is imported because a card names it.

    Args:
        folder: where `save` wrote it.
        net: the network, where it is not one of flowmaps' own; its weights are replaced.
        classes: classes, and functions that call a network, that the card may name, such as those of a script that has
            another name now.

    Raises:
        ValueError: the folder or a file is missing, damaged, of another version, or does not fit the network.
    """
    folder = Path(folder)
    card = cards.read(folder)
    if "map" not in card and not (folder / WEIGHTS).exists():  # what `flowmaps train` writes before it trains
        raise ValueError(f"{folder} has no {WEIGHTS}: the run did not finish (resume it), or the file was moved.")
    weights = read_weights(folder / WEIGHTS, card.get("sha256"))
    return cards.build(folder, card, weights, net, classes).eval()


def load_interpolant(folder: str | Path, *, classes: Sequence[type] = ()) -> interpolants.Interpolant:
    """The interpolant that a saved map was trained on.

    Args:
        folder: where `save` wrote it.
        classes: as in `load`.

    Raises:
        ValueError: as in `load`.
    """
    folder = Path(folder)
    return cards.interpolant(folder, cards.read(folder), classes)


def read_weights(path: Path, checksum: str | None = None) -> dict[str, Tensor]:
    """Tensors from a safetensors file, compared with a checksum where there is one.

    Raises:
        ValueError: the file is missing, truncated or changed.
    """
    if not path.is_file():  # also rejects named pipes; reading one would block
        raise ValueError(
            f"{path.parent} has no {path.name}: the run did not finish (resume it), or the file was moved."
        )
    content = path.read_bytes()
    if checksum is not None and hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(
            f"{path} is truncated or was changed ({len(content)} bytes, checksum differs): restore it, or train again."
        )
    try:
        return safetensors.load(content)
    except (SafetensorError, ValueError, *cards.BUILD_ERRORS) as error:
        raise ValueError(
            f"{path} is no safetensors file, or is truncated ({cards.reason(error)}): restore it, or train again."
        ) from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Write a file with tensors and a JSON header in one stroke; returns its SHA-256."""
    content = safetensors.save(dict(tensors), metadata={"flowmaps": json.dumps(about)})
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    tensors = read_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = cards.parse(file.metadata()["flowmaps"])
        if not isinstance(about, dict):
            raise TypeError(f"got a {type(about).__name__}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no training state of flowmaps ({cards.reason(error)}): restore it.") from None
    return tensors, about


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter; the CPU if it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
