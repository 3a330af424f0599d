"""Recipe files: a recipe of `RECIPES` and the options that differ from it, as TOML.

    recipe = "checkerboard"
    method = "lsd"
    [optimiser]
    batch = 512

An option of the command line takes the place of the file's, the file's that of the recipe.
"""

from __future__ import annotations

import difflib
import shlex
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ..system.names import choose
from ..training import settings
from .recipes import OF_POINTS, RECIPES, ImageRecipe, Recipe, for_method
from .recipes.found import Options, fields_of, with_options

SUFFIX = ".toml"
MAX_FILE_BYTES = 2**20
MAX_LINES = 100
"""Lines of one value among which its end is looked for, to name the first one in a refusal."""
WIDTH = 110
"""Characters of a line of help."""
HEAD = """\
# A recipe of flowmaps; `flowmaps train {file} --out DIR` trains it, and its options take the place of what stands here.
#
# A line such as `#steps = 16000` shows what the recipe has: take the # away and change the value. Files and folders are
# looked for in the folder where the command runs.

# Recipe that has all that is not set below: {recipes}.
recipe = {recipe}
"""


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file says.

    Attributes:
        usual: the recipe that it names, as `RECIPES` has it.
        options: field, such as `optimiser.learning_rate` -> the value that the file sets.
    """

    usual: Recipe
    options: Options

    @property
    def method(self) -> str:
        """The method that the file sets, or its recipe's."""
        return self.options.get("method", self.usual.method)

    def for_method(self, method: str) -> tuple[Recipe, Recipe]:
        """The recipe for a method that it was perhaps searched for, without and with what the file sets."""
        usual = for_method(self.usual, method, given=self.options)
        return usual, with_options(usual, self.options)


def is_recipe_file(word: str) -> bool:
    """Whether a word of the command line names a recipe file, and not a recipe."""
    return Path(word).suffix.lower() == SUFFIX


# write ----------------------------------------------------------------------------------------------------------------


def written(file: str, recipe: Recipe, usual: str, given: Sequence[str]) -> str:
    """The content of a recipe file: each option with its help, those that are not given commented out.

    Args:
        file: its name.
        recipe: whose values are written.
        usual: name of the recipe in `RECIPES` that it is made of.
        given: the fields that the file sets, such as `optimiser.learning_rate`.
    """
    head = HEAD.format(file=shlex.quote(file).replace("\n", " "), recipe=_toml(usual), recipes=", ".join(RECIPES))
    parts = ["\n".join(wrapped for line in head.split("\n") for wrapped in _wrapped(line))]
    names = _fields(type(recipe))
    hints = settings.hints_of(type(recipe))
    groups = [name for name in names if is_dataclass(hints[name])]
    parts += _entries(recipe, [name for name in names if name not in groups], "", given)
    for group in groups:
        own = getattr(recipe, group)
        parts.append("\n".join([*_wrapped(f"# {_first_line(hints[group])}"), f"[{group}]"]) + "\n")
        parts += _entries(own, [f.name for f in fields(own)], f"{group}.", given)
    return "\n".join(parts)


def _fields(kind: type) -> list[str]:
    """The fields of a kind of recipe that it uses."""
    return [f.name for f in fields(kind) if not (issubclass(kind, ImageRecipe) and f.name in OF_POINTS)]


def _entries(group: Any, names: Sequence[str], prefix: str, given: Sequence[str]) -> Iterator[str]:
    """Each field of a group with its help above it."""
    hints, helps = settings.hints_of(type(group)), settings.helps_of(type(group))
    for name in names:
        mark = "" if prefix + name in given else "#"
        words = f"{helps[name]}{_choices(hints[name])}"
        yield "\n".join([*_wrapped(f"# {words}"), f"{mark}{name} = {_toml(getattr(group, name))}"]) + "\n"


def _choices(hint: Any) -> str:
    """The words that a field may have, in words, where it has one of a few."""
    kind = settings.plain(hint)
    return f" One of: {', '.join(get_args(kind))}." if get_origin(kind) is Literal else ""


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").splitlines()[0]


