"""The image networks as the tests take them: tiny, and no weight zero, or a wrong derivative would pass for right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import generator
from torch import Tensor, nn

from flowmaps.nn import DiT, Network, UNet

ROWS, CHANNELS, SIDE, CLASSES = 3, 2, 4, 3

UNET: dict[str, Any] = {"width": 4, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "head": 4, "frequencies": 3}
DIT: dict[str, Any] = {"width": 8, "depth": 2, "heads": 2, "patch": 2, "ratio": 2.0, "frequencies": 3}

NETWORKS: dict[str, Callable[..., Network]] = {
    "unet": lambda **options: UNet(CHANNELS, SIDE, **{**UNET, **options}),
    "dit": lambda **options: DiT(CHANNELS, SIDE, **{**DIT, **options}),
}
"""A new network is tested by adding its line."""


def build(name: str, dtype: torch.dtype = torch.float64, *, seed: int = 0, **options: Any) -> Network:
    """A network of no zero weights, in evaluation mode."""
    net = NETWORKS[name](**options).to(dtype).eval()
    randomise(net, seed)
    return net


@torch.no_grad()
def randomise(net: nn.Module, seed: int = 0) -> None:
    """Give all weights of a network values of a size that keeps its activations near one."""
    rng = generator(seed)
    for parameter in net.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 10
        parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=rng) / fan**0.5)


def inputs(dtype: torch.dtype = torch.float64, rows: int = ROWS, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x, s, t."""
    rng = generator(seed)
    x = torch.randn(rows, CHANNELS, SIDE, SIDE, dtype=torch.float64, generator=rng)
    s, t = torch.rand(2, rows, dtype=torch.float64, generator=rng)
    return x.to(dtype), s.to(dtype), t.to(dtype)


def gradients(value: Tensor, net: nn.Module) -> list[Tensor]:
    """Of all the weights that are trained, zero where the value does not depend on one."""
    weights = [p for p in net.parameters() if p.requires_grad]
    return list(torch.autograd.grad(value, weights, materialize_grads=True))


def assert_same(found: list[Tensor], expected: list[Tensor], close: float) -> None:
    """Gradients are equal to a share `close` of the largest."""
    size = max(float(g.norm()) for g in expected)
    assert size > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm()) <= close * size
