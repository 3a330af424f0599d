"""A U-Net of (x, s, t, cond) for images: residual blocks modulated by the times, attention at chosen resolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shapes import Batch, Condition, Time
from .embeddings import Embedding
from .limits import MAX_BLOCKS, MAX_PIXELS, MAX_SIZE, check_integer, check_number, sides
from .magnitude import SILU, Conv, Linear, concatenated, mixing_factors, unit_pixels
from .network import Network

RESIDUAL = mixing_factors(0.3)  # of the skip and of the branch, as in EDM2


class Block(nn.Module):
    """SiLU, convolution, scale by the embedding, SiLU, dropout, convolution, beside a skip; then attention.

    Args:
        inner, outer: channels in and out.
        embedding: width of the embedding.
        resample: "down" halves the resolution by averages, "up" doubles it by copies.
        normalise: take pixels to unit size first, as on the way down.
        dropout: share of activations dropped while training.
        heads: heads of the self-attention that follows; 0 for none.
    """

    def __init__(
        self,
        inner: int,
        outer: int,
        embedding: int,
        *,
        resample: str = "",
        normalise: bool = False,
        dropout: float = 0.0,
        heads: int = 0,
    ) -> None:
        super().__init__()
        self.resample, self.normalise, self.heads = resample, normalise, heads
        self.skip = Conv(inner, outer, 1) if inner != outer else None
        self.first = Conv(outer if normalise else inner, outer, 3)
        self.modulation, self.strength = Linear(embedding, outer), nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(dropout)
        self.second = Conv(outer, outer, 3)
        if heads:
            self.qkv, self.out = Conv(outer, 3 * outer, 1), Conv(outer, outer, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """`(B, inner, H, W), (B, embedding) -> (B, outer, H', W')`."""
        keep, add = RESIDUAL
        if self.resample:
            x = F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
        if self.normalise:
            x = unit_pixels(x if self.skip is None else self.skip(x))
        scale = 1 + self.modulation(embedded, self.strength)
        h = self.first(F.silu(x), SILU) * scale[:, :, None, None]
        h = self.second(self.dropout(F.silu(h)), SILU * add)
        if self.skip is not None and not self.normalise:
            x = self.skip(x)
        x = torch.add(h, x, alpha=keep)
        return torch.add(self._attention(x, add), x, alpha=keep) if self.heads else x

    def _attention(self, x: Tensor, gain: float) -> Tensor:
        rows, channels, height, width = x.shape
        tokens = self.qkv(x).reshape(rows, 3, self.heads, channels // self.heads, height * width)
        q, k, v = unit_pixels(tokens, 3).transpose(3, 4).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(2, 3).reshape(rows, channels, height, width), gain)


class UNet(Network):
    """u_{s,t}(x) of images: the magnitude-preserving U-Net of EDM2 (Karras et al., arXiv 2312.02696), with two times.

    Its activations have unit variance by construction. There is no group normalisation, and no bias but a channel of
    ones beside the image. Weights are in channels-last format.

    Args:
        channels: of the images, `(B, channels, height, width)`.
        resolution: of the images, both sides or `(height, width)`, divisible by 2 for each level after the first.
        width: channels of the first level.
        multipliers: channels of each level, as multiples of `width`; each level has half the resolution of the last.
        blocks: residual blocks of a level on the way down (on the way up one more).
        attention: resolutions, of the shorter side, at which each block is followed by self-attention.
        head: channels of a head of attention.
        dropout: share of activations dropped while training.
        patch: side of the squares of pixels that become one pixel of more channels; it divides the resolution, and
            the first level has the resolution / patch.
        classes: number of classes; `cond` is then `(B,)` integer labels, where `classes` itself means no class, as
            `None` does for the whole batch (to be learned, it must be among the labels of training).
        condition_dim: how many numbers `cond` has: `cond` is then `(B, condition_dim)` of about unit scale, with
            classes too a `Conditions(label, numbers)`. A row of NaN means no condition, as `None` does for the whole
            batch (to be learned, it must be among the rows of training).
        guidance: take a guidance weight w for each row: `cond` may be a `GuidedCondition(cond, weight)`; without one
            w is 1.
        frequencies: of the features of s and t - s.
    """

    def __init__(
        self,
        channels: int = 3,
        resolution: int | tuple[int, int] = 32,
        *,
        width: int = 128,
        multipliers: tuple[int, ...] = (2, 2, 2),
        blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        head: int = 64,
        dropout: float = 0.0,
        patch: int = 1,
        classes: int | None = None,
        condition_dim: int | None = None,
        guidance: bool = False,
        frequencies: int = 8,
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.arguments |= {"multipliers": tuple(multipliers), "attention": tuple(attention)}
        self.shape, self.patch = (channels, *sides("UNet", resolution)), patch
        self.arguments["resolution"] = self.shape[1] if self.shape[1] == self.shape[2] else self.shape[1:]
        _check_sizes(self.arguments, *self.shape[1:])
        self.width = width * max(multipliers)  # of the embedding
        self.embedding = Embedding(
            self.width,
            frequencies=frequencies,
            classes=classes,
            condition_dim=condition_dim,
            guidance=guidance,
            linear=Linear,
        )
        self.first = Conv(channels * patch**2 + 1, width, 3)
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self._build([width * multiplier for multiplier in multipliers], min(self.shape[1:]) // patch)
        self.last, self.strength = Conv(width * multipliers[0], channels * patch**2, 3), nn.Parameter(torch.zeros(1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _build(self, widths: list[int], resolution: int) -> None:
        """Make the blocks on the way down, in the middle, and on the way up, which take the outputs of those down."""
        blocks, now = self.arguments["blocks"], self.arguments["width"]
        kept = [now]
        for level, channels in enumerate(widths):
            if level:
                resolution //= 2
                self.down.append(self._block(now, now, resolution, normalise=True, resample="down"))
                kept.append(now)
            for _ in range(blocks):
                self.down.append(self._block(now, channels, resolution, normalise=True))
                now = channels
                kept.append(now)
        self.middle.append(self._block(now, now, resolution, attention=bool(self.arguments["attention"])))
        self.middle.append(self._block(now, now, resolution))
        for level, channels in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(self._block(now + kept.pop(), channels, resolution))
                now = channels
            if level:
                resolution *= 2
                self.up.append(self._block(now, now, resolution, resample="up"))

    def _block(self, inner: int, outer: int, resolution: int, *, attention: bool = False, **options: object) -> Block:
        own = self.arguments
        attends = attention or (resolution in own["attention"] and "resample" not in options)
        heads = max(outer // own["head"], 1) if attends else 0
        return Block(inner, outer, self.width, dropout=own["dropout"], heads=heads, **options)  # type: ignore[arg-type]

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """`(B, C, H, W), (B,), (B,), cond -> (B, C, H, W)`, in the type of x.

        Raises:
            ValueError: x is of another shape; labels, numbers or a guidance weight as in `Embedding`.
        """
        self.check_shape(x)
        embedded = self.embedding(x, s, t, cond)
        h = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        h = self.first(torch.cat([h, torch.ones_like(h[:, :1])], 1))
        kept = [h]
        for layer in self.down:
            h = self.run_block(layer, h, embedded)
            kept.append(h)
        for layer in self.middle:
            h = self.run_block(layer, h, embedded)
        for layer in self.up:
            h = self.run_block(layer, h if layer.resample else concatenated(h, kept.pop()), embedded)  # type: ignore[arg-type]
        h = self.last(h, self.strength).to(x.dtype)
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h


def _check_sizes(sizes: dict, *resolutions: int) -> None:
    multipliers, resolution = sizes["multipliers"], min(resolutions)
    check_integer("UNet", 1, MAX_SIZE, **{name: sizes[name] for name in ("channels", "width", "head")})
    check_integer("UNet", 1, MAX_PIXELS, patch=sizes["patch"])
    check_integer("UNet", 1, MAX_BLOCKS, blocks=sizes["blocks"])
    check_number("UNet", 0, 1, dropout=sizes["dropout"])
    for value in multipliers:
        check_integer("UNet", 0, MAX_SIZE, multiplier=value)
    for value in sizes["attention"]:
        check_integer("UNet", 0, MAX_PIXELS, attention=value)
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"UNet needs one or more multipliers >= 1, got {multipliers}.")
    check_integer("UNet", 1, MAX_PIXELS.bit_length(), levels=len(multipliers))
    divisor = sizes["patch"] * 2 ** (len(multipliers) - 1)
    for side in resolutions:
        if side % divisor:
            raise ValueError(
                f"UNet needs a resolution divisible by {divisor} (patch {sizes['patch']}, halved "
                f"{len(multipliers) - 1} times), got {side}: take fewer multipliers, or images of another size."
            )
    sizes_of_levels = [(resolution // sizes["patch"]) >> level for level in range(len(multipliers))]
    for multiplier, size in zip(multipliers, sizes_of_levels, strict=True):
        channels, attends = sizes["width"] * multiplier, size in sizes["attention"]
        middle = bool(sizes["attention"]) and size == sizes_of_levels[-1]
        if (attends or middle) and channels > sizes["head"] and channels % sizes["head"]:
            raise ValueError(
                f"UNet needs channels divisible by head where there is attention, got {channels} and {sizes['head']}."
            )
