"""Recipes: the only place where hyper-parameters live.

A recipe is a function that returns a frozen `Recipe`; each of its fields is an option of `flowmaps train`. What a
search found for a method in a recipe stands in `found`.
"""

from collections.abc import Callable

from .checks import from_dict, validate
from .fields import Evaluation, Network, Optimiser, Recipe
from .found import for_method
from .images import IMAGES, OF_POINTS, DiTNetwork, ImageEvaluation, ImageRecipe, UNetNetwork
from .plane import checkerboard, checkerboard_long, digits, points

RECIPES: dict[str, Callable[[], Recipe]] = {
    "checkerboard": checkerboard,
    "checkerboard-long": checkerboard_long,
    "digits": digits,
    "points": points,
    **IMAGES,
}

__all__ = [
    "IMAGES",
    "OF_POINTS",
    "RECIPES",
    "DiTNetwork",
    "Evaluation",
    "ImageEvaluation",
    "ImageRecipe",
    "Network",
    "Optimiser",
    "Recipe",
    "UNetNetwork",
    "checkerboard",
    "checkerboard_long",
    "digits",
    "for_method",
    "from_dict",
    "points",
    "validate",
]
