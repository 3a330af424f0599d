"""Training states to be saved, of all types of tensors, and processes that share them."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from flowmaps.storage import checkpoints as snapshots
from flowmaps.storage import ledger

ONE = "map-00000100"
"""The checkpoint that `sharded_by` leaves."""


def state(seed: int) -> dict[str, Tensor]:
    """Tensors of every type, of no element, of no dimension, transposed, with the bits of a NaN."""
    drawn = torch.Generator().manual_seed(seed)
    wide = torch.randn(5, 3, generator=drawn)
    wide[1, 2] = float("nan")
    return {
        "network.weight": wide,
        "network.bias": torch.randn(1, generator=drawn),
        "network.empty": torch.zeros(0, 4),
        "network.turned": torch.randn(4, 7, generator=drawn).t(),
        "optimiser.step": torch.tensor(float(seed)),
        "seen": torch.tensor([seed, 2, 3]),
        "half": torch.randn(7, generator=drawn).half(),
        "brain": torch.randn(2, 2, generator=drawn).bfloat16(),
        "double": torch.randn(3, 1, 2, generator=drawn, dtype=torch.float64),
        "small": torch.arange(6, dtype=torch.int8) - seed % 5,
        "mask": torch.randn(4, generator=drawn) > 0,
    }


def bits(value: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """All there is to a tensor: equal where two are the same to the bit, NaN or not."""
    return value.dtype, value.shape, value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def plain(_: str, shape: torch.Size, kind: torch.dtype) -> Tensor:
    """The template of a run of one process."""
    return torch.zeros(shape, dtype=kind)


def shard(value: Tensor) -> Tensor:
    """A tensor as FSDP2 shards it, of which this process holds rows; one without dimension is held by all."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    if not value.ndim:
        return value
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    value = value.contiguous()
    sizes = {"run_check": False, "shape": value.shape, "stride": value.stride()}
    return DTensor.from_local(rows(value), mesh, [Shard(0)], **sizes)


def rows(value: Tensor) -> Tensor:
    """The rows of a tensor that this process holds, perhaps none."""
    pieces = value.chunk(dist.get_world_size())
    return pieces[dist.get_rank()] if dist.get_rank() < len(pieces) else value[:0]


def read_sharded(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What this process reads of a checkpoint if all of them share it."""
    tensors, about = snapshots.read(folder, name, lambda *kept: shard(plain(*kept)))
    return {key: value.to_local() if value.ndim else value for key, value in tensors.items()}, about  # type: ignore[attr-defined]


def assert_holds_its_rows(folder: Path, name: str, full: dict[str, Tensor]) -> None:
    """Whoever wrote a checkpoint, this process reads the rows of it that it holds."""
    tensors, _ = read_sharded(folder, name)
    assert {key: bits(value) for key, value in tensors.items()} == {
        key: bits(rows(value) if value.ndim else value) for key, value in full.items()
    }


def in_processes(count: int, work: Callable[[int, Path], None], folder: Path) -> None:
    """Call `work` in several processes, forked from one that has torch: it takes seconds to import."""
    multiprocessing.set_forkserver_preload(["torch.distributed.tensor", "torch.distributed.checkpoint", "flowmaps"])
    start_processes(work, (folder,), nprocs=count, start_method="forkserver")


def sharded_by_two(rank: int, folder: Path) -> None:
    """Two processes save sharded and plain tensors, read both, and are told of what befalls one of them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-two", rank=rank, world_size=2)
    here, full = folder / "checkpoints", state(1)
    snapshots.save(here, "plain-00000001", full, {"step": 1}, keep=9)
    snapshots.save(here, ONE, {name: shard(value) for name, value in full.items()}, {"step": 100}, keep=9)
    for name in ("plain-00000001", ONE):
        assert_holds_its_rows(here, name, full)
        tensors, _ = snapshots.read(here, name, plain)
        assert {key: bits(value) for key, value in tensors.items()} == {key: bits(full[key]) for key in full}
    assert snapshots.find(here) == ONE
    _one_disk_is_full(rank, here, full)
    _one_shard_is_damaged(rank, here)
    dist.destroy_process_group()


def _one_disk_is_full(rank: int, here: Path, full: dict[str, Tensor]) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sharded = {name: shard(value) for name, value in full.items()}
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(os, "fsync", fail)
        with pytest.raises(ValueError, match="No space left") as refused:
            snapshots.save(here, "map-00000200", sharded, {"step": 200}, keep=9)
    assert f"the last one, {ONE}, is intact: free 1 MB or more" in str(refused.value)
    assert sorted(path.name for path in here.iterdir()) == [ONE, "plain-00000001"]


def _one_shard_is_damaged(rank: int, here: Path) -> None:
    path = here / ONE / "shard-00002.safetensors"
    good = path.read_bytes()
    dist.barrier()
    if rank == 0:
        path.write_bytes(good[:-1])
    dist.barrier()
    with pytest.raises(ValueError, match=r"shard-00002.safetensors is damaged.* previous to go on from plain-00000001"):
        snapshots.read(here, ONE, plain)
    dist.barrier()
    if rank == 0:
        path.write_bytes(good)
    dist.barrier()


def sharded_by_three(rank: int, folder: Path) -> None:
    """Three processes read what two have written."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-three", rank=rank, world_size=3)
    for name in ("plain-00000001", ONE):
        assert_holds_its_rows(folder / "checkpoints", name, state(1))
    snapshots.save(
        folder / "checkpoints",
        "map-00000300",
        {name: shard(value) for name, value in state(3).items()},
        {"step": 300},
        keep=9,
    )
    dist.destroy_process_group()


def files(folder: Path) -> dict[str, bytes]:
    """The content of each file of a checkpoint."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def card(folder: Path) -> dict[str, Any]:
    """The card of a checkpoint."""
    return json.loads((folder / ledger.CARD).read_text())


def sign(folder: Path, **changes: Any) -> None:
    """Make the card of a checkpoint one of the files that are there now, with some of its entries changed."""
    there = {path.name: path for path in folder.glob("*.safetensors") if path.is_file() and not path.is_symlink()}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in there.items()}
    kept = {name: value for name, value in card(folder).items() if name != "own"}
    (folder / ledger.CARD).write_bytes(ledger.render({**kept, "sha256": digests, **changes}))
