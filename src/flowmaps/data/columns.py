r"""Columns of a table as the network sees them, and back.

    number      x -> f(x)                       f = identity, log, asinh((x - median) / width), or normal scores
    category    one of K -> K numbers           1 at its place, -1 elsewhere; back, the place of the greatest
    then        f -> (f - shift) / scale        to mean 0 and deviation 1; a scale of 0 is a constant, which comes back
    then        y -> y C^(-1/2)                 whitening, by option, C the covariance of the columns

All in float64: a column far from zero beside its spread keeps its digits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .decimals import MAX_DECIMALS, in_decimals
from .labels import TYPES, as_in_file
from .options import TRANSFORMS
from .raw import in_digits, option

MAX_KNOTS = 1_000
"""Knots of a quantile transform."""
MAX_EXPONENT = 700.0
"""Greatest argument of exp and sinh that float64 holds."""
MAX_NUMBER = 1e300
"""Bound of the numbers in a card."""
NORMAL_QUARTILES = 1.3489795003921634  # distance between the quartiles of a standard normal


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: in the file, or its number from 1.
        type: numpy's name of its type in the file, or `str`.
        transform: one of `TRANSFORMS`, or `categories`.
        knots: of `quantile`, the values at even shares of the rows; of `asinh`, median and width.
        values: of categories, as text.
        limits: of whole numbers that are rounded on writing: the least and the greatest; empty for others.
        decimals: to which other numbers are rounded on writing, as the file has no more; -1 for all. It takes no part
            in the comparison of columns, as nothing that is learned depends on it.
    """

    name: str
    type: str = "float64"
    transform: str = "standard"
    knots: tuple[float, ...] = ()
    values: tuple[str, ...] = ()
    limits: tuple[float, ...] = ()
    decimals: int = field(default=-1, compare=False)

    @property
    def width(self) -> int:
        """How many numbers the network sees of it."""
        return len(self.values) if self.transform == "categories" else 1

    @property
    def plain(self) -> bool:
        """Whether the numbers are those of the file but for shift and scale."""
        return self.transform == "standard" and not self.limits

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values `(N,)`, of categories their places, to `(N, width)` before shift and scale."""
        if self.transform == "categories":
            return 2.0 * (values[:, None] == np.arange(self.width)) - 1
        x = values.astype(np.float64)
        if self.transform == "log":
            x = np.log(x)
        elif self.transform == "asinh":
            x = np.arcsinh((x - self.knots[0]) / self.knots[1])
        elif self.transform == "quantile":
            low = np.interp(x, self.knots, scores(len(self.knots)))
            high = -np.interp(-x, [-k for k in reversed(self.knots)], scores(len(self.knots)))
            x = (low + high) / 2  # the middle of a value that many rows have
        return x[:, None]

    def decode(self, features: np.ndarray) -> np.ndarray:
        """`(N, width)` to values `(N,)` in float64, of categories their places."""
        if self.transform == "categories":
            return np.nan_to_num(features, nan=-np.inf).argmax(1).astype(np.float64)
        x = features[:, 0]
        if self.transform == "log":
            x = np.exp(np.clip(x, -MAX_EXPONENT, MAX_EXPONENT))
        elif self.transform == "asinh":
            with np.errstate(over="ignore"):
                x = np.sinh(np.clip(x, -MAX_EXPONENT, MAX_EXPONENT)) * self.knots[1] + self.knots[0]
        elif self.transform == "quantile":
            x = np.interp(x, scores(len(self.knots)), np.array(self.knots, np.float64))
        return np.clip(np.round(x), self.limits[0], self.limits[1]) if self.limits else x

    def written(self, values: np.ndarray) -> np.ndarray:
        """Values `(N,)` in the file's type, categories as themselves."""
        if self.transform == "categories":
            return as_in_file(values.astype(np.int64), self.values, self.type)
        whole = np.dtype(self.type).kind in "iub"
        if whole and not (self.limits and np.isfinite(values).all()):  # a map that diverged makes no numbers
            return values
        return in_decimals(values, self.decimals, self.transform == "log").astype(self.type)


