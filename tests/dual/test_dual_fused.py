"""The optional fused kernel of attention's tangent: when it is called, with what, and when it is refused.

No machine of the tests has a GPU, so that a kernel written out stands in for it, as strict as the real one: contiguous
tensors of one shape, a head of a size that it is compiled for, a sequence of whole blocks, no gradient.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import generator
from image_nets import assert_same, gradients, randomise
from torch import Tensor

from flowmaps import dual, methods
from flowmaps.dual import fused
from flowmaps.maps import AverageVelocity
from flowmaps.nn import DiT


class Kernel:
    """What `attn_fwd_dual_triton` of jvp_flash_attention 0.14 computes, counting its calls."""

    def __init__(self, factor: float = 1.0) -> None:
        self.calls, self.factor = 0, factor

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, *rest: Any) -> Any:
        mask, scale, *options = rest
        tensors = (q, k, v, dq, dk, dv)
        assert all(a.is_contiguous() and a.shape == q.shape and a.dtype == q.dtype for a in tensors)
        assert q.dtype in (torch.float16, torch.bfloat16)
        assert q.dim() == 4
        assert q.shape[2] % 32 == 0
        assert q.shape[3] in (32, 64, 128, 256)
        assert not torch.is_grad_enabled()
        assert (mask.numel(), options) == (0, [0.0, 0, False, True, 0])
        self.calls += 1
        q, k, v, dq, dk, dv = (a.float() for a in tensors)
        p = torch.softmax(scale * q @ k.mT, -1)
        ds = scale * (dq @ k.mT + q @ dk.mT)
        out = p @ v
        tangent = p @ dv + (p * ds) @ v - (p * ds).sum(-1, keepdim=True) * out
        kind = tensors[0].dtype
        return out.to(kind), self.factor * tangent.to(kind), p.sum(-1).log2()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A stand-in that is in force, on a device that passes for CUDA."""
    stand_in = Kernel()
    monkeypatch.setattr(fused, "_kernel", stand_in)
    monkeypatch.setattr(fused, "_DEVICE", "cpu")
    return stand_in


def pair(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> tuple[list[Tensor], list[Tensor]]:
    """Queries, keys, values and their tangents."""
    numbers = torch.randn(6, *shape, generator=generator(0)).to(dtype)
    return list(numbers[:3]), list(numbers[3:])


def tangent(points: list[Tensor], directions: list[Any], detach: bool = True, **options: Any) -> tuple[Tensor, Tensor]:
    return dual.jvp(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options),
        tuple(points),
        tuple(directions),
        detach_tangent=detach,
    )


