"""Samples of a map in N steps, or of a velocity by an ODE solver, drawn a chunk of rows at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import Units
from ..data.options import listed
from ..data.raw import option
from ..maps import FlowMap
from ..runs.folder import RunFolder
from ..runs.recipes import Recipe
from ..samplers import Jump, MultistepConsistency
from ..shapes import Batch, Condition, Field, GuidedCondition, Time, condition_of, label_and_numbers, label_of, on_each
from ..solvers import SolverFlow
from ..system.devices import pick_device
from ..system.progress import Watch, quiet
from ..system.seeds import generator

NOISE_STREAM, FRESH_NOISE_STREAM = 1, 7  # streams of the seed
OF_TEACHER, OF_MAP = "teacher", "own ODE"
"""What the flow is called that a solver solves: that of the teacher, or of the map's own velocity."""
SOLVED = (OF_TEACHER, OF_MAP)
"""How titles of samples of a flow begin."""
MAX_NUMBERS = 2**31
"""Most numbers in all samples of a file together: 8 GB."""


class Inputs(NamedTuple):
    """What a sampler starts from.

    Attributes:
        x0: noise, `(B, *shape)`.
        cond: the condition, row by row with `x0`.
        fresh_noise: noise to add between steps, `(rounds, B, *shape)`; `None` for a sampler that adds none.
    """

    x0: Tensor
    cond: Condition
    fresh_noise: Tensor | None = None

    def rows(self, part: slice, device: torch.device) -> Inputs:
        """Some of the rows, on a device."""
        cond = on_each(self.cond, lambda value: value[part].to(device))
        fresh_noise = None if self.fresh_noise is None else self.fresh_noise[:, part].to(device)
        return Inputs(self.x0[part].to(device), cond, fresh_noise)


@dataclass(frozen=True)
class Samples:
    """Samples in the network's coordinates.

    Attributes:
        x: `(B, *shape)`, on the CPU.
        cond: their conditions, or `None`.
        nfe: network evaluations that each sample took.
        seconds: wall-clock time that all of them took.
    """

    x: Tensor
    cond: Condition
    nfe: int = 0
    seconds: float = 0.0

    def first(self, number: int) -> Samples:
        """The first samples, at most `number`; the memory of the others is freed."""
        return replace(self, x=self.x[:number].clone(), cond=on_each(self.cond, lambda value: value[:number]))


Sampler = Callable[[Inputs], tuple[Tensor, int]]
"""Takes inputs to samples, and to the number of network evaluations that each sample took."""


def steps_in_words(steps: int) -> str:
    """The number of steps in words, such as '4 steps'."""
    return f"{steps} step" + "s" * (steps > 1)


def jump_sampler(flow_map: FlowMap, jump: Jump) -> Sampler:
    """The map in jumps."""
    steps = len(jump.times) - 1
    return lambda inputs: (jump(flow_map, inputs.x0, inputs.cond), steps)


def ode_sampler(velocity: Field, **solver: Any) -> Sampler:
    """The flow of a velocity by a solver, with the options of `SolverFlow`; NaN where no step is small enough."""
    flow = SolverFlow(velocity, **solver)

    def solve(inputs: Inputs) -> tuple[Tensor, int]:
        zero = inputs.x0.new_zeros(len(inputs.x0))
        try:
            return flow(inputs.x0, zero, 1 + zero, inputs.cond), flow.nfe
        except ValueError:
            return torch.full_like(inputs.x0, math.nan), flow.nfe

    return solve


def map_sampler(
    flow_map: FlowMap, scheme: Jump | MultistepConsistency, inputs: Inputs, seed: int
) -> tuple[Sampler, Inputs]:
    """The map by a sampler of `flowmaps.samplers`, and the inputs with the fresh noise that the sampler adds."""
    if isinstance(scheme, Jump):
        return jump_sampler(flow_map, scheme), inputs
    steps, noise = len(scheme.grid), fresh_noise(scheme, inputs.x0.shape, seed)
    sampler = lambda start: (scheme(flow_map, start.x0, start.fresh_noise, start.cond), steps)  # noqa: E731
    return sampler, inputs._replace(fresh_noise=noise)


def fresh_noise(multistep: MultistepConsistency, shape: Sequence[int], seed: int) -> Tensor | None:
    """The noise that multistep sampling adds on the way to samples of a shape `(B, *shape)`; `None` in one step."""
    rounds = (len(multistep.grid) - 1) * (2 if multistep.interpolant.noisy else 1)
    return torch.randn(rounds, *shape, generator=generator(seed, FRESH_NOISE_STREAM, rounds)) if rounds else None


