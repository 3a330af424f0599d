"""A checkpoint that somebody made up, its digests as they should be, is refused in a line before it takes anything."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from snapshot_cases import card, plain, shard, sign, state
from strikes import NEW, OLD, to_the_bit, whole

from flowmaps.storage import checkpoints as snapshots
from flowmaps.storage import ledger

STATE = "state.safetensors"
Header = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, the last to be spoilt."""
    for seed, name in ((1, OLD), (2, NEW)):
        snapshots.save(tmp_path, name, state(seed), {"step": 100, "seconds": 2.5, "begun": 0}, keep=9)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same, sharded over one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for seed, name in ((1, OLD), (2, NEW)):
        tensors = {key: shard(value) for key, value in state(seed).items()}
        snapshots.save(tmp_path, name, tensors, {"step": 100}, keep=9)
    dist.destroy_process_group()
    return tmp_path


def rewrite(path: Path, change: Callable[[Header], object]) -> None:
    """Change the header of a file, and sign what comes of it."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    sign(path.parent)


def refused(folder: Path, words: str, template: Callable[..., torch.Tensor] = plain) -> None:
    """The last checkpoint is refused, and the one before it is as it was."""
    with pytest.raises(ValueError, match=words) as said:
        snapshots.read(folder, NEW, template)
    assert str(said.value).isprintable()
    assert len(str(said.value)) < 1_000
    assert whole(folder, OLD) == to_the_bit(1)


GO_ON = rf": pass --resume-from previous to go on from {OLD}\.$"


@pytest.mark.parametrize("left", [0.5, 0.9, 0])
def test_half_a_file(folder: Path, left: float):
    path = folder / NEW / STATE
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    sign(folder / NEW)
    refused(folder, rf"{STATE} is no file of training states \(.*\)" + GO_ON)


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"shape": [2**50, 2**10]}, r"network.weight is of shape \[1125899906842624, 1024\] in 60 bytes"),
        ({"shape": [2**70]}, "network.weight is of shape"),
        ({"shape": [True] * 4}, "network.weight is of shape"),
        ({"shape": "53"}, "network.weight is of shape"),
        ({"shape": None}, "TypeError"),
        ({"dtype": "F8_E4M3"}, "KeyError: 'F8_E4M3'"),
        ({"dtype": ["F32"]}, "TypeError"),
        ({"data_offsets": [0, 2**60]}, "network.weight is of shape"),
        ({"data_offsets": [-60, 0]}, "network.weight is of shape"),
        ({"data_offsets": [0]}, "not enough values"),
    ],
)
def test_a_tensor_that_is_not_there(folder: Path, entry: Header, words: str):
    rewrite(folder / NEW / STATE, lambda header: header["network.weight"].update(entry))
    refused(folder, rf"{STATE} is no file of training states \(.*{words}")


def test_tensors_in_one_place(folder: Path):
    """They would take more room than the file."""
    rewrite(folder / NEW / STATE, lambda header: header.update(more=header["network.weight"]))
    refused(folder, f"{NEW} cannot be used .*offset.*" + GO_ON)


@pytest.mark.parametrize("name", ["two\nlines", "\u200b", "x" * 5_000])
def test_a_name_that_cannot_be_shown(folder: Path, name: str):
    rewrite(folder / NEW / STATE, lambda header: header.update({name: header.pop("network.weight")}))
    refused(folder, "is no file of training states .a tensor of the name ")


@pytest.mark.parametrize(
    "text, words",
    [
        ("{}", "KeyError: 'network.bias'"),
        ("[" * 100_000, "more than 100 deep"),
        ("7", "TypeError"),
        ('{"network.bias": {"saved_offsets": [1.5]}}', "network.bias is of shape"),
    ],
)
def test_rows_of_no_sense(sharded: Path, text: str, words: str):
    def change(header: Header) -> None:
        kept = {"network.bias": header["network.bias"] | {"data_offsets": [0, 4]}}
        header.clear()
        header.update(kept, __metadata__={"DCP_SHARDING_INFO": text})

    rewrite(sharded / NEW / "shard-00001.safetensors", change)
    refused(sharded, rf"shard-00001.safetensors is no file of training states \(.*{words}")


@pytest.mark.parametrize("offsets", [[2**50, 0], [1, 0], [0, 1], [2**80, 0], [0], [-1, 0]])
def test_rows_that_are_elsewhere(sharded: Path, offsets: list[int]):
    """Room for all of the tensor would be room for what nobody has."""

    def change(header: Header) -> None:
        rows = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
        rows["network.weight"]["saved_offsets"] = offsets
        header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(rows)

    rewrite(sharded / NEW / "shard-00001.safetensors", change)
    refused(sharded, r"shard-00001.safetensors (has rows of network.weight that|is no file of training states)")


def test_rows_that_two_files_have(sharded: Path):
    name = sharded / NEW / "shard-00001.safetensors"
    shutil.copyfile(name, name.with_name("shard-00002.safetensors"))
    sign(sharded / NEW)
    refused(sharded, r"shard-0000\d.safetensors has rows of .* do not lie beside those in the other files" + GO_ON)


def test_a_template_that_knows_its_own(folder: Path):
    """The words of a tensor that the run does not have, or has in another shape."""

    def template(name: str, shape: torch.Size, kind: torch.dtype) -> torch.Tensor:
        return {"network.weight": torch.zeros(5, 4)}[name] if name.startswith("network.w") else plain(name, shape, kind)

    refused(folder, "another network: its network.weight is 5 x 3 of float32, here it is 5 x 4 of float32", template)
    rewrite(folder / NEW / STATE, lambda header: header.update({"network.wide": header.pop("network.weight")}))
    refused(folder, f"{NEW} cannot be used .KeyError: 'network.wide'." + GO_ON, template)


@pytest.mark.parametrize("file", [STATE, ledger.CARD])
@pytest.mark.parametrize("kind", ["pipe", "link", "endless", "gone"])
def test_no_file_of_its_own(folder: Path, file: str, kind: str):
    """A pipe would be waited for; through a link another file than this run's would be read."""
    path = folder / NEW / file
    shutil.copyfile(path, folder / "elsewhere")
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind != "gone":
        path.symlink_to(folder / "elsewhere" if kind == "link" else "/dev/zero")
    refused(folder, f"{file} is missing: " if kind == "gone" else f"{file} is a link or a pipe, not a file that was")
    snapshots.save(folder, "map-00000300", state(3), {"step": 300}, keep=2)
    assert whole(folder, "map-00000300") == to_the_bit(3)


