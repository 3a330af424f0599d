"""What guards a run: steps without a finite gradient, spikes, signals that ask it to stop, two runs into one folder."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor

from ..system.processes import group, on_first, together
from .failures import writing

SPIKE = 10.0  # times the usual norm
MEMORY = 100  # steps over which the usual norm is averaged
MAX_UNREAD_NORMS = 256  # that wait on their device
SECOND_SIGNAL_SECONDS = 1.0  # a SIGINT within this time of the first signal is ignored as the launcher's repeat
LOCK = ".lock"
PATIENCE = 0.5  # seconds for which a lock is waited for, which another may have that only looks whether it is held


class Guard:
    """Watches the norms of gradients, which stay on their device until `read_norms` reads them all at once.

    A norm that is not finite is a step that was skipped; one of `SPIKE` times the usual is a spike. The usual norm is
    the geometric mean over some `MEMORY` steps.

    Attributes:
        skipped: number of steps skipped so far, because their gradient was not finite.
        consecutive_skips: number of steps skipped one after the other, up to the last step.
        spikes: steps and norms of the spikes since the last `take_spikes`.
        norm: the last norm that was read.
    """

    def __init__(self) -> None:
        self.skipped, self.consecutive_skips, self.seen, self.level = 0, 0, 0, 0.0
        self.spikes: list[tuple[int, float]] = []
        self.norm = math.nan
        self._waiting: list[tuple[int, Tensor]] = []

    def see(self, step: int, norm: Tensor) -> None:
        """The norm of the gradient of a step, before it was clipped."""
        self._waiting.append((step, norm))
        if len(self._waiting) >= MAX_UNREAD_NORMS:
            self.read_norms()

    def read_norms(self) -> None:
        """Read the norms that were seen, which waits for the device."""
        if not self._waiting:
            return
        norms = [norm for _, norm in self._waiting]
        norms = torch.stack(norms).tolist() if len(norms) > 1 else [norms[0].item()]
        for (step, _), norm in zip(self._waiting, norms, strict=True):
            self._count(step, norm)
        self._waiting.clear()

    def _count(self, step: int, norm: float) -> None:
        self.norm = norm
        if not math.isfinite(norm):
            self.skipped, self.consecutive_skips = self.skipped + 1, self.consecutive_skips + 1
            return
        self.consecutive_skips = 0
        height = math.log(max(norm, 1e-30))
        if self.seen >= MEMORY and height > self.level + math.log(SPIKE):
            self.spikes.append((step, norm))
        self.seen += 1
        self.level += (height - self.level) / min(self.seen, MEMORY)

    def take_spikes(self) -> list[tuple[int, float]]:
        """The spikes since the last call."""
        taken, self.spikes = self.spikes, []
        return taken

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self.read_norms()
        kept = {"skipped": self.skipped, "row": self.consecutive_skips, "seen": self.seen, "level": self.level}
        return kept | {"spikes": list(self.spikes)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.skipped, self.consecutive_skips, self.seen = (int(state[key]) for key in ("skipped", "row", "seen"))
        self.level, self.spikes = float(state["level"]), [(int(step), float(norm)) for step, norm in state["spikes"]]


class Request:
    """A request to stop, on which all processes act after the same step.

    Call it once a step with this process's request; all get the answer one step later, without waiting.
    """

    def __init__(self) -> None:
        self._group = group() if together() else None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None

    def __call__(self, wish: bool) -> bool:
        """Whether to stop now."""
        if self._group is None:
            return wish
        asked = False
        if self._work is not None:
            self._work.wait()
            asked = bool(self._flag.item())
        self._flag = torch.tensor([int(wish)], dtype=torch.int32)
        self._work = None if asked else dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)
        return asked


@contextmanager
def signals(say: Callable[[str], None]) -> Iterator[Callable[[], str | None]]:
    """Context in which SIGINT and SIGTERM request a stop; yields a function that returns the first signal's name.

    Args:
        say: prints a line, once, at the first signal.
    """
    asked: list[tuple[str, float]] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def ask(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # a later Ctrl-C is the user's own, pressed again
        if asked and number == signal.SIGINT and now - asked[0][1] > SECOND_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        asked.append((signal.Signals(number).name, now))
        if len(asked) == 1:
            with suppress(Exception):  # a stream that is closed, or was being written to when the signal came
                say(f"{asked[0][0]}: training stops after this step; Ctrl-C stops it at once.")

    for number in numbers:
        signal.signal(number, ask)
    failed = True
    try:
        yield lambda: asked[0][0] if asked else None
        failed = False
    finally:
        if not (failed and together()):  # a launcher that ends the others too must not cut off what they have to say
            for number, handler in before.items():
                signal.signal(number, handler)


def try_lock(path: Path, patience: float = 0.0) -> FileLock | None:
    """Hold a file for this process, until it releases the lock or ends, however it ends.

    Args:
        path: of the lock.
        patience: seconds to wait for it.

    Returns:
        The lock; `None` where another process holds it.

    Raises:
        ValueError: the path leads elsewhere.
    """
    refuse_link(path)
    file_lock = FileLock(path)
    try:
        file_lock.acquire(timeout=patience)
    except Timeout:
        return None
    path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    return file_lock


def lock(folder: Path) -> FileLock:
    """Hold a folder for this process, until it releases the lock or ends, however it ends.

    Raises:
        ValueError: another process holds it, or the lock leads elsewhere.
    """
    file_lock = try_lock(folder / LOCK, PATIENCE)
    if file_lock is None:
        raise ValueError(
            f"another run is writing into {folder} ({holder(folder / LOCK)}): wait for it to end, or choose another "
            "folder."
        )
    return file_lock


def is_held(folder: Path) -> bool:
    """Whether another process holds a folder; nothing is written, but for the empty file of the lock that is there."""
    return is_locked(folder / LOCK)


def is_locked(path: Path) -> bool:
    """Whether another process, or another lock of this one, holds a file; nothing is written into it."""
    if not path.is_file() or path.is_symlink():
        return False
    try:
        FileLock(path).acquire(timeout=PATIENCE).lock.release()
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written
        return False
    return False


class FolderLock:
    """The lock of a training's folder, for all of its processes; the first one holds it.

    Args:
        folder: the folder; `None` where there is nothing to lock.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder, self._held, self._kept = folder, list[FileLock](), False
        self._locked = False  # in all processes

    def acquire(self) -> None:
        """Lock the folder, unless it is locked already.

        Raises:
            ValueError: another process has locked it, or it cannot be written.
        """
        if self.folder is None or self._locked:
            return
        folder = self.folder
        with writing(folder):
            on_first(lambda: self._held.append(lock(folder)))
        self._locked = True

    def release(self) -> None:
        """Give the lock back; nothing happens in the context of `kept`."""
        if self._kept:
            return
        while self._held:
            self._held.pop().release()
        self._locked = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Context that keeps the lock to its end, once it is acquired."""
        self._kept = True
        try:
            yield
        finally:
            self._kept = False
            self.release()


def refuse_link(path: Path) -> None:
    """Refuse to write through a link, which in a folder from elsewhere may lead anywhere.

    Raises:
        ValueError: the path is one.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link, through which nothing is written: remove it.")


