"""The tensors of a checkpoint as safetensors files: one of plain tensors, or one of each process for sharded ones.

state.safetensors, or shard-00001.safetensors and so on. Either is read by any number of processes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .processes import all_of, on_first, rank

SUFFIX = ".safetensors"
STATE = f"state{SUFFIX}"
KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The names of types in a safetensors file."""
Template = Callable[[str, torch.Size, torch.dtype], Tensor]


def write(part: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write the tensors, each process its shard or the first one everything: the SHA-256 of each file."""
    sharding = sys.modules.get("torch.distributed.tensor")  # takes half a second to import, and has been if it is used
    if sharding and any(isinstance(value, sharding.DTensor) for value in tensors.values()):
        mine = _write_shard(part, tensors)
        return {file: digest for theirs in all_of(lambda: mine) for file, digest in theirs.items()}
    return on_first(lambda: {STATE: _write_file(part / STATE, tensors, {})})


def _write_file(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """Write a safetensors file, a tensor at a time: memory holds no second copy of them all; its SHA-256.

    Args:
        path: of the file.
        tensors: on any device.
        notes: the metadata of the file.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # so that each is aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **notes}}
    end = 0
    for name, value in ordered:
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": KINDS[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    bodies = (value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data for _, value in ordered)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in itertools.chain([len(text).to_bytes(8, "little") + text], bodies):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write_shard(part: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write what this process holds of sharded tensors: its file, if it holds anything, and the SHA-256 of that."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    written: dict[str, str] = {}

    class Writer(HuggingFaceStorageWriter):
        """It writes as above, where its base holds two copies of the file, and syncs before all of it is written."""

        def write_data(self, plan: Any, planner: Any) -> torch.futures.Future[list[Any]]:
            mine = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            offsets = {item.index.fqn: {"saved_offsets": list(item.tensor_data.chunk.offsets)} for item in plan.items}
            if mine:
                file = f"shard-{rank() + 1:05d}{SUFFIX}"
                written[file] = _write_file(part / file, mine, {"DCP_SHARDING_INFO": json.dumps(offsets)})
            done: torch.futures.Future[list[Any]] = torch.futures.Future()
            done.set_result([])  # which its base needs for an index that is not written here
            return done

    try:
        save(dict(tensors), storage_writer=Writer(str(part), save_distributed=True))
    except CheckpointException as error:  # all processes get it
        raise _cause(error) from None
    return written


def fill(path: Path, template: Template) -> dict[str, Tensor]:
    """Read tensors that one process or several wrote, which the caller has checked.

    Args:
        path: the folder of the files.
        template: makes the tensor to be filled, plain or sharded, from the name, shape and type that was kept; it is
            called in the same order in all processes.

    Returns:
        The tensors, filled; of a sharded one each process reads its own part.

    Raises:
        ValueError: a tensor has another shape or type than the template.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader, tensors = HuggingFaceStorageReader(str(path)), {}
    kept: dict[str, Any] = reader.read_metadata().state_dict_metadata
    for name in sorted(kept):  # files are not listed in the same order everywhere
        had = kept[name].size, kept[name].properties.dtype
        tensors[name] = value = template(name, *had)
        if had != (value.shape, value.dtype):
            has = _words(value.shape, value.dtype)
            raise ValueError(
                f"{path} is of another network: its {name} is {_words(*had)}, here it is {has}: go on with the options "
                "that it was trained with."
            )
    with warnings.catch_warnings():  # each process reads what it needs: that they do not talk is no mistake
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            load(tensors, storage_reader=reader, no_dist=True)
        except CheckpointException as error:
            raise _cause(error) from None
    return tensors


def _cause(error: Any) -> BaseException:
    """What made a `CheckpointException`, which is none of the errors that one expects: that of the disk first."""
    causes = [cause for cause, _ in error.failures.values()]
    return next((cause for cause in causes if isinstance(cause, OSError)), causes[0])


def _words(shape: torch.Size, kind: torch.dtype) -> str:
    return f"{' x '.join(map(str, shape)) or 'a number'} of {str(kind).removeprefix('torch.')}"
