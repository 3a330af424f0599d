"""What was found in data, in words: lines for `flowmaps train --check`, and sentences about what should be changed."""

from __future__ import annotations

import numpy as np

from .columns import Column, ConditionColumn, fitted
from .options import listed
from .raw import RawTable, option
from .roles import Roles
from .sources import Images, Points, Source

MAX_LINES = 24
"""Most columns that are shown one by one; of more, those that ask for attention come first."""
HEAVY_KURTOSIS = 15.0
"""Excess kurtosis from which a column is said to have heavy tails: a normal one has 0, an exponential one 6."""
LUMP = 0.1
"""Share of the rows from which one value is a lump, which no smooth transform makes normal."""
REASONS = {
    "log": "all values are positive",
    "asinh": "some are not positive",
    "quantile": "counts, one value in many rows, or tails that are too heavy for the others",
}
"""Transform for heavy tails -> when it is taken."""
FEW_IMAGES = 2_000
"""Images below which a Fréchet distance to them is too large to be reported."""
FEW_VALUES = 10
"""Most different whole numbers of a column that may be codes of categories."""


def table_notes(roles: Roles, source: Points) -> tuple[str, ...]:
    """What was left out or guessed, and which columns should be learned otherwise."""
    raw, table = roles.raw, source.units.table
    assert table is not None
    notes = list(raw.notes)
    heavy = {
        c.name: transform_for(c, x)
        for c, x in _numbers(roles, table.columns)
        if c.transform == "standard" and kurtosis(x) > HEAVY_KURTOSIS
    }
    if heavy:
        asked = option("--transform", [f"{name}={kind}" for name, kind in heavy.items()])
        why = "; ".join(f"{kind}: {reason}" for kind, reason in REASONS.items() if kind in heavy.values())
        notes.append(f"{_called(raw, [*heavy])} heavy tails: most samples will lie too wide. Pass {asked} ({why})")
    codes = [c.name for c, x in _numbers(roles, table.columns) if c.limits and 2 < len(np.unique(x)) <= FEW_VALUES]
    if codes:
        notes.append(
            f"{_called(raw, codes)} at most {FEW_VALUES} different whole numbers, learned as a scale and rounded: if "
            f"they are codes without an order, pass {option('--categories', codes)}"
        )
    if len(source.data) == 1:
        notes.append("only one row is trained on: samples will be copies of it")
    elif not len(source.data[source.data.ne(source.data[0]).any(1)]):
        notes.append("all rows are the same: samples will be copies of it")
    if roles.classes is not None and roles.classes.said:
        notes.append(f"the classes of {roles.label!r} are {roles.classes.said}")
    return (*notes, *absent_notes(source, "row"))


def absent_notes(source: Points | Images, one: str = "image") -> tuple[str, ...]:
    """The classes that nothing that is trained on has; `one` is what a sample is called."""
    names = [source.units.names[k] if source.units.names else str(k) for k in source.units.absent]
    if not names:
        return ()
    return (f"no {one} that is trained on has the class {listed(names)}: it is not sampled",)


