"""The reference of the commands: the options of each, read from the program's own parsers."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from argparse import Action, ArgumentParser
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import tyro

from builder.links import DOCS
from flowmaps.cli import main as cli
from flowmaps.cli import options
from flowmaps.cli.options import changed_options
from flowmaps.runs.distill import usual_recipe
from flowmaps.runs.recipes import RECIPES, ImageRecipe, Recipe

FRONT = "---\nsearch:\n  boost: 0.8\n---\n\n"
POINTS, IMAGES = RECIPES["points"](), RECIPES["images"]()


@functools.cache
def printed(*words: str) -> str:
    """What the program prints for words of a command line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main(list(words))
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())


def names() -> tuple[str, ...]:
    """The commands, in the order of `flowmaps --help`."""
    return tuple(dict.fromkeys(re.findall(r"^ {2,4}([a-z]+) ", printed("--help"), re.M)))


def parser(kind: Any, default: Any = None) -> ArgumentParser:
    """The parser of a command's options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return tyro.extras.get_parser(kind) if default is None else tyro.extras.get_parser(kind, default=default)


def kind_of(name: str) -> Any:
    """The options of a command."""
    return getattr(options, "Train" if name == "distill" else name.capitalize())


@functools.cache
def parsers(name: str) -> dict[str, ArgumentParser]:
    """The parsers of a command by the heading of their options; a command of recipes has one for images too."""
    kind = kind_of(name)
    if name == "distill":
        return {"Options": parser(kind, kind(recipe=options.ImageOptions(**vars(usual_recipe()))))}
    if kind is options.Train:
        shown: tuple[Any, Any] = POINTS, options.ImageOptions(**vars(IMAGES))
    elif kind in (options.Compare, options.Tune):
        shown = options.Compared(**vars(POINTS)), options.ComparedImages(**vars(IMAGES))
    else:
        return {"Options": parser(kind)}
    titles = "Options of a recipe of points", "Options of a recipe of images"
    return {title: parser(kind, kind(recipe=recipe)) for title, recipe in zip(titles, shown, strict=True)}


def row(action: Action) -> str:
    """An option as a row of a table."""
    words = action.help or ""
    default = re.search(r" ?\((?:default: (?P<value>.*)|(?P<required>required))\)$", words, re.S)
    text = " ".join((words[: default.start()] if default else words).split()).replace("|", "\\|")
    value = "needed" if default and default["required"] else f"`{(default and default['value']) or ''}`"
    value = "" if value in ("``", "`None`", "`''`") else value
    given = " ".join(f"`{name}`" for name in action.option_strings) or f"`{str(action.dest).upper()}`"
    takes = "" if action.nargs == 0 else f" {shown_type(str(action.metavar))}"
    return f"| {given}{takes} | {value} | {text} |"


def shown_type(metavar: str) -> str:
    """What an option takes, without the word None and as text of a table."""
    words = metavar.replace("{None}|", "").replace("|", " or ")
    return f"`{words}`" if len(words) <= 40 else "..."


def groups(one: ArgumentParser) -> Iterable[tuple[str, list[Action]]]:
    """The options of a parser by their groups, those that belong to no group first, under no title."""
    found: dict[str, list[Action]] = {}
    for group in one._action_groups:
        title = "" if group.title in ("options", "positional arguments") else str(group.title).removesuffix(" options")
        found.setdefault(title, []).extend(action for action in group._group_actions if action.dest != "help")
    return ((title, actions) for title, actions in found.items() if actions)


def tables(name: str) -> str:
    """All options of a command."""
    parts, seen = [], set[str]()
    for title, one in parsers(name).items():
        parts.append(f"## {title}")
        if seen:
            parts.append("Those that differ from the options above, or come in addition.")
        for group, actions in groups(one):
            new = [line for line in map(row, actions) if line not in seen]
            if not new:
                continue
            if group:
                parts.append(f"### {group}")
            parts.append("\n".join(["| option | unless given | |", "|---|---|---|", *new]))
            seen.update(new)
    return "\n\n".join(parts)


def recipes() -> str:
    """The recipes: what each is, and the options that it sets."""
    lines = []
    for name, make in RECIPES.items():
        recipe = make()
        plain = (ImageRecipe if isinstance(recipe, ImageRecipe) else Recipe)(name=name)
        words = re.sub(r" (?=--)", "` `", " ".join(changed_options(replace(recipe, name=name), plain)))
        about = (make.__doc__ or "").splitlines()[0]
        lines.append(f"- **`{name}`**. {about} It sets `{words}`")
    return "\n".join(lines)


def about(name: str) -> str:
    """What a command does: the docstring of its options, or for one without options of its own the line of --help."""
    if name == "distill":
        return line_of_help(name)
    return re.sub(r"\s*\n\s*", " ", (kind_of(name).__doc__ or "").strip())


def line_of_help(name: str) -> str:
    """What `flowmaps --help` says of a command."""
    entry = re.search(rf"^ {{2,4}}{name} .*?(?:\s{{2,}}|\n\s{{8,}})(\S.*?)$", printed("--help"), re.M)
    return entry[1].strip().capitalize() + "." if entry else ""


def page(name: str) -> str:
    """The page of a command."""
    parts = [FRONT + f"# flowmaps {name}", about(name)]
    if name in ("train", "compare", "tune"):
        parts += [f"```\nflowmaps {name} RECIPE [options]\n```", "## Recipes", recipes()]
    return "\n\n".join([*parts, tables(name)]) + "\n"


def index() -> str:
    """The page of all commands."""
    lines = ["| command | |", "|---|---|", *(f"| [`flowmaps {name}`]({name}.md) | {about(name)} |" for name in names())]
    words = "Read from the program's own parsers; `flowmaps COMMAND --help` prints the same."
    return FRONT + "\n\n".join(["# Commands", words, "\n".join(lines)]) + "\n"


def pages() -> dict[str, str]:
    """The pages of the commands, by their path in the site."""
    return {"reference/commands/index.md": index()} | {f"reference/commands/{name}.md": page(name) for name in names()}


def nav() -> list[dict[str, object]]:
    """The entries of the commands in the navigation."""
    return [{"Overview": "reference/commands/index.md"}, *({name: f"reference/commands/{name}.md"} for name in names())]


def methods_nav() -> list[Any]:
    """The entries of the pages of methods, by equation, as the page of all methods has them."""
    found: list[Any] = [{"All methods": "methods/README.md"}]
    text = (DOCS / "methods" / "README.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        title = section.partition("\n")[0].partition(":")[0]
        found.append({title: [{name: f"methods/{name}.md"} for name in re.findall(r"^\| \[`(\w+)`\]", section, re.M)]})
    return found


def all_options() -> set[str]:
    """Every option of every command."""
    found = {"--help", "--help-all", "--version"}
    for name in names():
        for one in parsers(name).values():
            found |= {word for action in one._actions for word in action.option_strings}
    return found
