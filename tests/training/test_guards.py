"""What guards a run: norms that are counted, requests to stop, and one run to a folder."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from flowmaps.training.guards import (
    MAX_UNREAD_NORMS,
    MEMORY,
    SPIKE,
    Fault,
    Guard,
    Request,
    clearest,
    is_held,
    lock,
    signals,
)

NAN, INF = math.nan, math.inf


def watched(norms: Sequence[float], *, late: bool = False) -> Guard:
    """A guard that has seen norms, each read at once or all of them late."""
    guard = Guard()
    for number, norm in enumerate(norms, 1):
        guard.see(number, torch.tensor(norm))
        if not late:
            guard.read_norms()
    guard.read_norms()
    return guard


# norms ---------------------------------------------------------------------------------------------------------------

COUNTED = [
    ([], 0, 0),
    ([1.0, 2.0], 0, 0),
    ([1.0, NAN, 2.0], 1, 0),
    ([NAN, INF, 2.0, NAN, -INF, NAN], 5, 3),
    ([0.0, NAN, NAN, 0.0], 2, 0),  # a gradient of zero is finite
]


@pytest.mark.parametrize("norms, skipped, row", COUNTED)
def test_steps_without_a_finite_gradient_are_counted(norms: list[float], skipped: int, row: int):
    guard = watched(norms)
    assert (guard.skipped, guard.consecutive_skips) == (skipped, row)
    assert norms == [] or guard.norm == norms[-1] or math.isnan(norms[-1])


def test_a_spike_is_a_norm_far_above_the_usual():
    """Not one while there is no usual yet; a spike hardly changes what is usual, a new level in time becomes it."""
    usual = [2.0] * MEMORY
    assert watched([2.0, 100.0, *usual]).spikes == []
    assert watched([*usual, 2.0 * SPIKE * 0.99]).spikes == []
    assert watched([*usual, 2.0 * SPIKE * 1.01]).spikes == [(MEMORY + 1, pytest.approx(2.0 * SPIKE * 1.01))]
    assert [step for step, _ in watched([*usual, 100.0, 2.0, 100.0, NAN, 100.0]).spikes] == [101, 103, 105]
    risen = watched([*usual, *[100.0] * 3 * MEMORY])
    assert 0 < len(risen.spikes) < MEMORY
    assert risen.level == pytest.approx(math.log(100.0), abs=0.3)


def test_the_usual_norm_is_a_geometric_mean():
    guard = watched([1.0, 4.0, NAN, 16.0])
    assert guard.level == pytest.approx(math.log(4.0))
    assert guard.seen == 3


def test_spikes_are_taken_once():
    guard = watched([2.0] * MEMORY + [1000.0])
    assert guard.take_spikes() == [(MEMORY + 1, 1000.0)]
    assert guard.take_spikes() == []


@pytest.mark.parametrize("number", [3, MAX_UNREAD_NORMS - 1, MAX_UNREAD_NORMS, 2 * MAX_UNREAD_NORMS + 7])
def test_norms_that_are_read_late_count_the_same(number: int):
    rng = torch.Generator().manual_seed(number)
    norms = torch.exp(3 * torch.randn(number, generator=rng))
    norms[torch.rand(number, generator=rng) < 0.2] = NAN
    norms[-2:] = INF
    soon, late = watched(norms.tolist()), watched(norms.tolist(), late=True)
    assert late.state() == soon.state()
    assert late.spikes == soon.spikes
    assert soon.consecutive_skips >= 2


def test_what_has_counted_goes_on_counting():
    norms = [2.0] * 80 + [NAN] + [3.0] * 40 + [100.0, NAN, NAN]
    whole, first, rest = watched(norms), watched(norms[:90]), Guard()
    rest.restore(first.state())
    for number, norm in enumerate(norms[90:], 91):
        rest.see(number, torch.tensor(norm))
    assert rest.state() == whole.state()
    assert rest.spikes == whole.spikes != []


# requests to stop ----------------------------------------------------------------------------------------------------


def test_one_process_stops_as_it_wishes():
    request = Request()
    assert [request(wish) for wish in (False, True, False)] == [False, True, False]


@pytest.fixture
def handlers() -> Iterator[dict[signal.Signals, Any]]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_asks_and_a_late_ctrl_c_interrupts(
    name: str, handlers: dict[signal.Signals, Any], monkeypatch: pytest.MonkeyPatch
):
    """What a launcher sends again at once is the same wish, and so is any other SIGTERM."""
    now, said = 0.0, list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with signals(said.append) as asked:
        assert asked() is None
        for again in (signal.Signals[name], signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), again)
            assert asked() == name
        now = 2.0
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert asked() == name
    assert said == [f"{name}: training stops after this step; Ctrl-C stops it at once."]
    assert {number: signal.getsignal(number) for number in handlers} == handlers


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>"),  # a second write within a first one
        BrokenPipeError(),  # its reader has ended
        ValueError("I/O operation on closed file."),
    ],
)
def test_a_signal_whose_line_cannot_be_printed_asks_all_the_same(error: Exception, handlers: dict[signal.Signals, Any]):
    def busy(line: str) -> None:
        raise error

    with signals(busy) as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == "SIGTERM"


def test_handlers_are_restored_after_an_error(handlers: dict[signal.Signals, Any]):
    with pytest.raises(OSError, match="disk"), signals(print):
        raise OSError("disk")
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_a_thread_is_asked_nothing(handlers: dict[signal.Signals, Any]):
    """Signals reach the main thread alone, and only there they can be taken."""
    found: list[object] = []

    def work() -> None:
        with signals(print) as asked:
            found.extend([asked(), {number: signal.getsignal(number) for number in handlers}])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None, handlers]


# one run to a folder -------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from flowmaps.training.guards import lock
held = lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_until_it_ends_in_whatever_way(tmp_path: Path):
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(ValueError) as refused:
                lock(tmp_path)
            with pytest.raises(ValueError, match="another run is writing"):  # it is still held after a refusal
                lock(tmp_path)
        finally:
            other.kill()
            other.wait()
    assert str(refused.value) == (
        f"another run is writing into {tmp_path} (process {other.pid} on {socket.gethostname()}): wait for it to end, "
        "or choose another folder."
    )
    held = lock(tmp_path)
    assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
    held.release()
    lock(tmp_path).release()


def test_a_look_at_a_lock_does_not_refuse_who_comes_at_that_moment(tmp_path: Path):
    looking = FileLock(tmp_path / ".lock", thread_local=False)  # as `is_held` has it, for a moment
    looking.acquire(timeout=0)
    assert is_held(tmp_path)
    threading.Timer(0.1, looking.release).start()
    lock(tmp_path).release()


def test_whoever_holds_a_folder_without_a_name_is_unknown(tmp_path: Path):
    held = lock(tmp_path)
    for content in (b"", b"\xff\xfe"):
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(ValueError, match=r"\(unknown\)"):
            lock(tmp_path)
    held.release()


# what is said --------------------------------------------------------------------------------------------------------


def test_the_clause_that_says_most_is_said():
    plain, rows = Fault("the gradient of the weights is not finite"), Fault("diagonal, 1 of 9 rows, s 0-1", 1)
    assert clearest([plain]) == plain
    assert clearest([plain, rows]) == rows
    assert clearest([rows, plain, Fault("diagonal, 5 of 9 rows, s 0-1", 5)]) == rows
