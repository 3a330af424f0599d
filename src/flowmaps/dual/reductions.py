"""Reductions that are not linear: softmax, log-sum-exp, variances, products, maxima."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import Dual, composite, first_dual, like_sequence, named, paired, run_tangent, tangent_rule, unpack


def _soften(p: Tensor, tangent: Tensor, dim: int) -> Tensor:
    """`p (v - sum p v)`: the tangent of softmax."""
    weighted = p * tangent
    return weighted - p * weighted.sum(dim, keepdim=True)


@tangent_rule(*named("softmax"))
def _softmax(y: Tensor, x: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return _soften(y, x.tangent.to(y.dtype), dim)


@composite(F.softmin)
def _softmin(x: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return torch.softmax(-x, dim, dtype=dtype)


@tangent_rule(*named("log_softmax"))
def _log_softmax(y: Tensor, x: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    tangent = x.tangent.to(y.dtype)
    return tangent - (y.exp() * tangent).sum(dim, keepdim=True)


@tangent_rule(*named("logsumexp"))
def _logsumexp(y: Tensor, x: Any, dim: Any, keepdim: bool = False) -> Any:
    kept = torch.logsumexp(x.value, dim, keepdim=True)
    return (torch.exp(x.value - kept) * x.tangent).sum(dim, keepdim=keepdim)


@tangent_rule(*named("logcumsumexp"))
def _logcumsumexp(y: Tensor, x: Any, dim: int) -> Any:
    top = x.value.detach().amax(dim, keepdim=True)
    weights = torch.exp(x.value - top)
    return (weights * x.tangent).cumsum(dim) / weights.cumsum(dim)


def _moments(x: Any, dim: Any, correction: Any, keepdim: bool) -> tuple[Any, Tensor]:
    """The axes, and the tangent of the variance, `2 / (N - c) sum (x - m) v`."""
    value, tangent = unpack(x)
    if value.is_complex():
        raise NotImplementedError("the variance of complex numbers has no forward-mode rule: add those of both parts.")
    axes = tuple(range(value.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    count = 1
    for axis in axes:
        count *= value.shape[axis]
    centred = value - value.mean(axes, keepdim=True)
    return axes, (centred * tangent).sum(axes, keepdim=keepdim) * (2 / max(count - correction, 0))


def _variance_arguments(dim: Any, unbiased: Any, correction: Any) -> tuple[Any, Any]:
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    return dim, (1 if correction is None else correction) if unbiased is None else int(unbiased)


@tangent_rule(*named("var"))
def _var(
    y: Tensor, x: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Any:
    dim, correction = _variance_arguments(dim, unbiased, correction)
    return _moments(x, dim, correction, keepdim)[1]


@tangent_rule(*named("std"))
def _std(
    y: Tensor, x: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Any:
    dim, correction = _variance_arguments(dim, unbiased, correction)
    return _moments(x, dim, correction, keepdim)[1] / (2 * torch.where(y == 0, 1.0, y))


@composite(torch.var_mean)
def _var_mean(x: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None) -> Any:
    dim, correction = _variance_arguments(dim, unbiased, correction)
    return torch.var(x, dim, correction=correction, keepdim=keepdim), x.mean(dim, keepdim=keepdim)


@composite(torch.std_mean)
def _std_mean(x: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None) -> Any:
    dim, correction = _variance_arguments(dim, unbiased, correction)
    return torch.std(x, dim, correction=correction, keepdim=keepdim), x.mean(dim, keepdim=keepdim)


@tangent_rule(*named("prod"))
def _prod(y: Tensor, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """`sum_i v_i prod_{j != i} x_j`, by products from the left and from the right: right at zeros too."""
    value, tangent = unpack(x)
    if dim is None:
        value, tangent, dim, keepdim = value.flatten(), tangent.flatten(), 0, False
    ones = torch.ones_like(value.narrow(dim, 0, 1))
    length = value.shape[dim]
    left = torch.cat([ones, value.narrow(dim, 0, length - 1)], dim).cumprod(dim)
    right = torch.cat([ones, value.flip(dim).narrow(dim, 0, length - 1)], dim).cumprod(dim).flip(dim)
    return (left * right * tangent).sum(dim, keepdim=keepdim)


@tangent_rule(*named("amax", "amin"))
def _extreme(y: Tensor, x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    """Ties share evenly, as in torch's gradient."""
    value, tangent = unpack(x)
    axes = tuple(range(value.dim())) if dim == () else (dim,) if isinstance(dim, int) else tuple(dim)
    kept = y
    if not keepdim:
        for axis in sorted(a % value.dim() for a in axes):
            kept = kept.unsqueeze(axis)
    hit = (value == kept).to(value.dtype)
    return (hit / hit.sum(axes, keepdim=True) * tangent).sum(axes, keepdim=keepdim)


