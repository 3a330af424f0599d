"""The shapes of the library: a batch x is `(B, *shape)`, a time t is `(B,)`, one number a row.

`like` is the only place where the two are aligned: a `(B,)` tensor beside a `(B, B)` batch would otherwise broadcast
along the wrong axis without an error.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Batch: TypeAlias = Float[Tensor, "batch *shape"]
Time: TypeAlias = Float[Tensor, "batch"]
Condition: TypeAlias = Any
"""What a network is conditioned on: `None`, a tensor of labels `(B,)` or of numbers `(B, ...)`, `Conditions`, a
`GuidedCondition`, or a tree (dict, tuple, list, dataclass) of tensors whose first axis is the batch."""
Field: TypeAlias = Callable[..., Tensor]
"""A velocity field `(x, t, cond=None) -> like x`."""


class Conditions(NamedTuple):
    """Labels and numbers together, for a network that is conditioned on both.

    `label` is `(B,)` integers, `numbers` is `(B, D)`; a row of NaN has no numbers, as the label `classes` is no label.
    """

    label: Any
    numbers: Any


class GuidedCondition(NamedTuple):
    """A condition with a guidance weight of its own for each row, for a network that takes the weight as an input.

    `cond` is any condition, `weight` is `(B,)`; 1 is no guidance.
    """

    cond: Any
    weight: Tensor


def label_of(cond: Condition) -> Any:
    """The condition without the guidance weight."""
    return cond.cond if isinstance(cond, GuidedCondition) else cond


def label_and_numbers(cond: Condition) -> tuple[Any, Any]:
    """The labels and the numbers `(B, D)` of a condition; `None` for what it has not."""
    cond = label_of(cond)
    if isinstance(cond, Conditions):
        return cond.label, cond.numbers
    if isinstance(cond, Tensor) and cond.ndim == 2 and cond.is_floating_point():
        return None, cond
    return cond, None


def condition_of(label: Any, numbers: Any) -> Condition:
    """The condition of labels and numbers, either of which may be `None`: what `label_and_numbers` takes apart."""
    if numbers is None:
        return label
    return numbers if label is None else Conditions(label, numbers)


def on_each(cond: Condition, fn: Callable[[Tensor], Any]) -> Any:
    """Apply a function to each tensor of a condition; a dict, tuple, list or dataclass stays one of its kind.

    Raises:
        ValueError: something in the condition is neither a tensor nor a tree of tensors.
    """
    if cond is None:
        return None
    if isinstance(cond, Tensor):
        return fn(cond)
    if isinstance(cond, MutableMapping):
        changed = {name: on_each(value, fn) for name, value in cond.items()}
        if type(cond) is dict:
            return changed
        other = copy.copy(cond)
        other.update(changed)
        return other
    if isinstance(cond, (tuple, list)):
        values = [on_each(value, fn) for value in cond]
        return type(cond)(*values) if hasattr(cond, "_fields") else type(cond)(values)
    if dataclasses.is_dataclass(cond) and not isinstance(cond, type):
        own = [field.name for field in dataclasses.fields(cond) if field.init]
        return dataclasses.replace(cond, **{name: on_each(getattr(cond, name), fn) for name in own})
    raise ValueError(
        f"a condition is a tensor, or a dict, tuple, list or dataclass of such, got a {type(cond).__name__}: "
        "cond=torch.as_tensor(labels) makes a tensor of it."
    )


def on_pairs(cond: Condition, other: Condition, fn: Callable[[Tensor, Tensor], Any]) -> Any:
    """Apply a function to each tensor of a condition and the tensor in its place in another one like it.

    Raises:
        ValueError: the other one is no such tree.
    """
    try:
        found = iter([fn(*pair) for pair in _pairs(cond, other)])
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"two conditions must have the same structure and names ({type(error).__name__}: {error})."
        ) from None
    return on_each(cond, lambda _: next(found))


def _pairs(cond: Condition, other: Condition) -> Iterator[tuple[Tensor, Tensor]]:
    """In the order of `on_each`."""
    if isinstance(cond, Tensor):
        if not isinstance(other, Tensor):
            raise TypeError(f"a tensor beside a {type(other).__name__}")
        yield cond, other
    elif isinstance(cond, Mapping):
        if set(cond) != set(other):
            raise KeyError(f"{', '.join(map(str, cond))} beside {', '.join(map(str, other))}")
        for name, value in cond.items():
            yield from _pairs(value, other[name])
    elif isinstance(cond, (tuple, list)):
        for value, beside in zip(cond, other, strict=True):
            yield from _pairs(value, beside)
    elif dataclasses.is_dataclass(cond):
        for field in dataclasses.fields(cond):
            if field.init:
                yield from _pairs(getattr(cond, field.name), getattr(other, field.name))


def check_condition(cond: Condition, x: Tensor, name: str = "x1") -> None:
    """Check that each tensor of a condition has a row for each row of `x`.

    Raises:
        ValueError: one has another number of rows, or something is no tensor.
    """

    def check(value: Tensor) -> Tensor:
        if value.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"a condition needs a row for each of the {len(x)} rows of {name}, got {tuple(value.shape)}."
            )
        return value

    on_each(cond, check)


def check_null(null: Condition, name: str) -> None:
    """Check that each tensor of the condition that means none has one row.

    Raises:
        ValueError: one has several, or something is no tensor.
    """

    def check(value: Tensor) -> Tensor:
        if value.shape[:1] != (1,):
            raise ValueError(
                f"{name} needs a null condition of one row, got {tuple(value.shape)}: pass null[:1], or null[None] "
                "where it has no axis of rows."
            )
        return value

    on_each(null, check)


def like(t: Tensor, x: Tensor) -> Tensor:
    """Return `t` of shape `(B,)` with trailing axes of size one, so that it multiplies a batch `x` row by row.

    >>> like(torch.ones(3), torch.ones(3, 2, 2)).shape
    torch.Size([3, 1, 1])

    Raises:
        ValueError: `t` has another shape, and would broadcast.
    """
    check_shape(t, x)
    return t.reshape(t.shape[:1] + (1,) * (x.ndim - 1))


def per_row(x: Tensor) -> Tensor:
    """Sum over all axes but the first: `(B, *shape) -> (B,)`."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def check_shape(t: Any, x: Any, name: str = "t") -> None:
    """Check that a time is one number for each row of `x`.

    Raises:
        ValueError: the time is no tensor, or not of shape `(B,)`.
    """
    rows = x.shape[0] if x.ndim else 0
    if not hasattr(t, "shape"):
        raise ValueError(f"{name} must be a tensor of shape ({rows},), got {t!r}: use torch.full(({rows},), {t!r}).")
    if tuple(t.shape) != (rows,):
        raise ValueError(
            f"{name} must have shape ({rows},), one time for each row of x {tuple(x.shape)}, got {tuple(t.shape)}: "
            f"use {name}.expand({rows}) for a single time."
        )


def check_time(t: Any, x: Tensor, name: str = "t") -> None:
    """Check that a time is one number in [0, 1] for each row of `x`.

    The values are checked on the CPU and outside the compiler only, where this needs no synchronisation.

    Raises:
        ValueError: the time is no tensor, not of shape `(B,)`, not floating point, or leaves [0, 1].
    """
    check_shape(t, x, name)
    if not t.dtype.is_floating_point:
        raise ValueError(f"{name} must be floating point, got {t.dtype}: use {name}.to(x.dtype).")
    if torch.compiler.is_compiling() or not isinstance(t, Tensor) or t.device.type != "cpu":
        return
    if len(t) and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(
            f"{name} must lie in [0, 1] (0 is noise, 1 is data), got values from {float(t.min()):.6g} to "
            f"{float(t.max()):.6g}: rescale the times, or clamp them."
        )
