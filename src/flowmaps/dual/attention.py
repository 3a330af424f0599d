"""The rules of `scaled_dot_product_attention` and of `nn.MultiheadAttention`.

A fused kernel where it applies (`fused`), blocks of queries for long sequences (`blocks`), and all at once else.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from . import blocks, fused, masks
from .blocks import Inputs, Tangents, tangent, weights
from .core import Dual, composite, first_dual, paired, run_tangent, tangent_of, values_of


@composite(F.scaled_dot_product_attention)
def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    found = first_dual((query, key, value, attn_mask))
    if enable_gqa:
        key, value = (a.repeat_interleave(query.shape[-3] // a.shape[-3], -3) for a in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    mask, offset = masks.read(attn_mask, is_causal, query.shape[-2], key.shape[-2])
    plain = mask is None and offset is None and not dropout_p
    if found is not None and fused.applies(query, key, value, unmasked=plain, detached=found.detached):
        return fused.attention(query, key, value, scale, found.detached)
    inputs = Inputs(*(values_of(a) for a in (query, key, value, mask)), scale, offset)  # type: ignore[arg-type]
    tangents = Tangents(*(tangent_of(a) for a in (query, key, value, mask)))
    if found is not None and not dropout_p and blocks.apply(inputs):
        return paired(*blocks.attention(inputs, tangents, found.detached), found.detached)
    return _pair(inputs, tangents, dropout_p, found)


def _pair(inputs: Inputs, tangents: Tangents, dropout: float, found: Dual | None) -> Any:
    """All rows at once, the weights kept in memory."""
    p, hidden = weights(inputs)
    keep = F.dropout(torch.ones_like(p), dropout) if dropout else None
    out = masks.empty((p if keep is None else p * keep) @ inputs.value, hidden)
    if found is None:
        return out
    return paired(out, run_tangent(found.detached, tangent, inputs, tangents, p, hidden, keep), found.detached)


def _projections(query: Any, key: Any, value: Any, weight: Any, bias: Any) -> list[Any]:
    """q, k, v, of one weight or of three; one product where the three are the same tensor."""
    biases = (None, None, None) if bias is None else bias.chunk(3)
    if query is key and key is value and not isinstance(weight, tuple):
        return list(F.linear(query, weight, bias).chunk(3, -1))
    weights = weight if isinstance(weight, tuple) else weight.chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]


def _heads(x: Any, rows: int, heads: int) -> Any:
    """`(L, B, E) -> (B, heads, L, E / heads)`."""
    return x.reshape(x.shape[0], rows, heads, x.shape[-1] // heads).permute(1, 2, 0, 3)


def _additive(mask: Any, like: Any) -> Any:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def _joint_mask(mask: Any, padding: Any, q: Any) -> Any:
    """The sum of both masks, broadcasting against `(B, heads, L, S)`."""
    mask, padding = _additive(mask, q), _additive(padding, q)
    if mask is not None and mask.dim() == 3:
        mask = mask.view(*q.shape[:2], *mask.shape[1:])
    if padding is None:
        return mask
    padding = padding[:, None, None, :]
    return padding if mask is None else mask + padding


def _with_weights(q: Any, k: Any, v: Any, mask: Any, dropout: float, average: bool) -> tuple[Any, Any]:
    """Attention and its weights, averaged over heads or not."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    p = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout, dropout > 0)
    return p @ v, p.mean(1) if average else p


@composite(F.multi_head_attention_forward)
def _multi_head_attention(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    if add_zero_attn or static_k is not None or static_v is not None:
        raise NotImplementedError("nn.MultiheadAttention with add_zero_attn or static keys has no rule.")
    if query.dim() == 2:
        raise NotImplementedError("nn.MultiheadAttention of an unbatched (L, E) input has no rule: add a batch axis.")
    length, rows = query.shape[:2]
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_proj_weight
    q, k, v = _projections(query, key, value, weights, in_proj_bias)
    if bias_k is not None:  # one more key and value, which every query sees
        k, v = (torch.cat([x, b.expand(1, rows, -1)]) for x, b in ((k, bias_k), (v, bias_v)))
        attn_mask, key_padding_mask = (None if m is None else F.pad(m, (0, 1)) for m in (attn_mask, key_padding_mask))
    q, k, v = (_heads(x, rows, num_heads) for x in (q, k, v))
    mask, dropout = _joint_mask(attn_mask, key_padding_mask, q), dropout_p if training else 0.0
    if need_weights:
        out, weights = _with_weights(q, k, v, mask, dropout, average_attn_weights)
    else:
        out, weights = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal and mask is None), None
    return F.linear(out.permute(2, 0, 1, 3).reshape(length, rows, -1), out_proj_weight, out_proj_bias), weights
