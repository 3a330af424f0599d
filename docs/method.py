"""What the code says of a method: its docstring, its point of the space, its cost, and how it is used."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import space
import torch

import flowmaps as fm

NAMES = list(fm.methods.METHODS)
AXES = {
    "equation": "equation",
    "path": "interpolant",
    "velocity": "velocity from",
    "pairs": "pairs (s, t)",
    "legs": "right-hand side by",
    "split": "share l of its first leg",
    "stop": "detached",
    "target": "network on the right",
    "compared": "residual of",
    "weight": "weight",
    "tangent": "tangent",
    "diagonal": "rows that match a velocity",
    "coupling": "noise and data",
}


@dataclass(frozen=True)
class Text:
    """A docstring in its parts: paragraphs (formulas indented), sections, arguments by name."""

    title: str
    body: list[str]
    references: str
    sections: dict[str, str]
    arguments: dict[str, str]


@cache
def text(name: str) -> Text:
    """The docstring of a method."""
    blocks = (inspect.getdoc(function(name)) or "").split("\n\n")
    body, sections, arguments, references = [], {}, {}, ""
    for block in blocks[1:]:
        head, _, rest = block.partition("\n")
        if head == "Args:":
            entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", rest, re.M)
            arguments = {key: " ".join(words.split()) for key, words in entries}
        elif head == "Raises:":  # of the reference
            continue
        elif head.endswith(":") and rest.startswith("    "):
            sections[head[:-1]] = " ".join(rest.split())
        elif head.startswith(("Reference: ", "References: ")):
            references = " ".join(block.split()).partition(": ")[2]
        else:
            body.append(block if block.startswith("    ") else " ".join(block.split()))
    return Text(" ".join(blocks[0].split()), body, references, sections, arguments)


def function(name: str) -> Callable[..., Any]:
    """The method of a name."""
    return vars(fm.methods)[name]


@cache
def example(name: str) -> fm.objectives.Objective:
    """A method with the options of its paper, on the library's network; its teacher is a network of the same make."""
    torch.manual_seed(0)
    net, teacher = fm.nn.MLP(dim=2), fm.maps.AverageVelocity(fm.nn.MLP(dim=2))
    given = {"teacher": teacher.velocity} if needs_teacher(name) else {}
    return function(name)(fm.methods.METHODS[name].flow_map(net), **given)


def needs_teacher(name: str) -> bool:
    """Whether a method cannot do without a teacher."""
    if "teacher" not in inspect.signature(function(name)).parameters:
        return False
    try:
        function(name)(fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=4)))
    except ValueError:
        return True
    return False


@cache
def point(name: str) -> space.Coordinates:
    """Where a method lies."""
    return space.coordinates(example(name))


@cache
def cost(name: str) -> tuple[space.Cost, float]:
    """What a row off the diagonal costs, and the mean work of all rows."""
    objective = example(name)
    off = space.cost(objective)
    if not isinstance(objective, fm.objectives.SplitRows):
        return off, off.work
    return off, objective.share * space.cost(objective.first).work + (1 - objective.share) * off.work


def differing(one: str, two: str) -> dict[str, str]:
    """The axes on which two methods differ, with the second's words; what follows from another axis is left out."""
    first, second = asdict(point(one)), asdict(point(two))
    other = {axis for axis, word in second.items() if word != first[axis]}
    other -= {"equation"} if "legs" in other else set()
    other -= {"split"} if "legs" in other and second["split"] == space.NONE else set()
    found = {AXES[axis]: second[axis].replace(space.NONE, "none") for axis in AXES if axis in other}
    maps = [fm.methods.METHODS[name].flow_map.__name__ for name in (one, two)]  # type: ignore[attr-defined]
    return found if maps[0] == maps[1] else {"map": f"`maps.{maps[1]}`", **found}


