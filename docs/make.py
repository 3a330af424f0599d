"""The pages of the methods, written from the code: docs/methods/*.md, and the picture of the space they lie in.

    python docs/make.py                       write the pages, docs/images/space.png and docs/images/residuals
    python docs/make.py --check               exit 1 if the pages on disk differ from what would be written
    python docs/make.py --costs               print what a row of each method costs

What a page says comes from the method's docstring (`The paper:`, `When to use:`, `Args:`), from `space.coordinates`
and from `space.cost`; only the frame is written here. Figures and residuals come from results/compare-*, where there
are such.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import sys
from dataclasses import asdict, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import residuals
import space
from method import AXES, NAMES, cost, differing, example, function, neighbours, point, snippet, text

import flowmaps as fm
from flowmaps.evaluation.cells import RESULT_FILE, read
from flowmaps.evaluation.quality import quality_of
from flowmaps.reports.tables import comparison_summary

ROOT = Path(__file__).resolve().parent.parent
CAPTION = "Two minutes on the checkerboard, at the settings of the recipe, which are not all the method's defaults."
MEASURED = (
    "Mean ± standard deviation over the seeds, less is better; rank: the places that the spread leaves among the "
    "methods compared. Budget and command: [side by side](../choosing.md#side-by-side)."
)
PAGES, PICTURE = ROOT / "docs" / "methods", ROOT / "docs" / "images" / "space.png"
RESIDUALS = ROOT / "docs" / "images" / "residuals"
PAPERS = {
    "FMM": 'N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden, "Flow map matching", 2024, arXiv 2406.07507',
    "SD": 'N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden, "How to build a consistency model", 2025, arXiv 2505.18825',
}
GROUPS = {
    "velocity": "The velocity alone",
    "Lagrangian": "Lagrangian: d_t X_{s,t}(x) = b_t(X_{s,t}(x))",
    "Eulerian": "Eulerian: d_s X_{s,t}(x) + grad X_{s,t}(x) b_s(x) = 0",
    "Semigroup": "Semigroup: X_{w,t}(X_{s,w}(x)) = X_{s,t}(x)",
}


# pages ----------------------------------------------------------------------------------------------------------------


def page(name: str, results: Path) -> str:
    """The page of a method."""
    words = text(name)
    parts = [f"# `{name}`", words.title, *(fenced(block) if block.startswith(" ") else block for block in words.body)]
    parts += [
        "## Point of the space",
        table(["axis", "choice"], [[AXES[k], v] for k, v in asdict(point(name)).items()]),
    ]
    parts += ["Nearest, and what differs there:", "\n".join(nearest(name))]
    for head, section in words.sections.items():
        parts += [f"## {head}", section]
    parts += ["## Cost", spent(name), "## Arguments", arguments(name), "## Use", fenced(snippet(name), "python")]
    if lines := measured(name, results):
        parts += ["## Measured", *lines, MEASURED]
    picture = results / "compare-checkerboard" / f"samples-{name}.png"
    if picture.exists():
        parts += [f"![Samples of {name}]({Path('../..') / picture.resolve().relative_to(ROOT)})", CAPTION]
    curves = RESIDUALS / f"{name}.png"
    if curves.exists():
        link = Path("..") / curves.resolve().relative_to(ROOT / "docs")
        parts += ["## While it trains", f"![Residuals of {name}]({link})", residuals.CAPTION]
    parts += ["## Reference", cited(words.references), "[All methods](README.md) · [Conventions](../conventions.md)"]
    return "\n\n".join(parts) + "\n"


def fenced(block: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{inspect.cleandoc(block)}\n```"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def cited(words: str) -> str:
    """References in full, their numbers as links."""
    for short, whole in PAPERS.items():
        words = re.sub(rf"\b{short}\b", whole, words)
    return re.sub(r"(?:arXiv )?\b(\d{4}\.\d{5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", words)


def nearest(name: str) -> list[str]:
    """The methods that differ from one on the fewest axes, and in what."""
    return [
        f"- [`{other}`]({other}.md): {'; '.join(f'{axis} **{word}**' for axis, word in differing(name, other).items())}"
        for other in neighbours(name)
    ]


def spent(name: str) -> str:
    """What a row costs, in words."""
    off, mean = cost(name)
    kinds = {
        "of the map without gradient": off.forward,
        "of the map with gradient": off.gradient,
        "of the map with a derivative": off.derivative,
        "of the teacher": off.teacher,
        "of the teacher, differentiated to its input": off.teacher_gradient,
    }
    where = "" if isinstance(example(name), fm.objectives.VelocityMatching) else " off the diagonal"
    counts = table([f"evaluations a row{where}", ""], [[kind, str(number)] for kind, number in kinds.items() if number])
    whole = f"; {mean:.1f} on the mean over all rows" if f"{mean:.1f}" != f"{off.work:.1f}" else ""
    work = f"A step's matrix products, forwards and backwards, are those of {off.work:.1f} evaluations{whole}."
    return f"{counts}\n\n{work}"


def arguments(name: str) -> str:
    """The arguments of a method, with their defaults."""
    parameters = inspect.signature(function(name)).parameters
    lines = []
    for keys, words in text(name).arguments.items():
        defaults = [shown(parameters[key].default) for key in keys.split(", ")]
        given = ", ".join(f"`{word}`" for word in defaults if word)
        lines += [f"- `{keys}`{f' = {given}' if given else ''}: {words}"]
    shared = "`interpolant`, `times`, `distance`, `weight`, `coupling`, `guidance`, `draws`"
    return "\n".join(
        [*lines, f"- {shared}: of every method, see `flowmaps.methods.Options`; the paper's unless given."]
    )


def shown(default: Any) -> str:
    """A default as one would type it; nothing for `None`."""
    if default is None or default is inspect.Parameter.empty:
        return ""
    if isinstance(default, Enum):
        return str(default)
    if is_dataclass(default) or isinstance(default, (int, str)):
        return repr(default)
    return f"{default:.3g}"


def measured(name: str, results: Path) -> list[str]:
    """A table with the line of a method in each comparison that has it, under the metric; none without comparisons."""
    parts = []
    for folder in residuals.comparisons(results):
        title, heading, lines = summary(folder)
        if name in lines:
            parts += [f"{title}:", table(heading, [lines[name]])]
    return parts


@cache
def summary(folder: Path) -> tuple[str, list[str], dict[str, list[str]]]:
    """A comparison: its data and metric, the heading of its table, and each method's line."""
    content = read(folder / RESULT_FILE)
    heading, lines = comparison_summary(content["rows"])
    metric = quality_of(content["rows"]).label(content["rows"])
    methods = dict.fromkeys(row["method"] for row in content["rows"])
    return f"{content['recipe']}, {metric}", heading, dict(zip(methods, lines, strict=True))


