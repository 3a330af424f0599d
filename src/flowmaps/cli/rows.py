"""Rows of data for the commands that use a map on data: the run's own, or those of another file in the run's units."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..data import Images, Units, open_data
from ..data.columns import Column
from ..data.options import listed
from ..data.pixels import HALF_RANGE
from ..data.raw import RawTable
from ..data.tables import ARRAY_SUFFIXES, read_arrays
from ..evaluation.sampling import labels_of_samples, numbers_of_samples
from ..maps import FlowMap
from ..runs.folder import RunFolder
from ..runs.plan import Plan
from ..runs.recipes import ImageRecipe
from ..shapes import Condition, condition_of, label_and_numbers, on_each
from ..system.names import choose
from ..system.progress import Watch
from ..system.seeds import generator
from . import conditions
from .options import OnRows

NUMBER = 100
"""Rows of the run's own data, unless their number is given."""
DATA_STREAM = 22  # of the seed


class Opened:
    """A finished run, its map as it is sampled on the device of its recipe, and the units of its data."""

    def __init__(self, folder: Path, net: str = "") -> None:
        self.folder = RunFolder.open(folder, net)
        self.plan: Plan = self.folder.plan
        self.device = self.folder.device
        self.flow_map: FlowMap = self.plan.as_sampled(self.folder.load_map().to(self.device), None)[0]
        self.units: Units = self.folder.units


class Rows(NamedTuple):
    """Rows of data.

    Attributes:
        x: in the network's coordinates, `(N, *shape)`, on the CPU.
        cond: their condition, or `None`.
        values: of the columns that they are conditioned on, in the units of the file, by name.
    """

    x: Tensor
    cond: Condition = None
    values: Mapping[str, np.ndarray] = {}

    @property
    def labels(self) -> Tensor | None:
        """The classes, `(N,)`; `None` where there are none."""
        label = label_and_numbers(self.cond)[0]
        return label if isinstance(label, Tensor) and label.ndim == 1 else None

    def chunks(self, size: int, device: torch.device, watch: Watch, title: str) -> Iterator[tuple[Tensor, Condition]]:
        """Rows and their conditions, `size` at a time, on a device; the callback is told after each."""
        for first in range(0, len(self.x), size):
            part = slice(first, first + size)
            yield (
                self.x[part].to(device),
                on_each(self.cond, lambda value, part=part: value[part].to(device)),
            )
            watch(title, min(first + size, len(self.x)) / len(self.x))


def rows_of(
    run: Opened,
    given: OnRows,
    watch: Watch,
    *,
    shape: tuple[int, ...] | None = None,
    hidden: Collection[str] = (),
) -> Rows:
    """The rows that a command is about: of another file, or the held-out rows of the run's own data.

    Args:
        run: whose map it is.
        given: the options of the command.
        watch: progress callback.
        shape: of the rows of another file of images; that of the run's data unless given.
        hidden: columns of a table that another file need not have; they are 0 in the network's coordinates.

    Raises:
        ValueError: data of another shape, with unknown columns or classes, or without conditions.
    """
    if given.number is not None and given.number < 1:
        raise ValueError(f"--number must be at least 1, got {given.number}.")
    conditions.refuse_words(run.units, given.condition, "--condition")
    stated = conditions.of_words(run.units, given.condition)
    if given.data:
        reading = _Reading(run, given.data, given.label is None, not stated, hidden, shape or run.units.shape)
        found = _first(_other(reading, watch), given.number)
    else:
        found = _own(run, NUMBER if given.number is None else given.number, given.seed, watch)
    rows = len(found.x)
    if not rows:
        raise ValueError(f"{given.data} has no rows: give a file with some.")
    labels, numbers = label_and_numbers(found.cond)
    labels = labels if given.label is None else labels_of_samples(run.units, rows, given.label)
    values = {name: np.full(rows, value) for name, value in stated.items()} or found.values
    numbers = numbers_of_samples(run.units, rows, values) if stated else numbers
    return Rows(found.x, condition_of(labels, numbers), values)


class _Reading(NamedTuple):
    """How another file is read.

    Attributes:
        run: in whose units.
        data: the file, or a data set of images.
        needs_label, needs_values: whether its classes and columns of conditions are used.
        hidden, shape: as in `rows_of`.
    """

    run: Opened
    data: str
    needs_label: bool
    needs_values: bool
    hidden: Collection[str]
    shape: tuple[int, ...]


def _first(rows: Rows, number: int | None) -> Rows:
    values = {name: column[:number] for name, column in rows.values.items()}
    return Rows(rows.x[:number], on_each(rows.cond, lambda value: value[:number]), values)


def _own(run: Opened, number: int, seed: int, watch: Watch) -> Rows:
    x, cond = run.folder.open_source(watch).to("cpu").reference(number, generator(seed, DATA_STREAM))
    numbers = label_and_numbers(cond)[1]
    values = {
        own.name: own.column.decode((numbers[:, k : k + 1].double() * own.scale + own.shift).numpy())
        for k, own in enumerate(run.units.conditions)
    }
    return Rows(x, cond, values)


