"""The checkpoints of a run in training: each is there whole or not at all, and is checked before it is used.

checkpoints/map-00001000/         state.json, and state.safetensors or, of a sharded run, shard-*.safetensors
checkpoints/map-00001000.before/  what stood there until it was saved again: left only where that save was killed
checkpoints/.map-00001000.part/   being written or deleted: nobody reads it, the next save removes it

Whatever has another name, and each link, is its user's: it is left alone. state.json keeps the SHA-256 of each file and
its own, the place in the order of saving, what the run says of itself.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..system.files import sync_folder, write_atomically
from ..system.processes import all_of, on_first, rank, ranks
from .ledger import CARD, CHANGED, FORMAT, LAST, NAME, NO_FILE, is_card, is_own, listed, open_card, render
from .shards import SUFFIX, Broken, Template, fill, write

PREVIOUS, BEFORE, PART = "previous", ".before", ".part"


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

    What cannot be deleted then is no failure, since training can go on: the next save tries again.

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
    part = folder / f".{name}{PART}"
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

    One whose state.json is damaged stands last: to go on without it is its user's choice.

    Raises:
        OSError: the folder cannot be read.
    """
    return [entry.name for entry in listed(folder)]


def find(folder: Path, name: str | None = None) -> str | None:
    """A checkpoint to go on from; all processes call it.

    Args:
        folder: of the checkpoints.
        name: of a checkpoint, or `previous` for the last but one; `None` for the last.

    Returns:
        Its name; `None` if the last is asked for and there is none.

    Raises:
        ValueError: there is no such checkpoint, or the folder is a link or cannot be read.
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
        The tensors, filled, and what was kept beside them; `seconds` is in it.

    Raises:
        ValueError: a file is missing or is not what was written, or a tensor has another shape or type.
    """
    tensors: dict[str, Tensor] = {}
    try:
        card = on_first(lambda: _checked_card(folder, name))
        all_of(lambda: _check(folder, name, dict(sorted(card["sha256"].items())[rank() :: ranks()])))
        all_of(lambda: tensors.update(_fill(folder, name, template)))
    except OSError as error:
        raise _unreadable(folder / name, error) from None
    return tensors, {"seconds": 0.0, **card["about"]}


def clear(folder: Path, keep_every: int = 0, kept: Collection[str] = ()) -> None:
    """Remove the checkpoints of a run that has ended, but those named and those of a multiple of `keep_every` steps.

    What cannot be removed stays: the run has ended well.
    """
    with contextlib.suppress(OSError):
        _sweep(folder)
        for entry in listed(folder):
            stays = entry.stays or entry.name in kept
            if not stays and not (entry.card and _is_multiple(entry.card, keep_every)):
                _try_to_discard(folder / entry.name)
        folder.rmdir()  # unless something is left in it


def _begin(folder: Path, part: Path) -> int:
    """Make the folder to write into, where a killed run left nothing; the place of the checkpoint in the order."""
    _refuse_link(folder)
    folder.mkdir(exist_ok=True)
    _sweep(folder)
    part.mkdir()
    sync_folder(folder.parent)
    orders = [int(entry.order) for entry in listed(folder, strictly=True) if entry.order < math.inf]
    return min(1 + max(orders, default=0), LAST)


def _publish(folder: Path, name: str, part: Path, card: dict[str, Any]) -> None:
    """Give the part its name; the checkpoint that had it keeps another under which it is found, until then."""
    assert is_card(card)
    write_atomically(part / CARD, render(card))  # which syncs the folder, with all that is in it
    if os.path.lexists(folder / name):
        _discard(folder / f"{name}{BEFORE}")
        os.rename(folder / name, folder / f"{name}{BEFORE}")
    os.rename(part, folder / name)
    sync_folder(folder)


def _rotate(folder: Path, name: str, keep: int, keep_every: int) -> None:
    """Delete what stood in place of this checkpoint and those that are not kept, the damaged ones among them."""
    _try_to_discard(folder / f"{name}{BEFORE}")
    with contextlib.suppress(OSError):
        every = listed(folder)
        good = [entry for entry in every if entry.card]
        kept = {entry.name for entry in good[-keep:]} | {name}
        kept |= {entry.name for entry in good if entry.card and _is_multiple(entry.card, keep_every)}
        for entry in every:
            if not entry.stays and entry.name not in kept:
                _try_to_discard(folder / entry.name)