def table_lines(roles: Roles, source: Points) -> tuple[str, ...]:
    """Rows, columns with type, range and what is done with them, classes with their counts, and what is left out."""
    table = source.units.table
    assert table is not None
    held = 0 if source.held_out is None else len(source.held_out)
    kept = f"{len(source.data):,} are trained on, {held:,} held out for the metrics" if held else "all are trained on"
    lines = [f"{roles.raw.rows:,} rows, {kept}; no cell is missing"]
    found = [_column_line(roles, own, source, k) for k, own in enumerate(table.columns)]
    found += [_condition_line(own, x) for own, x in zip(table.conditions, roles.conditions.columns, strict=True)]
    if len(found) > MAX_LINES:
        found.sort(key=lambda entry: not entry[0])
    cells = [("column", "type", "least", "greatest", "what is done"), *(entry[1] for entry in found[:MAX_LINES])]
    widths = [max(len(row[k]) for row in cells) for k in range(4)]
    lines += ["  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[4]]) for row in cells]
    if len(found) > MAX_LINES:
        lines.append(f"and {len(found) - MAX_LINES} more columns like those at the end of the list")
    if table.whitening:
        lines.append("then all columns that are learned are whitened together")
    return (*lines, *class_lines(source, roles.counts, roles.label))


def class_lines(source: Source, counts: dict[str, int], label: str = "") -> tuple[str, ...]:
    """The classes with their counts, in one line; none for data without classes."""
    if not counts:
        return ()
    shown = [f"{name} ({number:,})" for name, number in counts.items()]
    return (f"classes{f' of {label!r}' if label else ''}: {listed(shown, 12)}",)


def image_lines(source: Images, cropped: bool = False) -> tuple[str, ...]:
    """How many images of what size, and classes with their counts.

    Args:
        source: the images.
        cropped: whether a resolution was asked for.
    """
    number, channels, height, width = source.pixels.shape
    kind = "in colour" if channels == 3 else "grey"
    shape = "" if height == width else " (height x width; the network is built for rectangles)"
    lines = [f"{number:,} images of {height} x {width} pixels{shape}, {kind}"]
    if cropped:
        middle = "square" if height == width else "rectangle of this shape"
        lines.append(
            f"those of another size were cropped to the {middle} in their middle and averaged down to this size"
        )
    lines += _compared(source)
    if source.labels is None:
        return (*lines, "no labels are learned")
    counts = np.bincount(source.labels.cpu().numpy(), minlength=source.classes or 0).tolist()
    names = source.units.names or tuple(map(str, range(len(counts))))
    return (*lines, *class_lines(source, dict(zip(names, counts, strict=True))))


def compared_with(source: Source, most: int = 0) -> list[str]:
    """What samples are measured against, in a sentence; none for a law that is known.

    Args:
        source: the data.
        most: images that samples are measured against, spread over those that there are; 0 for all.
    """
    return [f"{said[0].upper()}{said[1:]}." for said in _compared(source, most)]


def _compared(source: Source, most: int = 0) -> list[str]:
    held = source.held_out if isinstance(source, (Points, Images)) else None
    if isinstance(source, Points):
        which = "rows that are trained on, as none are held out"
        return [f"samples are measured against {which if held is None else f'{len(held):,} rows that are held out'}"]
    if not isinstance(source, Images):
        return []
    some = f"{most:,} of " if 0 < most < len(source.real) else ""
    if held is None:
        return [f"samples are measured against {some}the images that are trained on, as is usual for Fréchet distances"]
    whose = f"of {source.held_out_of}" if source.held_out_of else "that are held out"
    return [f"samples are measured against {some}{len(held):,} images {whose}, and not trained on"]


def held_out_notes(source: Images) -> tuple[str, ...]:
    """Whether images that are held out are too few for a Fréchet distance that can be reported."""
    if source.held_out is None or len(source.held_out) >= FEW_IMAGES:
        return ()
    return (
        f"only {len(source.held_out):,} images are held out: a Fréchet distance to so few is too large, by an amount "
        "that depends on their number; compare rows with one another",
    )


def latent_lines(source: Points) -> tuple[str, ...]:
    """How many latents of what shape."""
    channels, height, width = source.shape
    shape = "" if height == width else ", not square: the networks are built for rectangles"
    return (
        f"{len(source.data):,} latents of {channels} channels, {height} x {width}{shape}; each channel standardised",
        *_compared(source),
    )


def kurtosis(x: np.ndarray) -> float:
    """Excess kurtosis of numbers `(N,)`; 0 where they do not vary."""
    centred = x.astype(np.float64) - x.astype(np.float64).mean()
    scale = np.abs(centred).max()
    if not scale > 0:
        return 0.0
    centred = centred / scale
    variance = (centred**2).mean()
    return float((centred**4).mean() / variance**2 - 3)


def transform_for(column: Column, x: np.ndarray) -> str:
    """The transform for a column of numbers `(N,)` with heavy tails, one of `REASONS`."""
    _, counts = np.unique(x, return_counts=True)
    if column.limits or counts.max() > LUMP * len(x):
        return "quantile"
    for kind in ("log", "asinh"):
        if (kind != "log" or x.min() > 0) and kurtosis(fitted("", x, kind).encode(x)[:, 0]) <= HEAVY_KURTOSIS:
            return kind
    return "quantile"


def _numbers(roles: Roles, columns: tuple[Column, ...]) -> list[tuple[Column, np.ndarray]]:
    pairs = zip(columns, roles.raw.columns, strict=True)
    return [(own, values) for own, values in pairs if own.transform != "categories"]


def _called(raw: RawTable, names: list[str]) -> str:
    if len(names) == 1:
        return f"{raw.called(names[0])} has"
    return f"the columns {listed(names)} have"


def _column_line(roles: Roles, own: Column, source: Points, place: int) -> tuple[bool, tuple[str, ...]]:
    """Whether a column asks for attention, and its line as cells."""
    values, table = roles.raw.columns[place], source.units.table
    assert table is not None
    if own.transform == "categories":
        return True, (own.name, own.type, "", "", f"categories: {listed(own.values, 5)}")
    first = sum(column.width for column in table.columns[:place])
    constant = source.units.scale[first] == 0
    done = "constant, written as it is" if constant else DONE[own.transform]
    if (own.limits or own.decimals == 0) and not constant:
        done += ", rounded to whole numbers"
    elif own.decimals > 0 and not constant:
        done += f", rounded to {own.decimals} decimal{'s' * (own.decimals > 1)}"
    tails = own.transform == "standard" and kurtosis(values) > HEAVY_KURTOSIS
    done += " (heavy tails)" if tails else ""
    low, high = (f"{float(edge):.6g}" for edge in (values.min(), values.max()))
    return constant or tails or own.transform != "standard", (own.name[:40], own.type, low, high, done)


def _condition_line(own: ConditionColumn, values: np.ndarray) -> tuple[bool, tuple[str, ...]]:
    """As `_column_line`, for a column on which the map is conditioned."""
    low, high = (f"{float(edge):.6g}" for edge in (values.min(), values.max()))
    return True, (own.name[:40], own.column.type, low, high, f"condition, not learned: {DONE[own.column.transform]}")


DONE = {
    "standard": "standardised",
    "log": "logarithm, standardised",
    "asinh": "asinh round its median, standardised",
    "quantile": "normal scores of its quantiles",
}
"""Transform -> what is done with a column, in words."""
