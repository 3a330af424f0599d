"""What lies beside the checkpoints of a run is neither read nor deleted; what cannot be deleted does not stop it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from checkpoint_cases import files

from flowmaps.storage import checkpoints

ONE, TWO, THREE = "map-00000001", "map-00000002", "map-00000003"


def saved(folder: Path, *names: str, keep: int = 1, keep_every: int = 0) -> None:
    for name in names:
        step = int(name.split("-")[1])
        checkpoints.save(folder, name, {"x": torch.tensor([step])}, {"step": step}, keep=keep, keep_every=keep_every)


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_without_a_card(tmp_path: Path):
    (tmp_path / ONE).mkdir()
    (tmp_path / ONE / "notes").write_text("mine")
    saved(tmp_path, TWO, THREE)
    assert (tmp_path / ONE / "notes").read_text() == "mine"
    assert checkpoints.names(tmp_path) == [THREE]


@pytest.mark.parametrize(
    "copy", ["backup", f"{ONE}-good", f"{ONE}.bak", f"{ONE} (copy)", "MAP-00000001", "map-1", f".{ONE}", ".mine.part"]
)
def test_a_copy_that_has_another_name(tmp_path: Path, copy: str):
    saved(tmp_path, ONE)
    shutil.copytree(tmp_path / ONE, tmp_path / copy)
    kept = files(tmp_path / copy)
    saved(tmp_path, TWO, THREE)
    assert checkpoints.names(tmp_path) == [THREE]
    assert checkpoints.find(tmp_path) == THREE
    with pytest.raises(ValueError, match=f"no checkpoint {copy}".replace("(", r"\(").replace(")", r"\)")):
        checkpoints.find(tmp_path, copy)
    checkpoints.clear(tmp_path)
    assert there(tmp_path) == [copy]
    assert files(tmp_path / copy) == kept


def test_a_link_in_the_place_of_one_gives_way(tmp_path: Path):
    """Its user has moved the checkpoint away; what it leads to stays."""
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    folder.mkdir()
    saved(folder, ONE)
    (folder / ONE).rename(elsewhere)
    (folder / ONE).symlink_to(elsewhere)
    (folder / f".{TWO}.part").symlink_to(elsewhere)
    (folder / f".{THREE}.part").write_text("left")
    saved(folder, ONE)
    assert there(folder) == [ONE]
    assert not (folder / ONE).is_symlink()
    assert sorted(files(elsewhere)) == ["state.safetensors", "state.sha256"]


def test_the_folder_of_them_all_may_lie_on_another_disk(tmp_path: Path):
    """Its user has put a link in its place."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    saved(tmp_path / "checkpoints", ONE, TWO)
    assert checkpoints.find(tmp_path / "checkpoints") == TWO
    assert there(tmp_path / "elsewhere") == [TWO]


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk fails for one checkpoint."""
    opened = Path.open

    def opening(path: Path, *options: Any) -> Any:
        if path.parts[-2:] == (name, checkpoints.STATE):
            raise OSError(5, "Input/output error")
        return opened(path, *options)

    monkeypatch.setattr(Path, "open", opening)


def test_one_that_cannot_be_read_now_outlives_the_end_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path, ONE, TWO, THREE, keep=9)
    with monkeypatch.context() as patch:
        unreadable(patch, TWO)
        checkpoints.clear(tmp_path, keep_every=2)
    assert checkpoints.names(tmp_path) == [TWO]
    checkpoints.clear(tmp_path, keep_every=2)
    assert checkpoints.names(tmp_path) == [TWO]
    (tmp_path / f".{ONE}.part").mkdir()
    checkpoints.clear(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize("call", ["rename", "rmdir", "unlink"])
def test_what_cannot_be_deleted_does_not_stop_a_run(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch):
    """It is saved all the same, and the next save deletes what is left."""
    saved(tmp_path, ONE)
    real: Callable[..., None] = getattr(os, call)

    def failing(path: str, *options: object, **named: object) -> None:
        if ONE in str(path) or named.get("dir_fd") is not None:
            busy()
        real(path, *options, **named)

    def busy() -> NoReturn:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        saved(tmp_path, TWO)
        saved(tmp_path, THREE)
        assert checkpoints.find(tmp_path) == THREE
        checkpoints.clear(tmp_path)
    saved(tmp_path, "map-00000004")
    assert there(tmp_path) == ["map-00000004"]
