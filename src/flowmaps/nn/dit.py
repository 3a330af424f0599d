"""A transformer of (x, s, t, cond) for images: one token for each patch, each block modulated by the times."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shapes import Batch, Condition, Time
from .embeddings import Embedding
from .limits import MAX_DEPTH, MAX_PIXELS, MAX_SIZE, MAX_TOKENS, check_bool, check_integer, check_number, sides
from .magnitude import unit_pixels
from .network import Network, without_autocast, zero_initialised

_EPS = 1e-6
NORMS: dict[str, Callable[..., nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class Block(nn.Module):
    """Self-attention, then a perceptron; before each a norm, scaled and shifted by the embedding, after it a gate.

        h + gate * f((1 + scale) * norm(h) + shift),    (shift, scale, gate) = W embedding + b,    W = b = 0 at first

    Args:
        width: of a token, and of the embedding.
        heads: of the attention.
        ratio: hidden width of the perceptron over `width`.
        dropout: share of each branch's output dropped while training.
        qk_norm: divide queries and keys by their root mean square, head by head, and scale each dimension.
        norm: `layer` or `rms`, both without parameters.
    """

    def __init__(
        self, width: int, heads: int, ratio: float, *, dropout: float = 0.0, qk_norm: bool = True, norm: str = "layer"
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm = _norm(norm, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scales = nn.Parameter(torch.ones(2, width // heads)) if qk_norm else None
        self.wide, self.narrow = nn.Linear(width, int(ratio * width)), nn.Linear(int(ratio * width), width)
        for layer in (self.qkv, self.out, self.wide, self.narrow):
            _xavier(layer)
        self.modulation = zero_initialised(nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        """`(B, tokens, width), (B, width) -> (B, tokens, width)`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = without_autocast(self.modulation, embedded)[:, None].chunk(6, 2)
        h = h + gate1 * self.dropout(self._attention(self.norm(h) * (1 + scale1) + shift1))
        y = self.narrow(F.gelu(self.wide(self.norm(h) * (1 + scale2) + shift2), approximate="tanh"))
        return h + gate2 * self.dropout(y)

    def _attention(self, h: Tensor) -> Tensor:
        rows, tokens, width = h.shape
        q, k, v = self.qkv(h).reshape(rows, tokens, 3, self.heads, width // self.heads).transpose(1, 3).unbind(2)
        if self.scales is not None:
            q, k = (unit_pixels(a, -1) * scale for a, scale in zip((q, k), self.scales.to(q.dtype), strict=True))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out(out.transpose(1, 2).reshape(rows, tokens, width))


class DiT(Network):
    """u_{s,t}(x) of images or latents: a diffusion transformer (Peebles & Xie, 2023, arXiv 2212.09748) with two times.

    Patches are tokens, with sine and cosine position embeddings. Each block starts as the identity ("adaLN-zero"), and
    the network as zero. The paper's S, B, L, XL: width 384, 768, 1024, 1152; depth 12, 12, 24, 28; heads 6, 12, 16, 16.

    Args:
        channels: of the images, `(B, channels, height, width)`.
        resolution: of the images, both sides or `(height, width)`, divisible by `patch`.
        patch: side of a patch: there are (height / patch) (width / patch) tokens.
        width: of a token, divisible by 4 and by `heads`.
        depth: number of blocks.
        heads: of the attention.
        ratio: hidden width of a block's perceptron over `width`.
        dropout: share of each branch's output dropped while training.
        classes: number of classes; `cond` is then `(B,)` integer labels, where `classes` itself means no class, as
            `None` does for the whole batch (to be learned, it must be among the labels of training).
        condition_dim: how many numbers `cond` has: `cond` is then `(B, condition_dim)` of about unit scale, with
            classes too a `Conditions(label, numbers)`. A row of NaN means no condition, as `None` does for the whole
            batch (to be learned, it must be among the rows of training).
        guidance: take a guidance weight w for each row: `cond` may be a `GuidedCondition(cond, weight)`; without one
            w is 1.
        frequencies: of the features of s and t - s.
        qk_norm: divide queries and keys by their root mean square, head by head, so that no logit grows without bound
            in half precision (Esser et al., 2024, arXiv 2403.03206).
        norm: of tokens before each branch and at the end: `layer`, or `rms`, which divides by the root mean square
            without subtracting the mean. Neither has parameters. Terminal velocity matching (2511.19797) takes `rms`
            without parameters, to bound how fast the network changes.
    """

    positions: Tensor

    def __init__(
        self,
        channels: int = 3,
        resolution: int | tuple[int, int] = 32,
        *,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: float = 4.0,
        dropout: float = 0.0,
        classes: int | None = None,
        condition_dim: int | None = None,
        guidance: bool = False,
        frequencies: int = 8,
        qk_norm: bool = True,
        norm: Literal["layer", "rms"] = "layer",
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.shape, self.patch = (channels, *sides("DiT", resolution)), patch
        self.arguments["resolution"] = self.shape[1] if self.shape[1] == self.shape[2] else self.shape[1:]
        _check_sizes(self.arguments, *self.shape[1:])
        self.tokens = self.shape[1] // patch, self.shape[2] // patch
        self.embedding = Embedding(
            width, frequencies=frequencies, classes=classes, condition_dim=condition_dim, guidance=guidance
        )
        self.first = nn.Conv2d(channels, width, patch, stride=patch)
        _xavier(self.first)
        self.register_buffer("positions", sine_positions(*self.tokens, width), persistent=False)
        of_blocks: dict[str, Any] = {"dropout": dropout, "qk_norm": qk_norm, "norm": norm}
        self.blocks = nn.ModuleList(Block(width, heads, ratio, **of_blocks) for _ in range(depth))
        self.norm = _norm(norm, width)
        self.modulation = zero_initialised(nn.Linear(width, 2 * width))
        self.last = zero_initialised(nn.Linear(width, patch * patch * channels))

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """`(B, C, H, W), (B,), (B,), cond -> (B, C, H, W)`, in the type of x.

        Raises:
            ValueError: x is of another shape; labels, numbers or a guidance weight as in `Embedding`.
        """
        self.check_shape(x)
        embedded = self.embedding(x, s, t, cond)
        h = self.first(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.blocks:
            h = self.run_block(layer, h, embedded)
        shift, scale = without_autocast(self.modulation, embedded)[:, None].chunk(2, 2)
        return self._images(self.last(self.norm(h) * (1 + scale) + shift)).to(x.dtype)

    def _images(self, tokens: Tensor) -> Tensor:
        """`(B, tokens, patch^2 C) -> (B, C, H, W)`."""
        pixels = tokens.reshape(tokens.shape[0], *self.tokens, self.patch, self.patch, self.shape[0])
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], *self.shape)


def sine_positions(down: int, across: int, width: int) -> Tensor:
    """Sines and cosines of the rows, then of the columns, of a rectangle of tokens, `(down * across, width)`.

    A quarter of the width each, of frequencies from 1 down to 1 / 10,000 a token (Vaswani et al., 2017, arXiv
    1706.03762).
    """
    if torch.get_default_device().type == "meta":  # torch would import its compiler to compute these
        return torch.empty(down * across, 4 * (width // 4))
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    phase = torch.arange(max(down, across), dtype=torch.float64)[:, None] * frequencies
    along = torch.cat([phase.sin(), phase.cos()], 1)
    rows, columns = along[:down, None].expand(-1, across, -1), along[None, :across].expand(down, -1, -1)
    return torch.cat([rows, columns], 2).flatten(0, 1).float()


def _norm(name: str, width: int) -> nn.Module:
    """A norm of tokens without parameters."""
    return NORMS[name](width, eps=_EPS, elementwise_affine=False)


def _xavier(layer: nn.Linear | nn.Conv2d) -> None:
    """Initialise a layer with Xavier's uniform weights, of its filters as one matrix, and a bias of zero."""
    nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _check_sizes(sizes: dict, *resolutions: int) -> None:
    check_integer("DiT", 1, MAX_SIZE, **{name: sizes[name] for name in ("channels", "width", "heads")})
    check_integer("DiT", 1, MAX_PIXELS, patch=sizes["patch"])
    check_integer("DiT", 1, MAX_DEPTH, depth=sizes["depth"])
    check_number("DiT", 0, 1, dropout=sizes["dropout"])
    check_number("DiT", 0, MAX_SIZE, ratio=sizes["ratio"])
    check_bool("DiT", qk_norm=sizes["qk_norm"])
    if sizes["norm"] not in NORMS:
        raise ValueError(f"DiT takes norm='layer' or norm='rms', got {sizes['norm']!r}.")
    for side in resolutions:
        if side % sizes["patch"]:
            raise ValueError(
                f"DiT needs a resolution divisible by patch, got {side} and {sizes['patch']}: take another patch, or "
                "pad the images."
            )
        if side // sizes["patch"] > MAX_TOKENS:
            raise ValueError(
                f"DiT takes images of up to {MAX_TOKENS} x {MAX_TOKENS} patches, got {side} pixels in patches of "
                f"{sizes['patch']}: take a larger patch."
            )
    if sizes["width"] % sizes["heads"] or sizes["width"] % 4:
        raise ValueError(f"DiT needs width divisible by heads and by 4, got {sizes['width']} and {sizes['heads']}.")
    if sizes["ratio"] * sizes["width"] < 1:
        raise ValueError(f"DiT needs ratio * width >= 1, got {sizes['ratio']} and {sizes['width']}.")
