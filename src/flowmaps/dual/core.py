"""The pair (value, tangent) and the table of rules that carries it through torch.

`f(x + e v) = f(x) + e Df(x) v + O(e^2)`: a `Dual` holds `x` and its tangent, the direction `v`, and each torch function
has a rule that returns `f(x)` and `Df(x) v`, written in ordinary differentiable operations. Reverse mode,
`torch.compile`, autocast and checkpointing then see plain code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

TABLE: dict[Callable[..., Any], Callable[..., Any]] = {}
"""For each torch function the handler that is called in its place where an argument is a `Dual`."""


METHODS: dict[str, Callable[..., Any]] = {}
"""The same by name, for tensor methods that torch writes in Python, which the compiler does not find in `TABLE`."""


WRITTEN: dict[int, list[Any]] = {}
"""By thread, weak references to plain tensors that have a tangent now: a `Dual` was written into them (`writing`)."""


class Dual:
    """A tensor and its derivative along one direction, `value + e tangent` with `e^2 = 0`.

    Torch functions, tensor methods and `nn.Module`s take a `Dual` in the place of a tensor. It is not a subclass of
    `Tensor`, which would lose its tangent at graph breaks of the compiler: `isinstance(x, torch.Tensor)` is false.

    Arguments:
        value: a floating-point or complex tensor of any shape.
        tangent: its derivative, of the same shape; `None` stands for zero, and costs nothing.
        detached: whether tangents are computed without an autograd graph (`jvp(..., detach_tangent=True)`).
    """

    def __init__(self, value: Tensor, tangent: Tensor | None = None, detached: bool = False) -> None:
        self.value = value
        self.tangent = tangent
        self.detached = detached
        self.shared: Any = None  # with what it shares its memory, as views do (`sharing`)
        self.variable = False  # whether torch.autograd.grad may be taken in it

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if WRITTEN:
            args, kwargs = pairs_of(args), pairs_of(kwargs or {})
        if kwargs and kwargs.get("out") is not None:
            name = getattr(func, "__name__", "the function")
            raise NotImplementedError(f"{name}(..., out=y) has no place for a tangent: write y = {name}(...).")
        handler = look_up(func)
        if handler is None:
            raise NotImplementedError(no_rule_message(func))
        return handler(*args, **(kwargs or {}))

    def __repr__(self) -> str:
        return f"Dual(value={self.value}, tangent={self.tangent})"

    def __len__(self) -> int:
        if not self.value.dim():
            raise TypeError(
                "len() of a 0-d Dual: torch.tensor([x]) asks for it, and would drop the tangent. "
                "If a network calls it where torch.is_tensor(x) is false, give it the Dual after that line."
            )
        return len(self.value)

    def __iter__(self) -> Any:
        return iter(self.unbind(0))  # type: ignore[attr-defined]

    def __bool__(self) -> bool:
        return bool(self.value)

    def __float__(self) -> float:
        raise TypeError(TANGENT_DROPPED.format("float(x)"))


TANGENT_DROPPED = "{} would drop the tangent of a Dual: write x.detach() first if that is meant."


def no_rule_message(func: Any) -> str:
    """The error message for a torch function without a rule."""
    name = getattr(func, "__name__", "the function")
    if not torch.compiler.is_compiling():
        name = torch.overrides.resolve_name(func) or name
    return (
        f"{name} has no forward-mode rule: add one with @dual.rule({name}) "
        f'(the same arguments, returning a Dual), or pass engine="torch" or engine="finite-difference" to dual.jvp.'
    )


def unpack(x: Any) -> tuple[Any, Any]:
    """Return `(value, tangent)` of a `Dual`, and `(x, None)` of anything else."""
    return (x.value, x.tangent) if isinstance(x, Dual) else (x, None)


def tangent_of(x: Any) -> Any:
    """Return the tangent of `x`, `None` where it has none."""
    return x.tangent if isinstance(x, Dual) else None


def tangent_or_zero(x: Any) -> Any:
    """Return the tangent of `x`; zeros of its shape, or 0 for a number, where it has none."""
    found = tangent_of(x)
    if found is not None:
        return found
    x = values_of(x)
    return torch.zeros_like(x) if isinstance(x, Tensor) else 0.0


def values_of(x: Any) -> Any:
    """Replace each `Dual` in `x`, also in lists, plain tuples (not named ones) and dictionaries, by its value."""
    if isinstance(x, Dual):
        return x.value
    if isinstance(x, list):
        return [values_of(a) for a in x]
    if type(x) is tuple:
        return tuple([values_of(a) for a in x])
    if isinstance(x, dict):
        return {k: values_of(a) for k, a in x.items()}
    return x


def pairs_of(x: Any) -> Any:
    """Replace each plain tensor that a `Dual` was written into, also in lists, tuples and dictionaries, by its pair."""
    if isinstance(x, Tensor):
        return x.as_pair() if type(x) is not Tensor and hasattr(type(x), "as_pair") else x  # type: ignore
    if type(x) in (list, tuple):
        return type(x)([pairs_of(a) for a in x])
    return {k: pairs_of(a) for k, a in x.items()} if type(x) is dict else x


def first_dual(x: Any) -> Dual | None:
    """Return the first `Dual` with a tangent in `x`, `None` if there is none."""
    if isinstance(x, Dual):
        return None if x.tangent is None else x
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        for a in x:
            found = first_dual(a)
            if found is not None:
                return found
    return None


def paired(value: Any, tangent: Any, detached: bool) -> Any:
    """Pair a value with its tangent, broadcast and cast to it; integers and a missing tangent stay plain.

    Sequences are paired entry by entry, and keep their (named) type.
    """
    if isinstance(value, Tensor):
        if tangent is None or not (value.is_floating_point() or value.is_complex()):
            return value
        tangent = tangent if tangent.dtype == value.dtype else _cast(tangent, value)
        tangent = tangent if tangent.shape == value.shape else tangent.expand(value.shape)
        return Dual(value, tangent, detached)
    pairs = [paired(v, t, detached) for v, t in zip(value, tangent, strict=True)]
    return like_sequence(value, pairs)


def _cast(tangent: Tensor, value: Tensor) -> Tensor:
    if tangent.is_complex() and not value.is_complex():
        raise NotImplementedError("a real function of a complex number has no forward-mode rule for it here.")
    return tangent.to(value.dtype)


def like_sequence(like: Any, entries: list[Any]) -> Any:
    """A list, a tuple, or the named result (`torch.return_types.sort`) of the type of `like`."""
    if isinstance(like, list):
        return entries
    return tuple(entries) if type(like) is tuple else type(like)(entries)


def add_handler(function: Any, handler: Callable[..., Any]) -> None:
    """Register the handler of a torch function."""
    if isinstance(function, FunctionType) and function.__qualname__.startswith("Tensor."):
        METHODS[function.__name__] = handler
    else:
        TABLE[function] = handler


def look_up(function: Any) -> Any:
    """Return the handler of a torch function, or `None`."""
    handler = TABLE.get(function)
    return METHODS.get(getattr(function, "__name__", "")) if handler is None else handler


def rule(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function below carries a `Dual` through the torch functions named.

    It takes the arguments of the torch function, some of them a `Dual`, and returns a `Dual` (or a tensor, for no
    tangent). Operations between `Dual`s may be used in it.

    >>> @rule(torch.special.i0)
    ... def _(x: Dual) -> Dual:
    ...     return Dual(torch.special.i0(x.value), x.tangent * torch.special.i1(x.value))
    """

    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **kwargs: Any) -> Any:
            found = first_dual((args, kwargs))
            out = handler(*args, **kwargs)
            if found is not None and found.detached and isinstance(out, Dual) and not out.detached:
                return paired(out.value, None if out.tangent is None else out.tangent.detach(), True)
            return out

        for function in functions:
            add_handler(function, checked)
        return handler

    return register


