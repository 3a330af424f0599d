"""The file of a search, which several processes write and a kill does not damage.

    study.jsonl    a line about the study; then a line for each trial, and for each training on a final seed

A line is added by writing the whole file anew beside the old one, under a lock that ends with the process. A trial has
its line once it is finished: one that was cut off has none, and is run again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..runs.folder import check_new
from ..system.files import write_atomically
from .begun import check_same
from .cells import in_file_name
from .measure import Row

STUDY_FILE = "study.jsonl"
LOCKS = "locks"
"""The folder of empty files by which processes tell each other what they are at."""
WORDS = {
    "recipe": "the recipe",
    "data_sha256": "a data file of checksum",
    "clock": "a device whose clock is",
    "fixed": "these fields given as options,",
}
"""What the entries about a study are that are no options."""
LINE = {"method", "settings", "score", "seconds", "rows"}
"""What every line but the first has, beside its trial or its final seed."""
UNCOMPARED = ("found",)
"""Entries about a study that a process takes from the file."""


class StudyFile:
    """The study of a folder.

    Args:
        folder: where it is, or where to begin it.
        about: what a study is begun with, as JSON has it: `options` are those of the recipe.
        resume: go on with the study of the folder if there is one.

    Attributes:
        about: what this study was begun with.
        teachers: the folder of the teachers.

    Raises:
        ValueError: the folder is not empty, and is not to be resumed; or its study is damaged, or was begun otherwise.
    """

    def __init__(self, folder: Path, about: Row, *, resume: bool = False) -> None:
        self.folder, self.path = folder, folder / STUDY_FILE
        begun = self.path.exists() or (folder / LOCKS).exists()
        if not (resume and begun):
            check_new(folder, resumable=begun)
        self.teachers = folder / "teachers"
        for path in (folder / LOCKS, self.teachers):
            path.mkdir(parents=True, exist_ok=True)
        with self.locked():
            if not self.path.exists():
                self._write([about])
            self.about = self._read()[0]
        now = {name: value for name, value in about.items() if name not in UNCOMPARED}
        check_same(folder, self.about, now, WORDS, "resume")

    def rows(self) -> list[Row]:
        """All lines but the one about the study."""
        return self._read()[1:]

    def add(self, row: Row) -> None:
        """Add a line."""
        with self.locked():
            self._write([*self._read(), row])

    def locked(self, name: str = STUDY_FILE) -> AbstractContextManager[Any]:
        """Context in which no other process has the lock of a name, that of the file unless given."""
        return FileLock(self.folder / LOCKS / f"{name}.lock")

    def take(self, method: str) -> AbstractContextManager[Any] | None:
        """Context in which no other process has a method; `None` if one has it."""
        try:
            return FileLock(self.folder / LOCKS / f"method-{in_file_name(method)}.lock").acquire(timeout=0)
        except Timeout:
            return None

    def _read(self) -> list[Row]:
        try:
            found = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            if not found or not all(isinstance(row, dict) for row in found):
                raise ValueError("a line is no object")
            if any(not row.keys() >= LINE or row.keys().isdisjoint({"trial", "seed"}) for row in found[1:]):
                raise ValueError("a line is no training")
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged ({error}): restore it, or choose another --out.") from None
        return found

    def _write(self, rows: Sequence[Row]) -> None:
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
