"""How work of more than two seconds tells of itself: the shell draws a bar of it."""

from __future__ import annotations

from collections.abc import Callable

Watch = Callable[[str, float], None]
"""Told what is being done and the share of it that is, from 0 to 1."""


def quiet(title: str, share: float) -> None:
    """Nobody watches."""
