"""The processes of a run, one for each device: rank, world size, collective calls; also for a single process."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(days=1)
"""Timeout of collective calls, long because one process may download data; a process that ends is noticed at once."""
HEALTH_CHECK_TIMEOUT = timedelta(seconds=20)
"""How long a process that runs may take to answer another that asks whether it does."""
LOST = "another process of the run has ended or cannot be reached"


class LostProcess(ValueError):
    """Another process has ended, perhaps the first one: each process that is left reports it."""


class RaisedByAll(Exception):
    """The cause of an error that all processes raise together: the first one reports it for all."""


class _Outcome(NamedTuple):
    """What a call gave in a process: a value, or an error."""

    value: Any = None
    error: Exception | None = None


_groups: list[Any] = []  # the group of the processes, and a gloo group for Python objects


def number_launched() -> int:
    """How many processes a launcher has begun, joined yet or not; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched() -> bool:
    """Whether a launcher has begun several processes, joined yet or not."""
    return number_launched() > 1


def together() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, from 0; the first one writes files and talks."""
    return dist.get_rank() if together() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if together() else 1


def group() -> Any:
    """The gloo group for Python objects, between CPUs; all processes make the first call of this together."""
    if not _groups or _groups[0] is not dist.group.WORLD:
        _groups[:] = [dist.group.WORLD, dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)]
    return _groups[1]


def leave() -> None:
    """Leave the other processes."""
    _groups.clear()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def on_first(fn: Callable[[], T]) -> T:
    """Call `fn` in the first process alone; all processes return its value, or raise its error."""
    if not together():
        return fn()
    told: list[Any] = [_try(fn) if rank() == 0 else None]
    dist.broadcast_object_list(told, src=0, group=group())
    _raise(told)
    return told[0].value


def all_of(fn: Callable[[], T]) -> list[T]:
    """Call `fn` in each process: the values of all, in the order of their numbers, or the first error of any."""
    if not together():
        return [fn()]
    every: list[Any] = [None] * ranks()
    dist.all_gather_object(every, _try(fn), group=group())
    _raise(every)
    return [told.value for told in every]


def each(fn: Callable[[], T]) -> T:
    """Call `fn` in each process, which keeps its value to itself; all raise the first error of any."""
    kept: list[T] = []
    all_of(lambda: kept.append(fn()))
    return kept[0]


def in_turn(fn: Callable[[], T]) -> T:
    """Call `fn` in the first process, which may fetch what the others find then, and after it in all others."""
    kept: list[T] = []
    on_first(lambda: kept.append(fn()))
    all_of(lambda: None if kept else kept.append(fn()))
    return kept[0]


def _try(fn: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(fn())
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))  # of this process's own making
        except Exception:  # it cannot travel: what it says can
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return _Outcome(error=error)


def _raise(every: list[_Outcome]) -> None:
    for told in every:
        if told.error is not None:
            raise told.error from RaisedByAll()


def full(value: Any) -> torch.Tensor:
    """The full tensor of a tensor that may be sharded (a `DTensor`); every process calls this."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def gather(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Full copies of tensors that may be sharded, on the CPU of the first process; empty in the others.

    Every process calls this. `training.distributed.unsharded` gathers the weights in place instead.
    """
    gathered = {}
    for name, value in tensors.items():
        whole = full(value)
        if rank() == 0:
            gathered[name] = whole.detach().contiguous().to("cpu", copy=True)
    return gathered


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes."""
    if not together():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / ranks()


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def is_lost(error: BaseException) -> bool:
    """Whether an error of this process comes of another process that has ended.

    NCCL and the store of a launcher raise errors of their own for it. Gloo raises the RuntimeError that any mistake in
    a step would raise, so that the other processes are asked whether they run.
    """
    if not launched() or not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, (dist.DistNetworkError, dist.DistBackendError)) or _has_ended()


def _has_ended() -> bool:
    """Whether another process has ended: its connections break at once, where one that is busy lets time run out."""
    if not together() or not _groups:
        return False
    begun = time.monotonic()
    try:
        dist.monitored_barrier(_groups[1], timeout=HEALTH_CHECK_TIMEOUT)
    except RuntimeError:
        return time.monotonic() - begun < HEALTH_CHECK_TIMEOUT.total_seconds()
    return False