# the index ------------------------------------------------------------------------------------------------------------


def ordered() -> dict[str, list[str]]:
    """The methods of each equation, those with like choices beside each other."""
    return {group: sorted((name for name in NAMES if point(name).equation == group), key=order) for group in GROUPS}


def order(name: str) -> tuple[str, ...]:
    """What methods of one equation are sorted by."""
    at = point(name)
    return at.legs, at.velocity.partition(",")[0], at.pairs, at.split, name


def index() -> str:
    """The page of all methods."""
    axes = ["velocity", "pairs", "legs", "split", "stop", "target", "compared", "weight", "tangent", "diagonal"]
    parts = ["# Methods", inspect.getdoc(space) or "", "![The space of methods](../images/space.png)", FRAME]
    for group, names in ordered().items():
        rows = [
            [f"[`{name}`]({name}.md)", *(asdict(point(name))[axis] for axis in axes), f"{cost(name)[0].work:.1f}"]
            for name in names
        ]
        parts += [f"## {GROUPS[group]}", table(["method", *(AXES[axis] for axis in axes), "work"], rows)]
    return "\n\n".join(parts) + "\n"


FRAME = """\
Equal words are equal choices; the letters are those of [Conventions](../conventions.md). *Work* is the matrix products
of a step, forwards and backwards, for a row off the diagonal, in evaluations of the map; the teacher is a network of
the same size. `python docs/make.py --costs` prints it, and `python docs/make.py` writes these pages and the picture
from the code."""


# the command ----------------------------------------------------------------------------------------------------------


def written(results: Path) -> dict[Path, str]:
    """Every page, by its file; `results` has the folders compare-*."""
    return {PAGES / "README.md": index(), **{PAGES / f"{name}.md": page(name, results) for name in NAMES}}


def check(pages: dict[Path, str]) -> int:
    """Print where the files on disk differ; 1 if one does."""
    old = {path: path.read_text() for path in PAGES.glob("*.md")}
    for path in sorted({*old, *pages}):
        lines = old.get(path, "").splitlines(), pages.get(path, "").splitlines()
        names = f"{path.name} on disk", f"{path.name} from the code"
        for line in difflib.unified_diff(*lines, *names, lineterm=""):
            print(line)
    if old != pages:
        print("docs/methods is not what the code says: run python docs/make.py", file=sys.stderr)
    return int(old != pages)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of compare-*")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if the pages would change")
    parser.add_argument("--costs", action="store_true", help="print what a row of each method costs")
    options = parser.parse_args()
    if options.costs:
        for name in sorted(NAMES, key=lambda name: cost(name)[1]):
            print(f"{name:30} {cost(name)[1]:5.1f}   off the diagonal: {cost(name)[0]}")
        return 0
    if options.check:
        return check(written(options.results))
    import space_picture

    residuals.draw(options.results, RESIDUALS)
    PAGES.mkdir(parents=True, exist_ok=True)
    pages = written(options.results)
    for path in PAGES.glob("*.md"):
        if path not in pages:
            path.unlink()
    for path, content in pages.items():
        path.write_text(content)
    methods = {group: {name: (point(name), cost(name)[0]) for name in names} for group, names in ordered().items()}
    space_picture.save(methods, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
