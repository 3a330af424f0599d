"""Networks and their forward-mode derivatives on the device, against the same in float64 on the CPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import cuda_cases
import image_nets
import pytest
import torch
from cuda_cases import DEVICE, distance
from torch import Tensor, nn

from flowmaps import dual
from flowmaps.nn import MLP

pytestmark = cuda_cases.gpu

ROWS = 5


def mlp() -> nn.Module:
    net = MLP(7, width=16, depth=3, time_frequencies=3, space_frequencies=2, modulation=8).double()
    image_nets.randomise(net)
    return net


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (7,)),
    "unet": (lambda: image_nets.build("unet"), (image_nets.CHANNELS, image_nets.SIDE, image_nets.SIDE)),
    "dit": (lambda: image_nets.build("dit"), (image_nets.CHANNELS, image_nets.SIDE, image_nets.SIDE)),
}


def inputs(shape: tuple[int, ...]) -> list[Tensor]:
    """x, s and t, then their directions, float64 numbers that float32 can hold."""
    rng = torch.Generator().manual_seed(1)
    x, dx = torch.randn(2, ROWS, *shape, generator=rng).double()
    s, t = torch.rand(2, ROWS, generator=rng).double()
    ds, dt = torch.randn(2, ROWS, generator=rng).double()
    return [x, s, t, dx, ds, dt]


def derivatives(net: nn.Module, given: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The value, the tangent, and the gradient of a loss of both."""
    value, tangent = dual.jvp(net, tuple(given[:3]), tuple(given[3:]))
    loss = tangent.double().square().mean() + (value.double() * tangent.double()).mean()
    return [value], [tangent], list(torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True))


def on_device(net: nn.Module, given: list[Tensor]) -> tuple[nn.Module, list[Tensor]]:
    """A copy of the network and its inputs, float32, on the device."""
    moved = copy.deepcopy(net).to(DEVICE, torch.float32)
    return moved, [value.to(DEVICE, torch.float32) for value in given]


def test_the_float32_network_is_that_of_float64():
    """The weights and inputs of both differ by rounding to float32 alone."""
    for build, shape in NETWORKS.values():
        net, given = build(), inputs(shape)
        moved, others = on_device(net, given)
        assert distance(others, given) == 0
        assert distance(list(moved.parameters()), list(net.parameters())) < 1e-7
        assert all(value.device.type == DEVICE.type for value in [*moved.parameters(), *moved.buffers(), *others])


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_in_float32(name: str):
    build, shape = NETWORKS[name]
    net, given = build(), inputs(shape)
    wanted, found = derivatives(net, given), derivatives(*on_device(net, given))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours[0].device.type == DEVICE.type
        assert distance(ours, theirs) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_in_bfloat16(name: str):
    """Autocast rounds to eight bits."""
    build, shape = NETWORKS[name]
    net, given = build(), inputs(shape)
    wanted = derivatives(net, given)
    moved, others = on_device(net, given)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = derivatives(moved, others)
    errors = [distance(ours, theirs) for ours, theirs in zip(found, wanted, strict=True)]
    assert all(math.isfinite(error) for error in errors)
    assert max(errors) < 5e-2, errors


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tangent_without_a_gradient_is_the_same(name: str):
    build, shape = NETWORKS[name]
    net, given = on_device(build(), inputs(shape))
    value, tangent = dual.jvp(net, tuple(given[:3]), tuple(given[3:]), detach_tangent=True)
    whole = dual.jvp(net, tuple(given[:3]), tuple(given[3:]))
    assert value.requires_grad
    assert not tangent.requires_grad
    assert distance([value], [whole[0]]) < 1e-5
    assert distance([tangent], [whole[1]]) < 1e-5


def test_a_channels_last_unet_equals_a_contiguous_one():
    """The U-Net keeps its weights in channels-last format, of which cuDNN has kernels of its own."""
    build, shape = NETWORKS["unet"]
    net, given = on_device(build(), inputs(shape))
    other = copy.deepcopy(net).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    formats: list[Any] = [torch.channels_last, torch.contiguous_format]
    for one, kind in zip((net, other), formats, strict=True):
        weights = [p for p in one.parameters() if p.ndim == 4 and p.shape[-1] == 3]
        assert all(p.is_contiguous(memory_format=kind) for p in weights)
    for ours, theirs in zip(derivatives(net, given), derivatives(other, given), strict=True):
        assert distance(ours, theirs) < 1e-4
    moved = [given[0].contiguous(memory_format=torch.channels_last), *given[1:]]
    assert distance([net(*moved[:3])], [other(*given[:3])]) < 1e-4