def sample(
    sampler: Sampler,
    inputs: Inputs,
    *,
    chunk: int,
    device: torch.device,
    title: str = "sampling",
    watch: Watch = quiet,
    warm_up: bool = False,
) -> Samples:
    """Samples of all inputs, drawn `chunk` rows at a time on a device.

    Args:
        sampler: of a map or of a velocity on the device.
        inputs: on any device.
        chunk: rows at a time.
        device: where to sample.
        title: what is sampled, for the progress callback.
        watch: progress callback, called after each chunk.
        warm_up: sample the first chunk once before the clock starts, so that `seconds` is without compilation.

    Returns:
        The samples; `nfe` is the mean over chunks, to the nearest.
    """
    points, evaluations, number = [], [], len(inputs.x0)
    with torch.inference_mode():
        if warm_up:
            sampler(inputs.rows(slice(chunk), device))[0].cpu()  # the copy waits for the device
        begun = time.perf_counter()
        for first in range(0, number, chunk):
            x, nfe = sampler(inputs.rows(slice(first, first + chunk), device))
            points.append(x.float().cpu())
            evaluations.append(nfe)
            watch(title, min(first + chunk, number) / number)
    seconds = time.perf_counter() - begun
    return Samples(torch.cat(points), label_of(inputs.cond), round(sum(evaluations) / len(evaluations)), seconds)


class CompiledMap(FlowMap):
    """A map with its network compiled once, for batches of one size.

    Args:
        flow_map: the map.
        backend: of torch.compile.
    """

    def __init__(self, flow_map: FlowMap, backend: str | Callable[..., Any] = "inductor") -> None:
        super().__init__()
        self.compiled = torch.compile(flow_map.average_velocity, dynamic=False, backend=backend)

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        # x always of one layout, s and t two tensors that are not views: else torch.compile compiles again
        layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
        return self.compiled(x.contiguous(memory_format=layout), s.clone(), t.clone(), cond)


# samples of a run -----------------------------------------------------------------------------------------------------


class RunSampler:
    """A finished run, opened for sampling on the best device of this machine.

    Args:
        folder: of the run.
        net: as of `RunFolder.open`.

    Attributes:
        folder: of the run.
        plan: of the run.
        device: where it is sampled.
        flow_map: the map as it is sampled, at the lowest guidance weight where it takes one.
        units: of its samples.

    Raises:
        ValueError: there is no finished run in the folder.
    """

    def __init__(self, folder: Path, net: str = "") -> None:
        self.folder, self.device = RunFolder.open(folder, net), pick_device("auto")
        self.plan = self.folder.plan
        self.flow_map, _ = self.plan.as_sampled(self.folder.load_map().to(self.device), None)
        self.units = self.folder.units

    def sample(
        self,
        steps: int,
        number: int,
        *,
        label: str | Tensor | None = None,
        values: Mapping[str, Any] | None = None,
        noise: Tensor | None = None,
        seed: int = 0,
        guidance: float | None = None,
        watch: Watch = quiet,
    ) -> tuple[Tensor, Tensor | None]:
        """Samples `(number, *shape)` in the network's coordinates, and their labels or `None`.

        Args:
            steps: jumps from noise to data.
            number: how many samples.
            label, values, noise: as in `inputs`.
            seed: of the noise.
            guidance: as in `inputs`.
            watch: progress callback.

        Raises:
            ValueError: an option is out of range, or not for this map.
        """
        self.plan.check_steps([steps])
        numbers = self.units.dim * (1 if isinstance(self.plan.sampler(steps), Jump) else 2 * steps)  # fresh noise
        most = MAX_NUMBERS // numbers
        if number > most:
            way = "take several files, each by a --seed" if noise is None else "cut the noise into several files"
            raise ValueError(f"--number must be at most {most:,} here, got {number:,}: {way}.")
        inputs = self.inputs(number, label=label, values=values, noise=noise, seed=seed, guidance=guidance)
        labels = None if self.units.classes is None else label_and_numbers(inputs.cond)[0]
        return self.draw(steps, inputs, seed, watch).x, labels

    def inputs(
        self,
        number: int,
        *,
        label: str | Tensor | None = None,
        values: Mapping[str, Any] | None = None,
        noise: Tensor | None = None,
        seed: int = 0,
        guidance: float | None = None,
    ) -> Inputs:
        """Noise and conditions for a number of samples.

        Args:
            number: how many samples.
            label: their class, by name or, where classes have none, by number, or the number of each; all classes in
                turn unless given.
            values: of the columns on which the map is conditioned, in the units of the file: one for all samples, or an
                array `(number,)`, by the name of the column.
            noise: to start from, `(number, *shape)`; drawn unless given.
            seed: of the noise.
            guidance: weight, for a map that takes one; its lowest unless given.

        Raises:
            ValueError: an option is out of range, or not for this map.
        """
        labels = label if isinstance(label, Tensor) else labels_of_samples(self.units, number, label)
        numbers_of_rows = numbers_of_samples(self.units, number, values or {})
        for given in (labels, numbers_of_rows):
            if given is not None and len(given) != number:
                raise ValueError(f"{number:,} samples need as many conditions, got {len(given):,}.")
        cond = condition_of(labels, numbers_of_rows)
        cond = self.folder.open_source().conditions(number) if self.units.features else cond
        x0 = (
            torch.randn(number, *self.units.shape, generator=generator(seed, NOISE_STREAM))
            if noise is None
            else noise.float()
        )
        if x0.shape != (number, *self.units.shape):
            raise ValueError(
                f"the noise of {number:,} samples is of shape {(number, *self.units.shape)}, got {tuple(x0.shape)}."
            )
        return Inputs(x0, cond if guidance is None else guide(self.plan.recipe, cond, number, guidance))

    def draw(self, steps: int, inputs: Inputs, seed: int = 0, watch: Watch = quiet) -> Samples:
        """Samples of noise in a number of steps; the noise that is added on the way is of the seed."""
        sampler, inputs = map_sampler(self.flow_map, self.plan.sampler(steps), inputs, seed)
        options = {"chunk": self.plan.recipe.evaluation.batch, "device": self.device, "title": steps_in_words(steps)}
        return sample(sampler, inputs, **options, watch=watch)


