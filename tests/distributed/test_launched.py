"""The program under a launcher: said once, stopped by a signal, and what is left when a process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from amount import named, pairs_of
from shared_runs import command, saved
from together import Failed, Group, free_port

from flowmaps.training.log import read_log

TINY = [
    *("--no-compile", "--device", "cpu", "--network.width", "8", "--network.depth", "2"),
    *("--optimiser.batch", "64", "--optimiser.warmup", "5"),
    *("--checkpoint-every", "10", "--log-every", "10", "--show-every", "0"),
    *("--evaluation.samples", "100", "--evaluation.points", "20", "--evaluation.steps", "1"),
    *("--evaluation.batch", "100", "--evaluation.solver-steps", "2", "--evaluation.solver-tolerance", "0.05"),
]
LONG = ["--teacher-steps", "20", "--steps", "1000000"]
SECONDS = 20.0
"""That the others may take to end when one is killed; they find out by the connection that breaks, at once."""


def until(true: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise Failed(f"no {what} within {seconds:g} s")
        time.sleep(0.05)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has a checkpoint of its map after some steps."""
    return any(name.startswith("map-") and name >= "map-00000020" for name in saved(folder))


def words(folder: Path, *more: str) -> list[str]:
    return ["train", "checkerboard", "--out", str(folder), *TINY, *more]


@pairs_of(every=4, killed=named([1, 0]), shard={"copies": False, "shares": True})
def test_when_a_process_is_killed_the_other_ends_and_says_how_to_go_on(tmp_path: Path, killed: int, shard: bool):
    """By itself, with exit code 2 and one line; the last checkpoint is good."""
    folder, given = tmp_path / "run", LONG + ["--fsdp"] * shard
    with Group(2, command, words(folder, *given), tmp_path / "said") as group:
        until(lambda: has_checkpoint(folder), "checkpoint")
        os.kill(group.processes[killed].pid, signal.SIGKILL)
        begun = time.monotonic()
        (code,) = group.results([1 - killed])
        assert time.monotonic() - begun < SECONDS
    last = saved(folder)[-1]
    assert code == 2
    error = (tmp_path / f"said-{1 - killed}.err").read_text()
    assert error.startswith("flowmaps: another process of the run has ended or cannot be reached (")
    assert error.endswith(f"). The last checkpoint, {last}, is intact: resume from it.\n")
    assert error.count("\n") == 1
    step, log = int(last.split("-")[1]), read_log(folder)
    with Group(1, command, words(folder, *given, "--resume", "--minutes", "0.01"), tmp_path / "again") as group:
        assert group.results() == [0]
    assert "stopped after 0.01 minutes, at step" in (tmp_path / "again-0.out").read_text()
    after = read_log(folder)
    assert int(saved(folder)[-1].split("-")[1]) > step
    steps = [line["step"] for line in after if line["stage"] == "map"]
    assert steps == sorted(set(steps))
    assert after[: step // 10] == log[: step // 10]


def test_a_signal_to_one_process_stops_both_with_a_checkpoint(tmp_path: Path):
    folder = tmp_path / "run"
    with Group(2, command, words(folder, *LONG), tmp_path / "said") as group:
        until(lambda: has_checkpoint(folder), "checkpoint")
        os.kill(group.processes[1].pid, signal.SIGTERM)
        assert group.results() == [0, 0]
    said = [(tmp_path / f"said-{rank}.out").read_text() for rank in range(2)]
    step = int(saved(folder)[-1].split("-")[1])
    assert "stopped after a signal to another process, at step" in said[0]
    assert f"{step:,}" in said[0]
    assert said[0].endswith(" --resume\n")
    assert said[1] == ""


def launch(*given: str) -> subprocess.Popen[str]:
    """`torchrun` with two processes; a session of its own."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    told = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*start, "-m", "flowmaps", *given], stdout=-1, stderr=-1, text=True, env=told,
                            start_new_session=True)  # fmt: skip


def end(started: subprocess.Popen[str]) -> None:
    """Nothing that was launched is left: the launcher's processes are in its session or orphans of it."""
    if started.poll() is None:
        for child in children(started.pid):
            os.kill(child, signal.SIGKILL)
        started.kill()
    started.wait()


def children(parent: int) -> list[int]:
    """The processes that a process has begun, in the order of their numbers."""
    listed = Path(f"/proc/{parent}/task/{parent}/children")
    return sorted(int(word) for word in listed.read_text().split())


@pytest.mark.slow
def test_torchrun_trains_measures_and_says_it_once(tmp_path: Path):
    started = launch(*words(tmp_path / "run", "--teacher-steps", "10", "--steps", "20"))
    try:
        out, error = started.communicate(timeout=150)
    finally:
        end(started)
    assert started.returncode == 0, error
    assert out.count("training checkerboard with lmd") == 1
    assert out.count("on 2 processes") == 1
    assert out.count("report:") == 1
    assert out.count("checkerboard, lmd") == 1
    assert "Traceback" not in error
    for name in ("weights.safetensors", "metrics.json", "report.html", "teacher/weights.safetensors"):
        assert (tmp_path / "run" / name).is_file()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes by /proc")
def test_torchrun_ends_when_one_of_its_processes_is_killed(tmp_path: Path):
    folder = tmp_path / "run"
    started = launch(*words(folder, *LONG))
    try:
        until(lambda: started.poll() is not None or has_checkpoint(folder), "checkpoint")
        ranks = {pid: rank_of(pid) for pid in children(started.pid)}
        (victim,) = [pid for pid, rank in ranks.items() if rank == "1"]
        os.kill(victim, signal.SIGKILL)
        begun = time.monotonic()
        _, error = started.communicate(timeout=3 * SECONDS)
        assert time.monotonic() - begun < 2 * SECONDS
    finally:
        end(started)
    assert started.returncode != 0
    line = f"The last checkpoint, {saved(folder)[-1]}, is intact" in error
    assert line or "exitcode  : -15" in error  # the launcher may end the other one first
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


def rank_of(pid: int) -> str | None:
    """The number that the launcher gave to a process."""
    told = dict(word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in word)
    return told.get("RANK")
