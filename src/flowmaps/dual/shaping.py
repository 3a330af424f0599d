"""Functions that move entries about: linear, the tangent goes through the same call; and casts, sizes, new tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import (
    Dual,
    composite,
    first_dual,
    linear_in_first,
    look_up,
    named,
    paired,
    run_tangent,
    tangent_of,
    tangent_or_zero,
    tangent_rule,
    values_of,
    without_tangent,
)
from .sharing import sharing

VIEWS = (
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "expand"),
    *("expand_as", "broadcast_to", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t"),
    *("select", "narrow", "diagonal", "unfold", "chunk", "split", "split_with_sizes", "tensor_split", "unbind"),
    *("unsafe_chunk", "unsafe_split", "hsplit", "vsplit", "dsplit", "adjoint", "__getitem__", "view_as_real"),
    *("contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"),
    *("atleast_1d", "atleast_2d", "atleast_3d", "view_as_complex", "resolve_conj", "resolve_neg", "cfloat", "cdouble"),
)
"""Functions whose result shares memory with their argument (or may)."""
MOVES = (
    *("clone", "repeat", "tile", "repeat_interleave", "roll", "flip", "fliplr", "flipud", "rot90"),
    *("gather", "index_select", "take_along_dim", "take", "tril", "triu", "diag", "diag_embed", "masked_select"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "fold", "trace"),
    *("cumsum", "sum", "mean", "sum_to_size", "squeeze_copy", "unsqueeze_copy", "expand_copy", "permute_copy"),
)
"""Linear functions of one argument whose result is a new tensor."""

linear_in_first(*named(*VIEWS, *MOVES))


for _function in named(*VIEWS, "positive", "__pos__", "conj", "as_strided"):
    composite(_function)(sharing(look_up(_function)))


def _properties() -> None:
    for name in ("T", "mT", "H", "mH"):
        getter = getattr(torch.Tensor, name).__get__
        setattr(Dual, name, property(_through(getter)))


def _through(getter: Any) -> Any:
    def turned(x: Any) -> Any:
        if not isinstance(x, Dual):
            return getter(x)
        return paired(getter(x.value), None if x.tangent is None else getter(x.tangent), x.detached)

    return sharing(turned)


_properties()


@composite(F.pad)
def _pad(x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    return paired(
        F.pad(x.value, pad, mode, value),
        None if x.tangent is None else run_tangent(x.detached, F.pad, x.tangent, pad, mode, None),
        x.detached,
    )


def _joined(function: Any) -> Any:
    """The rule of `cat` and `stack`: a missing tangent becomes zeros beside one that is there."""

    def tangents(parts: Any, *args: Any, **kwargs: Any) -> Tensor:
        found = [tangent_of(x) for x in parts]
        filled = [torch.zeros_like(values_of(x)) if t is None else t for x, t in zip(parts, found, strict=True)]
        return function(filled, *args, **kwargs)

    def handler(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = list(tensors)
        value = function(values_of(tensors), *args, **kwargs)
        found = first_dual(tensors)
        if found is None:
            return value
        return paired(value, run_tangent(found.detached, tangents, tensors, *args, **kwargs), found.detached)

    return handler


for _function in named(
    *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "row_stack", "column_stack"),
):
    composite(_function)(_joined(_function))


@composite(torch.block_diag)
def _block_diag(*tensors: Any) -> Any:
    return _joined(lambda parts: torch.block_diag(*parts))(tensors)


@tangent_rule(*named("diff"))
def _diff(y: Tensor, x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    ends = [None if e is None else tangent_or_zero(e) for e in (prepend, append)]
    return torch.diff(tangent_or_zero(x), n, dim, *ends)


@tangent_rule(torch.gradient)
def _gradient(y: Any, x: Any, *, spacing: Any = 1, **kwargs: Any) -> Any:
    if first_dual(spacing) is not None:
        raise NotImplementedError("torch.gradient of a spacing that has a tangent has no forward-mode rule.")
    return torch.gradient(x.tangent, spacing=spacing, **kwargs)


@composite(torch.vander)
def _vander(x: Any, N: int | None = None, increasing: bool = False) -> Any:
    powers = torch.arange(len(x) if N is None else N, device=x.device)
    return x.unsqueeze(-1) ** (powers if increasing else powers.flip(0))


@composite(torch.broadcast_tensors)
def _broadcast_tensors(*tensors: Any) -> Any:
    shape = torch.broadcast_shapes(*[x.shape for x in tensors])
    return tuple([x.expand(shape) for x in tensors])


@composite(torch.meshgrid)
def _meshgrid(*tensors: Any, indexing: str = "ij") -> Any:
    parts = list(tensors[0] if isinstance(tensors[0], (list, tuple)) else tensors)
    swapped = indexing == "xy" and len(parts) > 1
    if swapped:
        parts[:2] = parts[1::-1]
    sizes = [x.numel() for x in parts]
    axes = [[-1 if i == k else 1 for k in range(len(parts))] for i in range(len(parts))]
    grids = [x.reshape(axis).expand(sizes) for x, axis in zip(parts, axes, strict=True)]
    if swapped:
        grids = [x.transpose(0, 1) for x in grids]
        grids[:2] = grids[1::-1]
    return tuple(grids)


without_tangent(
    *named("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like"),
    *named("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "bernoulli", "bucketize", "searchsorted"),
    *named("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous", "get_device"),
    *named("is_floating_point", "is_complex", "is_signed", "element_size", "has_names", "is_same_size", "result_type"),
    *named("bool", "long", "int", "short", "char", "byte", "is_nonzero", "__len__", "is_pinned", "is_inference"),
)
