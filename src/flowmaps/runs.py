"""A run and its folder: train the stages of a recipe, checkpoint, log, go on after an interruption.

config.json  log.jsonl  weights.safetensors  metrics.json  report.html  *.png     and while it trains: state.safetensors
teacher/ (or strip/): the map as an earlier stage left it
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, initial, plans
from .data import Source, resolve
from .devices import can_compile, pick_device
from .files import write_atomically
from .folders import LOG, check_resumable, describe, given_teacher, read_log, source_of
from .maps import FlowMap, Frozen
from .recipes import ImageRecipe, Recipe
from .shapes import Field
from .train import State, Step, begin, generator, train

STATE = "state.safetensors"


@dataclass
class Run:
    """A run in progress; `train` is a generator of its logged steps."""

    recipe: Recipe
    folder: Path
    source: Source
    flow_map: FlowMap
    described: dict[str, Any]
    teacher: Field | None = None
    seconds: float = 0.0
    say: Callable[[str], None] = field(default=print)

    @classmethod
    def open(cls, recipe: Recipe, folder: Path, *, resume: bool = False, say: Callable[[str], None] = print,
             watch: Callable[[str, float], None] | None = None) -> Run:  # fmt: skip
        """Check everything and make the folder.

        Raises:
            ValueError: the recipe cannot run, the folder exists already, or there is nothing to resume.
        """
        plans.check(recipe)
        device = pick_device(recipe.device)
        if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} already exists and is not empty: choose another --out, or go on with --resume.")
        recipe = _from_anywhere(recipe)
        source, described = source_of(recipe, watch=watch).to(device), describe(recipe, watch)
        if resume:
            check_resumable(folder, recipe, described)
        flow_map, teacher = initial.new_map(recipe, source.shape, source.classes).to(device), None
        if recipe.teacher and not resume:
            teacher = given_teacher(recipe, source, described)
            initial.adopt(flow_map, teacher)
        folder.mkdir(parents=True, exist_ok=True)
        if teacher is not None:
            kept, path = {"teacher_of": recipe.teacher}, plans.interpolant(recipe)
            checkpoint.save(teacher, folder / "teacher", interpolant=path, extra=kept, overwrite=True)
        if not resume:
            card = {"format": checkpoint.FORMAT, **described}
            write_atomically(folder / checkpoint.CARD, json.dumps(card, indent=2) + "\n")
        return cls(recipe, folder, source, flow_map, described, say=say)

    def train(self) -> Generator[tuple[plans.Stage, Step], None, None]:
        """Train all stages, saving as it goes; each step that is taken is yielded with its stage."""
        stages = plans.stages(self.recipe)
        tensors, about = self._interrupted()
        if self.recipe.teacher:
            self._take_teacher()
        for number, stage in enumerate(stages):
            last = number == len(stages) - 1
            if number < about["stage"]:
                self._adopt(checkpoint.load(self.folder / stage.name), stage)
                continue
            state = self._begin(stage)
            if tensors is not None and number == about["stage"]:
                state.restore(tensors, about["step"])
            elif number:
                self._checkpoint(number, state)
            yield from self._steps(number, stage, state)
            state.use_averages()
            where = self.folder if last else self.folder / stage.name
            self._save(where)
            if not last:
                self._adopt(self.flow_map, stage)
        (self.folder / STATE).unlink(missing_ok=True)

    def _begin(self, stage: plans.Stage) -> State:
        torch.manual_seed(self.recipe.seed)
        objective = stage.build(self.flow_map, self.teacher).to(pick_device(self.recipe.device))
        return begin(objective, plans.optimiser(self.recipe, stage.name))

    def _steps(self, number: int, stage: plans.Stage, state: State) -> Iterator[tuple[plans.Stage, Step]]:
        recipe = self.recipe
        device = pick_device(recipe.device)
        # on a CPU it takes minutes to compile a network of images, which is no faster afterwards
        fast = recipe.compile and not (device.type == "cpu" and isinstance(recipe, ImageRecipe))
        evaluate = compiled(state, self.say) if fast else None
        seed = int(generator(recipe.seed, number).initial_seed())
        before, begun = self.seconds, time.monotonic()
        settings = {"steps": stage.steps, "seed": seed, "device": device, "evaluate": evaluate}
        settings["precision"] = getattr(torch, recipe.precision)
        try:
            for step in train(state, self.source, plans.optimiser(recipe, stage.name), **settings):
                self.seconds = before + time.monotonic() - begun
                if step.number % recipe.log_every == 0 or step.number == stage.steps:
                    self._log(stage, step)
                yield stage, step
                if step.number % recipe.checkpoint_every == 0:
                    self._checkpoint(number, state)
        except (KeyboardInterrupt, GeneratorExit):  # here, or in the body of the caller's loop
            if state.whole:
                self._checkpoint(number, state)
            raise

    def _log(self, stage: plans.Stage, step: Step) -> None:
        parts = {name: part.mean().item() for name, part in step.loss.parts.items()}
        loss = step.loss.value.item()
        bad = [name for name, value in parts.items() if not math.isfinite(value)]
        if bad or not math.isfinite(loss):
            raise ValueError(
                f"the loss is not finite at step {step.number} of stage {stage.name} ({', '.join(bad) or 'weight'}): "
                f"lower --optimiser.rate or --optimiser.clip; the last checkpoint in {self.folder} is untouched."
            )
        line = {"stage": stage.name, "step": step.number, "loss": loss, **parts, "rate": step.rate}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"seconds": round(self.seconds, 2)}) + "\n")

    def _checkpoint(self, number: int, state: State) -> None:
        """Save the training state, unless it has gone bad: then the last good one stays."""
        about, tensors = {"stage": number, "step": state.step, "seconds": self.seconds}, state.tensors()
        if bad := _not_finite(tensors):
            raise ValueError(
                f"the training state is not finite at step {state.step} ({bad[0]}): lower --optimiser.rate or "
                f"--optimiser.clip; the last checkpoint in {self.folder} is untouched."
            )
        checkpoint.save_tensors(self.folder / STATE, tensors, about)

    def _interrupted(self) -> tuple[dict[str, torch.Tensor] | None, dict[str, Any]]:
        """The training state to go on from, and the log cut back to it."""
        fresh = {"stage": 0, "step": 0, "seconds": 0.0}
        if not (self.folder / STATE).exists():
            (self.folder / LOG).unlink(missing_ok=True)
            return None, fresh
        tensors, about = checkpoint.load_tensors(self.folder / STATE)
        self.seconds = about["seconds"]
        names = [stage.name for stage in plans.stages(self.recipe)]
        lines = [
            line for line in read_log(self.folder)
            if (names.index(line["stage"]), line["step"]) <= (about["stage"], about["step"])
        ]  # fmt: skip
        write_atomically(self.folder / LOG, "".join(json.dumps(line) + "\n" for line in lines))
        return tensors, about

    def _take_teacher(self) -> None:
        """Start from the teacher that was given, of which the folder has a copy."""
        teacher = checkpoint.load(self.folder / "teacher").to(pick_device(self.recipe.device))
        initial.adopt(self.flow_map, teacher)
        self.teacher = Frozen(teacher).velocity

    def _adopt(self, flow_map: FlowMap, stage: plans.Stage) -> None:
        """Start the next stage from what `stage` left: its weights, and where it was the teacher its velocity."""
        self.flow_map.load_state_dict(flow_map.state_dict())
        if stage.name == "teacher":
            self.teacher = Frozen(self.flow_map).velocity

    def _save(self, where: Path) -> None:
        if bad := _not_finite(self.flow_map.state_dict()):
            raise ValueError(
                f"the trained weights are not finite ({bad[0]}): lower --optimiser.rate or --optimiser.clip."
            )
        extra: dict[str, Any] = {**self.described, "seconds": round(self.seconds, 1)}
        extra["units"] = dataclasses.asdict(self.source.units)
        path = plans.interpolant(self.recipe)
        checkpoint.save(self.flow_map, where, interpolant=path, extra=extra, overwrite=True)


def _from_anywhere(recipe: Recipe) -> Recipe:
    """The recipe with its paths absolute, to be found again from wherever the run is resumed, measured or sampled."""
    teacher = str(Path(recipe.teacher).resolve()) if recipe.teacher else ""
    return dataclasses.replace(recipe, data=resolve(recipe.data), teacher=teacher)


def compiled(state: State, say: Callable[[str], None]) -> Callable[..., Any] | None:
    """The compiled objective, or `None` with a word where there is no compiler."""
    if not can_compile():
        say("no C++ compiler found: training without torch.compile, at about half the speed.")
        return None
    return torch.compile(state.objective.evaluate, dynamic=False)


def _not_finite(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in tensors.items() if not bool(value.isfinite().all())]
