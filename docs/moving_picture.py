"""The moving picture of the README: jumps of a map and steps of its teacher, from the same noise.

    python docs/moving_picture.py runs/checkerboard docs/images/jumps.gif

The three panels share a clock, the number of network evaluations so far: the map in one jump has arrived after 1, in
four jumps after 4, and Euler's steps along the velocity of its teacher after 32.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from flowmaps.maps import FlowMap, VelocityForShortJumps
from flowmaps.reports.style import EXACT, FAINT, INK, MAP, TEACHER
from flowmaps.runs.folder import RunFolder
from flowmaps.samplers import Jump
from flowmaps.system.seeds import generator

POINTS, TRACED = 2_000, 16
"""Points of a panel, and how many of them draw their paths."""
EULER_STEPS = 32
LAST_FRAME, FRAME = 2_400, 110
"""Milliseconds of the last frame and of each other one."""
COLOURS = 48
WIDTH = 8.4  # inches, at 100 pixels


def main(folder: str, out: str) -> None:
    """Draw the picture of a finished run of points in the plane."""
    panels = paths(RunFolder.open(Path(folder)))
    counts = sorted({*range(9), *range(8, EULER_STEPS + 1, 2)})
    frames = [_image(frame(panels, count)) for count in counts]
    palette = frames[-1].quantize(COLOURS)
    quantized = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in frames]
    times = [6 * FRAME if count in (0, 1, 4) else FRAME for count in counts[:-1]] + [LAST_FRAME]
    quantized[0].save(out, save_all=True, append_images=quantized[1:], duration=times, loop=0, optimize=True)
    print(f"{out}: {len(frames)} frames, {Path(out).stat().st_size:,} bytes")


def paths(run: RunFolder) -> dict[str, tuple[str, Tensor]]:
    """Title of a panel -> its colour, and its points after each evaluation, `(evaluations + 1, POINTS, 2)`."""
    plan, source = run.plan, run.open_source()
    flow_map, teacher = plan.as_sampled(run.load_map(), run.load_teacher())
    euler = VelocityForShortJumps(flow_map if teacher is None else teacher, 1.0)  # whose jumps are Euler's steps
    x0 = torch.randn(POINTS, 2, generator=generator(0, 1))

    def states(sampled: FlowMap, steps: int) -> Tensor:
        return source.to_data(Jump(steps).path(sampled, x0).flatten(0, 1)).unflatten(0, (steps + 1, POINTS))

    return {
        f"the teacher's ODE, {EULER_STEPS} steps": (TEACHER, states(euler, EULER_STEPS)),
        "flow map, 4 jumps": (MAP, states(flow_map, 4)),
        "flow map, 1 jump": (MAP, states(flow_map, 1)),
    }


def frame(panels: dict[str, tuple[str, Tensor]], count: int) -> Figure:
    """The panels after so many evaluations."""
    figure = Figure(figsize=(WIDTH, 0.372 * WIDTH), dpi=100)
    for k, (title, (colour, states)) in enumerate(panels.items()):
        ax = figure.add_axes((0.006 + k / 3, 0.006, 0.3213, 0.864))
        done = min(count, len(states) - 1)
        _draw(ax, states[: done + 1].numpy(), colour)
        figure.text((k + 0.5) / 3, 0.957, title, ha="center", va="center", fontsize=11, color=INK)
        finished = done == len(states) - 1
        words = f"{done} network evaluation{'s' * (done != 1)}{', done' if finished else ''}"
        weight = "bold" if finished else "normal"
        figure.text((k + 0.5) / 3, 0.899, words, ha="center", va="center", fontsize=9, color=FAINT, weight=weight)
    return figure


def _draw(ax: Any, states: np.ndarray, colour: str) -> None:
    ax.add_collection(LineCollection(list(states[:, :TRACED].swapaxes(0, 1)), colors=EXACT, linewidths=0.9, zorder=1))
    ax.scatter(*states[-1].T, s=3, c=colour, linewidths=0, zorder=2)
    ax.scatter(*states[-1, :TRACED].T, s=11, c=INK, linewidths=0, zorder=3)
    ax.set(xlim=(-1.65, 1.65), ylim=(-1.65, 1.65), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_color(EXACT)
    ax.spines[:].set_linewidth(0.6)


def _image(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return Image.open(buffer).convert("RGB")


if __name__ == "__main__":
    main(*sys.argv[1:])
