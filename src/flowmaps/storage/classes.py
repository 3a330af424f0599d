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
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (net, again)]
    return own if same and shapes[0] == shapes[1] else None


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
