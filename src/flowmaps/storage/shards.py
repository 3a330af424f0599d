"""The tensors of a checkpoint as safetensors files: one of plain tensors, or one of each process for sharded ones.

state.safetensors, or shard-00001.safetensors and so on. Either is read by any number of processes.

A file may come from anybody, signed as it should be. So each header is read first, without a tensor: its tensors are
those that lie behind it, and the rows of one that several files share lie side by side. Whoever makes room for what is
kept then never makes more than the files take.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..system.processes import all_of, on_first, rank
from . import cards

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
TYPES = {name: kind for kind, name in KINDS.items()}
SHARING = "DCP_SHARDING_INFO"
"""Where the metadata of a file says which rows it holds, as torch does."""
OFFSETS = "saved_offsets"
LONGEST = 1_000  # letters in the name of a tensor
Template = Callable[[str, torch.Size, torch.dtype], Tensor]


class Broken(ValueError):
    """Files hold something else than tensors that were saved.

    Args:
        file: the name of the file; empty for that of all of them.
        words: what is wrong.
    """

    def __init__(self, file: str, words: str) -> None:
        super().__init__(file, words)
        self.file, self.words = file, words

    def __str__(self) -> str:
        return self.words


class Piece(NamedTuple):
    """What a file holds of a tensor: the type, the shape, and where in the whole tensor it begins."""

    kind: torch.dtype
    shape: list[int]
    offset: list[int]


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
            offsets = {item.index.fqn: {OFFSETS: list(item.tensor_data.chunk.offsets)} for item in plan.items}
            if mine:
                file = f"shard-{rank() + 1:05d}{SUFFIX}"
                written[file] = _write_file(part / file, mine, {SHARING: json.dumps(offsets)})
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
        Broken: the files hold something else than tensors that were saved.
        ValueError: a tensor has another shape or type than the template.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    sizes, tensors = _sizes(path), {}
    reader = HuggingFaceStorageReader(str(path))
    try:
        reader.read_metadata()  # which refuses what is not a safetensors file
        for name, had in sorted(sizes.items()):  # files are not listed in the same order everywhere
            tensors[name] = _room(path, name, had, template)
        with warnings.catch_warnings():  # each process reads what it needs: that they do not talk is no mistake
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        cause = _cause(error)
        if isinstance(cause, OSError) or not isinstance(cause, Exception):
            raise cause from None
        raise Broken("", f"cannot be used ({cards.reason(cause)})") from None
    except (SafetensorError, *cards.SENSELESS, AssertionError) as error:
        raise Broken("", f"cannot be used ({cards.reason(error)})") from None
    return tensors


def _room(path: Path, name: str, had: tuple[torch.Size, torch.dtype], template: Template) -> Tensor:
    """The tensor to be filled, which is like the one that was kept."""
    value = template(name, *had)
    if had != (value.shape, value.dtype):
        has = _words(value.shape, value.dtype)
        raise ValueError(
            f"{path} is of another network: its {name:.100} is {_words(*had)}, here it is {has}: go on with the "
            "options that it was trained with."
        )
    return value


def _sizes(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The shape and type of each tensor of a checkpoint, from the headers of its files; all of each is there."""
    pieces: dict[str, list[tuple[str, Piece]]] = {}
    for file in sorted(path.glob(f"*{SUFFIX}")):
        try:
            for name, piece in _pieces(file):
                pieces.setdefault(name, []).append((file.name, piece))
        except (ValueError, *cards.SENSELESS) as error:
            raise Broken(file.name, f"is no file of training states ({cards.reason(error)})") from None
    return {name: _whole(name, held) for name, held in pieces.items()}


def _pieces(file: Path) -> Iterator[tuple[str, Piece]]:
    """What a header says that its file holds, if that much is in it."""
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if length > min(size - 8, cards.MOST):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = cards.parse(content.read(length).decode())
    notes = header.pop("__metadata__", {}).get(SHARING)
    rows = cards.parse(notes) if notes else None
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        shape = [*entry["shape"]]
        piece = Piece(TYPES[entry["dtype"]], shape, [0] * len(shape) if rows is None else [*rows[name][OFFSETS]])
        if not name.isprintable() or len(name) > LONGEST:
            raise ValueError(f"a tensor of the name {name!r:.100}")
        if len(shape) != len(piece.offset) or any(
            type(number) is not int or not 0 <= number < 2**60 for number in (begin, end, *shape, *piece.offset)
        ):
            raise ValueError(f"{name:.100} is of shape {shape!r:.100} from {piece.offset!r:.100}")
        if math.prod(shape) * piece.kind.itemsize != end - begin or end > size - 8 - length:
            raise ValueError(f"{name:.100} is of shape {shape!r:.100} in {end - begin} bytes")
        yield name, piece


def _whole(name: str, held: list[tuple[str, Piece]]) -> tuple[torch.Size, torch.dtype]:
    """The shape and type of a tensor of which files hold some rows each, or one holds it all."""
    held = sorted(held, key=lambda entry: (entry[1].offset, entry[1].shape))
    file, (kind, shape, offset) = held[-1]
    whole, end = [first + count for first, count in zip(offset, shape, strict=True)], 0
    for file, piece in held:
        fits = (piece.kind, piece.shape[1:]) == (kind, whole[1:])
        if not fits or any(piece.offset[1:]) or (piece.offset and math.prod(piece.shape) and piece.offset[0] != end):
            raise Broken(file, f"has rows of {name:.100} that do not lie beside those in the other files")
        end += piece.shape[0] if piece.shape else 0
    if whole and end != whole[0]:
        raise Broken(file, f"has rows of {name:.100} that do not lie beside those in the other files")
    return torch.Size(whole), kind


def _cause(error: Any) -> BaseException:
    """What made a `CheckpointException`, which is none of the errors that one expects: that of the disk first."""
    causes = [cause for cause, _ in error.failures.values()]
    return next((cause for cause in causes if isinstance(cause, OSError)), causes[0])


def _words(shape: torch.Size, kind: torch.dtype) -> str:
    return f"{' x '.join(map(str, shape)) or 'a number'} of {str(kind).removeprefix('torch.')}"
