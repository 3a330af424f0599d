"""Attention's tangent by a fused kernel: optional, on CUDA, and only where the tangent takes no gradient.

The package `jvp_flash_attention` (A. Morehead et al., doi 10.5281/zenodo.17050188) has a Triton kernel of the tangent

    do = P dv + (P dS) v - (sum P dS) o,    dS = (dq k^T + q dk^T) scale,    P = softmax(q k^T scale)

that never writes P to memory. It is not differentiable: a gradient through `do` would be lost without an error, so that
the rule of `attention` is used wherever a gradient is taken.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import Dual, tangent_of, values_of

Kernel: TypeAlias = Callable[..., tuple[Tensor, Tensor, Tensor]]
_SIZES = (32, 64, 128, 256)
"""Head sizes that the kernel is compiled for; others are padded with zeros."""
_BLOCK = 32
"""The kernel reads the sequence in blocks of this length, and does not check for its end."""
_HALF = (torch.float16, torch.bfloat16)
_DEVICE = "cuda"
_kernel: Kernel | None = None


def flash(on: bool = True) -> None:
    """Compute attention's tangents by a fused kernel, from now on, where they need no autograd graph.

    These are tangents with `detach_tangent=True`, as for a target under a stop-gradient, or under `torch.no_grad`; on
    CUDA, in half precision or such an autocast, without mask, dropout or causality, for self-attention over a multiple
    of 32 tokens. All others are computed by the rule of `attention`, with which the kernel is compared here on a small
    input.

    Args:
        on: whether to use the kernel.

    Raises:
        ValueError: there is no CUDA device, the package is not installed, or its kernel fails or is wrong here.
    """
    global _kernel
    _kernel = _load() if on else None
    if on:
        try:
            for kind in _HALF if torch.cuda.is_bf16_supported() else _HALF[:1]:
                _try_out(kind)
        except ValueError:
            _kernel = None
            raise


def _load() -> Kernel:
    if not torch.cuda.is_available():
        raise ValueError("dual.flash needs a CUDA device, and there is none: leave it out, attention is written out.")
    try:
        importlib.import_module("jvp_flash_attention.jvp_attention")
        return torch.ops.jvp_flash_attention.attn_fwd_dual_triton.default
    except (ImportError, AttributeError) as error:
        raise ValueError(
            "dual.flash needs the package jvp_flash_attention 0.14 or later: pip install --no-deps "
            f"'jvp_flash_attention>=0.14' ({error})."
        ) from error


def _try_out(kind: torch.dtype, tolerance: float = 0.03) -> None:
    """Compare the kernel with the rule in torch operations, on two heads of size 24 and 64 tokens."""
    generator = torch.Generator().manual_seed(0)
    halves = torch.randn(6, 2, 2, 64, 24, generator=generator).to(_DEVICE, kind).unbind(0)
    q, k, v, dq, dk, dv = (half.float() for half in halves)
    scale = q.shape[-1] ** -0.5
    p = torch.softmax(q @ k.mT * scale, -1)
    ds = (dq @ k.mT + q @ dk.mT) * scale
    wanted = p @ dv + (p * (ds - (p * ds).sum(-1, keepdim=True))) @ v
    query, key, value = (Dual(x, dx) for x, dx in zip(halves[:3], halves[3:], strict=True))
    try:
        found = _tangent((query, key, value), scale)
    except Exception as error:  # Triton raises exceptions of many classes
        raise ValueError(f"jvp_flash_attention does not run here: leave dual.flash out. ({error})") from error
    worst = float((found.float() - wanted).abs().max() / wanted.abs().max())
    if not worst < tolerance:
        raise ValueError(f"jvp_flash_attention in {kind} is off by {worst:.2g} here: leave dual.flash out.")


def applies(query: Any, key: Any, value: Any, *, unmasked: bool, detached: bool) -> bool:
    """Whether the kernel is on and can compute these; `unmasked`: without mask, dropout, causality and shared heads."""
    if _kernel is None or not unmasked or not (detached or not torch.is_grad_enabled()):
        return False
    q = values_of(query)
    fits = q.dim() == 4 and q.shape[-2] % _BLOCK == 0 and q.shape[-1] <= _SIZES[-1]
    same = tuple(key.shape) == tuple(q.shape) and tuple(value.shape) == tuple(q.shape)
    return q.device.type == _DEVICE and fits and same and _dtype(q) in _HALF


def attention(query: Any, key: Any, value: Any, scale: float, detached: bool) -> Dual:
    """The value, with its autograd graph, by torch's own fused kernels, and the tangent by this one."""
    out = F.scaled_dot_product_attention(*(values_of(a) for a in (query, key, value)), scale=scale)
    with torch.no_grad():
        tangent = _tangent((query, key, value), scale)
    return Dual(out, tangent.to(out.dtype), detached)


@torch.no_grad()
def _tangent(inputs: tuple[Any, Any, Any], scale: float) -> Tensor:
    assert _kernel is not None
    kind, head = _dtype(values_of(inputs[0])), inputs[0].shape[-1]
    fill = next(size for size in _SIZES if size >= head) - head
    pairs = [(values_of(a), tangent_of(a)) for a in inputs]
    values = [v for v, _ in pairs] + [torch.zeros_like(v) if dv is None else dv for v, dv in pairs]
    q, k, v, dq, dk, dv = ((F.pad(a, (0, fill)) if fill else a).to(kind).contiguous() for a in values)
    # mask, scale, dropout, seed, causal, warp_specialize, kind of mask: none
    out = _kernel(q, k, v, dq, dk, dv, q.new_empty(0), scale, 0.0, 0, False, True, 0)
    return out[1][..., :head]


def _dtype(x: Tensor) -> torch.dtype:
    """The dtype that attention is computed in, under autocast too."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
