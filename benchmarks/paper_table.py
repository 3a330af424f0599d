"""The tables of the checkerboard in the papers, printed beside our own figures.

    python benchmarks/paper_table.py --out runs/paper               train what is missing, measure it, write the table
    python benchmarks/paper_table.py --out runs/paper --budget 0    write the table of what is there

The published figures are those of FMM (2406.07507) and of its sequel SD (2505.18825, table 1). The folder is that of
`flowmaps compare`: processes with the same --out share the work, and an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flowmaps import methods
from flowmaps.cli.terminal import console, watching
from flowmaps.evaluation.cells import RESULT_FILE, read
from flowmaps.evaluation.compare import Comparison
from flowmaps.evaluation.measure import Row
from flowmaps.evaluation.quality import ABOVE_FLOOR, is_lost
from flowmaps.maps import FlowMap
from flowmaps.methods.method import Method, with_diagonal
from flowmaps.objectives import SplitRows
from flowmaps.reports.spread import Spread
from flowmaps.reports.tables import format_value
from flowmaps.runs.plan import Plan, resolve
from flowmaps.runs.recipes import Recipe, checkerboard_long
from flowmaps.runs.stages import STRIP_WIDTH
from flowmaps.system.files import write_atomically
from flowmaps.times import Square, Strip

STEPS, EULER_STEPS = (1, 2, 4, 8, 16), 80
FEWER = dict.fromkeys((8, 16, EULER_STEPS), 70_000)
"""Samples in these numbers of steps: a million take two minutes in 16 steps, and ten in 80."""
SD = {
    "lsd": (0.086, 0.077, 0.071, 0.070, 0.071),
    "esd": (0.098, 0.092, 0.083, 0.082, 0.075),
    "psd-m": (0.146, 0.089, 0.081, 0.072, 0.069),
    "psd-u": (0.111, 0.107, 0.075, 0.073, 0.068),
}
"""Published KL of SD, table 1, in 1, 2, 4, 8 and 16 steps."""
FMM = {("interpolant", "dopri5"): 0.016, ("fmm", 1): 0.017, ("fmm-strip", 4): 0.008}
"""Published KL of FMM, by row and solver or number of steps."""
NAMES = {
    "interpolant": "interpolant (velocity matching)",
    "lmd": "LMD",
    "emd": "EMD",
    "fmm": "FMM, the square",
    "fmm-widening": "FMM, a strip that widens to the square",
    "fmm-beside-lsd": "FMM, the square, on a quarter of the rows, beside LSD",
    "fmm-strip": f"FMM, a strip of {STRIP_WIDTH:g}",
    "pfmm": "PFMM from the strip",
    "eulerian_estimation": "EE (Eulerian estimation)",
    "lsd": "LSD",
    "esd": "ESD",
    "psd-m": "PSD-M",
    "psd-u": "PSD-U",
}


def plan_of(recipe: Recipe, method: str, steps: tuple[int, ...] = STEPS, **options: Any) -> Plan:
    """The plan of a row: a method with options of its function, sampled in some numbers of steps."""
    recipe = replace(recipe, method=method, evaluation=replace(recipe.evaluation, steps=steps))
    return resolve(recipe).with_options(**options)


def fmm_beside_lsd(flow_map: FlowMap, **options: Any) -> SplitRows:
    """FMM on the square on a quarter of the rows; of the others two thirds match the velocity, and a third is LSD's."""
    shared = {name: options[name] for name in ("interpolant", "draws", "guidance", "coupling") if name in options}
    direct = methods.fmm(flow_map, times=Square(), **shared)
    return SplitRows(methods.lsd(flow_map, share=2 / 3, **options), direct, 0.75)


FMM_BESIDE_LSD = Method(fmm_beside_lsd, settings=with_diagonal)

