"""Files written in one stroke: a reader sees the old content or the new, never a part, and a failure leaves the old."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write `content` beside `path` under another name, then rename it to `path`; text is written as UTF-8.

    Args:
        path: the file; its folder must exist. A file of that name is replaced.
        content: what to write.

    Returns:
        The path.

    Raises:
        OSError: the folder is missing or cannot be written; the old file is untouched and nothing is left beside it
            (or, where the folder alone could not be synced, the new one is there).
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Have the names in a folder on the disk, so that a rename outlives a loss of power.

    Raises:
        OSError: the folder is missing, or the disk fails.
    """
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems of a network that know no such thing
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    """The permissions that new files of this process do not get; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
