"""The processes of a run, one a device: who this one is, and what they do together; a single one is a run of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class Lost(ValueError):
    """Another process has ended: there may be no first one to tell of it."""


def together() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, from 0; the first one writes files and talks."""
    return dist.get_rank() if together() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if together() else 1


def on_first(fn: Callable[[], T]) -> T:
    """Call `fn` in the first process alone; all processes get its value, or raise its error: nobody is left waiting."""
    if not together():
        return fn()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = fn()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def all_of(fn: Callable[[], T]) -> list[T]:
    """Call `fn` in each process: the values of all, in the order of their numbers, or the first error of any."""
    if not together():
        return [fn()]
    told: tuple[Any, Any] = (None, None)
    try:
        told = fn(), None
    except Exception as error:
        told = None, error
    every: list[Any] = [None] * ranks()
    dist.all_gather_object(every, told)
    for _, error in every:
        if error is not None:
            raise error
    return [value for value, _ in every]


def in_turn(fn: Callable[[], T]) -> T:
    """Call `fn` in the first process, which may fetch what the others find then, and after it in all others."""
    if not together():
        return fn()
    made: list[T] = []
    on_first(lambda: made.append(fn()))
    all_of(lambda: None if made else made.append(fn()))
    return made[0]


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes."""
    if not together():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / ranks()


def is_lost(error: RuntimeError) -> bool:
    """Whether an error is that of a process which cannot reach another."""
    said = str(error).lower()
    words = ("gloo", "nccl", "connection", "peer")
    return together() and (isinstance(error, dist.DistError) or any(word in said for word in words))
