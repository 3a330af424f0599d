"""The command `methods`: all methods by their equation, a line each."""

from __future__ import annotations

import inspect
import sys

from ..methods import METHODS
from .terminal import console


def show() -> None:
    """Print the methods."""
    for line in lines():
        console.print(line, soft_wrap=True, markup=False)


def lines() -> list[str]:
    """The methods under the first lines of their modules: name, first line of the docstring, source, jumps."""
    found: dict[str, list[str]] = {}
    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        heading = _first_line(sys.modules[method.objective.__module__])
        about = f"{_first_line(method.objective)} [from {method.learns_from.value}; jumps: {method.jumps.value}]"
        found.setdefault(heading, []).append(f"  {name:{width}}  {about}")
    return [line for heading, own in found.items() for line in (heading, *own, "")][:-1]


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]
