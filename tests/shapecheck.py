"""Shapes in signatures are checked while the tests run: every annotated function of the mathematics, at every call.

A call is checked after it has returned, so that an error of the function's own comes first. A `Dual` is checked by its
value. Nothing is checked, nor traced, under `torch.compile`.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

SOURCES = Path(__file__).parents[1] / "src" / "flowmaps"
CORE = {path.stem for path in SOURCES.glob("[!_]*.py")} | {"exact", "methods", "nn", "objectives"}
"""The files and folders of `flowmaps` that are the mathematics."""
CHECKED: set[str] = set()
"""The functions that are checked, by name."""
NUMBERS = BeartypeConf(is_pep484_tower=True)  # an integer will do where a float is asked for


def names_a_shape(hint: Any) -> bool:
    """Whether an annotation speaks of a tensor's shape."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(names_a_shape(part) for part in typing.get_args(hint))


SIGNATURES: list[tuple[Callable[..., Any], inspect.Signature, set[Any]]] = []
"""Each checked function, its signature, and the shapes of its calls that were right."""


def annotated(fn: FunctionType) -> bool:
    """Whether a signature has a name of a shape in it."""
    return any(re.search(r"\b(Batch|Time)\b", str(hint)) for hint in fn.__annotations__.values())


def checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with the shapes of its arguments and of what it returns compared with its annotations."""
    key = len(SIGNATURES)  # what the compiler cannot follow stands outside of the closure
    SIGNATURES.append((fn, inspect.signature(fn), set()))

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        returned = fn(*args, **kwargs)
        if not torch.compiler.is_compiling():
            compare_once(key, args, kwargs, returned)
        return returned

    CHECKED.add(f"{fn.__module__}.{fn.__qualname__}")
    return wrapper


def compare_once(key: int, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
    """Compare a call with the annotations of its function, unless one of the same shapes was right."""
    fn, signature, right = SIGNATURES[key]
    shapes = shapes_of((args, tuple(kwargs), tuple(kwargs.values()), returned))
    if shapes not in right:
        compare(fn, signature.bind(*args, **kwargs).arguments | {"return": returned})
        right.add(shapes)


def shapes_of(value: Any) -> Any:
    """The shape and the type of numbers of each tensor in some values, the type of each other value."""
    if isinstance(value, tuple):
        return tuple([shapes_of(part) for part in value])
    value = getattr(value, "value", value) if type(value).__name__ == "Dual" else value
    return (value.shape, value.dtype) if isinstance(value, Tensor) else value if isinstance(value, str) else type(value)


def compare(fn: Callable[..., Any], values: dict[str, Any]) -> None:
    """Refuse values that do not have the shapes of a function's annotations, taken together.

    Raises:
        TypeError: a value has another shape.
    """
    from flowmaps.dual.core import values_of

    hints = {name: hint for name, hint in typing.get_type_hints(fn).items() if name in values and names_a_shape(hint)}
    several = {name for name, one in inspect.signature(fn).parameters.items() if one.kind is one.VAR_POSITIONAL}
    with jaxtyped("context"):
        for name, hint in hints.items():
            each = values[name] if name in several else [values[name]]
            if not all(is_bearable(values_of(value), hint, conf=NUMBERS) for value in each):
                shapes = {key: shapes_of(values[key]) for key in hints}
                raise TypeError(f"{fn.__qualname__}: {name} is not {hint}, among {shapes}.")


def check_functions(owner: ModuleType | type, module: str) -> None:
    """Have each annotated function of a module, or of a class of it, checked."""
    for name, value in list(vars(owner).items()):
        inner = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if isinstance(value, type) and value.__module__ == module:
            check_functions(value, module)
        elif isinstance(inner, FunctionType) and inner.__module__ == module and annotated(inner):
            setattr(owner, name, checked(value) if inner is value else type(value)(checked(inner)))


class Loader(importlib.machinery.SourceFileLoader):
    """Runs a module, then has its functions checked, before another module imports them."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        check_functions(module, module.__name__)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the mathematics."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        package, _, rest = name.partition(".")
        if package != "flowmaps" or rest.partition(".")[0] not in CORE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = Loader(name, spec.origin)
        return spec


def install() -> None:
    """Have the mathematics checked from its import on."""
    assert "flowmaps.shapes" not in sys.modules, "flowmaps is imported already, unchecked"
    sys.meta_path.insert(0, Finder())
