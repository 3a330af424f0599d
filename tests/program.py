"""The program in this process: commands that succeed, commands that are refused, and training that is broken off."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator

import pytest

from flowmaps.cli import main as cli
from flowmaps.data import Board


def run(*words: object) -> str:
    """A command that succeeds; what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.main([str(word) for word in words])
    return out.getvalue()


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    """A command that is refused: exit code 2 and one line, which it returns."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("flowmaps: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    return error


@contextlib.contextmanager
def at_draw(number: int, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` before a draw of the checkerboard, the first of which has the number 0."""
    draw, count = Board.sample, itertools.count()

    def sample(self: Board, *arguments: object):
        if next(count) == number:
            action()
        return draw(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Board, "sample", sample)
        yield


def interrupt() -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt
