"""The same search for every method: trials of equal seconds, scored on one seed, the best trained anew on others.

    trial 0 of today's settings, then proposals of `space.propose`, each with its score (`results.score_of`)

A trial trains on the validation seed, which sets its weights, batches and noise and those of its measurement. A teacher
is trained once for each seed, path and seconds, and shared.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..data import fingerprint
from ..runs.folder import open_source
from ..runs.plan import Plan, resolve
from ..runs.preflight import check_packages
from ..runs.recipes import Recipe
from ..runs.recipes.found import FOUND, Options, fields_of, with_options
from ..system.devices import pick_device
from ..system.progress import Watch, quiet
from .budget import clock_of, train_method
from .compare import UNUSED_FIELDS, check_different, check_objectives, measure_method
from .measure import EvaluationInputs, Row, evaluation_inputs
from .results import Result, as_number, score_of
from .space import import_optuna, propose, space_of
from .study import StudyFile

VALIDATION = 1_000
"""The validation seed is the recipe's plus this; the final seeds are the recipe's and those after it."""


class Search:
    """A search of the settings of several methods; iterate over `run` to carry it out.

    Args:
        recipe: data, network, optimiser and evaluation; its method is not used.
        methods: whose settings are searched.
        folder: where to; empty or missing, unless the search is resumed.
        trials: for each method, the first at today's settings.
        budget: seconds of training of a trial, its teacher included.
        final_seeds: on how many seeds the best and today's settings are trained anew.
        resume: go on in a folder that is there.
        given: fields of the recipe that the user has set, which are not searched.

    Attributes:
        file: of the study.
        source: the data, on the device of the recipe.

    Raises:
        ValueError: Optuna is not installed; a number is out of range; the folder exists or, to resume, was begun
            otherwise; or the recipe cannot run, or not be measured.
    """

    def __init__(
        self,
        recipe: Recipe,
        methods: tuple[str, ...],
        folder: Path,
        *,
        trials: int = 12,
        budget: float = 40.0,
        final_seeds: int = 3,
        resume: bool = False,
        given: Collection[str] = (),
    ) -> None:
        import_optuna()
        _check(recipe, methods, trials, budget, final_seeds)
        own = fields_of(recipe)
        self.recipe, self.methods, self.trials, self.budget = recipe, methods, trials, budget
        self.final_seeds, self.fixed = final_seeds, sorted(own.keys() & set(given))
        check_packages(recipe)
        device = pick_device(recipe.device)
        self.clock = clock_of(device).__name__
        plans = {method: resolve(replace(recipe, method=method)) for method in methods}
        self.source = open_source(recipe).to(device)
        for method, plan in plans.items():
            check_objectives(method, plan, self.source)
        options = {name: value for name, value in own.items() if name not in UNUSED_FIELDS}
        about = {"recipe": recipe.name, "budget": budget, "clock": self.clock, "fixed": self.fixed}
        about |= {"found": FOUND.get(recipe.name, {}), "options": options, "data_sha256": fingerprint(recipe.data)}
        self.file = StudyFile(folder, json.loads(json.dumps(about)), resume=resume)
        self._inputs: dict[int, EvaluationInputs] = {}

    @property
    def runs_each(self) -> int:
        """The number of trainings of a method, at most."""
        return self.trials + 2 * self.final_seeds

    @property
    def validation_seed(self) -> int:
        """The seed of the trials."""
        return (self.recipe.seed + VALIDATION) % 2**32

    def results(self) -> dict[str, Result]:
        """What the study has of each method, of this search or of another in the same folder, by today's score."""
        rows: list[Row] = [
            row if row["score"] is None else {**row, "score": score_of(row["rows"])} for row in self.file.rows()
        ]
        names = dict.fromkeys((*self.methods, *(row["method"] for row in rows)))
        mine = {name: [row for row in rows if row["method"] == name] for name in names}
        found = dict[str, Result]()
        for name, own in mine.items():
            trials, finals = ([row for row in own if key in row] for key in ("trial", "seed"))
            if own:  # another search of the same folder may have another number of seeds
                wanted = [row["final_seeds"] for row in trials if "final_seeds" in row]
                wanted = wanted or [len({row["seed"] for row in finals})]  # an earlier version did not write it
                found[name] = Result(trials, finals, self.final_seeds if name in self.methods else wanted[-1])
        return found

    def run(self, watch: Watch = quiet, say: Callable[[str], None] = print) -> Iterator[tuple[str, Row]]:
        """Run the trials and final trainings that the study lacks; each line is in the file before it is yielded.

        Args:
            watch: progress callback.
            say: prints a line.

        Yields:
            The method, and the line.
        """
        left, held = list(self.methods), list[str]()
        while left and left != held:  # what another process held may be free, and unfinished, when the others are done
            held = left
            left = []
            for method in held:
                taken = self.file.take(method)
                if taken is None:
                    left.append(method)
                    continue
                with taken:
                    for row in self._of_method(method, watch):
                        self.file.add(row)
                        yield method, row
        if left:
            say(f"{', '.join(left)}: searched by another process; once that has ended, run the command with --resume.")

    def _of_method(self, method: str, watch: Watch) -> Iterator[Row]:
        """The lines that the study has not of a method."""
        done = self.results().get(method, Result([], []))
        table = self.file.about["found"].get(method, {})
        found = {name: value for name, value in table.items() if name not in self.fixed}
        plan = resolve(with_options(replace(self.recipe, method=method), found))
        space = space_of(plan, self.fixed, self.source.classes, self.source.units.condition_dim)
        trials = list(done.trials)
        while len(trials) < self.trials:
            before = [(row["settings"], as_number(row["score"])) for row in trials]
            settings = propose(space, before, method, self.recipe.seed)
            about = {"method": method, "trial": len(trials), "settings": settings, "final_seeds": self.final_seeds}
            about |= {"found": found} if found and not trials else {}
            trials.append(about | self._train(plan, settings, self.validation_seed, watch))
            yield trials[-1]
        result = Result(trials, done.finals)
        for row in (result.best, result.today)[: 1 + (result.best is not result.today)]:
            for seed in range(self.recipe.seed, self.recipe.seed + self.final_seeds):
                about = {"method": method, "seed": seed, "settings": row["settings"]}
                if not any(all(old[key] == value for key, value in about.items()) for old in done.finals):
                    yield about | self._train(plan, row["settings"], seed, watch)

    def _train(self, plan: Plan, settings: Options, seed: int, watch: Watch) -> Row:
        """Train and measure a method at some settings: its score, its seconds, and the rows of its samplers."""
        begun, inputs = time.monotonic(), self._inputs_of(seed)
        plan = resolve(with_options(plan.recipe, {**settings, "seed": seed}))
        options = {"watch": watch, "say": lambda _: None}
        flow_map, teacher, training = train_method(plan, self.source, self.budget, self.file.teachers, **options)
        rows = list[Row]()
        if not training.get("diverged"):
            try:
                rows, _ = measure_method(plan, flow_map, teacher, self.source, inputs, solvers=(), watch=watch)
            except ValueError as error:  # samples that no metric takes
                training |= {"diverged": True, "reason": str(error)}
        names = ("ms_per_step", "map_steps", "diverged", "reason")
        kept = {name: training[name] for name in names if name in training}
        return {"score": score_of(rows), "seconds": round(time.monotonic() - begun, 1), **kept, "rows": rows}

    def _inputs_of(self, seed: int) -> EvaluationInputs:
        """What samples of a seed are measured against."""
        if seed not in self._inputs:
            device = pick_device(self.recipe.device)
            self._inputs[seed] = evaluation_inputs(self.source, None, self.recipe.evaluation, seed, device)
        return self._inputs[seed]


def _check(recipe: Recipe, methods: Sequence[str], trials: int, budget: float, final_seeds: int) -> None:
    if not 0 < budget < math.inf:
        raise ValueError(f"--budget must be positive, got {budget} seconds.")
    if trials < 1:
        raise ValueError(f"--trials must be at least 1, got {trials}.")
    if not 0 <= final_seeds <= VALIDATION or recipe.seed + final_seeds > 2**32:
        raise ValueError(
            f"--final-seeds must be at least 0 and at most {VALIDATION:,}, where the validation seed comes, and leave "
            f"seeds below 2^32, got {final_seeds}."
        )
    if recipe.precision == "auto":
        raise ValueError("a search needs one --precision for all trials, got auto: take float32 or bfloat16.")
    check_different("--methods", methods)
    if recipe.optimiser.ema_decays or recipe.optimiser.ema_widths:
        raise ValueError(
            "a search keeps one average of the weights: leave out --optimiser.ema-decays and --optimiser.ema-widths."
        )
