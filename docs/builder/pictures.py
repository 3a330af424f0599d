"""The pictures of docs/understand, drawn from exact flows: nothing in them is trained.

python docs/builder/pictures.py           write docs/images/understand/*.png
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

import flowmaps as fm
from flowmaps.reports import style

FOLDER = Path(__file__).resolve().parents[1] / "images" / "understand"
DPI = 150
LINE = fm.exact.GaussianMixture([0.4, 0.6], [[-1.1], [0.9]], [[[0.03]], [[0.05]]])
"""Data on the line: two peaks."""
GREEN = style.COLOURS[2]


def times(number: int, value: float) -> Tensor:
    """One time for all rows."""
    return torch.full((number,), value)


def trajectories(law: fm.exact.GaussianMixture, x0: Tensor, grid: Tensor) -> Tensor:
    """The points of the exact trajectories at each time of a grid, `(T, B, D)`."""
    flow = fm.solvers.SolverFlow(law.velocity, rtol=1e-6, atol=1e-6)
    points, x = [x0], x0
    for s, t in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        x = flow(x, times(len(x), s), times(len(x), t))
        points.append(x)
    return torch.stack(points)


def ring() -> fm.exact.GaussianMixture:
    """Eight peaks on a circle, in the plane."""
    angles = torch.arange(8) * torch.pi / 4
    means = 1.6 * torch.stack([angles.cos(), angles.sin()], 1)
    return fm.exact.GaussianMixture([1.0] * 8, means, [(0.01 * torch.eye(2)).tolist()] * 8)


# on the line: time to the right, x upwards ----------------------------------------------------------------------------


def shaded(ax: Axes, title: str) -> None:
    """The law of the points at each time, as a shade."""
    t, x = torch.linspace(0, 1, 241), torch.linspace(-2.6, 2.6, 261)
    density = torch.stack([LINE.log_density(x[:, None], times(len(x), float(now))).exp() for now in t], 1)
    density = density / density.amax(0)
    ax.imshow(density.numpy(), origin="lower", extent=(0, 1, -2.6, 2.6), aspect="auto", cmap=style.DENSITY, vmax=3.2)
    ax.set_xlim(-0.02, 1.02)
    ax.set_title(title, fontsize=10, color=style.INK, loc="left")
    ax.set_xticks([0, 0.5, 1], ["t = 0\nnoise", "0.5", "t = 1\ndata"], fontsize=8)
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_color(style.RULE)
    ax.tick_params(length=0, labelcolor=style.FAINT)


def jump(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.25) -> None:
    """An arrow from (time, point) to (time, point)."""
    arc = {"arrowstyle": "-|>,head_width=2.5,head_length=5", "connectionstyle": f"arc3,rad={bend}"}
    ax.add_patch(FancyArrowPatch(start, end, color=colour, lw=1.8, shrinkA=2, shrinkB=2, zorder=5, **arc))
    ax.plot(*start, "o", color=colour, ms=4, zorder=6)


def note(ax: Axes, at: tuple[float, float], text: str, colour: str = style.INK, size: float = 9, **words: str) -> None:
    """Words in a picture, on a light ground."""
    ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    ax.text(*at, text, color=colour, fontsize=size, bbox=ground, zorder=7, **words)


def flow() -> Figure:
    """Many small steps along the velocity, beside single jumps of the map."""
    drawn = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    grid = torch.linspace(0, 1, 61)
    x0 = torch.tensor([-1.5, -0.75, -0.2, 0.25, 0.9, 1.7])[:, None]
    paths = trajectories(LINE, x0, grid)[..., 0].numpy()
    shaded(left, "Velocity: many small steps")
    shaded(right, "Flow map: jumps between any two times")
    for k in range(len(x0)):
        left.plot(grid, paths[:, k], color=style.EXACT, lw=1)
        right.plot(grid, paths[:, k], color=style.EXACT, lw=1, alpha=0.7)
    for k in (1, 4):
        left.plot(grid[::4], paths[::4, k], "-o", color=style.TEACHER, lw=1.4, ms=3.5)
    note(left, (0.03, -2.45), "15 steps = 15 evaluations of the network", style.TEACHER)
    jump(right, (0.0, paths[0, 4]), (1.0, paths[60, 4]), style.MAP, -0.35)
    note(right, (0.29, 1.68), r"$X_{0,1}$: noise to data at once", style.MAP)
    jump(right, (0.25, paths[15, 2]), (0.7, paths[42, 2]), GREEN, 0.45)
    note(right, (0.47, -0.35), r"$X_{0.25,\,0.7}$", GREEN)
    jump(right, (1.0, paths[60, 0]), (0.0, paths[0, 0]), style.COLOURS[3], -0.3)
    note(right, (0.33, -1.95), r"$X_{1,0}$: data back to its noise", style.COLOURS[3])
    return drawn


def average() -> Figure:
    """The velocity at one time is the tangent, the average velocity over [s, t] the chord."""
    drawn = Figure(figsize=(5.4, 3.2), layout="constrained")
    ax = drawn.subplots()
    grid = torch.linspace(0, 1, 101)
    path = trajectories(LINE, torch.tensor([[0.12]]), grid)[:, 0, 0].numpy()
    shaded(ax, "The chord reaches the curve, the tangent misses it")
    ax.plot(grid, path, color=style.INK, lw=1.6)
    s, t = 30, 90
    slope = float(LINE.velocity(torch.tensor([[path[s]]]).float(), torch.tensor([s / 100]))[0, 0])
    end = path[s] + (t - s) / 100 * slope
    jump(ax, (s / 100, path[s]), (t / 100, end), style.TEACHER, 0)
    jump(ax, (s / 100, path[s]), (t / 100, path[t]), style.MAP, 0)
    ax.set_ylim(-0.75, 1.35)
    note(ax, (0.5, -0.3), r"velocity $b_s$: one Euler step", style.TEACHER)
    note(ax, (0.1, 0.72), r"average velocity $u_{s,t}$: the jump", style.MAP)
    for k, name in ((s, "s"), (t, "t")):
        ax.axvline(k / 100, color=style.RULE, lw=1)
        note(ax, (k / 100 + 0.01, -0.69), name, style.FAINT)
    return drawn


def equations() -> Figure:
    """The three equations: move the end, move the start, join two jumps."""
    drawn = Figure(figsize=(9.6, 3.3), layout="constrained")
    axes = drawn.subplots(1, 3)
    grid = torch.linspace(0, 1, 101)
    path = trajectories(LINE, torch.tensor([[0.25]]), grid)[:, 0, 0].numpy()
    s, t, more = 20, 78, 12
    at: Callable[[int], tuple[float, float]] = lambda k: (k / 100, float(path[k]))  # noqa: E731
    titles = ("Lagrangian: move the end", "Eulerian: move the start", "Semigroup: join two jumps")
    for ax, title in zip(axes, titles, strict=True):
        shaded(ax, title)
        ax.plot(grid, path, color=style.EXACT, lw=1.2)
        ax.set_ylim(-1.4, 2.3)
        ax.set_xticks([])
    first, second, third = axes
    jump(first, at(s), at(t), style.MAP, -0.45)
    jump(first, at(t), at(t + more), style.TEACHER, 0)
    note(first, (0.04, -1.28), "a little later, the end has moved\nby the velocity at the end")
    jump(second, at(s), at(t), style.MAP, -0.45)
    jump(second, at(s), at(s + more), style.TEACHER, 0)
    jump(second, at(s + more), at(t), style.MAP, -0.3)
    note(second, (0.04, -1.28), "from a little further along the\ntrajectory, the end is the same")
    jump(third, at(s), at(t), style.MAP, -0.55)
    jump(third, at(s), at(50), GREEN, 0.5)
    jump(third, at(50), at(t), GREEN, 0.6)
    note(third, (0.04, -1.28), "one long jump is as good\nas two shorter ones")
    return drawn


# in the plane ---------------------------------------------------------------------------------------------------------


def steps() -> Figure:
    """The same noise by Euler's method in 1, 2, 4 and 16 steps, and by the exact map in one."""
    law, x0 = ring(), torch.randn(1500, 2, generator=torch.Generator().manual_seed(0))
    zero, one = times(len(x0), 0.0), times(len(x0), 1.0)
    drawn = Figure(figsize=(10, 2.2), layout="constrained")
    axes = drawn.subplots(1, 5)
    for ax, number in zip(axes, (1, 2, 4, 16), strict=False):
        found = fm.solvers.SolverFlow(law.velocity, method="euler", steps=number)(x0, zero, one)
        cloud(ax, found, style.TEACHER, f"velocity, {number} step{'s' if number > 1 else ''}")
    exact = fm.solvers.SolverFlow(law.velocity, rtol=1e-6, atol=1e-6)(x0, zero, one)
    cloud(axes[-1], exact, style.MAP, "exact flow map, 1 jump")
    return drawn


