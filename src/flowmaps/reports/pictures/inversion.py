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
from ...evaluation.measure import MAX_ABS
from ...evaluation.sampling import Inputs, Sampler, jump_sampler, sample, steps_in_words
from ...maps import FlowMap
from ...methods import Jumps
from ...runs.plan import Plan
from ...samplers import Jump, encode
from ...shapes import Batch, Condition
from ...solvers import SolverFlow
from ...storage.models import device_of
from ...system.progress import Watch, quiet
from ...system.seeds import generator
from ..image_grid import image_grid
from .parts import class_names, steps_nearest_four, ten_rows, to_pixels

DATA_STREAM = 13  # of the seed
MIN_ERROR = 4e-12
"""A mean square below float32's own rounding of numbers of order one: 120 dB."""


@dataclass(frozen=True)
class Inversion:
    """Data taken to noise and back.

    Attributes:
        encoder: what took the data to noise: "map", "teacher", or "diagonal", the map's own velocity.
        encoder_words: the same for a caption.
        data, noise: images in the network's coordinates and their noise, `(B, *shape)`.
        labels: of the images, `(B,)`, or `None`.
        decoded: number of steps -> the images that the map makes of the noise.
    """

    encoder: str
    encoder_words: str
    data: Tensor
    noise: Tensor
    labels: Tensor | None
    decoded: dict[int, Tensor]

    def numbers(self, units: Units) -> dict[str, Any]:
        """For metrics.json: the noise's deviation, and for each number of steps the mean squared error a pixel, pixels
        from -1 to 1, and its peak signal-to-noise ratio in decibels; over the images that are not lost."""
        images = (self.noise, *self.decoded.values())
        good = torch.stack([x.abs().flatten(1).amax(1) <= MAX_ABS for x in images]).all(0)  # NaN is not
        found: dict[str, Any] = {"encoder": self.encoder, "images": int(good.sum()), "decoded": []}
        if not bool(good.all()):
            found["lost"] = int((~good).sum())
        if not bool(good.any()):
            return found
        found["noise_std"] = float(self.noise[good].std())
        for steps, x in self.decoded.items():
            error = float((units.to_data(x[good]) - units.to_data(self.data[good])).div(127.5).square().mean())
            psnr = 10 * math.log10(4 / max(error, MIN_ERROR))
            found["decoded"].append({"steps": steps, "mse": error, "psnr": psnr})
        return found

    def caption(self, units: Units) -> str:
        """How the data were inverted, and how well."""
        found = self.numbers(units)
        caption = f"Data taken to noise by {self.encoder_words}, and back by the map."
        if found["decoded"]:
            errors = [f"{steps_in_words(r['steps'])}: {r['mse']:.2g} ({r['psnr']:.1f} dB)" for r in found["decoded"]]
            caption += (
                f" Mean squared error a pixel, pixels from -1 to 1, over {found['images']} images: "
                f"{', '.join(errors)}; deviation of the noise {found['noise_std']:.3f}, where 1 is right."
            )
        return caption + (f" {found['lost']} images were lost." if "lost" in found else "")

    def figure(self, units: Units) -> Figure:
        """Rows: data, their noise from -3 to 3, the images that come back, and the absolute difference."""
        rows, classes = ten_rows(len(self.data), self.labels)
        steps = max(self.decoded)
        data, decoded = (to_pixels(units, x[rows]) for x in (self.data, self.decoded[steps]))
        noise = (127.5 + 42.5 * self.noise[rows].nan_to_num(0)).round().clamp(0, 255).to(torch.uint8)
        difference = (data.int() - decoded.int()).abs().to(torch.uint8)
        labels = ["data", "noise\n−3 to 3", f"back\n{steps_in_words(steps)}", "difference\nabsolute"]
        images = torch.cat([data, noise, decoded, difference])
        return image_grid(images, 4, labels, columns=class_names(units, classes))


def invert(
    plan: Plan,
    flow_map: FlowMap,
    teacher: FlowMap | None,
    source: Source,
    *,
    number: int = 64,
    watch: Watch = quiet,
) -> Inversion | None:
    """Data taken to noise and back by the map, in one step and in several where the map has them.

    A map that is trained for both orders of time takes the data to noise by itself; else the flow of the teacher's
    velocity, or of the map's own where there is no teacher, is solved backwards.

    Args:
        plan: of the run.
        flow_map, teacher: as `plan.as_sampled` gave them.
        source: the data, on the CPU.
        number: of images.
        watch: progress callback.

    Returns:
        The inversion; `None` for a map that is not trained for both orders and has no velocity.
    """
    x1, labels = source.sample(number, generator(plan.recipe.seed, DATA_STREAM))
    found = _encoder(plan, flow_map, teacher)
    if found is None:
        return None
    encoder, words, to_noise = found
    numbers = sorted({*plan.supported_steps([1]), steps_nearest_four(plan)})
    numbers = [1] if plan.method.jumps is Jumps.TO_DATA else numbers
    options = {"chunk": plan.recipe.evaluation.batch, "device": device_of(flow_map)}

    def run(sampler: Sampler, x: Tensor, done: int) -> Tensor:
        watch_run = lambda title, share: watch(title, (done + share) / (len(numbers) + 1))  # noqa: E731
        return sample(sampler, Inputs(x, labels), **options, title="inversion", watch=watch_run).x

    noise = run(lambda inputs: (to_noise(inputs.x0, inputs.cond), 0), x1, 0)
    decoded = {n: run(jump_sampler(flow_map, Jump(n)), noise, k) for k, n in enumerate(numbers, start=1)}
    return Inversion(encoder, words, x1, noise, labels, decoded)


def _encoder(
    plan: Plan, flow_map: FlowMap, teacher: FlowMap | None
) -> tuple[str, str, Callable[[Batch, Condition], Batch]] | None:
    """What takes data to noise: its name, the same in words, and the function; NaN where a solver finds no step."""
    if plan.both_orders:
        steps = steps_nearest_four(plan)
        words = f"the map itself in {steps_in_words(steps)} backwards"
        return "map", words, lambda x, cond: encode(flow_map, x, steps, cond)
    if teacher is None and plan.method.jumps is Jumps.TO_DATA:
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
