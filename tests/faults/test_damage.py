"""Whatever happens to a run or its disk, there is a good checkpoint or a plain word, never half of one."""

from __future__ import annotations

import errno
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist
from snapshot_cases import bits, files, plain, shard, state
from torch import Tensor

from flowmaps import snapshots

CALLS = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir")
OLD, NEW = "map-00000100", "map-00000200"
Hook = Callable[[], None]


@pytest.fixture(params=["plain", "sharded"])
def tensors(request: pytest.FixtureRequest) -> Iterator[Callable[[int], dict[str, Tensor]]]:
    """The state of a run by seed: plain, or sharded over one process."""
    if request.param == "plain":
        yield state
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield lambda seed: {name: shard(value) for name, value in state(seed).items()}
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
    read, _ = snapshots.read(folder, name, plain)
    return {key: bits(value) for key, value in read.items()}


def to_the_bit(seed: int) -> dict[str, Any]:
    return {name: bits(value) for name, value in state(seed).items()}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("name, keep, before", [(NEW, 1, {OLD: 1}), (OLD, 1, {OLD: 1}), (OLD, 2, {"map-1": 5, OLD: 1})])
def test_a_run_killed_anywhere_leaves_the_old_checkpoint_or_the_new(
    tmp_path: Path, name: str, keep: int, before: dict[str, int]
):
    for number in range(1, 500):
        folder = tmp_path / str(number) / "checkpoints"
        folder.parent.mkdir()
        for old, seed in before.items():
            snapshots.save(folder, old, state(seed), {"step": 100}, keep=9)
        lived = finishes_unless_killed(
            lambda folder=folder: snapshots.save(folder, name, state(2), {"step": 200}, keep=keep) and None, number
        )
        last = snapshots.find(folder)
        assert last
        assert whole(folder, last) in ([to_the_bit(2)] if lived else [to_the_bit(1), to_the_bit(2)])
        for other in snapshots.names(folder):
            whole(folder, other)
        snapshots.save(folder, "map-00000300", state(3), {"step": 300}, keep=1)
        assert [path.name for path in folder.iterdir()] == ["map-00000300"]
        assert whole(folder, "map-00000300") == to_the_bit(3)
        shutil.rmtree(folder.parent)
        if lived:
            break
    assert 20 < number < 499


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failure_anywhere_is_told_and_leaves_the_old_checkpoint_or_the_new(
    tmp_path: Path, tensors: Callable[[int], dict[str, Tensor]], error: int
):
    def fail() -> NoReturn:
        raise OSError(error, os.strerror(error))

    for number in range(1, 500):
        snapshots.save(tmp_path, OLD, tensors(1), {"step": 100}, keep=1)
        said = None
        with pytest.MonkeyPatch.context() as patch:
            struck = Struck(patch, number, fail)
            try:
                snapshots.save(tmp_path, NEW, tensors(2), {"step": 200}, keep=1)
            except ValueError as refused:
                said = str(refused)
        left = NEW if NEW in snapshots.names(tmp_path) else OLD
        assert whole(tmp_path, left) == to_the_bit(1 if left == OLD else 2)
        assert not (tmp_path / f".{NEW}.part").exists()
        if struck.left > 0:
            break
        if struck.at == "mkdir" and left == NEW:  # of a folder that is there: it is no failure
            continue
        assert said
        assert f"checkpoint {NEW} cannot be saved in {tmp_path}: {os.strerror(error)}; the last one, {left}," in said
        free = "free 1 MB or more" if error == errno.ENOSPC else "make the folder writable, with 1 MB free,"
        assert said.endswith(f"is intact: {free} and go on with --resume.")
        assert "\n" not in said
    assert 15 < number < 499
    assert said is None
    assert [path.name for path in tmp_path.iterdir()] == [NEW]


