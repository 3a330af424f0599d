"""A run: the stages of a plan trained one after the other into a folder, each by a `Trainer`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..data import Source
from ..data import resolve as resolve_data
from ..maps import FlowMap, Target
from ..nn import TwoTimes
from ..shapes import Field
from ..storage import checkpoints
from ..system.processes import each, on_first
from ..system.progress import Watch, quiet
from ..system.seeds import generator
from ..training.distributed import Placement
from ..training.failures import writing
from ..training.loop import Step
from ..training.settings import Settings
from ..training.trackers import Trackers, open_trackers
from ..training.trainer import Trainer
from . import inherit
from .folder import ADAPTER, START, RunFolder
from .plan import Plan
from .prepare import prepare
from .recipes import Recipe
from .recipes.checks import PIPELINE
from .stages import Stage

MAP = ""
"""Where in a folder the map of the last stage is: in the folder itself."""


@dataclass
class Run:
    """A run in progress; `train` is a generator of its steps.

    Attributes:
        plan: of its recipe, whose paths are absolute.
        folder: of the run, locked.
        source: the data, on the device.
        data_sha256: checksum of the data.
        flow_map: the map, with the weights that the last finished stage left.
        placement: device and processes.
        checkpoint: name of the checkpoint to go on from; `None` for a run that begins.
        say: prints a line.
        teacher: the velocity that the map learns from, once there is one.
        trainer: the `Trainer` of the current stage.
    """

    plan: Plan
    folder: RunFolder
    source: Source
    data_sha256: str | None
    flow_map: FlowMap
    placement: Placement
    checkpoint: str | None = None
    say: Callable[[str], None] = field(default=print)
    teacher: Field | None = None
    trainer: Trainer | None = None
    trackers: Trackers | None = None

    @classmethod
    def open(cls, recipe: Recipe, path: Path, *, resume: bool = False, resume_from: str | None = None,
             say: Callable[[str], None] = print, watch: Watch = quiet) -> Run:  # fmt: skip
        """Check the recipe, the data and the folder, then create the run's folder or open it to resume.

        Raises:
            ValueError: the recipe cannot run, the folder exists already or another run has locked it, or there is
                nothing to resume.
        """
        resume = resume or resume_from is not None
        ready = prepare(recipe, path, resume=resume, watch=watch)
        plan = dataclasses.replace(ready.plan, recipe=with_absolute_paths(ready.plan.recipe))
        folder = (
            each(lambda: RunFolder.open(path, plan.recipe.net))
            if resume
            else RunFolder.new(path, plan, ready.data_sha256)
        )
        plan = each(lambda: _with_chosen_precision(plan, folder)) if resume else plan
        run = cls(plan, folder, ready.source, ready.data_sha256, ready.flow_map, ready.placement, say=say)
        try:
            if resume:
                on_first(lambda: folder.lock_to_resume(plan, ready.data_sha256))
                run.checkpoint = checkpoints.find(folder.checkpoints, resume_from)
            else:
                on_first(lambda: run._create(ready.teacher))
        except BaseException:
            folder.release()
            raise
        if ready.chosen:
            say(ready.chosen)
        return run

    def _create(self, teacher: FlowMap | None) -> None:
        """Make the folder, with copies of the teacher and of the map to start from that were given."""
        self.folder.create()
        if teacher is not None:
            self.folder.save_map(teacher, "teacher", teacher_of=self.plan.recipe.teacher)
        if begun := self.plan.recipe.from_run or (self.plan.of_other_model and self.plan.recipe.teacher):
            self.folder.save_map(self.flow_map, START, start_of=begun)

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
                self.folder.continue_with(self.plan)
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
        if before != stage.steps and stage.name == "strip":
            raise ValueError(
                f"a run of {self.plan.method.name} cannot be made longer once its strip has ended, which takes half of "
                "all steps: give the steps that it began with, or train on from its weights, with "
                f"--from-run {self.folder.path}."
            )
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
        """The trainer of a stage; it starts from the weights of `flow_map`, or from those of --from-run."""
        recipe = self.plan.recipe
        resumed = self.checkpoint is not None and number == self._first_stage()
        if recipe.from_run and stage in (self.plan.stages[0], self.plan.stages[-1]) and not resumed:
            self.flow_map.load_state_dict(self.folder.load_map(START).state_dict())
        torch.manual_seed(recipe.seed)
        objective = stage.build(self.flow_map, self.teacher)
        settings = {entry.name: getattr(recipe, entry.name) for entry in dataclasses.fields(Settings)}
        settings["compile"] = self.plan.compiles(self.placement.device)
        settings["seed"] = generator(recipe.seed, number).initial_seed()
        return Trainer(
            objective,
            self.source,
            self.folder.path,
            steps=stage.steps,
            optimiser=stage.optimiser,
            settings=Settings(**settings),
            placement=self.placement,
            stage=stage.name,
            earlier=[entry.name for entry in self.plan.stages[:number]],
            steps_before=self.plan.steps_before(stage.name),
            trackers=self.trackers,
            seconds=0.0 if self.trainer is None else self.trainer.seconds,
            stop=stop,
            owns_folder=False,
            say=self.say,
        )

    def _take_teacher(self) -> None:
        """Start from the teacher that was given, of which the folder has a copy."""
        teacher = self.folder.load_map("teacher").to(self.placement.device)
        if not self.plan.of_other_model:  # of which the map is made
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
        extra = {"recipe": dataclasses.asdict(self.plan.recipe), "data_sha256": self.data_sha256}
        extra |= {"seconds": round(trainer.seconds, 1), "trained_steps": trainer.step}
        extra["units"] = dataclasses.asdict(self.source.units)
        with writing(self.folder.path):
            on_first(lambda: self.folder.save_map(flow_map, where, **extra))
            net = flow_map.net
            if isinstance(net, TwoTimes) and net.lora and where == MAP:
                on_first(lambda: net.save_adapter(self.folder.path / ADAPTER))


def _with_chosen_precision(plan: Plan, folder: RunFolder) -> Plan:
    """The plan of a resume, with the precision that --precision auto chose when the run began."""
    if plan.recipe.precision != "auto":
        return plan
    chosen = folder.recipe.precision
    if chosen == "auto":
        raise ValueError(f"config.json in {folder.path} does not tell the precision of the run, got auto: restore it.")
    return dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, precision=chosen))


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """A copy of the recipe with absolute paths, so that the run can be used from any working directory."""
    paths = {name: getattr(recipe, name) for name in ("teacher", "from_run")}
    found = {name: str(Path(path).resolve()) if Path(path).exists() and path else path for name, path in paths.items()}
    if found["teacher"] and (Path(found["teacher"]) / PIPELINE).exists():  # which says that it is one when it is gone
        found["teacher"] = str(Path(found["teacher"], PIPELINE))
    return dataclasses.replace(recipe, data=resolve_data(recipe.data), **found)
