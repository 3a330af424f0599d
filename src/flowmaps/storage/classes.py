"""Networks of a user's own in a card: the import path of their class, and the arguments of its constructor.

The arguments are the mapping `net.arguments`, or the attributes of their names. They are kept if they are JSON and a
network that is built of them again has the same, and weights of the same names and shapes.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def path_of(kind: type) -> str:
    """The import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def find(path: str, known: Sequence[type] = ()) -> type[nn.Module] | None:
    """A class of networks by its import path: of `known`, or imported by this process already; nothing is imported."""
    for kind in known:
        if path in (path_of(kind), kind.__qualname__) or path.rpartition(".")[2] == kind.__name__:
            return kind
    words = str(path).split(".")
    for end in range(len(words) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(words[:end]))
        if found is None:
            continue
        for word in words[end:]:
            found = vars(found).get(word) if hasattr(found, "__dict__") else None
        if isinstance(found, type) and issubclass(found, nn.Module) and path_of(found) == path:
            return found
    return None


def arguments_of(net: nn.Module) -> dict[str, Any] | None:
    """The arguments of a network's constructor, or `None` where they cannot be told from the network."""
    own = _attributes(net)
    if own is None:
        return None
    try:
        json.dumps(own)
        with torch.random.fork_rng(devices=[]):
            again = type(net)(**own)
        same = json.dumps(_attributes(again)) == json.dumps(own)
    except Exception:  # of whatever kind: the constructor is its user's
        return None
    return own if same and _alike(net, again) else None


def _alike(net: nn.Module, again: nn.Module) -> bool:
    """Whether two networks have the same parts with the same settings, and the same tensors outside their weights."""
    ones, others = dict(net.named_modules()), dict(again.named_modules())
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (net, again)]
    if ones.keys() != others.keys() or shapes[0] != shapes[1]:
        return False
    for name, one in ones.items():
        mine, theirs = _settings(one), _settings(others[name])
        if type(one) is not type(others[name]) or mine.keys() != theirs.keys():
            return False
        for key, value in mine.items():
            same = torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key]
            if type(value) is not type(theirs[key]) or not same:
                return False
    return True


def _settings(module: nn.Module) -> dict[str, Any]:
    """The numbers, texts and tensors of a module that are not in its `state_dict`."""
    kept = {name: value for name, value in vars(module).items() if name != "training"}
    kept |= {name: value for name, value in module._buffers.items() if name in module._non_persistent_buffers_set}
    plain = (bool, int, float, str, bytes, type(None), torch.Tensor)
    return {name: value for name, value in kept.items() if isinstance(value, plain) and not name.startswith("_")}


def _attributes(net: nn.Module) -> dict[str, Any] | None:
    known = getattr(net, "arguments", None)
    if isinstance(known, Mapping):
        return dict(known)
    parameters = list(inspect.signature(type(net).__init__).parameters.values())[1:]
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY) for one in parameters):
        return {} if type(net).__init__ is nn.Module.__init__ else None
    if not all(hasattr(net, one.name) for one in parameters):
        return None
    return {one.name: getattr(net, one.name) for one in parameters}
