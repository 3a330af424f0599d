"""`RunFolder`: a run's folder with its card, plan, maps, checkpoints and lock; what a resume may change.

config.json  log.jsonl  weights.safetensors  metrics.json  report.html  *.png     and while it trains: checkpoints/
teacher/ warm_up/ strip/: the map as an earlier stage left it     averages/: other averages of the weights
start/: a copy of the map of --from-run              adapter.safetensors: what --lora trains
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from ..data import Images, Latents, Source, TableOptions, Units, fingerprint, open_data
from ..maps import FlowMap
from ..storage import cards, checkpoints, models
from ..system.devices import pick_device
from ..system.files import write_atomically
from ..system.processes import on_first
from ..system.progress import Watch
from ..training.failures import CHECKPOINTS
from ..training.guards import LOCK, holder, is_held, lock
from ..training.settings import values
from . import recipes
from .own_networks import load_network
from .plan import Plan, resolve
from .recipes import ImageRecipe, Recipe
from .recipes.checks import CALLABLE, is_other_model

START = "start"
"""Where in a folder the copy of the map is that the training starts from, of --from-run or of another model."""
ADAPTER = "adapter.safetensors"
"""The weights that --lora trains, alone."""
RESUMABLE = ("device", "compile", "fsdp", "log-every", "checkpoint-every", "keep-checkpoints", "keep-checkpoints-every",
             "store-averages-every", "show-every", "track", "max-skipped-steps", "activation-checkpointing",
             "evaluation", "optimiser.accumulate", "steps", "teacher-steps")  # fmt: skip
"""Options that a resume may change; `RunFolder.check_resumable` refuses a change of any other.

