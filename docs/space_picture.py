"""The picture of the space: a row a method, a column an axis, equal words in equal colours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from space import NONE, Coordinates, Cost

from flowmaps.reports.figures import save as save_figure
from flowmaps.reports.style import FAINT, INK, RULE

Methods = Mapping[str, Mapping[str, tuple[Coordinates, Cost]]]

WIDTH, DPI = 1400, 140
"""Of the picture, in pixels, and dots an inch."""
TOP, LINE, HEAD, NAME = 118, 31, 46, 288
"""Height of the title, of a row and of a group's heading, width of the names, in pixels."""
COLUMNS = {
    "velocity from": 140,
    "pairs (s, t)": 190,
    "taught by": 168,
    "detached": 120,
    "residual of": 164,
    "weight": 176,
    "diagonal": 84,
    "work": 54,
}
BLUE, ORANGE, GREEN, PINK, VIOLET, TEAL, GREY = (
    "#1f6feb", "#e0762f", "#1a9a6c", "#c23b8f", "#7f56d9", "#3ea6c9", "#8a929b",
)  # fmt: skip
HUES: dict[str, dict[str, tuple[str, float]]] = {  # the first word that begins a cell's gives its colour and depth
    "velocity from": {
        "teacher, solved": (ORANGE, 0.42), "teacher": (ORANGE, 0.24), "itself": (BLUE, 0.22), "dI,": (GREEN, 0.40),
        "dI": (GREEN, 0.22), "average": (BLUE, 0.36), "frozen, renewed": (VIOLET, 0.36), "frozen": (VIOLET, 0.2),
    },
    "pairs (s, t)": {
        "s = t": (GREY, 0.18), "square": (TEAL, 0.42), "s <= t, logit": (BLUE, 0.36),
        "s <= t, each": (BLUE, 0.28), "s <= t": (BLUE, 0.18), "t = 1 or": (ORANGE, 0.12),
        "t = 1, log-normal, grid": (ORANGE, 0.50), "t = 1, log": (ORANGE, 0.34), "t = 1": (ORANGE, 0.20),
        
        "s = 0": (PINK, 0.25), "dyadic": (VIOLET, 0.32), "cells": (VIOLET, 0.18),
    },
    "taught by": {
        "derivative in t": (TEAL, 0.34), "derivative in (": (PINK, 0.22), "4 equal": (BLUE, 0.10),
        "2 equal": (BLUE, 0.22), "2 random": (BLUE, 0.36), "one cell": (ORANGE, 0.20), "shrinks": (ORANGE, 0.32),
        "random": (ORANGE, 0.44), "l ": (ORANGE, 0.10), "solver": (GREY, 0.25),
    },
    "detached": {
        "nothing": (BLUE, 0.05), "velocity, d/dx": (BLUE, 0.26), "velocity": (BLUE, 0.15), "all": (BLUE, 0.40),
    },
    "residual of": {
        "u, norm": (TEAL, 0.36), "u and": (GREEN, 0.22), "u": (GREY, 0.12), "X at": (ORANGE, 0.38),
        "X": (ORANGE, 0.2), "output": (TEAL, 0.52),
    },
    "weight": {
        "1 /": (PINK, 0.24), "1": (GREY, 0.12), "l /": (PINK, 0.40), "learned": (GREEN, 0.25),
        "pseudo": (ORANGE, 0.3), "Huber": (ORANGE, 0.18), "max": (VIOLET, 0.24),
    },
    "diagonal": {
        "all": (BLUE, 0.46), "75": (BLUE, 0.34), "50": (BLUE, 0.23), "25": (BLUE, 0.12), "beside": (TEAL, 0.4),
    },
}  # fmt: skip
TITLES = {
    "velocity": "Velocity alone   $u_{t,t} = b_t$",
    "Lagrangian": r"Lagrangian   $\partial_t X_{s,t}(x) = b_t(X_{s,t}(x))$",
    "Eulerian": r"Eulerian   $\partial_s X_{s,t}(x) + \nabla X_{s,t}(x)\,b_s(x) = 0$",
    "Semigroup": "Semigroup   $X_{w,t}(X_{s,w}(x)) = X_{s,t}(x)$",
}
NOTES = (
    "dI: the velocity of the drawn pair of noise and data.  itself: the map in training.  all but u: the whole other "
    "side of the equation.",
    "output: of the network, which is not u there.  diagonal: rows that match a velocity at s = t, or a term beside.",
    "work: matrix products of a step, in evaluations of the network, for a row off the diagonal, teacher included.",
    "alphaflow with a first leg of its own is shortcut's equation at l = 1/2; with dI its gradient tends to that of "
    "meanflow as l tends to 0.",
    "Consistency training and distillation tend to the Eulerian equation at t = 1 as the cell tends to 0: there sct "
    "and scd begin.",
    "pixel_meanflow is improved_meanflow with a network that returns data, from which its map takes u.",
)


