"""A run: the stages of a plan trained one after the other into a folder, each by a `Trainer`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data import Source
from ..maps import FlowMap, Target
from ..shapes import Field
from ..storage import checkpoints
from ..system.processes import each, in_turn, on_first, ranks
from ..system.progress import Watch, quiet
from ..system.seeds import generator
from ..training.distributed import Engine, start
from ..training.failures import CHECKPOINTS, writing
from ..training.loop import Step
from ..training.settings import Settings
from ..training.trackers import Trackers, open_trackers
from ..training.trainer import Trainer
from . import inherit, initial
from .folder import RunFolder, describe, open_source, with_absolute_paths
from .plan import Plan, Stage, resolve
from .preflight import check_folder, check_steps
from .recipes import Recipe

MAP = ""
"""Where in a folder the map of the last stage is: in the folder itself."""


@dataclass
class Run:
    """A run in progress; `train` is a generator of its steps.

    Attributes:
        plan: of its recipe, whose paths are absolute.
        folder: of the run, locked.
        source: the data, on the device.
        flow_map: the map, with the weights that the last finished stage left.
        described: entries of config.json for the recipe and its data.
        engine: device and processes.
        checkpoint: name of the checkpoint to go on from; `None` for a run that begins.
        say: prints a line.
        teacher: the velocity that the map learns from, once there is one.
        trainer: the `Trainer` of the current stage.
    """

    plan: Plan
    folder: RunFolder
    source: Source
    flow_map: FlowMap
    described: dict[str, Any]
    engine: Engine
    checkpoint: str | None = None
    say: Callable[[str], None] = field(default=print)
    teacher: Field | None = None
    trainer: Trainer | None = None
    given_teacher: FlowMap | None = None
    trackers: Trackers | None = None

    @classmethod
    def open(cls, recipe: Recipe, folder: Path, *, resume: bool = False, resume_from: str | None = None,
             say: Callable[[str], None] = print, watch: Watch = quiet) -> Run:  # fmt: skip
        """Check the recipe, the data and the folder, then create the run's folder or open it to resume.

        Raises:
            ValueError: the recipe cannot run, the folder exists already or another run has locked it, or there is
                nothing to resume.
        """
        resolve(recipe)
        engine = start(recipe.device, shard=recipe.fsdp)
        on_first(lambda: resolve(recipe, processes=ranks()) and None)
        resume = resume or resume_from is not None
        if not resume:
            on_first(lambda: check_folder(folder))
        plan = resolve(with_absolute_paths(recipe))
        source = in_turn(lambda: open_source(recipe, watch=watch)).to(engine.device)
        described = on_first(lambda: describe(plan.recipe, watch))
        held = list[RunFolder]()  # in the first process: the folder, locked
        if resume:
            on_first(lambda: held.append(_open_to_resume(folder, plan, described)))
        try:
            run = cls._prepared(plan, folder, source, described, engine, resume_from if resume else None, resume, say)
            on_first(lambda: None if resume else held.append(run._create()))
        except BaseException:
            for entry in held:
                entry.release()
            raise
        run.folder = held[0] if held else RunFolder.open(folder)
        return run

    @classmethod
    def _prepared(cls, plan: Plan, folder: Path, source: Source, described: dict[str, Any], engine: Engine,
                  resume_from: str | None, resume: bool, say: Callable[[str], None]) -> Run:  # fmt: skip
        """The run with its first map, everything checked that can be."""
        recipe = plan.recipe
        checkpoint = checkpoints.find(folder / CHECKPOINTS, resume_from) if resume else None
        fresh = each(lambda: initial.new_map(recipe, source.shape, source.classes).to(engine.device))
        run = cls(plan, RunFolder(folder, {}), source, fresh, described, engine, checkpoint, say)
        if not resume:
            run.given_teacher = each(run._given_teacher) if recipe.teacher else None
            if recipe.from_run:
                each(run._given_start)
        each(lambda: check_steps(plan, run.flow_map))
        return run

    def _given_teacher(self) -> FlowMap:
        """The teacher that the recipe names, whose weights the map begins with."""
        teacher = inherit.given_teacher(self.plan, self.source, self.described)
        inherit.start_from_teacher(self.flow_map, teacher)
        return teacher

    def _given_start(self) -> None:
        """Copy the weights of the run of `--from-run` into the map."""
        start = inherit.given_start(self.plan, self.source, self.described)
        inherit.copy_weights(self.flow_map, start, "the run to start from")

    def _create(self) -> RunFolder:
        """Make the folder and lock it; the first process does."""
        folder, teacher = RunFolder.create(self.folder.path, self.described), self.given_teacher
        if teacher is not None:
            folder.save_map(teacher, "teacher", self.plan.interpolant, teacher_of=self.plan.recipe.teacher)
        return folder

    @property
    def recipe(self) -> Recipe:
        """The recipe of the plan."""
        return self.plan.recipe

    @property
    def stopped(self) -> str | None:
        """Why training ended before its last step; `None` where it did not."""
        return self.trainer and self.trainer.stopped

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return 0.0 if self.trainer is None else self.trainer.seconds

    @property
    def logged(self) -> dict[str, Any]:
        """The last line of the log."""
        return {} if self.trainer is None else self.trainer.logged

    @property
    def at(self) -> tuple[str, int]:
        """The current stage and the steps taken in it; before training, those of the checkpoint."""
        if self.trainer is not None:
            return self.trainer.stage, self.trainer.step
        stage, _, step = (self.checkpoint or "").removesuffix(checkpoints.BEFORE).rpartition("-")
        known = stage in [entry.name for entry in self.plan.stages] and step.isdecimal()
        return (stage, int(step)) if known else (self.plan.stages[0].name, 0)

    def train(self, stop: Callable[[], bool] = lambda: False) -> Generator[tuple[Stage, Step], None, None]:
        """Train all stages, saving as it goes; each step that is taken is yielded with its stage.

        Args:
            stop: called after each step; if true in any process, the run saves a checkpoint and stops.

        Raises:
            ValueError: there is no finite gradient any more, the folder cannot be written, or another process ended.
        """
        stage, step = self.at
        first = self.plan.steps_before(stage) + step
        config = dataclasses.asdict(self.plan.recipe)
        try:
            self.trackers = open_trackers(config["track"], self.folder.path, config, first=first, say=self.say)
            with contextlib.closing(self.trackers):
                yield from self._stages(stop)
        finally:
            self.folder.release()

    def _stages(self, stop: Callable[[], bool]) -> Generator[tuple[Stage, Step], None, None]:
        stages, first = self.plan.stages, self._first_stage()
        if self.plan.recipe.teacher:
            self._take_teacher()
        for number, stage in enumerate(stages):
            if number < first:
                self._check_same_length(number, stage)
                self._take_over(self.folder.load_map(stage.name), stage)
                continue
            self.trainer = trainer = self._trainer(number, stage, stop)
            if number == first:
                if self.checkpoint:
                    trainer.resume(self.checkpoint)
                on_first(lambda: self.folder.note_length(self.plan.recipe))
            for step in trainer:
                yield stage, step
            if trainer.stopped:
                return
            self._save(trainer, MAP if stage is stages[-1] else stage.name)
            if stage is not stages[-1]:
                self._take_over(self.flow_map, stage)
            else:
                trainer.clear()
                on_first(self.folder.remove_lock)

    def _check_same_length(self, number: int, stage: Stage) -> None:
        """Refuse another number of steps of a stage that has ended."""
        before = self.folder.plan.stages[number].steps
        if before != stage.steps:
            raise ValueError(
                f"the stage {stage.name} has ended after {before:,} steps, got {stage.steps:,}: give {before:,}."
            )

    def _first_stage(self) -> int:
        """The number of the stage to begin with, or to go on in."""
        names = [stage.name for stage in self.plan.stages]
        if self.checkpoint is None:
            return 0
        name = self.checkpoint.rpartition("-")[0]
        if name not in names:
            raise ValueError(f"{self.checkpoint} is no checkpoint of this run, whose stages are {', '.join(names)}.")
        return names.index(name)

    def _trainer(self, number: int, stage: Stage, stop: Callable[[], bool]) -> Trainer:
        """The engine of a stage, whose weights it begins with."""
        recipe = self.plan.recipe
        resumed = self.checkpoint is not None and number == self._first_stage()
        if recipe.from_run and stage is self.plan.stages[-1] and not resumed:
            self._given_start()
        torch.manual_seed(recipe.seed)
        objective = stage.build(self.flow_map, self.teacher)
        settings = Settings(
            precision=recipe.precision,
            compile=self.plan.compiles(self.engine.device),
            seed=generator(recipe.seed, number).initial_seed(),
            **{name: getattr(recipe, name) for name in _FIELDS},
        )
        return Trainer(
            objective,
            self.source,
            self.folder.path,
            steps=stage.steps,
            optimiser=stage.optimiser,
            settings=settings,
            engine=self.engine,
            stage=stage.name,
            earlier=[entry.name for entry in self.plan.stages[:number]],
            steps_before=self.plan.steps_before(stage.name),
            trackers=self.trackers,
            seconds=self.seconds,
            stop=stop,
            owns_folder=False,
            say=self.say,
        )

    def _take_teacher(self) -> None:
        """Start from the teacher that was given, of which the folder has a copy."""
        teacher = self.folder.load_map("teacher").to(self.engine.device)
        inherit.start_from_teacher(self.flow_map, teacher)
        self.teacher = Target(teacher).velocity

    def _take_over(self, flow_map: FlowMap, stage: Stage) -> None:
        """Start the next stage from the weights of `stage`; if `stage` is the teacher, use its velocity too."""
        self.flow_map.load_state_dict(flow_map.state_dict())
        if stage.name == "teacher":
            self.teacher = Target(self.flow_map).velocity

    def _save(self, trainer: Trainer, where: str) -> None:
        """Write the map that a stage has learned."""
        flow_map = trainer.finish()
        extra = {**self.described, "seconds": round(trainer.seconds, 1), "trained_steps": trainer.step}
        extra["units"] = dataclasses.asdict(self.source.units)
        with writing(self.folder.path):
            on_first(lambda: self.folder.save_map(flow_map, where, self.plan.interpolant, **extra))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[FlowMap]:
        """The map with the EMA for weights, in evaluation mode, between two steps; each process calls this."""
        assert self.trainer is not None
        with self.trainer.averaged() as flow_map:
            yield flow_map


_FIELDS = ("checkpoint_every", "keep_checkpoints", "keep_checkpoints_every", "store_averages_every", "log_every",
           "max_skipped_steps", "track")  # fmt: skip
"""Settings of the engine that are fields of a recipe."""


def _open_to_resume(path: Path, plan: Plan, described: dict[str, Any]) -> RunFolder:
    """The folder of a run that can be resumed, locked; leftover checkpoints of a finished one are deleted.

    Raises:
        ValueError: it cannot be resumed, or another process has locked it.
    """
    folder = RunFolder.open(path)
    folder.lock()
    finished = folder.finished
    try:
        if finished:
            folder.clear()
        folder.check_resumable(plan.recipe, described)
    except BaseException:
        if finished:
            folder.remove_lock()
        folder.release()
        raise
    return folder
