"""What a search found: the settings of a method in a recipe that differ from the recipe's own.

    FOUND["checkerboard"] |= {"lsd": {"optimiser.learning_rate": 0.004, "diagonal_share": 0.6}}

`flowmaps tune RECIPE` searches, and prints the lines of this table for its recipe. `flowmaps train RECIPE --method M`
and `flowmaps compare RECIPE` start from these settings; an option that the user gives takes their place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ...training import settings
from .fields import Recipe

Options = dict[str, Any]
"""Field of a recipe, such as `optimiser.learning_rate`, -> its value."""

FOUND: defaultdict[str, dict[str, Options]] = defaultdict(dict)
"""Recipe -> method -> the settings found. What `flowmaps tune` prints is pasted below (docs/tuning.md)."""

# From results/tune-checkerboard. Left out: lmd, whose gain is 1 %; meanflow and soflow, which gain in 40 seconds and
# lose in 120; flow_matching, whose score is of 1 and 4 Euler steps, while it is used for its ODE.
FOUND["checkerboard"] |= {
    "emd": {"map_rate_scale": 1.91, "from_noise_share": 0.04, "adaptive_power": 0.15},
    "neural_operator": {"map_rate_scale": 1.83, "from_noise_share": 0.42, "adaptive_power": 0.31},
    "consistency_distillation": {"map_rate_scale": 1.82, "learned_weight": True, "target_decay": 0.99},
    "scd": {"map_rate_scale": 0.28},
    "reflow": {"map_rate_scale": 1.85, "learned_weight": True},
    "anyflow": {"unstable_rate_scale": 0.28, "diagonal_share": 0.73, "learned_weight": True},
    "easy_consistency_tuning": {"unstable_rate_scale": 0.0652},
    "pfmm": {"optimiser.learning_rate": 0.014, "from_noise_share": 0.6},
    "fmm": {"optimiser.learning_rate": 0.0158, "learned_weight": True},
    "eulerian_estimation": {"optimiser.learning_rate": 0.0516, "learned_weight": True},
    "esd": {
        "optimiser.learning_rate": 0.00825,
        "diagonal_share": 0.61,
        "from_noise_share": 0.53,
        "adaptive_power": 0.9,
    },
    "improved_meanflow": {"optimiser.learning_rate": 0.0062, "diagonal_share": 0.15, "learned_weight": True},
    "pixel_meanflow": {"optimiser.learning_rate": 0.0288, "diagonal_share": 0.35, "learned_weight": True},
    "split_meanflow": {
        "optimiser.learning_rate": 0.0129,
        "diagonal_share": 0.5,
        "from_noise_share": 0.56,
        "adaptive_power": 0.56,
        "target_decay": 0.99,
    },
    "shortcut": {"optimiser.learning_rate": 0.0121, "diagonal_share": 0.69, "adaptive_power": 0.67},
    "consistency_training": {"optimiser.learning_rate": 0.0141, "learned_weight": True, "target_decay": 0.99},
    "improved_consistency_training": {"optimiser.learning_rate": 0.00425},
}


def with_options(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of some fields, such as {"optimiser.learning_rate": 0.004}."""
    for name, value in options.items():
        group, _, own = name.rpartition(".")
        field = group or own
        recipe = replace(recipe, **{field: replace(getattr(recipe, group), **{own: value}) if group else value})
    return recipe


def for_method(recipe: Recipe, method: str, given: Collection[str] = ()) -> Recipe:
    """The recipe for a method, with the settings that were found for it there.

    Args:
        recipe: of `RECIPES`, with the options of the user.
        method: name of the method.
        given: fields that the user has set, which stay as they are.
    """
    options = FOUND.get(recipe.name, {}).get(method, {})
    return with_options(
        replace(recipe, method=method), {name: value for name, value in options.items() if name not in given}
    )


def found_in(recipe: Recipe) -> Options:
    """The settings found for the method of a recipe that the recipe has."""
    options = FOUND.get(recipe.name, {}).get(recipe.method, {})
    own = fields_of(recipe)
    return {name: value for name, value in options.items() if own[name] == value}


def fields_of(recipe: Recipe) -> Options:
    """The fields of a recipe, those of its groups as `optimiser.learning_rate`."""
    return {name.replace("-", "_"): value for name, value in settings.values(recipe).items()}


def in_options(options: Mapping[str, Any]) -> str:
    """Settings as options of the command line, such as `--diagonal-share 0.6 --learned-weight`."""
    return " ".join(
        option(name, not value) if isinstance(value, bool) else f"{option(name)} {settings.six_digits(value)}"
        for name, value in options.items()
    )


def option(field: str, no: bool = False) -> str:
    """The option of a field, such as `--optimiser.learning-rate`; with `no` the one that turns it off."""
    group, dot, own = field.replace("_", "-").rpartition(".")
    return f"--{group}{dot}{'no-' if no else ''}{own}"
