"""The folder of a comparison: a file for each method and seed, which processes share out among themselves.

compare.json: what is compared, and the rows of all cells that are done; whoever finishes a cell writes it anew
cells/METHOD-SEED.json: the rows of one cell, and the curves of its residuals
cells/METHOD-SEED.lock: while a process works on the cell; the lock of a process that has ended counts for nothing
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from filelock import FileLock

from ..runs.folder import check_new
from ..runs.recipes.found import in_options
from ..system.files import write_atomically
from ..training.guards import LOCK, holder, is_locked, refuse_link, try_lock
from .begun import check_same
from .curves import Curve
from .measure import Row

RESULT_FILE, CELLS = "compare.json", "cells"
STEPS = "optimiser steps"
"""What a budget is in that is not in seconds, in compare.json."""
SECONDS_BETWEEN_TRIES = 1.0  # of a file that another process holds


class Cell(NamedTuple):
    """One training of a comparison.

    Attributes:
        method: its name.
        seed: of weights, batches and samples.
    """

    method: str
    seed: int

    @property
    def name(self) -> str:
        """The beginning of the names of its files."""
        return f"{in_file_name(self.method)}-{self.seed}"


def in_file_name(method: str) -> str:
    """A method in the name of a file: `module:name` without the colon, which not every disk takes."""
    return method.replace(":", "--")


class Cells:
    """The cells of a comparison in a folder, which is created, or joined where it has a comparison alike.

    Args:
        folder: where to; empty, missing, or of a comparison that was begun with the same description.
        description: what is compared, in JSON: everything that the cells have in common.
        methods, seeds: of the cells that this process wants done, in order; others may be there already.
        settings: by method, what was found for it (`flowmaps tune`), which all its seeds have in common; none unless
            given.
        resume: refuse to begin a new comparison.

    Attributes:
        wanted: the cells of this process, all methods of a seed before the next seed.

    Raises:
        ValueError: the folder has something else in it, or a comparison that was begun otherwise, or is damaged; or a
            method has other settings there; or there is nothing to resume.
    """

    def __init__(
        self,
        folder: Path,
        description: Row,
        methods: Sequence[str],
        seeds: Sequence[int],
        *,
        settings: Mapping[str, Row] = MappingProxyType({}),
        resume: bool = False,
    ) -> None:
        self.folder, self.description, self._found = folder, description, settings
        self.wanted = [Cell(method, seed) for seed in seeds for method in methods]
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
        if resume and RESULT_FILE not in names:
            raise ValueError(f"{folder} has no {RESULT_FILE}: there is nothing to resume; leave out --resume.")
        if RESULT_FILE in names:
            self._read()
        elif not (folder.is_dir() and _is_begun(folder, names)):
            check_new(folder, resumable=False)
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
        with self._locked():
            old: dict[str, Any] = {"methods": [], "seeds": [], "rows": []}
            if (folder / RESULT_FILE).exists():
                old = self._read()
            self._check_rows(old["rows"])
            self.methods = list(dict.fromkeys([*old["methods"], *methods]))
            self.seeds = sorted({*old["seeds"], *seeds})
            self.settings = old.get("settings", {})
            done = contents(folder)
            for method in methods:
                self._check_settings(method, done)
            self._write()

    def _check_rows(self, rows: list[Row]) -> None:
        """Refuse to drop the rows of cells that this process would not train anew.

        Raises:
            ValueError: the file of such a cell is gone.
        """
        cells = dict.fromkeys(Cell(row["method"], row["seed"]) for row in rows)
        if gone := [cell.name for cell in cells if cell not in self.wanted and not self.path(cell).exists()]:
            raise ValueError(
                f"{self.folder / RESULT_FILE} has rows of {', '.join(gone)}, whose files are gone from "
                f"{self.folder / CELLS}: put them back, train these too, or choose another --out."
            )

    def _check_settings(self, method: str, done: Sequence[Row], own: Path | None = None) -> None:
        """Refuse a method that has been trained here at other settings found, or is at this moment.

        Args:
            method: its name.
            done: the contents of all cells.
            own: the lock that this process holds.

        Raises:
            ValueError: its seeds would not be alike.
        """
        now, before = self._found.get(method, {}), None
        trained = next((cell["rows"][0] for cell in done if cell["method"] == method and cell["rows"]), None)
        if trained is not None:
            before = trained.get("settings", {})
        elif any(is_locked(path) for path in self._lock_paths(method) if path != own):
            before = self.settings.get(method, {})
        if before is not None and before != now:
            old, new = in_options(before) or "none", in_options(now) or "none"
            raise ValueError(
                f"{self.folder} has {method} with the settings found {old}, got {new}: choose another --out."
            )

    def path(self, cell: Cell) -> Path:
        """The file of a cell."""
        return self.folder / CELLS / f"{cell.name}.json"

    @property
    def missing(self) -> list[Cell]:
        """The wanted cells that are not done, by whichever process."""
        return [cell for cell in self.wanted if not self.path(cell).exists()]

    def take(self, say: Callable[[str], None]) -> Iterator[Cell]:
        """The wanted cells that are neither done nor held by another process, each held until the next is asked for.

        Args:
            say: prints a line.
        """
        if done := len(self.wanted) - len(self.missing):
            say(f"{done} of {len(self.wanted)} trainings have their rows in {RESULT_FILE} already.")
        while True:
            held = next((found for cell in self.wanted if (found := self._try(cell))), None)
            if held is None:
                break
            cell, lock = held
            try:
                self._claim(cell)
                yield cell
            finally:
                if self.path(cell).exists():  # only then: whoever has opened the file sees that the cell is done
                    self._lock_path(cell).unlink(missing_ok=True)
                lock.release()
        for cell in self.missing:
            say(f"{cell.name} is left to another process, {holder(self._lock_path(cell))}.")

    def write(self, cell: Cell, rows: list[Row], curves: Mapping[str, Curve]) -> None:
        """Write the rows of a cell, each with its method and seed, and the curves of its stages."""
        content = {**cell._asdict(), "rows": [{**cell._asdict(), **row} for row in rows], "curves": curves}
        write_atomically(self.path(cell), json.dumps(content) + "\n")

    @contextmanager
    def joined(self) -> Iterator[list[Row]]:
        """Context with the rows of all cells that are done, by whichever process, in compare.json and as the value.

        No other process is in this context at the same time, so that what is written in it is of the latest rows.
        """
        with self._locked():
            self._update()
            yield self._write()

    def _update(self) -> None:
        """Take over what another process may have come with: more methods or seeds, and settings."""
        old = self._read()
        self.methods, self.seeds, self.settings = old["methods"], old["seeds"], old.get("settings", {})

    def _write(self) -> list[Row]:
        rows = rows_of(self.folder, self.methods)
        common = {"methods": self.methods, "seeds": self.seeds, "settings": self.settings}
        content = {**self.description, **common, "rows": rows}
        write_atomically(self.folder / RESULT_FILE, json.dumps(content, indent=1) + "\n")
        return rows

    def _try(self, cell: Cell) -> tuple[Cell, FileLock] | None:
        """A cell with its lock; `None` if it is done, or held by another process."""
        if self.path(cell).exists() or (lock := try_lock(self._lock_path(cell))) is None:
            return None
        if self.path(cell).exists():  # meanwhile
            lock.release()
            return None
        return cell, lock

    def _claim(self, cell: Cell) -> None:
        """Write down with which settings the method of a cell is trained, for whoever comes while it is."""
        with self._locked():
            self._update()
            self._check_settings(cell.method, contents(self.folder), self._lock_path(cell))
            self.settings[cell.method] = self._found.get(cell.method, {})
            self._write()

    def _lock_path(self, cell: Cell) -> Path:
        return self.path(cell).with_suffix(".lock")

    def _lock_paths(self, method: str) -> list[Path]:
        """The files of all locks of a method."""
        name = in_file_name(method)
        return [path for path in (self.folder / CELLS).glob("*.lock") if path.stem.rpartition("-")[0] == name]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.folder / CELLS / LOCK
        refuse_link(path)
        with FileLock(path):
            yield

    def _read(self) -> dict[str, Any]:
        """The content of compare.json.

        Raises:
            ValueError: it is damaged, of an earlier version, or was begun with other options.
        """
        path = self.folder / RESULT_FILE
        content = read(path)
        if not isinstance(content, dict) or not {"recipe", "rows"} <= content.keys():
            raise ValueError(f"{path} is damaged (it is no comparison): choose another --out.")
        if not {"methods", "seeds"} <= content.keys():
            raise ValueError(f"{path} is of an earlier version, which had one seed: choose another --out.")
        if not all(isinstance(content[name], list) for name in ("methods", "seeds", "rows")):
            raise ValueError(f"{path} is damaged (its methods, seeds or rows are no list): choose another --out.")
        if isinstance(content.get("fewer"), dict):  # of an earlier version
            content["fewer"] = sorted([int(steps), number] for steps, number in content["fewer"].items())
        content.setdefault("ode_rows", self.description.get("ode_rows"))  # which an earlier version did not write
        words = {"recipe": "the recipe", "data_sha256": "a data file of checksum", "budget_in": "a budget in"}
        words |= {"fewer": "[steps, samples] of", "ode_rows": "rows of the ODE of"}
        check_same(self.folder, _typed_budget(content), _typed_budget(self.description), words, "join it")
        return content


def _typed_budget(description: Row) -> Row:
    """What is compared, with the budget under the name of its option."""
    budget, in_steps = description.get("budget"), description.get("budget_in") == STEPS
    return {**description, "budget": None if in_steps else budget, "budget_steps": budget if in_steps else None}


def _is_begun(folder: Path, names: set[str]) -> bool:
    """Whether a folder has nothing in it but what a process writes that is beginning a comparison at this moment."""
    own = all(name == CELLS or name.startswith(f".{RESULT_FILE}.") for name in names)
    return own and not any((folder / CELLS).glob("*.json"))


def read(path: Path) -> Any:
    """The content of a file of JSON.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): restore it, or choose another --out.") from None


