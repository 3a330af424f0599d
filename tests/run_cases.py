"""Training made small: an objective, a recipe, and runs that are stopped in whatever way."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
from collections.abc import Container, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowmaps import methods
from flowmaps.data import Board, Source
from flowmaps.maps import AverageVelocity
from flowmaps.nn import MLP
from flowmaps.objectives import Objective
from flowmaps.runs.recipes import Evaluation, Network, Optimiser, Recipe
from flowmaps.runs.run import Run
from flowmaps.storage import checkpoints
from flowmaps.training.failures import CHECKPOINTS
from flowmaps.training.state import State

SETTINGS = Optimiser(batch=17, learning_rate=1e-2, warmup=3, ema_decay=0.9)
TINY = Recipe(
    name="tiny",
    data="checkerboard",
    steps=5,
    teacher_steps=4,
    compile=False,
    device="cpu",
    checkpoint_every=3,
    log_every=2,
    network=Network(width=8, depth=2),
    optimiser=SETTINGS,
    evaluation=Evaluation(samples=100, points=10),
)


class Spoiled(Board):
    """Points of which one is NaN in some batches, counted from 1."""

    def __init__(self, batches: Container[int]) -> None:
        super().__init__()
        self.batches, self.taken = batches, 0

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        x, labels = super().sample(number, generator)
        self.taken += 1
        if self.taken in self.batches:
            x[number // 2, 0].fill_(math.nan)  # a write of a number would wait for the device
        return x, labels


def objective(seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    return methods.lsd(AverageVelocity(MLP(2, width=8, depth=2)))


def values(state: State) -> list[Tensor]:
    """The parameters as they are now."""
    return [p.detach().clone() for p in state.parameters.values()]


def everything(state: State) -> dict[str, Tensor]:
    """All that a checkpoint would keep, as it is now."""
    return {name: value.clone() for name, value in state.tensors().items()}


def equal(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def weights(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("weights.safetensors"))}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def log(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def saved(folder: Path) -> list[str]:
    """Names of the checkpoints of a run."""
    return checkpoints.names(folder / CHECKPOINTS)


def open_run(recipe: Recipe, folder: Path, resume: bool = False, resume_from: str | None = None) -> Run:
    return Run.open(recipe, folder, resume=resume, resume_from=resume_from, say=lambda text: None)


def kill(run: Run, after: int) -> None:
    """Leave a run as it would be if its process was killed after some steps: nothing more is written."""
    folder = run.folder.path
    left = folder.with_name(f"{folder.name}-left")
    with contextlib.closing(run.train()) as steps:
        for _ in range(after):
            next(steps)
        shutil.copytree(folder, left)
    shutil.rmtree(folder)
    left.rename(folder)


def interrupt(run: Run, after: int) -> None:
    """Interrupt a run at the keyboard, within the step that follows some steps."""
    source, count = run.source, itertools.count()

    class Interrupting(Source):
        units = source.units

        def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
            if next(count) == after:
                raise KeyboardInterrupt
            return source.sample(number, generator)

        def to(self, device: torch.device | str) -> Source:
            return self

    run.source = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        list(run.train())
