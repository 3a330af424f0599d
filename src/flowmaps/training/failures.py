"""Errors of a training that cannot go on: one line with the cause, the last checkpoint and how to resume."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..storage import checkpoints
from ..system.processes import LOST, LostProcess, first_line, is_lost

CHECKPOINTS = "checkpoints"
"""The folder of checkpoints within that of a training."""


def last_checkpoint(folder: Path | None) -> str:
    """A sentence about the last checkpoint of a folder and how to resume, for error messages."""
    if folder is None:
        return "No checkpoint is kept, because no folder was given."
    try:
        names = checkpoints.names(folder / CHECKPOINTS)
    except (OSError, ValueError) as error:
        return f"Whether a checkpoint is left cannot be told: {folder / CHECKPOINTS} cannot be read ({error})."
    if not names:
        return "No checkpoint was saved before it."
    return f"The last checkpoint, {names[-1]}, is intact: resume from it."


@contextlib.contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """Context that turns an `OSError` into a `ValueError` naming the folder and the last checkpoint.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        why = f"{folder} cannot be written: {error.strerror or error}{where}"
        raise ValueError(f"{why}. {last_checkpoint(folder)}") from None


@contextlib.contextmanager
def reporting_lost_process(folder: Path | None) -> Iterator[None]:
    """Context that turns the error of a lost process into a `LostProcess` naming the last checkpoint.

    Raises:
        LostProcess: another process has ended, or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise LostProcess(f"{LOST} ({first_line(error)}). {last_checkpoint(folder)}") from None
