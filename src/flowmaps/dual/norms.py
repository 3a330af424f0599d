"""Normalisations: `n = (x - m) r`, `r = (var x + eps)^(-1/2)`, over some axes.

The tangent is `r (v - mean v - n mean(n v))`; its gradient is plain reverse mode of this line, so it is right where
`torch.func.jvp`'s second derivative is not (pytorch#175754: layer_norm, instance_norm, batch_norm in training).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import Dual, composite, named, tangent_of, tangent_rule


def _single_precision(x: Tensor) -> Tensor:
    """Statistics are taken in float32 at least, as torch's own kernels do."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _normalised(x: Any, axes: tuple[int, ...], eps: float) -> Tensor:
    """The tangent of `(x - m) r` over these axes."""
    value, tangent = _single_precision(x.value), _single_precision(x.tangent)  # type: ignore[arg-type]
    centred = value - value.mean(axes, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    n = centred * scale
    return scale * (tangent - tangent.mean(axes, keepdim=True) - n * (n * tangent).mean(axes, keepdim=True))


def _by_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(-1, *[1] * (x.dim() - 2))


def _no_duals(name: str, *parameters: Any) -> None:
    if any(isinstance(p, Dual) for p in parameters):
        raise NotImplementedError(
            f"{name} with a weight or bias that has a tangent: call it without them, then multiply and add."
        )


@tangent_rule(*named("layer_norm"))
def _layer_norm(
    y: Tensor,
    x: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    _no_duals("F.layer_norm", weight, bias)
    out = _normalised(x, tuple(range(-len(normalized_shape), 0)), eps)
    return out if weight is None else out * weight


@tangent_rule(*named("rms_norm"))
def _rms_norm(y: Tensor, x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    _no_duals("F.rms_norm", weight)
    value, tangent = _single_precision(x.value), _single_precision(x.tangent)
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.value.dtype).eps if eps is None else eps
    scale = torch.rsqrt(value.square().mean(axes, keepdim=True) + eps)
    n = value * scale
    out = scale * (tangent - n * (n * tangent).mean(axes, keepdim=True))
    return out if weight is None else out * weight


@tangent_rule(*named("group_norm"))
def _group_norm(
    y: Tensor,
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    _no_duals("F.group_norm", weight, bias)
    # split, not reshaped: a channels-last tensor stays one, and is not copied
    groups = Dual(x.value.unflatten(1, (num_groups, -1)), x.tangent.unflatten(1, (num_groups, -1)))
    out = _normalised(groups, tuple(range(2, groups.value.dim())), eps).flatten(1, 2)
    return out if weight is None else out * _by_channel(weight, out)


@tangent_rule(F.instance_norm)
def _instance_norm(
    y: Tensor,
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    _no_duals("F.instance_norm", weight, bias)
    if use_input_stats:
        out = _normalised(x, tuple(range(2, x.value.dim())), eps)
    else:
        out = x.tangent * _by_channel(torch.rsqrt(running_var + eps), x.tangent)
    return out if weight is None else out * _by_channel(weight, out)


@tangent_rule(F.batch_norm)
def _batch_norm(
    y: Tensor,
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """The running statistics have been updated once, by the value."""
    _no_duals("F.batch_norm", weight, bias)
    if training or running_mean is None:
        out = _normalised(x, (0, *range(2, x.value.dim())), eps)
    else:
        out = x.tangent * _by_channel(torch.rsqrt(running_var + eps), x.tangent)
    return out if weight is None else out * _by_channel(weight, out)


@composite(F.local_response_norm)
def _local_response_norm(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    square = (x * x).unsqueeze(1)
    axes = x.dim() - 2
    padded = F.pad(square, (0, 0) * axes + (size // 2, (size - 1) // 2))
    window = padded.unfold(2, size, 1).mean(-1).squeeze(1)
    return x / (window * alpha + k) ** beta


@composite(F.normalize)
def _normalize(x: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: None = None) -> Any:
    return x / torch.linalg.vector_norm(x, p, dim, keepdim=True).clamp_min(eps)


@tangent_rule(torch.linalg.vector_norm)
def _vector_norm(y: Tensor, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """`sum sign(x) |x|^(p-1) v / y^(p-1)`, zero where the norm is."""
    value, tangent = x.value, x.tangent
    if value.is_complex() and ord != 2:
        return tangent_of(torch.linalg.vector_norm(x.abs(), ord, dim, keepdim))
    axes = tuple(range(value.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    norm = y
    if not keepdim:
        for axis in sorted(a % value.dim() for a in axes):
            norm = norm.unsqueeze(axis)
    if ord == float("inf") or ord == float("-inf"):
        hit = (value.abs() == norm).to(value.dtype)
        return (hit / hit.sum(axes, keepdim=True) * value.sign() * tangent).sum(axes, keepdim=keepdim)
    unit = value / torch.where(norm == 0, 1.0, norm)
    if ord == 2 and value.is_complex():
        return (unit.conj() * tangent).real.sum(axes, keepdim=keepdim)
    if ord == 2:
        return (unit * tangent).sum(axes, keepdim=keepdim)
    return (unit.sign() * unit.abs() ** (ord - 1) * tangent).sum(axes, keepdim=keepdim)


@composite(*named("norm"))
def _norm(x: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, out: None = None, dtype: Any = None) -> Any:
    order = 2 if p in ("fro", None) else p
    return torch.linalg.vector_norm(x, order, dim, keepdim)


@composite(torch.linalg.norm)
def _linalg_norm(x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    matrix = dim is not None and not isinstance(dim, int) and len(dim) == 2
    if ord not in (None, "fro") and (matrix or (dim is None and x.dim() == 2)):
        return torch.linalg.matrix_norm(x, ord, (-2, -1) if dim is None else dim, keepdim)
    return torch.linalg.vector_norm(x, 2 if ord in (None, "fro") else ord, dim, keepdim)


@composite(torch._weight_norm)  # type: ignore[attr-defined, reportPrivateImportUsage]
def _weight_norm(v: Any, g: Any, dim: int = 0) -> Any:
    """`g v / |v|`, the norm over all axes but `dim` (over all for -1)."""
    axes = tuple(i for i in range(v.dim()) if i != dim)
    return v * (g / torch.linalg.vector_norm(v, 2, axes, keepdim=True))