@dataclass(frozen=True)
class ConditionColumn:
    """A column of numbers on which a map is conditioned; the network sees (f(x) - shift) / scale.

    Args:
        column: with its transform f.
        shift, scale: mean and deviation of f(x) over the rows that are trained on.
        low, high: the least and the greatest value of those rows.
        place: where among the columns of the file it is.
    """

    column: Column
    shift: float
    scale: float
    low: float
    high: float
    place: int

    def __post_init__(self) -> None:
        if not all(map(_is_number, (self.shift, self.scale, self.low, self.high))) or not self.scale > 1 / MAX_NUMBER:
            raise ValueError("a column of conditions has finite numbers, and a scale above 0.")
        if self.low > self.high:
            raise ValueError(f"the least value of a condition is not above the greatest, got {self.low}, {self.high}.")
        _check(self.column)
        kind = self.column.type
        if type(self.place) is not int or self.column.transform == "categories" or kind == "str":
            raise ValueError("a column of conditions has a place, and holds numbers.")
        if self.column.transform == "log" and self.low <= 0:
            raise ValueError(f"a condition whose logarithm is taken is positive, got {self.low} for the least value.")

    @property
    def name(self) -> str:
        """Of the column."""
        return self.column.name

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values `(N,)` as the network sees them, `(N,)` in float64.

        Raises:
            ValueError: values that the transform does not take; quantiles take those beyond the data for the ends.
        """
        x = values.astype(np.float64)
        if self.column.transform == "log" and x.min(initial=1.0) <= 0:
            raise ValueError(f"{self.name} is positive, as its logarithm is taken, got {x.min():g}.")
        return (self.column.encode(x)[:, 0] - self.shift) / self.scale

    def written(self, values: np.ndarray) -> np.ndarray:
        """Values `(N,)` in the file's type; as float64 where that does not hold them."""
        kind = np.dtype(self.column.type)
        with np.errstate(invalid="ignore", over="ignore"):
            cast = values.astype(kind)
        if kind.kind == "f":
            return cast if np.array_equal(np.isfinite(cast), np.isfinite(values)) else values
        return cast if np.array_equal(cast.astype(np.float64), values) else values

    def outside(self, values: np.ndarray) -> np.ndarray:
        """Which values `(N,)` are beyond those of the rows that were trained on."""
        return (values < self.low) | (values > self.high)

    @property
    def ends(self) -> str:
        """The least and the greatest value, with as many digits as tell them apart."""
        return " to ".join(in_digits(end, self.high - self.low) for end in (self.low, self.high))

    @property
    def example(self) -> str:
        """A value between the least and the greatest, as text: whole where the file has whole numbers."""
        middle = self.low / 2 + self.high / 2
        if np.dtype(self.column.type).kind in "iub":
            middle = float(np.floor(middle + 0.5))
        return in_digits(middle, self.high - self.low, 3)


