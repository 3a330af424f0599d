"""A copy of a network in float64 whose derivatives in its inputs and weights can be compared with differences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def comparable(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """Copy a network in float64 and complex128, with plain weights, and random ones where they were all zero.

    A weight that is computed (weight norm, spectral norm, orthogonal and other parametrisations) does not depend on the
    inputs, so that the copy has what it comes to: a step of its own parameters may be none that is allowed, and the
    power iterations of spectral norm change it at each call.

    Args:
        net: the network, left as it is.
        generator: draws the weights that were zero, such as those of a last layer.
    """
    computed = {id(x): x.detach().clone() for m in net.modules() for x in vars(m).values() if _is_computed(x)}
    copied = copy.deepcopy(net, computed)
    for module in list(copied.modules()):
        _make_plain(module)
    copied._apply(double)
    with torch.no_grad():
        for p in copied.parameters():
            if (p.is_floating_point() or p.is_complex()) and not p.any():
                p.copy_(normal(p, generator) / max(p[0].numel(), 1) ** 0.5 if p.dim() else normal(p, generator))
    return copied


def _is_computed(x: Any) -> bool:
    """Whether it is a tensor that `deepcopy` refuses, such as the weight of the older weight norm."""
    return isinstance(x, Tensor) and x.requires_grad and not x.is_leaf


def _make_plain(module: nn.Module) -> None:
    if parametrize.is_parametrized(module):
        with torch.no_grad():
            weights = {name: getattr(module, name).clone() for name in module.parametrizations}  # type: ignore
        # torch's remove_parametrizations changes the class, which the copy shares with the network
        module.__class__ = type(module).__bases__[0]
        del module.parametrizations
        for name, weight in weights.items():
            module.register_parameter(name, nn.Parameter(weight))
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            hook.remove(module)
            del module._forward_pre_hooks[key]
    for key, hook in list(module._state_dict_hooks.items()):
        if isinstance(getattr(hook, "fn", None), SpectralNorm):
            del module._state_dict_hooks[key]


def double(x: Tensor) -> Tensor:
    """A floating-point or complex tensor in double precision."""
    return x.detach().double() if x.is_floating_point() else x.detach().to(torch.complex128) if x.is_complex() else x


def on_tensors(x: Any, fn: Callable[[Tensor], Any]) -> Any:
    """Apply a function to each tensor of a tree of dicts, tuples and lists; all else stays as it is."""
    if isinstance(x, Tensor):
        return fn(x)
    if isinstance(x, dict):
        return type(x)({k: on_tensors(a, fn) for k, a in x.items()})
    if isinstance(x, (list, tuple)):
        values = [on_tensors(a, fn) for a in x]
        return type(x)(*values) if hasattr(x, "_fields") else type(x)(values)
    return x


def normal(x: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers of the shape of x, in double precision, complex where x is."""
    kind = torch.complex128 if x.is_complex() else torch.float64
    return torch.randn(x.shape, generator=generator, dtype=kind, device=generator.device).to(x.device)
