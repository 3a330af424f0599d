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
from ..data.frames import TABLE_SUFFIXES, read_table
from ..data.numerals import as_numbers, is_number, texts_of
from ..data.options import listed
from ..data.raw import RawTable, check_complete
from ..data.tables import ARRAY_SUFFIXES, raw_table, read_arrays
from ..evaluation.sampling import RunSampler, labels_of_samples
from ..runs.recipes import Recipe
from ..system.names import choose

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
                said.append(
                    f"{which} {own.name} outside {own.low:g} to {own.high:g}, where all rows of the training are: the "
                    "map has learned nothing about such rows."
                )
        return said


def given(
    run: RunSampler, number: int | None, label: str | None, words: Sequence[str] = (), file: Path | None = None
) -> Given:
    """What the options of `flowmaps sample` say of the conditions.

    Args:
        run: whose map is sampled.
        number: of samples; as many as the file has rows unless given, whose rows are taken in turn if it is.
        label: the class, which goes before a column of classes in the file.
        words: `NAME=NUMBER`, or several of them with commas.
        file: a table with the columns.

    Raises:
        ValueError: the map is not conditioned on such numbers; a column is unknown, missing or no number.
    """
    if words and file is not None:
        raise ValueError("--condition and --condition-file both give conditions: leave one out.")
    if (words or file is not None) and not run.units.conditions:
        raise ValueError("this map is not conditioned on numbers: leave out --condition and --condition-file.")
    if file is None:
        number = NUMBER if number is None else number
        return Given(number, {name: np.array([x]) for name, x in _of_words(run.units, words).items()}, label)
    raw = _read(file, run.plan.recipe)
    number = raw.rows if number is None else number
    turn = np.arange(number) % raw.rows
    values = {own.name: _numbers(raw, own.name)[turn] for own in run.units.conditions}
    labels = _labels(raw, run.units, run.plan.recipe) if label is None else None
    return Given(number, values, label if labels is None else labels[torch.from_numpy(turn)])


def _of_words(units: Units, words: Sequence[str]) -> dict[str, float]:
    """The values by name; none where there are no words."""
    names, values = dict.fromkeys(own.name for own in units.conditions), dict[str, float]()
    for word in words:
        for part in [word] if word.rpartition("=")[0] in names else word.split(","):
            name, equals, text = part.rpartition("=")
            choose("column to condition on", name if equals else text, names)
            if not equals or not is_number(text) or not math.isfinite(value := float(text)):
                raise ValueError(f"--condition takes NAME=NUMBER, got {part!r}: give {name or text}=3.2, for example.")
            if name in values:
                raise ValueError(f"--condition has {name} twice: leave one out.")
            values[name] = value
    if words and (missing := [name for name in names if name not in values]):
        raise ValueError(
            f"the map is conditioned on {listed(list(names))}, and --condition has no {missing[0]}: add "
            f"{missing[0]}=NUMBER."
        )
    return values


def _read(file: Path, recipe: Recipe) -> RawTable:
    suffix = file.suffix.lower()
    if suffix not in (*TABLE_SUFFIXES, *ARRAY_SUFFIXES):
        raise ValueError(f"--condition-file must end in {', '.join((*TABLE_SUFFIXES, *ARRAY_SUFFIXES))}, got {file}.")
    return raw_table(read_arrays(file), file) if suffix in ARRAY_SUFFIXES else read_table(file, recipe.header)


def _numbers(raw: RawTable, name: str) -> np.ndarray:
    """A column of numbers without gaps, as float64."""
    choose(f"column in {raw.path},", name, dict.fromkeys(raw.names))
    column = raw.columns[raw.names.index(name)]
    if column.dtype.kind == "O" and all(map(is_number, texts_of(column))):
        column = as_numbers(None if value is None else str(value) for value in column)
    if column.dtype.kind not in "biuf":
        raise ValueError(f"{raw.path}: {raw.called(name)} holds text, and the map is conditioned on its numbers.")
    check_complete(RawTable(raw.path, [name], [column], raw.named, where=raw.where))
    return column.astype(np.float64)


def _labels(raw: RawTable, units: Units, recipe: Recipe) -> Tensor | None:
    """The numbers of the classes of a file's rows, `(N,)`; `None` where it has no column of classes."""
    label = "" if units.table is None or units.classes is None else units.table.label
    if label not in raw.names:
        return None
    if recipe.label_bins:
        raise ValueError(
            f"{raw.path}: the numbers of {raw.called(label)} were cut into classes: pass --label CLASS, or leave the "
            "column out of the file."
        )
    column: list[Any] = raw.columns[raw.names.index(label)].tolist()
    numbers = {value: labels_of_samples(units, 1, str(value)) for value in dict.fromkeys(column)}
    return torch.cat([numbers[value] for value in column])  # type: ignore[misc]
