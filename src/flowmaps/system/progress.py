"""Progress callbacks for work of more than two seconds; the command line draws a bar."""

from __future__ import annotations

from collections.abc import Callable

Watch = Callable[[str, float], None]
"""Progress callback `(title, share)`: what is being done, and the share done, from 0 to 1."""


def quiet(title: str, share: float) -> None:
    """Progress callback that does nothing."""
