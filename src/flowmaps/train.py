"""The training loop: one generator, read from top to bottom. The body of the caller's `for` is the hook."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Source
from .objectives import Loss, Objective
from .recipes import Optimiser
from .velocities import Draw

DROPOUT = 1  # stream of the seed of a step


@dataclass
class State:
    """What training carries from step to step, and all that a checkpoint needs.

    Attributes:
        objective: the objective, its map within.
        optimiser: the torch optimiser.
        averages: moving averages of the trained parameters, in their order.
        step: steps taken.
        begun: the step at which the optimiser's moments began; the rate warms up from there.
        whole: false while a step is half taken, when the rest does not belong together.
    """

    objective: Objective
    optimiser: torch.optim.Optimizer
    averages: list[Tensor]
    step: int = 0
    begun: int = 0
    whole: bool = True

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters."""
        return trained(self.objective)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors."""
        named = {f"parameter.{k}": p.detach() for k, p in enumerate(self.parameters)}
        named |= {f"average.{k}": a for k, a in enumerate(self.averages)}
        named |= {f"target.{k}": value for k, value in enumerate(self._targets())}
        for k, values in self.optimiser.state_dict()["state"].items():
            named |= {f"optimiser.{k}.{name}": value for name, value in values.items()}
        return {name: value.contiguous() for name, value in named.items()}

    def _targets(self) -> list[Tensor]:
        """The weights of the objective's targets that follow the map."""
        return [value for target in self.objective.followers() for value in target.state_dict().values()]

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take over what `tensors` gave; without the optimiser's moments they start anew, and the rate with them.

        Raises:
            ValueError: they belong to another network.
        """
        try:
            with torch.no_grad():
                for k, (parameter, average) in enumerate(zip(self.parameters, self.averages, strict=True)):
                    parameter.copy_(tensors[f"parameter.{k}"])
                    average.copy_(tensors[f"average.{k}"])
                for k, value in enumerate(self._targets()):
                    value.copy_(tensors[f"target.{k}"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint is of another network ({error}): resume with the recipe it began with."
            ) from None
        parameters = dict(enumerate(self.parameters))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = _laid_out(value, parameters.get(int(index)))
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.step = step
        self.begun = step - max((int(values["step"]) for values in state.values()), default=0)  # Adam's own count

    @torch.no_grad()
    def use_averages(self) -> None:
        """Put the moving averages into the map."""
        torch._foreach_copy_(self.parameters, self.averages)  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class Step:
    """A step that was taken: its number from 1, the loss, and its rate. Reading the loss waits for the device."""

    number: int
    loss: Loss
    rate: float
    progress: float


def _laid_out(value: Tensor, parameter: Tensor | None) -> Tensor:
    """A moment of Adam in the memory format of its parameter, which files do not keep and the fused step relies on."""
    if parameter is None or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter).copy_(value)


def trained(objective: Objective) -> list[Tensor]:
    """The parameters that take gradients."""
    return [p for p in objective.parameters() if p.requires_grad]


def begin(objective: Objective, settings: Optimiser) -> State:
    """A fresh state: Adam (fused), averages at the weights."""
    parameters = trained(objective)
    optimiser = torch.optim.Adam(parameters, lr=settings.rate, betas=(0.9, settings.beta2), fused=True)
    return State(objective, optimiser, [p.detach().clone() for p in parameters])


def generator(seed: int, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of the seed and the numbers, such as (stage, rank, step)."""
    value = seed
    for number in numbers:  # splitmix64, so that neighbouring numbers give unrelated streams
        value = (value + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        value ^= value >> 31
    return torch.Generator(device=device).manual_seed(value % 2**63)


def train(
    state: State,
    source: Source,
    settings: Optimiser,
    *,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    budget: float | None = None,
    evaluate: Callable[[Draw], Loss] | None = None,
    precision: torch.dtype = torch.float32,
) -> Iterator[Step]:
    """Train, one `Step` at a time, until `steps` are taken or `budget` seconds have passed.

    Args:
        state: from `begin`, or restored; changed in place.
        source: the data, on the device.
        settings: of the optimiser.
        steps: number of the last step; the rate decays towards it.
        seed: of all draws; step k draws the same whether or not training was interrupted before.
        device: where the objective is.
        budget: wall-clock limit in seconds; progress is then the greater of the two shares.
        evaluate: the objective's `evaluate`, compiled.
        precision: type in which networks compute, by autocast.
    """
    evaluate = state.objective.evaluate if evaluate is None else evaluate
    parameters, optimiser = state.parameters, state.optimiser
    device = torch.device(device)
    autocast = torch.autocast(device.type, precision, enabled=precision != torch.float32)
    begun, before = time.monotonic(), state.step / steps
    while state.step < steps:
        progress = state.step / steps
        if budget is not None:
            progress = max(progress, (time.monotonic() - begun) / budget)
            if progress >= 1:
                return
        source_of_noise = generator(seed, state.step, device=device)
        torch.manual_seed(generator(seed, state.step, DROPOUT).initial_seed())  # dropout has no generator of its own
        x1, cond = source.sample(settings.batch, source_of_noise)
        draw = state.objective.draw(x1, cond=cond, generator=source_of_noise, progress=progress)
        with autocast:
            loss = evaluate(draw)
        optimiser.zero_grad(set_to_none=True)
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        rate = schedule(settings, state.step - state.begun, progress)
        for group in optimiser.param_groups:
            group["lr"] = rate
        state.whole = False
        optimiser.step()
        state.step += 1
        decay = min(settings.ema, state.step / (state.step + 9))
        with torch.no_grad():
            torch._foreach_lerp_(state.averages, parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        now = max(state.step / steps, progress)
        state.objective.follow(before, now)
        before, state.whole = now, True
        yield Step(state.step, Loss(loss.value.detach(), loss.parts), rate, progress)


def schedule(settings: Optimiser, step: int, progress: float) -> float:
    """The learning rate: linear warm-up over the first steps, a half cosine down to `floor` times the highest."""
    rise = min(1.0, (step + 1) / max(settings.warmup, 1))
    fall = settings.floor + (1 - settings.floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return settings.rate * min(rise, 1.0) * fall
