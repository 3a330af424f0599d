"""Layers that preserve magnitudes: activations of unit variance go in and come out, whatever the weights are.

    W x with rows of W of unit length,    a x + b y with a^2 + b^2 = 1,    silu(x) / 0.596

Reference: T. Karras et al., "Analyzing and improving the training dynamics of diffusion models", 2023, arXiv
2312.02696, section 2 and appendix B (EDM2). Weights are normalised in each call; constant factors multiply the
weights, where they cost nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SILU = 1 / 0.596
"""Factor that gives a SiLU of standard normal numbers a root mean square of 1."""


def unit_filters(weight: Tensor, gain: float | Tensor = 1.0, eps: float = 1e-4) -> Tensor:
    """Weights with every filter `weight[k]` of Euclidean length `gain`."""
    length = torch.linalg.vector_norm(weight, dim=list(range(1, weight.ndim)), keepdim=True)
    return weight * (gain / (length + eps * math.sqrt(weight[0].numel())))


def _cast(weight: Tensor, x: Tensor) -> Tensor:
    """Weights in the type of x under autocast, which would cast them again for each product of a derivative."""
    return weight.to(x.dtype) if torch.is_autocast_enabled(x.device.type) else weight


class Linear(nn.Module):
    """x -> W x with rows of W of unit length, `(..., inner) -> (..., outer)`; there is no bias."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outer, inner))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """W x times `gain`, `(..., outer)`."""
        return F.linear(x, _cast(unit_filters(self.weight, gain), x))


class Conv(nn.Module):
    """A convolution of odd size with filters of unit length, `(B, inner, H, W) -> (B, outer, H, W)`; without a bias."""

    def __init__(self, inner: int, outer: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outer, inner, size, size))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """The convolution times `gain`, `(B, outer, H, W)`."""
        return F.conv2d(x, _cast(unit_filters(self.weight, gain), x), padding=self.weight.shape[-1] // 2)


class Fixed(nn.Module):
    """A `Linear` or a `Conv` whose filters were normalised once: the same function, for a network that is deployed.

    Factors multiply the output, so that the weights are one constant, which may be quantised.

    Args:
        layer: the layer.
    """

    weight: Tensor

    def __init__(self, layer: Linear | Conv) -> None:
        super().__init__()
        self.padding = layer.weight.shape[-1] // 2 if isinstance(layer, Conv) else None
        self.register_buffer("weight", unit_filters(layer.weight.detach()))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """The output of the layer times `gain`."""
        if self.padding is None:
            return F.linear(x, self.weight) * gain
        return F.conv2d(x, self.weight, padding=self.padding) * gain


def fix_weights(module: nn.Module) -> None:
    """Replace each `Linear` and `Conv` inside a module by its `Fixed`."""
    for name, child in module.named_children():
        if isinstance(child, (Linear, Conv)):
            setattr(module, name, Fixed(child))
        else:
            fix_weights(child)


def unit_pixels(x: Tensor, dim: int = 1, eps: float = 1e-4) -> Tensor:
    """x over the root of its mean square along an axis (RMS normalisation)."""
    square = (x.float() if x.dtype == torch.float16 else x).square()  # bfloat16 has the range for it, float16 has not
    mean = square.mean(dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(mean + eps**2).to(x.dtype)


def mixing_factors(share: float) -> tuple[float, float]:
    """Factors (a, b) of a x + b y, with a : b = 1 - share : share, that preserve unit variance of independent x, y."""
    size = math.hypot(1 - share, share)
    return (1 - share) / size, share / size


def concatenated(x: Tensor, y: Tensor) -> Tensor:
    """Channels of x and y in one tensor of unit mean square, scaled so that both contribute the same."""
    number, other = x.shape[1], y.shape[1]
    size = math.sqrt((number + other) / 2)
    return torch.cat([x * (size / math.sqrt(number)), y * (size / math.sqrt(other))], 1)
