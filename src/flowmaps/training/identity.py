"""The settings and data that a resumed training must share with its checkpoint; a run compares its options too
(`runs.folder`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from ..maps import Target
from ..modules import modules_of
from ..objectives import Objective
from ..shapes import Condition, on_each
from ..storage.classes import known_arguments
from ..velocities import FromTeacher
from .optimisers import Optimiser
from .state import frozen, under_adapters

MAX_HASHED_ROWS = 2**16
"""Rows of the data that are compared, evenly spaced."""


def identity(
    objective: Objective,
    optimiser: Optimiser,
    seed: int,
    precision: str,
    data: tuple[Tensor, Condition] | None = None,
) -> dict[str, Any]:
    """A description of a training, as JSON: its network, its loss, the settings of its steps, and its data.

    Args:
        objective: the objective.
        optimiser: settings; gradient accumulation, which changes the rounding alone, is left out.
        seed: of the draws.
        precision: type in which networks compute.
        data: rows and their conditions; `None` where the data cannot be compared.
    """
    settings = dataclasses.asdict(optimiser)
    settings.pop("accumulate")
    own = _Parts(objective)
    described = {
        "map": type(objective.flow_map).__name__,
        "interpolant": repr(objective.interpolant),
        "parts": {**dict(own.of("flow_map", objective.flow_map)), **dict(own.of("objective", objective))},
    }
    if base := under_adapters(objective):
        described["base"] = checksum(base)
    described |= settings | {"seed": seed, "precision": precision}
    if data is None:
        return described | {"data": None}
    conditions = list[str]()
    on_each(data[1], lambda value: conditions.append(digest(value)) or value)
    return described | {"data": digest(data[0]), "conditions": conditions}


class _Parts:
    """Describes an objective part by part: each by its class and by the arguments of its constructor.

    A module whose weights no checkpoint has, such as a teacher, is described by the checksum of its weights too.
    """

    def __init__(self, objective: Objective) -> None:
        saved = [value for value in objective.parameters() if value.requires_grad] + list(frozen(objective).values())
        self._saved, self._met = {id(value) for value in saved}, set[int]()

    def of(self, name: str, value: Any, checked: bool = False) -> Iterator[tuple[str, Any]]:
        """The entries of a part and of its own parts, as pairs of a name, such as `objective.weight`, and a value.

        Args:
            name: of the part.
            value: the part.
            checked: whether a checksum that was given already has its weights.
        """
        value = getattr(value, "_orig_mod", value)  # of a compiled one
        if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
            yield name, value
        elif isinstance(value, (Enum, float)):
            yield name, str(value)
        elif isinstance(value, Tensor):
            yield name, checksum({"": value})
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                yield from self.of(f"{name}.{key}", entry, checked)
        elif isinstance(value, (tuple, list, nn.ModuleList)):
            yield f"{name}.length", len(value)
            for number, entry in enumerate(value):
                yield from self.of(f"{name}.{number}", entry, checked)
        elif inspect.isroutine(value) or isinstance(value, type):
            yield name, getattr(value, "__qualname__", type(value).__qualname__)
            if inspect.ismethod(value):
                yield from self.of(f"{name}.self", value.__self__, checked)
            elif inspect.isfunction(value):
                for number, module in enumerate(modules_of(value)):
                    yield from self.of(f"{name}.uses.{number}", module, checked)
        else:
            yield from self._object(name, value, checked)

    def _object(self, name: str, value: Any, checked: bool) -> Iterator[tuple[str, Any]]:
        yield name, type(value).__qualname__
        if id(value) in self._met:
            return
        self._met.add(id(value))
        if isinstance(value, nn.Module) and not checked and self._is_fixed(value) and (state := _state(value)):
            checked = True
            yield f"{name}.checksum", checksum(state)
        for key, entry in known_arguments(value).items():
            if not isinstance(entry, nn.Parameter):
                yield from self.of(f"{name}.{key}", entry, checked)

    def _is_fixed(self, module: nn.Module) -> bool:
        """Whether no weight of a module is in checkpoints."""
        moves = any(isinstance(part, Target) and part.moves for part in module.modules())
        return not moves and all(id(value) not in self._saved for value in module.parameters())


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module; of a teacher those that it uses, which are no part of it."""
    if not isinstance(module, FromTeacher):
        return module.state_dict()
    return {f"{k}.{name}": value for k, used in enumerate(module.used) for name, value in used.state_dict().items()}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors, of their names and shapes."""
    found = hashlib.sha256()
    for name, value in tensors.items():
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest(x1: Tensor) -> str:
    """The shape of rows of data, and the SHA-256 of some of them."""
    some = x1[:: max(1, len(x1) // MAX_HASHED_ROWS)].detach().cpu().contiguous()
    return f"{list(x1.shape)} {hashlib.sha256(some.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()}"


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with another training than the one that was begun.

    Args:
        old: from a checkpoint or a card; what it does not have, as that of an earlier version, is not compared.
        new: of the training at hand.
        where: whose the old one is, for the message.

    Raises:
        ValueError: they differ.
    """
    for name, value in json.loads(json.dumps(new)).items():  # lists for tuples, as in a file
        was = old.get(name, value)
        if isinstance(value, dict) and isinstance(was, dict):
            check_same(was, value, where)
        elif was != value:
            raise ValueError(
                f"{where} was begun with another {name}, {was!s:.200}, got {value!s:.200}: give what it began with, or "
                "choose another folder."
            )