def holder(path: Path) -> str:
    """The process that has locked a file, in words."""
    try:
        return path.read_text(encoding="utf-8").strip()[:200] or "unknown"
    except (OSError, UnicodeDecodeError):
        return "unknown"


class Fault(NamedTuple):
    """Where a loss or its gradient is not finite, in words, and in how many rows where rows are at fault."""

    words: str
    rows: int = 0


def find_fault(evaluate: Callable[[Any], Any], draw: Any) -> Fault:
    """Where a loss or its gradient is not finite: the term, and the region of (s, t) of its rows.

    Args:
        evaluate: the objective's, of weights that are all here.
        draw: a `RandomInputs`, as of the last step.

    Returns:
        Words such as "lagrangian, 3 of 64 rows, s 0.12-0.30, t 0.91-0.99", and the number of rows.
    """
    leaves = draw._replace(x0=draw.x0.detach().requires_grad_(), x1=draw.x1.detach().requires_grad_())
    with torch.enable_grad():
        loss = evaluate(leaves)
        slopes = torch.autograd.grad(loss.value, (leaves.x0, leaves.x1), allow_unused=True)
    bad = {name: ~part.isfinite() for name, part in loss.parts.items()}
    found = [f"{name}, {_region(rows, draw)}" for name, rows in bad.items() if bool(rows.any())]
    if found:
        return Fault("; ".join(found), max(int(rows.sum()) for rows in bad.values()))
    finite = [slope.flatten(1).isfinite().all(1) for slope in slopes if slope is not None]
    rows = ~torch.stack(finite).all(0) if finite else torch.zeros(len(draw.s), dtype=torch.bool)
    if not bool(rows.any()):
        return Fault("the loss is finite in every row, the gradient of the weights is not")
    terms = [name for name, part in loss.parts.items() if bool((part[rows] != 0).any())]
    return Fault(f"the gradient of {' + '.join(terms) or 'the loss'}, {_region(rows, draw)}", int(rows.sum()))


def _region(rows: Tensor, draw: Any) -> str:
    s, t = draw.s[rows], draw.t[rows]
    span = ", ".join(f"{name} {float(v.min()):.2f}-{float(v.max()):.2f}" for name, v in (("s", s), ("t", t)))
    return f"{int(rows.sum())} of {len(rows)} rows, {span}"


def clearest(faults: Sequence[Fault]) -> Fault:
    """The first of several faults that names rows; the first of all where none does."""
    return max(faults, key=lambda fault: fault.rows > 0)
