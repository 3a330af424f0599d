"""The space of a search: the settings of a recipe that act on a method, each with its range and today's value.

    learning rate of the map          from 1/16 to 2 times that of the recipe, log
    share of rows on the diagonal     0.1 to 0.9         methods with the option `share`
    share of rows at s = 0            0 to 0.75          methods that take the recipe's law of (s, t)
    learned weight                    yes or no          methods that take one
    adaptive power off the diagonal   0 to 1             methods whose residual is a function of (x, s, t), not learned
    weight of a noisy residual        constant, paper    methods whose paper has one, not learned
    target                            the map, its EMA   methods with the option `target`

Whether a setting acts on a method is told from the objective that the recipe makes of it, never from a name.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runs.changes import Words, of_stage
from ..runs.plan import Plan, resolve
from ..runs.recipes.found import Options, fields_of, with_options
from ..system.seeds import generator

INSTALL = "pip install 'flowmaps[tune]'"
RANDOM_TRIALS = 3
"""Trials, today's settings among them, before those of Optuna's TPE sampler."""
RATES = (1 / 16, 2.0)
"""Lowest and highest learning rate of a search, as multiples of the recipe's."""
EMA_DECAY = 0.99
"""Decay of the EMA of a target, for a method whose own target is the map itself."""


@dataclass(frozen=True)
class Setting:
    """A setting that is searched.

    Attributes:
        field: of the recipe, such as `optimiser.learning_rate`.
        today: its value in the recipe.
        values: what it may be, if it is one of a few.
        low, high: its range, if it is a number.
        log: whether the number is searched by its logarithm.
        unless: a truth value of the space; where it is true the setting is not searched.
    """

    field: str
    today: Any
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    unless: str = ""

    def suggest(self, trial: Any) -> Any:
        """The value that a trial of Optuna proposes, of three digits."""
        if self.values:
            return trial.suggest_categorical(self.field, self.values)
        value = float(trial.suggest_float(self.field, self.low, self.high, log=self.log))
        return min(max(float(f"{value:.3g}") if self.log else round(value, 2), self.low), self.high)


def space_of(
    plan: Plan, fixed: Collection[str] = (), classes: int | None = None, condition_dim: int | None = None
) -> tuple[Setting, ...]:
    """The settings that act on the method of a plan.

    Args:
        plan: of the method, at today's settings.
        fixed: fields that are not searched.
        classes: number of classes of the data, for a recipe with guidance.
        condition_dim: how many numbers a row is conditioned on, likewise.
    """

    def words(of: Plan) -> Words:
        return of_stage(of, classes=classes, condition_dim=condition_dim)

    return tuple(setting for setting in _settings(plan, words) if setting.field not in fixed)


def _settings(plan: Plan, words: Callable[[Plan], Words]) -> Iterator[Setting]:
    method, today, here = plan.method, fields_of(plan.recipe), words(plan)
    plain = {"learned_weight": False}
    unlearned = words(resolve(with_options(plan.recipe, plain)))

    def acts(field: str, value: Any) -> bool:
        """Whether another value of a field makes another objective."""
        return words(resolve(with_options(plan.recipe, {**plain, field: value}))) != unlearned

    yield _rate(plan, today)
    if method.takes("share") and "share" in here:
        share, every = today["diagonal_share"], plan.recipe.off_diagonal_every
        least = max(0.1, math.ceil(100 * (1 - 1 / every)) / 100)  # rows enough for a term that has every n-th step
        yield _number("diagonal_share", float(here["share"]) if share == "own" else share, least, 0.9)
    if acts("from_noise_share", 0.111):
        yield _number("from_noise_share", today["from_noise_share"], 0.0, 0.75)
    if acts("learned_weight", True):
        yield Setting("learned_weight", today["learned_weight"], (False, True))
    if acts("adaptive_power", 0.111):
        yield _number("adaptive_power", today["adaptive_power"], 0.0, 1.0, unless="learned_weight")
    if others := [value for value in ("constant", "paper") if acts("mean_weight", value)]:
        yield Setting("mean_weight", today["mean_weight"], (today["mean_weight"], *others), unless="learned_weight")
    if method.takes("target"):
        of_map = here.get("target", "None") in ("None", "Target(decay=0)")
        other = EMA_DECAY if of_map else 0.0
        yield Setting("target_decay", today["target_decay"], (today["target_decay"], other))


def _rate(plan: Plan, today: Options) -> Setting:
    """The learning rate of the map, by a field on which no earlier stage depends that several trials share."""
    if plan.method.distils:
        field = "map_rate_scale"
    elif plan.method.lower_rate and any(stage.name == "teacher" for stage in plan.stages):  # or of a warm-up
        field = "unstable_rate_scale"
    else:
        field = "optimiser.learning_rate"
    value = today[field]
    of_one = plan.stages[-1].optimiser.learning_rate / value
    low, high = (bound * today["optimiser.learning_rate"] / of_one for bound in RATES)
    return _number(field, value, low, high, log=True)


def _number(field: str, today: float, low: float, high: float, *, log: bool = False, unless: str = "") -> Setting:
    """A setting that is a number; its range has today's value in it."""
    return Setting(field, today, low=min(low, today), high=max(high, today), log=log, unless=unless)


def today_of(space: Sequence[Setting]) -> Options:
    """Today's settings, as a trial has them."""
    values = {setting.field: setting.today for setting in space}
    return {one.field: one.today for one in space if not values.get(one.unless)}


def propose(space: Sequence[Setting], trials: Sequence[tuple[Options, float]], method: str, seed: int) -> Options:
    """The settings of the next trial: today's first, then two at random, then those of Optuna's TPE sampler.

    The proposal is a function of the arguments alone: a search that was killed goes on as if it had not been.

    Args:
        space: what is searched.
        trials: settings and scores of all trials before, in order; less is better, infinite for one that diverged.
        method: name of the method.
        seed: of the search.

    Raises:
        ValueError: Optuna is not installed.
    """
    optuna = import_optuna()
    if not trials:
        return today_of(space)
    numbers = zlib.crc32(method.encode()), len(trials)
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_TRIALS, seed=generator(seed, *numbers).initial_seed() % 2**32
    )
    study = optuna.create_study(sampler=sampler)
    for options, score in trials:
        ranges = {one.field: _distribution(optuna, one) for one in space if one.field in options}
        study.add_trial(optuna.trial.create_trial(params=dict(options), distributions=ranges, value=score))
    trial, found = study.ask(), Options()
    for one in space:
        if not found.get(one.unless):
            found[one.field] = one.suggest(trial)
    return found


def _distribution(optuna: Any, setting: Setting) -> Any:
    if setting.values:
        return optuna.distributions.CategoricalDistribution(setting.values)
    return optuna.distributions.FloatDistribution(setting.low, setting.high, log=setting.log)


def import_optuna() -> Any:
    """Optuna, without its messages.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError(f"tune searches with Optuna: {INSTALL}.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def changed(options: Mapping[str, Any], recipe_fields: Mapping[str, Any]) -> Options:
    """The settings that differ from those of a recipe."""
    return {name: value for name, value in options.items() if recipe_fields[name] != value}
