"""Checkpoints: what is read is what was saved, to the bit and by any number of processes; the right ones are kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from checkpoint_cases import ONE, bits, files, in_processes, saved_by_three, saved_by_two, state
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flowmaps.storage import checkpoints

ABOUT = {"stage": 1, "step": 100, "seconds": 1.25, "versions": {"torch": "2.13"}, "words": "é", "list": [1, None]}


def test_what_is_read_is_what_was_saved_to_the_bit(tmp_path: Path):
    folder, full = tmp_path / "checkpoints", state(1)
    assert checkpoints.save(folder, ONE, full, ABOUT, keep=1) == folder / ONE
    tensors, about = checkpoints.read(folder, ONE)
    assert bits(tensors) == bits(full)
    assert about == ABOUT
    assert sorted(files(folder / ONE)) == ["state.safetensors", "state.sha256"]
    assert [path.name for path in folder.iterdir()] == [ONE]


def test_the_file_is_one_that_safetensors_reads(tmp_path: Path):
    full = state(2)
    tensors = load_file(checkpoints.save(tmp_path, ONE, full, {"step": 1}, keep=1) / "state.safetensors")
    assert bits(tensors) == bits(full)


def _saved(folder: Path, *names: str, keep: int = 9, keep_every: int = 0) -> None:
    for name in names:
        step = int(name.split("-")[1])
        checkpoints.save(folder, name, {"x": torch.tensor([step])}, {"step": step}, keep=keep, keep_every=keep_every)


def test_they_are_found_in_the_order_of_saving(tmp_path: Path):
    assert checkpoints.names(tmp_path / "missing") == []
    assert checkpoints.find(tmp_path / "missing") is None
    _saved(tmp_path, "teacher-00000200", "map-00000000", "map-00000100")
    (tmp_path / ".map-00000300.part").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    assert checkpoints.names(tmp_path) == ["teacher-00000200", "map-00000000", "map-00000100"]
    assert checkpoints.find(tmp_path) == "map-00000100"
    assert checkpoints.find(tmp_path, "previous") == "map-00000000"
    assert checkpoints.find(tmp_path, "teacher-00000200") == "teacher-00000200"
    _saved(tmp_path, "teacher-00000100")  # the run went on from an earlier one: it is this which is the last now
    assert checkpoints.find(tmp_path) == "teacher-00000100"
    assert not (tmp_path / ".map-00000300.part").exists()


@pytest.mark.parametrize("name", ["map-00000300", "previous", "../map-00000100", ""])
def test_a_missing_one_is_refused_with_those_that_there_are(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=f"has no checkpoint {name}: there is none: train again into another folder"):
        checkpoints.find(tmp_path, name)
    _saved(tmp_path, "map-00000100")
    with pytest.raises(ValueError, match=f"has no checkpoint {name}: there is map-00000100"):
        checkpoints.find(tmp_path, name)


def test_one_that_is_saved_again_is_replaced_and_the_last(tmp_path: Path):
    _saved(tmp_path, "map-00000100", "map-00000200")
    checkpoints.save(tmp_path, "map-00000100", state(7), {"step": 100}, keep=9)
    assert bits(checkpoints.read(tmp_path, "map-00000100")[0]) == bits(state(7))
    assert checkpoints.names(tmp_path) == ["map-00000200", "map-00000100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map-00000100", "map-00000200"]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 3), st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_the_last_are_kept_and_every_so_many(steps: list[int], keep: int, every: int):
    with tempfile.TemporaryDirectory() as folder:
        left: list[int] = []
        for step in steps:
            _saved(Path(folder), f"map-{step:08d}", keep=keep, keep_every=every)
            left = [old for old in left if old != step] + [step]
            left = [old for old in left if old in left[-keep:] or (every and old and old % every == 0)]
            assert checkpoints.names(Path(folder)) == [f"map-{old:08d}" for old in left]
            assert len(list(Path(folder).iterdir())) == len(left)


def test_any_number_of_processes_reads_what_any_number_wrote(tmp_path: Path):
    """Into one file, whose numbers are those of one process alone."""
    folder = tmp_path / "checkpoints"
    in_processes(2, saved_by_two, tmp_path)
    in_processes(3, saved_by_three, tmp_path)
    checkpoints.save(folder, "alone-00000001", state(1), {"step": 1}, keep=9)
    for name, seed in (("plain-00000001", 1), (ONE, 1), ("map-00000300", 3)):
        assert bits(checkpoints.read(folder, name)[0]) == bits(state(seed))
        assert sorted(files(folder / name)) == ["state.safetensors", "state.sha256"]
        assert (_behind_header(folder / name) == _behind_header(folder / "alone-00000001")) is (seed == 1)


def _behind_header(checkpoint: Path) -> bytes:
    """The bytes of the tensors."""
    content = (checkpoint / "state.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.parametrize("old", ["shard-00001.safetensors", "state.safetensors"])
def test_a_checkpoint_of_an_earlier_version_is_refused_in_a_line(tmp_path: Path, old: str):
    """As format 1 had it, a file for each process; and as format 2, without a header."""
    _saved(tmp_path, "map-00000100", "map-00000200")
    last = tmp_path / "map-00000200"
    (last / "state.sha256").rename(last / "state.json")
    (last / "state.safetensors").rename(last / old)
    save_file({"x": torch.ones(1)}, last / old)
    assert checkpoints.find(tmp_path) == "map-00000200"
    with pytest.raises(ValueError) as refused:
        checkpoints.read(tmp_path, "map-00000200")
    assert str(refused.value) == (
        f"{last} was written by an earlier version, this one reads format 3: finish the run with that version, or "
        "train again into another folder."
    )
