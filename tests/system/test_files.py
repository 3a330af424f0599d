"""A file is old or new, never a part, and nothing is left beside it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from flowmaps.system.files import sync_folder, write_atomically


@pytest.mark.parametrize("content", [b"\x00new\xff", "new, in UTF-8: é"])
def test_content_and_permissions(tmp_path: Path, content: bytes | str):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    assert write_atomically(path, content) == path
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "plain"]


@pytest.mark.parametrize("fails", ["replace", "fsync"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "a.bin", b"new")


def test_the_content_is_synced_before_the_rename_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[object] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    path = write_atomically(tmp_path / "a.bin", b"new")
    assert done == [path.stat().st_ino, "replace", tmp_path.stat().st_ino]


@pytest.mark.parametrize("error, passes", [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_syncs_no_folders_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, passes: bool
):
    def fail(_: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    if passes:
        assert sync_folder(tmp_path) is None
    else:
        with pytest.raises(OSError, match=os.strerror(error)):
            sync_folder(tmp_path)
