"""The checkpoints of a run in training: each is there whole or not at all, and is checked before it is used.

checkpoints/map-00001000/         state.json, and state.safetensors or, of a sharded run, shard-*.safetensors
checkpoints/map-00001000.before/  what stood there until it was saved again: left only where that save was killed
checkpoints/.map-00001000.part/   being written or deleted: nobody reads it, the next save removes it

state.json keeps the SHA-256 of each file and its own, the place in the order of saving, what the run says of itself.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import sync_folder, write_atomically
from .processes import all_of, on_first, rank, ranks
from .shards import SUFFIX, Template, fill, write

FORMAT = 1
CARD, PREVIOUS, BEFORE = "state.json", "previous", ".before"
CHANGED = "is damaged: it is not what was written"


def save(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    *,
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Save a checkpoint, then delete those that are no longer kept; all processes call it.

    Args:
        folder: of the checkpoints; made if it is missing, in a folder that exists.
        name: of the checkpoint; one of that name is replaced.
        tensors: plain ones, the same in all processes, or sharded ones (`DTensor`) among them: then each process writes
            its own part.
        about: kept beside them as JSON; its `step` is an integer.
        keep: how many are kept, this one among them, at least 1.
        keep_every: of the older ones those are kept too whose step is a multiple of it, other than 0; 0 for none.

    Returns:
        The folder of the checkpoint.

    Raises:
        ValueError: it cannot be written: the disk is full, the folder is gone or read-only. The last one is intact.
    """
    assert keep > 0
    part = folder / f".{name}.part"
    try:
        order = on_first(lambda: _begin(folder, part))
        card = {"format": FORMAT, "order": order, "sha256": write(part, tensors), "about": dict(about)}
        on_first(lambda: _publish(folder, name, part, card))
        on_first(lambda: _rotate(folder, name, keep, keep_every))
    except OSError as error:
        size = sum(value.numel() * value.element_size() for value in tensors.values())
        raise ValueError(on_first(lambda why=error: _refusal(folder, name, why, size))) from None
    return folder / name


def names(folder: Path) -> list[str]:
    """The checkpoints of a run, in the order of saving.

    One whose state.json is damaged stands last: to go on without it is the user's choice.

    Raises:
        OSError: the folder cannot be read.
    """
    return [name for _, name, _ in _listed(folder)]


def find(folder: Path, name: str | None = None) -> str | None:
    """A checkpoint to go on from; all processes call it.

    Args:
        folder: of the checkpoints.
        name: of a checkpoint, or `previous` for the last but one; `None` for the last.

    Returns:
        Its name; `None` if the last is asked for and there is none.

    Raises:
        ValueError: there is no such checkpoint, or the folder cannot be read.
    """
    try:
        return on_first(lambda: _find(folder, name))
    except OSError as error:
        raise _unreadable(folder, error) from None


