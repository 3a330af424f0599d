"""Devices and processes of training: one device, or several processes with DDP or FSDP2.

DDP or FSDP2 wraps the module whose forward is the whole loss, so that gradients are averaged over the processes,
whatever derivatives the loss takes. FSDP2 shards weights, gradients and moments as one group and gathers the weights
once a step, because a derivative of a network runs its blocks more than once.

The processes come from `accelerate launch` or `torchrun`. `unsharded` gathers the weights in place, for a while;
`system.processes.full` and `gather` return full copies of sharded tensors, for checkpoints and saved maps.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..system.devices import pick_device
from ..system.processes import launched, ranks, together


@dataclass(frozen=True)
class Placement:
    """The device of this process, and DDP or FSDP2 for several processes.

    Attributes:
        device: of this process.
        shard: shard the weights (FSDP2) instead of a copy of them in each process (DDP).
        find_unused_parameters: have DDP look for weights that get no gradient, in each step; the networks and methods
            of flowmaps have none.
    """

    device: torch.device
    shard: bool = False
    find_unused_parameters: bool = False

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a module in DDP or FSDP2 if there are several processes; FSDP2 makes its parameters `DTensor`."""
        if not together():
            return module
        if self.shard:
            from torch.distributed.device_mesh import init_device_mesh  # a second to import, with all of FSDP2
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (ranks(),))
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 takes no other
            return fully_shard(module, mesh=mesh, reshard_after_forward=False)  # type: ignore[return-value]
        where = [self.device] if self.device.type == "cuda" else None
        # buffers are constants here: nothing but gradients travels; the option has changed its name in torch 2.13
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {buffers: False, "find_unused_parameters": self.find_unused_parameters}
        return DistributedDataParallel(module, where, gradient_as_bucket_view=True, **options)


def start(device: str, *, shard: bool = False, find_unused_parameters: bool = False) -> Placement:
    """The placement of this process, after it has joined the processes of a launcher if there is one.

    Args:
        device: as in a recipe; with several processes `cuda` is the GPU of this one.
        shard: shard the weights; `accelerate launch --use_fsdp` sets it too.
        find_unused_parameters: as in `Placement`.

    Raises:
        ValueError: there is no such device, or the launcher is set to another way of training.
    """
    if not launched():
        return Placement(pick_device(device), shard, find_unused_parameters)
    if torch.cuda.is_available() and "cuda:" not in device:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    wanted = pick_device(device)
    if "cuda:" in device:
        raise ValueError(f"--device {device} with several processes: each takes its own, give --device cuda.")
    for way in ("DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{way}", "false").lower() == "true":
            raise ValueError(f"accelerate is set to {way}, which is not for flowmaps: choose DDP, or FSDP2 (--fsdp).")
    from accelerate import PartialState

    own = PartialState(cpu=wanted.type == "cpu").device or wanted
    shard = shard or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return Placement(torch.device(own.type, own.index), shard, find_unused_parameters)


def _is_sharded(module: Any) -> bool:
    """Whether FSDP2 has wrapped a module, told by an attribute: its class takes a second to import."""
    return hasattr(module, "unshard")


def gradient_sync(module: Any, last: bool) -> AbstractContextManager[None]:
    """Context of one micro-batch: gradients accumulate locally, and are reduced over processes in the last one."""
    if _is_sharded(module):
        module.set_requires_gradient_sync(last)
        module.set_reshard_after_backward(last)
    elif isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def unsharded(module: Any) -> Iterator[None]:
    """Context in which FSDP2 gathers the full weights in each process, so that networks can be called directly."""
    if not _is_sharded(module):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


@torch.no_grad()
def fill(value: Any, whole: Tensor) -> None:
    """Copy a full tensor into one that may be sharded; each process copies its own shard."""
    if hasattr(value, "device_mesh"):  # a `DTensor`
        from torch.distributed.tensor import distribute_tensor

        whole = distribute_tensor(whole.to(value.device), value.device_mesh, value.placements, src_data_rank=None)
    value.copy_(whole)


@torch.no_grad()
def local(tensors: Iterable[Any]) -> list[Tensor]:
    """This process's shard of each tensor."""
    return [value.to_local() if hasattr(value, "to_local") else value for value in tensors]


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that are not finite in this process, of sharded ones in its shard."""
    here = zip(tensors, local(tensors.values()), strict=True)
    return [name for name, value in here if not bool(value.isfinite().all())]
