"""A full disk, a read-only or vanished folder, signals, a second run: each ends with a message and nothing is lost."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rights import without_override
from run_cases import TINY

import flowmaps as fm
from flowmaps.runs.recipes import Network
from flowmaps.runs.run import Run
from flowmaps.storage import checkpoints, models
from flowmaps.training.failures import CHECKPOINTS

RECIPE = replace(TINY, method="lsd", steps=20, teacher_steps=20, checkpoint_every=10, log_every=5,
                 network=Network(width=32, depth=3))  # fmt: skip
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
    return list(models.load(folder).state_dict().values())


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


def fill(folder: Path) -> None:
    """Use up the disk to the last byte."""
    with (folder.parent / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


FULL = """
import shutil, sys
from pathlib import Path
from test_bad_luck import CHECKPOINTS, RECIPE, Run, checkpoints, fill, unlucky

disk, left = Path(sys.argv[1]), Path(sys.argv[2])
for at in map(int, sys.argv[3:]):
    folder = disk / "run"
    print(unlucky(folder, at, fill))
    print(checkpoints.find(folder / CHECKPOINTS))
    (disk / "filler").unlink()
    for _ in Run.open(RECIPE, folder, resume=True).train():
        pass
    shutil.copytree(folder, left / str(at))
    shutil.rmtree(folder)
"""


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path, expected: list[torch.Tensor]):
    """One of half a megabyte, mounted for a process alone; a checkpoint is the next to be written, or a line of the
    log."""
    disk, cases = tmp_path / "disk", {19: "map-00000010", 24: "map-00000020"}
    disk.mkdir()
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=512k none {disk}"
    if not shutil.which("unshare") or subprocess.run([*alone, mount], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here: unshare is missing, or not allowed")
    words = shlex.join([sys.executable, "-c", FULL, str(disk), str(tmp_path), *map(str, cases)])
    there = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*alone, f"{mount} && {words}"], capture_output=True, text=True, env=there, timeout=300)
    assert not done.returncode, done.stderr
    lines = iter(done.stdout.splitlines())
    for (at, name), said, found in zip(cases.items(), lines, lines, strict=True):
        assert "No space left on device" in said
        assert f"{name}, is intact" in said
        assert "resume" in said
        assert found == name
        assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path / str(at)), expected, strict=True))


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
    """Take away the permission to write."""
    for path in (folder, folder / CHECKPOINTS):
        path.chmod(0o555)
    (folder / "log.jsonl").chmod(0o444)


def permit(folder: Path) -> None:
    """Give it back."""
    for path in (folder, folder / CHECKPOINTS):
        path.chmod(0o755)
    (folder / "log.jsonl").chmod(0o644)


@pytest.mark.parametrize("at", [12, 19])  # before a line of the log, before a checkpoint
def test_a_folder_that_may_not_be_written(tmp_path: Path, expected: list[torch.Tensor], at: int):
    """Wherever it is: here under a folder that other users may not enter."""
    tmp_path.chmod(0o700)
    folder = tmp_path / "run"
    with without_override():
        said = unlucky(folder, at, forbid)
    permit(folder)
    assert "Permission denied" in said
    assert "map-00000010, is intact" in said
    goes_on(folder, expected)


def test_a_folder_whose_checkpoints_may_not_be_read(tmp_path: Path, expected: list[torch.Tensor]):
    """There may be one: it is not said that none was saved."""
    folder = tmp_path / "run"

    def hide(folder: Path) -> None:
        forbid(folder)
        (folder / CHECKPOINTS).chmod(0)

    with without_override():
        said = unlucky(folder, 12, hide)
    permit(folder)
    assert f"Whether a checkpoint is left cannot be told: {folder / CHECKPOINTS} cannot be read" in said
    assert "No checkpoint was saved" not in said
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
         "--evaluation.steps", "1", "--evaluation.solver-tolerance", "0.1", "--device", "cpu"]  # fmt: skip


def signalled(command: list[str], log: Path, number: signal.Signals) -> tuple[str, str, int]:
    """What a command prints that gets a signal once it has a log, and its exit code; it is not left alive."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not log.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            pytest.fail(f"it ended before it was told to: {process.communicate()}")
        assert log.exists(), "no step within a minute"
        process.send_signal(number)
        return *process.communicate(timeout=60), process.returncode
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_gives_the_command_to_go_on(tmp_path: Path, number: signal.Signals):
    folder = tmp_path / "a run"  # a name that the command must quote
    command = [sys.executable, "-m", "flowmaps", "train", "checkerboard", "--out", str(folder), *WORDS]
    out, errors, code = signalled(command, folder / "log.jsonl", number)
    assert code == 0, errors
    assert errors == ""
    assert f"stopped after {number.name}" in out
    stage, step = checkpoints.find(folder / CHECKPOINTS).split("-")  # type: ignore[union-attr]
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
        assert run.trainer is not None
        assert run.trainer.stopped
        assert checkpoints.find(folder / CHECKPOINTS) == f"map-{after:08}"
        goes_on(folder, expected)


def test_a_folder_of_fit_that_is_read_only_is_told(tmp_path: Path):
    made = fm.methods.lsd(fm.maps.AverageVelocity(fm.nn.MLP(2, width=8, depth=2)))
    trainer = fm.training.Trainer(made, torch.randn(20, 2), tmp_path, steps=2, say=lambda text: None)
    tmp_path.chmod(0o555)
    with without_override():
        for use in (trainer.resume, lambda: next(iter(trainer))):
            with pytest.raises(ValueError, match=r"cannot be written: Permission denied .*\.lock"):
                use()
    tmp_path.chmod(0o755)
