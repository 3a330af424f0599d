"""A safetensors file of tensors that processes may share out, written one tensor at a time.

length of the header  {"NAME": {"dtype": "F32", "shape": [5, 3], "data_offsets": [0, 60]}, ...}  spaces  tensors
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..system.processes import rank

DTYPES = {
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


def write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file, in the first process, a tensor at a time: no memory holds a second copy of them all.

    Returns:
        The SHA-256 of the file; nothing in the other processes, which help to gather what is sharded.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))  # so each is aligned
    whole = (value.full_tensor() if isinstance(value, DTensor) else value for value in ordered.values())
    bodies = (value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data for value in whole)
    try:
        return _write_synced(path, itertools.chain([_header(ordered)], bodies)) if rank() == 0 else ""
    finally:
        for _ in whole:  # each process takes part in gathering all of them, also one that cannot write
            pass


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """What a safetensors file begins with: the type, the shape and the place of each tensor."""
    entries, end = {}, 0
    for name, value in tensors.items():
        begin, end = end, end + value.numel() * value.element_size()
        entries[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_synced(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write a file and have it on the disk: its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
