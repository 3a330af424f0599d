"""Derivatives along a line by differences, also of functions with kinks (relu, abs, max, clamp).

    f'(0) ~ (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h

A kink between the points of a difference makes it wrong, whatever the derivative. So a derivative is compared at steps
that become smaller until no kink lies between; an entry whose slopes to the left and to the right differ at each step
is at a kink itself, where there is no derivative to compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Line = Callable[[float], Tensor]
"""A function of a step along a line; its values are tensors of one shape."""
STEPS = (1e-5, 1e-6, 1e-7, 1e-8)


def difference(function: Line, step: float = STEPS[0]) -> Tensor:
    """The derivative at 0, to fourth order in the step."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


def compare(found: Tensor, function: Line, floor: float, tolerance: float) -> tuple[float, Tensor]:
    """Compare a derivative with differences of the function.

    Args:
        found: the derivative at 0.
        function: what it is the derivative of.
        floor: added to the largest entry, to which errors are relative.
        tolerance: the error that is allowed.

    Returns:
        The largest relative error of the entries that are not at a kink, and which entries are.
    """
    error = size = None
    for step in STEPS:
        expected = difference(function, step)
        size = expected.abs().amax() + floor + 1e-12 if size is None else size
        apart = (found - expected).abs() / size
        error = apart if error is None else torch.minimum(error, apart)
        if bool((error <= tolerance).all()):
            return float(error.amax()), torch.zeros_like(found, dtype=torch.bool)
    assert error is not None
    kinks = ~(error <= tolerance) & _at_kink(function, 10 * tolerance * float(size))  # type: ignore[arg-type]
    rest = error[~kinks]
    return float(rest.amax()) if len(rest) else 0.0, kinks


def _at_kink(function: Line, least: float) -> Tensor:
    """Where the slopes to both sides differ by more than `least`, and not in proportion to the step."""
    here, gaps = function(0.0), []
    for step in (1e-6, 1e-7):
        gaps.append((function(step) + function(-step) - 2 * here).abs() / step)
    return (gaps[1] > least) & (gaps[1] > 0.5 * gaps[0])


def smooth(function: Line, floor: float) -> tuple[float, Tensor]:
    """The step at which most entries of a function have a derivative, and which these are: at a tenth it is the same.

    A function that jumps between the points has none: its difference grows as the step shrinks.
    """
    best: tuple[float, Tensor] | None = None
    for step, finer in pairwise(STEPS):
        a, b = difference(function, step), difference(function, finer)
        same = (a - b).abs() <= 1e-6 * (b.abs() + b.abs().median() + floor)
        if best is None or int(same.sum()) > int(best[1].sum()):
            best = step, same
        if bool(same.all()):
            break
    assert best is not None
    return best
