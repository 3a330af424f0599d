"""The command line: `flowmaps new | train | distill | encode | sample | export | evaluate | app | invert |
likelihood | restore | average | compare | tune | methods | doctor`.

Every error that a user can cause ends with exit code 2: in one line on standard error, or in the words of tyro where an
option is unknown, is missing, or has a value of another type.
"""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import tyro

from ..data.options import DataWarning
from ..methods import METHODS
from ..runs.own_networks import import_module, load_method
from ..runs.recipe_files import is_recipe_file, read
from ..runs.recipes import IMAGES, RECIPES, ImageRecipe, Recipe, for_method, validate
from ..system.names import choose
from ..system.processes import LOST, LostProcess, RaisedByAll, first_line, is_lost, together
from .help import (
    BEGIN,
    HELP,
    HELP_ALL,
    MORE,
    PROGRAM,
    asks_for_help,
    errors_name_all_options,
    shown_kind,
    shown_options,
)
from .options import (
    TUNED_STEPS,
    App,
    Average,
    Compare,
    Compared,
    ComparedImages,
    Doctor,
    Encode,
    Evaluate,
    Export,
    Invert,
    Likelihood,
    Methods,
    New,
    Restore,
    Sample,
    Train,
    Tune,
    changed_options,
    given_fields,
)
from .recipes import about_training, as_options, check_own_network, method_of, value_of, with_all_steps
from .terminal import FIRST
from .words import joined, unmarked

