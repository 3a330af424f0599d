"""A run and its folder: train the stages of a recipe, checkpoint, log, go on after an interruption.

config.json  log.jsonl  weights.safetensors  metrics.json  report.html  *.png     and while it trains: checkpoints/
teacher/ (or strip/): the map as an earlier stage left it        averages/: other averages of the weights
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock

from ..data import Source
from ..maps import FlowMap, Frozen
from ..shapes import Field
from ..storage import checkpoints as snapshots
from ..storage import models as checkpoint
from ..system.devices import compiled
from ..system.files import write_atomically
from ..system.processes import LOST, Lost, all_of, each, first_line, in_turn, is_lost, on_first, ranks, together
from ..system.progress import Watch, quiet
from ..training import averages
from ..training import log as journal
from ..training.distributed import Engine, not_finite, start
from ..training.guards import LOCK, Request, lock
from ..training.log import LOG
from ..training.loop import Step, generator, train
from ..training.state import State, begin
from . import initial
from . import plan as plans
from .folder import anywhere, check_resumable, describe, finished, given_teacher, source_of
from .preflight import check_folder, check_steps
from .recipes import Recipe

CHECKPOINTS = "checkpoints"


@dataclass
class Run:
    """A run in progress; `train` is a generator of its steps.

    Attributes:
        recipe: with its paths absolute.
        folder: of the run.
        source: the data, on the device.
        flow_map: the map, with the weights that the last finished stage left.
        described: what the card says of the recipe and its data.
        engine: where it computes.
        resume_from: name of the checkpoint to go on from; the last one unless given.
        teacher: the velocity that the map learns from, once there is one.
        seconds: of training so far, without those spent in `averaged`.
        stopped: whether training ended because it was asked to, to be resumed.
        at: the stage at hand and the steps taken of it.
        logged: the last line of the log.
        say: where words go.
    """

    recipe: Recipe
    folder: Path
    source: Source
    flow_map: FlowMap
    described: dict[str, Any]
    engine: Engine
    resume_from: str | None = None
    teacher: Field | None = None
    seconds: float = 0.0
    stopped: bool = False
    at: tuple[str, int] = ("", 0)
    logged: dict[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = field(default=print)
    _lock: BaseFileLock | None = None
    _state: State | None = None
    _away: float = 0.0

    @classmethod
    def open(cls, recipe: Recipe, folder: Path, *, resume: bool = False, resume_from: str | None = None,
             say: Callable[[str], None] = print, watch: Watch = quiet) -> Run:  # fmt: skip
        """Check everything and make the folder.

        Raises:
            ValueError: the recipe cannot run, the folder exists already or another run holds it, or there is nothing
                to resume.
        """
        plans.check(recipe)
        engine = start(recipe.device, shard=recipe.shard)
        on_first(lambda: plans.check(recipe, processes=ranks()))
        resume = resume or resume_from is not None
        if not resume:
            on_first(lambda: check_folder(folder))
        recipe = anywhere(recipe)
        source = in_turn(lambda: source_of(recipe, watch=watch)).to(engine.device)
        described = on_first(lambda: describe(recipe, watch))
        if resume:
            on_first(lambda: _resumable(recipe, folder, described))
            resume_from = snapshots.find(folder / CHECKPOINTS, resume_from)
        fresh = each(lambda: initial.new_map(recipe, source.shape, source.classes).to(engine.device))
        run = cls(recipe, folder, source, fresh, described, engine, resume_from, say=say)
        teacher = each(run._given_teacher) if recipe.teacher and not resume else None
        each(lambda: check_steps(recipe, run.flow_map))
        on_first(lambda: run._make(teacher, resume))
        return run

    def _given_teacher(self) -> FlowMap:
        """The teacher that the recipe names, whose weights the map begins with."""
        teacher = given_teacher(self.recipe, self.source, self.described)
        initial.adopt(self.flow_map, teacher)
        return teacher

    def _make(self, teacher: FlowMap | None, resume: bool) -> None:
        """Make the folder and hold it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.folder)
        if teacher is not None:
            options: dict[str, Any] = {"extra": {"teacher_of": self.recipe.teacher}, "overwrite": True}
            checkpoint.save(teacher, self.folder / "teacher", interpolant=plans.interpolant(self.recipe), **options)
        if not resume:
            card = {"format": checkpoint.FORMAT, **self.described}
            write_atomically(self.folder / checkpoint.CARD, json.dumps(card, indent=2) + "\n")

    def train(self, stop: Callable[[], bool] = lambda: False) -> Generator[tuple[plans.Stage, Step], None, None]:
        """Train all stages, saving as it goes; each step that is taken is yielded with its stage.

        Args:
            stop: asked after each step; if it is true in any process, the run saves a checkpoint and ends there.

        Raises:
            ValueError: there is no finite gradient any more, the folder cannot be written, or another process ended.
        """
        try:
            yield from self._stages(stop)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise ValueError(
                f"{self.folder} cannot be written: {error.strerror or error}{where}. {self._intact()}"
            ) from None
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise Lost(f"{LOST} ({first_line(error)}). {self._intact()}") from None
        finally:
            if self._lock is not None:
                self._lock.release()

    def _stages(self, stop: Callable[[], bool]) -> Generator[tuple[plans.Stage, Step], None, None]:
        stages = plans.stages(self.recipe)
        names = [stage.name for stage in stages]
        at = self._first_stage(names)
        if self.recipe.teacher:
            self._take_teacher()
        for number, stage in enumerate(stages):
            last = number == len(stages) - 1
            if number < at:
                self._adopt(checkpoint.load(self.folder / stage.name), stage)
                continue
            self._state = state = self._begin(stage)
            if self.resume_from and number == at:
                self._go_on(self.resume_from, names, stage.name, state)
            elif number:
                self._checkpoint(number, stage, state)
            yield from self._steps(number, stage, state, stop)
            if self.stopped:
                return
            self._finish(stage, state, self.folder if last else self.folder / stage.name)
            if not last:
                self._adopt(self.flow_map, stage)
        on_first(lambda: _clear(self.folder, self.recipe.keep_every))

    def _begin(self, stage: plans.Stage) -> State:
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        flow_map = copy.deepcopy(self.flow_map) if self.engine.shard else self.flow_map  # weights become shares
        objective = stage.build(flow_map, self.teacher).to(self.engine.device)
        settings, precision = plans.optimiser(recipe, stage.name), getattr(torch, recipe.precision)
        evaluate = compiled(objective.evaluate, self.say) if plans.gains(recipe, self.engine.device) else None
        return begin(objective, settings, engine=self.engine, evaluate=evaluate, precision=precision)

    def _steps(
        self, number: int, stage: plans.Stage, state: State, stop: Callable[[], bool]
    ) -> Iterator[tuple[plans.Stage, Step]]:
        recipe, request = self.recipe, Request()
        before, begun = self.seconds + self._away, time.monotonic()
        settings: dict[str, Any] = {"steps": stage.steps, "seed": generator(recipe.seed, number).initial_seed()}
        try:
            for step in train(
                state, self.source, plans.optimiser(recipe, stage.name), **settings, device=self.engine.device
            ):
                self.seconds, self.at = time.monotonic() - begun + before - self._away, (stage.name, step.number)
                logs = step.number % recipe.log_every == 0 or step.number == stage.steps
                if state.waits or logs:
                    state.guard.settle()
                    journal.check_patience(recipe.patience, stage.name, step, state, self._intact)
                if logs:
                    self.logged = journal.log(self.folder, stage.name, step, state, self.seconds)
                yield stage, step
                # before the checkpoint, from which a run that is killed in between goes on
                if recipe.optimiser.widths and step.number % recipe.snapshot_every == 0:
                    averages.snapshot(self.folder, stage.name, step.number, list(state.parameters), state.averages)
                self.stopped = request(stop())
                if self.stopped or step.number % recipe.checkpoint_every == 0:
                    self._checkpoint(number, stage, state)
                if self.stopped:
                    return
        except (KeyboardInterrupt, GeneratorExit):  # here, or in the body of the caller's loop
            if state.whole and not together():
                self._checkpoint(number, stage, state)
            raise

    def _checkpoint(self, number: int, stage: plans.Stage, state: State) -> None:
        """Save the training state, unless it has gone bad: then the last good one stays."""
        tensors = state.tensors()
        if bad := [name for names in all_of(lambda: not_finite(tensors)) for name in names]:
            raise ValueError(
                f"the training state is not finite at step {state.step} of stage {stage.name} ({bad[0]}): lower "
                f"--optimiser.rate or --optimiser.clip. {self._intact()}"
            )
        about = {"stage": number, "seconds": self.seconds, **state.about(), **journal.versions(), "processes": ranks()}
        kept = {"keep": self.recipe.keep, "keep_every": self.recipe.keep_every}
        snapshots.save(self.folder / CHECKPOINTS, f"{stage.name}-{state.step:08}", tensors, about, **kept)

    def _first_stage(self, names: list[str]) -> int:
        """The number of the stage to begin with or to go on in; a run that begins has no log yet."""
        if self.resume_from is None:
            on_first(lambda: (self.folder / LOG).unlink(missing_ok=True))
            return 0
        name = self.resume_from.rpartition("-")[0]
        if name not in names:
            raise ValueError(f"{self.resume_from} is no checkpoint of this run, whose stages are {', '.join(names)}.")
        return names.index(name)

    def _go_on(self, name: str, stages: list[str], stage: str, state: State) -> None:
        """Take over a checkpoint of a stage, and cut the log back to it."""
        tensors, about = snapshots.read(self.folder / CHECKPOINTS, name, state.template)
        state.restore(tensors, about)
        self.seconds = about["seconds"]
        on_first(lambda: journal.cut_back(self.folder, stages, stage, state.step))

    def _take_teacher(self) -> None:
        """Start from the teacher that was given, of which the folder has a copy."""
        teacher = checkpoint.load(self.folder / "teacher").to(self.engine.device)
        initial.adopt(self.flow_map, teacher)
        self.teacher = Frozen(teacher).velocity

    def _adopt(self, flow_map: FlowMap, stage: plans.Stage) -> None:
        """Start the next stage from what `stage` left: its weights, and where it was the teacher its velocity."""
        self.flow_map.load_state_dict(flow_map.state_dict())
        if stage.name == "teacher":
            self.teacher = Frozen(self.flow_map).velocity

    def _finish(self, stage: plans.Stage, state: State, where: Path) -> None:
        """Write the map that a stage has learned, and its other averages."""
        state.use_averages()
        self.flow_map.load_state_dict(state.weights())
        if bad := not_finite(self.flow_map.state_dict()):
            raise ValueError(
                f"the trained weights are not finite ({bad[0]}): lower --optimiser.rate or --optimiser.clip. "
                f"{self._intact()}"
            )
        averages.finish(self.folder, stage.name, list(state.parameters), state.averages)
        units, path = dataclasses.asdict(self.source.units), plans.interpolant(self.recipe)
        extra = {**self.described, "seconds": round(self.seconds, 1), "units": units}
        on_first(lambda: checkpoint.save(self.flow_map, where, interpolant=path, extra=extra, overwrite=True) and None)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[FlowMap]:
        """The map with its averages for weights, in evaluation mode, between two steps; each process calls this."""
        assert self._state is not None
        flow_map, begun = self._state.objective.flow_map, time.monotonic()
        mode = flow_map.training
        try:
            with self._state.averaged():
                yield flow_map.eval()
        finally:
            flow_map.train(mode)
            self._away += time.monotonic() - begun

    def _intact(self) -> str:
        """What is left after a failure, and how to go on."""
        try:
            every = snapshots.names(self.folder / CHECKPOINTS)
            name = every[-1] if every else None  # by itself: the others may be gone
        except (OSError, ValueError):
            name = None
        left = f"The last checkpoint, {name}, is intact: go on with the same command and --resume."
        return left if name else "No checkpoint was saved before it."


def _clear(folder: Path, keep_every: int) -> None:
    """Remove what only a run in training needs."""
    snapshots.clear(folder / CHECKPOINTS, keep_every)
    (folder / LOCK).unlink(missing_ok=True)


def _resumable(recipe: Recipe, folder: Path, described: dict[str, Any]) -> None:
    """Refuse a run that cannot go on; one that was killed at its very end is cleared as it would have been."""
    if folder.is_dir() and finished(folder, checkpoint.read_card(folder)):
        _clear(folder, recipe.keep_every)
    check_resumable(folder, recipe, described)
