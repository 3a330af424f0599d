"""A table made into points: transforms fitted to its columns, rows held out, and whitening."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..shapes import condition_of, on_each
from .columns import Column, ConditionColumn, Table, covariance_root, fitted
from .decimals import decimals_of
from .labels import Classes, classes_of, whole
from .options import TableOptions
from .raw import RawTable, check_whole, option
from .roles import MAX_CATEGORIES, Roles
from .sources import Points
from .units import Units

LEAST_HELD_OUT = 10
"""Rows below which none are held out."""
LEAST_SQUARED = 1e-100
"""Numbers below it have squares that float64 may not hold."""
HELD_OUT_SEED = 0
"""Seed of the choice of rows that are held out, the same for every run on a table."""


def points_of(roles: Roles, options: TableOptions) -> Points:
    """The source of a table; its transforms are fitted to the rows that are trained on.

    Raises:
        ValueError: a column cannot be learned as the options say.
    """
    raw, kinds = roles.raw, options.transforms([*roles.raw.names, *roles.conditions.names])
    held = held_out_rows(raw.rows, options.held_out)
    train = np.setdiff1d(np.arange(raw.rows), held)
    columns, values = [], []
    for name, column in zip(raw.names, raw.columns, strict=True):
        made, numbers = _column(raw, name, column, kinds[name], options, train)
        columns.append(made)
        values.append(numbers)
    conditions, given = _conditions(roles, kinds, train)
    table = Table(
        tuple(columns), label=roles.label, named=raw.named, label_place=roles.label_place, conditions=conditions
    )
    features = table.encode(values)
    shift, scale = _shift_and_scale(table, features[train])
    y = (features - shift) / np.where(scale > 0, scale, 1)
    if options.whiten:
        root, inverse = covariance_root(y[train])
        table = Table(**{**vars(table), "whitening": tuple(map(tuple, root.tolist()))})
        y = y @ inverse
    x, labels = torch.from_numpy(y).float(), roles.classes
    names, label_type = ((), "") if labels is None else (labels.names, labels.type)
    classes = None if labels is None else int(labels.numbers.max()) + 1
    units = Units(
        (table.width,), classes, tuple(shift.tolist()), tuple(scale.tolist()), names=names, label_type=label_type,
        type=raw.type, table=table,
    )  # fmt: skip
    cond = condition_of(None if labels is None else labels.numbers, given)
    trained, left = (
        (x[rows], on_each(cond, lambda value, rows=rows: value[rows])) for rows in map(torch.from_numpy, (train, held))
    )
    return Points.of(*trained, units, *left)


def _conditions(
    roles: Roles, kinds: dict[str, str], train: np.ndarray
) -> tuple[tuple[ConditionColumn, ...], Tensor | None]:
    """The columns on which a map is conditioned, fitted to the rows that are trained on, and their numbers `(N, D)`."""
    raw, found, numbers = roles.conditions, [], []
    for name, values, place in zip(raw.names, raw.columns, roles.places, strict=True):
        x = values.astype(np.float64)
        column = fitted(name, x[train], kinds[name], type=values.dtype.name, limits=())
        features = column.encode(x[train])
        shift, scale = _shift_and_scale(Table((column,)), features)
        if not scale[0] > 0:
            raise ValueError(
                f"{raw.path}: {raw.called(name)} is the same in all rows that are trained on, and a condition is a "
                "number that varies: leave it out of --condition-columns."
            )
        low, high = float(x[train].min()), float(x[train].max())
        found.append(ConditionColumn(column, float(shift[0]), float(scale[0]), low, high, place))
        numbers.append(found[-1].encode(x))
    return tuple(found), torch.from_numpy(np.stack(numbers, axis=1)).float() if numbers else None


def _column(
    raw: RawTable, name: str, values: np.ndarray, kind: str, options: TableOptions, train: np.ndarray
) -> tuple[Column, np.ndarray]:
    """A column and its values as numbers; of categories, their places."""
    if name in options.categories:
        return _categories(raw, name, values)
    numbers, dtype = values.astype(np.float64), values.dtype
    if dtype.kind in "iu":
        check_whole(raw, name, numbers)
    rounded = dtype.kind in "iub" and options.integers == "round"
    limits = (float(numbers.min()), float(numbers.max())) if rounded else ()
    decimals = decimals_of(values) if dtype.kind == "f" and options.integers == "round" else -1
    return fitted(name, numbers[train], kind, type=dtype.name, limits=limits, decimals=decimals), numbers


def _categories(raw: RawTable, name: str, values: np.ndarray) -> tuple[Column, np.ndarray]:
    if values.dtype.kind == "f" and not whole(values):
        raise ValueError(f"{raw.path}: {raw.called(name)} has numbers that are not whole: they are no categories.")
    found: Classes = classes_of(values, raw.rows, f"{raw.path}: {raw.called(name)}")
    places, kind = found.numbers.numpy(), found.type or values.dtype.name
    names = found.names or tuple(map(str, range(int(places.max()) + 1)))
    if len(names) > MAX_CATEGORIES:
        raise ValueError(
            f"{raw.path}: {raw.called(name)} has {len(names):,} values, more than {MAX_CATEGORIES:,} categories: pass "
            f"{option('--drop-columns', [name])}."
        )
    return Column(name, kind, "categories", values=names), places


def _shift_and_scale(table: Table, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each number that the network sees; of categories 0 and 1, of a constant itself and 0."""
    x = torch.from_numpy(np.ascontiguousarray(features))
    shift, scale = x.mean(0).numpy(), (x.std(0) if len(x) > 1 else torch.zeros_like(x[0])).numpy()
    tiny = np.abs(features - shift).max(0)
    unit = np.where((tiny > 0) & (tiny < LEAST_SQUARED), tiny, 1.0)  # in whose units squares do not underflow
    scale = np.where(unit < 1, unit * ((features - shift) / unit).std(0, ddof=len(x) > 1), scale)
    wide = np.repeat([c.transform == "categories" for c in table.columns], [c.width for c in table.columns])
    span = features.max(0) - features.min(0)
    constant = span <= 4 * np.spacing(np.abs(features).max(0)) * (span > 0)
    shift = np.where(constant & (span == 0), features[0], shift)
    shift, scale = np.where(wide, 0.0, shift), np.where(wide, 1.0, scale)
    return shift, np.where(constant & ~wide, 0.0, scale)


def held_out_rows(rows: int, share: float) -> np.ndarray:
    """The numbers of the rows that are held out, in random order; none where they would be fewer than ten."""
    number = int(share * rows)
    if number < LEAST_HELD_OUT:
        return np.zeros(0, np.int64)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(HELD_OUT_SEED))[:number].numpy()
