"""The trainer: trains the map of any objective on any data, with checkpoints, a log, and an exact resume.

    trainer = Trainer(objective, data, "runs/mine", steps=10_000)
    trainer.resume()                       # where the folder has a checkpoint; else it starts at step 0
    for step in trainer:                   # the body of this loop is the hook
        if step.number % 1_000 == 0:
            with trainer.averaged() as flow_map:
                ...                        # look at the EMA of the weights
    flow_map = trainer.finish()

It is the same on one device and under a launcher of several processes (`torchrun`, `accelerate launch`): every process
makes the same calls, the first one writes.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..maps import FlowMap
from ..modules import evaluating
from ..objectives import Objective
from ..storage import checkpoints
from ..system.devices import compiled
from ..system.processes import all_of, on_first, rank, ranks, together
from . import averages, log
from .batches import FromRows, as_source
from .distributed import Placement, not_finite, start
from .failures import CHECKPOINTS, last_checkpoint, reporting_lost_process, writing
from .guards import FolderLock, Request, signals
from .identity import check_same, identity
from .loop import Step, train
from .optimisers import Optimiser, uneven
from .settings import Settings, check
from .state import State, begin
from .trackers import Trackers, open_trackers, values_of


class Trainer:
    """An iterable of the steps of a training.

    Args:
        objective: what is minimised; its `flow_map`, any `FlowMap` round any `nn.Module`, is trained in place.
        data: rows `(N, *shape)`; a pair of rows and their conditions, a tree of tensors with N rows; a `Source`; or an
            iterable of batches, each `x1` or `(x1, cond)`.
        folder: where checkpoints and log.jsonl go; none are written unless given.
        steps: optimiser steps in all.
        optimiser: its settings, the batch size among them.
        settings: precision, checkpoints, log.
        placement: device, and DDP or FSDP2 for several processes; this machine's best device unless given.
        stage: name of this training in checkpoints and log, where a folder has several one after the other.
        earlier: names of the stages before it.
        steps_before: optimiser steps of the stages before it, which trackers count too.
        seconds: training seconds of the earlier stages.
        trackers: those of a caller who opens and closes them; this training's own, by `settings.track`, unless given.
        stop: asked after each step; once it is true in any process, a checkpoint is saved and training ends there.
        owns_folder: lock the folder and handle SIGINT and SIGTERM as a request to stop; False if the caller already
            does both.
        say: prints a line.

    Attributes:
        seconds: of training so far, without those spent in `averaged`.
        stopped: why training ended before its last step, `None` where it did not.
        logged: the last line of the log.
        resumed_from: name of the checkpoint that `resume` took over, `None` where there was none.
        trackers: those at work, once training has begun.
        lock: of the folder: acquired by `resume` and by the loop, which releases it at its end.

    Raises:
        ValueError: settings, data and objective do not go together.
    """

    def __init__(
        self,
        objective: Objective,
        data: Any,
        folder: str | Path | None = None,
        *,
        steps: int,
        optimiser: Optimiser | None = None,
        settings: Settings | None = None,
        placement: Placement | None = None,
        stage: str = "map",
        earlier: Sequence[str] = (),
        steps_before: int = 0,
        seconds: float = 0.0,
        trackers: Trackers | None = None,
        stop: Callable[[], bool] = lambda: False,
        owns_folder: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        self.optimiser = Optimiser() if optimiser is None else optimiser
        self.settings = Settings() if settings is None else settings
        _check_arguments(objective, steps, self.optimiser, self.settings)
        self.placement = start("auto") if placement is None else placement
        say = say if rank() == 0 else lambda text: None
        self.steps, self.stage, self.earlier, self.steps_before = steps, stage, tuple(earlier), steps_before
        self.folder = None if folder is None else _made(folder)
        dtype = next(value.dtype for value in objective.parameters() if value.is_floating_point())
        self.source = as_source(data, self.placement.device, dtype, say)
        self.stop, self.owns_folder, self.say = stop, owns_folder, say
        if (why := uneven(self.optimiser, ranks())) is not None:
            raise ValueError(f"batch {why}")
        self.seconds = seconds
        self.stopped: str | None = None
        self.resumed_from: str | None = None
        self.logged: dict[str, Any] = {}
        self.trackers, self._own_trackers = trackers or Trackers({}, say), trackers is None
        self._averaged_seconds, self._averaging, self._looping, self._finished = 0.0, False, False, False
        self.lock = FolderLock(self.folder if owns_folder else None)
        self.objective, self.flow_map = objective, objective.flow_map
        self._state = self._begin(objective)
        rows = (self.source.x1, self.source.cond) if isinstance(self.source, FromRows) else None
        self.identity = identity(objective, self.optimiser, self.settings.seed, self.settings.precision, rows)

    def _begin(self, objective: Objective) -> State:
        objective = objective.to(self.placement.device)
        if not objective.flow_map.training:  # as one that was loaded; else parts in evaluation mode are meant to be
            objective.train()
        if self.placement.shard:  # FSDP2 shards its weights; `finish` puts the full ones into the caller's map
            objective = copy.deepcopy(objective)
        evaluate = compiled(objective.evaluate, self.say) if self.settings.compile else None
        precision = getattr(torch, self.settings.precision)
        return begin(objective, self.optimiser, placement=self.placement, evaluate=evaluate, precision=precision)

    @property
    def step(self) -> int:
        """Steps taken."""
        return self._state.step

    def resume(self, name: str | None = None) -> bool:
        """Resume from a checkpoint of the folder.

        It is bit-exact on the same number of processes, unless the data are an iterable without `state_dict`.

        Args:
            name: of the checkpoint, such as `map-00001000`, or `previous` for the last but one; the last unless given.

        Returns:
            Whether there was one.

        Raises:
            ValueError: there is no folder or no checkpoint of that name, the checkpoint is damaged or of another
                network, or the number of steps has changed where the schedules of the training do not allow it.
        """
        if self.folder is None:
            raise ValueError("resume needs the folder of a training, got none: pass Trainer(..., folder=...).")
        self.lock.acquire()
        try:
            return self._restore(self.folder, name)
        except BaseException:
            self.lock.release()
            raise

    def _restore(self, folder: Path, name: str | None) -> bool:
        found = checkpoints.find(folder / CHECKPOINTS, name)
        if found is None:
            return False
        tensors, about = checkpoints.read(folder / CHECKPOINTS, found)
        check_same(about.get("identity", {}), self.identity, str(folder))
        self._check_length(about.get("steps", self.steps), int(about["step"]))
        self._state.restore(tensors, about)
        positions = about.get("data") or []
        self.source.restore(positions[rank()] if len(positions) == ranks() else None)
        self.seconds, self.resumed_from = about["seconds"], found
        with writing(folder):
            on_first(lambda: log.cut_back(folder, self.earlier, self.stage, self.step))
        return True

    def _check_length(self, before: int, taken: int) -> None:
        """Refuse another number of steps where what was done so far depended on it."""
        if self.steps == before or not taken:
            return
        if self.steps < taken:
            raise ValueError(f"{taken:,} steps are taken already, got {self.steps:,} in all: give {taken:,} or more.")
        if why := self.fixed_length():
            raise ValueError(
                f"the number of steps cannot change from {before:,} to {self.steps:,}: {why}. Give {before:,} steps, "
                "or start another training from its weights."
            )

    def fixed_length(self) -> str | None:
        """Why the number of steps cannot be changed once training has begun; `None` if it can."""
        if self.optimiser.decay != "constant":
            return f"its learning rate falls along the {self.optimiser.decay} schedule to the last step"
        if self._state.has_moving_targets or self._state.objective.changes_with_progress():
            return "its objective has a schedule that runs to the last step"
        return None

    def __iter__(self) -> Generator[Step, None, None]:
        """Take the steps that are left, saving and logging as they are taken.

        Raises:
            ValueError: there is no finite gradient any more, the folder cannot be written, another process ended,
                another loop takes the steps, or the map has its EMA for weights.
        """
        if self._looping:
            raise ValueError("this training is in another loop already: end that one first, or make another Trainer.")
        with contextlib.ExitStack() as stack:
            self._looping = True
            stack.callback(setattr, self, "_looping", False)
            asked: Callable[[], str | None] = lambda: None  # noqa: E731
            if self.owns_folder:
                asked = stack.enter_context(signals(self.say))
                self.lock.acquire()
                stack.callback(self.lock.release)
            stack.enter_context(reporting_lost_process(self.folder))
            yield from self._steps(asked)

    def _begin_folder(self) -> None:
        """At step 0, delete the old log, or, in a later stage, save a checkpoint.

        A run that is killed before its next checkpoint resumes from that one.
        """
        if self.folder is None or self.resumed_from or self.step:
            return
        if self.earlier:
            return self.save()
        with writing(self.folder):
            if checkpoints.names(self.folder / CHECKPOINTS):
                raise ValueError(
                    f"{self.folder} has checkpoints of a training that has begun: call resume() before the loop, or "
                    "choose another folder."
                )
            path = self.folder / log.LOG
            on_first(lambda: path.unlink(missing_ok=True))

    def _steps(self, asked: Callable[[], str | None]) -> Iterator[Step]:
        state, settings, request = self._state, self.settings, Request()
        self.stopped = None
        if self.step < self.steps:
            self._refuse_averages()
        self._begin_folder()
        if self._own_trackers:
            self.trackers = self._open_trackers()
        before, begun = self.seconds + self._averaged_seconds, time.monotonic()
        options: dict[str, Any] = {"steps": self.steps, "seed": settings.seed, "device": self.placement.device}
        try:
            for step in train(state, self.source, self.optimiser, **options):
                self.seconds = time.monotonic() - begun + before - self._averaged_seconds
                self._record(step)
                # before the checkpoint, from which a run that is killed in between goes on
                if self.optimiser.ema_widths and step.number % settings.store_averages_every == 0:
                    self._store_averages(step.number)
                yield step
                self._refuse_averages()
                if request(self.stop() or asked() is not None):
                    self.stopped = asked() or "stop"
                last = step.number == self.steps and self.folder and not self.fixed_length()
                if self.stopped or last or step.number % settings.checkpoint_every == 0:
                    self.save()
                if self.stopped:
                    return
        except (KeyboardInterrupt, GeneratorExit):  # here, or in the body of the caller's loop
            self._save_at_break()
            raise
        finally:
            if self._own_trackers:
                self.trackers.close()

    def _save_at_break(self) -> None:
        """Save a checkpoint where the caller has left the loop; several processes may have left it at other steps."""
        if self.folder is None or self._finished or not self._state.consistent:
            return
        if not together():
            return self.save()
        self.say(
            f"the loop was left at step {self.step:,}; with several processes no checkpoint is saved there: call "
            "save() in every process before a break."
        )

    def _refuse_averages(self) -> None:
        """Refuse to take the weights of the map, where they are the EMA, for those in training."""
        if self._averaging:
            raise ValueError(
                "save() and steps of training are not possible inside `with averaged()`, where the map has the EMA for "
                "weights: leave the block first."
            )
        if self._finished:
            raise ValueError(
                f"finish() has replaced the map's weights by their EMA at step {self.step:,} of {self.steps:,}, so "
                "that no further step is possible: call finish() after the last step, or make another Trainer and "
                "resume()."
            )

    def _store_averages(self, step: int) -> None:
        if self.folder is not None:
            with writing(self.folder):
                averages.store(self.folder, self.stage, step, list(self._state.parameters), self._state.averages)

    def _record(self, step: Step) -> None:
        """Log a step where its turn has come; end after too many skipped ones."""
        state, due = self._state, step.number % self.settings.log_every == 0 or step.number == self.steps
        if state.checks_gradient_on_host or due:
            state.guard.read_norms()
            log.check_skipped_steps(self.settings.max_skipped_steps, self.stage, step, state, self.folder)
        if due:
            with writing(self.folder):
                self.logged = log.log(self.folder, self.stage, step, state, self.seconds)
            self.trackers.log(values_of(self.logged), self.steps_before + step.number)

    def _open_trackers(self) -> Trackers:
        if not self.settings.track:
            return Trackers({}, self.say)
        if self.folder is None:
            raise ValueError(f"track={self.settings.track} needs a folder, got none: pass folder=... or leave it out.")
        first = self.steps_before + self.step
        return open_trackers(self.settings.track, self.folder, self.identity, first=first, say=self.say)

    def save(self) -> None:
        """Save a checkpoint, if there is a folder; a state that is not finite raises an error instead.

        Raises:
            ValueError: a weight, an average or a moment is not finite, the map has its EMA for weights, or the
                checkpoint cannot be written.
        """
        self._refuse_averages()
        if self.folder is None:
            return
        state, settings, tensors = self._state, self.settings, self._state.tensors()
        if bad := [name for names in all_of(lambda: not_finite(tensors)) for name in names]:
            raise ValueError(
                f"the training state is not finite at step {state.step} of stage {self.stage} ({bad[0]}): lower "
                f"the optimiser's learning_rate or clip. {last_checkpoint(self.folder)}"
            )
        about = {"seconds": self.seconds, "steps": self.steps, **state.about(), "data": all_of(self.source.position)}
        about["identity"] = self.identity
        about |= {**log.versions(), "processes": ranks()}
        kept = {"keep": settings.keep_checkpoints, "keep_every": settings.keep_checkpoints_every}
        with writing(self.folder):
            checkpoints.save(self.folder / CHECKPOINTS, f"{self.stage}-{state.step:08}", tensors, about, **kept)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[FlowMap]:
        """The map with the EMA for weights, in evaluation mode, between two steps; each process calls this."""
        flow_map, begun = self._state.objective.flow_map, time.monotonic()
        self._averaging = True
        try:
            with self._state.averaged(), evaluating(flow_map):
                yield flow_map
        finally:
            self._averaging = False
            self._averaged_seconds += time.monotonic() - begun

    def finish(self) -> FlowMap:
        """Put the EMA into the map that was given, and write the other averages into the folder; each process calls it.

        Returns:
            The map.

        Raises:
            ValueError: its weights are not finite, or the folder cannot be written.
        """
        self._finished = True
        self._state.use_averages()
        self.flow_map.load_state_dict(self._state.weights())
        if bad := not_finite(self.flow_map.state_dict()):
            raise ValueError(
                f"the trained weights are not finite ({bad[0]}): lower the optimiser's learning_rate or clip. "
                f"{last_checkpoint(self.folder)}"
            )
        if self.folder is not None:
            with writing(self.folder):
                averages.finish(self.folder, self.stage, list(self._state.parameters), self._state.averages)
        self.lock.release()
        return self.flow_map

    @property
    def skipped(self) -> int:
        """Steps that were skipped, because their gradient was not finite."""
        self._state.guard.read_norms()
        return self._state.guard.skipped

    def clear(self) -> None:
        """Remove the checkpoints of a training that has ended.

        Those of `keep_checkpoints_every` stay and, where the training can be made longer, the last one.
        """
        if self.folder is not None:
            folder, last = self.folder / CHECKPOINTS, f"{self.stage}-{self.step:08}"
            kept = () if self.fixed_length() else (last,)
            on_first(lambda: checkpoints.clear(folder, self.settings.keep_checkpoints_every, kept))


def _check_arguments(objective: Any, steps: Any, optimiser: Optimiser, settings: Settings) -> None:
    """Refuse what cannot be trained, in the words of a Python caller."""
    if not isinstance(objective, Objective):
        raise ValueError(
            f"a training needs an objective, got {type(objective).__name__}: build one from a map, such as "
            "fm.methods.lsd(flow_map)."
        )
    if any(value.is_meta for value in objective.parameters()):
        raise ValueError("the network is on the meta device, without values: move it by to_empty, load its weights.")
    if not any(value.requires_grad for value in objective.parameters()):
        raise ValueError("the objective has no parameter to train: all are frozen, or its network has none.")
    if type(steps) is not int or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}.")
    check(optimiser, "")
    check(settings, "")


def _made(folder: str | Path) -> Path:
    """The folder, made if it is missing; its path is absolute, wherever the program goes.

    Raises:
        ValueError: it cannot be made.
    """
    if not str(folder):
        raise ValueError("folder is empty: give a name, or None to write nothing.")
    path = Path(folder).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be made ({error.strerror or error}): choose another folder.") from None
    return path