def _other(reading: _Reading, watch: Watch) -> Rows:
    run, data = reading.run, reading.data
    units, recipe = run.units, run.plan.recipe
    if units.features or (len(units.shape) == 3 and not units.pixels):
        raise ValueError(f"{run.folder.path} is a run of latents, whose own data alone it reads: leave out --data.")
    if units.pixels:
        return _pictures(reading, watch)
    if units.table is None:  # the board, digits
        if Path(data).suffix.lower() not in ARRAY_SUFFIXES:
            raise ValueError(f"--data of this run must end in {' or '.join(ARRAY_SUFFIXES)}, got {data}.")
        found = read_arrays(Path(data))
        return Rows(_encoded(units, found.array, data), _classes(reading, found.labels))
    raw = conditions.read_file(Path(data), recipe, "--data")
    labels = conditions.labels_of(raw, units, recipe) if reading.needs_label else None
    if labels is None and units.classes is not None and reading.needs_label:
        raise ValueError(_no_classes(data))
    values = {own.name: conditions.numbers_of(raw, own.name) for own in units.conditions if reading.needs_values}
    numbers = units.to_condition(values) if values else None
    return Rows(_of_table(units, raw, reading.hidden), condition_of(labels, numbers), values)


def _no_classes(data: str) -> str:
    return f"{data} has no classes, and the map is conditioned on them: pass --label CLASS for all rows."


def _pictures(reading: _Reading, watch: Watch) -> Rows:
    recipe, units = reading.run.plan.recipe, reading.run.units
    assert isinstance(recipe, ImageRecipe)
    resolution = recipe.resolution if reading.shape == units.shape else 0
    source = open_data(reading.data, resolution=resolution, watch=watch)
    if not isinstance(source, Images) or source.shape != reading.shape:
        raise ValueError(
            f"{reading.data} has data of shape {source.shape}, and images of {reading.shape} are needed: give images "
            "of that size."
        )
    labels = None if source.labels is None else source.units.labels_in_file(source.labels)
    return Rows(source.pixels.float() / HALF_RANGE - 1, _classes(reading, labels))


def _classes(reading: _Reading, labels: np.ndarray | None) -> Tensor | None:
    """The numbers of classes as the run has them, `(N,)`, of labels as another file has them."""
    units = reading.run.units
    if units.classes is None or not reading.needs_label:
        return None
    if labels is None:
        raise ValueError(_no_classes(reading.data))
    numbers = dict[Any, Tensor]()
    for value in labels.tolist():
        if value not in numbers:
            try:
                numbers[value] = cast(Tensor, labels_of_samples(units, 1, str(value)))
            except ValueError:
                names = listed(units.names or tuple(map(str, range(units.classes))))
                raise ValueError(
                    f"{reading.data} has the class {str(value)[:40]!r}, and the map has learned {names}: take such "
                    "rows out, or pass --label CLASS for all rows."
                ) from None
    return torch.cat([numbers[value] for value in labels.tolist()])


def _encoded(units: Units, array: np.ndarray, data: str) -> Tensor:
    """Rows of an array in the network's coordinates."""
    if array.shape[1:] != units.shape or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        wanted = ", ".join(map(str, units.shape))
        raise ValueError(
            f"{data} has {array.dtype} of shape {array.shape}, the map takes finite numbers of shape (rows, {wanted})."
        )
    x = torch.from_numpy(array.astype(np.float64))
    if units.scale:
        x = (x - x.new_tensor(units.shift)) / x.new_tensor([scale or 1 for scale in units.scale])
    return x.float()


def _of_table(units: Units, raw: RawTable, hidden: Collection[str]) -> Tensor:
    """Rows of a table in the network's coordinates: the columns of the run by their names, others are left out.

    Raises:
        ValueError: a column is missing, has other than numbers, a category that the run has not, or a number that the
            transform does not take.
    """
    table, parts, first = units.table, list[np.ndarray](), 0
    assert table is not None
    if not table.named and raw.labels is None and not units.conditions and len(raw.names) != len(table.columns):
        raise ValueError(f"{raw.path} has {len(raw.names)} columns, the map takes {len(table.columns)}.")
    for own in table.columns:
        shift, scale = (np.array(ends[first : first + own.width]) for ends in (units.shift, units.scale))
        first += own.width
        if own.name in hidden:
            parts.append(np.zeros((raw.rows, own.width)))
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append((own.encode(_column(raw, own)) - shift) / np.where(scale > 0, scale, 1))
        if not np.isfinite(parts[-1]).all():
            row = int(np.argmin(np.isfinite(parts[-1]).all(axis=1)))
            raise ValueError(
                f"{raw.path}, {raw.where(row)}: {raw.called(own.name)} must be positive, as the training took its "
                "logarithm: take such rows out."
            )
    y = np.concatenate(parts, axis=1)
    return torch.from_numpy(y @ np.linalg.inv(np.array(table.whitening)) if table.whitening else y).float()


def _column(raw: RawTable, own: Column) -> np.ndarray:
    """A column of another file as numbers; of categories, their places."""
    if own.transform != "categories":
        return conditions.numbers_of(raw, own.name, "takes its", "take such rows out")
    choose(f"column in {raw.path},", own.name, dict.fromkeys(raw.names))
    values = [str(value) for value in raw.columns[raw.names.index(own.name)]]
    places = {value: k for k, value in enumerate(own.values)}
    for row, value in enumerate(values):
        choose(f"category in {raw.path}, {raw.where(row)}, {raw.called(own.name)},", value, places)
    return np.array([places[value] for value in values])
