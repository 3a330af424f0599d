"""Conditions of samples in the units of the data: from words of the command line, or from the columns of a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data import Units
from ..data.columns import ConditionColumn
from ..data.frames import TABLE_SUFFIXES, read_table
from ..data.numerals import as_numbers, is_number, texts_of
from ..data.options import listed
from ..data.raw import RawTable, check_complete, check_whole, missing, option, refuse_text
from ..data.roles import name_all
from ..data.tables import ARRAY_SUFFIXES, raw_table, read_arrays
from ..evaluation.sampling import RunSampler, labels_of_samples
from ..runs.recipes import Recipe
from ..system.names import choose
from ..system.seeds import generator

ROWS_STREAM = 23  # of the seed
NUMBER = 10_000
"""Samples, unless their number is given or a file has a row for each."""


class Given(NamedTuple):
    """What samples are conditioned on.

    Attributes:
        number: of samples.
        values: of the columns to condition on, in the units of the file, by name: `(number,)` each, or `(1,)` for all.
        label: the class of all samples by its name, or the numbers of their classes, `(number,)`; `None` for all
            classes in turn.
    """

    number: int
    values: Mapping[str, np.ndarray]
    label: str | Tensor | None = None

    def notes(self, units: Units) -> list[str]:
        """A sentence about each column with values beyond those of the training."""
        said = []
        for own in units.conditions:
            values = self.values.get(own.name, np.zeros(0))
            if number := int(own.outside(values).sum()):
                which = f"{number:,} of {len(values):,} values of" if len(values) > 1 else "the value of"
                ends = ", and taken as the nearer end" if own.column.transform == "quantile" else ""
                said.append(
                    f"{which} {own.name}: outside {own.ends}, the range of the training{ends}; the map has learned "
                    "nothing about such rows."
                )
        return said


def given(
    run: RunSampler,
    number: int | None,
    label: str | None,
    words: Sequence[str] = (),
    file: Path | None = None,
    seed: int = 0,
) -> Given:
    """What the options of `flowmaps sample` say of the conditions.

    Args:
        run: whose map is sampled.
        number: of samples; as many as the file has rows unless given, whose rows are taken in turn if it is.
        label: the class, which goes before a column of classes in the file.
        words: `NAME=NUMBER`, or several of them with commas.
        file: a table with the columns; of a map that is conditioned on classes alone, with the column of the classes.
        seed: of the choice of rows, where classes alone are taken from them.

    Raises:
        ValueError: the map is not conditioned on such numbers; a column is unknown, missing or no number.
    """
    if words and file is not None:
        raise ValueError("--condition and --condition-file both give conditions: leave one out.")
    refuse_words(run.units, words, "--condition")
    if file is None:
        number = NUMBER if number is None else number
        return Given(number, {name: np.array([x]) for name, x in of_words(run.units, words).items()}, label)
    if not run.units.conditions:
        return _classes_given(run, number, label, file, seed)
    raw = read_file(file, run.plan.recipe, "--condition-file")
    number = raw.rows if number is None else number
    turn = np.arange(number) % raw.rows
    values = {own.name: numbers_of(raw, own.name)[turn] for own in run.units.conditions}
    labels = labels_of(raw, run.units, run.plan.recipe) if label is None else None
    return Given(number, values, label if labels is None else labels[torch.from_numpy(turn)])


def _classes_given(run: RunSampler, number: int | None, label: str | None, file: Path, seed: int) -> Given:
    """The classes of the rows of a file, in its shares: each row as often as all others, or once more.

    Raises:
        ValueError: the map is conditioned on no classes that a column of a file has; or the file has none.
    """
    units = run.units
    if units.table is None or units.classes is None or run.plan.recipe.label_bins:
        why = "is not conditioned on a column of a table" if units.classes is None else "is conditioned on classes"
        why += ", into which numbers were cut" if run.plan.recipe.label_bins else ""
        raise ValueError(f"this map {why}: {_of_classes(units)}leave out --condition-file.")
    if label is not None:
        raise ValueError("--label and --condition-file both give classes: leave one out.")
    raw = read_file(file, run.plan.recipe, "--condition-file")
    if (labels := labels_of(raw, units, run.plan.recipe)) is None:
        raise ValueError(
            f"{file} has no column {units.table.label!r}, on whose classes this map is conditioned (it has "
            f"{listed(raw.names)}): give a file with it, or pass --label CLASS."
        )
    number = raw.rows if number is None else number
    rest = torch.randperm(raw.rows, generator=generator(seed, ROWS_STREAM))[: number % raw.rows].sort().values
    turns = torch.arange(number - len(rest)) % raw.rows
    return Given(number, {}, labels[torch.cat([turns, rest])])


def refuse_words(units: Units, words: Sequence[str], flag: str) -> None:
    """Refuse conditions in words for a map that is conditioned on no numbers, and a class among them.

    Args:
        units: of the data.
        words: `NAME=NUMBER`, or several of them with commas.
        flag: of the option, `--condition` or `--as-condition`.

    Raises:
        ValueError: there are such words.
    """
    label = "" if units.table is None or units.classes is None else units.table.label
    of_class = flag.replace("condition", "label")
    for name, equals, value in (part.partition("=") for word in words for part in word.split(",")):
        if label and equals and name.strip() == label and label not in [own.name for own in units.conditions]:
            raise ValueError(
                f"{flag} takes columns of numbers, and {label!r} is the column of the classes: pass "
                f"{option(of_class, [value.strip()])} in the place of {name.strip()}={value.strip()}."
            )
    if words and not units.conditions:
        raise ValueError(f"this map is not conditioned on numbers: {_of_classes(units, of_class)}leave out {flag}.")


def _of_classes(units: Units, flag: str = "--label") -> str:
    """How a class is asked for, as the beginning of an advice; empty for data without classes."""
    return "" if units.classes is None else f"pass {flag} CLASS for one class, and "


def in_turn(given: Given, units: Units, recipe: Recipe) -> str:
    """That samples of a table have its classes in turn, and how to get the shares of the data; empty otherwise."""
    if units.table is None or given.label is not None or units.classes is None:
        return ""
    present = units.classes - len(units.absent)
    each, more = divmod(given.number, present)
    if present < 2 or not each:
        return ""
    said = f"{each:,}{f' or {each + 1:,}' if more else ''} of each class"
    usable = not recipe.label_bins and not given.values
    return f"{said}; for the shares of the data: --condition-file FILE, such as that of the training" * usable or said


def of_words(units: Units, words: Sequence[str]) -> dict[str, float]:
    """The values by name; none where there are no words.

    Args:
        units: of the data.
        words: `NAME=NUMBER`, or several of them with commas.

    Raises:
        ValueError: a column is unknown, missing or given twice, or a value is no number that single precision holds.
    """
    names, values = {own.name: own for own in units.conditions}, dict[str, float]()
    for word in words:
        whole = word.rpartition("=")[0]
        alone = "," in whole and (whole in names or whole.strip() in names)
        word = word.rstrip().removesuffix(",")
        parts = [word] if alone else [part for part in word.split(",") if part.strip()]
        for part in parts:
            name, equals, text = part.rpartition("=")
            if not equals and values and is_number(text):
                raise ValueError(f"--condition takes decimals with a point, got {word!r}: write 1.5 for 1,5.")
            name = name if name in names else name.strip()
            own = choose("column to condition on", name if equals else text.strip(), names)
            if name in values:
                raise ValueError(f"--condition has {name} twice: leave one out.")
            values[name] = _number(own, part, text.strip() if equals else "")
    if words and (lacking := [name for name in names if name not in values]):
        raise ValueError(
            f"the map is conditioned on {listed(list(names))}, and --condition has no {lacking[0]}: add "
            f"{lacking[0]}={names[lacking[0]].example}, for example."
        )
    return values


def _number(own: ConditionColumn, part: str, text: str) -> float:
    """The number in a word such as NAME=NUMBER; of a column of truth values, true or false too."""
    if own.column.type == "bool" and text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    if not is_number(text) or not math.isfinite(value := float(text)):
        raise ValueError(f"--condition takes NAME=NUMBER, got {part!r}: give {own.name}={own.example}, for example.")
    if missing(np.array([value])).any():
        raise ValueError(f"--condition {part.strip()}: {own.name} is {value:g}, which single precision does not hold.")
    return value


def read_file(file: Path, recipe: Recipe, flag: str) -> RawTable:
    """The table in the file of an option `flag`, with the columns called as in the training of a recipe.

    Raises:
        ValueError: there is none, or it is of another kind.
    """
    suffix = file.suffix.lower()
    if suffix not in (*TABLE_SUFFIXES, *ARRAY_SUFFIXES):
        raise ValueError(f"{flag} must end in {', '.join((*TABLE_SUFFIXES, *ARRAY_SUFFIXES))}, got {file}.")
    if not file.is_file():
        raise ValueError(f"there is no file {file}: pass {flag} FILE with a table, one row a sample.")
    raw = raw_table(read_arrays(file), file) if suffix in ARRAY_SUFFIXES else read_table(file, recipe.header)
    name_all(raw)  # as in training
    return raw


def numbers_of(
    raw: RawTable, name: str, does: str = "is conditioned on its", instead: str = "give the values by --condition"
) -> np.ndarray:
    """A column of numbers without gaps, as float64.

    Args:
        raw: the table.
        name: of the column.
        does: what the map does with the numbers, for an error.
        instead: what can be done instead, for an error.

    Raises:
        ValueError: there is no such column, or it has gaps or text.
    """
    choose(f"column in {raw.path},", name, dict.fromkeys(raw.names))
    column = raw.columns[raw.names.index(name)]
    text = column.dtype.kind == "O"
    if text and all(map(is_number, texts_of(column))):
        column = as_numbers(None if value is None else str(value) for value in column)
    if column.dtype.kind not in "biuf":
        refuse_text(raw, name, f"the map {does} numbers, as the training's file has them", instead)
    check_complete(RawTable(raw.path, [name], [column], raw.named, where=raw.where))
    numbers = column.astype(np.float64)
    if column.dtype.kind in "iu" or (text and (numbers % 1 == 0).all()):
        check_whole(raw, name, numbers, f"mend them, or {instead}")
    return numbers


def labels_of(raw: RawTable, units: Units, recipe: Recipe) -> Tensor | None:
    """The numbers of the classes of a file's rows, `(N,)`; `None` where it has no column of classes."""
    label = "" if units.table is None or units.classes is None else units.table.label
    beside = raw.labels if label and label == raw.label else None
    if beside is None and (not label or label not in raw.names):
        return None
    if recipe.label_bins:
        raise ValueError(
            f"{raw.path}: the numbers of {raw.called(label)} were cut into classes: pass --label CLASS, or leave the "
            "column out of the file."
        )
    column: list[Any] = (raw.columns[raw.names.index(label)] if beside is None else beside).tolist()
    numbers = dict[Any, Tensor]()
    for row, value in enumerate(column):
        if value not in numbers:
            numbers[value] = _class_of(raw, units, label, row, value)
    return torch.cat([numbers[value] for value in column])


def _class_of(raw: RawTable, units: Units, label: str, row: int, value: Any) -> Tensor:
    """The number of the class of a row, `(1,)`."""
    where = f"{raw.path}, {raw.where(row)}: {raw.called(label)}"
    without = f"leave {raw.called(label)} out of the file" if units.conditions else "take such rows out"
    ways = f"mend it there, {without}, or pass --label CLASS"
    if value is None or value != value:
        raise ValueError(f"{where} is missing: {ways}.")
    try:
        number = labels_of_samples(units, 1, str(value))
    except ValueError:
        present = [k for k in range(units.classes or 0) if k not in units.absent]
        names = listed([units.names[k] if units.names else str(k) for k in present])
        raise ValueError(
            f"{where} is {str(value)[:40]!r}, and the map has learned the classes {names}: {ways}."
        ) from None
    assert number is not None
    return number
