"""Several processes of one computation, as a launcher would start them, on the CPU and with gloo.

They are forked from one process that has imported everything (see conftest.py), which costs that time once.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

CONTEXT = get_context("forkserver")


class Failed(AssertionError):
    """A process did not do what it was asked for."""


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(rank: int, number: int, port: int) -> dict[str, str]:
    """What a launcher tells process `rank` of `number`."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in names.items()}


class Group:
    """Processes that run one function; none of them outlives the `with` that they are used in.

    Args:
        number: how many.
        fn: of a module, so that the processes find it; what it returns is pickled.
        args: the same for all.
        seconds: that all of them may take.

    Attributes:
        processes: in the order of their numbers.
    """

    def __init__(self, number: int, fn: Callable[..., Any], *args: Any, seconds: float = 150.0) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds
        self.processes, self._pipes, port = [], [], free_port()
        for rank in range(number):
            here, there = CONTEXT.Pipe(duplex=False)
            told = environment(rank, number, port) if number > 1 else {}
            self.processes.append(CONTEXT.Process(target=_work, args=(there, told, fn, args), daemon=True))
            self.processes[-1].start()
            there.close()
            self._pipes.append(here)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def results(self, ranks: Iterable[int] | None = None) -> list[Any]:
        """What some of the processes return, all of them unless given.

        Raises:
            Failed: one raised an error, ended without a word, or took too long.
        """
        wanted = list(range(len(self.processes)) if ranks is None else ranks)
        waiting, found = {self._pipes[rank]: rank for rank in wanted}, dict[int, Any]()
        while waiting:
            ready = wait(list(waiting), timeout=max(self.end - time.monotonic(), 0))
            if not ready:
                raise Failed(f"processes {sorted(waiting.values())} took more than {self.seconds:g} s")
            for here in ready:
                rank = waiting.pop(here)
                found[rank] = _said(here, rank)
        return [found[rank] for rank in wanted]


def together(number: int, fn: Callable[..., Any], *args: Any, seconds: float = 150.0) -> list[Any]:
    """What `fn(*args)` returns in each of `number` processes; arguments and errors as of `Group`."""
    with Group(number, fn, *args, seconds=seconds) as group:
        return group.results()


def _said(here: Any, rank: int) -> Any:
    try:
        value, error = here.recv()
    except EOFError:
        raise Failed(f"process {rank} ended without a word") from None
    if error is not None:
        raise Failed(f"process {rank}:\n{error}")
    return value


def _work(there: Connection, told: dict[str, str], fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The life of a process."""
    os.environ.update(told)
    torch.set_num_threads(1)
    try:
        there.send((fn(*args), None))
    except BaseException:
        there.send((None, traceback.format_exc()))
    finally:
        there.close()
        os._exit(0)  # gloo's threads may wait for a process that has failed
