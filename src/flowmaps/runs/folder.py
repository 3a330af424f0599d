"""`RunFolder`: a run's folder with its card, recipe, plan, maps, log, checkpoints and lock; what a resume may change.

config.json  log.jsonl  weights.safetensors  metrics.json  report.html  *.png     and while it trains: checkpoints/
teacher/ (or strip/): the map as an earlier stage left it        averages/: other averages of the weights
"""

from __future__ import annotations

import dataclasses
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from ..data import Images, Source, Units, fingerprint, open_data, resolve
from ..interpolants import Interpolant
from ..maps import FlowMap
from ..storage import cards, checkpoints, models
from ..system.devices import pick_device
from ..system.files import write_atomically
from ..system.progress import Watch
from ..training.failures import CHECKPOINTS
from ..training.guards import LOCK, lock
from ..training.log import read_log
from . import plan as plans
from . import recipes
from .recipes import ImageRecipe, Recipe

RESUMABLE = ("device", "compile", "fsdp", "log_every", "checkpoint_every", "keep_checkpoints", "keep_checkpoints_every",
             "store_averages_every", "show_every", "track", "max_skipped_steps", "activation_checkpointing",
             "evaluation", "optimiser.accumulate", "steps", "teacher_steps")  # fmt: skip
"""Options that a resume may change; `Trainer.resume` checks whether the numbers of steps may."""


@dataclasses.dataclass
class RunFolder:
    """The folder of a run.

    Attributes:
        path: where it is.
        card: the content of config.json as it was when the folder was opened.
    """

    path: Path
    card: dict[str, Any]
    _lock: BaseFileLock | None = None

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that has begun.

        Raises:
            ValueError: there is none, or config.json is damaged or of another version.
        """
        return cls(path, cards.read(path))

    @classmethod
    def create(cls, path: Path, described: dict[str, Any]) -> RunFolder:
        """Make the folder of a new run, and lock it.

        Args:
            path: where to.
            described: from `describe`.
        """
        folder = cls(path, {"format": models.FORMAT, **described})
        path.mkdir(parents=True, exist_ok=True)
        folder.lock()
        write_atomically(path / models.CARD, json.dumps(folder.card, indent=2) + "\n")
        return folder

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run.

        Raises:
            ValueError: the folder is no run, or of another version.
        """
        if self.card.get("recipe") is None:
            raise ValueError(
                f"{self.path}/config.json has no recipe that this version reads: it holds a map saved by "
                "flowmaps.save, not a run; read it with flowmaps.load."
            )
        return recipes.from_dict(self.card["recipe"])

    @cached_property
    def plan(self) -> plans.Plan:
        """The plan of the run.

        Raises:
            ValueError: as `recipe`, or the recipe has no plan.
        """
        return plans.resolve(self.recipe)

    @property
    def units(self) -> Units:
        """Units of the data."""
        return Units.from_dict(self.card.get("units"))

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are while it trains."""
        return self.path / CHECKPOINTS

    @property
    def finished(self) -> bool:
        """Whether the run has been trained to its end: the card with a map is the last file that is written.

        A run that is being made longer has the map of fewer steps than its recipe asks for.
        """
        there = (self.path / models.WEIGHTS).exists() and "map" in self.card
        return there and self.trained_steps == self.plan.stages[-1].steps

    @property
    def trained_steps(self) -> int:
        """Steps of the last stage after which the map was written; those of the plan in older cards."""
        return self.card.get("trained_steps", self.plan.stages[-1].steps)

    @property
    def device(self) -> Any:
        """The device of the recipe; the best device of this machine if that one is missing."""
        try:
            return pick_device(self.recipe.device)
        except ValueError:
            return pick_device("auto")

    def lock(self) -> None:
        """Lock the folder for this process, until `release` or its end.

        Raises:
            ValueError: another process has locked it.
        """
        self._lock = lock(self.path)

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()

    def remove_lock(self) -> None:
        """Remove the file of the lock, at the end of a run; the process that holds the lock keeps it."""
        (self.path / LOCK).unlink(missing_ok=True)

    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl."""
        return read_log(self.path)

    def load_map(self, stage: str = "") -> FlowMap:
        """The map that the run has learned, or that an earlier stage of it left.

        Raises:
            ValueError: it is not there, or damaged.
        """
        return models.load(self.path / stage)

    def load_teacher(self) -> FlowMap | None:
        """The map whose velocity was the teacher; `None` for a method without one.

        Raises:
            ValueError: it is not there, or damaged.
        """
        return self.load_map("teacher") if self.plan.method.distils else None

    def open_source(self, watch: Watch | None = None) -> Source:
        """The data of the run, for its evaluation.

        Raises:
            ValueError: they cannot be read, or have changed since.
        """
        source = open_source(self.recipe, watch=watch)
        self.check_data(describe(self.recipe, watch))
        return source

    def check_data(self, described: dict[str, Any]) -> None:
        """Refuse data other than those that the run began with; `described` from `describe`, now.

        Raises:
            ValueError: their content has changed.
        """
        if self.card.get("data_sha256") not in (None, described["data_sha256"]):
            raise ValueError(
                f"{described['recipe']['data']} has changed since the run began: restore it, or train again into "
                "another --out."
            )

    def check_resumable(self, recipe: Recipe, described: dict[str, Any]) -> None:
        """Raise an error if a resume changes an option outside `RESUMABLE` or the data; `described` from `describe`.

        Raises:
            ValueError: the run has finished and is not to be longer, its options differ, or its data have changed.
        """
        if self.finished and not self._is_longer(recipe):
            raise ValueError(
                f"{self.path} has finished training: there is nothing to resume; see flowmaps evaluate {self.path}."
            )
        old, new = _options(self.recipe), _options(recipe)
        for name, value in new.items():
            if not {name, name.split(".")[0]} & set(RESUMABLE) and old.get(name) != value:
                option = name.replace("_", "-")
                raise ValueError(
                    f"{self.path} was begun with --{option} {old.get(name)}, got {value}: resume with the options it "
                    "began with."
                )
        self.check_data(described)

    def _is_longer(self, recipe: Recipe) -> bool:
        last = self.plan.stages[-1].steps
        if plans.resolve(recipe).stages[-1].steps <= last:
            return False
        if not checkpoints.names(self.checkpoints):
            raise ValueError(
                f"{self.path} has finished {last:,} steps, of which it keeps no checkpoint to make it longer: that is "
                "for a constant learning rate (--optimiser.decay constant) and a method without a schedule. Train on "
                f"from its weights in another folder: --from-run {self.path}."
            )
        return True

    def note_length(self, recipe: Recipe) -> None:
        """Write the numbers of steps of a run that is made longer into its card."""
        steps = {"steps": recipe.steps, "teacher_steps": recipe.teacher_steps}
        if any(self.card["recipe"][name] != value for name, value in steps.items()):
            self.card["recipe"] |= steps
            write_atomically(self.path / models.CARD, json.dumps(self.card, indent=2) + "\n")

    def save_map(self, flow_map: FlowMap, stage: str, interpolant: Interpolant, **extra: Any) -> None:
        """Write the map of a finished stage; `stage` is empty for the last one, whose map marks the run as finished."""
        models.save(flow_map, self.path / stage, interpolant=interpolant, extra=extra, overwrite=True)

    def clear(self) -> None:
        """Delete the checkpoints of a finished run that was killed before it could; the lock is this process's."""
        longer = self.recipe.optimiser.decay == "constant"
        last = [f"{stage.name}-{stage.steps:08}" for stage in self.plan.stages[-1:] if longer]
        checkpoints.clear(self.checkpoints, self.recipe.keep_checkpoints_every, last)


