"""What an evaluation leaves behind: buffers are updated once, as by a plain call, and threads do not meet."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import flowmaps as fm
from flowmaps import dual

X, V = (torch.randn(6, 3, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
T = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)


class Energy(nn.Module):
    """The gradient of an energy with statistics of the batch and a count of its own; time alone moves along."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 1)).double()
        self.checkpointed, self.calls = checkpointed, 0
        self.register_buffer("mean", torch.ones(3, dtype=torch.float64))

    def energy(self, x: Any, t: Any) -> Any:
        return self.net(torch.cat([x, t.unsqueeze(-1)], -1)).sum() + (x**3).sum()

    def forward(self, x: Any, t: Any) -> Any:
        self.calls += 1
        self.mean.mul_(0.9).add_(x.detach().mean(0))
        with torch.enable_grad():
            x = (x * self.mean).clone().requires_grad_()
            energy = checkpoint(self.energy, x, t, use_reentrant=False) if self.checkpointed else self.energy(x, t)
            return torch.autograd.grad(energy, x, create_graph=True)[0]


def buffers(net: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in net.named_buffers()}


def after_a_plain_call(net: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    plain = copy.deepcopy(net)
    plain(*inputs)
    return buffers(plain)


@pytest.mark.parametrize("moving", ["t", "x"])
def test_a_gradient_inside_updates_buffers_once(moving: str) -> None:
    """With a detached tangent the evaluation begins anew, with a graph; the next call knows at once."""
    torch.manual_seed(0)
    net = Energy()
    directions = (None, torch.ones_like(T)) if moving == "t" else (V, None)
    for calls in (2, 3):
        expected, same = after_a_plain_call(net, X, T), copy.deepcopy(net)
        value, tangent = dual.jvp(net, (X, T), directions, detach_tangent=True)
        whole = dual.jvp(same, (X, T), directions)
        torch.testing.assert_close((value, tangent), (whole[0].detach().requires_grad_(), whole[1].detach()))
        torch.testing.assert_close(buffers(net), expected)
        assert net.calls == calls


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_finite_differences_update_buffers_once(training: bool, detach: bool) -> None:
    """All evaluations start from the same buffers; the buffers are the same objects afterwards."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double().train(training)
    objects = [id(x) for x in net.buffers()]
    expected = after_a_plain_call(net, X)
    exact = dual.jvp(copy.deepcopy(net), (X,), (V,))
    value, tangent = dual.jvp(net, (X,), (V,), engine="finite-difference", detach_tangent=detach)
    torch.testing.assert_close(buffers(net), expected)
    assert [id(x) for x in net.buffers()] == objects
    torch.testing.assert_close((value, tangent), exact, rtol=1e-6, atol=1e-8)
    ((value * tangent).sum() if not detach else value.sum()).backward()


def test_finite_differences_of_a_network_that_reads_its_state() -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.ones(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.mean = 1.5 * self.mean
            return x.sin() * self.mean

    net = Averaging()
    tangent = dual.jvp(net, (X,), (V,), engine="finite-difference")[1]
    torch.testing.assert_close(tangent, 1.5 * X.cos() * V, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(net.mean, torch.full((3,), 1.5, dtype=torch.float64))


@pytest.mark.parametrize("moving", ["t", "x"])
def test_a_checkpointed_energy_with_a_detached_tangent(moving: str) -> None:
    directions = (None, torch.ones_like(T)) if moving == "t" else (V, None)
    found = []
    for checkpointed in (True, False):
        torch.manual_seed(0)
        net = Energy(checkpointed)
        value, tangent = dual.jvp(net, (X, T), directions, detach_tangent=True)
        assert not tangent.requires_grad
        (value * tangent).sum().backward()
        found.append([value.detach(), tangent, *(p.grad for p in net.parameters())])
    torch.testing.assert_close(*found)


class Remembering(nn.Module):
    """Writes its input into a buffer, in a region of checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3).double()
        self.register_buffer("last", torch.zeros(6, 3, dtype=torch.float64))

    def region(self, x: Any) -> Any:
        h = self.linear(x)
        self.last.copy_(h.detach() + 0 * h)
        return torch.tanh(h) * 2

    def forward(self, x: Any) -> Any:
        return checkpoint(self.region, x, use_reentrant=False)


def test_buffers_that_a_recomputation_writes_into_are_plain() -> None:
    torch.manual_seed(0)
    net = Remembering()
    with torch.no_grad():
        last = net.linear(X)
    value, tangent = dual.jvp(net, (X,), (V,))
    assert type(net.last) is Tensor
    net.last = net.last.detach()
    (value * tangent).sum().backward()
    assert type(net.last) is Tensor
    torch.testing.assert_close(net.last.detach(), last)


def test_threads_do_not_meet() -> None:
    """One thread ends its derivative while another is in the midst of a write, and of a gradient inside."""
    inside, ended = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    def slow(x: Any) -> Any:
        out = torch.zeros(6, 3, dtype=torch.float64)
        out[:, :2] = x[:, 1:] ** 2
        y = x.sum(0)
        inside.set()
        assert ended.wait(30)
        return out * 3 + y

    def run() -> None:
        found["slow"] = dual.jvp(slow, (X,), (V,))

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(30)
    kept = torch.zeros(6, 3, dtype=torch.float64)
    dual.jvp(lambda x: kept.copy_(x).sin(), (X,), (V,))
    assert type(kept) is Tensor
    dual.jvp(Energy(), (X, T), (None, torch.ones_like(T)), detach_tangent=True)
    ended.set()
    thread.join()
    torch.testing.assert_close(found["slow"], dual.jvp(slow, (X,), (V,)))
    ends = [slow(X + h * V) for h in (1e-6, -1e-6)]
    torch.testing.assert_close(found["slow"][1], (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)


class Asking(nn.Module):
    """Another network for what is no `torch.Tensor`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Any, s: Any, t: Any, cond: Any = None) -> Any:
        s, t = (a if isinstance(a, Tensor) else 2 * a for a in (s, t))
        return self.linear(torch.stack([x[:, 0], x[:, 1], s, t], 1))


@pytest.mark.parametrize("method", [fm.methods.lsd, fm.methods.meanflow])
def test_training_refuses_a_network_with_another_value_along_a_derivative(method: Any) -> None:
    torch.manual_seed(0)
    objective = method(fm.maps.AverageVelocity(Asking()), interpolant=fm.interpolants.Linear())
    with pytest.raises(ValueError, match=r"another value along a derivative .*isinstance.*torch.is_tensor"):
        fm.fit(objective, torch.randn(64, 2), steps=2, batch=32)
    remedy = method(fm.maps.AverageVelocity(Asking()), interpolant=fm.interpolants.Linear(), engine="finite-difference")
    fm.fit(remedy, torch.randn(64, 2), steps=2, batch=32)


def test_comparing_leaves_state_and_numbers_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)).double()
    before, numbers, calls = buffers(net), torch.get_rng_state(), []

    def evaluate() -> None:
        calls.append(dual.jvp(net, (X,), (V,)))
        dual.jvp(lambda x: x + torch.rand(3), (X,), (V,))

    dual.agree(evaluate, (X,))
    torch.testing.assert_close(buffers(net), before)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert len(calls) == 1
