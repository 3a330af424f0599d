"""Whether a network computes along a derivative what it computes without one.

`isinstance(x, torch.Tensor)` is false for a `Dual`, and a network that asks takes its other branch: its value is
another, without an error. Comparing the two values once, before training, says so.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .randomness import SharedNumbers
from .states import Buffers

COMPARING = contextvars.ContextVar("COMPARING", default=False)
"""Whether `jvp` compares its value with a plain call."""


class ValuesDiffer(ValueError):
    """The value of a network along a derivative is not that of a plain call."""


def agree(evaluate: Callable[[], Any], tensors: Any) -> None:
    """Evaluate something that takes derivatives, once and without a gradient, and compare each value with a plain call.

    Random numbers and buffers are as before afterwards. Errors of other kinds are left to the evaluation that follows.

    Args:
        evaluate: calls `jvp`, perhaps.
        tensors: the tensors it starts from, whose devices draw the random numbers.

    Raises:
        ValuesDiffer: a network has another value along a derivative.
    """
    numbers, buffers, token = SharedNumbers(tensors), Buffers(), COMPARING.set(True)
    try:
        with torch.no_grad(), numbers.again(), buffers, contextlib.suppress(*_LEFT_TO_THE_NEXT):
            evaluate()
    finally:
        COMPARING.reset(token)
        buffers.restore()


_LEFT_TO_THE_NEXT = (NotImplementedError, TypeError, RuntimeError)


def compare(fn: Callable[..., Any], primals: tuple[Any, ...], along: Callable[[], tuple[Tensor, Any]]) -> Any:
    """Return what `along` does, the value and the tangent of `fn`, if the value is that of a plain call."""
    numbers = SharedNumbers(primals)
    with Buffers() as buffers:
        plain = fn(*primals)

    @contextlib.contextmanager
    def anew() -> Iterator[None]:
        with numbers.again(), buffers.again():
            yield

    with anew():
        repeated = fn(*primals)
    with anew():
        pair = along()
    if torch.equal(plain, repeated) and torch.isfinite(plain).all():  # else it has random numbers of its own
        size = plain.detach().abs().amax().double() if plain.numel() else torch.ones(())
        error = float(((pair[0] - plain).detach().abs().amax().double() / (size + 1e-12)).nan_to_num(nan=1.0))
        if error > _tolerance(plain):
            raise ValuesDiffer(
                f"the network has another value along a derivative than in a plain call, by {error:.2g} (relative): "
                "does it ask isinstance(x, torch.Tensor)? That is false along a derivative, and torch.is_tensor(x) is "
                "true: ask that. Or give the method engine='finite-difference'. flowmaps.dual.check(net, ...) names "
                "the module."
            )
    return pair


def _tolerance(x: Tensor) -> float:
    """Far above rounding: other kernels may be taken along a derivative."""
    exact = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)
    return 1e-2 if exact else 0.1
