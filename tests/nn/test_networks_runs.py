"""The image networks as they are run: checkpointed, channels-last, in half precision, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import METHODS, generator
from image_nets import CLASSES, NETWORKS, assert_same, build, gradients, inputs
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flowmaps import dual
from flowmaps.maps import AverageVelocity


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    """Each network in turn."""
    return request.param


def lagrangian(net: nn.Module, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """A loss with a derivative in t, and with gradients into all of it."""
    u, u_dot = dual.jvp(lambda r: net(x, s, r), (t,), (torch.ones_like(t),))
    return (u + (t - s)[:, None, None, None] * u_dot - x).square().mean()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "dropout"])
def test_checkpointing_changes_nothing(name: str, training: bool):
    net = build(name, dropout=0.3).train(training)
    x, s, t = inputs()
    results = []
    for net.checkpointing in (False, True):
        torch.manual_seed(0)
        value = lagrangian(net, x, s, t)
        results.append([value.detach(), *gradients(value, net)])
    for kept, again in zip(*results, strict=True):
        assert torch.equal(kept, again)


def kept_for_the_backward_pass(function: Callable[[], Any]) -> int:
    """Numbers that the graph of a function's value holds."""
    sizes: list[int] = []

    def keep(saved: Tensor) -> Tensor:
        sizes.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        function()
    return sum(sizes)


def test_checkpointing_keeps_less(name: str):
    deep: dict[str, Any] = {"depth": 6} if name == "dit" else {"blocks": 3}
    net = build(name, **deep)
    x, s, t = inputs(rows=16)
    sizes = []
    for net.checkpointing in (False, True):
        sizes.append(kept_for_the_backward_pass(lambda: lagrangian(net, x, s, t)))
    assert sizes[1] < 0.5 * sizes[0]


def test_channels_last_changes_nothing(name: str):
    net = build(name)
    x, s, t = inputs()
    other = build(name).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    y = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(y, s, t), other(x, s, t), rtol=1e-12, atol=1e-12)
    wanted = gradients(lagrangian(other, x, s, t), other)
    assert_same(gradients(lagrangian(net, y, s, t), net), wanted, 1e-12)


