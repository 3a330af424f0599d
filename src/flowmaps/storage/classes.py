"""Maps, networks and interpolants in a card: the path of their class, and the arguments of its constructor.

    {"class": "my_nets.Net", "arguments": {"width": 4}}         one of a user's, by its import path
    {"class": "MLP", "arguments": {...}}                        one of flowmaps' own, by its name
    {"class": ..., "arguments": {...}, "net": {...}}            one round a network, its argument `net`

The arguments are the mapping `value.arguments` (or `value.config`, as diffusers has it), or the attributes of their
names: numbers, texts, lists, tensors, functions by their import path, and such objects again. Where they cannot be told
a network is described by its `parts` (see `structure`), and if these cannot be told either its arguments are `None`.
`checked` keeps a description only if what is built of it again is the same.

A class is built only if it is one of flowmaps' own, of a library of `fm.interop`, given by the caller, or imported by
this process already, and is one of modules or interpolants. Nothing else is imported because a card names it.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import maps
from ..interpolants import CLASSES, Interpolant
from ..nn import MLP, DiT, UNet
from . import structure
from .alike import alike, other_draws
from .structure import RESERVED, NotTold, Unknown, path_of

MAPS = {kind.__name__: kind for kind in (maps.AverageVelocity, maps.Endpoint, maps.Trigonometric)}
NETWORKS = {kind.__name__: kind for kind in (MLP, UNet, DiT)}
OURS: dict[str, type] = {**MAPS, **NETWORKS, "Preconditioned": maps.Preconditioned}
"""Classes that a card names without their module."""
LIBRARIES = ("flowmaps.", "azula.", "diffusers.", "flow_matching.", "torchcfm.")
"""Packages, with a dot, whose classes are imported where a card names them."""
FUNCTIONS = ("flowmaps.interop.", "flowmaps.nn.two_times.", "torch.nn.functional.")
"""Where the functions are that a card may name without its reader's word."""
OF_TORCH: dict[str, Any] = {
    f"{place}.{name}": getattr(module, name)
    for place, module, names in (
        ("torch", torch, "abs cos cosh erf exp log1p relu rsqrt sigmoid sin sinc sinh softmax sqrt square tan tanh"),
        ("torch.nn.functional", functional, "gelu logsigmoid softplus"),
    )
    for name in names.split()
}
"""Functions of torch written in C++, which have no import path, by their names."""
PLAIN = ("flow_matching.path.scheduler.",)
"""Where the classes are that are neither modules nor interpolants, and may be built."""
TENSOR_TYPES = {str(kind).removeprefix("torch."): kind for kind in (torch.float64, torch.float32, torch.int64)}
MAX_NUMBERS = 10**5
"""Numbers of a tensor that is an argument."""


# into a card ----------------------------------------------------------------------------------------------------------


def checked(net: Any) -> dict[str, Any]:
    """A network for a card, by its arguments or else its parts; its arguments are `None` if they build another one."""
    described = of_object(getattr(net, "_orig_mod", net))
    if described["class"] in NETWORKS or not _is_told(described):
        return described
    by_parts = (parts for parts in _with_parts(net, described))
    found = next((told for told in itertools.chain([described], by_parts) if rebuilds(net, told)), None)
    return (
        _with_inner(described, {"class": _chain(described)[-1]["class"], "arguments": None}) if found is None else found
    )


