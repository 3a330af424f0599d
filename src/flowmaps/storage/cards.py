"""The card of a saved map, `config.json`: which map, of which network, on which path, and what else its writer kept.

A card may come from a stranger. It can only name classes of `MAPS`, `NETWORKS` and `interpolants.CLASSES`, and networks
that this process has imported already, built by their constructors alone: those of flowmaps' own first on the meta
device, without memory, to compare their shapes with those of the weights. Nothing is imported because a card names it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import interpolants, maps
from ..data import Units
from ..nn import MLP, DiT, UNet
from . import classes

FORMAT = 1
CARD = "config.json"
MAX_CARD_BYTES = 2**24  # those of runs have thousands
MAX_JSON_DEPTH = 100  # levels of nested lists and objects
MAPS = {kind.__name__: kind for kind in (maps.AverageVelocity, maps.Endpoint, maps.Trigonometric)}
NETWORKS = {kind.__name__: kind for kind in (MLP, UNet, DiT)}
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of weights that networks compute in."""
BUILD_ERRORS = (KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError, IndexError)
"""Errors that building from a malformed card may raise."""


class NotSaved(ValueError):
    """A map or an interpolant is of a class that a card cannot name, because no other program could build it."""


def reason(error: BaseException) -> str:
    """An error in one line of reasonable length, for a message."""
    words = " ".join(str(error).split())
    name = "" if type(error) is ValueError and words else f"{type(error).__name__}: "
    return (name + words)[:300].removesuffix(": ")


def parse(text: str) -> Any:
    """Parse JSON; reject nesting beyond 100 levels and text that is not valid Unicode.

    Raises:
        ValueError: the text is not JSON, or is rejected.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"lists or objects more than {MAX_JSON_DEPTH} deep") from None
    level, depth = [value], 0
    while level := [inner for entry in level if isinstance(entry, (dict, list)) for inner in _inside(entry)]:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"lists or objects more than {MAX_JSON_DEPTH} deep")
    json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be written or printed
    return value


def _inside(entry: dict[str, Any] | list[Any]) -> list[Any]:
    return list(entry.values()) if isinstance(entry, dict) else entry


def read(folder: Path) -> dict[str, Any]:
    """The card of a folder, its version checked.

    Raises:
        ValueError: the folder or the card is missing, damaged, or of another version.
        OSError: it cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give the folder of a run, or of flowmaps.save.")
    path = folder / CARD
    if not path.is_file():
        raise ValueError(f"{folder} has no {CARD}: it is no run folder, or the run did not finish (resume it).")
    if path.stat().st_size > MAX_CARD_BYTES:
        raise ValueError(f"{path} is damaged (of more than {MAX_CARD_BYTES:,} bytes): restore it, or train again.")
    try:
        card = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({reason(error)}): restore it, or train again.") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        got = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ValueError(
            f"{path} is of format {got!r:.100}, this version reads format {FORMAT}: use the flowmaps that wrote it."
        )
    if "recipe" in card and not is_number(card.get("seconds", 0.0)):  # of a run, which is shown
        raise ValueError(f"{path} has seconds of {card['seconds']!r:.40}, no finite number: the file was changed.")
    return card


def plain_name(name: str) -> str:
    """The name of a weight without torch.compile's prefix."""
    return name.replace("_orig_mod.", "")


