"""Flow maps on disk: `weights.safetensors` and a JSON card, `config.json`. Nothing is ever unpickled.

The card keeps the class of the map, the constructor arguments of its network, the interpolant and the checksum of the
weights; what else a writer wants to keep (a recipe, a scaling) stands under names of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from . import interpolants, maps
from .files import write_atomically
from .nn import MLP, DiT, UNet

FORMAT = 1
WEIGHTS, CARD = "weights.safetensors", "config.json"
MAPS = {kind.__name__: kind for kind in (maps.AverageVelocity, maps.Endpoint, maps.Trigonometric)}
NETWORKS = {kind.__name__: kind for kind in (MLP, UNet, DiT)}
PATHS = {
    kind.__name__: kind
    for kind in (
        interpolants.Linear,
        interpolants.Trigonometric,
        interpolants.VariancePreserving,
        interpolants.VarianceExploding,
        interpolants.WithNoise,
    )
}


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
        flow_map: an `AverageVelocity`, `Endpoint` or `Trigonometric` map of any network.
        folder: where to.
        interpolant: the path that it was trained on; `Linear()` unless given.
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
    described = _describe(flow_map)  # refuses a map that is not saved before its weights are copied
    # cloned: weights that layers share are written for each of them
    content = safetensors.save({k: v.detach().cpu().contiguous().clone() for k, v in flow_map.state_dict().items()})
    card = {
        **(extra or {}),
        "format": FORMAT,
        "map": described,
        "interpolant": _encode(interpolants.Linear() if interpolant is None else interpolant),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
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


def load(folder: str | Path, net: nn.Module | None = None) -> maps.FlowMap:
    """Read a flow map, in evaluation mode.

    Args:
        folder: where `save` wrote it.
        net: the network, where it is not one of flowmaps' own; its weights are replaced.

    Raises:
        ValueError: the folder or a file is missing, damaged, of another version, or does not fit the network.
    """
    folder = Path(folder)
    card = read_card(folder)
    if "map" not in card and not (folder / WEIGHTS).exists():  # what `flowmaps train` writes before it trains
        raise ValueError(f"{folder} has no {WEIGHTS}: the run did not finish (use --resume), or the file was moved.")
    try:
        described = card["map"]
        kind, arguments, network = described["class"], described["arguments"], described["net"]
        if kind not in MAPS:
            raise ValueError(f"{folder / CARD} names the map {kind!r}, this version knows {', '.join(MAPS)}.")
        if net is None:
            if network["class"] not in NETWORKS:
                raise ValueError(
                    f"{folder} has a network {network['class']!r} of its user's own: pass load(folder, net=...)."
                )
            net = NETWORKS[network["class"]](**network["arguments"])
        flow_map = MAPS[kind](net, **arguments)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / CARD} is not a card of a flow map ({error!r}): the file was changed or damaged."
        ) from None
    weights = read_weights(folder / WEIGHTS, card.get("sha256"))
    try:
        for kept in weights.values():
            if kept.is_floating_point():
                flow_map.to(kept.dtype)  # the type that was saved
                break
        flow_map.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights in {folder} do not fit {type(net).__name__}: {reason}") from None
    return flow_map.eval()


def load_interpolant(folder: str | Path) -> interpolants.Interpolant:
    """The interpolant that a saved map was trained on.

    Raises:
        ValueError: as in `load`.
    """
    card = read_card(Path(folder))
    try:
        path = _decode(card["interpolant"])
        if not isinstance(path, interpolants.Interpolant):
            raise TypeError(f"got {path!r}")
        return path
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{Path(folder) / CARD} has no interpolant that this version knows ({error!r}).") from None


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a folder, its version checked.

    Raises:
        ValueError: the folder or the card is missing, damaged, or of another version.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give the folder of a run, the --out of `flowmaps train`.")
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {CARD}: it is no run folder, or the run did not finish (use --resume)."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        got = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ValueError(
            f"{path} is of format {got!r}, this version reads format {FORMAT}: use the flowmaps that wrote it."
        )
    return card


def read_weights(path: Path, checksum: str | None = None) -> dict[str, Tensor]:
    """Tensors from a safetensors file, compared with a checksum where there is one.

    Raises:
        ValueError: the file is missing, truncated or changed.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} has no {path.name}: the run did not finish (use --resume), or the file was moved."
        ) from None
    if checksum is not None and hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(
            f"{path} is truncated or was changed ({len(content)} bytes, checksum differs): restore it, or train again."
        )
    try:
        return safetensors.load(content)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file, or is truncated ({error}): restore it, or train again."
        ) from None


def _describe(flow_map: maps.FlowMap) -> dict[str, Any]:
    kind = type(flow_map).__name__
    if MAPS.get(kind) is not type(flow_map):
        raise ValueError(f"only maps of the classes {', '.join(MAPS)} are saved, got {kind}: save the map inside it.")
    net: nn.Module = flow_map.net  # type: ignore[assignment]
    arguments = {"floor": flow_map.floor} if isinstance(flow_map, maps.Endpoint) else {}
    name = type(net).__name__
    if NETWORKS.get(name) is type(net):
        described = {"class": name, "arguments": net.arguments}
    else:  # its user's own: with its module, so that one called MLP is not taken for ours
        described = {"class": f"{type(net).__module__}.{name}", "arguments": {}}
    return {"class": kind, "arguments": arguments, "net": described}


def _encode(value: Any) -> Any:
    """An interpolant as `{"class": ..., field: ...}`, each field a number or another interpolant."""
    if not isinstance(value, interpolants.Interpolant):
        return value
    name = type(value).__name__
    if PATHS.get(name) is not type(value):
        raise ValueError(f"{name} is not an interpolant of flowmaps' own ({', '.join(PATHS)}): only these are saved.")
    return {"class": name, **{f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}}  # type: ignore[arg-type]


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    arguments = {name: _decode(entry) for name, entry in value.items() if name != "class"}
    return PATHS[value["class"]](**arguments)


def save_pretrained(flow_map: maps.FlowMap, folder: str | Path, **options: Any) -> Path:
    """`save` under the name that Hugging Face users know, replacing what is there."""
    return save(flow_map, folder, overwrite=True, **options)


def push_to_hub(flow_map: maps.FlowMap, repository: str, *, private: bool = False, **options: Any) -> str:
    """Upload a flow map to the Hugging Face Hub.

    Args:
        flow_map: the map.
        repository: `user/name`, made if it is missing.
        private: make it a private one.
        options: as in `save`.

    Returns:
        The address of the commit.
    """
    import tempfile

    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save(flow_map, folder, **options)
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repository, folder_path=folder).commit_url


def from_pretrained(name: str | Path, net: nn.Module | None = None, **options: Any) -> maps.FlowMap:
    """Load a flow map from a folder or from the Hugging Face Hub (`user/name`).

    Args:
        name: a folder, or a repository.
        net: as in `load`.
        options: for `huggingface_hub.snapshot_download`, such as `revision`.
    """
    if Path(name).is_dir():
        return load(name, net)
    from huggingface_hub import snapshot_download

    return load(snapshot_download(str(name), allow_patterns=[WEIGHTS, CARD], **options), net)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """One file with tensors and a JSON header, written in one stroke: a training state."""
    content = safetensors.save(dict(tensors), metadata={"flowmaps": json.dumps(about)})
    write_atomically(path, content)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    tensors = read_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["flowmaps"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no training state of flowmaps ({error!r}).") from None
    return tensors, about


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter; the CPU if it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