def _with_parts(net: Any, described: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A description with the innermost network by its parts, then with the one round it, and so on."""
    nets = [getattr(net, "_orig_mod", net)]
    while len(nets) < len(_chain(described)):
        inner = known_arguments(nets[-1])["net"]
        nets.append(getattr(inner, "_orig_mod", inner))
    for depth in reversed(range(len(nets))):
        if parts := _parts(nets[depth]):
            yield _with_inner(described, {"class": _chain(described)[depth]["class"], **parts}, depth)


def _chain(described: Any) -> list[Any]:
    """A description, that of its network, and so on."""
    found = [described]
    while "net" in found[-1]:
        found.append(found[-1]["net"])
    return found


def _with_inner(described: Mapping[str, Any], inner: dict[str, Any], depth: int = -1) -> dict[str, Any]:
    """A description with another one at a depth of its chain of networks, by default the innermost."""
    for outer in reversed(_chain(described)[:depth]):
        inner = {**outer, "net": inner}
    return inner


def rebuilds(value: nn.Module, described: Mapping[str, Any], net: nn.Module | None = None) -> bool:
    """Whether a description builds the module again that it was made of; `net` in the place of its own network."""
    value = getattr(value, "_orig_mod", value)
    try:
        with other_draws():
            again = build(described, list(kinds(value)), copy.deepcopy(net))
        return of_object(again) == of_object(value) and alike(value, again)
    except Exception:  # of whatever kind: the constructor is its user's
        return False


def of_object(value: Any) -> dict[str, Any]:
    """An object by its class and the arguments of its constructor, a network else by its parts."""
    kind = type(value)
    name = kind.__name__ if OURS.get(kind.__name__) is kind else path_of(kind)
    arguments = attributes(value)
    described: dict[str, Any] = {"class": name, "arguments": None}
    if arguments is None:
        return described | _parts(value)
    net = getattr(arguments.get("net"), "_orig_mod", arguments.get("net"))
    try:
        if isinstance(net, nn.Module):
            del arguments["net"]
            described["net"] = of_object(net)
        described["arguments"] = {name: describe(entry) for name, entry in arguments.items()}
    except NotTold:
        return {"class": name, "arguments": None} | _parts(value)
    return described


def _parts(value: Any) -> dict[str, Any]:
    """The parts of a network whose arguments cannot be told, if they can; a map keeps its arguments."""
    if not isinstance(value, nn.Module) or isinstance(value, maps.FlowMap):
        return {}
    try:
        return {"arguments": {}, "parts": structure.describe(value, describe)}
    except NotTold:
        return {}


def describe(value: Any) -> Any:
    """An argument as JSON.

    Raises:
        NotTold: it is of a kind that a card cannot hold.
    """
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(entry) for entry in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        if RESERVED.isdisjoint(value):
            return {key: describe(entry) for key, entry in value.items()}
    elif isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if kind in TENSOR_TYPES and value.numel() <= MAX_NUMBERS and bool(value.isfinite().all()):
            return {"tensor": value.tolist(), "type": kind}
    elif isinstance(value, np.ndarray):
        if str(value.dtype) in TENSOR_TYPES and value.size <= MAX_NUMBERS and bool(np.isfinite(value).all()):
            return {"array": value.tolist(), "type": str(value.dtype)}
    elif isinstance(value, BuiltinFunctionType):
        if name := next((name for name, function in OF_TORCH.items() if function is value), None):
            return {"function": name}
    elif isinstance(value, FunctionType):
        if "<" not in value.__qualname__ and not value.__closure__:
            return {"function": path_of(value)}
    elif CLASSES.get(type(value).__name__) is type(value):  # a path of flowmaps' own
        fields = {name: describe(entry) for name, entry in (attributes(value) or {}).items()}
        return {"class": type(value).__name__, **fields}
    elif isinstance(value, (nn.Module, Interpolant)) or path_of(type(value)).startswith(PLAIN):
        described = of_object(getattr(value, "_orig_mod", value))
        if _is_told(described):
            return described
    raise NotTold(type(value).__name__)


def known_arguments(value: Any) -> dict[str, Any]:
    """The arguments that an object was made with, as far as it keeps them.

    They are its mapping `arguments` if it has one; else, for each argument of its constructor and its bases'
    constructors, the entry in its `config` or the attribute of that name.
    """
    known = getattr(value, "arguments", None)
    if isinstance(known, Mapping):
        return dict(known)
    names, config = constructor_arguments(type(value)), getattr(value, "config", None)
    config = config if isinstance(config, Mapping) and "config" not in names else {}
    kept = [name for name in names if name in config or hasattr(value, name)]
    return {name: config[name] if name in config else getattr(value, name) for name in kept}


def constructor_arguments(kind: type) -> list[str]:
    """The names of the arguments of a constructor, and of those of the classes that it is based on."""
    makers: list[Callable[..., Any]] = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
    known = [name for maker in makers if inspect.isfunction(maker) for name in inspect.signature(maker).parameters]
    return [name for name in dict.fromkeys(known) if name != "self"]


def attributes(value: Any) -> dict[str, Any] | None:
    """All arguments of an object's constructor, `None` where it does not keep one."""
    known, make = known_arguments(value), type(value).__init__
    if isinstance(getattr(value, "arguments", None), Mapping):
        return known
    parameters = list(inspect.signature(make).parameters.values())[1:]
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY) for one in parameters):
        return {} if make in (nn.Module.__init__, object.__init__) else None
    names = [one.name for one in parameters]
    return {name: known[name] for name in names} if known.keys() >= set(names) else None


def _is_told(described: Any) -> bool:
    """Whether all arguments of an object and of its network are known."""
    while described["arguments"] is not None:
        if "net" not in described:
            return True
        described = described["net"]
    return False


def kinds(value: Any) -> Iterator[Any]:
    """The classes of a module, of its parts, and of what their constructors were given; functions too."""
    found, seen, waiting = list[Any](), dict[int, Any](), list[Any]([value])  # seen are kept, so that ids stay theirs
    while waiting and len(seen) < MAX_NUMBERS:
        entry = waiting.pop()
        entry = getattr(entry, "_orig_mod", entry)
        if id(entry) in seen:
            continue
        seen[id(entry)] = entry
        if isinstance(entry, FunctionType):
            found.append(entry)
        elif isinstance(entry, (nn.Module, Interpolant)) or path_of(type(entry)).startswith(PLAIN):
            found.append(type(entry))
            waiting += (attributes(entry) or {}).values()
            waiting += (*vars(entry).values(), *entry.children()) if isinstance(entry, nn.Module) else ()
        elif isinstance(entry, (list, tuple, Mapping)):
            waiting += entry.values() if isinstance(entry, Mapping) else entry
    yield from dict.fromkeys(found)


