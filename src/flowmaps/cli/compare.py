"""The command `compare`: several methods on one budget, one table and one plot.

The folder: compare.json  compare.md  compare.png  samples-METHOD.png  teacher-*.safetensors
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console

from ..evaluation.compare import Comparison
from ..reports import figures, pictures, tables
from ..runs.recipes import Recipe
from ..system.files import write_atomically
from .terminal import console, watching


def compare(recipe: Recipe, methods: tuple[str, ...], budget: float, folder: Path, *, resume: bool = False) -> None:
    """Train and measure each method; print the table; write it and the pictures into the folder, after each method.

    Arguments and errors are those of `Comparison`.
    """
    comparison = Comparison(recipe, methods, budget, folder, resume=resume)
    for note in comparison.source.notes:
        console.print(f"{recipe.data}: {note}.", soft_wrap=True, markup=False)
    with watching("compare", 100) as watch:
        for method, samples in comparison.train(watch, partial(console.print, soft_wrap=True)):
            write_atomically(folder / "compare.md", tables.comparison_markdown(comparison.rows))
            if figure := pictures.map_samples(recipe, comparison.source, samples):
                figures.save(figure, folder / f"samples-{method}.png", dpi=90)
    path = figures.save(figures.compare(comparison.rows), folder / "compare.png")
    wide = console if console.is_terminal else Console(highlight=False, width=100)
    title = f"{recipe.name}, {budget:g} s of training for each method"
    wide.print(tables.comparison_table(comparison.rows, title))
    console.print(f"picture: {path}", soft_wrap=True)
