"""Batches for training: from tensors, a `Source`, or your own iterable of batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..data import Source
from ..shapes import Condition, check_condition, on_each


class FromSource:
    """Batches of a `Source`: a function of the seed and the step alone."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """A batch `(x1, cond)` of `number` rows."""
        return self.source.sample(number, generator)

    def position(self) -> Any:
        """The position in the data for a checkpoint, as JSON; `None` if batches depend on seed and step alone."""
        return None

    def restore(self, position: Any) -> None:
        """Go on from a position."""


def check_rows(x1: Tensor, cond: Condition, dtype: torch.dtype) -> None:
    """Refuse rows that a network of this type cannot take, and conditions of another number of rows.

    Raises:
        ValueError: rows of another shape or type, or a condition without a row for each.
    """
    if x1.ndim < 2 or not x1.is_floating_point() or not len(x1):
        raise ValueError(f"data must be floating-point rows (N, *shape), got {x1.dtype} {tuple(x1.shape)}.")
    if x1.dtype != dtype:
        raise ValueError(f"the data are {x1.dtype}, the weights of the network {dtype}: convert one, data.to({dtype}).")

    check_condition(cond, x1, "data")


def _check_numbers(cond: Tensor) -> None:
    """Refuse rows of numbers that are infinite, or NaN in a part of the row."""
    if not cond.is_floating_point():
        return
    rows = cond.flatten(1) if cond.ndim > 1 else cond[:, None]
    bad = rows.isinf().any(1) | (rows.isnan().any(1) & ~rows.isnan().all(1))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"conditions must be finite, or all NaN in a row for no condition, got NaN or infinity in "
            f"{int(bad.sum()):,} rows, the first of them row {row} (counted from 0): leave these rows out."
        )


class FromRows(FromSource):
    """Rows of tensors, drawn with replacement.

    Args:
        x1: data, `(N, *shape)`, floating-point and finite.
        cond: their conditions, a tree of tensors of N rows; none unless given. A row of numbers is finite, or all NaN
            for no condition.

    Raises:
        ValueError: data or conditions that are not so.
    """

    def __init__(self, x1: Tensor, cond: Condition = None) -> None:
        if not bool(x1.isfinite().all()):
            raise ValueError("data must be finite, got rows with NaN or infinity: leave them out.")
        on_each(cond, _check_numbers)
        self.x1, self.cond = x1.detach(), on_each(cond, Tensor.detach)

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """A batch `(x1, cond)` of `number` rows, drawn with replacement."""
        rows = torch.randint(len(self.x1), (number,), generator=generator, device=self.x1.device)
        return self.x1[rows], on_each(self.cond, lambda value: value[rows])


class FromIterable:
    """Batches of an iterable, such as a `DataLoader`, begun again where it ends.

    A resume is bit-exact if the iterable has `state_dict` and `load_state_dict`, as torchdata's loaders do; if not, it
    begins the iterable again.

    Args:
        data: gives `x1` or `(x1, cond)`; the size of a batch is its own.
        device: where batches are moved.
        dtype: of the network's weights.
        say: prints a line.
    """

    def __init__(
        self, data: Iterable[Any], device: torch.device, dtype: torch.dtype, say: Callable[[str], None] = print
    ) -> None:
        self.data, self.device, self.dtype, self.say = data, device, dtype, say
        self._begun = False
        self._iterator: Iterator[Any] | None = None
        self.exact = hasattr(data, "state_dict") and hasattr(data, "load_state_dict")

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """The next batch `(x1, cond)` of the iterable, of the size that it has."""
        try:
            batch = self._next()
        except StopIteration:
            raise ValueError(
                "the data have no batch any more: give fewer steps, or an iterable that can be begun again, such as a "
                "list or a DataLoader, in the place of an iterator."
                if self._begun
                else "the data are an iterable without a batch: give more rows, or a DataLoader without drop_last."
            ) from None
        self._begun = True
        parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        if not 1 <= len(parts) <= 2 or not isinstance(parts[0], Tensor):
            kinds = ", ".join(type(part).__name__ for part in parts[:4])
            raise ValueError(f"a batch is a tensor x1, or a pair (x1, cond), got {type(batch).__name__} of {kinds}.")
        x1, cond = parts[0], parts[1] if len(parts) == 2 else None
        check_rows(x1, cond, self.dtype)
        return x1.to(self.device), on_each(cond, lambda value: value.to(self.device))

    def _next(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self.data)
        try:
            return next(self._iterator)
        except StopIteration:
            self._iterator = iter(self.data)
            return next(self._iterator)

    def position(self) -> Any:
        """The position in the iterable, as JSON; `None` if it does not say it."""
        if not self.exact:
            return None
        position = self.data.state_dict()  # type: ignore[attr-defined]
        try:
            json.dumps(position)
        except TypeError:
            self.exact = False
            self.say("the state_dict of the data is not JSON-serialisable: a resume begins the data again.")
            return None
        return position

    def restore(self, position: Any) -> None:
        """Go on from a position."""
        if self.exact and position is not None:
            self.data.load_state_dict(position)  # type: ignore[attr-defined]
        else:
            self.say(
                "the data are an iterable without state_dict: it is begun again, and this resume is not bit-exact."
            )


def as_source(
    data: Any, device: torch.device, dtype: torch.dtype, say: Callable[[str], None] = print
) -> FromSource | FromIterable:
    """What a training draws from, on a device; `dtype` is that of the network's weights.

    Raises:
        ValueError: the data are nothing that gives batches, or of another type than the network.
    """
    if isinstance(data, Source):
        return FromSource(data.to(device))
    if isinstance(data, tuple) and any(isinstance(part, Tensor) for part in data) and len(data) != 2:
        raise ValueError(f"data in a tuple are a pair (rows, conditions), got {len(data)} entries.")
    pair = isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor)
    rows, cond = data if pair else (data, None)
    if isinstance(rows, Tensor):
        check_rows(rows, cond, dtype)
        return FromRows(rows.to(device), on_each(cond, lambda value: value.to(device)))
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
        return FromIterable(data, device, dtype, say)
    raise ValueError(
        f"data must be a tensor of rows, a pair (rows, conditions), a Source, or an iterable of batches, got a "
        f"{type(data).__name__}."
    )
