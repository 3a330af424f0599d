"""Training states to be saved, of all types of tensors, and processes that share them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from flowmaps.storage import checkpoints

ONE = "map-00000100"
"""The checkpoint that `saved_by_two` leaves."""


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


def bits(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """All there is to tensors: equal where they are the same to the bit, NaN or not."""
    return {
        name: (value.dtype, value.shape, value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, value in tensors.items()
    }


def sharded(seed: int) -> dict[str, Tensor]:
    """The state as FSDP2 shards it, of which this process holds rows; numbers are held by all."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        name: distribute_tensor(value.contiguous(), mesh, [Shard(0)], src_data_rank=None) if value.ndim else value
        for name, value in state(seed).items()
    }


def in_processes(count: int, work: Callable[[int, Path], None], folder: Path) -> None:
    """Call `work` in several processes, forked from one that has torch: it takes seconds to import."""
    start_processes(work, (folder,), nprocs=count, start_method="forkserver")


def saved_by_two(rank: int, folder: Path) -> None:
    """Two processes save sharded and plain tensors, read both, and are told of what befalls one of them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-two", rank=rank, world_size=2)
    here = folder / "checkpoints"
    checkpoints.save(here, "plain-00000001", state(1), {"step": 1}, keep=9)
    checkpoints.save(here, ONE, sharded(1), {"step": 100}, keep=9)
    for name in ("plain-00000001", ONE):
        assert bits(checkpoints.read(here, name)[0]) == bits(state(1))
    assert checkpoints.find(here) == ONE
    _a_disk_is_full(rank, here)
    _a_file_is_damaged(rank, here)
    dist.destroy_process_group()


def _a_disk_is_full(rank: int, here: Path) -> None:
    """That of the process that writes; the other one has helped to gather all of the tensors all the same."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            patch.setattr(os, "fsync", fail)
        with pytest.raises(ValueError, match="No space left") as refused:
            checkpoints.save(here, "map-00000200", sharded(1), {"step": 200}, keep=9)
    assert f"the last one, {ONE}, is intact: free 1 MB or more" in str(refused.value)
    assert sorted(path.name for path in here.iterdir()) == [ONE, "plain-00000001"]


def _a_file_is_damaged(rank: int, here: Path) -> None:
    path = here / ONE / "state.safetensors"
    good = path.read_bytes()
    dist.barrier()
    if rank == 0:
        path.write_bytes(good[:-1])
    dist.barrier()
    with pytest.raises(ValueError, match=rf"{ONE} is damaged.* resume from plain-00000001"):
        checkpoints.read(here, ONE)
    dist.barrier()
    if rank == 0:
        path.write_bytes(good)
    dist.barrier()


def saved_by_three(rank: int, folder: Path) -> None:
    """Three processes read what two have written."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-three", rank=rank, world_size=3)
    here = folder / "checkpoints"
    for name in ("plain-00000001", ONE):
        assert bits(checkpoints.read(here, name)[0]) == bits(state(1))
    checkpoints.save(here, "map-00000300", sharded(3), {"step": 300}, keep=9)
    dist.destroy_process_group()


def files(folder: Path) -> dict[str, bytes]:
    """The content of each file of a checkpoint."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