def open_source(recipe: Recipe, split: str = "train", watch: Watch | None = None) -> Source:
    """The data of a recipe.

    Raises:
        ValueError: as in `open_data`.
    """
    batch = recipe.optimiser.batch if split == "train" else 1
    if not isinstance(recipe, ImageRecipe):
        return open_data(recipe.data, batch, split=split, watch=watch)
    options: dict[str, Any] = {"resolution": recipe.resolution, "labels": recipe.labels}
    source = open_data(recipe.data, batch, split=split, watch=watch, **options)
    if isinstance(source, Images):  # latents have no mirror
        source.flips = recipe.flips
    return source


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """A copy of the recipe with absolute paths, so that the run can be used from any working directory."""
    paths = {name: getattr(recipe, name) for name in ("teacher", "from_run")}
    found = {name: str(Path(path).resolve()) if path else "" for name, path in paths.items()}
    return dataclasses.replace(recipe, data=resolve(recipe.data), **found)


def describe(recipe: Recipe, watch: Watch | None = None) -> dict[str, Any]:
    """The entries of config.json for a recipe: its fields, and the SHA-256 of its data files."""
    return {"recipe": dataclasses.asdict(recipe), "data_sha256": fingerprint(recipe.data, watch)}


def _options(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe as options, `optimiser.learning_rate` and the like."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(recipe).items():
        flat |= {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    return flat
