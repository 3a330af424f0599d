"""`flowmaps.dual` on whole networks: right through every layer, compiled, checkpointed, in bfloat16; what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from flowmaps import dual


class Small(nn.Module):
    """Convolution, GroupNorm, attention, LayerNorm: `(B, 2, 4, 4), (B,) -> (B, 2, 4, 4)`."""

    def __init__(self, width: int = 8, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.first, self.time = nn.Conv2d(2, width, 3, padding=1), nn.Linear(4, width)
        self.group, self.conv = nn.GroupNorm(2, width), nn.Conv2d(width, width, 3, padding=1)
        self.layer, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.last = nn.Conv2d(width, 2, 3, padding=1)

    def block(self, h: Tensor) -> Tensor:
        rows, width, height, length = h.shape
        h = h + self.conv(F.silu(self.group(h)))
        z = h.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.layer(z)).view(rows, -1, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        z = z + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, -1, width))
        return z.transpose(1, 2).reshape(rows, width, height, length)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * torch.arange(1, 3, device=t.device)
        h = self.first(x) + self.time(torch.cat([angle.sin(), angle.cos()], -1))[:, :, None, None]
        h = checkpoint(self.block, h, use_reentrant=False) if self.checkpointed else self.block(h)  # type: ignore
        return self.last(h)


class Masked(nn.Module):
    """Self-attention with a causal mask and padding."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(8, 2, batch_first=True), weights

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)
        padding = torch.zeros(3, 5, dtype=x.dtype).index_fill(1, torch.tensor([4]), -2.0)
        return self.attention(x, x, x, padding, self.weights, mask)[0]


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.label, self.linear = nn.Embedding(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        h = x if cond is None else x + self.label(cond)
        return torch.tanh(self.linear(h)) * t[:, None]


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "small": lambda: (Small(), (images(3, 2, 4, 4), torch.rand(3))),
    "checkpointed": lambda: (Small(checkpointed=True), (images(3, 2, 4, 4), torch.rand(3))),
    "layer norm": lambda: (nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2)), (images(4, 3),)),
    "instance norm": lambda: (nn.Sequential(nn.InstanceNorm1d(3, affine=True), nn.Mish()), (images(2, 3, 5),)),
    "batch norm": lambda: (nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.SiLU()), (images(7, 3),)),
    "encoder": lambda: (nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True), (images(3, 5, 8),)),
    "encoder, norm first": lambda: (
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, norm_first=True), 2, enable_nested_tensor=False
        ).eval(),
        (images(5, 3, 8),),
    ),
    "decoder": lambda: (nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), (images(3, 5, 8), images(3, 4, 8))),
    "separate weights": lambda: (
        nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True),
        (images(3, 5, 8), images(3, 4, 6), images(3, 4, 5)),
    ),
    "masked": lambda: (Masked(False), (images(3, 5, 8),)),
    "masked, weights": lambda: (Masked(True), (images(3, 5, 8),)),
    "labels": lambda: (Labelled(), (images(5, 4), torch.rand(5), torch.tensor([0, 2, 1, 1, 0]))),
    "no labels": lambda: (Labelled(), (images(5, 4), torch.rand(5), None)),
    "dropout": lambda: (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout2d(), nn.PReLU(4)), (images(3, 2, 5, 5),)),
    "strided": lambda: (
        nn.Sequential(nn.Conv2d(2, 4, 3, 2), nn.GELU(), nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.Flatten()),
        (images(3, 2, 6, 6),),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_are_right(name: str) -> None:
    torch.manual_seed(0)
    net, inputs = NETWORKS[name]()
    assert dual.check(net, *inputs, tolerance=1e-7) < 1e-7


def loss(net: Any, x: Tensor, t: Tensor, detach: bool = False, engine: Any = "dual") -> Tensor:
    value, tangent = dual.jvp(
        net, (x, t), (torch.ones_like(x), torch.ones_like(t)), detach_tangent=detach, engine=engine
    )
    return (value * tangent).square().mean()


def gradients(value: Tensor, net: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(net.parameters())))


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max() + 1e-3))


@pytest.fixture
def small() -> tuple[Small, Tensor, Tensor]:
    torch.manual_seed(0)
    return Small(), images(3, 2, 4, 4), torch.rand(3)


def test_checkpointing_changes_nothing(small: Any) -> None:
    net, x, t = small
    expected = gradients(loss(net, x, t), net)
    net.checkpointed = True
    assert_same(gradients(loss(net, x, t), net), expected, 1e-7)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_bfloat16_autocast(small: Any, checkpointed: bool) -> None:
    net, x, t = small
    expected = gradients(loss(net, x, t), net)
    net.checkpointed = checkpointed
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(net, x, t)
    assert_same(gradients(value, net), expected, 0.05)


