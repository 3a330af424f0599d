"""A run opened for the page: its map, its teacher and its data, and what is asked of the map."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..data import Source
from ..evaluation.sampling import Inputs, RunSampler, labels_of_samples
from ..guidance import AtWeight
from ..maps import FlowMap
from ..methods import Jumps
from ..shapes import Condition, label_and_numbers, on_each
from ..system.progress import Watch, quiet
from ..system.seeds import generator

IMAGES, POINTS = 10, 2_000
"""Samples, unless their number is given."""
TEACHER = "its teacher"
"""What the flow of a teacher is of, in a sentence."""
DATA_STREAM = 24  # of the seed
DRAWS, TRIES = 256, 64
"""Draws of the data in which a row of a class is looked for, and how often."""


@dataclass(frozen=True)
class Asked:
    """What samples are asked for.

    Attributes:
        seed: of the noise.
        number: of samples; `None` for that of the run.
        label: the class by its name; `None` for all classes in turn.
        guidance: weight; `None` for a map that takes none.
        values: of the columns that the map is conditioned on, by name.
    """

    seed: int = 0
    number: int | None = None
    label: str | None = None
    guidance: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)


class OpenRun:
    """A finished run, opened for the page.

    Args:
        folder: of the run.
        net: as of `RunSampler`.

    Attributes:
        sampler: of its map.
        plan, units, flow_map, device: those of the sampler.

    Raises:
        ValueError: there is no finished run in the folder.
    """

    def __init__(self, folder: Path, net: str = "") -> None:
        self.sampler = RunSampler(folder, net)
        self.plan, self.units, self.device = self.sampler.plan, self.sampler.units, self.sampler.device
        self.flow_map = self.sampler.flow_map
        self._source: Source | Exception | None = None

    @property
    def folder(self) -> Path:
        """Where the run is."""
        return self.sampler.folder.path

    def source(self, watch: Watch = quiet) -> Source:
        """The data of the run, on the CPU; they are read once, and asked for in vain once.

        Args:
            watch: progress callback of the reading.

        Raises:
            ValueError: they cannot be read, or have changed since.
        """
        if self._source is None:
            try:
                self._source = self.sampler.folder.open_source(watch).to("cpu")
            except (ValueError, OSError) as error:
                self._source = error
        if isinstance(self._source, Exception):
            raise self._source.with_traceback(None)  # which would grow, and keep what it saw
        return self._source

    def data(self, number: int, seed: int, label: str | None = None) -> tuple[Tensor, Condition] | None:
        """Draws of the data, of a class where one is given, in the network's coordinates, and their conditions; `None`
        where no data can be read."""
        with contextlib.suppress(ValueError, OSError):
            return self.data_of(label, number, generator(seed, DATA_STREAM))
        return None

    def data_of(self, label: str | None, number: int, random: torch.Generator) -> tuple[Tensor, Condition]:
        """Draws of the data of a class, some of them several times where the class is rare, and their conditions.

        Args:
            label: the class by its name; `None` for data of all classes.
            number: of draws.
            random: their source.

        Raises:
            ValueError: the data cannot be read, or none of many draws is of the class.
        """
        x1, cond = self.source().sample(number, random)
        if label is None or not isinstance(label_and_numbers(cond)[0], Tensor):
            return x1, cond
        wanted, size = labels_of_samples(self.units, 1, label), max(number, DRAWS)
        for _ in range(TRIES):
            found = (label_and_numbers(cond)[0] == wanted).nonzero()[:, 0]
            if len(found):
                turn = found[torch.arange(number) % len(found)]
                return x1[turn], on_each(cond, lambda value: value[turn])  # noqa: B023  (called at once)
            x1, cond = self.source().sample(size, random)
        raise ValueError(f"none of {TRIES * size:,} draws of the data is of class {label}: choose another class.")

    @cached_property
    def _teacher(self) -> FlowMap | None:
        folder = self.sampler.folder
        teacher = folder.load_teacher() if (folder.path / "teacher").is_dir() else None
        return None if teacher is None else teacher.to(self.device)

    def flow(self, guidance: float | None = None) -> tuple[FlowMap, str] | None:
        """The map whose velocity the trajectories follow, and what it is called in a sentence.

        That is the teacher, where the folder has one, guided like the map; else the map itself. `None` for a map of
        jumps to the data or from noise alone, which has no velocity.
        """
        if self._teacher is not None:
            teacher = self.plan.as_sampled(self.flow_map, self._teacher, guidance)[1]
            assert teacher is not None
            return teacher, TEACHER
        if self.plan.method.jumps in (Jumps.ANY, Jumps.NONE):
            own = self.flow_map if guidance is None else AtWeight(self.flow_map, guidance)
            return own, "the map's own velocity"
        return None

    def inputs(self, asked: Asked, number: int | None = None) -> Inputs:
        """Noise and conditions as they are asked for.

        Args:
            asked: what is asked for.
            number: of samples; that which is asked for unless given.

        Raises:
            ValueError: an option is out of range, or not for this map.
        """
        usual = IMAGES if self.units.pictures else POINTS
        number = number or asked.number or usual
        given = {"label": asked.label, "values": asked.values, "guidance": asked.guidance}
        return self.sampler.inputs(number, seed=asked.seed, **given)

    def on_device(self, inputs: Inputs) -> Inputs:
        """All rows of inputs, on the device of the map."""
        return Inputs(inputs.x0.to(self.device), on_each(inputs.cond, lambda value: value.to(self.device)))
