"""Settings as frozen dataclasses: the annotation of a field is its type and its range, and both are checked.

Annotated[float, Gt(0), Le(100)]          bounds are told one by one: "must be above 0", "must be at most 100"
Annotated[float, Interval(ge=0, lt=1)]    an interval is told whole: "must be at least 0 and below 1"
tuple[Annotated[int, Ge(1)], ...]         what each entry of a list must be
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, astuple, dataclass, fields, is_dataclass
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MaxLen, MinLen, Predicate

T = TypeVar("T")

# The greatest numbers are far beyond what is of use, and below what would bring a machine down.
Count = Annotated[int, Ge(1), Le(10**9)]
CountOrZero = Annotated[int, Ge(0), Le(10**9)]
Share = Annotated[float, Interval(ge=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]


def without_repeats(values: tuple[Any, ...]) -> bool:
    """Whether no two entries of a list are the same to six digits, those that names of files have."""
    return len({six_digits(value) for value in values}) == len(values)


def six_digits(value: Any) -> str:
    """A number as names of files have it, other values as they are."""
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a `Trainer` does besides taking steps."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type in which networks compute while training (autocast); weights, times and measurements stay in float32. With
    float16 the loss is scaled."""
    compile: bool = False
    """Compile the objective; left out with a word where there is no compiler."""
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = 0
    """Seed of every draw."""
    checkpoint_every: Count = 1_000
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Number of checkpoints to keep, the latest ones."""
    keep_checkpoints_every: CountOrZero = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 for none."""
    store_averages_every: Count = 1_000
    """Steps between stored power-function EMAs, with --optimiser.ema-widths."""
    log_every: Count = 50
    """Steps between lines of log.jsonl."""
    max_skipped_steps: Count = 20
    """Stop the run after this many steps in a row without a finite gradient; each is skipped."""
    track: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], Predicate(without_repeats)] = ()
    """Trackers that get the lines of log.jsonl and the pictures."""


NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def check(group: Any, dashes: str = "--") -> None:
    """Refuse a dataclass of settings with a value of the wrong type or out of range.

    Args:
        group: the dataclass.
        dashes: in front of a name in the message; empty for a Python caller, who has underscores in names too.

    Raises:
        ValueError: names the first such field as an option, such as --optimiser.batch, and what it must be.
    """
    for name, value, hint in options(group):
        if (allowed := requirement(value, hint)) is not None:
            name = dashes + name if dashes else name.replace("-", "_")
            raise ValueError(f"{name} must be {allowed}, got {shown(value)}.")


