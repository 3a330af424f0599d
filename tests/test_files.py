"""A file is old or new, never a part, and nothing is left beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from flowmaps.files import write_atomically


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
