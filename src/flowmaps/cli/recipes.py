"""A recipe and the options that are given for it on a command line."""

from __future__ import annotations

import argparse
from collections.abc import Container
from dataclasses import replace

from ..runs.recipes import ImageRecipe, Recipe
from ..storage.methods import method_of as method_named
from .options import ImageOptions, Train, changed_options


def as_options(recipe: Recipe) -> Recipe:
    """A recipe whose fields are the options of `train` for its kind."""
    return ImageOptions(**vars(recipe)) if isinstance(recipe, ImageRecipe) else recipe


def method_of(words: list[str], usual: str) -> str:
    """The method that the options name, or the usual one."""
    return value_of(words, "method", usual)


def value_of(words: list[str], option: str, usual: str) -> str:
    """The value that the words give an option, before all of them are parsed; the usual one unless given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(f"--{option}", default=usual)
    try:
        return getattr(parser.parse_known_args(words)[0], option)
    except argparse.ArgumentError:  # without a value, which the parser of all options says
        return usual


def check_own_network(recipe: Recipe, usual: Recipe) -> None:
    """Refuse sizes of the recipe's networks beside --net, which takes their place."""
    groups = ("--network.", "--unet.", "--dit.", "--backbone")
    if recipe.net and (words := [word for word in changed_options(recipe, usual) if word.startswith(groups)]):
        raise ValueError(
            f"{words[0]} is of the recipe's own network, and --net {recipe.net} takes its place: leave it out."
        )


def about_training(usual: Recipe) -> str:
    """What the help of a recipe says first: what is done, and what the recipe changes of its methods' own defaults."""
    from ..runs.changes import lines
    from ..runs.plan import resolve

    changed = "\n\n".join(lines(resolve(usual)))
    return f"{Train.__doc__}\n\n{CHANGES}\n\n{changed}"


CHANGES = """What this recipe sets differently from its methods (--check says it for other options, such as another
--method):"""


def with_all_steps(recipe: Recipe, given: Container[str]) -> Recipe:
    """The recipe, with --steps as all its steps if they were given for a method that trains no teacher.

    Only the numbers of the recipe itself are added up, so that methods with and without a teacher train equally long.

    Args:
        recipe: with the options.
        given: the fields that a command line or a recipe file sets, also to the values that they have anyway.
    """
    all_steps = "steps" in given and "teacher_steps" not in given
    without = "teacher" not in method_named(recipe.method).stages and not recipe.warm_up_steps
    return replace(recipe, teacher_steps=0) if without and all_steps else recipe
