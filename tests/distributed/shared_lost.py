"""What a process does in the tests of processes that end."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from flowmaps.system import processes
from flowmaps.training.distributed import start


def left_by(ends: bool) -> tuple[bool, str, float]:
    """The last process ends or does something else while the others wait for it in the middle of a step."""
    start("cpu")
    processes.on_first(lambda: None)
    processes.HEALTH_CHECK_TIMEOUT = timedelta(seconds=3)
    begun = time.monotonic()
    if processes.rank() == processes.ranks() - 1:
        if ends:
            os._exit(0)
        time.sleep(8)
        return False, "", 0.0
    try:
        if ends:
            dist.all_reduce(torch.ones(3))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    except RuntimeError as error:
        return processes.is_lost(error), processes.first_line(error), time.monotonic() - begun


def mistaken() -> bool:
    """All processes make the same mistake."""
    start("cpu")
    processes.on_first(lambda: None)
    return processes.is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def raising() -> tuple[str, bool]:
    """The first process fails for all."""
    start("cpu")
    try:
        processes.on_first(lambda: int("three"))
    except ValueError as error:
        return str(error), isinstance(error.__cause__, processes.RaisedByAll)
    return "", False