@pytest.mark.parametrize("checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_in_one_graph(small: Any, checkpointed: bool) -> None:
    net, x, t = small
    net.checkpointed = checkpointed
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_same(gradients(compiled(net, x, t), net), gradients(loss(net, x, t), net))


def test_compiled_network_inside(small: Any) -> None:
    net, x, t = small
    inside = torch.compile(net, backend="eager")
    assert_same(gradients(loss(inside, x, t, True), net), gradients(loss(net, x, t, True), net))


@pytest.mark.parametrize("detach", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_inductor(detach: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.GELU(approximate="tanh"), nn.LayerNorm(8), nn.Linear(8, 2))

    def of(x: Tensor, t: Tensor) -> Tensor:
        return torch.sinc(t)[:, None] * net(torch.cat([x, (1 - t)[:, None]], 1))

    x, t = images(5, 2), torch.rand(5)
    compiled = torch.compile(loss, fullgraph=True)
    assert_same(gradients(compiled(of, x, t, detach), net), gradients(loss(of, x, t, detach), net))


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "convolution")
        return func(*args, **(kwargs or {}))


def products(function: Callable[[], Any]) -> int:
    with Products() as counter:
        function()
    return counter.count


def test_missing_tangents_cost_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    x, y = images(5, 3), images(5, 3)

    def apart(x: Any, y: Any) -> Any:
        return net(x) + net(y)

    def along(*tangents: Any, **options: Any) -> int:
        return products(lambda: dual.jvp(apart, (x, y), tangents, **options))

    assert along(None, None) == 4
    assert along(torch.ones_like(x), None) == 4  # value and tangent in one product; y without one
    assert along(torch.ones_like(x), None, detach_tangent=True) == 6  # two for the tangent, none twice for the value
    value, tangent = dual.jvp(apart, (x, y), (None, None))
    torch.testing.assert_close(value, apart(x, y))
    assert not tangent.any()


def test_detached_tangent_keeps_the_value_differentiable(small: Any) -> None:
    net, x, t = small
    value, tangent = dual.jvp(net, (x, t), (torch.ones_like(x), None), detach_tangent=True)
    with_graph = dual.jvp(net, (x, t), (torch.ones_like(x), None))
    assert not tangent.requires_grad
    torch.testing.assert_close(tangent, with_graph[1], rtol=1e-5, atol=1e-6)
    assert_same(gradients(value.square().sum(), net), gradients(net(x, t).square().sum(), net))


@pytest.mark.parametrize("name", ["small", "layer norm", "batch norm", "dropout", "encoder", "labels", "strided"])
def test_no_autograd_graph_on_a_detached_tangent(name: str) -> None:
    torch.manual_seed(0)
    net, inputs = NETWORKS[name]()
    x = inputs[0].clone().requires_grad_()
    tangent = dual.jvp(lambda x: net(x, *inputs[1:]), (x,), (torch.ones_like(x),), detach_tangent=True)[1]
    assert not tangent.requires_grad
    assert tangent.any()


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.LayerNorm(3), (4, 3)),
        (nn.InstanceNorm1d(3, affine=True), (2, 3, 5)),
        (nn.BatchNorm1d(3, track_running_stats=False), (5, 3)),
    ],
    ids=["layer_norm", "instance_norm", "batch_norm"],
)
def test_torch_engine_refuses_what_torch_gets_wrong(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = images(*shape)
    with pytest.raises(ValueError, match=f'engine="torch" met .*{type(layer).__name__[:5].lower()}.*engine="dual"'):
        dual.jvp(layer, (x,), (torch.ones_like(x),), engine="torch")
    with pytest.raises(ValueError, match=f"'1' .{type(layer).__name__}"):
        dual.check(nn.Sequential(nn.Tanh(), layer), x, engine="torch")
    direction = images(*shape[::-1]).reshape(shape)
    pair = [dual.jvp(layer, (x,), (direction,), engine=e, detach_tangent=True)[1] for e in ("torch", "dual")]  # type: ignore
    torch.testing.assert_close(pair[0], pair[1], rtol=1e-4, atol=1e-5)


def test_torch_engine_refuses_running_statistics() -> None:
    x = images(5, 3)
    with pytest.raises(RuntimeError) as refused:
        dual.jvp(nn.BatchNorm1d(3), (x,), (torch.ones_like(x),), engine="torch")
    assert 'as batch_norm does in training. Use engine="dual", or net.eval()' in refused.value.__notes__[0]


@pytest.mark.parametrize("layer", [nn.LayerNorm(5), nn.InstanceNorm1d(3, affine=True), nn.BatchNorm1d(3)])
def test_normalisations_that_torch_gets_wrong_are_right(layer: nn.Module) -> None:
    """The gradient of <w, D f(x) v> in x, every entry against central differences of the tangent."""
    layer = layer.double()
    x, v, w = (images(2, 3, 5, n).double()[..., -1] for n in (1, 2, 3))

    def along(x: Tensor) -> Tensor:
        return (w * dual.jvp(layer, (x,), (v,))[1]).sum()

    slope = torch.autograd.functional.jacobian(along, x)
    step = 1e-5 * torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    with torch.no_grad():
        expected = torch.stack([along(x + h) - along(x - h) for h in step]).view_as(x) / 2e-5
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-8)


def test_engines_agree() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.GroupNorm(1, 5), nn.SiLU(), nn.Linear(5, 2)).double()
    x, v = images(4, 3).double(), images(3, 4).T.double()
    pairs = {e: dual.jvp(net, (x,), (v,), engine=e) for e in dual.ENGINES}  # type: ignore
    results = {e: tangent for e, (_, tangent) in pairs.items()}
    slopes = {e: gradients((value * tangent).sum(), net) for e, (value, tangent) in pairs.items()}
    torch.testing.assert_close(results["torch"], results["dual"])
    torch.testing.assert_close(results["finite-difference"], results["dual"], rtol=1e-7, atol=1e-8)
    assert_same(slopes["torch"], slopes["dual"], 1e-9)
    assert_same(slopes["finite-difference"], slopes["dual"], 1e-6)


def test_batch_norm_counts_a_batch_once() -> None:
    layer, plain, x = nn.BatchNorm1d(3), nn.BatchNorm1d(3), images(5, 3)
    dual.jvp(layer, (x,), (torch.ones_like(x),))
    plain(x)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), buffer)
