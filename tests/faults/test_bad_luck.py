"""A full disk, a read-only or vanished folder, signals, a second run: each ends with a message and nothing is lost."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowmaps import checkpoint, snapshots
from flowmaps.recipes import Evaluation, Network, Optimiser, Recipe
from flowmaps.runs import CHECKPOINTS, Run

RECIPE = Recipe(
    name="unlucky",
    data="checkerboard",
    method="lsd",
    steps=20,
    teacher_steps=20,
    compile=False,
    device="cpu",
    checkpoint_every=10,
    log_every=5,
    network=Network(width=32, depth=3),
    optimiser=Optimiser(batch=16, rate=5e-3, warmup=5, ema=0.9),
    evaluation=Evaluation(samples=100, points=10),
)
Mishap = Callable[[Path], None]


def _train(folder: Path, at: int, mishap: Mishap) -> None:
    for _, step in Run.open(RECIPE, folder, say=lambda _: None).train():
        if step.number == at:
            mishap(folder)


def unlucky(folder: Path, at: int, mishap: Mishap) -> str:
    """What a run says that meets with a mishap after step `at`."""
    with pytest.raises(ValueError) as caught:
        _train(folder, at, mishap)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights(folder: Path) -> list[torch.Tensor]:
    return list(checkpoint.load(folder).state_dict().values())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    folder = tmp_path_factory.mktemp("lucky") / "run"
    for _ in Run.open(RECIPE, folder).train():
        pass
    return weights(folder)


def goes_on(folder: Path, expected: list[torch.Tensor]) -> None:
    """Resume to the end: the same weights as those of a run that had no mishap."""
    for _ in Run.open(RECIPE, folder, resume=True).train():
        pass
    assert all(torch.equal(a, b) for a, b in zip(weights(folder), expected, strict=True))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(folder: Path) -> None:
    """Use up the disk to the last byte."""
    with (folder.parent / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


@pytest.mark.parametrize("at", [19, 24])  # a checkpoint is the next to be written, or a line of the log
def test_a_full_disk(small_disk: Path, expected: list[torch.Tensor], at: int):
    folder = small_disk / "run"
    said = unlucky(folder, at, fill)
    name = "map-00000010" if at == 19 else "map-00000020"
    assert "No space left on device" in said
    assert name in said
    assert "intact" in said
    assert "--resume" in said
    assert snapshots.find(folder / CHECKPOINTS) == name
    (small_disk / "filler").unlink()
    goes_on(folder, expected)


@pytest.mark.parametrize(
    "errno, words", [(28, "No space left"), (30, "Read-only file system"), (5, "Input/output error")]
)
def test_an_error_of_the_disk(
    tmp_path: Path, expected: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch, errno: int, words: str
):
    """As above, where no disk can be mounted: the second checkpoint's rename fails."""
    folder, rename = tmp_path / "run", os.rename

    def fails(source: str | Path, target: str | Path) -> None:
        if str(target).endswith("map-00000020"):
            raise OSError(errno, os.strerror(errno), str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    said = unlucky(folder, 3, lambda _: None)
    monkeypatch.undo()
    assert words in said
    assert "map-00000010, is intact" in said
    goes_on(folder, expected)


def forbid(folder: Path) -> None:
    """Take away the permission to write, and from root the right not to need it."""
    for path in (folder, folder / CHECKPOINTS):
        path.chmod(0o555)
    (folder / "log.jsonl").chmod(0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)


@pytest.mark.parametrize("at", [12, 19])  # before a line of the log, before a checkpoint
def test_a_folder_that_may_not_be_written(tmp_path: Path, expected: list[torch.Tensor], at: int):
    folder = tmp_path / "run"
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    was = os.geteuid()
    try:
        said = unlucky(folder, at, forbid)
    finally:
        os.seteuid(was)
    assert "Permission denied" in said
    assert "map-00000010, is intact" in said
    for path in (folder, folder / CHECKPOINTS):
        path.chmod(0o755)
    (folder / "log.jsonl").chmod(0o644)
    goes_on(folder, expected)


@pytest.mark.parametrize("at", [4, 9, 22])  # before a line of the log, before a checkpoint, after one
def test_a_folder_that_vanishes(tmp_path: Path, at: int):
    said = unlucky(tmp_path / "run", at, shutil.rmtree)
    assert "No such file or directory" in said
    assert str(tmp_path / "run") in said
    assert not (tmp_path / "run").exists()


def test_a_second_run_into_one_folder_is_refused(tmp_path: Path, expected: list[torch.Tensor]):
    folder = tmp_path / "run"
    first = Run.open(RECIPE, folder).train()
    next(first)
    with pytest.raises(
        ValueError, match=rf"another run is writing into .* \(process {os.getpid()} on .*choose another"
    ):
        Run.open(RECIPE, folder, resume=True)
    for _ in first:
        pass
    assert all(torch.equal(a, b) for a, b in zip(weights(folder), expected, strict=True))


# signals, through the command line ------------------------------------------------------------------------------------

WORDS = ["--steps", "3000", "--teacher-steps", "20", "--no-compile", "--optimiser.batch", "16", "--network.width", "8",
         "--log-every", "1", "--checkpoint-every", "100000", "--evaluation.samples", "200", "--evaluation.points", "20",
         "--evaluation.steps", "1", "--evaluation.tolerance", "0.1", "--device", "cpu"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_gives_the_command_to_go_on(tmp_path: Path, number: signal.Signals):
    folder = tmp_path / "a run"  # a name that the command must quote
    command = [sys.executable, "-m", "flowmaps", "train", "checkerboard", "--out", str(folder), *WORDS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (folder / "log.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors == ""
    assert f"stopped after {number.name}" in out
    stage, step = snapshots.find(folder / CHECKPOINTS).split("-")  # type: ignore[union-attr]
    assert f"at step {int(step):,} of {stage}" in out
    again = shlex.split(out.strip().splitlines()[-1])
    assert again[:2] == ["flowmaps", "train"]
    assert again[-1] == "--resume"
    again = [sys.executable, "-m", *again]
    done = subprocess.run(again, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").exists()


def test_stopping_and_going_on_is_the_same_to_the_bit(tmp_path: Path, expected: list[torch.Tensor]):
    """The stop that a signal asks for, after any step."""
    for after in (1, 7, 23):
        folder, asked = tmp_path / str(after), iter(range(1, 100))
        run = Run.open(replace(RECIPE, checkpoint_every=1000), folder)
        for _ in run.train(lambda asked=asked, after=after: next(asked) == after):
            pass
        assert run.stopped
        assert snapshots.find(folder / CHECKPOINTS) == f"map-{after:08}"
        goes_on(folder, expected)
