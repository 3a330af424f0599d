"""Warps and layers that draw numbers: `grid_sample`, `affine_grid`, `rrelu`, `alpha_dropout`, `gumbel_softmax`.

Bilinear sampling is written out: the sum over the corners of the cell that a point falls into, each weighted by the
product of the distances to the opposite corner.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import composite, first_dual, named, paired, rebind, run_tangent, tangent_of, tangent_rule, unpack, values_of


@composite(F.grid_sample, torch.grid_sampler)
def _grid_sample(
    input: Any, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Any:
    options = {"mode": mode, "padding_mode": padding_mode, "align_corners": bool(align_corners)}
    if tangent_of(grid) is None or mode == "nearest":  # nearest: constant in the grid
        value = F.grid_sample(values_of(input), values_of(grid), **options)
        found = first_dual(input)
        if found is None:
            return value
        tangent = run_tangent(found.detached, F.grid_sample, found.tangent, values_of(grid), **options)
        return paired(value, tangent, found.detached)
    if mode != "bilinear":
        raise NotImplementedError(f"F.grid_sample(mode={mode!r}) with a grid that has a tangent: use mode='bilinear'.")
    sizes = input.shape[2:]
    places = [
        _position(grid[..., len(sizes) - 1 - axis], size, padding_mode, bool(align_corners))
        for axis, size in enumerate(sizes)
    ]
    return _bilinear(input, places)


def _position(x: Any, size: int, padding: str, corners: bool) -> Any:
    """Where a coordinate from -1 to 1 lies, in pixels, after clipping or reflection at the border."""
    x = (x + 1) * ((size - 1) / 2) if corners else ((x + 1) * size - 1) / 2
    if padding == "reflection":
        low, span = (0.0, size - 1) if corners else (-0.5, size)
        x = (x - low).abs()
        turns = torch.floor(values_of(x) / max(span, 1))
        x = x - turns * span
        x = torch.where(turns % 2 == 0, x, span - x) + low
    return x if padding == "zeros" else x.clamp(0, size - 1)


def _bilinear(input: Any, places: list[Any]) -> Any:
    rows, channels, *sizes = input.shape
    flat, lows = input.flatten(2), [torch.floor(values_of(x)).detach() for x in places]
    out = 0.0
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        weight, index, inside = 1.0, 0, True
        for x, low, size, bit in zip(places, lows, sizes, corner, strict=True):
            at = low + bit
            weight = weight * (x - low if bit else 1 - (x - low))
            index = index * size + at.clamp(0, size - 1).long()
            inside = inside & (at >= 0) & (at < size)
        picked = flat.gather(2, index.reshape(rows, 1, -1).expand(-1, channels, -1))  # type: ignore[attr-defined]
        shape = (rows, channels, *values_of(places[0]).shape[1:])
        out = out + picked.reshape(shape) * torch.where(inside, weight, 0.0).unsqueeze(1)  # type: ignore
    return out


@tangent_rule(F.rrelu)
def _rrelu(
    y: Tensor, x: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Any:
    """The slopes drawn are those of the value."""
    v, t = unpack(x)
    slope = (y / torch.where(v == 0, 1.0, v)).detach() if training else (lower + upper) / 2
    return torch.where(v > 0, t, slope * t)


def _alpha_dropping(by_channel: bool) -> Any:
    def handler(x: Any, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:
        """`a x k + b`: dropped entries (k = 0) become -1.758, then mean and variance are restored."""
        if not training or p == 0:
            return x
        value = values_of(x)
        shape = (*value.shape[:2], *[1] * (value.dim() - 2)) if by_channel else value.shape
        keep = value.new_empty(shape).bernoulli_(1 - p)
        alpha = 1.7580993408473766
        a = 1 / math.sqrt((alpha**2 * p + 1) * (1 - p)) if p < 1 else 0.0
        out = x * (keep * a) + ((keep - 1) * (alpha * a) + alpha * a * p)
        return rebind(x, out) if inplace else out

    return handler


for _name, _by_channel in (("alpha_dropout", False), ("feature_alpha_dropout", True)):
    composite(*named(_name))(_alpha_dropping(_by_channel))


@composite(F.gumbel_softmax)
def _gumbel_softmax(logits: Any, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Any:
    """One-hot results keep the tangent of the soft ones, as torch's gradient does."""
    noise = -torch.empty_like(values_of(logits)).exponential_().log()
    soft = torch.softmax((logits + noise) / tau, dim)
    if not hard:
        return soft
    value = values_of(soft)
    chosen = torch.zeros_like(value).scatter(dim, value.argmax(dim, keepdim=True), 1.0)
    return chosen - value.detach() + soft
