"""A process that must not write or read where permissions forbid it, though its user is root."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

VERSION = 0x20080522  # of Linux's capabilities: 64 bits
OVERRIDE = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: to go past the permissions of files, and of folders that are read."""


@contextmanager
def without_override() -> Iterator[None]:
    """While this lasts permissions hold for this thread, whoever runs it.

    The user stays the same, who owns what is on the way to the folder of a test, wherever that is.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    _call(libc.capget, header, sets)
    before = sets[0]  # the first 32 that are in effect
    sets[0] = before & ~OVERRIDE
    _call(libc.capset, header, sets)
    try:
        yield
    finally:
        sets[0] = before
        _call(libc.capset, header, sets)


def _call(function, header, sets) -> None:
    if function(header, sets):
        raise OSError(ctypes.get_errno(), "capabilities cannot be changed")
