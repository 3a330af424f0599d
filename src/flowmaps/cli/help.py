"""What is said of the commands without one, and by --help: of a recipe its first options, of some eighty."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, get_args, get_origin

import tyro

from ..runs.recipes import RECIPES
from ..training import settings
from .options import Unused

PROGRAM = "flowmaps"
HELP_ALL = "--help-all"
FIRST_OPTIONS = (
    *("out", "check", "file", "of", "methods", "seeds", "budget", "budget_steps", "trials", "final_seeds", "resume"),
    *("data", "method", "steps", "teacher_steps", "optimiser.batch", "optimiser.learning_rate", "seed"),
)
"""The options that --help shows."""
FIRST_OF = {
    "points": ("label_column", "categories", "transform", "condition_columns", "drop_columns", "held_out"),
    "distilled": ("teacher", "guidance", "lora", "precision"),
}
"""Those it shows too of a recipe: of the user's own points a table's, of a distillation the teacher."""
MORE = f"These options matter first; {HELP_ALL} shows all of them."
HELP = f"""usage: {PROGRAM} COMMAND ...

Learn a flow map, sample it in a few steps, measure it.

  train RECIPE --check               dry run: check a recipe, and print what its training will take; nothing is written
  train RECIPE --out DIR             train a recipe and measure it ({", ".join(RECIPES)})
  new FILE.toml --recipe RECIPE      a recipe file, with every option and its help; train takes it in a recipe's place
  distill --teacher NAME --data DATA --out DIR
                                     a map of a trained model: a folder or name of diffusers, a run, module:callable
  encode --vae NAME --data DATA --out DIR
                                     latents of pictures, once, by an autoencoder of diffusers, to train on
  sample DIR --steps 4 --out FILE    samples of a trained map, as .npz, .npy, .csv, .parquet, ...
  export DIR --steps 4 --out FILE    a trained map with its sampler as one file, .onnx or .pt2
  evaluate DIR --steps 1 2 4 8       the table, metrics.json and report.html of a run
  app DIR                            a page in the browser to play with a run's map
  invert DIR --out FILE              data to noise and back, or to data of another class
  likelihood DIR --out FILE          log densities of data
  restore DIR --operator hide:8 --out FILE
                                     data from observations: with a part hidden, blurred, smaller, a tomogram
  average DIR --width 0.08 --out NEW a copy of a run with another EMA of its weights
  compare RECIPE --methods lmd fmm   several methods on one budget: one table, one plot
  tune RECIPE --methods lsd --out DIR
                                     the same search of settings for each method, by Optuna, resumable
  methods                            all methods by their equation: what each learns from, and which jumps
  doctor MODULE:CLASS --shape 3,32,32
                                     examine a network of your own: derivatives, their cost, the methods for it

{PROGRAM} COMMAND --help shows the options of a command; {PROGRAM} train RECIPE --help, compare RECIPE --help
and tune RECIPE --help the first of a recipe, with {HELP_ALL} in the place of --help all of them.
"""
BEGIN = f"""{PROGRAM} learns flow maps: networks that sample a flow or diffusion model in one to four steps.

  {PROGRAM} train checkerboard --out runs/board        a first map: a table, pictures and a report
  {PROGRAM} new mine.toml --recipe points --data FILE  write a recipe file for data of your own
  {PROGRAM} train mine.toml --out runs/mine            train it; --check: a dry run, --resume: go on
  {PROGRAM} sample runs/mine --steps 4 --out new.csv   draw samples from a trained map
  {PROGRAM} distill --teacher MODEL --data DATA --out DIR  a map of a diffusion model of yours

{PROGRAM} --help lists all commands and recipes.
"""


def asks_for_help(words: list[str]) -> bool:
    """Whether help is asked for among the words of a command line."""
    return not {"-h", "--help", HELP_ALL}.isdisjoint(words)


def shown_options(default: Any, every: bool, prefix: str = "") -> Any:
    """A dataclass of options with the same values, of a kind whose options are those that help shows.

    Args:
        default: the options of a command, or a group of them.
        every: show all of its options, and not `FIRST_OPTIONS` alone.
        prefix: of the names of its fields.
    """
    kind = type(default)
    values = {f.name: getattr(default, f.name) for f in fields(kind)}
    wanted = FIRST_OPTIONS + FIRST_OF.get(getattr(default, "name", ""), ())
    first = {name for name in values if every or prefix + name in wanted}
    first |= {"recipe"} | {name for name in values if any(one.startswith(f"{name}.") for one in FIRST_OPTIONS)}
    groups = {
        name: shown_options(value, every, "" if name == "recipe" else f"{name}.")
        for name, value in values.items()
        if is_dataclass(value) and name in first
    }
    hidden = tuple(name for name in values if name not in first)
    return shown_kind(kind, hidden, tuple((name, type(value)) for name, value in groups.items()))(**values | groups)


@functools.cache
def shown_kind(kind: type, hidden: tuple[str, ...] = (), groups: tuple[tuple[str, type], ...] = ()) -> type:
    """A kind of options without some of them, with other kinds of some groups, and help in whole paragraphs."""
    hints, helps, entries = settings.hints_of(kind), settings.helps_of(kind), list[tuple[str, Any, Field[Any]]]()
    for field in map(copy.copy, fields(kind)):
        hint, metadata = hints[field.name], get_args(hints[field.name])[1:]
        if field.name in hidden:
            hint = Unused[hint]
        elif field.name in dict(groups):
            hint = _annotated(dict(groups)[field.name], metadata if get_origin(hint) is Annotated else ())
        elif field.name in helps and not any(type(one) is ARGUMENT for one in metadata):
            hint = Annotated[hint, tyro.conf.arg(help=helps[field.name])]
        entries.append((field.name, hint, field))
    made = make_dataclass(kind.__name__, entries, bases=(kind,), frozen=True, kw_only=True)
    made.__doc__ = kind.__doc__
    return made


ARGUMENT = type(tyro.conf.arg(name="x"))


def _annotated(kind: Any, metadata: Sequence[Any]) -> Any:
    return functools.reduce(lambda hint, one: Annotated[hint, one], metadata, kind)


@contextlib.contextmanager
def errors_name_all_options(short: bool) -> Iterator[None]:
    """Context in which an error of the parser names --help-all, if `short`: the command whose --help is complete."""
    if not short:
        yield
        return
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            yield
    finally:
        sys.stderr.write(re.sub(r"--help(?!-)((?:\x1b\[\d*m)*) {0,4}", rf"{HELP_ALL}\1", caught.getvalue()))
