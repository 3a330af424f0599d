"""Checks of arguments; each error says what was got, what is allowed and how to fix it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SLACK = 1e-9  # relative tolerance of the checks of symmetry, sign and commutation


def finite(name: str, value: Any, rank: int, shape: str) -> Tensor:
    """Return `value` as a finite float64 tensor of `rank` axes, none of them empty; `shape` is what the error says."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if tensor.ndim != rank or tensor.numel() == 0:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}: reshape it to {rank} axes.")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity: check how it was computed.")
    return tensor


def covariance(name: str, value: Any, dim: int, batch: tuple[int, ...] = ()) -> Tensor:
    """Return `value` as symmetric positive semidefinite matrices `(*batch, dim, dim)`."""
    shape = (*batch, dim, dim)
    matrix = finite(name, value, len(shape), str(shape))
    if tuple(matrix.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(matrix.shape)}: for variances use torch.diag.")
    size = matrix.abs().amax()
    skew = (matrix - matrix.mT).abs().amax()
    if bool(skew > SLACK * size):
        raise ValueError(f"{name} must be symmetric, got entries that differ by {float(skew):.3g}: use (C + C.mT) / 2.")
    least = torch.linalg.eigvalsh(matrix).amin()
    if bool(least < -SLACK * size):
        raise ValueError(
            f"{name} must be positive semidefinite, got the eigenvalue {float(least):.3g}: use L @ L.mT for some L."
        )
    return (matrix + matrix.mT) / 2


def spectrum(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rounded up to zero, and eigenvectors of positive semidefinite matrices."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp_min(0), vectors


def positive(name: str, value: float) -> None:
    """Check that a number is positive and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive finite number, got {value}: use 1.0 for a standard normal base.")


def points(x: Any, dim: int) -> None:
    """Check that points are `(B, dim)` and floating point."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x must have shape (B, {dim}), got {tuple(x.shape)}: flatten or reshape the batch.")
    if not x.dtype.is_floating_point:
        raise ValueError(f"x must be floating point, got {x.dtype}: use x.float().")


def labels(cond: Any, rows: int, classes: int) -> None:
    """Check that labels are integers of shape `(B,)` in 0..classes - 1."""
    if not isinstance(cond, Tensor) or cond.is_floating_point() or tuple(cond.shape) != (rows,):
        got = f"{cond.dtype} {tuple(cond.shape)}" if isinstance(cond, Tensor) else repr(cond)
        raise ValueError(f"cond must be integer labels of shape ({rows},), got {got}: use None for the whole mixture.")
    if cond.device.type == "cpu" and rows and not bool(((cond >= 0) & (cond < classes)).all()):
        raise ValueError(
            f"cond must lie in 0..{classes - 1}, got labels from {int(cond.min())} to {int(cond.max())}: renumber them."
        )


def no_condition(cond: Any, name: str) -> None:
    """Check that there is no condition."""
    if cond is not None:
        raise ValueError(f"{name} has no classes, got cond={cond!r}: pass cond=None.")
