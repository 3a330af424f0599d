"""Views of a `Dual`, which share its memory: what is written into one of them is seen by all.

A `Dual` takes the result of an operation in place as a new pair of tensors; the old ones stay as they are, for the
graphs that need them. The others that share its memory are taken anew from the tensor that all are views of, once the
result is in its place there. Others that nobody has any more are known to be gone, and cost nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .core import Dual, run_tangent, tangent_of, values_of


class Step(NamedTuple):
    """One call that returned a view: the function, its further arguments, and which of several results it was."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | None


class Shared(NamedTuple):
    """Where a `Dual` belongs: the group that shares its memory, and the steps from the group's tensor to it."""

    group: Group
    steps: tuple[Step, ...]

    def write(self, x: Dual, value: Tensor, tangent: Tensor | None) -> None:
        """Give `x` a new value and tangent, and its part of them to all others that share its memory."""
        if self.group.in_place:
            _write_in_place(x, value, tangent)
            return
        x.value, x.tangent = value, tangent
        if self.group.others(x):
            self.group.take(value, tangent, self.steps)
            self.group.tell(x)
        else:
            x.shared = None


class Group:
    """A tensor, its tangent, and weak references to all that are views of it.

    Args:
        x: the first member, the tensor that all others are views of.
        in_place: whether writes go into the memory of the tensors themselves.
    """

    def __init__(self, x: Dual, in_place: bool = False) -> None:
        self.value, self.tangent, self.detached = x.value, x.tangent, x.detached
        self.in_place = in_place
        self.members: list[tuple[Any, tuple[Step, ...]]] = [(weakref.ref(x), ())]

    def others(self, x: Dual) -> list[tuple[Any, tuple[Step, ...]]]:
        """The members beside `x` that are still there, each with its steps."""
        found = [(reference(), steps) for reference, steps in self.members]
        return [(y, steps) for y, steps in found if y is not None and y is not x]

    def take(self, value: Tensor, tangent: Tensor | None, steps: tuple[Step, ...]) -> None:
        """Put a result into its place in the tensor that all are views of."""
        if tangent is not None or self.tangent is not None:
            side = torch.zeros_like(value) if tangent is None else tangent
            whole = torch.zeros_like(self.value) if self.tangent is None else self.tangent
            self.tangent = run_tangent(self.detached, _replaced, whole, steps, side)
        self.value = _replaced(self.value, steps, value)

    def tell(self, x: Dual) -> None:
        """Take all other members anew."""
        for y, steps in self.others(x):
            if isinstance(y, Dual):
                y.value, y.tangent = again(self.value, steps), None
                if self.tangent is not None:
                    y.tangent = run_tangent(self.detached, again, self.tangent, steps)
                continue
            if self.tangent is not None and all(step.function is not detached for step in steps):
                raise NotImplementedError(
                    "a Dual without a tangent got one by an operation in place, and a view of it that was taken before "
                    "has no place for it: take the view afterwards."
                )
            with torch.no_grad():
                y.copy_(again(self.value, steps))


def again(x: Tensor, steps: tuple[Step, ...]) -> Tensor:
    """The view of a plain tensor that the steps lead to."""
    for function, args, kwargs, place in steps:
        out = function(x, *args, **kwargs)
        x = out if place is None else out[place]
    return x


def _replaced(whole: Tensor, steps: tuple[Step, ...], part: Tensor) -> Tensor:
    if not steps:
        return part
    whole = whole.clone()
    view = again(whole, steps)
    if not share_memory(whole, view):
        raise NotImplementedError(
            "an operation in place on a view of a Dual that is laid out otherwise than its copy: write out of place, "
            "y = x + 1 for x += 1."
        )
    view.copy_(part)
    return whole


def _write_in_place(x: Dual, value: Tensor, tangent: Tensor | None) -> None:
    assert x.shared is not None
    side = x.tangent
    if side is None or not share_memory(x.shared.group.tangent, side):
        raise NotImplementedError(
            "an operation in place on a part of a tensor that a Dual was written into, which is laid out otherwise "
            "than its tangent: write into the tensor itself, out[...] = y."
        )
    x.value.copy_(value)
    run_tangent(x.detached, side.copy_, torch.zeros_like(value) if tangent is None else tangent)


def share_memory(x: Any, y: Any) -> bool:
    """Whether `y`, made from `x`, shares its memory; the compiler knows only whether it is a view or `x` itself."""
    if x is y:
        return True
    if torch.compiler.is_compiling():
        return y._base is not None
    return torch._C._is_alias_of(x, y)  # type: ignore[attr-defined]


def detached(x: Tensor) -> Tensor:
    """The step to a plain tensor without a tangent, `x.detach()`."""
    return x.detach()


def link(x: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Note which of the results of `function(x, ...)` share the memory of `x`, and return them."""
    if not isinstance(x, Dual):
        return out
    several = isinstance(out, (tuple, list))
    for place, y in enumerate(out if several else (out,)):
        if y is x or not isinstance(y, (Dual, Tensor)):
            continue
        if function is not detached and not share_memory(x.value, values_of(y)):
            continue
        if tangent_of(y) is None and function is not detached and x.tangent is not None:
            continue  # of another type, such as integers
        if x.shared is None:
            x.shared = Shared(Group(x), ())
        group, steps = x.shared
        steps = (*steps, Step(function, args, kwargs, place if several else None))
        if isinstance(y, Dual):
            y.shared = Shared(group, steps)
        group.members.append((weakref.ref(y), steps))
    return out


def sharing(handler: Any) -> Any:
    """A handler whose results may be views of its first argument."""

    def linked(x: Any, *args: Any, **kwargs: Any) -> Any:
        return link(x, handler, args, kwargs, handler(x, *args, **kwargs))

    return linked
