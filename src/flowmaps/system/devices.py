"""What this machine has: devices, and a compiler."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch


def can_compile() -> bool:
    """Whether there is the C++ compiler that torch.compile needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compiled(fn: Callable[..., Any], say: Callable[[str], None]) -> Callable[..., Any] | None:
    """A function of tensors of one shape compiled, or `None` with a word where there is no compiler."""
    if not can_compile():
        say("no C++ compiler found: training without torch.compile, at about half the speed.")
        return None
    return torch.compile(fn, dynamic=False, options=_inductor_options())


def _inductor_options() -> dict[str, Any]:
    """tanh on a CPU as 2 / (1 + exp(-2 x)) - 1: torch's own takes longer than a small network's matrix products.

    Its absolute error is 1e-7 in float32. The relative error is lost near 0, for which torch leaves it off
    (github.com/pytorch/pytorch/issues/148241); activations and their derivatives, of order one, do not see that.
    """
    wanted: dict[str, Any] = {"cpp.use_decompose_tanh": True}
    return {name: value for name, value in wanted.items() if name in torch._inductor.list_options()}


def pick_device(name: str) -> torch.device:
    """The device that a recipe names.

    Raises:
        ValueError: there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"--device {name} is not there: this machine's torch {torch.__version__} has cpu"
                         + (", cuda." if torch.cuda.is_available() else " only.")) from None  # fmt: skip
    return device