def _wrapped(line: str) -> list[str]:
    """A comment in lines of at most `WIDTH` characters; another line as it is."""
    if not line.startswith("# "):
        return [line]
    wrapper = textwrap.TextWrapper(WIDTH, "# ", "# ", break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(line[2:])


ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        shown = (ESCAPED.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in value)
        return f'"{"".join(shown)}"'
    return repr(value)


# read -----------------------------------------------------------------------------------------------------------------


def read(path: Path) -> RecipeFile:
    """What a recipe file says; types and ranges are checked, contradictions are not.

    Raises:
        ValueError: it is not there, no TOML, or has an option that is unknown, of another type or out of range; names
            the line.
    """
    text = _text(path)
    try:
        content = tomllib.loads(f"{text}\n")  # whose last line then has a number in messages
    except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits too
        raise ValueError(f"{path} is no TOML: {error}.") from None
    try:
        return _read(content)
    except _AtError as error:
        line = _line(text, error.keys)
        raise ValueError(f"{path}{f', line {line}' if line else ''}: {error}") from None


class _AtError(ValueError):
    """What is wrong with the value of some keys, the outermost first."""

    def __init__(self, keys: Sequence[str], words: str) -> None:
        super().__init__(words)
        self.keys = tuple(keys)


def _text(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"there is no recipe file {path}: flowmaps new {path} --recipe RECIPE writes one.")
    if not path.is_file():
        raise ValueError(f"{path} is no file, but a folder or a device: give a recipe file.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} is no recipe file: it has more than {MAX_FILE_BYTES:,} bytes.")
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no TOML: byte {error.start:,} is not of UTF-8.") from None


def _read(content: dict[str, Any]) -> RecipeFile:
    name = content.pop("recipe", None)
    if name is None:
        raise _AtError([], f'it names no recipe: add a line such as recipe = "{next(iter(RECIPES))}" above all others.')
    if not isinstance(name, str):
        raise _AtError(["recipe"], f"recipe must be the name of one, got {_shown(name)}.")
    try:
        usual = choose("recipe", name[:100], RECIPES)()
    except ValueError as error:
        raise _AtError(["recipe"], str(error)) from None
    hints, used, options = settings.hints_of(type(usual)), _fields(type(usual)), Options()
    for key, value in content.items():
        if key not in used:
            raise _AtError([key], _unknown(key, usual))
        if not is_dataclass(hints[key]):
            options[key] = _value([key], value, hints[key])
            continue
        if not isinstance(value, dict):
            raise _AtError([key], f"{key} must be a table, [{key}], got {_shown(value)}.")
        for own, entry in value.items():
            of_group = settings.hints_of(hints[key])  # type: ignore[arg-type]
            if own not in of_group:
                raise _AtError([key, own], _unknown(f"{key}.{own}", usual))
            options[f"{key}.{own}"] = _value([key, own], entry, of_group[own])
    return RecipeFile(usual, options)


def _value(keys: Sequence[str], value: Any, hint: Any) -> Any:
    """A value of TOML as one of a field of that annotation."""
    value = tuple(value) if isinstance(value, list) else value
    if (allowed := settings.requirement(value, hint)) is not None:
        raise _AtError(keys, f"{keys[-1]} must be {allowed}, got {_shown(value)}.")
    kind = settings.plain(hint)
    if get_origin(kind) is tuple and settings.plain(get_args(kind)[0]) is float:
        return tuple(map(float, value))
    return float(value) if kind is float else value


def _shown(value: Any) -> str:
    text = _toml(value) if isinstance(value, (bool, tuple, list)) else settings.shown(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _unknown(name: str, usual: Recipe) -> str:
    """That a name is no option, with the nearest one; an option of a group may have been written without it."""
    kind, other = ("images", "points") if isinstance(usual, ImageRecipe) else ("points", "images")
    known = _names(usual)
    if name not in known and name in _names(RECIPES[other]()):
        return f"{name} is an option of {other}, and {usual.name} a recipe of {kind}: leave it out."
    group, _, own = name.replace("-", "_").rpartition(".")
    of_group = [one for one in known if group and one.startswith(f"{group}.")]
    for among in (of_group, known):  # the first option of each name, which may be one of a group
        owns = {one.rpartition(".")[2]: one for one in reversed(among)}
        if near := difflib.get_close_matches(own, owns, 1):
            group, _, own = owns[near[0]].rpartition(".")
            return f"{settings.shown(name)} is no option: did you mean {own}{f' below [{group}]' if group else ''}?"
    return (
        f"{settings.shown(name)} is no option of a recipe of {kind}: flowmaps train {usual.name} --help-all lists them."
    )


def _names(recipe: Recipe) -> list[str]:
    """The options of a recipe, such as `optimiser.batch`, and its groups of options."""
    used = _fields(type(recipe))
    return [name for name in (*used, *fields_of(recipe)) if name.partition(".")[0] in used]


def _line(text: str, keys: Sequence[str]) -> int | None:
    """The number of the line on which the value of some keys begins; `None` where it is not found."""
    lines = text.split("\n")
    for first, line in enumerate(lines):
        if keys and keys[-1] in line and not line.lstrip().startswith("#"):
            ends = range(first + 1, min(first + MAX_LINES, len(lines)) + 1)  # of a value that takes several lines
            content = next((found for end in ends if (found := _parsed(lines[:end])) is not None), {})
            if _has(content, keys):
                return first + 1
    return None


def _parsed(lines: Sequence[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("\n".join(lines))
    except ValueError:
        return None


def _has(content: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True