def composite(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a function written in operations that have rules themselves."""

    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            add_handler(function, handler)
        return handler

    return register


def tangent_rule(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the value is the torch function's own; the rule below returns the tangent alone.

    The rule is called as `rule(value, *arguments)`, only if an argument has a tangent, and returns `None` for zero. For
    detached tangents it runs under `torch.no_grad`.
    """

    def register(derivative: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(derivative).parameters)
        for function in functions:
            handler = _with_value_of(function, derivative)
            add_handler(function, _out_of_place(handler, names.index("inplace") - 1) if "inplace" in names else handler)
        return derivative

    return register


def _with_value_of(function: Any, derivative: Callable[..., Any]) -> Callable[..., Any]:
    def handler(*args: Any, **kwargs: Any) -> Any:
        found = first_dual((args, kwargs))
        value = function(*values_of(args), **values_of(kwargs))
        if found is None or (isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())):
            return value
        return paired(value, run_tangent(found.detached, derivative, value, *args, **kwargs), found.detached)

    return handler


def _out_of_place(function: Any, position: int) -> Callable[..., Any]:
    """A handler that computes out of place, and writes the result into the `Dual` if the argument `inplace` is true."""

    def handler(x: Any, *args: Any, inplace: bool = False, **kwargs: Any) -> Any:
        inplace = inplace or (len(args) >= position and bool(args[position - 1]))
        out = function(x, *args[: position - 1], **kwargs)
        return rebind(x, out) if inplace else out

    return handler


