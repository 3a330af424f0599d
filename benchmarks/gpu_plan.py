"""What is to be done: the runs of benchmarks/gpu_cifar10.sh, their recipes, and which part is due."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_report as report
import gpu_weights as weights
import torch
import tyro
from gpu_weights import Card

from flowmaps.cli.terminal import console
from flowmaps.runs.recipes import RECIPES, ImageRecipe, UNetNetwork

TEACHER, MAPS = "teacher", ("lmd", "lsd", "meanflow")
SECOND, SAMPLES = "lsd", 50_000
OPTIONS: dict[str, Any] = {"checkpoint_every": 2_000, "log_every": 50, "show_every": 0}
UNET = UNetNetwork(width=64, multipliers=(2, 2, 2), blocks=1, dropout=0.0)
"""6 million parameters, 11.4 MiB in bf16: teacher and map, and the next map with its averages, fit in 64 MiB."""
WARMUP, CHUNK = 500, 1_000
LENGTHS = (30_000, 7_000, 12_000)  # steps of the teacher, of LMD, of the map from data
SAVING = 15.0  # seconds of a part that are kept for packing


def say(words: str) -> None:
    """A line on the terminal."""
    console.print(words, soft_wrap=True, markup=False)


@dataclass(frozen=True)
class Plan:
    """What an invocation was told, and when it began."""

    device: str
    minutes: float
    samples: int
    second: str
    lengths: tuple[int, int, int]
    results: Path
    out: Path
    runs: Path
    options: tuple[str, ...]
    begun: float

    @property
    def names(self) -> tuple[str, ...]:
        """The runs, in their order."""
        return TEACHER, "lmd", self.second

    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self.begun + 60 * self.minutes - SAVING - time.monotonic())

    def recipe(self, name: str) -> ImageRecipe:
        """The recipe of a run: that of flowmaps with a smaller network and fewer steps, then the options given."""
        recipe = RECIPES[f"cifar10-{name}"]()
        assert isinstance(recipe, ImageRecipe)
        optimiser = dataclasses.replace(recipe.optimiser, warmup=WARMUP)
        evaluation = dataclasses.replace(recipe.evaluation, samples=self.samples, batch=CHUNK)
        base = dataclasses.replace(
            recipe, unet=UNET, optimiser=optimiser, evaluation=evaluation, device=self.device, **OPTIONS
        )
        recipe = tyro.cli(ImageRecipe, default=base, args=list(self.options), prog="gpu_cifar10")
        length = self.lengths[(TEACHER, "lmd").index(name) if name in (TEACHER, "lmd") else 2]
        if name == "lmd":
            return dataclasses.replace(recipe, steps=length, teacher=str((self.runs / TEACHER).resolve()))
        return dataclasses.replace(recipe, steps=length - 1, teacher_steps=1)  # a method from data adds them up

    def packed(self, name: str) -> tuple[Path, Card] | None:
        """The folder of the packed weights of a run that got farthest, and their card."""
        folders = [root / "weights" for root in (self.out, self.results)]
        found = [(f, weights.read_packed(f, name)) for f in folders if (f / f"{name}.json").exists()]
        return max(found, key=lambda pair: pair[1]["step"], default=None)

    def done(self, name: str) -> bool:
        """Whether a run is trained."""
        found = self.packed(name)
        return found is not None and found[1]["done"]

    def found(self) -> report.Found:
        """What was found so far."""
        return report.read(self.out, self.results)


def measured(plan: Plan, name: str) -> bool:
    """Whether the figures of a trained map are those of its packed weights."""
    found, own = plan.packed(name), plan.found()["measured"].get(name)
    return found is not None and own is not None and own["files"] == found[1]["files"]


def due(plan: Plan) -> str | None:
    """The next part; `None` when all is done."""
    for name in plan.names:
        if not plan.done(name):
            return name
        if name != TEACHER and not measured(plan, name):
            return f"measure-{name}"
    return None


def about(plan: Plan, part: str) -> report.Found:
    """The command, the device and the version of torch."""
    device = torch.cuda.get_device_name() if plan.device == "cuda" else f"CPU, {platform.machine()}"
    given = [f"DEVICE={plan.device}"] * (plan.device != "cuda") + [f"SAMPLES={plan.samples}"] * (
        plan.samples != SAMPLES
    )
    lengths = ["--lengths", *map(str, plan.lengths)] if plan.lengths != LENGTHS else []
    second = ["--second", plan.second] if plan.second != SECOND else []
    words = ["bash", "benchmarks/gpu_cifar10.sh", part, *lengths, *second, *plan.options]
    command = shlex.join([*given, f"MINUTES={plan.minutes:g}", *words])
    return {"device": device, "command": command, "torch": torch.__version__}
