"""Parameters and arithmetic of the image networks at named sizes, one image forward.

    python benchmarks/networks.py

A multiplication and an addition count as two; Peebles & Xie count them as one (118.6 for DiT-XL/2 on 4 x 32 x 32).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowmaps.nn import DiT, Network, UNet
from flowmaps.runs.initial import network_of, new_map
from flowmaps.runs.recipes import ImageRecipe
from flowmaps.runs.recipes.images import cifar10_tiny


def of_recipe(recipe: ImageRecipe, shape: tuple[int, ...], classes: int) -> Network:
    """The network that a recipe trains."""
    return network_of(new_map(recipe, shape, classes))  # type: ignore[return-value]


SIZES: dict[str, tuple[str, Callable[[], Network]]] = {
    "UNet": ("the default: CIFAR-10, ImageNet 32 x 32", UNet),
    "UNet, small": ("the recipe cifar10-tiny", lambda: of_recipe(cifar10_tiny(), (3, 16, 16), 10)),
    "DiT-S/2": ("the default", DiT),
    "DiT-B/2": ("width=768, depth=12, heads=12", lambda: DiT(width=768, depth=12, heads=12)),
    "DiT-L/2": ("width=1024, depth=24, heads=16", lambda: DiT(width=1024, depth=24, heads=16)),
    "DiT-XL/2": ("width=1152, depth=28, heads=16", lambda: DiT(width=1152, depth=28, heads=16)),
    "DiT-S/4": ("patch=4", lambda: DiT(patch=4)),
}


def measured(build: Callable[[], Network]) -> tuple[tuple[int, ...], float, float]:
    """Shape of a sample, millions of parameters, billions of operations."""
    net, time = build().eval(), torch.zeros(1)
    # attention written out: that of the CPU's fused kernel is not counted
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *net.shape), time, time)
    parameters = sum(p.numel() for p in net.parameters())
    return net.shape, parameters / 1e6, counter.get_total_flops() / 1e9


def main() -> None:
    """Print the table."""
    print("| network | arguments | image | parameters (M) | Gflop |\n|---|---|---|---:|---:|")
    for name, (words, build) in SIZES.items():
        shape, parameters, flops = measured(build)
        print(f"| {name} | {words} | {' x '.join(map(str, shape))} | {parameters:.1f} | {flops:.2f} |", flush=True)


if __name__ == "__main__":
    main()
