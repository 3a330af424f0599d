"""The card of a saved map, `config.json`: which map, of which network, on which path, and what else its writer kept.

A card may come from a stranger. What it can name is in `classes`; networks of flowmaps' own are first built on the meta
device, without memory, to compare their shapes with those of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import interpolants, maps
from ..data import Units
from ..nn import MLP
from . import classes
from .classes import MAPS, NETWORKS, is_number

FORMAT = 1
CARD = "config.json"
MAX_CARD_BYTES = 2**24  # those of runs have thousands
MAX_JSON_DEPTH = 100  # levels of nested lists and objects
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of weights that networks compute in."""
BUILD_ERRORS = (KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError, IndexError, AssertionError)
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
        NotSaved: it is of a kind that is not saved, or of a class of its user's whose arguments cannot be told.
    """
    kind, net = type(flow_map), getattr(flow_map, "net", None)
    described = {**classes.of_object(flow_map), **_frozen(flow_map)}
    if described["class"] in MAPS:
        return {**described, "net": classes.checked(net)}
    if not kind.__module__.startswith("flowmaps.") or kind.__module__.startswith("flowmaps.uses."):
        if "net" in described:
            described["net"] = classes.checked(net)
        own = net if "net" in described else None
        if described["arguments"] is not None and classes.rebuilds(flow_map, described, own):
            return described
    if kind.__module__.startswith("flowmaps.uses."):
        raise NotSaved(
            f"a {kind.__name__} is saved if its networks can be, those of flowmaps.nn and of classes whose arguments "
            "are attributes of the same names: keep the arguments of yours as attributes."
        )
    raise NotSaved(
        f"only maps of the classes {', '.join(MAPS)} are saved, and those of your own whose arguments are attributes "
        f"of the same names, got {kind.__name__}: save the map inside it, or keep its arguments as attributes."
    )


def _frozen(flow_map: maps.FlowMap) -> dict[str, list[str]]:
    """The names of the parameters that are not trained, for networks that may have some."""
    frozen = [plain_name(name) for name, value in _real_parameters(flow_map) if not value.requires_grad]
    return (
        {"frozen": frozen} if frozen or not isinstance(getattr(flow_map, "net", None), tuple(NETWORKS.values())) else {}
    )


def _freeze(flow_map: maps.FlowMap, frozen: Any) -> None:
    """Freeze the parameters of these names, and no others; none is changed where an older card names none."""
    if frozen is None:
        return
    if not isinstance(frozen, list):
        raise TypeError(f"frozen is {frozen!r:.40}, no list of names")
    for name, value in _real_parameters(flow_map):
        value.requires_grad_(plain_name(name) not in frozen)


def _real_parameters(flow_map: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Those that can be trained: of whole numbers none can."""
    values = flow_map.named_parameters()
    return [(name, value) for name, value in values if value.is_floating_point() or value.is_complex()]


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
    if net is None and _is_ours(card):  # refused where it is built, if it makes no sense
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
        own = {id(value): name for name, value in flow_map.state_dict(keep_vars=True).items()}

        def typed(value: Tensor) -> Tensor:
            if not value.is_complex() and not value.is_floating_point():
                return value
            saved = weights.get(plain_name(own.get(id(value), "")))
            other = complex_ if value.is_complex() else real
            return value.to(other or value.dtype) if saved is None else value.to(saved.dtype)

        flow_map._apply(typed)
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
    """Whether a card names classes of flowmaps' own alone, whose networks are first built without memory."""
    try:
        described = card["map"]
        if described["class"] not in MAPS:
            return False
        while described["class"] in (*MAPS, "Preconditioned"):
            described = described["net"]
        return described["class"] in NETWORKS
    except BUILD_ERRORS:
        return True