def read(folder: Path, name: str, template: Template) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint, of this number of processes or another; all processes call it.

    Args:
        folder: of the checkpoints.
        name: of the checkpoint.
        template: makes the tensor to be filled, plain or sharded, from the name, shape and type that was kept; it is
            called in the same order in all processes.

    Returns:
        The tensors, filled, and what was kept beside them.

    Raises:
        ValueError: a file is missing or is not what was written, or a tensor has another shape or type.
    """
    tensors: dict[str, Tensor] = {}
    try:
        card = on_first(lambda: _checked_card(folder, name))
        all_of(lambda: _check(folder, name, dict(sorted(card["sha256"].items())[rank() :: ranks()])))
        all_of(lambda: tensors.update(fill(folder / name, template)))
    except OSError as error:
        raise _unreadable(folder / name, error) from None
    return tensors, card["about"]


def clear(folder: Path, keep_every: int = 0) -> None:
    """Remove the checkpoints of a run that has ended, but those whose step is a multiple of `keep_every`."""
    for _, name, card in _listed(folder):
        if not (card and keep_every and card["about"]["step"] and card["about"]["step"] % keep_every == 0):
            _discard(folder / name)
    with contextlib.suppress(OSError):  # not empty, or not there
        folder.rmdir()


def _begin(folder: Path, part: Path) -> int:
    """Make the folder to write into, where a killed run left nothing; the place of the checkpoint in the order."""
    folder.mkdir(exist_ok=True)
    for left in folder.glob(".*.part"):
        shutil.rmtree(left)
    part.mkdir()
    sync_folder(folder.parent)
    return 1 + max((card["order"] for _, _, card in _listed(folder, strictly=True) if card), default=0)


def _publish(folder: Path, name: str, part: Path, card: dict[str, Any]) -> None:
    """Give the part its name; the checkpoint that had it keeps another under which it is found, until then."""
    write_atomically(part / CARD, _render(card))  # which syncs the folder, with all that is in it
    if (folder / name).exists():
        _discard(folder / f"{name}{BEFORE}")
        os.rename(folder / name, folder / f"{name}{BEFORE}")
    os.rename(part, folder / name)
    sync_folder(folder)


def _rotate(folder: Path, name: str, keep: int, keep_every: int) -> None:
    """Delete what stood in place of this checkpoint and those that are not kept, the damaged ones among them."""
    _discard(folder / f"{name}{BEFORE}")
    every = _listed(folder, strictly=True)
    good = [(old, card["about"]["step"]) for _, old, card in every if card]
    kept = {old for old, _ in good[-keep:]}
    kept |= {old for old, step in good if keep_every and step and step % keep_every == 0}
    for _, old, _ in every:
        if old not in kept:
            _discard(folder / old)


def _discard(path: Path) -> None:
    """Delete a checkpoint if it is there, out of sight: half of one never has a good name."""
    if path.exists():
        part = path.with_name(f".{path.name}.part")
        os.rename(path, part)
        shutil.rmtree(part)


def _refusal(folder: Path, name: str, error: OSError, size: int) -> str:
    """What is said of a checkpoint that could not be saved, its part deleted; `size` in bytes."""
    shutil.rmtree(folder / f".{name}.part", ignore_errors=True)
    try:
        last = [old for _, old, card in _listed(folder) if card][-1:]
        left = f"the last one, {last[0]}, is intact" if last else "there is no earlier one"
    except OSError:
        left = "the earlier ones cannot be read"
    takes = f"{math.ceil(size / 1e6)} MB"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = f"free {takes} or more" if full else f"make the folder writable, with {takes} free,"
    where = f"{folder}: {error.strerror or error}"
    return f"checkpoint {name} cannot be saved in {where}; {left}: {remedy} and go on with --resume."


def _listed(folder: Path, *, strictly: bool = False) -> list[tuple[float, str, dict[str, Any] | None]]:
    """Order, name and card of each checkpoint, sorted; one that is damaged is last and has no card.

    Raises:
        OSError: the folder cannot be read; or strictly, and a card cannot: what is hidden now may not be damaged.
    """
    found: list[tuple[float, str, dict[str, Any] | None]] = []
    for path in folder.iterdir() if folder.exists() else ():
        if not path.name.startswith(".") and (path / CARD).exists():
            try:
                card = _open_card(path / CARD)
                found.append((card["order"], path.name, card))
            except (ValueError, OSError) as error:
                if strictly and isinstance(error, OSError):
                    raise
                found.append((math.inf, path.name, None))
    return sorted(found, key=lambda entry: entry[:2])


def _find(folder: Path, name: str | None) -> str | None:
    every = names(folder)
    if name is None:
        return every[-1] if every else None
    if name == PREVIOUS and len(every) > 1:
        return every[-2]
    if name in every:
        return name
    there = f"there is {', '.join(every)}" if every else "there is none: train again into another --out"
    raise ValueError(f"{folder} has no checkpoint {name}: {there}.")


def _render(card: dict[str, Any]) -> bytes:
    """The text of a card, the digest of its content included."""
    own = hashlib.sha256(json.dumps(card).encode()).hexdigest()
    return (json.dumps({**card, "own": own}, indent=2) + "\n").encode()


def _open_card(path: Path) -> dict[str, Any]:
    """A card, if each byte of it is what was written: its content is rendered again, and compared."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
    text = path.read_bytes()
    try:
        card = json.loads(text)
        del card["own"]
        same = _render(card) == text
    except (ValueError, KeyError, TypeError, RecursionError):
        same = False
    if not same:
        raise ValueError(CHANGED)
    if card.get("format") != FORMAT or not _is_card(card):
        raise ValueError(f"is of format {card.get('format')!r}, this version reads {FORMAT}")
    return card


def _is_card(card: dict[str, Any]) -> bool:
    """Whether what a card says is of the kind that is read from it: anybody may have written it."""
    about, digests = card.get("about"), card.get("sha256")
    if not isinstance(about, dict) or not isinstance(digests, dict) or type(card.get("order")) is not int:
        return False
    return type(about.get("step")) is int and all(Path(file).name == file for file in digests)


def _checked_card(folder: Path, name: str) -> dict[str, Any]:
    """The card of a checkpoint that has the files it was written with, no shard missing and none too many."""
    try:
        card = _open_card(folder / name / CARD)
        there = {path.name for path in (folder / name).glob(f"*{SUFFIX}")}
    except (ValueError, OSError) as error:
        raise _damaged(folder, name, CARD, error) from None
    for file in sorted(there ^ card["sha256"].keys()):
        raise _damaged(folder, name, file, "is of another checkpoint" if file in there else "is missing")
    return card


def _check(folder: Path, name: str, digests: dict[str, str]) -> None:
    """Refuse files that have another SHA-256."""
    for file, digest in digests.items():
        try:
            with (folder / name / file).open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise _damaged(folder, name, file, error) from None
        if found != digest:
            raise _damaged(folder, name, file, CHANGED)


def _damaged(folder: Path, name: str, file: str, why: str | Exception) -> ValueError:
    """A file is refused: the error, with the checkpoint to go on from instead."""
    if isinstance(why, FileNotFoundError):
        why = "is missing"
    elif isinstance(why, OSError):
        why = f"cannot be read ({why.strerror or why})"
    every = names(folder)
    earlier = every[: every.index(name)] if name in every else every
    instead = earlier[-1:] or [other for other in every if other != name][-1:]
    if not instead:
        return ValueError(
            f"{folder / name / file} {why}: there is no other checkpoint, train again into another --out."
        )
    option = PREVIOUS if every[-2:] == [*instead, name] else instead[0]
    return ValueError(f"{folder / name / file} {why}: pass --resume-from {option} to go on from {instead[0]}.")


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path} cannot be read: {error.strerror or error}; mend that and go on with --resume.")
