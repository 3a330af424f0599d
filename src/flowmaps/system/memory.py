"""The most memory that a process has had, and the memory that a computation needs beyond what is there before it.

The latter is the greatest sum of tensors alive at once:

peak = max over time t of the sum over allocations before t of their bytes, less those freed before t
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

try:
    import resource
except ImportError:  # Windows
    resource = None


def high_water(device: torch.device) -> int | None:
    """The most memory that this process has had so far, in bytes: of tensors on a GPU, of the whole process on the CPU.

    Args:
        device: whose memory.

    Returns:
        Bytes; `None` where they are not counted.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def peak(run: Callable[[], object], device: torch.device) -> int | None:
    """Call `run` once and give the peak of the tensors that it allocates, in bytes.

    On CUDA from the counters of the caching allocator, on the CPU from the profiler's record of each allocation: a
    tensor that was there before and is freed meanwhile counts against the peak where its allocation is known.

    Args:
        run: the computation, such as a step of training.
        device: where it runs.

    Returns:
        Bytes, at least 0; `None` on a device that counts nothing.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        run()
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes a line to standard error at each start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        run()
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    sizes = [event.nbytes() for event in events]  # pyright: ignore[reportAttributeAccessIssue]
    return max(accumulate(sizes, initial=0))