def test_a_convolutional_network_keeps_its_weights_channels_last():
    kernels = [p for p in build("unet").parameters() if p.ndim == 4 and p.shape[2] > 1 and p.shape[1] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


# half precision -------------------------------------------------------------------------------------------------------


def half() -> torch.autocast:
    """Autocast to bfloat16 on the CPU."""
    return torch.autocast("cpu", torch.bfloat16)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative, in the mean square."""
    return float((found.detach().double() - wanted.detach().double()).norm() / wanted.detach().double().norm())


def test_autocast_is_close_to_single_precision(name: str):
    """Value, tangent, and gradient of a loss with a tangent, to about the 2^-8 of a bfloat16 a layer."""
    net = build(name, torch.float32)
    x, s, t = inputs(torch.float32, rows=8)
    wanted = [*dual.jvp(lambda r: net(x, s, r), (t,), (torch.ones_like(t),))]
    wanted += gradients(lagrangian(net, x, s, t), net)
    with half():
        found = [*dual.jvp(lambda r: net(x, s, r), (t,), (torch.ones_like(t),))]
        value = lagrangian(net, x, s, t)
    found += gradients(value, net)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert distance(found[0], wanted[0]) < 0.02
    assert distance(found[1], wanted[1]) < 0.04
    assert_same(found[2:], wanted[2:], 0.06)


def test_a_dual_has_the_value_and_the_types_of_the_plain_path(name: str):
    """Layer by layer: a type that is wider beside a tangent would cost time, and give another value."""
    net = build(name, torch.float32)
    x, s, t = inputs(torch.float32)
    kinds: list[list[tuple[str, torch.dtype]]] = [[], []]
    place = 0

    def look(layer: nn.Module, given: Any, out: Any) -> None:
        kinds[place].append((type(layer).__name__, out.dtype))

    for layer in net.modules():
        layer.register_forward_hook(look)
    with half():
        plain = net(x, s, t)
        place = 1
        value, _ = dual.jvp(lambda y, r: net(y, s, r), (x, t), (torch.ones_like(x), torch.ones_like(t)))
    assert kinds[0] == kinds[1]
    assert distance(value, plain) < 0.01
    single, _ = dual.jvp(lambda y, r: net(y, s, r), (x, t), (torch.ones_like(x), torch.ones_like(t)))
    torch.testing.assert_close(single, net(x, s, t), rtol=1e-5, atol=1e-5)


def test_a_derivative_under_autocast_casts_each_weight_once():
    """The value and a tangent without a gradient are two products with the same weights."""
    net = build("unet", torch.float32)
    x, s, t = inputs(torch.float32)
    casts = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16:
                casts.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    with half(), Watch():
        dual.jvp(lambda y, r: net(y, s, r), (x, t), (torch.ones_like(x), torch.ones_like(t)), detach_tangent=True)
    kernels = [tuple(layer.weight.shape) for layer in net.modules() if type(layer).__name__ == "Conv"]
    inner = [shape for shape in kernels if shape[1] != x.shape[1] + 1]  # the first layer has the image, in float32
    assert len(inner) > 5
    for shape in set(inner):
        assert casts.count(shape) == inner.count(shape)


def test_times_are_resolved_in_half_precision(name: str):
    """Times closer than a bfloat16 can tell apart, under autocast and with weights that are bfloat16 themselves."""
    net = build(name, torch.float32, width=32)
    x, s, t = inputs(torch.float32, rows=16)
    near, far = torch.full_like(t, 0.5010), torch.full_like(t, 0.5011)
    assert torch.equal(near.bfloat16(), far.bfloat16())
    with half():
        for first, second in (((s, near), (s, far)), ((near, t), (far, t))):
            one, two = net.embedding(x, *first), net.embedding(x, *second)
            assert one.dtype == torch.float32
            assert bool((one != two).any(1).all())
            assert not torch.equal(net(x, *first), net(x, *second))  # all that rounding within it leaves
    wanted = net.embedding(x, s, near)
    narrow = net.embedding.bfloat16()
    assert distance(narrow(x, s, near), wanted) < 0.02
    middle = [torch.full_like(t, r) for r in (0.5045, 0.5055)]  # one number in bfloat16
    assert torch.equal(*(r.bfloat16() for r in middle))
    assert not torch.equal(*(narrow(x, s, r) for r in middle))


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 4, 3), nn.Linear(5, 3), nn.ConvTranspose2d(2, 4, 3)], ids=repr)
def test_a_bias_does_not_widen_what_autocast_narrowed(layer: nn.Module):
    """A product in bfloat16 plus a bias in float32 is bfloat16, as in torch's own layers, and the same number."""
    x = inputs(torch.float32)[0][..., [0, 1, 2, 3, 3]]
    with half():
        plain = layer(x)
        out = layer(dual.Dual(x, torch.ones_like(x)))  # type: ignore[arg-type]
    assert plain.dtype == out.value.dtype == out.tangent.dtype == torch.bfloat16
    torch.testing.assert_close(out.value, plain, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_tangent_of_group_norm_stays_channels_last_and_is_not_copied(dtype: torch.dtype):
    x = torch.randn(2, 8, 5, 6, generator=generator(0)).to(dtype).contiguous(memory_format=torch.channels_last)
    v = torch.randn(2, 8, 5, 6, generator=generator(1)).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(2, 8, generator=generator(2))
    with Clones() as copies:
        value, tangent = dual.jvp(lambda y: F.group_norm(y, 4, weight.to(dtype), bias.to(dtype)), (x,), (v,))
    assert not copies.found, "a tensor was written out again in another order"
    assert value.is_contiguous(memory_format=torch.channels_last)
    assert tangent.is_contiguous(memory_format=torch.channels_last)


class Clones(TorchDispatchMode):
    """Lists the copies that a function makes of tensors, but for changes of type."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.clone.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.copy_.default):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


# compiled -------------------------------------------------------------------------------------------------------------


SMALL: dict[str, dict[str, Any]] = {"unet": {"multipliers": (1,), "attention": ()}, "dit": {"depth": 1}}
"""The compiler takes seconds a block."""


def compiled_equals_eager(name: str, method: str, checkpointing: bool, backend: str) -> None:
    """Value and gradient of a method's loss, compiled in one graph, against those of the loss as it is."""
    torch.compiler.reset()
    flow_map = AverageVelocity(build(name, torch.float32, classes=CLASSES, guidance=True, **SMALL[name]))
    loss = METHODS[method](flow_map, velocity=lambda x, t, cond=None: torch.sin(x) * t[:, None, None, None])
    x, _, _ = inputs(torch.float32, rows=5)
    draw = loss.draw(x, cond=torch.tensor([0, 3, 1, 2, 2]), generator=generator(3))
    eager = loss.evaluate(draw)
    wanted = gradients(eager.value, flow_map)
    flow_map.net.checkpointing = checkpointing  # type: ignore[assignment]
    compiled = torch.compile(loss.evaluate, fullgraph=True, backend=backend)(draw)
    torch.testing.assert_close(compiled.value, eager.value, rtol=1e-5, atol=0)
    assert_same(gradients(compiled.value, flow_map), wanted, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method, checkpointing", [("lsd", False), ("lmd-none", False), ("lmd-none", True)])
def test_a_loss_is_one_graph(name: str, method: str, checkpointing: bool):
    """With gradients through the derivative, and checkpoints: no break, nothing lost."""
    compiled_equals_eager(name, method, checkpointing, "aot_eager")


@pytest.mark.slow
def test_compiled_by_inductor(name: str):
    """The default compiler, on LMD with its target stopped, as networks of images are trained."""
    compiled_equals_eager(name, "lmd-target", False, "inductor")


def test_a_network_is_one_graph(name: str):
    net = build(name, torch.float32, **SMALL[name])
    x, s, t = inputs(torch.float32)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, s, t), net(x, s, t))