T = TypeVar("T")
ABOUT_DISTILL = (
    "Learn a map of a trained model, then measure it. --teacher names the model: a folder or a name of\n"
    "diffusers, a run, or module:callable; --data is what it was trained on, or like it."
)
OF_OTHERS = {
    "--epochs": "pass --steps, optimiser steps of one batch each",
    "--batch-size": "pass --optimiser.batch",
    "--lr": "pass --optimiser.learning-rate",
    "--learning-rate": "pass --optimiser.learning-rate",
    "--output": "pass --out",
    "--num-samples": "pass --evaluation.samples",
}
"""Names that other programs have for options of this one."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; exits with code 2 after a user's error, 130 after an interruption."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # commands print the notes of a source themselves
            _dispatch(words)
    except KeyboardInterrupt as error:
        words = str(error) or "interrupted; a training that has a checkpoint goes on with --resume."
        print(f"{PROGRAM}: {words}", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, RuntimeError) as error:
        if is_lost(error):
            error = LostProcess(f"{LOST} ({first_line(error)}).")
        elif isinstance(error, RuntimeError):
            raise
        by_all = isinstance(error.__cause__, RaisedByAll)
        if FIRST or isinstance(error, LostProcess) or (together() and not by_all):  # no other process reports it
            print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def _dispatch(words: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "distill": _distill,
        "new": _new,
        "sample": lambda words: _make(Sample, words),
        "export": _export,
        "encode": _encode,
        "evaluate": _evaluate,
        "app": _app,
        "invert": lambda words: _use(Invert, words),
        "likelihood": lambda words: _use(Likelihood, words),
        "restore": lambda words: _use(Restore, words),
        "average": lambda words: _make(Average, words),
        "compare": _compare,
        "tune": _tune,
        "methods": _show_methods,
        "doctor": _doctor,
    }
    if not words:
        print(BEGIN, end="")
        raise ValueError(f"no command given: choose one of {', '.join(commands)}.")
    if asks_for_help(words[:1]):
        print(HELP, end="")
    elif words[0] == "--version":
        from .. import __version__

        print(f"{PROGRAM} {__version__}")
    else:
        choose("command", words[0], commands)(words[1:])


def _parse(kind: type[T], words: list[str], program: str, default: T | None = None, *, about: str | None = None) -> T:
    """Parse options; of several processes the first one prints help, which begins with `about`, and errors."""
    short = default is not None  # a command with a recipe
    if default is not None and asks_for_help(words):
        default = options_shown = shown_options(default, HELP_ALL in words)
        kind, about = type(options_shown), about or f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{MORE}"
    elif asks_for_help(words):
        kind = shown_kind(kind)
    for word in words if short else ():
        if advice := OF_OTHERS.get(word.partition("=")[0].replace("_", "-")):
            raise ValueError(f"there is no option {word.partition('=')[0]} here: {advice}.")
    words = ["--help" if word == HELP_ALL else word for word in words]
    options = {"prog": f"{PROGRAM} {program}", "args": joined(words), "console_outputs": FIRST, "description": about}
    with errors_name_all_options(short):
        return unmarked(tyro.cli(kind, **options) if default is None else tyro.cli(kind, default=default, **options))


def _with_recipe(command: str, words: list[str]) -> tuple[Recipe, list[str], str]:
    if not words or words[0].startswith("-"):
        if asks_for_help(words[:1]):
            print(f"usage: {PROGRAM} {command} RECIPE [options]\n\nrecipes:")
            for name, recipe in RECIPES.items():
                print(f"  {name:20} {(recipe.__doc__ or '').splitlines()[0]}")
            raise SystemExit(0)
        file = ", or a recipe file ending in .toml" if command == "train" else ""
        raise ValueError(f"{command} needs a recipe first: one of {', '.join(RECIPES)}{file}.")
    if is_recipe_file(words[0]):
        raise ValueError(f"{command} takes the name of a recipe, got the file {words[0]}, which flowmaps train takes.")
    if words[0] not in ("", *RECIPES) and Path(words[0]).exists():
        raise ValueError(
            f"{command} takes a recipe first, and data by --data: of points or a table {PROGRAM} {command} points "
            f"--data {words[0]}, of images one of {', '.join(IMAGES)}."
        )
    if words[1:] and not words[1].startswith("-"):
        raise ValueError(f"{command} {words[0]} takes options alone, got {words[1]}: data are given by --data FILE.")
    return choose("recipe", words[0], RECIPES)(), words[1:], f"{command} {words[0]}"


def _train(words: list[str]) -> None:
    if words and is_recipe_file(words[0]):
        file, rest, program = read(Path(words[0])), words[1:], f"train {words[0]}"
        bare, found = file.for_method(method_of(rest, file.method))
        options = {"bare": bare, "set_by_file": file.options}
        return _run(program, replace(found, method=file.method), rest, ["train", words[0]], **options)
    usual, rest, program = _with_recipe("train", words)
    found = for_method(usual, method_of(rest, usual.method))
    _run(program, replace(found, method=usual.method), rest, ["train", words[0]])


def _new(words: list[str]) -> None:
    name = value_of(words, "recipe", "")
    if not name and not asks_for_help(words):
        raise ValueError(f"new needs --recipe RECIPE, one of {', '.join(RECIPES)}.")
    usual = choose("recipe", name or "points", RECIPES)()
    usual = replace(for_method(usual, value_of(words, "method", usual.method)), method=usual.method)
    given = _parse(New, words, "new", New(recipe=as_options(usual), of=name))
    recipe = type(usual)(**vars(given.recipe))
    validate(recipe)
    load_method(recipe.method)
    check_own_network(recipe, usual)
    from . import new

    new.write(given.file, recipe, usual, given_fields(words))


def _distill(words: list[str]) -> None:
    from ..runs.distill import recipe_for, usual_recipe

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--teacher")
    parser.add_argument("--guidance", type=float, nargs="+", default=())
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--import-module", "--import_module")
    known, _ = parser.parse_known_args(words)
    if known.teacher is None and not asks_for_help(words):
        raise ValueError(
            "distill needs --teacher: a folder or name of diffusers, a folder of a run, or module:callable."
        )
    _import(known.import_module)
    usual, found = usual_recipe(), list[str]()
    if known.teacher is not None:
        usual, found = recipe_for(known.teacher, tuple(known.guidance), known.lora)
    _run("distill", usual, words, ["distill", "--teacher", usual.teacher], found)


def _run(
    program: str,
    usual: Recipe,
    rest: list[str],
    again: list[str],
    found: Sequence[str] = (),
    *,
    bare: Recipe | None = None,
    set_by_file: Collection[str] = (),
) -> None:
    """Train a recipe with the options given, or check it.

    Args:
        program: the command in words, for --help.
        usual: the recipe without the options.
        rest: the options.
        again: the words with which the command begins.
        found: lines to print first.
        bare: the recipe without what a recipe file sets; `usual` unless given.
        set_by_file: the fields that it sets.
    """
    about = None
    if HELP_ALL in rest:
        method = method_of(rest, usual.method)
        load_method(method)
        about = about_training(replace(usual, method=method))
    if program == "distill" and asks_for_help(rest):
        about = "\n\n".join([ABOUT_DISTILL, about or MORE])
    given = _parse(Train, rest, program, Train(recipe=as_options(usual)), about=about)
    _import(given.import_module)
    bare = usual if bare is None else bare
    load_method(given.recipe.method)
    recipe = with_all_steps(type(usual)(**vars(given.recipe)), {*given_fields(rest), *set_by_file})
    check_own_network(recipe, bare)
    if given.check and (given.resume or given.resume_from is not None or given.minutes is not None):
        raise ValueError("--check is for a run before it begins: leave out --resume, --resume-from and --minutes.")
    if given.out is None and not given.check:
        raise ValueError(f"{again[0]} needs --out DIR, the folder of the run.")
    from . import commands

    for line in found:
        commands.console.print(line, soft_wrap=True, markup=False)
    if given.check or given.out is None:
        return commands.check(recipe, given.out)
    options = {name: getattr(given, name) for name in ("resume", "resume_from", "minutes")}
    imported = ["--import-module", given.import_module] if given.import_module else []
    again = [PROGRAM, *again, "--out", str(given.out), *changed_options(recipe, usual), *imported, "--resume"]
    commands.train(recipe, given.out, **options, resume_command=shlex.join(again))


def _make(kind: type[Sample] | type[Average], words: list[str]) -> None:
    from . import sampling

    make = sampling.sample if kind is Sample else sampling.average
    given = vars(_parse(kind, words, kind.__name__.lower()))
    _import(given.pop("import_module"))
    make(**given)


def _use(kind: type[Invert] | type[Likelihood] | type[Restore], words: list[str]) -> None:
    given = _parse(kind, words, kind.__name__.lower())
    _import(given.import_module)
    from . import densities, uses

    if isinstance(given, Likelihood):
        return densities.log_densities(given)
    return uses.invert(given) if isinstance(given, Invert) else uses.restore(given)


def _import(module: str | None) -> None:
    """Import the module of a user's network or method, where the user has named one."""
    if module is not None:
        import_module(module)


