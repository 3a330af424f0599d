"""How a table is read, learned and written: what cannot be told from the file alone."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval, Le, Len, Predicate

from ..system.names import printable

Name = Annotated[str, Len(1, 1_000), Predicate(printable)]
Names = Annotated[tuple[Name, ...], Len(0, 10_000)]
TRANSFORMS = ("standard", "log", "asinh", "quantile")


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Options of a table of points; a column without a name is called by its number, from 1."""

    label_column: Annotated[str, Len(0, 1_000), Predicate(printable)] = ""
    """Column of a table with the classes, on which the map is conditioned; by default one called label, class or
    target that looks like classes."""
    label_bins: Annotated[int, Ge(0), Le(1_000)] = 0
    """Cut the numbers of --label-column into this many classes with equally many rows each; 0 for none."""
    condition_columns: Names = ()
    """Columns of numbers of a table on whose values the map is conditioned: they are not learned, but given to
    `flowmaps sample` by --condition or --condition-file, and written beside the samples."""
    drop_columns: Names = ()
    """Columns of a table to leave out."""
    keep_columns: Names = ()
    """Columns of a table to learn as numbers, though they look like an index, like classes or like codes."""
    categories: Names = ()
    """Columns of a table to learn as categories, and to write as such: text, or codes without an order."""
    integers: Literal["round", "float"] = "round"
    """Columns of whole numbers: `round` writes whole numbers within the range of the data, and numbers of at most six
    decimals with as many as the file has; `float` writes any numbers."""
    transform: Annotated[tuple[Name, ...], Len(1, 10_000)] = ("standard",)
    """What the network sees of a column of a table: `standard`, less its mean, over its deviation; `log`, for positive
    numbers, which stay positive; `asinh` or `quantile`, for heavy tails. One for all columns, or COLUMN=KIND each."""
    whiten: bool = False
    """Whiten the columns of a table, for clouds that are thin in a direction between the axes."""
    held_out: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Share of the rows of a table that is not trained on, and that samples are measured against; none if that would
    be fewer than ten rows."""
    header: Literal["auto", "names", "none"] = "auto"
    """Whether the first line of a text table has the names of the columns."""

    def transforms(self, names: list[str]) -> dict[str, str]:
        """The kind of transform of each column.

        Raises:
            ValueError: there is no such kind or column.
        """
        given: dict[str, str] = {}
        for entry in self.transform:
            name, equals, kind = entry.rpartition("=")
            if kind not in TRANSFORMS:
                raise ValueError(
                    f"--transform must be KIND or COLUMN=KIND with a KIND of {', '.join(TRANSFORMS)}, got {entry!r}."
                )
            if given.setdefault(name if equals else "", entry) != entry:
                of = f"the column {name}" if equals else "all columns"
                raise ValueError(
                    f"--transform is given twice for {of}: {given[name if equals else '']} and {entry}; leave one out."
                )
        for name in {*given} - {""}:
            if name in self.categories:
                raise ValueError(f"--transform {given[name]} is for numbers, and --categories has {name}: take one.")
            if name not in names:
                why = "has the classes" if name == self.label_column else f"is not learned, of {listed(names)}"
                near = [] if name == self.label_column else difflib.get_close_matches(name, names, 1)
                way = f"did you mean {near[0]!r}?" if near else "leave it out."
                raise ValueError(f"--transform names the column {name!r}, which {why}: {way}")
        kinds = {name: entry.rpartition("=")[2] for name, entry in given.items()}
        return {name: kinds.get(name, kinds.get("", "standard")) for name in names}

    def check(self) -> None:
        """Check each option by itself, as the program has done when a recipe gives them.

        Raises:
            ValueError: one is of another type or out of range.
        """
        held, bins = self.held_out, self.label_bins
        if isinstance(held, bool) or not isinstance(held, (int, float)) or not 0 <= held < 1:
            raise ValueError(f"--held-out must be a share from 0 to below 1, got {held!r:.40}.")
        if type(bins) is not int or not 0 <= bins <= 1_000:
            raise ValueError(f"--label-bins must be a whole number from 0 to 1,000, got {bins!r:.40}.")
        if self.integers not in ("round", "float"):
            raise ValueError(f"--integers must be round or float, got {self.integers!r:.40}.")
        if self.header not in ("auto", "names", "none"):
            raise ValueError(f"--header must be auto, names or none, got {self.header!r:.40}.")
        for option in ("condition_columns", "drop_columns", "keep_columns", "categories", "transform"):
            names = getattr(self, option)
            if isinstance(names, str) or any(not isinstance(name, str) for name in names):
                shown = option.replace("_", "-")
                raise ValueError(f"--{shown} must be names of columns, such as ('a', 'b'), got {names!r:.40}.")
        if not isinstance(self.label_column, str):
            raise ValueError(f"--label-column must be the name of a column, got {self.label_column!r:.40}.")


class DataWarning(UserWarning):
    """What was left out of data, or found in them, that whoever trains on them should know."""


def listed(names: list[str] | tuple[str, ...], most: int = 10) -> str:
    """Names in one line, those after the first ones counted."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"
