"""The device of the tests in tests/gpu, and how results on it are compared with the CPU's.

python -m pytest -m gpu tests/gpu                              on a machine with a GPU
FLOWMAPS_TEST_DEVICE=cpu python -m pytest -m gpu tests/gpu     a dry run on the CPU, without what needs CUDA itself
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

DEVICE = torch.device(os.environ.get("FLOWMAPS_TEST_DEVICE", "cuda"))

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.type == "cuda" and not torch.cuda.is_available(),
        reason="needs a GPU; FLOWMAPS_TEST_DEVICE=cpu runs this on the CPU",
    ),
]
"""The marks of a file of tests on the device."""
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs CUDA itself, on the CPU there is nothing to test")


def missing_for_triton() -> str:
    """What Triton lacks here to build its launcher, in words; empty where it lacks nothing."""
    if not any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "gcc", "clang")):
        return "no C compiler, which Triton needs"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "no Python.h (package python3-dev), which Triton needs"
    return ""


def generator(seed: int) -> torch.Generator:
    """A generator on the device."""
    return torch.Generator(DEVICE).manual_seed(seed)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of some tensors in float64, on the CPU."""
    return torch.cat([value.detach().cpu().double().flatten() for value in tensors])


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The norm of the difference over the norm of what is wanted; infinite if that is zero."""
    ours, theirs = joined(found), joined(wanted)
    return float((ours - theirs).norm() / theirs.norm()) if bool(theirs.any()) else float("inf")
