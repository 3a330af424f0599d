"""Training checkpoints: written atomically, rotated, checked by SHA-256; `training.state.State` says what they hold.

checkpoints/map-00001000/         state.safetensors, what the run says of itself in its header; its SHA-256
checkpoints/map-00001000.before/  the checkpoint that this one replaces: left only where the save was killed
checkpoints/.map-00001000.part/   being written or deleted: never read, removed by the next save

Files and folders of other names are not touched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from ..system.files import sync_folder, write_atomically
from ..system.processes import each, gather, on_first
from . import cards
from .models import save_tensors

FORMAT = 3
STATE, DIGEST, OLD_CARD = "state.safetensors", "state.sha256", "state.json"
"""The tensors, their SHA-256 as `sha256sum` writes it, and what formats 1 and 2 had in the place of both."""
PREVIOUS, BEFORE, PART = "previous", ".before", ".part"
NAME = re.compile(r"[a-z]+-[0-9]{8,}(\.before)?")
MAX_HEADER_BYTES = 2**27
CHANGED = "is damaged: it is not what was written"


class Saved(NamedTuple):
    """A checkpoint that a folder has.

    Attributes:
        order: its place in the order of saving; infinite where that is damaged or cannot be read.
        name: of its folder.
        readable: False after an I/O error; kept, because the error may be temporary.
    """

    order: float
    name: str
    readable: bool = True


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
        tensors: plain ones, the same in all processes, or sharded ones (`DTensor`), of which the first process writes
            the whole.
        about: kept with them as JSON.
        keep: how many are kept, this one among them, at least 1.
        keep_every: of the older ones those are kept too whose number is a multiple of it, other than 0; 0 for none.

    Returns:
        The folder of the checkpoint.

    Raises:
        ValueError: it cannot be written: the disk is full, the folder is gone or read-only. The last one is intact.
    """
    assert keep > 0
    part = folder / f".{name}{PART}"
    try:
        order = on_first(lambda: _begin(folder, part))
        header = {"format": FORMAT, "order": order, "about": dict(about)}
        whole = gather(tensors)
        on_first(lambda: _write(part, whole, header))
        on_first(lambda: _publish(folder, name, part))
        on_first(lambda: _rotate(folder, name, keep, keep_every))
    except OSError as error:
        size = sum(value.numel() * value.element_size() for value in tensors.values())
        raise ValueError(on_first(lambda why=error: _refusal(folder, name, why, size))) from None
    return folder / name


def names(folder: Path) -> list[str]:
    """The checkpoints of a run, in the order of saving.

    Damaged ones come last, so that resuming fails on them instead of skipping them silently.

    Raises:
        OSError: the folder cannot be read.
    """
    return [saved.name for saved in _all_in(folder)]


def find(folder: Path, name: str | None = None) -> str | None:
    """The name of a checkpoint to go on from; all processes call it.

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


def read(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint and what was kept with them; all processes call it.

    The tensors are whole, on the CPU, and mapped from the file: memory holds what is used of them, once for all
    processes of a machine.

    Args:
        folder: of the checkpoints.
        name: of the checkpoint.

    Raises:
        ValueError: a file is missing, is not what was written, or is of another version.
    """
    try:
        header = on_first(lambda: _checked_header(folder, name))
        return each(lambda: load_file(folder / name / STATE)), header["about"]
    except OSError as error:
        raise _unreadable(folder / name, error) from None


def clear(folder: Path, keep_every: int = 0, kept: Collection[str] = ()) -> None:
    """Remove the checkpoints of a run that has ended, but those named and those of a multiple of `keep_every` steps.

    What cannot be removed stays: the run has ended well.
    """
    with contextlib.suppress(OSError):
        _sweep(folder)
        for saved in _all_in(folder):
            if saved.readable and saved.name not in kept and not _is_multiple(saved, keep_every):
                _try_to_discard(folder / saved.name)
        folder.rmdir()  # unless something is left in it


# writing --------------------------------------------------------------------------------------------------------------


def _begin(folder: Path, part: Path) -> int:
    """Clean up, create the temporary folder, and return the checkpoint's sequence number."""
    folder.mkdir(exist_ok=True)
    _sweep(folder)
    part.mkdir()
    sync_folder(folder.parent)
    orders = [int(saved.order) for saved in _all_in(folder, strictly=True) if saved.order < math.inf]
    return 1 + max(orders, default=0)


