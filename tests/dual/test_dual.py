"""The contract of `flowmaps.dual`: arguments, errors, operations in place, rules of one's own, `check`."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowmaps import dual
from flowmaps.dual import Dual
from flowmaps.dual.core import TABLE

X = torch.tensor([[0.3, -0.7, 1.1], [0.2, 0.5, -0.4]])
V = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])


def along(function: Any) -> Tensor:
    return dual.jvp(function, (X,), (V,))[1]


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="engine must be one of 'dual', 'torch', 'finite-difference', got 'jax'"):
        dual.jvp(torch.sin, (X,), (V,), engine="jax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"primal's shape \(2, 3\), got \(3,\)"):
        dual.jvp(torch.sin, (X,), (V[0],))
    with pytest.raises(ValueError, match="2 primals and 1 tangents"):
        dual.jvp(torch.add, (X, X), (V,))
    with pytest.raises(ValueError, match="must return one tensor, got tuple"):
        dual.jvp(lambda x: (x, x), (X,), (V,))
    with pytest.raises(NotImplementedError, match=r'torch.igamma .*@dual.rule\(torch.igamma\).*engine="torch"'):
        along(lambda x: torch.igamma(x, x))


def test_rule_of_ones_own() -> None:
    before = TABLE[torch.special.i0]
    try:

        @dual.rule(torch.special.i0)
        def _(x: Dual) -> Dual:
            assert x.tangent is not None
            return Dual(torch.special.i0(x.value), x.tangent * torch.special.i1(x.value))

        torch.testing.assert_close(along(torch.special.i0), V * torch.special.i1(X))
        w = X.clone().requires_grad_()
        value, tangent = dual.jvp(lambda x: torch.special.i0(x * w), (X,), (V,), detach_tangent=True)
        assert value.requires_grad
        assert not tangent.requires_grad
    finally:
        TABLE[torch.special.i0] = before


def test_independent_output_has_a_zero_tangent() -> None:
    value, tangent = dual.jvp(lambda x: torch.ones(4), (X,), (V,))
    assert value.shape == tangent.shape == (4,)
    assert not tangent.any()
    assert not along(lambda x: x.detach() * 2).any()
    assert not along(torch.round).any()


def test_attributes_and_methods() -> None:
    x = Dual(X, V)
    assert (x.shape, x.dtype, x.ndim, x.device, len(x)) == (X.shape, X.dtype, 2, X.device, 2)  # type: ignore
    assert (x.size(0), x.dim(), x.is_floating_point(), x.numel()) == (2, 2, True, 6)  # type: ignore
    assert [type(row) for row in x] == [Dual, Dual]
    assert all(isinstance(y, Tensor) for y in (x > 0, x.long(), x.sign(), x.argmax()))  # type: ignore
    torch.testing.assert_close(x.to(torch.float64).tangent, V.double())  # type: ignore
    torch.testing.assert_close(x.T.tangent, V.T)  # type: ignore
    torch.testing.assert_close((2 / x - x**2 + 1 % x).tangent, -2 * V / X**2 - 2 * X * V - V * torch.floor(1 / X))  # type: ignore


@pytest.mark.parametrize("call", [lambda x: x.item(), lambda x: float(x), lambda x: x.tolist(), lambda x: x.numpy()])
def test_leaving_torch_is_refused(call: Any) -> None:
    with pytest.raises(TypeError, match="would drop the tangent"):
        call(Dual(X, V))


def test_in_place_operations() -> None:
    def assigned(x: Any) -> Any:
        h = x * 1
        same = h
        h += x
        h *= 2
        h.add_(1).sub_(x)
        assert same is h
        return F.silu(F.relu(h, inplace=True), True)

    torch.testing.assert_close(along(assigned), along(lambda x: F.silu(F.relu(3 * x + 1))))
    before = X.clone()
    along(lambda x: F.relu(x, inplace=True))
    torch.testing.assert_close(X, before)


def test_refused_in_place_operations() -> None:
    """The layout of a tensor that has a view; other operations in place are in test_dual_writes.py."""

    def under_view(x: Any) -> Any:
        y = x.view(-1)
        x.unsqueeze_(0)
        return y

    with pytest.raises(NotImplementedError, match=r"x.unsqueeze_\(\) on a Dual that shares.*y = x.unsqueeze\(\)"):
        along(under_view)


def test_refused_writes_into_plain_tensors() -> None:
    """A view of a plain tensor, or a tensor that has a view, would leave the other without a tangent."""

    def has_a_view(x: Any) -> Any:
        out = torch.zeros(2, 3)
        row = out[0]
        out.copy_(x)
        return row

    for function in (lambda x: torch.zeros(2, 3)[0].add_(x[0]), has_a_view, lambda x: nn.Parameter(X).add_(x)):
        with pytest.raises(NotImplementedError, match="writes a Dual into a plain tensor"):
            along(function)
    with pytest.raises(NotImplementedError, match=r"x\[...\] = y writes a Dual.*torch.cat"):
        along(lambda x: torch.zeros(2, 3)[0].__setitem__(0, x[0, 0]))


def test_writes_into_plain_tensors() -> None:
    """A plain tensor that a Dual is written into has a tangent from then on, and is plain again after `jvp`."""
    kept = torch.zeros(2, 3)

    def step_by_step(x: Any) -> Any:
        out = torch.zeros(2, 3)
        out[:, 0] = x[:, 0]
        for k in range(1, 3):
            out[:, k] = out[:, k - 1] * x[:, k]
        kept.copy_(x)
        assert torch.is_tensor(out)
        assert (out.shape, out.dtype, len(out)) == ((2, 3), torch.float32, 2)
        total = x + out + kept
        out *= 2
        return torch.cat([total, out.sin().mT.reshape(2, 3), torch.zeros(2, 3).add_(x).mul_(x)])

    def at_once(x: Any) -> Any:
        out = torch.cumprod(x, 1)
        return torch.cat([x + out + x, (2 * out).sin().mT.reshape(2, 3), x * x])

    torch.testing.assert_close(along(step_by_step), along(at_once))
    assert type(kept) is Tensor
    torch.testing.assert_close(kept, X)
    torch.testing.assert_close(step_by_step(X), at_once(X))


def test_integers_take_no_tangent() -> None:
    assert not along(lambda x: torch.zeros(2, 3, dtype=torch.long).copy_(10 * x) + 0.0).any()


def test_sinc_has_all_derivatives_at_zero() -> None:
    """sinc x = 1 - (pi x)^2 / 6 + (pi x)^4 / 120: its derivative's derivative at 0 is -pi^2 / 3."""
    for point in (0.0, 1e-9, 1e-4, 0.3, 0.5, 0.7):
        x = torch.tensor([point], dtype=torch.float64, requires_grad=True)
        value, tangent = dual.jvp(torch.sinc, (x,), (torch.ones_like(x),))
        second = torch.autograd.grad(tangent, x)[0]
        z = math.pi * point
        if point < 0.1:
            expected = -(math.pi**2) / 3 * point, -(math.pi**2) / 3 + math.pi**4 / 10 * point**2
        else:
            slope = (math.cos(z) - math.sin(z) / z) / point
            expected = slope, -(math.pi**2) * math.sin(z) / z - 2 * slope / point
        torch.testing.assert_close(value, torch.sinc(x))
        torch.testing.assert_close(tangent.item(), expected[0], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(second.item(), expected[1], rtol=1e-6, atol=1e-12)


def test_second_order_through_nothing_else_than_reverse_mode() -> None:
    x = X.double().requires_grad_()
    tangent = dual.jvp(lambda x: torch.exp(x).sum(1), (x,), (V.double(),))[1]
    (slope,) = torch.autograd.grad(tangent.sum(), x)
    torch.testing.assert_close(slope, torch.exp(x) * V)


class Wrong(nn.Module):
    """Right value, wrong gradient: the derivative is computed outside the graph."""

    def forward(self, x: Any) -> Any:
        return x * torch.sigmoid(x.detach())


class Unknown(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.igamma(x.abs() + 1, x.abs())


@pytest.mark.parametrize("fault", [Wrong(), Unknown()])
def test_check_names_the_module_at_fault(fault: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), fault), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=rf"Sequential is wrong or missing at '1.1' \({type(fault).__name__}\)"):
        dual.check(net, X)


