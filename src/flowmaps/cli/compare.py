"""The command `compare`: several methods on one budget, one table and one plot, over several seeds.

The folder: compare.json  compare.md  compare.png  samples-METHOD.png  cells/METHOD-SEED.json  teacher-*.safetensors
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from ..evaluation.budget import Unit
from ..evaluation.cells import Cell, in_file_name
from ..evaluation.compare import Comparison
from ..evaluation.measure import Row
from ..evaluation.quality import is_measured
from ..evaluation.sampling import Samples
from ..reports import figures, pictures, tables
from ..runs.recipes import Recipe
from ..system.files import write_atomically
from .terminal import console, watching


def compare(
    recipe: Recipe,
    methods: tuple[str, ...],
    budget: float,
    unit: Unit,
    folder: Path,
    *,
    seeds: Sequence[int],
    resume: bool = False,
    given: Collection[str] = (),
) -> None:
    """Train and measure each method with each seed; print the table; write it and the pictures after each of them.

    Arguments and errors are those of `Comparison`.
    """
    comparison = Comparison(recipe, methods, budget, folder, seeds=seeds, unit=unit, resume=resume, given=given)
    for note in comparison.source.notes:
        console.print(f"{recipe.data}: {note}.", soft_wrap=True, markup=False)
    try:
        with watching("compare", 100) as watch:
            for cell, samples in comparison.train(watch, partial(console.print, soft_wrap=True, markup=False)):
                write(comparison)
                _draw_samples(comparison, cell, samples)
    except KeyboardInterrupt:
        words = "interrupted; finished trainings are kept: run the same command again, and the one cut off starts anew."
        raise KeyboardInterrupt(words) from None
    rows = write(comparison)
    wide = console if console.is_terminal else Console(highlight=False, width=140)
    wide.print(tables.comparison_table(rows, f"{recipe.name}, {budget:g} {unit} of training for each method"))
    console.print(f"picture: {folder / 'compare.png'}", soft_wrap=True)


def write(comparison: Comparison) -> list[Row]:
    """Write the table and the plot of all that is done, by whichever process; returns the rows."""
    folder = comparison.folder
    with comparison.joined() as rows:
        write_atomically(folder / "compare.md", tables.comparison_markdown(rows))
        if is_measured(rows):
            figures.save(figures.compare(rows), folder / "compare.png")
    return rows


def _draw_samples(comparison: Comparison, cell: Cell, samples: Mapping[str, Samples]) -> None:
    """Draw the samples of a cell, if it is of the first seed of its method that ended in a map so far."""
    recipe, source = comparison.recipe, comparison.source
    seeds = [row["seed"] for row in comparison.rows if row["method"] == cell.method and is_measured([row])]
    if not samples or cell.seed != min(seeds, default=None):
        return
    images = source.units.pictures
    figure = pictures.steps_grid(source.units, samples) if images else pictures.map_samples(recipe, source, samples)
    if figure is not None:
        figures.save(figure, comparison.folder / f"samples-{in_file_name(cell.method)}.png", dpi=90)
