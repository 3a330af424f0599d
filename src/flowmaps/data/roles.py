"""What each column of a table is for: the classes, an index to leave out, categories, numbers."""

from __future__ import annotations

import difflib
from typing import NamedTuple

import numpy as np

from .labels import Classes, classes_of, in_bins, look_like_classes, whole
from .numerals import DIGITS, as_numbers, is_number, texts_of
from .options import TableOptions, listed
from .raw import RawTable, check_complete, check_numbers, check_whole, option, refuse_text, refuse_together

INDEX_NAMES = ("index", "id", "idx", "row", "rowid", "row_id", "key", "unnamed: 0")
MIN_ROWS_OF_INDEX = 5
"""Rows from which a column that counts 0, 1, 2, ... is taken for an index."""
MAX_CATEGORIES = 1_000
"""Most values of a column that is learned as categories."""


class Roles(NamedTuple):
    """A table with the roles of its columns.

    Attributes:
        raw: the columns to learn, complete; categories are still as the file has them.
        conditions: the columns of numbers on which a map is conditioned, complete.
        places: their places among the columns that are written.
        classes: of the rows, or `None`.
        label: name of the column or array of the classes.
        label_place: its place among the columns that are written; -1 where it is no column.
        counts: rows of each class.
    """

    raw: RawTable
    conditions: RawTable
    places: tuple[int, ...]
    classes: Classes | None
    label: str = ""
    label_place: int = -1

    @property
    def counts(self) -> dict[str, int]:
        """How many rows each class has, by name."""
        if self.classes is None:
            return {}
        numbers = np.bincount(self.classes.numbers.numpy()).tolist()
        names = self.classes.names or tuple(map(str, range(len(numbers))))
        return dict(zip(names, numbers, strict=True))


def assign(raw: RawTable, options: TableOptions, labels: bool = True) -> Roles:
    """Decide what each column is for, and leave out what is not learned.

    Args:
        raw: the table.
        options: what the user says about it.
        labels: without them a table has no classes, and its column of classes is left out.

    Raises:
        ValueError: a column is named that is not there; what a column is for is open; or cells are missing or text.
    """
    name_all(raw)
    _check_names(raw, options)
    raw = raw.without([*options.drop_columns]) if options.drop_columns else raw
    raw = _with_kept_numbers(raw, options)
    raw = _without_index(raw, options)
    if raw.unnamed in raw.names:
        raw.notes.append(f"its column without a name is called {raw.unnamed!r}")
    written = list(raw.names)
    conditions = raw.without([name for name in written if name not in options.condition_columns])
    raw, values, label, at = _without_labels(raw, options)
    raw = raw.without(conditions.names) if conditions.names else raw
    raw.notes.extend(said for name, said in raw.asides.items() if name in (*raw.names, *conditions.names, label))
    if not raw.columns:
        raise ValueError(f"{raw.path} has no column left to learn: leave out fewer of them.")
    checks = [
        lambda: check_complete(raw, learned=True), lambda: check_numbers(raw.without([*options.categories])),
        *(lambda name=name: _check_condition(conditions, name) for name in conditions.names)
    ]  # fmt: skip
    if values is not None and labels and label and at >= 0:
        own = RawTable(raw.path, [label], [values], raw.named, where=raw.where)
        checks.append(lambda: check_complete(own, droppable=True))
    refuse_together(raw.path, *checks)
    classes = None
    if values is not None and labels:
        where = f"{raw.path}, {'the array' if at < 0 else 'column'} {label!r}"
        classes = classes_of(values, raw.rows, where)
    places = tuple(written.index(name) for name in conditions.names)
    return Roles(raw, conditions, places, classes, label if classes is not None else "", at)


def _without_labels(raw: RawTable, options: TableOptions) -> tuple[RawTable, np.ndarray | None, str, int]:
    """The table without its column of classes; the labels, their name, and their place, -1 if they are no column."""
    label = _label_column(raw, options)
    if not label:
        return raw, raw.labels, raw.label, -1
    at = raw.names.index(label)
    values, raw = raw.columns[at], raw.without([label])
    if options.label_bins:
        values = in_bins(values, options.label_bins, f"{raw.path}: {raw.called(label)}")
    return raw, values, label, at


def _check_condition(conditions: RawTable, name: str) -> None:
    """Refuse a column to condition on that is not numbers, has missing cells, or is the same in all rows."""
    column, instead = conditions.columns[conditions.names.index(name)], _instead(name)
    if column.dtype.kind not in "biuf":
        classes = f"leave it out there, and pass {option('--label-column', [name])} to condition on its values as"
        refuse_text(conditions, name, "--condition-columns takes numbers", instead, f"{classes} classes")
    check_complete(
        RawTable(conditions.path, [name], [column], conditions.named, where=conditions.where), instead=instead
    )
    if column.dtype.kind in "iu":
        check_whole(conditions, name, column.astype(np.float64), f"{instead}, or subtract a constant first")
    if (column == column[0]).all():
        raise ValueError(
            f"{conditions.path}: {conditions.called(name)} is {column[0]} in all rows, and a condition is a number "
            f"that varies: {instead}."
        )


