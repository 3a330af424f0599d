"""Faults that strike a save at any of its calls to the file system, and what a checkpoint holds after them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch.distributed as dist
from checkpoint_cases import bits, sharded, state
from torch import Tensor

from flowmaps.storage import checkpoints

CALLS = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir")
OLD, NEW = "map-00000100", "map-00000200"
Hook = Callable[[], None]
States = Callable[[int], dict[str, Tensor]]


@contextmanager
def states(kind: str) -> Iterator[States]:
    """The state of a run by seed: plain, or sharded over one process."""
    if kind == "plain":
        yield state
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield sharded
    dist.destroy_process_group()


class Struck:
    """The calls of a save to the file system: `hook` strikes before one of them, or after half of it if it writes."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, hook: Hook):
        self.left, self.hook, self.at = number, hook, ""
        for name in CALLS:
            patch.setattr(os, name, self._counted(name, getattr(os, name)))
        opened = io.open

        def opening(path: Any, mode: str = "r", *options: Any, **named: Any) -> Any:
            file = opened(path, mode, *options, **named)
            return Writing(file, self) if "w" in mode else file

        patch.setattr(io, "open", opening)

    def strikes(self) -> bool:
        self.left -= 1
        return self.left == 0

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*options: Any, **named: Any) -> Any:
            if self.strikes():
                self.at = name
                self.hook()
            return call(*options, **named)

        return counted


class Writing:
    """A file whose writes are counted."""

    def __init__(self, file: Any, struck: Struck):
        self.file, self.struck = file, struck

    def write(self, content: Any) -> int:
        if self.struck.strikes():
            self.file.write(bytes(content)[: len(bytes(content)) // 2])
            self.file.flush()
            self.struck.hook()
        return self.file.write(content)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def die() -> NoReturn:
    """As if killed: nothing is tidied up, nothing is flushed."""
    os._exit(9)


def finishes_unless_killed(work: Hook, number: int) -> bool:
    """Call `work` in a process that dies at its call of that number to the file system: whether it lived."""
    child = os.fork()
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                Struck(patch, number, die)
                work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 0


def whole(folder: Path, name: str) -> dict[str, Any]:
    """A checkpoint, read, to the bit."""
    return bits(checkpoints.read(folder, name)[0])


def to_the_bit(seed: int) -> dict[str, Any]:
    """What `whole` gives of the state of that seed."""
    return bits(state(seed))
