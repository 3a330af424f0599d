"""Progress callbacks for work of more than two seconds; the command line draws a bar."""

from __future__ import annotations

from collections.abc import Callable

Watch = Callable[[str, float], None]
"""Progress callback `(title, share)`: what is being done, and the share done, from 0 to 1."""


def quiet(title: str, share: float) -> None:
    """Progress callback that does nothing."""


def in_words(seconds: float) -> str:
    """A time in words: seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


def milliseconds(seconds: float) -> str:
    """A short time in words: milliseconds below a second."""
    return f"{1_000 * seconds:,.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