# out of a card --------------------------------------------------------------------------------------------------------


def build(described: Any, known: Sequence[Any] = (), net: nn.Module | None = None) -> Any:
    """What a card describes, with fresh weights.

    Args:
        described: from `describe`, `of_object` or `checked`.
        known: classes and functions of the caller's that the card may name.
        net: in the place of the network that the card describes.

    Raises:
        Unknown: it names a class or function that this process does not know.
        Exception: whatever a constructor raises.
    """
    if isinstance(described, list):
        return [build(entry, known) for entry in described]
    if not isinstance(described, dict):
        return described
    if "tensor" in described:
        return torch.tensor(described["tensor"], dtype=TENSOR_TYPES[described["type"]])
    if "array" in described:
        if described["type"] not in TENSOR_TYPES:
            raise TypeError(f"{described['type']!r} is no type of an array")
        return np.array(described["array"], dtype=described["type"])
    if "function" in described:
        return find_function(described["function"], known)
    if "class" not in described:
        return {name: build(entry, known) for name, entry in described.items()}
    if "arguments" not in described:
        return _path(described, known)
    name, arguments = described["class"], described["arguments"]
    if "parts" in described and net is None:
        return structure.build(described["parts"], lambda path: _part(path, known), lambda value: build(value, known))
    kind = OURS.get(name) or find(name, known)
    if kind is None or arguments is None:
        raise Unknown(name, arguments is not None)
    given = {key: build(entry, known) for key, entry in arguments.items()}
    if "net" in described:
        given["net"] = build(described["net"], known) if net is None else net
    elif net is not None:
        raise ValueError(f"{name} has no argument net: leave net= out")
    return kind(**given)


def _part(path: str, known: Sequence[Any]) -> type[nn.Module]:
    """The class of a part of a network.

    Raises:
        Unknown: it is none that may be built.
    """
    kind = find(path, known)
    if kind is None or not issubclass(kind, nn.Module) or _runs_more(path):
        raise Unknown(path, True)
    return kind


def _path(described: Mapping[str, Any], known: Sequence[Any]) -> Interpolant:
    """An interpolant of flowmaps' own, whose fields are numbers and other interpolants."""
    fields = {name: build(entry, known) for name, entry in described.items() if name != "class"}
    for value in fields.values():
        if not isinstance(value, Interpolant) and not is_number(value):
            raise TypeError(f"a {type(value).__name__} is no finite number")
    return CLASSES[described["class"]](**fields)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number of ordinary size."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def find(path: str, known: Sequence[Any] = ()) -> Any:
    """A class by its import path, if it may be built; `None` for one that this process does not know."""
    given = [kind for kind in known if isinstance(kind, type)]
    found = _among(path, given) or _imported(path)
    safe = isinstance(found, type) and issubclass(found, (nn.Module, Interpolant)) and not _runs_more(path)
    may = isinstance(found, type) and (found in given or safe)
    return found if may or (isinstance(found, type) and path.startswith(PLAIN)) else None


def _runs_more(path: str) -> bool:
    """Whether a class is one of torch's that are no layers, some of which run code or fetch what they are given."""
    return path.startswith("torch.") and not path.startswith(structure.TORCH_PARTS)


def find_function(path: str, known: Sequence[Any] = ()) -> Callable[..., Any]:
    """A function by its import path: of the caller's, or of flowmaps where it calls networks.

    Raises:
        Unknown: it is another.
    """
    if path in OF_TORCH:
        return OF_TORCH[path]
    found = _among(path, [one for one in known if not isinstance(one, type)])
    if found is None and str(path).startswith(FUNCTIONS):
        found = _imported(path)
    if not isinstance(found, FunctionType):
        raise Unknown(path, True)
    return found


def _among(path: str, known: Sequence[Any]) -> Any:
    """One of a caller's by its path, or by its name alone, as of a script that has another name now."""
    by_path = (one for one in known if path in (path_of(one), one.__qualname__))
    return next(by_path, next((one for one in known if path.rpartition(".")[2] == one.__name__), None))


def _imported(path: str) -> Any:
    """What an import path names, in a module that this process has, or in one of `LIBRARIES`."""
    words = str(path).split(".")
    for end in range(len(words) - 1, 0, -1):
        found = _module(words[:end])
        for word in words[end:] if found is not None else ():
            found = vars(found).get(word) if hasattr(found, "__dict__") else None
        if hasattr(found, "__qualname__") and hasattr(found, "__module__") and path_of(found) == path:
            return found
    return None


def _module(words: list[str]) -> Any:
    name = ".".join(words)
    if name not in sys.modules and f"{words[0]}." in LIBRARIES and not any(word.startswith("__") for word in words):
        try:
            return importlib.import_module(name)
        except Exception:  # there is no such module, or it does not run here
            return None
    return sys.modules.get(name)