def save(methods: Methods, path: Path) -> None:
    """Draw the methods of each equation, and write a PNG."""
    rows = sum(len(group) for group in methods.values())
    height = TOP + LINE * rows + HEAD * len(methods) + 28 + 25 * len(NOTES)
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.set_axis_off()
    _say(ax, 20, 30, "Every method is a point of one space", size=13.5, weight="bold")
    _say(ax, 20, 62, "A row is a method, a column a choice: equal words are equal choices.", FAINT, 9)
    _heads(ax, TOP - 18)
    y = float(TOP)
    for equation, group in methods.items():
        ax.plot([20, WIDTH - 20], [y + 5] * 2, color=RULE, lw=1)
        ax.text(20, y + 0.62 * HEAD, TITLES[equation], color=INK, fontsize=10, va="center", weight="bold")
        y += HEAD
        for name, (point, cost) in group.items():
            _row(ax, y, name, words(point, cost))
            y += LINE
    for k, line in enumerate(NOTES):
        _say(ax, 20, y + 30 + 25 * k, line, FAINT, 8.4)
    save_figure(figure, path, dpi=DPI)


def words(at: Coordinates, cost: Cost) -> dict[str, str]:
    """What stands in the cells of a row."""
    return {
        "velocity from": at.velocity,
        "pairs (s, t)": at.pairs,
        "taught by": _step(at),
        "detached": at.stop,
        "residual of": at.compared + (", normalised" if at.tangent.startswith("normalised") else ""),
        "weight": at.weight,
        "diagonal": at.diagonal.partition(",")[0],
        "work": f"{cost.work:.0f}",
    }


def _step(at: Coordinates) -> str:
    """The right-hand side in a few words."""
    number, _, jumps = at.legs.replace("two", "2").partition(" ")
    if jumps == "jumps":
        return f"{number} random jumps" if at.split == "uniform" else f"{number} equal jumps"
    if at.split == "all the way":
        return "solver alone"
    first = {"one cell": "one cell, then", "shrinks": "shrinks, then", "uniform": "random, then"}
    return f"{first.get(at.split, f'l {at.split},')} jump" if at.legs.startswith("velocity,") else at.legs


def _heads(ax: Axes, y: float) -> None:
    x = NAME
    for column, width in COLUMNS.items():
        _say(ax, x + 7, y, column, FAINT, 8.6)
        x += width


def _row(ax: Axes, y: float, name: str, cells: Mapping[str, str]) -> None:
    _say(ax, 20, y + LINE / 2, name, size=7.8, family="monospace")
    x = NAME
    for column, width in COLUMNS.items():
        _cell(ax, x, y, width, column, cells[column])
        x += width


def _cell(ax: Axes, x: float, y: float, width: float, column: str, word: str) -> None:
    if word == NONE:
        return
    known = HUES[column].items() if column in HUES else [("", (GREY, 0.07 * float(word) ** 0.7))]  # deeper: dearer
    hue, depth = next((value for begin, value in known if word.startswith(begin)), (GREY, 0.0))
    colour = tuple(1 - depth * (1 - c) for c in to_rgb(hue))
    shape = "round,pad=0,rounding_size=5"
    ax.add_patch(FancyBboxPatch((x, y + 2), width - 5, LINE - 4, boxstyle=shape, fc=colour, ec="none"))
    _say(ax, x + 7, y + LINE / 2, word.replace("<=", "≤").replace("^2", "²"), size=7.6)


def _say(ax: Axes, x: float, y: float, words: str, colour: str = INK, size: float = 9, **style: str) -> None:
    ax.text(x, y, words, color=colour, fontsize=size, va="center", ha="left", parse_math=False, **style)
