"""The residuals of each method over its training, drawn from the cells of comparisons.

results/compare-NAME/compare.json    what was compared
results/compare-NAME/cells/*.json    the curves of each method and seed
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from PIL import Image

from flowmaps.evaluation.cells import RESULT_FILE, contents, read
from flowmaps.reports import figures, style

STAGE = "map"
DPI, COLOURS = 90, 32  # of a picture of some 15 kB
EXPLODED = 1e4  # times the median of all values: a residual beyond has left the panel
CAPTION = (
    "The residuals while the map is trained, unweighted: squared, mean over all rows of a batch, each point the median "
    "of a hundredth of the training; a line a seed, which leaves the panel where it diverges. Budget and command: "
    "[side by side](../choosing.md#side-by-side)."
)


def comparisons(results: Path) -> list[Path]:
    """The folders of the comparisons in a folder of results."""
    return sorted(path.parent for path in results.glob(f"compare-*/{RESULT_FILE}"))


def panels(results: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The curves of each method: method -> recipe -> a curve a seed, of all comparisons in a folder of results."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for folder in comparisons(results):
        title = str(read(folder / RESULT_FILE)["recipe"])
        for cell in sorted(contents(folder), key=lambda cell: cell["seed"]):
            if STAGE in cell["curves"]:
                found.setdefault(cell["method"], {}).setdefault(title, []).append(cell["curves"][STAGE])
    return found


def figure(curves: dict[str, list[dict[str, Any]]]) -> Figure:
    """A panel a recipe, in it a line a residual and seed."""
    drawn = Figure(figsize=(0.6 + 2.9 * len(curves), 2.5), layout="constrained")
    names = list(dict.fromkeys(name for of_recipe in curves.values() for curve in of_recipe for name in curve))
    colours = dict(zip([name for name in names if name != "step"], style.COLOURS, strict=False))
    for ax, (title, of_recipe) in zip(drawn.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        values: list[float] = []
        for name, colour in colours.items():
            own = [curve for curve in of_recipe if name in curve]
            for k, curve in enumerate(own):
                points = [(n, y) for n, y in zip(curve["step"], curve[name], strict=True) if y is not None and y > 0]
                line = {"color": colour, "lw": 1.2, "alpha": 0.9 / len(own) ** 0.5, "label": "" if k else name}
                ax.plot([n for n, _ in points], [y for _, y in points], **line)
                values += [y for _, y in points]
        if values:
            ax.set_yscale("log")
            ax.set_ylim(top=min(ax.get_ylim()[1], EXPLODED * statistics.median(values)))
            style.tidy_log(ax.yaxis, *ax.get_ylim())
        style.light_axes(ax, "optimiser step")
        ax.set_title(title, fontsize=9.5, color=style.INK)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    style.legend(drawn, handles=handles, labels=labels, loc="outside upper center", ncols=max(len(labels), 1))
    return drawn


def draw(results: Path, pictures: Path) -> None:
    """Draw the picture of each method that has curves; where no comparison has any, the pictures stay as they are."""
    found = panels(results)
    pictures.mkdir(parents=True, exist_ok=True)
    for path in pictures.glob("*.png"):
        if found and path.stem not in found:
            path.unlink()
    for method, curves in found.items():
        path = figures.save(figure(curves), pictures / f"{method}.png", dpi=DPI)
        with Image.open(path) as image:
            small = image.convert("RGB").quantize(COLOURS)
        small.save(path, optimize=True)
