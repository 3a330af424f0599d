"""What a search found: the score of a training, and the result of a method.

    score    geometric mean over the numbers of sampling steps of the metric of the data: KL above its floor, Fréchet
             distance above that of real images, or energy distance; less is better

The mean is of logarithms, so that halving the error in one step counts as much as halving it in four.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runs.recipes.found import Options
from .measure import Row
from .quality import quality_of
from .space import changed

LEAST_SHARE = 0.1
"""Lowest KL or Fréchet distance above its floor of a score, as a share of the floor: below it they are noise."""
LEAST = 1e-5
"""Lowest metric of a score where no floor was measured: an estimate may be 0, or negative."""


@dataclass(frozen=True)
class Result:
    """What the search of a method found, from its lines of the study.

    Attributes:
        trials: its trials in order, each with `settings` and `score`, which is `None` where it diverged.
        finals: its trainings on final seeds.
        final_seeds: how many of them each of the two settings is to have.
    """

    trials: Sequence[Row]
    finals: Sequence[Row]
    final_seeds: int = 0

    @property
    def today(self) -> Row:
        """The trial of today's settings."""
        return self.trials[0]

    @property
    def best(self) -> Row:
        """The trial of the lowest score; today's where all diverged."""
        return min(self.trials, key=lambda row: as_number(row["score"]))

    def scores(self, settings: Options) -> dict[int, float]:
        """The scores of some settings by final seed, infinite where training diverged."""
        return {row["seed"]: as_number(row["score"]) for row in self.finals if row["settings"] == settings}

    @property
    def better(self) -> bool:
        """Whether the settings found are better than today's: worse on none of the final seeds that both have, whose
        data and noise are the same for both, and better on one at least.

        Not before all final seeds have been trained; where none is wanted, by the score alone.
        """
        if self.best is self.today:
            return False
        new, old = (self.scores(row["settings"]) for row in (self.best, self.today))
        pairs = [(new[seed], old[seed]) for seed in new.keys() & old.keys()]
        if len(pairs) < self.final_seeds:
            return False
        if not pairs:
            return not self.finals
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    def summary(self, fields: Mapping[str, Any]) -> Row:
        """The entry of tuned.json; `fields` are those of the recipe itself."""
        chosen = self.best if self.better else self.today
        found = self.today.get("found", {})  # in the recipe before, of which not all is searched
        shares = {"found": self.best, "today": self.today}
        return {
            "better": self.better,
            "settings": changed({**found, **chosen["settings"]}, fields) if self.better else found,
            "score": self.best["score"],
            "trial": self.best["trial"],
            "found": self.best["settings"],
            "today": self.today["settings"],
            "today_score": self.today["score"],
            "trials": len(self.trials),
            "diverged": sum(row["score"] is None for row in self.trials),
            "seconds": round(sum(row["seconds"] for row in (*self.trials, *self.finals)), 1),
            "final": {name: mean_and_spread([*self.scores(row["settings"]).values()]) for name, row in shares.items()},
        }


def as_number(score: float | None) -> float:
    """A score as a number: infinite where training diverged."""
    return math.inf if score is None else score


def score_of(rows: Sequence[Row]) -> float | None:
    """The geometric mean of the metric over the rows of a map; `None` if a row has none, as of a map that diverged."""
    values = [value_of(row) for row in rows if row["sampler"] == "map"]
    if not values or not all(math.isfinite(value) for value in values):
        return None
    return math.exp(statistics.mean(map(math.log, values)))


def value_of(row: Row) -> float:
    """The metric of a row: KL or Fréchet distance above its floor, or energy distance; infinite where there is none.

    Nothing counts as less than its noise: a tenth of the floor, or the size of the energy distance between real rows.
    Lost samples cost what they cost the metric: of two maps that lose most of them one is still the better start.
    """
    row = {name: value for name, value in row.items() if name != "lost"}
    quality = quality_of([row])
    value, floor = quality.of(row), abs(row.get(f"{quality.key}_floor", 0.0))
    noise = floor if quality.floor is None else LEAST_SHARE * floor
    return math.inf if value is None else max(value, noise or LEAST)


def metric_of(rows: Sequence[Row]) -> str:
    """The name of the metric of a score."""
    names = {"kl": "KL above its floor [nats]", "fd": "Fréchet distance", "energy": "energy distance"}
    key = next((key for key in names for row in rows if key in row), "")
    real = " above that of real images" if any("fd_floor" in row for row in rows) and key == "fd" else ""
    return names.get(key, "score") + real


def mean_and_spread(scores: Sequence[float]) -> Row:
    """Mean and standard deviation of scores; `None` where there are none, or one is infinite."""
    finite = bool(scores) and all(map(math.isfinite, scores))
    return {
        "seeds": len(scores),
        "mean": statistics.mean(scores) if finite else None,
        "spread": statistics.stdev(scores) if finite and len(scores) > 1 else None,
    }
