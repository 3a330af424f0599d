"""`fit`: train an objective on data in one call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..maps import FlowMap
from ..objectives import Objective
from ..storage import cards, models
from ..system.names import choose
from ..system.processes import on_first
from .distributed import start
from .failures import writing
from .identity import check_same
from .optimisers import Optimiser
from .settings import Settings
from .trainer import Trainer

REPORT_SECONDS = 10.0
"""Time between lines of progress."""
DEFAULTS: dict[str, Any] = {"learning_rate": 1e-3, "decay": "constant"}
"""Settings of the optimiser that differ from those of the recipes: a constant rate lets a training be made longer."""


def fit(
    objective: Objective,
    data: Any,
    folder: str | Path | None = None,
    *,
    steps: int,
    batch: int = 256,
    checkpoint_every: int = 1_000,
    resume_from: str | None = None,
    stop: Callable[[], bool] | None = None,
    device: str = "auto",
    fsdp: bool = False,
    find_unused_parameters: bool = False,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> FlowMap:
    """Train the map of an objective on data; with a folder, resume an interrupted call bit for bit.

    Args:
        objective: such as `fm.methods.lsd(flow_map)`, of a map of any `nn.Module` of `(x, s, t, cond)`.
        data: rows `(N, *shape)`; a pair of rows and conditions; a `Source`; or an iterable of batches (see `Trainer`).
        folder: for checkpoints, log.jsonl, and in the end the map (`fm.load(folder)`); nothing is written unless given.
        steps: optimiser steps in all. A later call may give more, if the rate is constant and the objective has no
            schedule.
        batch: rows of a step, over all processes; an iterable has batch sizes of its own.
        checkpoint_every: steps between checkpoints.
        resume_from: name of the checkpoint to go on from, or `previous`; the last one unless given.
        stop: called after each step; when it returns true, a checkpoint is saved and `fit` returns.
        device: cpu, cuda, cuda:1, mps, or auto: CUDA if there is a GPU, else the CPU.
        fsdp: under a launcher of several processes, FSDP2 in the place of DDP.
        find_unused_parameters: for DDP, where a network has weights that get no gradient in some step.
        say: prints a line.
        settings: further fields of `flowmaps.training.Optimiser` and `flowmaps.training.Settings` by name, such as the
            learning rate, the decay of the EMA, gradient accumulation, `precision`, `compile`, `seed`, `track`.

    Returns:
        The map of the objective: with the EMA for weights, in evaluation mode, if all steps are taken.

    Raises:
        ValueError: an unknown setting, data that do not suit the objective, a folder that another process writes into,
            or a training that cannot go on.
    """
    given = {**DEFAULTS, **settings, "batch": batch, "checkpoint_every": checkpoint_every}
    optimiser, others = _split(given)
    trainer = Trainer(
        objective,
        data,
        folder,
        steps=steps,
        optimiser=optimiser,
        settings=others,
        placement=start(device, shard=fsdp, find_unused_parameters=find_unused_parameters),
        stop=stop or (lambda: False),
        say=say,
    )
    if resume_from is not None and folder is None:
        raise ValueError(f"{resume_from=} needs the folder of a training, got none: pass folder=... or leave it out.")
    with trainer.lock.kept():  # until the map is written
        return _fitted(trainer, resume_from)


def _fitted(trainer: Trainer, resume_from: str | None) -> FlowMap:
    """The map after the steps that are left, or as far as training came."""
    folder, say = trainer.folder, trainer.say
    if folder is not None:
        card = _finished(folder)
        if card and card["trained_steps"] == trainer.steps and resume_from is None:
            return _reloaded(trainer, folder, card)
        if trainer.resume(resume_from):
            say(f"going on from {trainer.resumed_from} in {folder}")
        elif card:
            return _reloaded(trainer, folder, card)
    _run(trainer, say)
    if trainer.stopped:
        again = "call fit again to go on" if folder else "nothing is kept, because no folder was given"
        say(f"stopped after {trainer.step:,} of {trainer.steps:,} steps ({trainer.stopped}): {again}.")
        return trainer.flow_map
    if trainer.skipped:
        say(f"{trainer.skipped:,} of {trainer.steps:,} steps were skipped: their gradient was not finite.")
    flow_map = trainer.finish().eval()
    if folder is not None:
        _save(trainer, folder)
        trainer.clear()
    return flow_map


def _split(given: dict[str, Any]) -> tuple[Optimiser, Settings]:
    """The settings by what they belong to; lists as tuples."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    of_optimiser, others = ({field.name: kind for field in fields(kind)} for kind in (Optimiser, Settings))
    for name in given:
        choose("setting", name, dict(sorted({**of_optimiser, **others}.items())))
    return (
        Optimiser(**{name: value for name, value in given.items() if name in of_optimiser}),
        Settings(**{name: value for name, value in given.items() if name in others}),
    )


def _run(trainer: Trainer, say: Callable[[str], None]) -> None:
    """Take the steps, with a line of progress now and then."""
    begun = spoken = time.monotonic()
    first = trainer.step
    for step in trainer:
        now = time.monotonic()
        if now - spoken > REPORT_SECONDS:
            spoken, pace = now, (step.number - first) / (now - begun)
            left = (trainer.steps - step.number) / pace
            say(f"step {step.number:,} of {trainer.steps:,}: loss {float(step.loss.value):.4g}, {left:.0f} s left")


def _finished(folder: Path) -> dict[str, Any]:
    """The card of a training that has ended in this folder; empty where none has.

    Raises:
        ValueError: the folder is that of something else.
    """
    if not (folder / models.CARD).exists():
        return {}
    card = cards.read(folder)
    if "identity" not in card:
        raise ValueError(f"{folder} holds a {models.CARD} that fit did not write: choose another folder.")
    return card


def _reloaded(trainer: Trainer, folder: Path, card: dict[str, Any]) -> FlowMap:
    """The map of a training that has ended and keeps no checkpoint."""
    taken = card["trained_steps"]
    check_same(card["identity"], trainer.identity, str(folder))
    if trainer.steps != taken:
        why = trainer.fixed_length() or "its last checkpoint was removed"
        raise ValueError(
            f"{folder} has a training of {taken:,} steps, which cannot change to {trainer.steps:,}: {why}. Train "
            "into another folder, starting from its weights."
        )
    cards.load_weights(trainer.flow_map, models.read_weights(folder / models.WEIGHTS, card.get("sha256")))
    return trainer.flow_map.eval()


def _save(trainer: Trainer, folder: Path) -> None:
    """Write the map into the folder; of a map that `fm.load` cannot build its weights alone."""
    flow_map, extra = trainer.flow_map, {"trained_steps": trainer.steps, "identity": trainer.identity}

    def write() -> None:
        try:
            models.save(flow_map, folder, interpolant=trainer.objective.interpolant, extra=extra, overwrite=True)
        except cards.NotSaved as error:
            models.save_weights(flow_map, folder, extra)
            trainer.say(f"{folder} has only the weights, for load_state_dict; fm.load cannot rebuild the map: {error}")

    with writing(folder):
        on_first(write)
