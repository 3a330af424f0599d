"""Data to noise and back: how well a map is undone by itself, or by the flow that it follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...data import Source, Units
from ...evaluation.measure import FAR, Sampled
from ...evaluation.rows import Start, Walk, jumping
from ...maps import FlowMap
from ...runs import plan as plans
from ...runs.recipes import Recipe
from ...samplers import encode
from ...shapes import Batch, Condition
from ...solvers import SolverFlow
from ...storage.models import device_of
from ...training.loop import generator
from ..image_figures import tiles
from .parts import Watch, count, few_steps, names, pixels, quiet, selected, walked

INVERTED = 13  # stream of the seed
TRAINED_BACKWARDS = ("lmd", "emd", "neural_operator", "ctm", "ayf_emd", "ayf_lmd", "pfmm")
"""Methods that learn jumps from data to noise too, where the recipe's times are the whole square."""
TINY = 4e-12  # a mean square below float32's own rounding of numbers of order one: 120 dB


@dataclass(frozen=True)
class Inversion:
    """Data taken to noise and back.

    Attributes:
        encoder: what took them to noise: "map", "teacher", or "diagonal", the map's own velocity.
        way: the same in words.
        data, noise: images in the network's coordinates and their noise, `(B, *shape)`.
        labels: of the images, `(B,)`, or `None`.
        back: number of steps -> the images that the map makes of the noise.
    """

    encoder: str
    way: str
    data: Tensor
    noise: Tensor
    labels: Tensor | None
    back: dict[int, Tensor]

    def numbers(self, units: Units) -> dict[str, Any]:
        """For metrics.json: the noise's deviation, and for each number of steps the mean squared error a pixel, pixels
        from -1 to 1, and its peak signal-to-noise ratio in decibels; over the images that are not lost."""
        kept = torch.stack([x.abs().flatten(1).amax(1) <= FAR for x in (self.noise, *self.back.values())])
        good = kept.all(0)  # NaN is not
        found: dict[str, Any] = {"encoder": self.encoder, "images": int(good.sum()), "decoded": []}
        if not bool(good.all()):
            found["lost"] = int((~good).sum())
        if not bool(good.any()):
            return found
        found["noise_std"] = float(self.noise[good].std())
        for steps, x in self.back.items():
            error = float((units.to_data(x[good]) - units.to_data(self.data[good])).div(127.5).square().mean())
            psnr = 10 * math.log10(4 / max(error, TINY))
            found["decoded"].append({"steps": steps, "mse": error, "psnr": psnr})
        return found

    def caption(self, units: Units) -> str:
        """How it was done and how well it went."""
        found = self.numbers(units)
        told = [f"{count(r['steps'])}: {r['mse']:.2g} ({r['psnr']:.1f} dB)" for r in found["decoded"]]
        words = f"Data taken to noise by {self.way}, and back by the map."
        if told:
            words += (
                f" Mean squared error a pixel, pixels from -1 to 1, over {found['images']} images: {', '.join(told)}; "
                f"deviation of the noise {found['noise_std']:.3f}, where 1 is right."
            )
        return words + (f" {found['lost']} images were lost." if "lost" in found else "")

    def figure(self, units: Units) -> Figure:
        """Rows: data, their noise from -3 to 3, the images that come back, and the absolute difference."""
        kinds, chosen = selected(Sampled(self.data, self.labels, 0, 0.0))
        steps = max(self.back)
        data, back = (pixels(units, x[chosen]) for x in (self.data, self.back[steps]))
        noise = (127.5 + 42.5 * self.noise[chosen].nan_to_num(0)).round().clamp(0, 255).to(torch.uint8)
        apart = (data.int() - back.int()).abs().to(torch.uint8)
        labels = ["data", "noise\n−3 to 3", f"back\n{count(steps)}", "difference\nabsolute"]
        return tiles(torch.cat([data, noise, back, apart]), 4, labels, columns=names(units, kinds))


def invert(
    recipe: Recipe,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    *,
    number: int = 64,
    watch: Watch = quiet,
) -> Inversion | None:
    """Take data to noise and back by the map, in one step and in a few where it has several.

    A map that is trained for both orders of time encodes by itself; else the flow of the teacher's velocity, or without
    a teacher of the map's own, is solved backwards. `None` for a map that has neither. The source draws on the CPU.
    """
    few, device = few_steps(recipe), device_of(flow_map)
    x1, labels = source.sample(number, generator(recipe.seed, INVERTED))
    found = _encoder(recipe, flow_map, teacher)
    if found is None:
        return None
    encoder, way, back_to_noise = found
    walks: dict[int, Walk] = {0: lambda start: (back_to_noise(start.x, start.cond), 0)}
    several = [1] if recipe.method in plans.TO_DATA else sorted({*plans.known_steps(recipe, [1]), few})
    walks |= {n: jumping(flow_map, n) for n in several}
    done: list[Tensor] = []
    for k, walk in enumerate(walks.values()):
        start = Start(done[0] if done else x1, labels)
        tick = lambda share, k=k: watch("inversion", (k + share) / len(walks))  # noqa: E731
        done.append(walked(walk, start, recipe.evaluation.chunk, device, tick))
    return Inversion(encoder, way, x1, done[0], labels, dict(zip([*walks][1:], done[1:], strict=True)))


def _encoder(
    recipe: Recipe, flow_map: FlowMap, teacher: FlowMap | None
) -> tuple[str, str, Callable[[Batch, Condition], Batch]] | None:
    """The way from data to noise: its name, the same in words, and itself; NaN where a solver finds no step."""
    if recipe.times == "square" and recipe.method in TRAINED_BACKWARDS:
        steps = few_steps(recipe)
        words = f"the map itself in {count(steps)} backwards"
        return "map", words, lambda x, cond: encode(flow_map, x, steps, cond)
    if teacher is None and recipe.method in plans.TO_DATA:
        return None
    flow = SolverFlow((flow_map if teacher is None else teacher).velocity, rtol=1e-5, atol=1e-5)
    whose = "the map's own velocity" if teacher is None else "its teacher"

    def solve(x: Batch, cond: Condition) -> Batch:
        zero = x.new_zeros(len(x))
        try:
            return flow(x, 1 + zero, zero, cond)
        except ValueError:
            return torch.full_like(x, math.nan)

    name = "diagonal" if teacher is None else "teacher"
    return name, f"the flow of {whose}, solved backwards (dopri5, tolerance 1e-5)", solve
