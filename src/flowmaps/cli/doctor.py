"""The command `doctor`: what a network of the user's own can be trained with, on one screen."""

from __future__ import annotations

from collections.abc import Iterable

from ..runs.doctor import Cost, Diagnosis, ExaminedNetwork, examine
from ..runs.own_networks import load_network
from ..system.devices import pick_device
from .terminal import console, watching

SHOWN = 6
"""Names in a line, at most."""


def doctor(network: str, shape: str, classes: int | None, batch: int, device: str) -> None:
    """Examine a network and print what was found.

    Args:
        network: `module:Class`, or a function without arguments that returns a network.
        shape: of a sample, such as `3,32,32`.
        classes: number of classes, if the network takes labels.
        batch: rows of a step.
        device: where to run it.

    Raises:
        ValueError: an argument is wrong, or the network cannot be called.
    """
    sizes = _shape(shape)
    for name, number in {"--batch": batch, "--classes": classes}.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be positive, got {number}.")
    examined = ExaminedNetwork(load_network(network, "doctor"), sizes, classes, batch, pick_device(device))
    with watching("doctor") as watch:
        found = examine(examined, watch)
    for line in report(found, sizes, batch):
        console.print(line, soft_wrap=True, markup=False)


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--shape must be whole numbers with commas, such as 3,32,32, got {text!r}.")
    return sizes


def report(found: Diagnosis, shape: tuple[int, ...], batch: int) -> list[str]:
    """The lines of a diagnosis."""
    seconds, used = found.plain
    sizes = " x ".join(map(str, shape))
    lines = [f"{found.name}: {found.parameters:,} parameters, {batch} samples of {sizes}", "", "derivatives (dual)"]
    surveyed = found.survey
    lines.append(_line("by a rule", _names(surveyed.rules)))
    lines.append(_line("by torch.func.jvp of a call", _names(surveyed.fallback)))
    lines.append(_line("refused", _names(f"{name} ({why})" for name, why in surveyed.refused.items())))
    right = "right" if found.error is None else f"right, relative error {found.error:.1e}"
    lines.append(
        _line(
            "value, derivative, gradient",
            right if not found.fault else f"WRONG OR MISSING: {_shortened(found.fault, 320)}",
        )
    )
    lines += [_line("", note) for note in found.notes]
    memory = "" if used is None else f", {used / 2**20:,.1f} MiB"
    lines += [
        "",
        f"a step with a derivative, beside a plain forward and backward pass ({1e3 * seconds:,.1f} ms{memory})",
    ]
    lines += [_line(name, _cost(cost)) for name, cost in found.costs.items()]
    lines.append(_line("torch.compile (dual)", found.compiled))
    able = [name for name, why in found.methods.items() if not why]
    unable = {name: why for name, why in found.methods.items() if why}
    lines += ["", "methods", _line(f"can train it ({len(able)})", ", ".join(able) or "none")]
    for why in dict.fromkeys(unable.values()):
        names = [name for name, reason in unable.items() if reason == why]
        lines.append(_line(f"cannot ({len(names)})", f"{', '.join(names)}: {_shortened(why)}"))
    if unable:
        lines.append(_line("", 'a method refused for its derivative takes engine="finite-difference"'))
    return lines


def _line(head: str, text: str) -> str:
    return f"  {head:<29} {text}"


def _names(names: Iterable[str]) -> str:
    found = list(names)
    if not found:
        return "none"
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{len(found)}: {', '.join(found[:SHOWN])}{more}"


def _cost(cost: Cost) -> str:
    if cost.refusal:
        return f"refused: {_shortened(cost.refusal)}"
    memory = "" if cost.memory is None else f", {cost.memory:.1f} times the memory"
    return f"{cost.time:.1f} times the time{memory}"


def _shortened(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
