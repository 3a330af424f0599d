"""Pooling and interpolation (linear: one call over the joined batch), maximum pooling, dropout, checkpoints."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .core import METHODS, Dual, composite, paired, rebind, run_tangent, unpack, values_of
from .linear import apply_linear


def _averaging(function: Any) -> Any:
    """The rule of a linear function of a batch, whose first axis may be doubled."""

    def handler(x: Any, *args: Any, **kwargs: Any) -> Any:
        if x.tangent is None:
            return function(x.value, *args, **kwargs)
        return paired(*apply_linear(function, x, *args, batched=True, **kwargs), x.detached)

    return handler


for _function in (
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.interpolate, F.upsample, F.unfold, F.fold),
):
    composite(_function)(_averaging(_function))


def _maximal(indexed: Any) -> Any:
    """The rule of maximum pooling: the tangent is read at the places of the maxima."""

    def handler(x: Any, *args: Any, return_indices: bool = False, **kwargs: Any) -> Any:
        kwargs.pop("ceil_mode", None) if not kwargs.get("ceil_mode") else None
        value, places = indexed(x.value, *args, **kwargs)
        if x.tangent is None:
            return (value, places) if return_indices else value
        out = paired(value, run_tangent(x.detached, _read, x.tangent, places), x.detached)
        return (out, places) if return_indices else out

    def _read(tangent: Tensor, places: Tensor) -> Tensor:
        axes = 1 if indexed in ONE else 2 if indexed in TWO else 3
        return tangent.flatten(-axes).gather(-1, places.flatten(-axes)).view(places.shape)

    return handler


ONE = (F.max_pool1d_with_indices, F.adaptive_max_pool1d_with_indices)
TWO = (F.max_pool2d_with_indices, F.adaptive_max_pool2d_with_indices, F.fractional_max_pool2d_with_indices)

for _function, _indexed in (
    (F.max_pool1d, F.max_pool1d_with_indices),
    (F.max_pool2d, F.max_pool2d_with_indices),
    (F.max_pool3d, F.max_pool3d_with_indices),
    (F.adaptive_max_pool1d, F.adaptive_max_pool1d_with_indices),
    (F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices),
    (F.adaptive_max_pool3d, F.adaptive_max_pool3d_with_indices),
    (F.fractional_max_pool2d, F.fractional_max_pool2d_with_indices),
    (F.fractional_max_pool3d, F.fractional_max_pool3d_with_indices),
):
    composite(_function, _indexed)(_maximal(_indexed))


def _dropping(function: Any) -> Any:
    """The rule of dropout: value and tangent under one mask, the one that the value alone would draw."""

    def handler(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if not training or p == 0:
            return x
        out = x * function(torch.ones_like(values_of(x)), p, True)
        return rebind(x, out) if inplace else out

    return handler


for _function in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d):
    composite(_function)(_dropping(_function))
for _function in (torch.dropout, torch.feature_dropout):
    composite(_function)(_dropping(_function))


@composite(checkpoint)
def _checkpoint(function: Any, *args: Any, use_reentrant: bool | None = None, **kwargs: Any) -> Any:
    """Met under `torch.compile` only, where a region takes and returns tensors; in Python a `Dual` goes through it."""
    pairs = [unpack(x) for x in args]
    dual = [isinstance(x, Dual) for x in args]
    detached = any(x.detached for x in args if isinstance(x, Dual))

    def of_tensors(values: list[Any], tangents: list[Any]) -> Any:
        inputs = [Dual(v, t, detached) if d else v for v, t, d in zip(values, tangents, dual, strict=True)]
        return unpack(function(*inputs))

    value, tangent = checkpoint(
        of_tensors, [v for v, _ in pairs], [t for _, t in pairs], use_reentrant=use_reentrant, **kwargs
    )
    return paired(value, tangent, detached)


METHODS["tag_activation_checkpoint"] = _checkpoint  # the name it has under the compiler of torch 2.11
