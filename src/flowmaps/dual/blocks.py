"""Attention and its tangent written out, `o = P v`, `P = softmax(S)`, `S = q k^T scale + mask`; in blocks of queries.

    dS = (dq k^T + q dk^T) scale + dmask,    dP = P (dS - sum P dS),    do = dP v + P dv

as products of joined axes. Each row of `S` depends on one query, so that a long sequence goes block by block of its
queries, and the backward pass computes the weights of a block again: memory is linear in the length, and value, tangent
and both gradients are those of the whole. (The idea: T. Chen et al., "Training deep nets with sublinear memory cost",
2016, arXiv 1604.06174; M. N. Rabe, C. Staats, "Self-attention does not need O(n^2) memory", 2021, arXiv 2112.05682.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import masks
from .core import run_tangent
from .reductions import _soften

LENGTH = 256
"""Sequences are cut where both queries and keys are more than this."""
ROWS = 128
"""Queries of a block."""


class Inputs(NamedTuple):
    """Queries, keys, values, `(..., length, head)`, the mask and the offset of causality (`masks.read`)."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    offset: int | None
    first: int = 0
    """The place of the first query in the sequence."""


class Tangents(NamedTuple):
    """Tangents of queries, keys, values and mask; `None` for zero."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    mask: Tensor | None


def weights(inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    """`P`, and which rows see nothing."""
    scores = (inputs.query * inputs.scale) @ inputs.key.mT
    added, hidden = masks.bias(inputs.mask, inputs.offset, scores, inputs.first)
    return torch.softmax(scores if added is None else scores + added, -1).to(inputs.value.dtype), hidden


def tangent(inputs: Inputs, tangents: Tangents, p: Tensor, hidden: Any, keep: Tensor | None = None) -> Tensor:
    """`do`, from the weights; `keep` is dropout's mask of these."""
    dq, dk, dv, dmask = tangents
    ds = _two(None if dq is None else dq * inputs.scale, inputs.key, inputs.query * inputs.scale, dk)
    if dmask is not None:
        ds = dmask if ds is None else ds + dmask
    dp = None if ds is None else _soften(p, ds, -1)
    if keep is not None:
        p, dp = p * keep, None if dp is None else dp * keep
    if dp is None:
        assert dv is not None
        return masks.empty(p @ dv, hidden)
    if dv is None:
        return masks.empty(dp @ inputs.value, hidden)
    return masks.empty(torch.cat([dp, p], -1) @ torch.cat([inputs.value, dv], -2), hidden)


def _two(a: Any, b: Tensor, c: Tensor, d: Any) -> Any:
    """`a b^T + c d^T` as one product; `None` in place of `a` or `d` drops its term."""
    if a is None:
        return None if d is None else c @ d.mT
    if d is None:
        return a @ b.mT
    return torch.cat([a, c], -1) @ torch.cat([b, d], -1).mT


def apply(inputs: Inputs) -> bool:
    """Whether a sequence is so long that it is cut into blocks."""
    return min(inputs.query.shape[-2], inputs.key.shape[-2]) > LENGTH


def attention(inputs: Inputs, tangents: Tangents, detached: bool) -> tuple[Tensor, Tensor]:
    """Value and tangent of attention by blocks; `detached`: without a graph of the tangent."""
    if detached:
        causal = inputs.offset == 0
        mask = _mask_of(inputs)
        out = F.scaled_dot_product_attention(*inputs[:3], attn_mask=mask, is_causal=causal, scale=inputs.scale)
        return out, run_tangent(True, _joined, inputs, tangents, False)[1]
    traced = [x for x in (*inputs[:4], *tangents) if x is not None and x.requires_grad]
    return _joined(inputs, tangents, torch.is_grad_enabled() and len(traced) > 0)


def _mask_of(inputs: Inputs) -> Tensor | None:
    if not inputs.offset:
        return inputs.mask
    queries, keys = inputs.query.shape[-2], inputs.key.shape[-2]
    every = torch.ones(queries, keys, dtype=torch.bool, device=inputs.query.device)
    return every.tril(inputs.offset)


def _joined(inputs: Inputs, tangents: Tangents, traced: bool) -> tuple[Tensor, Tensor]:
    parts = []
    for first in range(0, inputs.query.shape[-2], ROWS):
        cut = _rows(inputs, tangents, first)
        parts.append(
            checkpoint(_block, *cut, use_reentrant=False, preserve_rng_state=False) if traced else _block(*cut)
        )
    return torch.cat([out for out, _ in parts], -2), torch.cat([along for _, along in parts], -2)


def _rows(inputs: Inputs, tangents: Tangents, first: int) -> tuple[Inputs, Tangents]:
    """The queries of a block, and the keys that they may see."""
    count = min(ROWS, inputs.query.shape[-2] - first)
    keys = inputs.key.shape[-2]
    if inputs.offset is not None:
        keys = min(keys, max(1, first + count + inputs.offset))

    def queries(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.narrow(-2, first, count)

    def seen(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.narrow(-2, 0, keys)

    def both(x: Tensor | None) -> Tensor | None:
        return x if x is None or x.dim() < 2 or x.shape[-2] == 1 else queries(x)

    return (
        Inputs(
            inputs.query.narrow(-2, first, count),
            inputs.key.narrow(-2, 0, keys),
            inputs.value.narrow(-2, 0, keys),
            both(inputs.mask),
            inputs.scale,
            inputs.offset,
            first,
        ),
        Tangents(queries(tangents.query), seen(tangents.key), seen(tangents.value), both(tangents.mask)),
    )


def _block(inputs: Inputs, tangents: Tangents) -> tuple[Tensor, Tensor]:
    p, hidden = weights(inputs)
    return masks.empty(p @ inputs.value, hidden), tangent(inputs, tangents, p, hidden)
