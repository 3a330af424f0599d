"""The training loop: a generator of steps. The body of the caller's `for` loop takes the place of callbacks.

The loop is the same on one device and on many: DDP or FSDP2 wraps the module whose forward is the whole loss, and the
random draws of a process are a function of (seed, rank, step).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..objectives import Loss
from ..shapes import Condition
from ..system.processes import rank, ranks
from ..system.seeds import generator, seeded_globally
from ..velocities import RandomInputs
from .optimisers import Optimiser, schedule
from .state import State

DROPOUT, RANK = 1, 2  # streams of the seed


class Batches(Protocol):
    """What training draws its batches from."""

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """A batch `(B, *shape)` of `number` rows drawn with `generator`, and its condition or `None`."""
        ...


class Step(NamedTuple):
    """A finished training step; reading one of its tensors synchronises with the device.

    Attributes:
        number: from 1.
        loss: the loss and its parts, of this process's rows.
        rate: learning rate of the step.
        progress: share of training done before the step, from 0 to 1.
        norm: norm of the gradient before clipping; if it is not finite, the step did not change the weights.
        draw: the random inputs at which the loss was evaluated.
    """

    number: int
    loss: Loss
    rate: float
    progress: float
    norm: Tensor
    draw: RandomInputs


def train(
    state: State,
    source: Batches,
    optimiser: Optimiser,
    *,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    budget: float | None = None,
    clock: Callable[[], float] | None = None,
) -> Iterator[Step]:
    """Train, one `Step` at a time, until `steps` are taken or `budget` seconds have passed.

    Args:
        state: from `begin`, or restored; changed in place.
        source: the data, on the device.
        optimiser: its settings.
        steps: number of the last step; the rate decays towards it.
        seed: of all draws; step k draws the same whether or not training was interrupted before.
        device: where the objective is.
        budget: limit in seconds of `clock`, of one process; progress is then the greater of the fraction of steps and
            the fraction of time used.
        clock: wall-clock time in seconds unless given, or `time.process_time`, CPU time of this process.
    """
    device, rows, clock = torch.device(device), optimiser.batch // ranks(), clock or time.monotonic
    own = seed if rank() == 0 else generator(seed, RANK, rank()).initial_seed()
    begun, before = clock(), state.step / steps
    while state.step < steps:
        progress = state.step / steps
        if budget is not None:
            progress = max(progress, (clock() - begun) / budget)
            if progress >= 1:
                return
        source_of_noise = generator(own, state.step, device=device)
        # dropout has no generator of its own; the loop's body has its own stream back when it runs
        with seeded_globally(device, generator(own, state.step, DROPOUT).initial_seed()):
            x1, cond = source.sample(rows, source_of_noise)
            state.zero_grad()
            with torch.enable_grad():
                when = {"progress": progress, "step": state.step}
                draw = state.objective.draw(x1, cond=cond, generator=source_of_noise, **when)
                loss = state.accumulate_gradient(draw)
            rate = schedule(optimiser, state.step, progress)
            state.consistent = False
            norm = state.update(rate, optimiser.clip)
        state.step += 1
        state.averages.update(list(state.parameters.values()), state.step)
        now = max(state.step / steps, progress)
        if state.has_moving_targets:
            state.objective.step(now, before=before)
        before, state.consistent = now, True
        state.guard.see(state.step, norm)
        yield Step(state.step, loss, rate, progress, norm, draw)