def rows_of(folder: Path, methods: Sequence[str]) -> list[Row]:
    """The rows of all cells of a comparison, by method in the order given, then by seed.

    Raises:
        ValueError: a cell is damaged.
    """
    rows = [row for content in contents(folder) for row in content["rows"]]
    order = {method: k for k, method in enumerate(methods)}
    return sorted(rows, key=lambda row: (order.get(row["method"], len(order)), row["method"], row["seed"]))


def contents(folder: Path) -> list[dict[str, Any]]:
    """The contents of the files of all cells: `method`, `seed`, `rows`, `curves`.

    Raises:
        ValueError: a cell is damaged.
    """
    found = dict[Path, Any]()
    for path in sorted((folder / CELLS).glob("*.json")):
        try:
            found[path] = content = json.loads(path.read_text(encoding="utf-8"))
            _check_cell(content)
        except (ValueError, TypeError, KeyError) as error:  # of which a damaged text is one
            raise ValueError(f"{path} is damaged ({error!r}): delete it, and run again.") from None
        name = Cell(content["method"], content["seed"]).name
        if path.stem != name:  # a copy would count twice
            raise ValueError(f"{path} has the rows of {name}: call it {name}.json, or delete it.")
    return list(found.values())


def _check_cell(content: Any) -> None:
    """Raise an error if a file is not that of a cell."""
    named = content["method"], content["seed"]
    if not isinstance(content["curves"], dict) or not isinstance(content["rows"], list):
        raise ValueError("it is no cell of a comparison")
    if any((row["method"], row["seed"]) != named or not isinstance(row["sampler"], str) for row in content["rows"]):
        raise ValueError("its rows are those of another cell")


@contextmanager
def alone(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Context in which no other process writes a file; it begins when another one has written it, or has ended.

    Args:
        path: the file.
        say: prints a line where there is something to wait for.
    """
    own = path.with_name(f".{path.name}.lock")
    if (lock := try_lock(own)) is None:
        say(f"waiting for {path.name}, which another process trains ({holder(own)}).")
        while (lock := try_lock(own)) is None:
            time.sleep(SECONDS_BETWEEN_TRIES)
    try:
        yield
    finally:
        own.unlink(missing_ok=True)
        lock.release()