def neighbours(name: str) -> list[str]:
    """The methods that differ from one on the fewest axes, three at most."""
    numbers = {other: len(differing(name, other)) + len(differing(other, name)) for other in NAMES if other != name}
    near = {other: number for other, number in numbers.items() if number <= max(min(numbers.values()), 4)}
    return sorted(near, key=near.__getitem__)[:3]


VELOCITY = ["train(fm.methods.flow_matching(flow_map))  # a velocity first, ...",
            "flow_map.net.zero_second_time()  # ... then jumps that follow it"]  # fmt: skip
FIRST = {
    "progressive_distillation": VELOCITY,
    "easy_consistency_tuning": VELOCITY,
    "anyflow": VELOCITY,
    "pfmm": ["train(fm.methods.fmm(flow_map, times=fm.times.Strip(0.25)))  # short jumps first"],
}
"""What comes before a method that starts from a trained map."""
CONSTANT, OF_JUMP = "fm.losses.Constant()", "fm.losses.SplitPower(-1)"
IN_THE_PLANE = {
    "meanflow": CONSTANT, "improved_meanflow": CONSTANT, "pixel_meanflow": CONSTANT, "anyflow": CONSTANT,
    "alphaflow": OF_JUMP, "soflow": OF_JUMP,
}  # fmt: skip
"""The weight in few dimensions of a method whose paper's is adaptive."""


def snippet(name: str) -> str:
    """A whole use of a method, from data to samples."""
    at, objective, jumps = point(name), example(name), fm.methods.METHODS[name].jumps
    rotating = isinstance(objective.flow_map, fm.maps.Trigonometric)
    path = "interpolant=fm.interpolants.Trigonometric()" if rotating else ""
    given = ", teacher=board.velocity" if needs_teacher(name) else ""
    why = "data, and their exact velocity as the teacher" if given else "data"
    sampler = "fm.samplers.Jump(steps=4)(flow_map, torch.randn(1000, 2))"
    if at.equation == "velocity":
        sampler = 'fm.solvers.SolverFlow(flow_map.velocity, method="heun2", steps=8)(x0, 0 * one, one)'
    elif jumps is fm.methods.Jumps.FROM_BASE:
        sampler = sampler.replace("4", "1", 1)
    elif jumps is fm.methods.Jumps.TO_DATA:
        grid = f"grid=[0.0, 0.5]{', ' + path if path else ''}"
        sampler = f"fm.samplers.MultistepConsistency({grid})(flow_map, torch.randn(1000, 2), torch.randn(1, 1000, 2))"
    weight = f", weight={IN_THE_PLANE[name]}" if name in IN_THE_PLANE else ""
    made = f"fm.methods.{name}(flow_map{given}{weight})"
    note = "  # the paper's weight is adaptive, for images" if weight else ""
    loop = [
        "optimiser = torch.optim.Adam(objective.parameters(), lr=1e-3)",
        "for step in range(steps):",
        "    loss = objective(board.sample(256), progress=step / steps)",
        "    optimiser.zero_grad()", "    loss.value.backward()", "    optimiser.step()",
        "    objective.step((step + 1) / steps)" + ("  # its target moves" if objective.moving_targets() else ""),
    ]  # fmt: skip
    lines = [
        "import torch", "import flowmaps as fm", "",
        f"board = fm.exact.Checkerboard({path})  # {why}",
        f"flow_map = fm.maps.{type(objective.flow_map).__name__}(fm.nn.MLP(dim=2))",
        "steps = 1000",
    ]  # fmt: skip
    if name in FIRST:
        lines += [
            "",
            "def train(objective):",
            *(f"    {line}" for line in loop),
            "",
            *FIRST[name],
            f"train({made}){note}",
        ]
    else:
        lines += [f"objective = {made}{note}", *loop]
    if at.equation == "velocity":
        lines += ["x0, one = torch.randn(1000, 2), torch.ones(1000)"]
    return "\n".join([*lines, f"samples = {sampler}"])