def cloud(ax: Axes, x: Tensor, colour: str, title: str) -> None:
    """Points of the plane."""
    ax.plot(x[:, 0], x[:, 1], ".", color=colour, ms=1.6, alpha=0.7)
    ax.set_title(title, fontsize=9, color=style.INK)
    ax.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), aspect="equal", xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_color(style.RULE)


# the square of times --------------------------------------------------------------------------------------------------


def square() -> Figure:
    """Which pairs (s, t) methods train on, drawn from the library's own laws."""
    laws = {
        "s = t: the velocity\nflow matching": fm.times.Diagonal(),
        "t = 1: to the data\nconsistency models": fm.times.ToData(),
        "s ≤ t: forwards\nLSD, MeanFlow": fm.times.Triangle(),
        "all: both directions\nLMD, EMD, FMM": fm.times.Square(),
        "a strip: short jumps\nFMM, PFMM": fm.times.Strip(0.25),
        "halves of halves\nshortcut models": fm.times.Dyadic(5),
    }
    drawn = Figure(figsize=(9.6, 2.05), layout="constrained")
    for ax, (title, law) in zip(drawn.subplots(1, len(laws)), laws.items(), strict=True):
        s, t = law.draw(400, torch.Generator().manual_seed(0))
        ax.plot([0, 1], [0, 1], color=style.RULE, lw=1, zorder=0)
        ax.plot(s, t, ".", color=style.MAP, ms=2.4, alpha=0.6)
        ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal", xticks=[0, 1], yticks=[0, 1])
        ax.set_title(title, fontsize=8.5, color=style.INK)
        ax.set_xlabel("s", fontsize=8, color=style.FAINT, labelpad=-8)
        ax.set_ylabel("t", fontsize=8, color=style.FAINT, labelpad=-6, rotation=0)
        ax.tick_params(length=0, labelsize=7, labelcolor=style.FAINT)
        for side in ax.spines.values():
            side.set_color(style.RULE)
    return drawn


PICTURES = {"flow": flow, "steps": steps, "average": average, "equations": equations, "square": square}


def draw(folder: Path = FOLDER, dpi: int = DPI) -> list[Path]:
    """Write all pictures; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in PICTURES]
    for path, picture in zip(paths, PICTURES.values(), strict=True):
        picture().savefig(path, dpi=dpi, metadata={"Software": None})
    return paths


if __name__ == "__main__":
    print(*draw(), sep="\n")