def _write(part: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write the files of a checkpoint, and wait until they are on the disk."""
    digest = save_tensors(part / STATE, tensors, header)
    write_atomically(part / DIGEST, _digest_line(digest))


def _digest_line(digest: str) -> str:
    return f"{digest}  {STATE}\n"


def _publish(folder: Path, name: str, part: Path) -> None:
    """Rename the temporary folder to `name`; an old checkpoint of that name stays readable as `name.before`."""
    if os.path.lexists(folder / name):
        _discard(folder / f"{name}{BEFORE}")
        os.rename(folder / name, folder / f"{name}{BEFORE}")
    os.rename(part, folder / name)
    sync_folder(folder)


def _rotate(folder: Path, name: str, keep: int, keep_every: int) -> None:
    """Delete what stood in place of this checkpoint and those that are not kept, the damaged ones among them."""
    _try_to_discard(folder / f"{name}{BEFORE}")
    with contextlib.suppress(OSError):
        every = _all_in(folder)
        last = [saved.name for saved in every if saved.order < math.inf][-keep:]
        for saved in every:
            if saved.readable and saved.name not in (name, *last) and not _is_multiple(saved, keep_every):
                _try_to_discard(folder / saved.name)


def _is_multiple(saved: Saved, keep_every: int) -> bool:
    """Whether a checkpoint is of a step that is kept for good."""
    step = int(saved.name.removesuffix(BEFORE).rpartition("-")[2]) if saved.order < math.inf else 0
    return bool(keep_every and step and step % keep_every == 0)


def _sweep(folder: Path) -> None:
    """Remove what killed saves and deletions left; what cannot be removed now stays until the next save."""
    for left in folder.glob(f".*{PART}"):
        if NAME.fullmatch(left.name[1 : -len(PART)]):
            with contextlib.suppress(OSError):
                _remove(left)


def _try_to_discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        _discard(path)


def _discard(path: Path) -> None:
    """Delete a checkpoint if there is one; it is renamed first, so that a half-deleted checkpoint is never read."""
    if os.path.lexists(path):
        part = path.with_name(f".{path.name}{PART}")
        os.rename(path, part)
        _remove(part)


def _remove(path: Path) -> None:
    """Delete a folder; of a symlink only the link, not its target."""
    path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def _refusal(folder: Path, name: str, error: OSError, size: int) -> str:
    """Delete the temporary folder of a failed save, and return the error message; `size` in bytes."""
    shutil.rmtree(folder / f".{name}{PART}", ignore_errors=True)
    try:
        last = [saved.name for saved in _all_in(folder) if saved.order < math.inf][-1:]
        left = f"the last one, {last[0]}, is intact" if last else "there is no earlier one"
    except OSError:
        left = "the earlier ones cannot be read"
    takes = f"{math.ceil(size / 1e6)} MB"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = f"free {takes} or more" if full else f"make the folder writable, with {takes} free,"
    where = f"{folder}: {error.strerror or error}"
    return f"checkpoint {name} cannot be saved in {where}; {left}: {remedy} and resume."


# reading --------------------------------------------------------------------------------------------------------------


def _all_in(folder: Path, *, strictly: bool = False) -> list[Saved]:
    """The checkpoints of a folder in the order of saving; those whose place is not known come last.

    Args:
        folder: of the checkpoints; it may be missing.
        strictly: refuse to go on where a card cannot be read.

    Raises:
        OSError: the folder cannot be read; or strictly, and a card cannot.
    """
    found: list[Saved] = []
    try:
        inside = os.listdir(folder)
    except FileNotFoundError:
        inside = []
    for name in filter(NAME.fullmatch, inside):
        try:
            found.append(Saved(_read_header(folder / name / STATE)["order"], name))
        except (FileNotFoundError, NotADirectoryError):
            if any((folder / name / file).exists() for file in (DIGEST, OLD_CARD)):  # otherwise a folder of the user's
                found.append(Saved(math.inf, name))
        except (ValueError, IsADirectoryError):
            found.append(Saved(math.inf, name))
        except OSError:
            if strictly:
                raise
            found.append(Saved(math.inf, name, readable=False))
    return sorted(found)


def _read_header(path: Path) -> dict[str, Any]:
    """What `save` has written into the header of a file; the tensors behind it are not looked at.

    Raises:
        ValueError: it is damaged.
        OSError: it is missing or cannot be read.
    """
    with path.open("rb") as file, contextlib.suppress(ValueError, TypeError, KeyError):
        length = int.from_bytes(file.read(8), "little")
        header = cards.parse(cards.parse(file.read(min(length, MAX_HEADER_BYTES)).decode())["__metadata__"]["flowmaps"])
        if type(header["order"]) is int:
            return header
    raise ValueError(CHANGED)


def _find(folder: Path, name: str | None) -> str | None:
    every = names(folder)
    if name is None:
        return every[-1] if every else None
    if name == PREVIOUS and len(every) > 1:
        return every[-2]
    if name in every:
        return name
    there = f"there is {', '.join(every)}" if every else "there is none: train again into another folder"
    raise ValueError(f"{folder} has no checkpoint {name}: {there}.")


def _checked_header(folder: Path, name: str) -> dict[str, Any]:
    """The header of a checkpoint each byte of which is what was written."""
    path = folder / name
    if (path / OLD_CARD).exists():
        raise ValueError(
            f"{path} was written by an earlier version, this one reads format {FORMAT}: finish the run with that "
            "version, or train again into another folder."
        )
    try:
        with (path / STATE).open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if (path / DIGEST).read_bytes() != _digest_line(digest).encode():
            raise ValueError(CHANGED)
        header = _read_header(path / STATE)
        if header.get("format") != FORMAT:
            raise ValueError(f"is of format {header.get('format')!r:.20}, this version reads format {FORMAT}")
        return header
    except (ValueError, OSError) as error:
        raise _damaged(folder, name, error) from None


def _damaged(folder: Path, name: str, error: ValueError | OSError) -> ValueError:
    """A checkpoint is refused: the error, with the one to go on from instead."""
    why = str(error)
    if isinstance(error, OSError):
        missing = isinstance(error, FileNotFoundError)
        why = f"has no {Path(error.filename).name}" if missing else f"cannot be read ({error.strerror or error})"
    every = names(folder)
    earlier = every[: every.index(name)] if name in every else every
    instead = earlier[-1:] or [other for other in every if other != name][-1:]
    if not instead:
        return ValueError(f"{folder / name} {why}: there is no other checkpoint, train again into another folder.")
    return ValueError(f"{folder / name} {why}: resume from {instead[0]}.")


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path} cannot be read: {error.strerror or error}; mend that and resume.")
