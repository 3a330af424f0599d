"""Several methods side by side: the same data, network and optimiser, and one budget for each, over several seeds.

`budget` trains a method, `cells` has the folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType

from ..data import Board, Source, fingerprint
from ..maps import FlowMap
from ..runs.changes import objectives
from ..runs.folder import open_source
from ..runs.plan import Plan, resolve
from ..runs.preflight import check_packages
from ..runs.recipes import Recipe, for_method
from ..runs.recipes.found import found_in
from ..system.devices import pick_device
from ..system.progress import Watch, quiet
from .budget import Unit, shares, train_method
from .cells import STEPS, Cell, Cells
from .curves import Curves
from .measure import EvaluationInputs, Row, evaluation_inputs
from .quality import is_measured
from .rows import metrics_rows
from .sampling import Samples

UNUSED_FIELDS = ("name", "method", "log_every", "checkpoint_every")
"""Fields of a recipe that a comparison or a search does not use."""


class Comparison:
    """A comparison of methods in a folder; iterate over `train` to carry it out.

    Several processes may work in one folder at once: each trains what is not done, and not in work elsewhere.

    Args:
        recipe: data, network, optimiser and evaluation; its method is not used.
        methods: what to compare, in the order of the table: names of methods; or a mapping from names of your choice to
            functions that make a plan of the recipe, such as that of a method with other options.
        budget: of the training of each method, its teacher included.
        folder: where to; it must be empty or missing, or have a comparison that was begun with the same options.
        seeds: of the trainings; that of the recipe unless given.
        unit: of the budget.
        resume: refuse to begin anew.
        given: fields of the recipe that the user has set, which settings found for a method leave as they are.
        ode_rows: methods whose ODE has a row; all unless given. It takes a hundred times as long as a step of the map.
        fewer: as of `metrics_rows`, for all methods.

    Attributes:
        rows: of compare.json, of all that is done, when this process last wrote it.
        source: the data, on the device of the recipe.

    Raises:
        ValueError: the folder has something else; the budget is not positive; a method or a seed is named twice; the
            recipe cannot run, or not be measured; or there are fewer steps than a method has stages.
    """

    def __init__(
        self,
        recipe: Recipe,
        methods: Sequence[str] | Mapping[str, Callable[[Recipe], Plan]],
        budget: float,
        folder: Path,
        *,
        seeds: Sequence[int] = (),
        unit: Unit = "seconds",
        resume: bool = False,
        given: Collection[str] = (),
        ode_rows: Collection[str] | None = None,
        fewer: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        option = "--budget" if unit == "seconds" else "--budget-steps"
        if not 0 < budget < math.inf:
            raise ValueError(f"{option} must be positive, got {budget} {unit}.")
        if recipe.precision == "auto":
            raise ValueError("a comparison needs one --precision for all methods, got auto: take float32 or bfloat16.")
        check_different("--methods", tuple(methods))
        seeds = tuple(seeds) or (recipe.seed,)
        check_different("--seeds", seeds)
        resolvers = (
            methods
            if isinstance(methods, Mapping)
            else {name: partial(_plan, method=name, given=given) for name in methods}
        )
        self.plans = {
            Cell(name, seed): resolver(dataclasses.replace(recipe, seed=seed))
            for name, resolver in resolvers.items()
            for seed in seeds
        }
        for plan in self.plans.values():
            list(shares(plan, budget, unit))
        self.recipe, self.budget, self.folder, self.unit = recipe, budget, folder, unit
        self.ode_rows, self.fewer = methods if ode_rows is None else ode_rows, fewer
        described = _description(recipe, budget, unit, fewer, ode_rows)
        check_packages(recipe)
        self.source = open_source(recipe).to(pick_device(recipe.device))
        for cell, plan in self.plans.items():
            if cell.seed == seeds[0]:
                check_objectives(cell.method, plan, self.source)
        settings = {cell.method: found_in(plan.recipe) for cell, plan in self.plans.items()}
        self._cells = Cells(folder, described, tuple(methods), seeds, settings=settings, resume=resume)
        self.rows: list[Row] = []
        self._inputs: tuple[int, EvaluationInputs] | None = None

    def train(
        self, watch: Watch = quiet, say: Callable[[str], None] = print
    ) -> Iterator[tuple[Cell, dict[str, Samples]]]:
        """Train and measure one cell after the other, each with its rows in compare.json before it is yielded.

        Args:
            watch: progress callback.
            say: prints a line.

        Yields:
            The cell, and the samples of its map by their titles: none where it diverged.

        Raises:
            ValueError: every method diverged.
        """
        for cell in self._cells.take(say):
            found, curves, samples = self._train_and_measure(cell, watch, say)
            self._cells.write(cell, found, curves.thinned())
            with self.joined():
                pass
            yield cell, samples
        with self.joined() as rows:
            measured = is_measured(rows)
        if rows and not self._cells.missing and not measured:
            raise ValueError("every method diverged: lower --optimiser.learning-rate.")

    @contextmanager
    def joined(self) -> Iterator[list[Row]]:
        """Context in which compare.json has the rows of all that is done, and no other process writes it."""
        with self._cells.joined() as self.rows:
            yield self.rows

    def _train_and_measure(
        self, cell: Cell, watch: Watch, say: Callable[[str], None]
    ) -> tuple[list[Row], Curves, dict[str, Samples]]:
        """The rows of one cell, the curves of its residuals, and the samples of its map."""
        plan, curves, inputs = self.plans[cell], Curves(), self._shared_inputs(cell.seed)
        options = {"unit": self.unit, "curves": curves, "watch": watch, "say": say}
        flow_map, teacher, head = train_method(plan, self.source, self.budget, self.folder, **options)
        head |= {"settings": found} if (found := found_in(plan.recipe)) else {}
        if head.get("diverged"):
            say(f"{cell.name} diverged: its loss, its gradient or its weights are not finite.")
            return [{**head, "sampler": "map"}], curves, {}
        try:
            solvers = ("heun2" if self.source.units.pictures else "dopri5",)
            options = {"ode_rows": cell.method in self.ode_rows, "fewer": self.fewer, "watch": watch}
            rows, samples = measure_method(plan, flow_map, teacher, self.source, inputs, solvers=solvers, **options)
        except ValueError as error:
            say(f"{cell.name} cannot be measured: {error}")
            return [{**head, "sampler": "map", "diverged": True}], curves, {}
        return [{**head, **row} for row in rows], curves, samples

    def _shared_inputs(self, seed: int) -> EvaluationInputs | None:
        """What all methods of a seed are measured against; `None` for points, whose flow is each method's own."""
        if not isinstance(self.source, Board) and not self.source.units.pictures:
            return None
        if self._inputs is None or self._inputs[0] != seed:
            device = pick_device(self.recipe.device)
            self._inputs = seed, evaluation_inputs(self.source, None, self.recipe.evaluation, seed, device)
        return self._inputs[1]


