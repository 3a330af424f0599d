"""Masks of attention: what is added to the scores, and rows that see nothing.

Such a row, as of a padded token, has no weights that add up to one. Torch's fused kernels return 0 there; so do the
rules here: its scores are left unmasked, so that all stays finite, and its result is set to 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def read(mask: Any, causal: bool, queries: int, keys: int) -> tuple[Any, int | None]:
    """The mask of `scaled_dot_product_attention`, and the offset of a causal one.

    Args:
        mask: its `attn_mask`: boolean, true where a key is seen, or numbers that are added to the scores, or a
            `torch.nn.attention.bias.CausalBias`.
        causal: its `is_causal`.
        queries, keys: lengths of the sequences.

    Returns:
        The mask without causality; and `d`, where query i sees the keys up to i + d, `None` for all.
    """
    if causal and mask is not None:
        raise ValueError("attention takes attn_mask or is_causal=True, got both: join them into one mask.")
    if causal:
        return None, 0
    variant = getattr(mask, "variant", None)
    if variant is None:
        return mask, None
    return None, 0 if variant.name == "UPPER_LEFT" else keys - queries


def bias(mask: Tensor | None, offset: int | None, scores: Tensor, first: int) -> tuple[Tensor | None, Tensor | None]:
    """What is added to scores, and which rows see nothing, `(..., rows, 1)`; `None` for nothing, and for no row.

    Args:
        mask: as from `read`, the rows of these scores alone.
        offset: as from `read`.
        scores: `(..., rows, keys)`.
        first: the place of the first row in the sequence.
    """
    if offset is not None:
        rows, keys = (torch.arange(n, device=scores.device) for n in scores.shape[-2:])
        mask = rows[:, None] + (first + offset) >= keys
    if mask is None:
        return None, None
    if mask.dtype != torch.bool:
        hidden = (mask == -math.inf).all(-1, keepdim=True)
        return mask.masked_fill(hidden, 0.0), hidden
    hidden = None
    if offset is None or first + offset < 0:
        hidden = ~mask.any(-1, keepdim=True)
        mask = mask | hidden
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf), hidden


def empty(x: Tensor, hidden: Tensor | None) -> Tensor:
    """The result of attention, 0 in rows that see nothing."""
    return x if hidden is None else x.masked_fill(hidden, 0.0)