@dataclass(frozen=True)
class Table:
    """The columns of a table, in the order of the file.

    Args:
        columns: those that are learned.
        whitening: C^(1/2), one row a number that the network sees; empty for none.
        label: name of the column of the classes, or of the array; empty where there is none.
        named: whether the columns have names in the file.
        label_place: where among the columns of the file the classes are.
        conditions: those on which a map is conditioned; they are not learned.
    """

    columns: tuple[Column, ...]
    whitening: tuple[tuple[float, ...], ...] = ()
    label: str = ""
    named: bool = True
    label_place: int = -1
    conditions: tuple[ConditionColumn, ...] = ()

    def __post_init__(self) -> None:
        for column in self.columns:
            _check(column)
        if any(len(row) != self.width for row in self.whitening) or len(self.whitening) not in (0, self.width):
            raise ValueError(
                f"whitening of {self.width} columns is a square of numbers, got {len(self.whitening)} rows."
            )
        if any(not _is_number(entry) for row in self.whitening for entry in row):
            raise ValueError("whitening is made of finite numbers.")
        texts, truths = (self.label, *(one.name for one in (*self.columns, *self.conditions))), (self.named,)
        if any(type(t) is not str for t in texts) or any(type(t) is not bool for t in truths):
            raise ValueError("names of columns are text.")
        if type(self.label_place) is not int:
            raise ValueError(f"the place of the classes is a whole number, got {self.label_place!r:.40}.")
        self._check_conditions()

    def _check_conditions(self) -> None:
        """Refuse conditions that have the name or the place of another column, or a place beyond all columns."""
        names = [one.name for one in (*self.columns, *self.conditions)]
        if self.conditions and len({*names}) < len(names):
            raise ValueError("two columns have one name.")
        places = [one.place for one in self.conditions] + [self.label_place] * (self.label_place >= 0)
        number = len(self.columns) + len(places)
        if self.conditions and (len({*places}) < len(places) or not all(0 <= at < number for at in places)):
            raise ValueError(f"conditions have different places among {number} columns, got {places}.")

    @property
    def width(self) -> int:
        """How many numbers the network sees of a row."""
        return sum(column.width for column in self.columns)

    @property
    def plain(self) -> bool:
        """Whether every column is its own number but for shift and scale."""
        return all(column.plain for column in self.columns)

    def encode(self, columns: list[np.ndarray]) -> np.ndarray:
        """Columns `(N,)` to `(N, width)` before shift and scale."""
        return np.concatenate([own.encode(x) for own, x in zip(self.columns, columns, strict=True)], axis=1)

    def decode(self, features: np.ndarray) -> np.ndarray:
        """`(N, width)` before shift and scale to `(N, columns)`, categories as their places."""
        ends = np.cumsum([column.width for column in self.columns])[:-1]
        parts = np.split(features, ends, axis=1)
        return np.stack([own.decode(part) for own, part in zip(self.columns, parts, strict=True)], axis=1)

    def written(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """`(N, columns)` as arrays of the file's types by the names of their columns."""
        return {own.name: own.written(values[:, k]) for k, own in enumerate(self.columns)}

    @classmethod
    def from_dict(cls, fields: Any) -> Table:
        """From the JSON of a card.

        Raises:
            TypeError, ValueError: it is none.
        """
        fields = dict(fields)
        columns = tuple(_column(column) for column in fields.pop("columns"))
        given = [{**one, "column": _column(one["column"])} for one in fields.pop("conditions", ())]
        conditions, whitening = tuple(ConditionColumn(**one) for one in given), fields.pop("whitening", ())
        return cls(columns, tuple(tuple(row) for row in whitening), conditions=conditions, **fields)


def _column(fields: Any) -> Column:
    fields = dict(fields)
    for name in {"knots", "values", "limits"} & {*fields}:
        fields[name] = tuple(fields[name])
    return Column(**fields)


def scores(knots: int) -> np.ndarray:
    """The normal scores of the knots of a quantile transform: quantiles of N(0, 1) at the middles of even shares."""
    from scipy.special import ndtri  # slow to import, and only this transform needs it

    return ndtri((np.arange(knots) + 0.5) / knots)


def fitted(name: str, values: np.ndarray, kind: str, **about: Any) -> Column:
    """A column of numbers with the transform that its values `(N,)` ask for.

    Raises:
        ValueError: `log` of numbers that are not positive.
    """
    x, knots = values.astype(np.float64), ()
    if kind == "log" and x.min() <= 0:
        row = int(x.argmin())
        raise ValueError(
            f"column {name!r} has {x[row]:g} in row {row} (counted from 0), and a logarithm takes positive numbers: "
            f"pass {option('--transform', [name + '=asinh'])} or {name}=quantile."
        )
    if kind == "asinh":
        low, middle, high = np.quantile(x, (0.25, 0.5, 0.75))
        width = (high - low) / NORMAL_QUARTILES or np.abs(x - middle).mean() or 1.0
        knots = (float(middle), float(width))
    elif kind == "quantile":
        number = min(len(x), MAX_KNOTS)
        found = np.quantile(x, (np.arange(number) + 0.5) / number, method="hazen")
        found[0], found[-1] = x.min(), x.max()
        knots = tuple(found.tolist())
    return Column(name, transform=kind, knots=knots, **about)


def covariance_root(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """C^(1/2) and its pseudo-inverse of rows `(N, D)` of mean 0; directions without spread are left out of both."""
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    kept = values > 1e-12 * max(values.max(), 1e-300)
    root = np.sqrt(np.where(kept, values, 0.0))
    inverse = np.where(kept, 1 / np.where(kept, root, 1.0), 0.0)
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


def _check(column: Column) -> None:
    if column.transform not in (*TRANSFORMS, "categories") or column.type not in TYPES:
        raise ValueError(f"there is no column of type {column.type!r:.40} with transform {column.transform!r:.40}.")
    if type(column.decimals) is not int or not -1 <= column.decimals <= MAX_DECIMALS:
        raise ValueError(f"a column has -1 to {MAX_DECIMALS} decimals, got {column.decimals!r:.40}.")
    numbers = {"asinh": 2, "quantile": max(1, len(column.knots))}.get(column.transform, 0)
    if len(column.knots) != numbers or len(column.limits) not in (0, 2):
        raise ValueError(f"the transform {column.transform} of a column has {numbers} knots, got {len(column.knots)}.")
    if any(not _is_number(number) for number in (*column.knots, *column.limits)):
        raise ValueError("knots and limits of a column are finite numbers.")
    if (column.transform == "categories") != bool(column.values) or any(type(v) is not str for v in column.values):
        raise ValueError("categories, and they alone, have values, which are text.")
    as_in_file(np.zeros(1, np.int64), column.values, column.type)  # which says what is not of its type
    if column.limits and np.dtype(column.type).kind in "iu":
        least, greatest = np.iinfo(column.type).min, np.iinfo(column.type).max
        if not least <= column.limits[0] <= column.limits[1] <= greatest:
            raise ValueError(f"whole numbers of type {column.type} are not from {column.limits[0]:g} on.")
    if column.transform == "asinh" and column.knots[1] <= 0:
        raise ValueError(f"the width of asinh is positive, got {column.knots[1]}.")
    if column.transform == "quantile" and any(a > b for a, b in itertools.pairwise(column.knots)):
        raise ValueError("the knots of quantile are in order.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