def options(group: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each field of a dataclass as an option, such as `optimiser.batch`, with its value and its annotation."""
    hints = hints_of(type(group))
    for field in fields(group):
        value, hint, name = getattr(group, field.name), hints[field.name], prefix + field.name.replace("_", "-")
        if is_dataclass(hint) and isinstance(value, hint):  # type: ignore[arg-type]
            yield from options(value, f"{name}.")
        else:
            yield name, value, hint


def values(group: Any) -> dict[str, Any]:
    """The options of a dataclass by name, such as `optimiser.batch`."""
    return {name: value for name, value, _ in options(group)}


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass by the names of its fields, ranges included."""
    return get_type_hints(kind, include_extras=True)


@functools.cache
def helps_of(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass in its source, as one line, by the names of its fields."""
    found: dict[str, str] = {}
    for base in (base for base in reversed(kind.__mro__) if is_dataclass(base)):
        try:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except OSError:  # made by make_dataclass, of others
            continue
        for field, below in pairwise(body.body):  # type: ignore[attr-defined]
            match field, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
    return found


def shown(value: Any) -> str:
    """A value as a message shows it."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


LIMITS: dict[type, tuple[Callable[[Any, Any], bool], str]] = {
    Gt: (operator.gt, "above"),
    Ge: (operator.ge, "at least"),
    Lt: (operator.lt, "below"),
    Le: (operator.le, "at most"),
    MinLen: (lambda value, least: len(value) >= least, "no shorter than"),
    MaxLen: (lambda value, most: len(value) <= most, "no longer than"),
    Predicate: (lambda value, function: function(value), ""),
}
"""Kinds of limits in an annotation: whether a value keeps one, which NaN never does, and the word in front of it."""


def requirement(value: Any, hint: Any) -> str | None:
    """What a value must be, in words, if it has not the type or is not in the range of an annotation; else `None`."""
    kind, groups = _type_and_limits(hint)
    if kinds := _alternatives(kind):
        fits = [one for one in kinds if _has_type(value, plain(one))]
        return requirement(value, fits[0]) if fits else type_in_words(kind)
    if not _has_type(value, kind):
        return type_in_words(kind)
    for entry in value if get_origin(kind) is tuple else ():
        if (words := requirement(entry, get_args(kind)[0])) is not None:
            return f"a list, each entry of it {words}"
    for limits in groups:
        if not all(keeps(value, bound) for keeps, _, bound in limits):
            return " and ".join(f"{word} {_limit_in_words(bound)}".strip() for _, word, bound in limits)
    return None


@functools.cache
def _type_and_limits(hint: Any) -> tuple[Any, list[list[tuple[Callable[[Any, Any], bool], str, Any]]]]:
    """The type in an annotation, and its limits, in groups that are told together."""
    kind, *metadata = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    groups: list[list[Any]] = [list(one) if isinstance(one, GroupedMetadata) else [one] for one in metadata]
    return kind, [[(*LIMITS[type(limit)], *astuple(limit)) for limit in limits] for limits in groups]


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have, of an annotation that has several; none of one that has not."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else ()


def plain(hint: Any) -> Any:
    """The type of an annotation, without its range."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _limit_in_words(bound: Any) -> str:
    if callable(bound):
        return bound.__name__.replace("_", " ")
    return f"{bound:g}" if isinstance(bound, float) else f"{bound:,}"


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value has a type, its entries left aside: a truth value is no number, a whole number is one."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    kinds = (int, float) if kind is float else (get_origin(kind) or kind,)
    return isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))


def type_in_words(kind: Any) -> str:
    """A type of settings, in words."""
    if get_origin(kind) is Annotated:
        return type_in_words(get_args(kind)[0])
    if kinds := _alternatives(kind):
        return " or ".join(map(type_in_words, kinds))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return f"a list, each entry of it {type_in_words(get_args(kind)[0])}"
    return NAMES.get(kind) or f"the options of a {kind.__name__}"


def read(kind: type[T], values: Mapping[str, Any], prefix: str = "", *, renamed: Mapping[str, str]) -> T:
    """A dataclass of settings from the object of a JSON text: lists as tuples; fields left out have their defaults.

    Args:
        kind: the dataclass.
        values: by the names of its fields, groups of settings as objects, which must not be left out.
        prefix: of the fields' names in messages.
        renamed: old option name -> new one, such as "optimiser.rate" -> "optimiser.learning_rate".

    Raises:
        ValueError: a field is missing or unknown, or a group is no object; types and ranges are `check`'s.
    """
    hints, known, given = hints_of(kind), {field.name: field for field in fields(kind)}, dict[str, Any]()  # type: ignore[arg-type]
    for old in [name for name in values if prefix + str(name) in renamed]:
        new = renamed[prefix + old].removeprefix(prefix)
        if new in values:
            raise ValueError(f"both {prefix}{new} and its old name {prefix}{old} are given: remove one.")
        values = {(new if name == old else name): value for name, value in values.items()}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"it has {shown(prefix + str(unknown[0]))}, which is no option.")
    for name, field in known.items():
        group = is_dataclass(hints[name])
        if name not in values:
            if group or (field.default is MISSING and field.default_factory is MISSING):
                raise ValueError(f"it has no {prefix}{name}.")
            continue
        value = values[name]
        if group and not isinstance(value, Mapping):
            raise ValueError(f"--{prefix}{name} must be {type_in_words(hints[name])}, got {shown(value)}.")
        if group:
            value = read(hints[name], value, f"{prefix}{name}.", renamed=renamed)
        given[name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)
