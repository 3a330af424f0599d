"""The command `tune`: the same search of settings for each method, resumable.

The folder: study.jsonl  tuned.json  tune.md  tune.png  teachers/  locks/
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..evaluation.measure import Row
from ..evaluation.results import as_number, metric_of
from ..evaluation.search import Search
from ..reports import figures
from ..reports import search as reports
from ..runs.recipes import RECIPES, Recipe
from ..runs.recipes.found import fields_of
from ..system.files import write_atomically
from .options import changed_options
from .terminal import console, watching


def tune(recipe: Recipe, methods: tuple[str, ...], folder: Path, *, command: str, **options: Any) -> None:
    """Search the settings of each method; write what was found into the folder after each trial.

    Errors are those of `Search`.

    Args:
        recipe, methods, folder: as of `Search`.
        command: that resumes the search.
        options: further arguments of `Search`.
    """
    search = Search(recipe, methods, folder, **options)
    for note in search.source.notes:
        console.print(f"{recipe.data}: {note}.", soft_wrap=True, markup=False)
    before = sum(len((*result.trials, *result.finals)) for result in search.results().values())
    console.print(f"{'going on with' if before else 'beginning'} the study in {folder}", soft_wrap=True)
    try:
        _run(search, command)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the finished trials are kept: go on with {command}") from None
    found = write(search, command, picture=True)["methods"]
    console.print(reports.entries(recipe.name, found, _given(recipe)), soft_wrap=True, markup=False, end="")
    console.print(f"table: {folder / 'tune.md'}; picture: {folder / 'tune.png'}", soft_wrap=True)


def _run(search: Search, command: str) -> None:
    """Run the search, with a line and a part of the bar for each training."""
    total, begun, taken = search.runs_each * len(search.methods), time.monotonic(), list[str]()
    with watching("tune", 100) as watch:

        def watch_training(title: str, share: float) -> None:
            watch(title, (len(taken) + share) / total)

        for method, row in search.run(watch_training, lambda line: console.print(line, soft_wrap=True)):
            taken.append(method)
            left = (time.monotonic() - begun) / len(taken) * _left(search, method)
            console.print(_line(search, method, row, left), soft_wrap=True, markup=False)
            write(search, command, picture=taken[-2:-1] != [method])


def _left(search: Search, method: str) -> int:
    """How many trainings of this search are left, at most, once a method has done what it has."""
    done = search.results()
    names = search.methods[search.methods.index(method) :]
    taken = [len(done[name].trials) + len(done[name].finals) if name in done else 0 for name in names]
    return sum(max(search.runs_each - number, 0) for number in taken)


def _line(search: Search, method: str, row: Row, left: float) -> str:
    """What a training brought, in a line."""
    result = search.results()[method]
    lost = f"cannot be measured: {row['reason']}" if "reason" in row else "diverged"
    score = lost if row["score"] is None else f"score {row['score']:.3g}"
    best = (
        ""
        if result.best["score"] is None
        else f"; best {as_number(result.best['score']):.3g}, trial {result.best['trial'] + 1}"
    )
    if "trial" in row:
        what = f"trial {row['trial'] + 1} of {search.trials}"
    else:
        kind = "today's" if row["settings"] == result.today["settings"] else "found"
        what, best = f"seed {row['seed']}, {kind} settings", ""
    return f"{method}, {what}: {score}{best}; {row['seconds']:.0f} s, about {left / 60:.0f} min to go"


def _given(recipe: Recipe) -> str:
    """The options of a recipe that training depends on and that differ from its usual ones."""
    usual = RECIPES[recipe.name]()
    same = {name: getattr(usual, name) for name in ("evaluation", "seed", "device", "compile")}
    return shlex.join(changed_options(replace(recipe, **same), usual))


def write(search: Search, command: str, *, picture: bool) -> Row:
    """Write tuned.json and tune.md, and the picture too if asked, from all that the study has; returns tuned.json."""
    folder, recipe = search.file.folder, search.recipe
    with search.file.locked("tuned.json"):
        results = {name: result for name, result in search.results().items() if result.trials}
        fields = fields_of(recipe)
        metric = metric_of([row for result in results.values() for trial in result.trials for row in trial["rows"]])
        content = {
            "recipe": recipe.name,
            "budget": search.budget,
            "clock": search.clock,
            "metric": metric,
            "steps": recipe.evaluation.steps,
            "validation_seed": search.validation_seed,
            "command": command,
            "methods": {name: result.summary(fields) for name, result in results.items()},
        }
        write_atomically(folder / "tuned.json", json.dumps(content, indent=2) + "\n")
        write_atomically(folder / "tune.md", reports.table(recipe.name, content["methods"], metric, _given(recipe)))
        if picture and results:
            figures.save(reports.figure(results, metric), folder / "tune.png", dpi=100)
    return content
