"""What may not happen while a file is read: something executed, fetched, or written elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flowmaps as fm

FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn", "subprocess.Popen"}
FORBIDDEN |= {"pickle.find_class", "ctypes.dlopen", "code.__new__", "function.__new__"}
FORBIDDEN |= {"socket.connect", "socket.getaddrinfo", "urllib.Request", "ftplib.connect", "http.client.connect"}
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.symlink", "os.link", "os.truncate"}
LIBRARIES = tuple(
    os.path.realpath(path)
    for path in (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), os.path.dirname(fm.__file__))
)
"""Modules may be imported late; what else is executed is not from a file, or from another."""


class Guard:
    """Watches what Python does while it is on: hooks cannot be removed."""

    def __init__(self) -> None:
        self.inside, self.seen, self.hooked = "", list[str](), False

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.inside:
            return
        if event == "exec":
            annotation = sys._getframe(1).f_code.co_filename == typing.__file__  # whose shapes are checked
            if not annotation and not os.path.realpath(given[0].co_filename).startswith(LIBRARIES):
                self.seen.append(f"{event} of {given[0].co_filename}")
        elif event in FORBIDDEN:
            self.seen.append(f"{event} {given!r:.200}")
        elif (event == "open" and _writes(*given)) or event in CHANGES:
            paths = given[: 1 + (event in ("os.rename", "os.symlink", "os.link"))]
            if event in ("os.remove", "os.rmdir") and given[1] >= 0:  # in a folder that is open
                paths = (os.path.join(os.readlink(f"/proc/self/fd/{given[1]}"), given[0]),)
            outside = [
                path for path in paths if isinstance(path, (str, bytes, os.PathLike)) and not self._own(path, event)
            ]
            self.seen += [f"{event} {path!r}" for path in outside]

    def _own(self, path: str | bytes | os.PathLike, event: str) -> bool:
        path = os.fsdecode(path)
        if event in ("os.remove", "os.rename"):  # of a link, not of what it leads to
            path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        else:
            path = os.path.realpath(path)
        return path.startswith(self.inside + os.sep) or path in (os.devnull, "/dev/tty")

    @contextlib.contextmanager
    def on(self, inside: Path) -> Iterator[list[str]]:
        """What was seen that is forbidden, writing outside a folder among it."""
        if not self.hooked:
            sys.addaudithook(self)
            self.hooked = True
        self.inside, self.seen = os.path.realpath(inside), []
        try:
            yield self.seen
        finally:
            self.inside = ""


def _writes(path: Any, mode: Any, flags: Any) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))


GUARD = Guard()
