"""A run and its folder: train the stages of a recipe, checkpoint, log, go on after an interruption.

config.json  log.jsonl  weights.safetensors  metrics.json  report.html  *.png     and while it trains: state.safetensors
teacher/ (or strip/): the map as an earlier stage left it
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, plans, recipes
from .data import Source, is_file, open_data
from .files import write_atomically
from .maps import FlowMap, Frozen
from .recipes import Recipe
from .shapes import Field
from .train import State, Step, begin, generator, train

STATE, LOG = "state.safetensors", "log.jsonl"
FREE = ("device", "compile", "log_every", "checkpoint_every", "evaluation")  # what may differ on resuming


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
    def open(cls, recipe: Recipe, folder: Path, *, resume: bool = False, say: Callable[[str], None] = print) -> Run:
        """Check everything and make the folder.

        Raises:
            ValueError: the recipe cannot run, the folder exists already, or there is nothing to resume.
        """
        plans.check(recipe)
        device = pick_device(recipe.device)
        source = open_data(recipe.data, recipe.optimiser.batch)
        if is_file(recipe.data):  # found again from wherever the run is sampled
            recipe = dataclasses.replace(recipe, data=str(Path(recipe.data).resolve()))
        if resume:
            check_resumable(folder, recipe)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} already exists and is not empty: choose another --out, or go on with --resume.")
        flow_map = plans.new_map(recipe, source.dim, source.classes).to(device)
        described = describe(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            card = {"format": checkpoint.FORMAT, **described}
            write_atomically(folder / checkpoint.CARD, json.dumps(card, indent=2) + "\n")
        return cls(recipe, folder, source, flow_map, described, say=say)

    def train(self) -> Iterator[tuple[plans.Stage, Step]]:
        """Train all stages, saving as it goes; each step that is taken is yielded with its stage."""
        stages = plans.stages(self.recipe)
        tensors, about = self._interrupted()
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
        evaluate = compiled(state, self.say) if recipe.compile else None
        device = pick_device(recipe.device)
        seed = int(generator(recipe.seed, number).initial_seed())
        before, begun = self.seconds, time.monotonic()
        settings = {"steps": stage.steps, "seed": seed, "device": device, "evaluate": evaluate}
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


def can_compile() -> bool:
    """Whether there is the C++ compiler that torch.compile needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compiled(state: State, say: Callable[[str], None]) -> Callable[..., Any] | None:
    """The compiled objective, or `None` with a word where there is no compiler."""
    if not can_compile():
        say("no C++ compiler found: training without torch.compile, at about half the speed.")
        return None
    return torch.compile(state.objective.evaluate, dynamic=False)


def pick_device(name: str) -> torch.device:
    """The device that a recipe names.

    Raises:
        ValueError: there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"--device {name} is not there: this machine's torch {torch.__version__} has cpu"
                         + (", cuda." if torch.cuda.is_available() else " only.")) from None  # fmt: skip
    return device


def check_resumable(folder: Path, recipe: Recipe) -> None:
    """Refuse to go on with another recipe than the run began with.

    Raises:
        ValueError: there is no run, it has finished, or its recipe differs.
    """
    card = checkpoint.read_card(folder)
    if (folder / checkpoint.WEIGHTS).exists() and "map" in card:  # the card is the last to be written
        raise ValueError(f"{folder} has finished training: there is nothing to resume; see flowmaps evaluate {folder}.")
    old, new = _options(recipes.from_dict(card.get("recipe"))), _options(recipe)
    for name, value in new.items():
        if name.split(".")[0] not in FREE and old[name] != value:
            option = name.replace("_", "-")
            raise ValueError(
                f"{folder} was begun with --{option} {old[name]}, got {value}: resume with the options it began with."
            )
    check_data(card, recipe)


def check_data(card: dict[str, Any], recipe: Recipe) -> None:
    """Refuse a data file other than the one that a run began with.

    Raises:
        ValueError: its content has changed.
    """
    if card.get("data_sha256") not in (None, describe(recipe)["data_sha256"]):
        raise ValueError(
            f"{recipe.data} has changed since the run began: restore it, or train again into another --out."
        )


def describe(recipe: Recipe) -> dict[str, Any]:
    """What a run's card says of its recipe, and of the file that its data are read from."""
    checksum = hashlib.sha256(Path(recipe.data).read_bytes()).hexdigest() if is_file(recipe.data) else None
    return {"recipe": dataclasses.asdict(recipe), "data_sha256": checksum}


def _options(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe as options, `optimiser.rate` and the like."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(recipe).items():
        flat |= {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _not_finite(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in tensors.items() if not bool(value.isfinite().all())]


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run.

    Raises:
        ValueError: the folder is no run, or of another version.
    """
    card = checkpoint.read_card(folder)
    if card.get("recipe") is None:
        raise ValueError(
            f"{folder}/config.json has no recipe that this version reads: it holds a map saved by flowmaps.save, not a "
            f"run; read it with flowmaps.load."
        )
    return recipes.from_dict(card["recipe"])


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; a last line cut short by a crash is left out."""
    lines = []
    if (folder / LOG).exists():
        for line in (folder / LOG).read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return lines


def load_run(folder: Path) -> tuple[Recipe, FlowMap, FlowMap | None, Source]:
    """A finished run: recipe, map, its teacher (or `None`) and data.

    Raises:
        ValueError: as in `checkpoint.load`.
    """
    recipe = read_recipe(folder)
    try:
        device = pick_device(recipe.device)
    except ValueError:  # trained on another machine
        device = pick_device("auto")
    flow_map = checkpoint.load(folder).to(device)
    teacher = None
    if recipe.method in plans.DISTILLED:
        teacher = checkpoint.load(folder / "teacher").to(device)
    source = open_data(recipe.data)
    check_data(checkpoint.read_card(folder), recipe)
    return recipe, flow_map, teacher, source