def _extreme_along(name: str, binary: Any, whole: Any) -> Any:
    function = getattr(torch, name)

    def handler(x: Any, dim: Any = None, keepdim: bool = False, other: Any = None) -> Any:
        if isinstance(dim, (Tensor, Dual)) or other is not None:
            return binary(x, dim if other is None else other)
        if dim is None:
            return whole(x)
        out = function(x.value, dim, keepdim)
        return like_sequence(out, [_picked(x, out, dim, keepdim), out.indices])

    return handler


def _picked(x: Dual, out: Any, dim: int, keepdim: bool) -> Any:
    """The values found at `out.indices`, with their tangents."""
    if first_dual(x) is None:
        return out.values
    return paired(out.values, run_tangent(x.detached, _gathered, x.tangent, out.indices, dim, keepdim), x.detached)


def _gathered(tangent: Tensor, indices: Tensor, dim: int, keepdim: bool) -> Tensor:
    if keepdim or tangent.dim() == 0:
        return tangent.gather(dim, indices)
    return tangent.gather(dim, indices.unsqueeze(dim)).squeeze(dim)


composite(*named("max"))(_extreme_along("max", torch.maximum, torch.amax))
composite(*named("min"))(_extreme_along("min", torch.minimum, torch.amin))


@composite(*named("median"))
def _median(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    if dim is None:
        return _median(x.flatten(), 0)[0]
    out = torch.median(x.value, dim, keepdim)
    return like_sequence(out, [_picked(x, out, dim, keepdim), out.indices])


@composite(*named("sort"))
def _sort(x: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    out = torch.sort(x.value, dim=dim, descending=descending, stable=stable)
    return like_sequence(out, [_picked(x, out, dim, True), out.indices])


@composite(*named("topk"))
def _topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    out = torch.topk(x.value, k, dim, largest, sorted)
    return like_sequence(out, [_picked(x, out, dim, True), out.indices])


@tangent_rule(*named("cumprod"))
def _cumprod(y: Tensor, x: Any, dim: int, *, dtype: Any = None) -> Any:
    """`t_k = t_{k-1} x_k + y_{k-1} v_k`, pairs joined over spans of 1, 2, 4, ... entries: right at zeros too."""
    value, tangent = x.value.to(y.dtype), x.tangent.to(y.dtype)
    if not value.dim():
        return tangent
    length, span = value.shape[dim], 1
    while span < length:
        ahead = [a.narrow(dim, 0, span) for a in (value, tangent)]
        left, right = ([a.narrow(dim, k, length - span) for a in (value, tangent)] for k in (0, span))
        joined = left[0] * right[0], left[1] * right[0] + left[0] * right[1]
        value, tangent = (torch.cat(pair, dim) for pair in zip(ahead, joined, strict=True))
        span *= 2
    return tangent


@tangent_rule(*named("cosine_similarity"))
def _cosine(y: Tensor, a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    out = (F.normalize(a, dim=dim, eps=eps) * F.normalize(b, dim=dim, eps=eps)).sum(dim)
    return unpack(out)[1]


@composite(F.mse_loss)
def _mse_loss(input: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", **_: Any):
    return _reduced((input - target) ** 2, reduction)


@composite(F.l1_loss)
def _l1_loss(input: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", **_: Any):
    return _reduced((input - target).abs(), reduction)


@composite(F.binary_cross_entropy)
def _binary_cross_entropy(
    input: Any, target: Any, weight: Any = None, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Any:
    """Logarithms are at least -100, as in torch."""
    log, other = torch.log(input).clamp_min(-100), torch.log1p(-input).clamp_min(-100)
    loss = -(target * log + (1 - target) * other)
    return _reduced(loss if weight is None else loss * weight, reduction)


def _reduced(x: Any, reduction: str) -> Any:
    return x.mean() if reduction == "mean" else x.sum() if reduction == "sum" else x
