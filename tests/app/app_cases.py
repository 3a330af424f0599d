"""Small runs for the page: one that learned both orders of time, and of each kind of data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from run_cases import TINY, open_run

from flowmaps.runs.recipes import Recipe

BOTH_ORDERS = replace(TINY, times="square", seed=1)


def trained(recipe: Recipe, folder: Path) -> Path:
    """A run that is trained to its end."""
    list(open_run(recipe, folder).train())
    return folder


def points(folder: Path, dim: int, *, classes: bool = False, **changes: object) -> Path:
    """A run on points of a dimension, in three classes if asked, by LMD."""
    x = np.random.default_rng(0).normal(100, 5, (90, dim))
    labels = {"labels": np.arange(90) % 3} if classes else {}
    np.savez(folder / f"{dim}.npz", x=x, **labels)
    name = "-".join([str(dim), *map(str, changes)])
    recipe = replace(BOTH_ORDERS, name="points", data=str(folder / f"{dim}.npz"), **changes)  # type: ignore[arg-type]
    return trained(recipe, folder / name)