def _instead(name: str) -> str:
    """What to do with a column that cannot be a condition."""
    return f"take it out of --condition-columns and pass {option('--drop-columns', [name])}"


def name_all(raw: RawTable) -> None:
    """Call a column without a name by its number from 1, or where another column is called so, by a name like it."""
    if "" not in raw.names:
        return
    at = raw.names.index("")
    name = str(at + 1)
    while name in raw.names:
        name = f"unnamed {name}"
    raw.names[at], raw.unnamed = name, name
    if "" in raw.asides:
        raw.asides[name] = raw.asides.pop("")


def _check_names(raw: RawTable, options: TableOptions) -> None:
    named = {
        "--condition-columns": options.condition_columns,
        "--drop-columns": options.drop_columns,
        "--keep-columns": options.keep_columns,
        "--categories": options.categories,
        "--label-column": (options.label_column,) if options.label_column else (),
    }
    given: dict[str, str] = {}
    for flag, names in named.items():
        for name in names:
            if name not in raw.names:
                near = difflib.get_close_matches(name, raw.names, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"{raw.path} has no column {name!r} for {flag}: {hint}it has {listed(raw.names)}.")
            if given.setdefault(name, flag) != flag:
                raise ValueError(f"column {name!r} is given to {given[name]} and {flag}: give it to one of them.")
    if options.label_bins and not options.label_column:
        raise ValueError("--label-bins cuts the numbers of a column: pass --label-column NAME too.")


def _with_kept_numbers(raw: RawTable, options: TableOptions) -> RawTable:
    """The table with the numbers of columns of text that are to be learned, or given, as numbers.

    Raises:
        ValueError: they are whole and too large.
    """
    for k, name in enumerate(raw.names):
        column = raw.columns[k]
        asked = name in options.keep_columns or name in options.condition_columns
        if not asked or column.dtype.kind != "O" or not all(map(is_number, texts_of(column))):
            continue
        raw.columns[k] = as_numbers(None if value is None else str(value) for value in column)
        if all(DIGITS.fullmatch(text.strip().lstrip("+-")) for text in texts_of(column)):
            ways = f"{_instead(name)}, or subtract a constant first" if name in options.condition_columns else ""
            check_whole(raw, name, raw.columns[k], ways)
    return raw


def _without_index(raw: RawTable, options: TableOptions) -> RawTable:
    """The table without a column that numbers its rows; one that may be such a column is asked about."""
    spoken_for = {*options.keep_columns, *options.condition_columns, *options.categories, options.label_column} - {""}
    for name, column in zip(raw.names, raw.columns, strict=True):
        if name in spoken_for or len(raw.names) == 1 or raw.rows < MIN_ROWS_OF_INDEX:
            continue
        kind = column.dtype.kind
        counts = kind in "iuf" and whole(column) and bool((np.diff(column.astype(np.float64)) == 1).all())
        counts = counts and column[0] in (0, 1)
        single = (kind in "iuO" or (kind == "f" and whole(column))) and len({*column.tolist()}) == len(column)
        if name == raw.unnamed and (counts or single):
            return raw.without([name], "its column without a name numbers the rows and is left out")
        if raw.named and counts and name.lower() in INDEX_NAMES:
            return raw.without([name], f"{raw.called(name)} numbers the rows and is left out")
        key = name.lower() in INDEX_NAMES or name.lower().endswith(("_id", " id"))
        if raw.named and (counts or (single and key)):
            raise ValueError(
                f"{raw.path}: {raw.called(name)} looks like an index ({column[0]}, {column[1]}, {column[2]}, ...): "
                f"pass {option('--drop-columns', [name])} to leave it out, or {option('--keep-columns', [name])} to "
                "learn it."
            )
        if counts:
            drop = option("--drop-columns", [name])
            raw.notes.append(f"{raw.called(name)} numbers the rows: pass {drop} to leave it out")
    return raw


def _label_column(raw: RawTable, options: TableOptions) -> str:
    """The name of the column of the classes; empty if there is none, or labels are an array of their own."""
    if options.label_column or raw.labels is not None:
        return options.label_column
    if not raw.named or len(raw.names) == 1:
        return ""
    lower = {name.lower() for name in raw.names}
    for name, column in zip(raw.names, raw.columns, strict=True):
        coordinate = name.lower() == "y" and "x" in lower
        asked = name in (*options.keep_columns, *options.condition_columns, *options.categories)
        if not asked and not coordinate and look_like_classes(name, column):
            kept = f"{option('--keep-columns', [name])} learns it as a number"
            raw.notes.append(f"{raw.called(name)} is taken for the classes; {kept}")
            return name
    return ""