VARIANTS: Mapping[str, Callable[[Recipe], Plan]] = {
    "interpolant": partial(plan_of, method="flow_matching", steps=(EULER_STEPS,)),
    "lmd": partial(plan_of, method="lmd"),
    "emd": partial(plan_of, method="emd"),
    "fmm": partial(plan_of, method="fmm", times=Square()),
    "fmm-widening": partial(plan_of, method="fmm"),
    "fmm-beside-lsd": partial(plan_of, method=f"{__name__}:FMM_BESIDE_LSD"),
    "fmm-strip": partial(plan_of, method="fmm", steps=STEPS[2:], times=Strip(STRIP_WIDTH)),
    "pfmm": partial(plan_of, method="pfmm"),
    "eulerian_estimation": partial(plan_of, method="eulerian_estimation"),
    "lsd": partial(plan_of, method="lsd"),
    "esd": partial(plan_of, method="esd"),
    "psd-m": partial(plan_of, method="psd", midpoint=True),
    "psd-u": partial(plan_of, method="psd"),
}
"""The rows of the table, by the names of their cells."""


def recipe(samples: int = 1_000_000, width: int = 256) -> Recipe:
    """The long recipe of the checkerboard, measured in the papers' numbers of steps."""
    long = checkerboard_long()
    network = replace(long.network, width=width)
    evaluation = replace(long.evaluation, steps=STEPS, samples=samples, points=5_000)
    return replace(long, name="checkerboard-paper", network=network, evaluation=evaluation)


# the table ------------------------------------------------------------------------------------------------------------

HEADING = (
    "| method | sampler | KL, 64,000 | published | ours / published | KL above floor | W2 | other cell | of teacher |"
)
RULE = "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
NOTES = """\
KL in nats. *KL, 64,000* is by the protocol of SD: the first 64,000 samples, a histogram of 50 x 50 cells over the whole
square [-1, 1]^2, nothing subtracted; the published figures of SD stand beside it, with their ratio. *KL above floor* is
of {samples:,} samples on the same grid, less the KL of as many exact samples ({floor}).{fewer} *W2* is the exact
distance of {points:,} samples to as many data, in units of x. *Other cell* is the share of {points:,} points of noise
that end nearest to another cell of the board than the exact flow takes them; *of teacher* is the same against the ODE
(dopri5) of the teacher or, without one, of the map's own diagonal. *Lost*: more than half of the samples are not finite
or beyond 1e3; fewer count as points at 1e3: in no cell of the histogram, in a corner of the board in *other cell*, and
W2 is then mostly theirs. {seeds}

Differences from the papers: the network ({width} wide, {depth} deep, residual, features of x; in SD 512 wide, 5 deep),
the budget ({budget:g} {unit} a method, a teacher included; in SD 150,000 to 250,000 steps of 100,000 rows on an A100),
the optimiser, and the settings of the recipe, from before any search (a quarter of the rows at s = 0 and an adaptive
weight off the diagonal; FMM has neither). The masses of the exact law stand in the place of a second histogram of data,
whose own noise would add to the published figures (some 0.01 for 64,000 of them); a cell that no sample hits is given
half a sample. What FMM drew its KL from is not known to us: its figures have no ratio."""


def table(rows: list[Row], content: Mapping[str, Any]) -> str:
    """The table in Markdown, from the rows of compare.json."""
    lines = [HEADING, RULE]
    for name, title in NAMES.items():
        mine = [row for row in rows if row["method"] == name]
        found, diverged = samplers(mine, name), sum("diverged" in row for row in mine)
        if diverged and not found:
            lines.append(f"| {title} | diverged | | | | | | | |")
        for sampler, of_sampler in found.items():
            lines.append(line(title, name, sampler, of_sampler, diverged))
    measured = [row for row in rows if "kl" in row]
    evaluation, seeds = content["options"]["evaluation"], len({row["seed"] for row in measured})
    several = f"Mean ± sample standard deviation over {seeds} seeds." if seeds > 1 else "One seed."
    floor = format_value(Spread.of([row.get("kl_floor") for row in measured]).mean)
    unit = "steps" if content["budget_in"] == "optimiser steps" else content["budget_in"].partition(",")[0]
    about = {"samples": evaluation["samples"], "points": evaluation["points"], "floor": floor, "seeds": several}
    about["fewer"] = of_fewer([row for row in measured if "kl_floor" not in row])
    about |= {name: content["options"]["network"][name] for name in ("width", "depth")}
    return "\n".join(lines) + "\n\n" + NOTES.format(**about, budget=content["budget"], unit=unit) + "\n"


def of_fewer(rows: list[Row]) -> str:
    """A sentence about rows of fewer samples, with a space before it; nothing where there are none."""
    if not rows:
        return ""
    steps, fewest = sorted({row["steps"] for row in rows}), min(row["samples"] for row in rows)
    return f" Rows of {', '.join(map(str, steps))} steps have {fewest:,} samples, and no KL above floor."