def test_check_leaves_the_network_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    nn.init.zeros_(net[2].weight)  # type: ignore[arg-type]
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    assert dual.check(net, X) < 1e-7
    assert dual.check(net, X, generator=torch.Generator().manual_seed(3)) < 1e-7
    for name, value in net.state_dict().items():
        assert value.dtype == before[name].dtype
        torch.testing.assert_close(value, before[name])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    assert not net[0]._forward_hooks


class Single(nn.Module):
    """Embeds its time in float32, as many networks do."""

    def forward(self, x: Any, t: Any) -> Any:
        frequencies = torch.arange(1, 4, dtype=torch.float32)
        return x * torch.cos(t[:, None].float() * frequencies).to(x.dtype)


def test_check_is_not_misled_by_float32_inside() -> None:
    assert dual.check(Single(), X, torch.tensor([0.3, 0.4]), tolerance=1e-7) < 1e-7


def test_check_needs_something_to_move() -> None:
    with pytest.raises(ValueError, match="at least one floating-point tensor"):
        dual.check(nn.Embedding(3, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "layer", [nn.Dropout(), nn.Dropout1d(), nn.Dropout2d(), nn.Dropout3d(), nn.Dropout(inplace=True)]
)
def test_dropout_draws_one_mask(layer: nn.Module) -> None:
    axes = {nn.Dropout1d: 1, nn.Dropout2d: 2}.get(type(layer), 3)
    x = torch.randn(3, 4, *[2] * axes)
    torch.manual_seed(0)
    value, tangent = dual.jvp(layer, (x.clone(),), (torch.full_like(x, 3.0),))
    torch.manual_seed(0)
    torch.testing.assert_close(value, layer(x.clone()))
    torch.testing.assert_close(tangent, torch.where(value == 0, 0.0, 6.0))


def test_attention_dropout_keeps_value_and_tangent_together() -> None:
    q, k = torch.randn(2, 5, 4), torch.randn(2, 6, 4)
    v = torch.randn(2, 6, 4)

    def attend(v: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    torch.manual_seed(0)
    value, tangent = dual.jvp(attend, (v,), (v,))  # linear in v
    torch.testing.assert_close(value, tangent)


def test_a_silu_without_a_gradient_has_the_same_tangent():
    """By torch's fused kernel, which has no gradient of its own."""
    x = torch.linspace(-30, 30, 101, dtype=torch.float64)
    v = torch.cos(x)
    tangents = [
        dual.jvp(torch.nn.functional.silu, (x,), (v,), detach_tangent=detached)[1] for detached in (False, True)
    ]
    torch.testing.assert_close(tangents[0], tangents[1], rtol=1e-13, atol=1e-13)
    gate = torch.sigmoid(x)
    torch.testing.assert_close(tangents[1], v * (gate + x * gate * (1 - gate)), rtol=1e-13, atol=1e-13)