def _encode(words: list[str]) -> None:
    given = _parse(Encode, words, "encode")
    from . import encode

    encode.encode_data(**vars(given))


def _export(words: list[str]) -> None:
    given = vars(_parse(Export, words, "export"))
    _import(given.pop("import_module"))
    from . import export

    export.export_run(**given)


def _evaluate(words: list[str]) -> None:
    given = _parse(Evaluate, words, "evaluate")
    _import(given.import_module)
    from ..runs.folder import RunFolder
    from . import commands

    changes = {"steps": given.steps, "samples": given.samples, "features": given.features}
    changes = {name: value for name, value in changes.items() if value is not None}
    folder = RunFolder.open(given.folder, given.net)
    commands.evaluate(folder, changes, given.seed)
    if given.certificate:
        from .certificate import certify

        certify(folder, given.seed)


def _app(words: list[str]) -> None:
    from . import app

    given = _parse(App, words, "app")
    _import(given.import_module)
    app.serve(given)


def _compare(words: list[str]) -> None:
    recipe, rest, program = _with_recipe("compare", words)
    kind = ComparedImages if isinstance(recipe, ImageRecipe) else Compared
    given = _parse(Compare, rest, program, Compare(recipe=kind(**vars(recipe))))
    if given.recipe.optimiser.ema_decays or given.recipe.optimiser.ema_widths:
        raise ValueError(
            "compare keeps one average of the weights: leave out --optimiser.ema-decays and --optimiser.ema-widths."
        )
    if given.budget is not None and given.budget_steps is not None:
        raise ValueError("--budget is in seconds and --budget-steps in steps: leave one of them out.")
    from . import compare

    seconds = 120.0 if given.budget is None else given.budget
    budget = (seconds, "seconds") if given.budget_steps is None else (given.budget_steps, "steps")
    options = {"seeds": _seeds(given.seeds, given.recipe.seed), "resume": given.resume, "given": given_fields(rest)}
    compare.compare(type(recipe)(**vars(given.recipe)), _methods(given.methods), *budget, given.out, **options)


def _seeds(given: tuple[int, ...], first: int) -> tuple[int, ...]:
    """The seeds of a comparison: those that are given, or as many as the one number says."""
    if len(given) != 1:
        return given
    if not 1 <= given[0] <= MAX_SEEDS:
        raise ValueError(
            f"--seeds must be from 1 to {MAX_SEEDS}, the number of seeds from --seed on, got {given[0]}: for the one "
            f"seed {given[0]} pass --seed {given[0]}."
        )
    return tuple(range(first, first + given[0]))


MAX_SEEDS = 100
"""Most seeds of a comparison."""


def _methods(names: tuple[str, ...]) -> tuple[str, ...]:
    """The methods that --methods names."""
    if names == ("all",):
        return tuple(METHODS)
    if "all" in names:
        raise ValueError(f"--methods all stands alone, got {' '.join(names)}: leave out the others, or all.")
    for name in names:
        load_method(name)
    return names


def _tune(words: list[str]) -> None:
    usual, rest, program = _with_recipe("tune", words)
    kind = ComparedImages if isinstance(usual, ImageRecipe) else Compared
    shown = kind(**vars(replace(usual, evaluation=replace(usual.evaluation, steps=TUNED_STEPS))))
    given = _parse(Tune, rest, program, Tune(recipe=shown))
    recipe, fields = type(usual)(**vars(given.recipe)), given_fields(rest)
    again = shlex.join([PROGRAM, "tune", *(word for word in words if word != "--resume"), "--resume"])
    from . import tune

    names = ("trials", "budget", "final_seeds", "resume")
    options = {name: getattr(given, name) for name in names}
    tune.tune(recipe, _methods(given.methods), given.out, **options, given=fields, command=again)


def _show_methods(words: list[str]) -> None:
    _parse(Methods, words, "methods")
    from . import methods

    methods.show()


def _doctor(words: list[str]) -> None:
    given = _parse(Doctor, words, "doctor")
    from . import doctor

    doctor.doctor(**vars(given))
