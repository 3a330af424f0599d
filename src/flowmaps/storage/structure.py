"""A module for a card part by part, where the arguments of its constructor cannot be told, as those of `nn.Sequential`.

    {"": {"class": "my_nets.Net", "settings": {}, "parameters": {}, "buffers": {}}, "layers": {...}, "layers.0": {...}}

A part is its class, its settings (attributes that are numbers, texts, lists, tensors) and the shapes of its weights.
It is built again without its constructor. A part or weight with several paths is told at the first one, the others are
`{"same_as": path}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.two_times import SecondTime

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
HOOKS = tuple(name for name in OF_EVERY_MODULE if name.endswith("_hooks"))
PEFT = "peft_config"
"""What `peft` adds to a network with adapters, which `TwoTimes` gives it again."""
RESERVED = frozenset({"class", "tensor", "array", "function", "tuple"})
"""Keys by which a card tells an object from a plain dictionary."""
WEIGHT_TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
TORCH_PARTS = "torch.nn.modules."
"""Where those classes of torch are that may be parts."""


class NotTold(ValueError):
    """A value is of a class, `str(error)`, that a card cannot hold."""


class Unknown(Exception):
    """A card names a class or function that this process does not know, or that cannot be built without `net`.

    Attributes:
        path: of the class.
        told: whether its arguments are known, so that its class is enough.
    """

    def __init__(self, path: str, told: bool) -> None:
        super().__init__(path)
        self.path, self.told = path, told


def path_of(kind: Any) -> str:
    """The import path of a class or function."""
    return f"{kind.__module__}.{kind.__qualname__}"


def describe(module: nn.Module, value_of: Callable[[Any], Any]) -> dict[str, Any]:
    """The parts of a module by their paths; layers of a second time and of LoRA are those that they were given to.

    Args:
        module: the module.
        value_of: an attribute as JSON.

    Raises:
        NotTold: a part has an attribute that a card cannot hold, or a hook.
    """
    found, paths, waiting = dict[str, Any](), dict[int, str](), [("", module)]
    while waiting:
        path, part = waiting.pop()
        part = _given_to(part)
        if part is None or id(part) in paths:
            found[path] = None if part is None else {"same_as": paths[id(part)]}
            continue
        paths[id(part)] = path
        found[path] = _describe_part(part, path, paths, value_of)
        waiting += reversed([(_join(path, name), child) for name, child in part._modules.items()])
    return found


def _given_to(part: Any) -> Any:
    """The layer inside one of a second time or of LoRA, which `TwoTimes` puts round it again."""
    while isinstance(part, SecondTime) or hasattr(part, "get_base_layer"):
        part = part.layer if isinstance(part, SecondTime) else part.get_base_layer()
    return getattr(part, "_orig_mod", part)


def _describe_part(part: nn.Module, path: str, paths: dict[int, str], value_of: Callable[[Any], Any]) -> dict[str, Any]:
    if any(getattr(part, name) for name in HOOKS):
        raise NotTold(f"{type(part).__name__} with a hook")
    tensors = dict[str, dict[str, Any]](parameters={}, buffers={})
    for kind, values in (("parameters", part._parameters), ("buffers", part._buffers)):
        for name, value in values.items():
            if value is None:
                tensors[kind][name] = None
            elif name in part._non_persistent_buffers_set:
                tensors[kind][name] = value_of(value)
            elif id(value) in paths:
                tensors[kind][name] = {"same_as": paths[id(value)]}
            else:
                paths[id(value)] = _join(path, name)
                tensors[kind][name] = {"shape": list(value.shape), "type": str(value.dtype).removeprefix("torch.")}
    own = {name: value for name, value in vars(part).items() if name not in (*OF_EVERY_MODULE, PEFT)}
    settings = {name: _setting(value, value_of) for name, value in own.items()}
    return {"class": path_of(type(part)), "settings": settings, **tensors}


def _setting(value: Any, value_of: Callable[[Any], Any]) -> Any:
    """An attribute as JSON; a network or weight that is no part of its module would be lost."""
    if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.requires_grad):
        raise NotTold(f"{type(value).__name__} in a list")
    if isinstance(value, (tuple, list, Mapping)) and type(value) not in (tuple, list, torch.Size, dict):
        raise NotTold(f"a {type(value).__name__}")
    if type(value) in (tuple, list, torch.Size):
        entries = [_setting(entry, value_of) for entry in value]
        return entries if type(value) is list else {"tuple": entries}
    if type(value) is dict:
        if not all(isinstance(key, str) for key in value) or not RESERVED.isdisjoint(value):
            raise NotTold("dict with keys that are no plain names")
        return {key: _setting(entry, value_of) for key, entry in value.items()}
    return value_of(value)


def build(
    parts: Mapping[str, Any], class_of: Callable[[str], type[nn.Module]], value_of: Callable[[Any], Any]
) -> nn.Module:
    """The module of what `describe` returns, its weights not yet filled.

    Args:
        parts: by their paths.
        class_of: a class by its import path.
        value_of: an attribute from JSON.

    Raises:
        Exception: whatever a malformed description leads to.
    """
    made, tensors = dict[str, Any](), dict[str, Tensor]()
    for path, part in parts.items():
        if part is not None and "same_as" in part and f"{path}.".startswith(part["same_as"] and part["same_as"] + "."):
            raise TypeError(f"{path} is inside of itself")
        if part is None or "same_as" in part:
            made[path] = None if part is None else made[part["same_as"]]
        else:
            made[path] = _build_part(part, path, tensors, class_of(part["class"]), value_of)
        if path:
            owner, _, name = path.rpartition(".")
            made[owner].register_module(name, made[path])
    return made[""]


def _build_part(
    part: Mapping[str, Any],
    path: str,
    tensors: dict[str, Tensor],
    kind: type[nn.Module],
    value_of: Callable[[Any], Any],
) -> nn.Module:
    for name in part["settings"]:  # none may take the place of a method
        if name in OF_EVERY_MODULE or hasattr(nn.Module, name) or callable(getattr(kind, name, None)):
            raise TypeError(f"{path or 'the network'} has a setting {name!r}, which its class defines")
    module = object.__new__(kind)
    nn.Module.__init__(module)
    vars(module).update({name: _unsetting(value, value_of) for name, value in part["settings"].items()})
    for name, value in part["parameters"].items():
        made: Any = None if value is None else tensors.get(value.get("same_as"))
        if value is not None and made is None:
            made = _empty(value)
            made = nn.Parameter(made, requires_grad=made.is_floating_point() or made.is_complex())
            tensors[_join(path, name)] = made
        module.register_parameter(name, made)
    for name, value in part["buffers"].items():
        kept = value is None or "tensor" not in value
        made = None if value is None else tensors.get(value.get("same_as"))
        if value is not None and made is None:
            made = _empty(value) if kept else value_of(value)
            tensors[_join(path, name)] = made
        module.register_buffer(name, made, persistent=kept)
    return module


def _empty(described: Mapping[str, Any]) -> Tensor:
    return torch.empty(described["shape"], dtype=WEIGHT_TYPES[described["type"]])


def _unsetting(value: Any, value_of: Callable[[Any], Any]) -> Any:
    if isinstance(value, list):
        return [_unsetting(entry, value_of) for entry in value]
    if isinstance(value, dict) and value.keys() == {"tuple"}:
        return tuple(_unsetting(entry, value_of) for entry in value["tuple"])
    if isinstance(value, dict) and RESERVED.isdisjoint(value):
        return {key: _unsetting(entry, value_of) for key, entry in value.items()}
    return value_of(value)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
