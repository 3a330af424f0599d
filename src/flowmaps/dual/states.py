"""The buffers of a network as they were before an evaluation, for one that is evaluated more than once.

Statistics of BatchNorm, and other state, are to be updated once a call of `jvp`, and all its evaluations start from the
same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


class Buffers:
    """Context that keeps a copy of the buffers of each module that is called in it, before its call.

    Args:
        first: called with the first module.
    """

    def __init__(self, first: Callable[[nn.Module], None] | None = None) -> None:
        self.first, self.thread = first, threading.get_ident()
        self.kept: dict[nn.Module, dict[str, tuple[Tensor, Tensor]]] = {}

    def __enter__(self) -> Buffers:
        self.hook = register_module_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *error: Any) -> None:
        self.hook.remove()

    def _keep(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or module in self.kept or threading.get_ident() != self.thread:
            return
        if not self.kept and self.first is not None:
            self.first(module)
        for inner in module.modules():
            if inner not in self.kept:
                self.kept[inner] = {k: (x, _copy(x)) for k, x in inner._buffers.items() if x is not None}

    def restore(self) -> None:
        """Give all modules their buffers back, as they were."""
        for module, buffers in self.kept.items():
            for name, (buffer, copy) in buffers.items():
                module._buffers[name] = buffer
                with torch.no_grad():
                    if not torch.equal(buffer, copy):
                        buffer.copy_(copy)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Context in which the modules have copies of their buffers as they were; afterwards they have their own."""
        now = {module: dict(module._buffers) for module in self.kept}
        for module, buffers in self.kept.items():
            module._buffers.update({name: copy.clone() for name, (_, copy) in buffers.items()})
        try:
            yield
        finally:
            for module, buffers in now.items():
                module._buffers.clear()
                module._buffers.update(buffers)


def _copy(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return x.detach().clone()
