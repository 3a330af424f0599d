"""The command `new`: a recipe file, with every option, its help and its value."""

from __future__ import annotations

import shlex
from collections.abc import Container
from pathlib import Path

from ..runs.recipe_files import SUFFIX, is_recipe_file, written
from ..runs.recipes import Recipe
from ..runs.recipes.found import fields_of
from ..system.files import write_atomically
from .terminal import console


def write(file: Path, recipe: Recipe, usual: Recipe, given: Container[str]) -> None:
    """Write a recipe file.

    Args:
        file: where to.
        recipe: with the options that are given.
        usual: the recipe without them.
        given: the fields that are given, such as `optimiser.learning_rate`, which the file sets even to usual values.

    Raises:
        ValueError: the file does not end in .toml, or exists.
        OSError: it cannot be written.
    """
    if not is_recipe_file(file.name):
        raise ValueError(f"the name of a recipe file must end in {SUFFIX}, got {file}: take {file}{SUFFIX}.")
    if file.exists():
        raise ValueError(f"{file} already exists: choose another name, or remove it.")
    before, now = fields_of(usual), fields_of(recipe)
    sets = [name for name in now if name in given or now[name] != before[name]]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, written(str(file), recipe, usual.name, sets))
    folder = Path("runs", file.stem)
    console.print(
        f"{file}: {len(sets)} of {len(now)} options of {usual.name} are set, the others are comments.\n"
        f"  flowmaps train {shlex.quote(str(file))} --out {shlex.quote(str(folder))}",
        soft_wrap=True,
        markup=False,
    )