def plain_weights(flow_map: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of a map, under names without torch.compile's prefix."""
    return {plain_name(name): value for name, value in flow_map.state_dict().items()}


def load_weights(flow_map: nn.Module, weights: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """`load_state_dict` of weights under names without torch.compile's prefix, as from `plain_weights`."""
    own = {plain_name(name): name for name in flow_map.state_dict()}
    flow_map.load_state_dict({own.get(name, name): value for name, value in weights.items()}, assign=assign)


def describe(flow_map: maps.FlowMap) -> dict[str, Any]:
    """A map as an entry of a card.

    Raises:
        ValueError: it is of a kind that is not saved.
    """
    kind = type(flow_map).__name__
    if MAPS.get(kind) is not type(flow_map):
        raise NotSaved(f"only maps of the classes {', '.join(MAPS)} are saved, got {kind}: save the map inside it.")
    arguments = {"floor": flow_map.floor} if isinstance(flow_map, maps.Endpoint) else {}
    return {"class": kind, "arguments": arguments, "net": _describe_network(flow_map.net)}


def _describe_network(net: Any) -> dict[str, Any]:
    """A network by its class and the arguments of its constructor, `None` where these cannot be told."""
    net = getattr(net, "_orig_mod", net)  # of a compiled one
    name = type(net).__name__
    if type(net) is maps.Preconditioned:
        numbers = {key: getattr(net, key) for key in ("data_std", "scale", "floor")}
        arguments = {"interpolant": encode(net.interpolant), **numbers}
        return {"class": name, "arguments": arguments, "net": _describe_network(net.net)}
    if NETWORKS.get(name) is type(net):
        return {"class": name, "arguments": net.arguments}
    # its user's own: with its module, so that one called MLP is not taken for ours
    return {"class": classes.path_of(type(net)), "arguments": classes.arguments_of(net)}


def build(
    folder: Path,
    card: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    net: nn.Module | None,
    known: Sequence[type] = (),
) -> maps.FlowMap:
    """The map that a card describes, with its weights.

    Args:
        folder: of the card.
        card: from `read`.
        weights: of the map.
        net: the network, where it is not one of flowmaps' own.
        known: classes of the caller's that the card may name.

    Raises:
        ValueError: the card is not one of a map, or describes another than that of the weights.
    """
    if net is None and _is_ours(card):
        with torch.device("meta"), SkipInit():  # without memory
            _fill(folder, _new(folder, card, None, known), weights, assign=True)
    flow_map = _new(folder, card, net, known)
    _check_run(folder, card, flow_map)
    run = "recipe" in card  # whose maps compute in float32; its file may have them in half the size
    allowed = (torch.float32, torch.bfloat16) if run else TYPES
    for value in weights.values():
        if value.is_floating_point() and value.dtype not in allowed:
            raise ValueError(f"the weights in {folder} are of {value.dtype}: save them as torch.float32.")
    if not run:  # the types that were saved
        real = next((value.dtype for value in weights.values() if value.is_floating_point()), None)
        complex_ = next((value.dtype for value in weights.values() if value.is_complex()), None)
        flow_map._apply(lambda value: value.to((complex_ if value.is_complex() else real) or value.dtype)
                        if value.is_complex() or value.is_floating_point() else value)  # fmt: skip
    _fill(folder, flow_map, weights)
    return flow_map


class SkipInit(TorchFunctionMode):
    """Skip initialisation on the meta device; it would import torch's compiler, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        if func is torch.arange:
            return torch.empty(len(range(*args)), dtype=kwargs.get("dtype", torch.int64))
        return func(*args, **kwargs)


def _is_ours(card: Mapping[str, Any]) -> bool:
    """Whether a card names networks of flowmaps' own alone, which are first built without memory."""
    try:
        network = card["map"]["net"]
        while network["class"] == "Preconditioned":
            network = network["net"]
        return network["class"] in NETWORKS
    except BUILD_ERRORS:
        return True  # refused where it is built


def _new_network(described: Mapping[str, Any], known: Sequence[type]) -> nn.Module | None:
    """The network that a card describes, with fresh weights; `None` for one that this process does not know."""
    name, arguments = described["class"], described["arguments"]
    if name == "Preconditioned":
        inner = _new_network(described["net"], known)
        path = _decode(arguments["interpolant"])
        return inner and maps.Preconditioned(inner, **{**arguments, "interpolant": path})
    if name in NETWORKS:
        return NETWORKS[name](**arguments)
    kind = classes.find(name, known)
    return None if kind is None or arguments is None else kind(**arguments)


def _new(folder: Path, card: Mapping[str, Any], net: nn.Module | None, known: Sequence[type]) -> maps.FlowMap:
    """The map of a card, with fresh weights unless a network is given."""
    path = folder / CARD
    try:
        described = card["map"]
        kind, arguments, network = described["class"], described["arguments"], described["net"]
        net = _new_network(network, known) if net is None and kind in MAPS else net
        if kind in MAPS and net is not None:
            return MAPS[kind](net, **arguments)
    except (ValueError, *BUILD_ERRORS) as error:
        raise ValueError(
            f"{path} is not a card of a flow map ({reason(error)}): the file was changed or damaged."
        ) from None
    if kind not in MAPS:
        raise ValueError(f"{path} names the map {kind!r:.100}, this version knows {', '.join(MAPS)}.")
    inner = network
    while inner["class"] == "Preconditioned":
        inner = inner["net"]
    hint = "" if inner["arguments"] is None else ", or import its class first, or pass classes=[...]"
    raise ValueError(
        f"{folder} has a network {inner['class']!r:.100} of its user's own: pass load(folder, net=...){hint}."
    )


def _fill(folder: Path, flow_map: maps.FlowMap, weights: Mapping[str, Tensor], *, assign: bool = False) -> None:
    name = type(flow_map.net).__name__
    for key, value in plain_weights(flow_map).items():
        other = weights.get(key, value)
        if (value.is_floating_point(), value.is_complex()) != (other.is_floating_point(), other.is_complex()):
            raise ValueError(
                f"the weights in {folder} do not fit {name}: {key} is of {value.dtype}, got {other.dtype}."
            )
    try:
        load_weights(flow_map, weights, assign=assign)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit {name}: {' '.join(str(error).split())[:300]}") from None


def _check_run(folder: Path, card: Mapping[str, Any], flow_map: maps.FlowMap) -> None:
    """Refuse a run's card whose sample shape or number of classes differs from its network's."""
    net = flow_map.net
    if "recipe" not in card or "units" not in card or not isinstance(net, tuple(NETWORKS.values())):
        return
    units = Units.from_dict(card["units"])
    shape, classes = (net.dim,) if isinstance(net, MLP) else net.shape, net.arguments["classes"]
    if (units.shape, units.classes) != (shape, classes):
        raise ValueError(
            f"{folder / CARD} has samples of shape {units.shape} and {units.classes} classes, its network those of "
            f"{shape} and {classes}: the file was changed or damaged."
        )
    wrong = [f"units of {value!r:.40}" for value in (*units.shift, *units.scale) if not is_number(value)]
    if wrong:
        raise ValueError(f"{folder / CARD} has {wrong[0]}, no finite number: the file was changed or damaged.")


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number of ordinary size."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def encode(value: Any) -> Any:
    """An interpolant as `{"class": ..., field: ...}`, each field a number or another interpolant.

    Raises:
        ValueError: it is not one of flowmaps' own.
    """
    if not isinstance(value, interpolants.Interpolant):
        return value
    name = type(value).__name__
    if interpolants.CLASSES.get(name) is not type(value):
        own = ", ".join(interpolants.CLASSES)
        raise NotSaved(f"{name} is not an interpolant of flowmaps' own ({own}): only these are saved.")
    return {"class": name, **{f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}}  # type: ignore[arg-type]


def interpolant(folder: Path, card: Mapping[str, Any]) -> interpolants.Interpolant:
    """The interpolant that a card describes.

    Raises:
        ValueError: there is none, or none that this version knows.
    """
    try:
        path = _decode(card["interpolant"])
        if not isinstance(path, interpolants.Interpolant):
            raise TypeError(f"got a {type(path).__name__}")
        return path
    except BUILD_ERRORS as error:
        raise ValueError(f"{folder / CARD} has no interpolant that this version knows ({reason(error)}).") from None


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        arguments = {name: _decode(entry) for name, entry in value.items() if name != "class"}
        return interpolants.CLASSES[value["class"]](**arguments)
    if not is_number(value):
        raise TypeError(f"a {type(value).__name__} is no finite number")
    return value
