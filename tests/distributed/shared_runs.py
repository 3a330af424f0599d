"""What a process does in the tests of runs: it opens one and trains, to its end or until it is to stop."""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from shared_cases import IMAGES, PLANE, Noise

from flowmaps.runs import precision
from flowmaps.runs.prepare import prepare
from flowmaps.runs.recipes import Evaluation, Optimiser, Recipe
from flowmaps.runs.run import Run
from flowmaps.storage import checkpoints
from flowmaps.system import processes
from flowmaps.system.processes import full
from flowmaps.training.state import State

RUN: Recipe = replace(
    PLANE,
    name="run",
    steps=90,
    teacher_steps=20,
    checkpoint_every=50,
    optimiser=Optimiser(batch=64, learning_rate=3e-3, warmup=10, ema_decay=0.9, ema_decays=(0.5,), ema_widths=(0.1,)),
    evaluation=Evaluation(samples=100, points=10, steps=(1,)),
)

PICTURES: Recipe = replace(
    IMAGES,
    name="pictures",
    method="progressive_distillation",
    steps=8,
    teacher_steps=2,
    optimiser=replace(RUN.optimiser, batch=24),
)
"""A U-Net, and a target that follows it."""


@dataclass
class Told:
    """What a process tells of a run.

    Attributes:
        taken: stage and number of the steps that it took.
        error: by which it was refused, in words.
        seconds: that it took.
        last: the tensors of the state when it stopped.
        restored: those that it went on from.
        stopped: whether it was asked to stop.
        averaged: the greatest difference of the map within `Run.averaged` from the averages, and of the weights after
            it from those before.
    """

    taken: list[tuple[str, int]] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0
    last: dict[str, np.ndarray] = field(default_factory=dict)
    restored: dict[str, np.ndarray] = field(default_factory=dict)
    stopped: bool = False
    averaged: tuple[float, float] = (math.nan, math.nan)


class Spoilt(Noise):
    """Data that are not finite in the last process, after some steps."""

    def __init__(self, good: int) -> None:
        super().__init__((2,), dtype=torch.float32)
        self.left = good

    def sample(self, number: int, generator: torch.Generator) -> tuple[torch.Tensor, None]:
        x, _ = super().sample(number, generator)
        self.left -= 1
        return x * math.nan if self.left < 0 and processes.rank() == processes.ranks() - 1 else x, None


def run(
    recipe: Recipe,
    folder: Path,
    resume: bool = False,
    stop: tuple[str, int] | None = None,
    good: int | None = None,
) -> Told:
    """Open a run and train it.

    Args:
        recipe: of the run.
        folder: of the run.
        resume: go on.
        stop: the step after which the last process asks to stop.
        good: steps after which its data are not finite any more.
    """
    told, begun = Told(), time.monotonic()
    restore = State.restore

    def restoring(state: State, *given) -> None:
        restore(state, *given)
        told.restored = _arrays(state)

    State.restore = restoring  # type: ignore[method-assign]
    try:
        opened = Run.open(recipe, folder, resume=resume, say=lambda words: None)
        opened.source = opened.source if good is None else Spoilt(good)
        asked, last_of_all = [False], processes.rank() == processes.ranks() - 1
        for stage, step in opened.train(lambda: asked[0]):
            told.taken.append((stage.name, step.number))
            if told.taken[-1] == ("map", 5):
                told.averaged = _averaged(opened)
            asked[0] = asked[0] or (last_of_all and (stage.name, step.number) == stop)
        assert opened.trainer is not None
        told.stopped = opened.trainer.stopped
        told.last = _arrays(opened.trainer._state)
    except ValueError as error:
        told.error = str(error)
    finally:
        State.restore = restore  # type: ignore[method-assign]
    told.seconds = time.monotonic() - begun
    return told


def _averaged(opened: Run) -> tuple[float, float]:
    """As `Told` has it; the map is used, too, which takes weights that are all here."""
    assert opened.trainer is not None
    state = opened.trainer._state
    before, main = _arrays(state), [full(value) for value in state.averages.main]
    with opened.trainer.averaged() as flow_map:
        x, t = torch.zeros(3, *opened.source.shape), torch.full((3,), 0.5)
        assert flow_map(x, t, t + 0.1).shape == x.shape
        pairs = zip(flow_map.parameters(), main, strict=True)
        first = max(float((value - average).detach().abs().max()) for value, average in pairs)
    after = _arrays(state)
    return first, max(float(np.abs(after[name] - value).max()) for name, value in before.items() if value.size)


def _arrays(state: State) -> dict[str, np.ndarray]:
    return {name: full(value).detach().numpy().copy() for name, value in state.tensors().items()}


def saved(folder: Path) -> list[str]:
    """The checkpoints of a run."""
    return checkpoints.names(folder / "checkpoints")


def chosen() -> tuple[str, str]:
    """What --precision auto chooses, and says, where the two processes would choose otherwise."""
    slow = torch.bfloat16 if processes.rank() == 0 else torch.float32
    with patch.object(precision, "_step", lambda objective, inputs, kind: 2.0 if kind == slow else 1.0):
        ready = prepare(replace(RUN, precision="auto"), None)
    return ready.plan.recipe.precision, ready.chosen


def command(words: list[str], out: Path) -> int:
    """`flowmaps` with these words, what it prints into the files `out`-RANK.out and .err: its exit code."""
    name = f"{out}-{os.environ.get('RANK', '0')}"
    with (
        open(f"{name}.out", "w", buffering=1) as said,
        open(f"{name}.err", "w", buffering=1) as failed,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(failed),
    ):
        from flowmaps.cli import main as cli  # which asks for the number of its process when it is imported

        try:
            cli.main(words)
        except SystemExit as end:
            return int(end.code or 0)
    return 0
