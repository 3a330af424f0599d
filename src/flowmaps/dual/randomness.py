"""Random numbers that several evaluations of one network share, as a difference of two of them needs.

`f(x + h v) - f(x - h v)` is a derivative only if dropout draws the same mask in both.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


class SharedNumbers:
    """The state of torch's generators, on the CPU and on the devices of some tensors, at the time of construction.

    Args:
        tensors: those that an evaluation starts from; anything else is passed over.
    """

    def __init__(self, tensors: Iterable[Any]) -> None:
        places = {x.device for x in tensors if isinstance(x, Tensor) and x.device.type not in ("cpu", "meta")}
        self._devices = sorted(places, key=str)
        self._start = self._state()

    def _state(self) -> list[Tensor]:
        others = [torch.get_device_module(d.type).get_rng_state(d) for d in self._devices]
        return [torch.get_rng_state(), *others]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            torch.get_device_module(device.type).set_rng_state(state, device)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Context in which the numbers from the time of construction are drawn again; they go on after it as before."""
        now = self._state()
        self._set(self._start)
        try:
            yield
        finally:
            self._set(now)


def uncompiled(function: Callable[..., Any], reason: str) -> Callable[..., Any]:
    """A function that Python runs, all that it calls included, where `torch.compile` meets it (`fullgraph` refuses).

    `torch.compiler.disable` says the same, and imports the compiler at once, which takes longer than all of flowmaps.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        return torch.compiler.disable(function)(*args) if "torch._dynamo" in sys.modules else function(*args)

    setattr(run, "_torchdynamo_disable", True)  # noqa: B010
    setattr(run, "_torchdynamo_disable_msg", reason)  # noqa: B010
    return run
