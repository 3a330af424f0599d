"""Checkpoints: what is read is what was saved, to the bit and by any number of processes; the right ones are kept."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from snapshot_cases import ONE, bits, files, in_processes, plain, sharded_by_three, sharded_by_two, state

from flowmaps.storage import checkpoints as snapshots

ABOUT = {"stage": 1, "step": 100, "seconds": 1.25, "versions": {"torch": "2.13"}, "words": "é", "list": [1, None]}


def test_what_is_read_is_what_was_saved_to_the_bit(tmp_path: Path):
    folder, full = tmp_path / "checkpoints", state(1)
    assert snapshots.save(folder, ONE, full, ABOUT, keep=1) == folder / ONE
    tensors, about = snapshots.read(folder, ONE, plain)
    assert {name: bits(value) for name, value in tensors.items()} == {name: bits(full[name]) for name in full}
    assert about == ABOUT
    assert sorted(files(folder / ONE)) == ["state.json", "state.safetensors"]
    assert [path.name for path in folder.iterdir()] == [ONE]


def test_the_file_is_one_that_safetensors_reads(tmp_path: Path):
    full = state(2)
    tensors = load_file(snapshots.save(tmp_path, ONE, full, {"step": 1}, keep=1) / "state.safetensors")
    assert {name: bits(value) for name, value in tensors.items()} == {name: bits(full[name]) for name in full}


def test_a_parameter_is_saved_and_filled_like_a_tensor(tmp_path: Path):
    layer, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    snapshots.save(tmp_path, ONE, dict(layer.named_parameters()), {"step": 1}, keep=1)
    snapshots.read(tmp_path, ONE, lambda name, *_: dict(other.named_parameters())[name])
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other.bias, layer.bias)


@pytest.mark.parametrize(
    "shape, kind, words",
    [
        ((5, 4), torch.float32, "network.weight is 5 x 3 of float32, here it is 5 x 4 of float32"),
        ((5, 3), torch.bfloat16, "network.weight is 5 x 3 of float32, here it is 5 x 3 of bfloat16"),
        ((), torch.float32, "network.weight is 5 x 3 of float32, here it is a number of float32"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, shape: tuple[int, ...], kind: torch.dtype, words: str):
    snapshots.save(tmp_path, ONE, state(1), {"step": 1}, keep=1)

    def template(name: str, *kept: object) -> torch.Tensor:
        return torch.zeros(shape, dtype=kind) if name == "network.weight" else plain(name, *kept)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=f"{ONE} is of another network: its {words}: go on with the options"):
        snapshots.read(tmp_path, ONE, template)


def _saved(folder: Path, *names: str, keep: int = 9, keep_every: int = 0) -> None:
    for name in names:
        step = int(name.split("-")[1])
        snapshots.save(folder, name, {"x": torch.tensor([step])}, {"step": step}, keep=keep, keep_every=keep_every)


def test_they_are_found_in_the_order_of_saving(tmp_path: Path):
    assert snapshots.names(tmp_path / "missing") == []
    assert snapshots.find(tmp_path / "missing") is None
    _saved(tmp_path, "teacher-00000200", "map-00000000", "map-00000100")
    (tmp_path / ".map-00000300.part").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    assert snapshots.names(tmp_path) == ["teacher-00000200", "map-00000000", "map-00000100"]
    assert snapshots.find(tmp_path) == "map-00000100"
    assert snapshots.find(tmp_path, "previous") == "map-00000000"
    assert snapshots.find(tmp_path, "teacher-00000200") == "teacher-00000200"
    _saved(tmp_path, "teacher-00000100")  # the run went on from an earlier one: it is this which is the last now
    assert snapshots.find(tmp_path) == "teacher-00000100"
    assert not (tmp_path / ".map-00000300.part").exists()


@pytest.mark.parametrize("name", ["map-00000300", "previous", "../map-00000100", ""])
def test_a_missing_one_is_refused_with_those_that_there_are(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=f"has no checkpoint {name}: there is none: train again into another --out"):
        snapshots.find(tmp_path, name)
    _saved(tmp_path, "map-00000100")
    with pytest.raises(ValueError, match=f"has no checkpoint {name}: there is map-00000100"):
        snapshots.find(tmp_path, name)


def test_one_that_is_saved_again_is_replaced_and_the_last(tmp_path: Path):
    _saved(tmp_path, "map-00000100", "map-00000200")
    snapshots.save(tmp_path, "map-00000100", state(7), {"step": 100}, keep=9)
    tensors, _ = snapshots.read(tmp_path, "map-00000100", plain)
    assert {name: bits(value) for name, value in tensors.items()} == {name: bits(x) for name, x in state(7).items()}
    assert snapshots.names(tmp_path) == ["map-00000200", "map-00000100"]
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
            assert snapshots.names(Path(folder)) == [f"map-{old:08d}" for old in left]
            assert len(list(Path(folder).iterdir())) == len(left)


def test_any_number_of_processes_reads_what_any_number_wrote(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    in_processes(2, sharded_by_two, tmp_path)
    assert sorted(files(folder / ONE)) == ["shard-00001.safetensors", "shard-00002.safetensors", "state.json"]
    in_processes(3, sharded_by_three, tmp_path)
    for name, seed in (("plain-00000001", 1), (ONE, 1), ("map-00000300", 3)):
        tensors, _ = snapshots.read(folder, name, plain)
        full = state(seed)
        assert {key: bits(value) for key, value in tensors.items()} == {key: bits(full[key]) for key in full}


def test_a_plain_run_needs_nothing_of_sharding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("api", "hf_storage", "state_dict_saver"):  # half a second to import
        monkeypatch.setitem(sys.modules, f"torch.distributed.checkpoint.{name}", None)
    monkeypatch.delitem(sys.modules, "torch.distributed.tensor", raising=False)
    spec = importlib.util.find_spec("flowmaps.storage.shards")
    assert spec
    assert spec.loader
    shards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shards)
    assert list(shards.write(tmp_path, state(1))) == ["state.safetensors"]