def test_all_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, tensors: Callable[[int], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
):
    """What outlives a loss of power: files and their folder are synced before the rename, the folder above after it."""
    synced: set[int] = set()
    fsync, rename = os.fsync, os.rename

    def syncing(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def renaming(old: Path, new: Path) -> None:
        assert {os.stat(path).st_ino for path in (old, *old.iterdir())} <= synced
        synced.clear()
        rename(old, new)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    path = snapshots.save(tmp_path / "checkpoints", NEW, tensors(1), {"step": 200}, keep=1)
    assert len(files(path)) == 2
    assert synced == {os.stat(path.parent).st_ino}


def test_one_that_cannot_be_read_now_is_not_deleted(tmp_path: Path):
    """It may be a fault that passes: a save asks for help instead."""
    snapshots.save(tmp_path, OLD, state(1), {"step": 100}, keep=1)
    (tmp_path / OLD / "state.json").unlink()
    (tmp_path / OLD / "state.json").mkdir()
    with pytest.raises(
        ValueError, match=f"checkpoint {NEW} cannot be saved in .*: Is a directory; there is no earlier"
    ):
        snapshots.save(tmp_path, NEW, state(2), {"step": 200}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == [OLD]
    with pytest.raises(ValueError, match=r"state.json cannot be read \(Is a directory\): there is no other checkpoint"):
        snapshots.read(tmp_path, OLD, plain)


def test_an_interruption_of_a_sharded_save_is_one(tmp_path: Path):
    """It comes out of torch wrapped in an exception of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    sharded = {"x": shard(torch.ones(5000))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: interrupt() if os.fstat(handle).st_size > 20_000 else None)
        with pytest.raises(KeyboardInterrupt):
            snapshots.save(tmp_path, NEW, sharded, {"step": 1}, keep=1)
    dist.destroy_process_group()
    assert snapshots.find(tmp_path) is None


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_gone_is_told(tmp_path: Path, again: bool):
    folder = tmp_path / "run" / "checkpoints"
    if again:
        folder.parent.mkdir()
        snapshots.save(folder, OLD, state(1), {"step": 100}, keep=1)
        shutil.rmtree(folder.parent)
    words = f"checkpoint {NEW} cannot be saved in {folder}: No such file or directory; there is no earlier one: make"
    with pytest.raises(ValueError, match=re.escape(words)):
        snapshots.save(folder, NEW, state(2), {"step": 200}, keep=1)
    assert not folder.parent.exists()


def test_a_folder_that_may_not_be_written_or_read_is_told():
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "checkpoints"
        snapshots.save(folder, OLD, state(1), {"step": 100}, keep=1)
        os.chmod(parent, 0o755)
        os.chmod(folder, 0o555)
        user = os.geteuid()
        try:
            if user == 0:  # who may write anywhere
                os.seteuid(65534)
            with pytest.raises(ValueError, match=f"Permission denied; the last one, {OLD}, is intact: make the folder"):
                snapshots.save(folder, NEW, state(2), {"step": 200}, keep=1)
            os.seteuid(user)
            os.chmod(folder, 0)
            os.seteuid(65534 if user == 0 else user)
            with pytest.raises(ValueError, match="Permission denied; the earlier ones cannot be read: make the folder"):
                snapshots.save(folder, NEW, state(2), {"step": 200}, keep=1)
            with pytest.raises(ValueError, match="checkpoints cannot be read: Permission denied; mend that and go on"):
                snapshots.find(folder)
            with pytest.raises(ValueError, match=f"{OLD} cannot be read: Permission denied; mend that and go on with"):
                snapshots.read(folder, OLD, plain)
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o755)
        assert whole(folder, OLD) == to_the_bit(1)


SMALL = """
import subprocess, sys, torch
from pathlib import Path
from flowmaps import snapshots

def said(name, tensors):
    try:
        snapshots.save(folder, name, tensors, {"step": 1}, keep=9)
    except ValueError as error:
        print(error)
    (last,) = snapshots.names(folder)
    kept, _ = snapshots.read(folder, last, lambda name, shape, kind: torch.zeros(shape, dtype=kind))
    print(last, int(kept["x"].max()), [path.name for path in folder.iterdir()])

folder = Path(sys.argv[1]) / "checkpoints"
said("map-00000001", {"x": torch.arange(150_000)})
said("map-00000002", {"x": torch.arange(150_000)})
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
said("map-00000003", {"x": torch.ones(1)})
"""


def test_a_disk_that_is_full_then_read_only(tmp_path: Path):
    """A disk of 2 MB for two checkpoints of 1.2 MB, mounted for the test alone."""
    code, disk = tmp_path / "small.py", tmp_path / "disk"
    code.write_text(SMALL)
    disk.mkdir()
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=2m none {disk}"
    if not shutil.which("unshare") or subprocess.run([*alone, mount], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here: unshare is missing, or not allowed")
    script = f"{mount} && {sys.executable} {code} {disk}"
    done = subprocess.run([*alone, script], capture_output=True, text=True)
    assert not done.returncode, done.stderr

    def refusal(name: str, words: str) -> str:
        last = "the last one, map-00000001, is intact"
        return f"checkpoint {name} cannot be saved in {disk}/checkpoints: {words} and go on with --resume.".format(last)

    left = "map-00000001 149999 ['map-00000001']"
    assert done.stdout.splitlines() == [
        left,
        refusal("map-00000002", "No space left on device; {}: free 2 MB or more"),
        left,
        refusal("map-00000003", "Read-only file system; {}: make the folder writable, with 1 MB free,"),
        left,
    ]


def test_a_byte_changed_or_missing_anywhere_is_refused(tmp_path: Path, tensors: Callable[[int], dict[str, Tensor]]):
    snapshots.save(tmp_path, OLD, tensors(1), {"step": 100}, keep=9)
    snapshots.save(tmp_path, NEW, tensors(2), {"step": 200, "words": "é"}, keep=9)
    drawn = random.Random(1)
    for file, good in files(tmp_path / NEW).items():
        path = tmp_path / NEW / file
        words = rf"{file} is damaged: it is not what was written: pass --resume-from previous to go on from {OLD}\.$"
        for _ in range(100):
            at = drawn.randrange(len(good))
            changed = good[:at] + bytes([good[at] ^ 1 << drawn.randrange(8)]) + good[at + 1 :]
            for content in (changed, good[:at], good + good[at : at + 1]):
                path.write_bytes(content)
                with pytest.raises(ValueError, match=words):
                    snapshots.read(tmp_path, NEW, plain)
        assert snapshots.find(tmp_path) == NEW
        assert snapshots.find(tmp_path, "previous") == OLD
        assert whole(tmp_path, OLD) == to_the_bit(1)
        path.write_bytes(good)
    assert whole(tmp_path, NEW) == to_the_bit(2)


def test_nothing_of_a_damaged_one_is_used(tmp_path: Path):
    snapshots.save(tmp_path, NEW, state(2), {"step": 200}, keep=9)
    path = tmp_path / NEW / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    def template(*_: object) -> NoReturn:
        raise AssertionError("asked for a tensor of a damaged file")

    with pytest.raises(ValueError, match=r"damaged.*: there is no other checkpoint, train again into another --out"):
        snapshots.read(tmp_path, NEW, template)


@pytest.mark.parametrize("name, go_on", [(OLD, f"{NEW} to go on from {NEW}"), (NEW, f"previous to go on from {OLD}")])
def test_a_shard_missing_or_too_many(tmp_path: Path, name: str, go_on: str):
    for seed, each in enumerate((OLD, NEW)):
        snapshots.save(tmp_path, each, state(seed), {"step": 1}, keep=9)
    (tmp_path / name / "state.safetensors").rename(tmp_path / name / "shard-00001.safetensors")
    with pytest.raises(
        ValueError, match=f"shard-00001.safetensors is of another checkpoint: pass --resume-from {go_on}"
    ):
        snapshots.read(tmp_path, name, plain)
    (tmp_path / name / "shard-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=f"state.safetensors is missing: pass --resume-from {go_on}"):
        snapshots.read(tmp_path, name, plain)
    (tmp_path / name / "state.safetensors").mkdir()
    with pytest.raises(
        ValueError, match=rf"state.safetensors cannot be read \(Is a directory\): pass --resume-from {go_on}"
    ):
        snapshots.read(tmp_path, name, plain)
    (tmp_path / name / "state.json").unlink()
    with pytest.raises(ValueError, match=r"state.json is missing: pass --resume-from"):
        snapshots.read(tmp_path, name, plain)


def test_a_run_goes_on_from_the_previous_one_over_the_damaged(tmp_path: Path):
    """What cannot be ordered is asked about first, then gone with the next save."""
    for seed, name in enumerate(("map-00000050", OLD, NEW)):
        snapshots.save(tmp_path, name, state(seed), {"step": 1}, keep=9)
    (tmp_path / NEW / "state.json").write_bytes(b"\xff[")
    (tmp_path / OLD / "state.json").write_bytes(b"[" * 100_000)
    last = snapshots.find(tmp_path)
    assert last == NEW
    with pytest.raises(ValueError, match=f"pass --resume-from previous to go on from {OLD}"):
        snapshots.read(tmp_path, last, plain)
    with pytest.raises(ValueError, match="pass --resume-from map-00000050 to go on from map-00000050"):
        snapshots.read(tmp_path, OLD, plain)
    assert whole(tmp_path, "map-00000050") == to_the_bit(0)
    snapshots.save(tmp_path, "map-00000075", state(7), {"step": 75}, keep=9)
    assert snapshots.names(tmp_path) == ["map-00000050", "map-00000075"]
