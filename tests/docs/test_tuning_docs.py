"""The line of docs/tuning.md that stands for what a search prints is one that the table of settings takes."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from places import ROOT

from flowmaps.runs.recipes import RECIPES
from flowmaps.runs.recipes.found import with_options


def test_the_settings_of_the_example_are_options_of_the_recipe():
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    exec(block, {"FOUND": found})
    (options,) = found["checkerboard"].values()
    recipe = with_options(RECIPES["checkerboard"](), options)
    assert recipe.optimiser.learning_rate == options["optimiser.learning_rate"]
    assert recipe.diagonal_share == options["diagonal_share"]
