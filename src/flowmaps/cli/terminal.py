"""Output on the terminal: a console and progress bars; only the first process prints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from ..system.progress import Watch

RANK = os.environ.get("RANK", "0")
FIRST = not RANK.isdecimal() or int(RANK) == 0
"""Whether this is the first process of a launcher, or the only one."""
console = Console(highlight=False, quiet=not FIRST)


def bar() -> Progress:
    """A progress bar with room for a note in 80 columns; it is not drawn where the output is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextlib.contextmanager
def watching(what: str, total: int = 1) -> Iterator[Watch]:
    """Context with a progress bar that counts up to `total`; gives the callback that moves it."""
    with bar() as progress:
        task = progress.add_task(what, total=total, note="")
        yield lambda title, share: progress.update(task, completed=total * share, note=title)