def samplers(rows: list[Row], name: str) -> dict[int | str, list[Row]]:
    """The rows of a method by number of steps of the map; of the interpolant by solver too."""
    found: dict[int | str, list[Row]] = {}
    for row in rows:
        if row["sampler"] == "map" and ("kl" in row or "lost" in row):
            found.setdefault(row["steps"], []).append(row)
        elif row["sampler"] == "teacher" and name == "interpolant":
            found.setdefault(row["solver"], []).append(row)
    return found


def line(title: str, name: str, sampler: int | str, rows: list[Row], diverged: int = 0) -> str:
    """A line of the table: the mean over the seeds that end in a map, and how many do not."""
    seeds = len(rows) + diverged
    rows = [row for row in rows if not is_lost(row)]
    without = seeds - len(rows)
    title += f" ({without} of {seeds} seeds lost)" if rows and without else ""
    sequel = dict(zip(STEPS, SD[name], strict=True)).get(sampler) if name in SD else None  # type: ignore[call-overload]
    published = sequel or FMM.get((name, sampler))
    ratio = Spread.of([row.get("kl_64000") for row in rows]).mean / sequel if sequel else None
    if name == "interpolant":
        words = f"ODE, {sampler} steps of Euler" if isinstance(sampler, int) else f"ODE, {sampler}"
    else:
        words = f"{sampler} step{'s' * (sampler != 1)}"
    cells = [
        shown([row.get("kl_64000") for row in rows]) if rows else "lost",
        "" if published is None else f"{published:.3f}",
        "" if ratio is None or math.isnan(ratio) else f"{ratio:.2f}",
        shown([ABOVE_FLOOR.of(row) for row in rows]),
        *(shown([row.get(key) for row in rows]) for key in ("w2", "other_cell", "other_cell_teacher")),
    ]
    return "| " + " | ".join([title, words, *cells]) + " |"


def shown(values: list[float | None]) -> str:
    """A mean with its spread, if there are several seeds; nothing without a value."""
    spread = Spread.of(values)
    if spread.lost == len(values):
        return ""
    return f"{spread.mean:.4f}" + ("" if spread.std is None else f" ± {spread.std:.4f}")


# the command ----------------------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of the comparison")
    parser.add_argument("--rows", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="rows to train")
    parser.add_argument("--budget", type=float, default=750.0, help="seconds of training a method; 0 to train nothing")
    parser.add_argument("--budget-steps", type=int, help="optimiser steps of a method, in the place of --budget")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 on")
    parser.add_argument(
        "--samples",
        type=int,
        default=1_000_000,
        help="samples of the KL above floor; KL by the protocol of SD needs 64,000",
    )
    parser.add_argument("--width", type=int, default=256, help="hidden width of the network")
    options = parser.parse_args(words)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    try:
        if options.budget or options.budget_steps is not None:
            train(recipe(options.samples, options.width), options)
        if not (options.out / RESULT_FILE).exists():
            parser.error(f"{options.out} has no {RESULT_FILE}: train first, with a --budget above 0")
        content = read(options.out / RESULT_FILE)
        if content["recipe"] != recipe().name:
            parser.error(f"{options.out} has a comparison of {content['recipe']}, not of {recipe().name}")
    except ValueError as error:
        parser.error(str(error))
    text = table(content["rows"], content)
    write_atomically(options.out / "paper-table.md", text)
    print(text)


def train(usual: Recipe, options: argparse.Namespace) -> None:
    """Train and measure what is missing."""
    steps = options.budget_steps
    budget, unit = (options.budget, "seconds") if steps is None else (steps, "steps")
    variants = {name: VARIANTS[name] for name in options.rows}
    more = {"ode_rows": ("interpolant",), "fewer": FEWER}  # a row of the ODE takes longer than the training does
    comparison = Comparison(usual, variants, budget, options.out, unit=unit, seeds=range(options.seeds), **more)
    say = partial(console.print, soft_wrap=True, markup=False)
    with watching("paper", 100) as watch:
        for cell, _ in comparison.train(watch, say):
            say(f"{cell.name} is done")


if __name__ == "__main__":
    main()
