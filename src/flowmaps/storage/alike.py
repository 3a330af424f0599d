"""Whether two modules are the same but for the weights of their `state_dict`: all their attributes are compared."""

from __future__ import annotations

import enum
import random
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .structure import HOOKS, OF_EVERY_MODULE, PEFT

NOT_COMPARED = OF_EVERY_MODULE | {PEFT, "_compiled_call_impl"}
"""Attributes that `nn.Module` has itself, or that are made again with an argument."""
VALUES = (bool, int, float, complex, str, bytes, range, set, frozenset, NoneType, CodeType, torch.dtype, torch.device)
"""Classes, exactly these, whose `==` compares all that they hold."""


@contextmanager
def other_draws() -> Iterator[None]:
    """Other random numbers on the CPU than those around it, whose streams go on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (that of a user's constructor)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.seed()
            random.seed()
            np.random.seed()  # noqa: NPY002
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same parts with the same attributes and hooks, and weights of the same shapes.

    Raises:
        Exception: whatever an object raises that cannot be compared.
    """
    ones, others = dict(one.named_modules()), dict(other.named_modules())
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (one, other)]
    if ones.keys() != others.keys() or shapes[0] != shapes[1]:
        return False
    twins = _Twins(one, other)
    return twins.shared_alike() and all(twins.parts(part, others[path]) for path, part in ones.items())


class _Twins:
    """Two modules, whose parts and weights are the same objects for a comparison if their paths are."""

    def __init__(self, *modules: nn.Module) -> None:
        self.paths = [_paths(module) for module in modules]
        self.places = [{id(value): path for path, value in reversed(paths.items())} for paths in self.paths]
        self.begun = dict[tuple[int, int], tuple[Any, Any]]()  # with the values, so that no other gets their ids

    def shared_alike(self) -> bool:
        """Whether the same paths lead to the same parts and weights, such as tied ones."""
        mine, theirs = (
            {path: place[id(value)] for path, value in paths.items()}
            for paths, place in zip(self.paths, self.places, strict=True)
        )
        return mine == theirs

    def parts(self, one: nn.Module, other: nn.Module) -> bool:
        """Whether the attributes, hooks and unsaved buffers of two parts are equal, not those of their own parts."""
        if type(one) is not type(other):
            return False
        if any(
            not self.equal(list(getattr(one, name).values()), list(getattr(other, name).values())) for name in HOOKS
        ):
            return False
        mine, theirs = ({name: each._buffers[name] for name in _unsaved(each)} for each in (one, other))
        if mine.keys() != theirs.keys() or not all(_equal_tensors(value, theirs[name]) for name, value in mine.items()):
            return False
        return self.equal(_attributes(one), _attributes(other))

    def equal(self, one: Any, other: Any) -> bool:
        """Whether two values are equal in all that they hold."""
        places = [place.get(id(value)) for place, value in zip(self.places, (one, other), strict=True)]
        if places != [None, None]:
            return places[0] == places[1]
        if one is other or (id(one), id(other)) in self.begun:
            return True
        self.begun[id(one), id(other)] = one, other
        if type(one) in (list, tuple) and type(other) in (list, tuple):  # a card has lists alone
            return len(one) == len(other) and all(map(self.equal, one, other))
        if type(one) is not type(other) or isinstance(one, (type, enum.Enum)):
            return False
        if type(one) in VALUES:
            return bool(one == other or (one != one and other != other))
        if type(one) is dict:
            return self.equal(list(one), list(other)) and self.equal(list(one.values()), list(other.values()))
        if isinstance(one, (Tensor, np.ndarray)):
            return _equal_tensors(one, other)
        return self.equal(_state(one), _state(other))


def _paths(module: nn.Module) -> dict[str, Any]:
    """The parts, parameters and buffers of a module, by all their paths."""
    found: dict[str, Any] = dict(module.named_modules(remove_duplicate=False))
    return (
        found
        | dict(module.named_parameters(remove_duplicate=False))
        | dict(module.named_buffers(remove_duplicate=False))
    )


def _unsaved(module: nn.Module) -> list[str]:
    return [name for name in module._buffers if name in module._non_persistent_buffers_set]


def _attributes(module: nn.Module) -> dict[str, Any]:
    kept = {name: value for name, value in sorted(vars(module).items()) if name not in NOT_COMPARED}
    if type(module).__module__.startswith("flowmaps."):  # whose private ones are of a call
        kept = {name: value for name, value in kept.items() if not name.startswith("_")}
    for name, value in kept.items():
        if isinstance(value, Mapping) and value is getattr(module, "config", None):  # of diffusers, with its version
            kept[name] = {key: entry for key, entry in value.items() if not str(key).startswith("_")}
    return kept


def _equal_tensors(one: Any, other: Any) -> bool:
    """Whether two arrays are equal; tensors up to the type and device to which a network was moved."""
    if one is None or other is None:
        return one is other
    if isinstance(one, Tensor):
        other = other.to(one)
        return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
    return one.dtype == other.dtype and bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))


def _state(value: Any) -> Any:
    """All that an object holds, in lists.

    Raises:
        TypeError: it cannot be told.
    """
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [id(value.__globals__), value.__code__, value.__defaults__, value.__kwdefaults__, cells, vars(value)]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, nn.Module):  # no part: its weights are in no `state_dict`
        return vars(value)
    if isinstance(value, torch.Generator):
        return [str(value.device), value.get_state()]
    reduced: Any = value.__reduce_ex__(4)  # as it is copied or pickled
    return reduced if isinstance(reduced, str) else [list(e) if isinstance(e, Iterator) else e for e in reduced]