def _new(folder: Path, card: Mapping[str, Any], net: nn.Module | None, known: Sequence[type]) -> maps.FlowMap:
    """The map of a card, with fresh weights unless a network is given."""
    path = folder / CARD
    described = card["map"] if isinstance(card.get("map"), dict) else {}
    takes_net = "net" in described or not isinstance(described.get("class"), str)  # else refused below
    if net is not None and not takes_net:
        raise ValueError(f"{folder} has a map {described.get('class')!r:.100} without an argument net: leave net= out.")
    try:
        kind = card["map"]["class"]
        if kind in MAPS or (isinstance(kind, str) and _is_map(classes.find(kind, known))):
            made: Any = classes.build(card["map"], known, net)
            _freeze(made, card["map"].get("frozen"))
            return made
    except classes.Unknown as error:
        ways = ["pass load(folder, net=...)"] * takes_net
        ways += ["import its class first", "pass classes=[...]"] * (error.told or not takes_net)
        raise ValueError(
            f"{folder} has a network {error.path!r:.100} of its user's own: {', or '.join(ways)}."
        ) from None
    except (ValueError, *BUILD_ERRORS) as error:
        raise ValueError(
            f"{path} is not a card of a flow map ({reason(error)}): the file was changed or damaged."
        ) from None
    raise ValueError(
        f"{path} names the map {kind!r:.100}, this version knows {', '.join(MAPS)}: of a class of your own import it "
        "first, or pass classes=[...]."
    )


def _is_map(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, maps.FlowMap)


def _fill(folder: Path, flow_map: maps.FlowMap, weights: Mapping[str, Tensor], *, assign: bool = False) -> None:
    name = type(getattr(flow_map, "net", flow_map)).__name__
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
    """Refuse a run's card whose sample shape, number of classes or numbers of a condition are not its network's."""
    net = getattr(flow_map, "net", None)
    if "recipe" not in card or "units" not in card or not isinstance(net, tuple(NETWORKS.values())):
        return
    units = Units.from_dict(card["units"])
    shape, classes = (net.dim,) if isinstance(net, MLP) else net.shape, net.arguments["classes"]
    if (units.shape, units.classes) != (shape, classes):
        raise ValueError(
            f"{folder / CARD} has samples of shape {units.shape} and {units.classes} classes, its network those of "
            f"{shape} and {classes}: the file was changed or damaged."
        )
    if units.condition_dim != net.arguments["condition_dim"]:
        raise ValueError(
            f"{folder / CARD} has {units.condition_dim} columns of conditions, its network takes "
            f"{net.arguments['condition_dim']} numbers: the file was changed or damaged."
        )
    wrong = [f"units of {value!r:.40}" for value in (*units.shift, *units.scale) if not is_number(value)]
    if wrong:
        raise ValueError(f"{folder / CARD} has {wrong[0]}, no finite number: the file was changed or damaged.")


def encode(path: interpolants.Interpolant) -> dict[str, Any]:
    """An interpolant as an entry of a card.

    Raises:
        NotSaved: it is of a class of its user's whose arguments cannot be told.
    """
    name, own = type(path).__name__, ", ".join(interpolants.CLASSES)
    try:
        described = classes.describe(path)
        again = classes.build(described, list(classes.kinds(path)))
        if classes.describe(again) == described and (again == path or type(path).__eq__ is object.__eq__):
            return described
    except classes.NotTold as error:
        name = str(error)
    except Exception:  # of whatever kind: the constructor is its user's
        pass
    raise NotSaved(
        f"{name} is not an interpolant of flowmaps' own ({own}), nor of a class whose arguments are "
        "attributes of the same names: make it a dataclass."
    )


def interpolant(folder: Path, card: Mapping[str, Any], known: Sequence[type] = ()) -> interpolants.Interpolant:
    """The interpolant that a card describes.

    Raises:
        ValueError: there is none, or none that this process knows.
    """
    try:
        path = classes.build(card["interpolant"], known)
        if not isinstance(path, interpolants.Interpolant):
            raise TypeError(f"got a {type(path).__name__}")
        return path
    except classes.Unknown as error:
        raise ValueError(
            f"{folder / CARD} has no interpolant that this version knows, got {error.path!r:.100}: of a class of your "
            "own import it first, or pass classes=[...]."
        ) from None
    except (ValueError, *BUILD_ERRORS) as error:
        raise ValueError(f"{folder / CARD} has no interpolant that this version knows ({reason(error)}).") from None