def _is_multiple(card: dict[str, Any], keep_every: int) -> bool:
    """Whether a checkpoint is of a step that is kept for good."""
    step = card["about"]["step"]
    return bool(keep_every and step and step % keep_every == 0)


def _sweep(folder: Path) -> None:
    """Remove what saves and deletions left that were killed; what cannot be removed now is left for the next time."""
    for left in folder.glob(f".*{PART}"):
        if NAME.fullmatch(left.name[1 : -len(PART)]):
            with contextlib.suppress(OSError):
                _remove(left)


def _try_to_discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        _discard(path)


def _discard(path: Path) -> None:
    """Delete a checkpoint if it is there, out of sight: half of one never has a good name."""
    if os.path.lexists(path):
        part = path.with_name(f".{path.name}{PART}")
        os.rename(path, part)
        _remove(part)


def _remove(path: Path) -> None:
    """Delete a folder, or a link and not what it leads to."""
    path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise ValueError(
            f"{folder} is a link, through which no checkpoint is written or deleted: put the folder in its place."
        )


def _refusal(folder: Path, name: str, error: OSError, size: int) -> str:
    """What is said of a checkpoint that could not be saved, its part deleted; `size` in bytes."""
    shutil.rmtree(folder / f".{name}{PART}", ignore_errors=True)
    try:
        last = [entry.name for entry in listed(folder) if entry.card][-1:]
        left = f"the last one, {last[0]}, is intact" if last else "there is no earlier one"
    except OSError:
        left = "the earlier ones cannot be read"
    takes = f"{math.ceil(size / 1e6)} MB"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = f"free {takes} or more" if full else f"make the folder writable, with {takes} free,"
    where = f"{folder}: {error.strerror or error}"
    return f"checkpoint {name} cannot be saved in {where}; {left}: {remedy} and go on with --resume."


def _find(folder: Path, name: str | None) -> str | None:
    _refuse_link(folder)
    every = names(folder)
    if name is None:
        return every[-1] if every else None
    if name == PREVIOUS and len(every) > 1:
        return every[-2]
    if name in every:
        return name
    there = f"there is {', '.join(every)}" if every else "there is none: train again into another --out"
    raise ValueError(f"{folder} has no checkpoint {name}: {there}.")


def _checked_card(folder: Path, name: str) -> dict[str, Any]:
    """The card of a checkpoint that has the files it was written with, no shard missing and none too many."""
    try:
        card = open_card(folder / name / CARD)
        there = {path.name for path in (folder / name).glob(f"*{SUFFIX}")}
    except (ValueError, OSError) as error:
        raise _damaged(folder, name, CARD, error) from None
    for file in sorted(there ^ card["sha256"].keys()):
        raise _damaged(folder, name, file, "is of another checkpoint" if file in there else "is missing")
    return card


def _check(folder: Path, name: str, digests: dict[str, str]) -> None:
    """Refuse files that have another SHA-256."""
    for file, digest in digests.items():
        if not is_own(folder / name / file):
            raise _damaged(folder, name, file, NO_FILE)
        try:
            with (folder / name / file).open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise _damaged(folder, name, file, error) from None
        if found != digest:
            raise _damaged(folder, name, file, CHANGED)


def _fill(folder: Path, name: str, template: Template) -> dict[str, Tensor]:
    """The tensors of files that are what was written, by whomever."""
    try:
        return fill(folder / name, template)
    except Broken as error:
        raise _damaged(folder, name, error.file, error) from None


def _damaged(folder: Path, name: str, file: str, why: str | Exception) -> ValueError:
    """A file is refused: the error, with the checkpoint to go on from instead."""
    if isinstance(why, FileNotFoundError):
        why = "is missing"
    elif isinstance(why, OSError):
        why = f"cannot be read ({why.strerror or why})"
    file = file if file.isprintable() else ascii(file)
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