Numbers of steps are compared by `Trainer._check_length` for the stage that goes on, and by `Run._check_same_length` for
stages that have ended. `training.identity.check_same` compares what a checkpoint says of its loss, settings and data.
"""


@dataclasses.dataclass
class RunFolder:
    """The folder of a run.

    Attributes:
        path: where it is.
        card: the content of its config.json.
        plan: of the recipe in the card.
        net: `module:Class` of the network of a recipe with one, as the user of this process names it.
    """

    path: Path
    card: dict[str, Any]
    plan: Plan
    net: str = ""
    _lock: BaseFileLock | None = None

    @classmethod
    def open(cls, path: Path, net: str = "") -> RunFolder:
        """The folder of a run that has begun.

        Args:
            path: where it is.
            net: the network of the user's own that it is of, `module:Class`, where it is of one.

        Raises:
            ValueError: there is none, or config.json is damaged, of another version, or not that of a run.
        """
        card = cards.read(path)
        if card.get("recipe") is None:
            raise ValueError(
                f"{path}/config.json has no recipe: it holds a map saved by flowmaps.save, not a run of flowmaps train "
                "(flowmaps.fit saves a map too): draw from it in Python, with flowmaps.load and flowmaps.samplers."
            )
        found = cls(path, card, resolve(recipes.from_dict(card["recipe"])), net)
        if net and not found.recipe.net:
            raise ValueError(f"{path} is a run of a network of flowmaps, got --net {net}: leave it out.")
        return found

    @classmethod
    def new(cls, path: Path, plan: Plan, data_sha256: str | None) -> RunFolder:
        """The folder of a new run, which `create` writes.

        Args:
            path: where to.
            plan: of the run.
            data_sha256: checksum of its data, from `fingerprint`.
        """
        card = {"format": models.FORMAT, "recipe": dataclasses.asdict(plan.recipe), "data_sha256": data_sha256}
        return cls(path, card, plan, plan.recipe.net)

    def create(self) -> None:
        """Make the folder, lock it, and write config.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        self._write_card()

    def _write_card(self) -> None:
        write_atomically(self.path / models.CARD, json.dumps(self.card, indent=2) + "\n")

    @property
    def recipe(self) -> Recipe:
        """The recipe of the plan."""
        return self.plan.recipe

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

    def load_map(self, stage: str = "") -> FlowMap:
        """The map that the run has learned, or that an earlier stage of it left.

        Raises:
            ValueError: it is not there, or damaged.
        """
        module, _, name = self.recipe.teacher.partition(":")
        if name and module not in sys.modules and CALLABLE.fullmatch(self.recipe.teacher):  # a card imports nothing
            raise ValueError(
                f"the map of {self.path} is of a network of {module}: import it first, with --import-module {module}."
            )
        if self.recipe.net and not self.net:
            raise ValueError(
                f"the map of {self.path} is of a network of your own: name it again, with --net {self.recipe.net}."
            )
        there = (self.path / stage / models.WEIGHTS).exists()
        if not there and self._lock is None and is_held(self.path):
            raise ValueError(
                f"{self.path} is being trained by another process ({holder(self.path / LOCK)}): its map is there once "
                "it has ended; until then its pictures are in previews/."
            )
        return models.load(self.path / stage, load_network(self.net) if self.net else None)

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
        self.check_data(fingerprint(self.recipe.data, watch))
        return source

    def check_data(self, data_sha256: str | None) -> None:
        """Refuse data other than those that the run began with, by the checksum that they have now.

        Raises:
            ValueError: their content has changed.
        """
        if self.card.get("data_sha256") not in (None, data_sha256):
            raise ValueError(
                f"{self.recipe.data} has changed since the run began: restore it, or train again into another --out."
            )

    def lock_to_resume(self, plan: Plan, data_sha256: str | None) -> None:
        """Lock the folder of a run that is to be resumed; leftover checkpoints of a finished one are deleted.

        Raises:
            ValueError: another process has locked it; or as in `check_resumable`.
        """
        self.lock()
        finished = self.finished
        try:
            if finished:
                self.clear()
            self.check_resumable(plan, data_sha256)
        except BaseException:
            if finished:
                self.remove_lock()
            self.release()
            raise

    def check_resumable(self, plan: Plan, data_sha256: str | None) -> None:
        """Raise an error if the run cannot be resumed with a plan and data of a checksum.

        Raises:
            ValueError: the run has finished and is not to be longer, options outside `RESUMABLE` differ, or its data
                have changed.
        """
        if self.finished and not self._is_longer(plan):
            raise ValueError(
                f"{self.path} has finished training: there is nothing to resume; see flowmaps evaluate {self.path}."
            )
        old = values(self.recipe)
        for name, value in values(plan.recipe).items():
            if not {name, name.split(".")[0]} & set(RESUMABLE) and old.get(name) != value:
                raise ValueError(
                    f"{self.path} was begun with --{name} {old.get(name)}, got {value}: resume with the options it "
                    "began with."
                )
        self.check_data(data_sha256)

    def _is_longer(self, plan: Plan) -> bool:
        last = self.plan.stages[-1].steps
        if plan.stages[-1].steps <= last:
            return False
        if not checkpoints.names(self.checkpoints):
            decay = self.recipe.optimiser.decay
            why = f"its learning rate fell to its last step (--optimiser.decay {decay})"
            why = "its last checkpoint is not there" if decay == "constant" else why
            raise ValueError(
                f"{self.path} has finished {last:,} steps and cannot be made longer: {why}. Train on from its weights "
                f"in another folder, with --from-run {self.path} --out NEW."
            )
        return True

    def continue_with(self, plan: Plan) -> None:
        """Take over the plan of a resume, whose numbers of steps are written into the card; each process calls this."""
        self.plan = plan
        steps = {"steps": plan.recipe.steps, "teacher_steps": plan.recipe.teacher_steps}
        if any(self.card["recipe"].get(name) != value for name, value in steps.items()):
            self.card["recipe"] |= steps
            on_first(self._write_card)

    def save_map(self, flow_map: FlowMap, stage: str, **extra: Any) -> None:
        """Write the map of a finished stage; `stage` is empty for the last one, whose map marks the run as finished."""
        models.save(flow_map, self.path / stage, interpolant=self.plan.interpolant, extra=extra, overwrite=True)
        if not stage:
            self.card = cards.read(self.path)

    def clear(self) -> None:
        """Delete the checkpoints of a finished run that was killed before it deleted them.

        The caller must hold the lock.
        """
        longer = self.recipe.optimiser.decay == "constant"
        last = [f"{stage.name}-{stage.steps:08}" for stage in self.plan.stages[-1:] if longer]
        checkpoints.clear(self.checkpoints, self.recipe.keep_checkpoints_every, last)


def check_new(folder: Path, *, resumable: bool = True) -> None:
    """Raise an error if a new run cannot be written into a folder.

    Args:
        folder: where to.
        resumable: whether --resume may go on with what is there.

    Raises:
        ValueError: the folder is a file, is not empty, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} already exists and is no folder: choose another --out.")
    if folder.exists() and any(folder.iterdir()):
        other = ", or go on with --resume" if resumable else ""
        raise ValueError(f"{folder} already exists and is not empty: choose another --out{other}.")
    parent = nearest_existing(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be made in {parent}, which cannot be written: choose another --out.")


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def open_source(recipe: Recipe, split: str = "train", watch: Watch | None = None) -> Source:
    """The data of a recipe.

    Raises:
        ValueError: as in `open_data`.
    """
    if not isinstance(recipe, ImageRecipe):
        table = TableOptions(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(TableOptions)})
        return open_data(recipe.data, split=split, table=table, watch=watch)
    options = {"resolution": recipe.resolution, "labels": recipe.labels, "held_out": recipe.held_out}
    source = open_data(recipe.data, split=split, watch=watch, **options)  # type: ignore[arg-type]
    if isinstance(source, Images):  # latents have no mirror
        source.flips = recipe.flips
    if isinstance(source, Latents) and is_other_model(recipe.teacher):  # which knows them in their own scale
        source = source.as_encoded()
    return source
