"""Files written in one stroke: a reader sees the old content or the new, never a part, and a failure leaves the old."""

from __future__ import annotations

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
        OSError: the folder is missing or cannot be written; the old file is untouched and nothing is left beside it.
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
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def _umask() -> int:
    """The permissions that new files of this process do not get; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
