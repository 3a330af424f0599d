"""Whatever happens to a run or its disk, there is a good checkpoint or a plain word, never half of one."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch.distributed as dist
from checkpoint_cases import files, sharded, state
from rights import without_override
from strikes import NEW, OLD, States, Struck, finishes_unless_killed, states, to_the_bit, whole

from flowmaps.storage import checkpoints


@pytest.fixture(params=["plain", "sharded"])
def tensors(request: pytest.FixtureRequest) -> Iterator[States]:
    """The state of a run by seed, of either kind."""
    with states(request.param) as made:
        yield made


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize(
    "name, keep, before",
    [
        (NEW, 1, {OLD: 1}),
        pytest.param(OLD, 1, {OLD: 1}, marks=pytest.mark.slow),
        pytest.param(OLD, 2, {"map-00000001": 5, OLD: 1}, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_anywhere_leaves_the_old_checkpoint_or_the_new(
    tmp_path: Path, name: str, keep: int, before: dict[str, int]
):
    for number in range(1, 500):
        folder = tmp_path / str(number) / "checkpoints"
        folder.parent.mkdir()
        for old, seed in before.items():
            checkpoints.save(folder, old, state(seed), {"step": 100}, keep=9)
        lived = finishes_unless_killed(
            lambda folder=folder: checkpoints.save(folder, name, state(2), {"step": 200}, keep=keep) and None, number
        )
        last = checkpoints.find(folder)
        assert last
        assert whole(folder, last) in ([to_the_bit(2)] if lived else [to_the_bit(1), to_the_bit(2)])
        for other in checkpoints.names(folder):
            whole(folder, other)
        checkpoints.save(folder, "map-00000300", state(3), {"step": 300}, keep=1)
        assert [path.name for path in folder.iterdir()] == ["map-00000300"]
        assert whole(folder, "map-00000300") == to_the_bit(3)
        shutil.rmtree(folder.parent)
        if lived:
            break
    assert 20 < number < 499


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failure_anywhere_is_told_and_leaves_the_old_checkpoint_or_the_new(
    tmp_path: Path, tensors: States, error: int
):
    def fail() -> NoReturn:
        raise OSError(error, os.strerror(error))

    told = 0
    for number in range(1, 500):
        checkpoints.save(tmp_path, OLD, tensors(1), {"step": 100}, keep=1)
        assert [path.name for path in tmp_path.iterdir()] == [OLD]  # also after a deletion that failed
        said = None
        with pytest.MonkeyPatch.context() as patch:
            struck = Struck(patch, number, fail)
            try:
                checkpoints.save(tmp_path, NEW, tensors(2), {"step": 200}, keep=1)
            except ValueError as refused:
                said = str(refused)
        left = NEW if NEW in checkpoints.names(tmp_path) else OLD
        assert whole(tmp_path, left) == to_the_bit(1 if left == OLD else 2)
        assert not (tmp_path / f".{NEW}.part").exists()
        if said is None:  # it has been saved, though others may have to be deleted later
            assert left == NEW
        else:
            assert f"cannot be saved in {tmp_path}: {os.strerror(error)}; the last one, {left}, is intact: " in said
            free = "free 1 MB or more" if error == errno.ENOSPC else "make the folder writable, with 1 MB free,"
            assert said.endswith(f"{free} and resume.")
            assert "\n" not in said
            told += 1
        if struck.left > 0:
            break
    assert 15 < number < 499
    assert told > 8
    assert said is None
    assert [path.name for path in tmp_path.iterdir()] == [NEW]


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path: Path, tensors: States, monkeypatch: pytest.MonkeyPatch):
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
    path = checkpoints.save(tmp_path / "checkpoints", NEW, tensors(1), {"step": 200}, keep=1)
    assert len(files(path)) == 2
    assert synced == {os.stat(path.parent).st_ino}


def test_one_that_cannot_be_read_now_is_not_deleted(tmp_path: Path):
    """It may be a fault that passes: a save asks for help instead."""
    checkpoints.save(tmp_path, OLD, state(1), {"step": 100}, keep=1)
    (tmp_path / OLD / "state.safetensors").chmod(0)
    with without_override():
        words = f"checkpoint {NEW} cannot be saved in .*: Permission denied; there is no earlier"
        with pytest.raises(ValueError, match=words):
            checkpoints.save(tmp_path, NEW, state(2), {"step": 200}, keep=1)
        assert [path.name for path in tmp_path.iterdir()] == [OLD]
        words = rf"{OLD} cannot be read \(Permission denied\): there is no other checkpoint"
        with pytest.raises(ValueError, match=words):
            checkpoints.read(tmp_path, OLD)


def test_a_folder_in_the_place_of_the_tensors_is_damage(tmp_path: Path):
    """No later read can mend it: the next save goes on, and leaves it out."""
    checkpoints.save(tmp_path, OLD, state(1), {"step": 100}, keep=1)
    (tmp_path / OLD / "state.safetensors").unlink()
    (tmp_path / OLD / "state.safetensors").mkdir()
    with pytest.raises(ValueError, match=rf"{OLD} cannot be read \(Is a directory\): there is no other checkpoint"):
        checkpoints.read(tmp_path, OLD)
    checkpoints.save(tmp_path, NEW, state(2), {"step": 200}, keep=1)
    assert checkpoints.names(tmp_path) == [NEW]


def test_an_interruption_of_a_sharded_save_is_one(tmp_path: Path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def interrupt(_: int) -> NoReturn:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(tmp_path, NEW, sharded(1), {"step": 1}, keep=1)
    dist.destroy_process_group()
    assert checkpoints.find(tmp_path) is None


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_gone_is_told(tmp_path: Path, again: bool):
    folder = tmp_path / "run" / "checkpoints"
    if again:
        folder.parent.mkdir()
        checkpoints.save(folder, OLD, state(1), {"step": 100}, keep=1)
        shutil.rmtree(folder.parent)
    words = f"checkpoint {NEW} cannot be saved in {folder}: No such file or directory; there is no earlier one: make"
    with pytest.raises(ValueError, match=re.escape(words)):
        checkpoints.save(folder, NEW, state(2), {"step": 200}, keep=1)
    assert not folder.parent.exists()


def test_a_folder_that_may_not_be_written_or_read_is_told(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    checkpoints.save(folder, OLD, state(1), {"step": 100}, keep=1)
    with without_override():
        folder.chmod(0o555)
        with pytest.raises(ValueError, match=f"Permission denied; the last one, {OLD}, is intact: make the folder"):
            checkpoints.save(folder, NEW, state(2), {"step": 200}, keep=1)
        folder.chmod(0)
        with pytest.raises(ValueError, match="Permission denied; the earlier ones cannot be read: make the folder"):
            checkpoints.save(folder, NEW, state(2), {"step": 200}, keep=1)
        with pytest.raises(ValueError, match="checkpoints cannot be read: Permission denied; mend that and resume"):
            checkpoints.find(folder)
        with pytest.raises(ValueError, match=f"{OLD} cannot be read: Permission denied; mend that and resume"):
            checkpoints.read(folder, OLD)
    folder.chmod(0o755)
    assert whole(folder, OLD) == to_the_bit(1)


SMALL = """
import subprocess, sys, torch
from pathlib import Path
from flowmaps.storage import checkpoints

def said(name, tensors):
    try:
        checkpoints.save(folder, name, tensors, {"step": 1}, keep=9)
    except ValueError as error:
        print(error)
    (last,) = checkpoints.names(folder)
    kept, _ = checkpoints.read(folder, last)
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
        return f"checkpoint {name} cannot be saved in {disk}/checkpoints: {words} and resume.".format(last)

    left = "map-00000001 149999 ['map-00000001']"
    assert done.stdout.splitlines() == [
        left,
        refusal("map-00000002", "No space left on device; {}: free 2 MB or more"),
        left,
        refusal("map-00000003", "Read-only file system; {}: make the folder writable, with 1 MB free,"),
        left,
    ]