@pytest.mark.parametrize(
    "about",
    [
        {"step": -1},
        {"step": 2**53 + 1},
        {"step": 1.0},
        {"step": True},
        {"step": None},
        {"begun": "1"},
        {"begun": -1},
        {"seconds": float("nan")},
        {"seconds": -1},
        {"seconds": 10**400},
        {"seconds": "1"},
        {"guard": []},
        {"guard": {"skipped": "1"}},
        {"guard": {"level": float("inf")}},
        {"guard": {"spikes": [[1, float("nan")]]}},
        {"guard": {"row": None}},
    ],
)
def test_what_it_says_of_itself(folder: Path, about: Header):
    sign(folder / NEW, about={"step": 100, **about})
    refused(folder, f"{ledger.CARD} makes no sense to this version, which reads format 1" + GO_ON)


@pytest.mark.parametrize(
    "changes",
    [
        {"order": -1},
        {"order": 2**53 + 1},
        {"order": "1"},
        {"about": []},
        {"sha256": {"../state.safetensors": ""}},
        {"sha256": {"": ""}},
        {"sha256": {"two\nlines.safetensors": ""}},
        {"sha256": {STATE: 1}},
        {"sha256": []},
        {"format": "1"},
        {"format": None},
    ],
)
def test_a_card_of_no_sense(folder: Path, changes: Header):
    sign(folder / NEW, **changes)
    refused(folder, f"{ledger.CARD} makes no sense to this version, which reads format 1" + GO_ON)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, '"\\ud800"', "[]", "null", "\xff", " " * (2**24 + 1)])
def test_no_card_at_all(folder: Path, text: str):
    (folder / NEW / ledger.CARD).write_text(text, encoding="latin-1")
    refused(folder, f"{ledger.CARD} is damaged: it is not what was written" + GO_ON)


def test_a_format_of_many_digits(folder: Path):
    sign(folder / NEW, format=10**4_000)
    refused(folder, r"is of format 10{99}, this version reads 1" + GO_ON)


def test_the_last_place_in_the_order_is_not_passed(folder: Path):
    """What is saved after it is read again."""
    sign(folder / NEW, order=2**53)
    snapshots.save(folder, "map-00000300", state(3), {"step": 300}, keep=9)
    assert card(folder / "map-00000300")["order"] == 2**53
    assert snapshots.names(folder) == [OLD, NEW, "map-00000300"]
    assert whole(folder, "map-00000300") == to_the_bit(3)