def numbers_of_samples(units: Units, number: int, values: Mapping[str, Any]) -> Tensor | None:
    """The numbers on which samples are conditioned, `(number, D)`; `None` where the map is conditioned on none."""
    names = [own.name for own in units.conditions]
    if not names and values:
        raise ValueError("this map is not conditioned on numbers: leave out --condition and --condition-file.")
    if not names:
        return None
    if not values:
        example = f"{option('--condition', example_of(units))}, or " if len(names) <= 10 else ""
        raise ValueError(
            f"this map is conditioned on {listed(names)}: pass {example}--condition-file FILE with a table of these "
            "columns, such as that of the training."
        )
    numbers = units.to_condition(values)
    return numbers.expand(number, -1) if len(numbers) == 1 else numbers


def example_of(units: Units) -> list[str]:
    """Words for --condition, with a value within the data for each column; one word unless a name has a comma."""
    words = [f"{own.name}={own.example}" for own in units.conditions]
    return words if any("," in own.name or "=" in own.name for own in units.conditions) else [",".join(words)]


def labels_of_samples(units: Units, number: int, label: str | None) -> Tensor | None:
    """The labels of samples: of one class, or of all classes in turn; `None` where the data have no classes."""
    if units.classes is None:
        if label is not None:
            raise ValueError(f"these data have no classes, got --label {label}: leave it out.")
        return None
    if label is None:
        return units.labels_in_turn(number)
    names = units.names or tuple(map(str, range(units.classes)))
    given, label = label, _as_named(label, names, units.label_type)
    if label not in names and not (units.pictures and label.isdecimal() and int(label) < units.classes):
        allowed = listed(names) if units.names else f"from 0 to {units.classes - 1}"
        raise ValueError(f"--label must be {'one of ' if units.names else ''}{allowed}, got {given}.")
    chosen = names.index(label) if label in names else int(label)
    if chosen in units.absent:
        raise ValueError(f"--label {label} is a class that no row of the data has: the map has not learned it.")
    return torch.full((number,), chosen)


def _as_named(label: str, names: tuple[str, ...], kind: str) -> str:
    """A label as its class is called: labels that are numbers in the file may be written as such, 1.0 or 01 for 1."""
    try:
        number = float(label)
    except ValueError:
        return label
    return label if kind in ("str", "bool") or label in names or number % 1 else str(int(number))


def guide(recipe: Recipe, cond: Condition, number: int, weight: float) -> GuidedCondition:
    """The conditions with a guidance weight, for a map that was trained with a range of weights."""
    if len(recipe.guidance) != 2:
        raise ValueError(
            f"this map takes no guidance weight, got --guidance {weight:g}: train with --guidance LOW HIGH."
        )
    if not recipe.guidance[0] <= weight <= recipe.guidance[1]:
        raise ValueError(f"--guidance must be from {recipe.guidance[0]:g} to {recipe.guidance[1]:g}, got {weight:g}.")
    return GuidedCondition(cond, torch.full((number,), weight))