def close(found: Tensor, wanted: Tensor, share: float = 0.02) -> None:
    assert float((found.float() - wanted.float()).norm() / wanted.float().norm()) < share


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 3, 64, 24), (1, 2, 96, 72), (1, 1, 32, 130)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_gives_the_tangent(kernel: Kernel, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Also of heads of a size between, filled up with zeros, and at a scale that is given."""
    points, directions = pair(shape, dtype)
    wanted = tangent([x.float() for x in points], [v.float() for v in directions], scale=0.3)
    assert kernel.calls == 0
    value, found = tangent(points, directions, scale=0.3)
    assert kernel.calls == 1
    assert value.dtype == found.dtype == dtype
    assert not found.requires_grad
    close(value, wanted[0])
    close(found, wanted[1])


@pytest.mark.parametrize("missing", [(0,), (1, 2), (0, 1)], ids=str)
def test_missing_tangents_are_zero(kernel: Kernel, missing: tuple[int, ...]) -> None:
    points, directions = pair((2, 2, 32, 32))
    some = [None if k in missing else v for k, v in enumerate(directions)]
    wanted = tangent([x.float() for x in points], [None if v is None else v.float() for v in some])
    close(tangent(points, some)[1], wanted[1])
    assert kernel.calls == 1


def test_it_follows_autocast(kernel: Kernel) -> None:
    points, directions = pair((2, 2, 32, 32), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value, found = tangent(points, directions)
    assert kernel.calls == 1
    assert value.dtype == found.dtype == torch.bfloat16
    close(found, tangent(points, directions)[1])


def test_it_is_left_alone_where_a_gradient_is_taken(kernel: Kernel) -> None:
    """The kernel has none: a gradient through its tangent would be lost without a word."""
    points, directions = pair((2, 2, 32, 32))
    points[0].requires_grad_()
    _, found = tangent(points, directions, detach=False)
    assert kernel.calls == 0
    assert torch.autograd.grad(found.square().sum(), points[0])[0].any()
    with torch.no_grad():
        tangent(points, directions, detach=False)
    assert kernel.calls == 1


@pytest.mark.parametrize(
    "shape, options",
    [
        ((2, 2, 48, 32), {}),  # no whole block
        ((2, 2, 32, 257), {}),
        ((2, 32, 32), {}),
        ((2, 2, 32, 32), {"is_causal": True}),
        ((2, 2, 32, 32), {"attn_mask": torch.zeros(32, 32, dtype=torch.bfloat16)}),
        ((2, 2, 32, 32), {"dropout_p": 0.5}),
    ],
    ids=str,
)
def test_what_it_does_not_take_goes_on_as_before(kernel: Kernel, shape: tuple[int, ...], options: dict) -> None:
    tangent(*pair(shape), **options)
    assert kernel.calls == 0


def test_single_precision_and_other_keys_go_on_as_before(kernel: Kernel) -> None:
    tangent(*pair((2, 2, 32, 32), torch.float32))
    (q, k, v), (dq, dk, dv) = pair((2, 2, 64, 32))
    tangent([q, k[:, :, :32], v[:, :, :32]], [dq, dk[:, :, :32], dv[:, :, :32]])
    assert kernel.calls == 0


def test_the_loss_of_a_transformer_with_a_stopped_target_is_the_same(kernel: Kernel) -> None:
    """MeanFlow under autocast, with the kernel and without: value and gradient of the value."""
    net = DiT(2, 16, patch=2, width=32, depth=2, heads=1)  # 64 tokens
    randomise(net)
    loss = methods.meanflow(AverageVelocity(net))
    x = torch.randn(3, 2, 16, 16, generator=generator(1))
    results = []
    for used in (True, False):
        fused._kernel = kernel if used else None
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(x, generator=generator(2)).value
        results.append([value.detach(), *gradients(value, net)])
    assert kernel.calls == 2
    close(results[0][0], results[1][0], 0.02)
    assert_same(results[0][1:], results[1][1:], 0.05)


# when it is refused ---------------------------------------------------------------------------------------------------


def test_it_is_refused_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA device, and there is none: leave it out"):
        dual.flash()
    dual.flash(False)  # is always right
    assert fused._kernel is None


def pretend(monkeypatch: pytest.MonkeyPatch, stand_in: Kernel | None, half: bool = True) -> None:
    """A machine with a GPU, and the package if there is a kernel."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: half)
    monkeypatch.setattr(fused, "_DEVICE", "cpu")
    monkeypatch.setattr(fused, "_kernel", None)
    names = ("jvp_flash_attention", "jvp_flash_attention.jvp_attention")
    for name in names:
        monkeypatch.setitem(sys.modules, name, None if stand_in is None else ModuleType(name))
    op = SimpleNamespace(attn_fwd_dual_triton=SimpleNamespace(default=stand_in))
    monkeypatch.setattr(torch.ops, "jvp_flash_attention", op, raising=False)


def test_it_is_refused_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    with pytest.raises(ValueError, match=r"needs the package jvp_flash_attention 0.14 or later: pip install --no-deps"):
        dual.flash()
    assert fused._kernel is None


def test_an_older_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 0.14 there was no operator."""
    pretend(monkeypatch, Kernel())
    monkeypatch.setattr(torch.ops, "jvp_flash_attention", SimpleNamespace())
    with pytest.raises(ValueError, match=r"jvp_flash_attention 0.14 or later"):
        dual.flash()


def test_it_is_turned_on_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Kernel()
    pretend(monkeypatch, stand_in)
    dual.flash()
    assert stand_in.calls == 2  # tried out in both types
    tangent(*pair((2, 2, 32, 32)))
    assert stand_in.calls == 3
    dual.flash(False)
    tangent(*pair((2, 2, 32, 32)))
    assert stand_in.calls == 3


def test_a_wrong_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Kernel(factor=1.1))
    with pytest.raises(ValueError, match=r"in torch.float16 is off by 0.1 here: leave dual.flash out"):
        dual.flash()
    assert fused._kernel is None


def test_a_kernel_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Triton 3.9, which has no block pointers any more."""

    def fails(*_: Any) -> Any:
        raise NotImplementedError("Block pointers have been removed")

    pretend(monkeypatch, fails, half=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"does not run here: leave dual.flash out. .Block pointers have been removed"):
        dual.flash()
    assert fused._kernel is None
