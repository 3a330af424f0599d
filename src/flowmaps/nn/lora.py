"""LoRA by `peft`: a trained network W stays as it is, and each layer learns W + B A of a low rank, B = 0 at first.

Reference: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685.
"""

from __future__ import annotations

from typing import Any

from torch import nn

INSTALL = "pip install 'flowmaps[lora]'"


def add_adapters(net: nn.Module, rank: int, skip: set[nn.Module]) -> None:
    """Give each linear layer and plain convolution of a network an adapter, in place; no other weight is trained.

    Args:
        net: the network.
        rank: of the adapters.
        skip: layers without one, which are trained themselves.

    Raises:
        ValueError: `peft` is not installed, the rank is below 1, or there is no layer for an adapter.
    """
    if rank < 1:
        raise ValueError(f"lora is the rank of the adapters, at least 1, got {rank}.")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"lora=... needs peft: {INSTALL}.") from error
    names = [name for name, layer in net.named_modules() if layer not in skip and _takes_adapter(layer)]
    if not names:
        raise ValueError(f"{type(net).__name__} has no linear layer or convolution for an adapter: leave lora out.")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), net)
    trained = {id(value) for layer in skip for value in layer.parameters()}
    for name, value in net.named_parameters():
        value.requires_grad_("lora_" in name or id(value) in trained)


def _takes_adapter(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)


def merge(net: nn.Module) -> None:
    """Put W + B A in the place of each layer with an adapter, in place."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(net.named_modules()):
        if isinstance(layer, LoraLayer):
            adapted: Any = layer
            adapted.merge()
            net.set_submodule(name, adapted.get_base_layer())