def _plan(recipe: Recipe, method: str, given: Collection[str]) -> Plan:
    return resolve(for_method(recipe, method, given))


def check_objectives(name: str, plan: Plan, source: Source) -> None:
    """Refuse a method whose objective cannot be made with the options of its recipe, before others are trained.

    Raises:
        ValueError: it is so.
    """
    try:
        for stage in plan.stages:
            objectives(stage, plan.recipe, source.classes, source.units.condition_dim)
    except ValueError as error:
        raise ValueError(f"{name} cannot be trained with these options: {error}") from None


def check_different(option: str, values: Sequence[object]) -> None:
    """Refuse an option without values, or with one twice.

    Raises:
        ValueError: it is so.
    """
    if not values or len(set(values)) != len(values):
        what = option.removeprefix("--")
        raise ValueError(f"{option} needs different {what}, got {' '.join(map(str, values)) or 'none'}.")


def measure_method(
    plan: Plan,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    inputs: EvaluationInputs | None,
    *,
    solvers: Sequence[str],
    ode_rows: bool = True,
    fewer: Mapping[int, int] = MappingProxyType({}),
    watch: Watch = quiet,
) -> tuple[list[Row], dict[str, Samples]]:
    """The rows of one method, as of `metrics_rows`, and the samples of its map by their titles."""
    flow_map, teacher = plan.as_sampled(flow_map, teacher)
    rows, samples = list[Row](), dict[str, Samples]()
    total = len(plan.evaluation().steps) + (len(solvers) if ode_rows else 0)

    def watch_method(title: str, share: float) -> None:
        watch(f"{plan.recipe.method}, {title}", (len(rows) + share) / total)

    options = {"solvers": solvers, "ode_rows": ode_rows, "fewer": fewer, "watch": watch_method}
    for title, row, drawn in metrics_rows(plan, flow_map, teacher, source, plan.recipe.seed, inputs, **options):
        rows.append(row)
        if row["sampler"] == "map":
            samples[title] = drawn
    return rows, samples


def _description(
    recipe: Recipe, budget: float, unit: Unit, fewer: Mapping[int, int], ode_rows: Collection[str] | None
) -> Row:
    """What compare.json says of a comparison beside its methods, seeds and rows."""
    fields = dataclasses.asdict(recipe).items()
    options = {name: value for name, value in fields if name not in (*UNUSED_FIELDS, "seed")}
    clock = "CPU time of the training process" if pick_device(recipe.device).type == "cpu" else "wall clock"
    counted = f"seconds of {clock}, without compilation" if unit == "seconds" else STEPS
    description = {"recipe": recipe.name, "budget_in": counted, "budget": budget, "options": options}
    description |= {"fewer": sorted(fewer.items()), "ode_rows": None if ode_rows is None else sorted(ode_rows)}
    return json.loads(json.dumps(description | {"data_sha256": fingerprint(recipe.data)}))