def rebind(x: Any, out: Any) -> Any:
    """Give a `Dual` the result of an operation in place, in its own type; its old tensors stay as they are."""
    if not isinstance(x, Dual):
        return out
    value, tangent = unpack(out)
    if value.shape != x.value.shape or (value.is_complex() and not x.value.is_complex()):
        raise NotImplementedError(
            f"an operation in place on a Dual of shape {tuple(x.value.shape)} and {x.value.dtype} has a result of "
            f"shape {tuple(value.shape)} and {value.dtype}, which it has no place for: write it out of place."
        )
    if value.dtype != x.value.dtype:
        value, tangent = value.to(x.value.dtype), None if tangent is None else tangent.to(x.value.dtype)
    if x.shared is None:
        x.value, x.tangent = value, tangent
    else:
        x.shared.write(x, value, tangent)
    return x


class NeedsGraph(NotImplementedError):
    """Raised where a gradient inside a network meets tangents without a graph: `jvp` begins anew, with one."""

    def __init__(self) -> None:
        super().__init__("a gradient inside a network needs tangents with a graph: pass detach_tangent=False.")


def run_tangent(detached: bool, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that computes a tangent, under `torch.no_grad` if tangents are detached."""
    if detached:
        with torch.no_grad():
            return function(*args, **kwargs)
    return function(*args, **kwargs)


def linear_in_first(*functions: Any) -> None:
    """Register functions that are linear in their first argument: the tangent goes through the same call."""
    for function in functions:
        add_handler(function, _with_value_of(function, _again(function)))


def _again(function: Any) -> Callable[..., Any]:
    def derivative(value: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        tangent = tangent_of(x)
        return None if tangent is None else function(tangent, *values_of(args), **values_of(kwargs))

    return derivative


def without_tangent(*functions: Any) -> None:
    """Register functions whose result has no tangent: comparisons, sizes, signs, fresh tensors."""
    for function in functions:
        add_handler(function, _values_only(function))


def _values_only(function: Any) -> Callable[..., Any]:
    def handler(*args: Any, **kwargs: Any) -> Any:
        return function(*values_of(args), **values_of(kwargs))

    return handler


def named(*names: str) -> list[Any]:
    """All functions of these names in `torch`, `torch.Tensor`, `torch.nn.functional` and `torch.special`."""
    homes = (torch.Tensor, torch, torch.nn.functional, torch.special)
    found = [
        getattr(home, name)
        for name in names
        for home in (homes[:1] if name.startswith("__") else homes)
        if callable(getattr(home, name, None))
    ]
    assert found, names
    return found
