"""Networks of common kinds, tiny: value, tangent, gradients against differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowmaps import dual

TIMES = torch.tensor([0.3, 0.8])


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Fourier(nn.Module):
    """A layer of a Fourier neural operator in two dimensions, its modes assigned into zeros."""

    def __init__(self, channels: int = 2, modes: int = 2) -> None:
        super().__init__()
        self.low, self.high = (nn.Parameter(torch.randn(channels, channels, modes, modes, 2)) for _ in range(2))
        self.lift, self.skip, self.modes = nn.Conv2d(2, channels, 1), nn.Conv2d(channels, channels, 1), modes

    def forward(self, x: Any) -> Any:
        h, m = self.lift(x), self.modes
        spectrum = torch.fft.rfft2(h)
        out = torch.zeros(*spectrum.shape, dtype=spectrum.dtype)
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :m, :m], torch.view_as_complex(self.low))
        out[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -m:, :m], torch.view_as_complex(self.high))
        return F.gelu(torch.fft.irfft2(out, s=h.shape[-2:]) + self.skip(h))


class Graph(nn.Module):
    """Messages along the edges of a graph, weighted by distance, summed and maximised at each node."""

    EDGES = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 2, 3, 0, 2, 0]])

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(7, 4), nn.Linear(11, 3)

    def forward(self, x: Any, t: Any) -> Any:
        source, target = self.EDGES
        distance = torch.cdist(x, x)[source, target].unsqueeze(-1)
        m = F.silu(self.message(torch.cat([x[source], x[target], distance], -1)))
        total = x.new_zeros(4, 4).index_add_(0, target, m)
        largest = torch.zeros(4, 4, dtype=x.dtype).scatter_reduce(
            0, target[:, None].expand_as(m), m, "amax", include_self=False
        )
        return self.update(torch.cat([x, total, largest], -1)) * t.unsqueeze(-1)


class Sequence(nn.Module):
    """A recurrent layer over packed sequences of unequal length, then one over padded ones."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.first, self.second = kind(3, 4, 2, batch_first=True, bidirectional=True), kind(8, 3)

    def forward(self, x: Any) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 4, 1]), batch_first=True, enforce_sorted=False)
        out = nn.utils.rnn.pad_packed_sequence(self.first(packed)[0], batch_first=True)[0]
        return self.second(out.transpose(0, 1))[0]


class Energy(nn.Module):
    """A velocity that is the gradient of an energy, by one of two ways."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.net, self.functional = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1)), functional

    def energy(self, x: Any, t: Any) -> Any:
        return self.net(torch.cat([x, t.unsqueeze(-1)], -1)).sum() + (x**4).sum()

    def forward(self, x: Any, t: Any) -> Any:
        if self.functional:
            return torch.func.grad(self.energy)(x, t)
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            return torch.autograd.grad(self.energy(x, t), x, create_graph=True)[0]


class PerSample(Energy):
    """The same, of one row, by `vmap`."""

    def forward(self, x: Any, t: Any) -> Any:
        return torch.func.vmap(torch.func.grad(self.energy))(x, t)


class Warp(nn.Module):
    """An affine warp, and one along a field that the network predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.affine, self.field = nn.Linear(2, 6), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Any) -> Any:
        theta = 0.1 * self.affine(x.mean((2, 3))).view(-1, 2, 3) + torch.eye(2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        grid = grid + 0.1 * torch.tanh(self.field(x)).permute(0, 2, 3, 1)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


class Loss(nn.Module):
    """Losses as layers, a Gaussian's likelihood of a covariance that the network predicts, and Gumbel noise."""

    def __init__(self) -> None:
        super().__init__()
        self.root, self.smooth, self.cross = nn.Linear(3, 9), nn.SmoothL1Loss(), nn.CrossEntropyLoss()
        self.drop = nn.AlphaDropout(0.3)

    def forward(self, x: Any) -> Any:
        root = self.root(self.drop(x)).view(-1, 3, 3)
        covariance = root @ root.mT + torch.eye(3, dtype=x.dtype)
        fit = (x * torch.linalg.solve(covariance, x)).sum(-1) + torch.linalg.slogdet(covariance).logabsdet
        soft = F.gumbel_softmax(x, 0.8)
        return fit + self.smooth(x, soft) + self.cross(soft, torch.tensor([0, 2, 1, 1]))


NETWORKS: dict[str, Callable[[], Any]] = {
    "Fourier neural operator": lambda: (Fourier(), normal(2, 2, 8, 8)),
    "graph": lambda: (Graph(), normal(4, 3), torch.tensor([0.3, 0.8, 0.4, 0.5])),
    "LSTM": lambda: (Sequence(nn.LSTM), normal(3, 4, 3)),
    "GRU": lambda: (Sequence(nn.GRU), normal(3, 4, 3)),
    "RNN": lambda: (Sequence(nn.RNN), normal(3, 4, 3)),
    "energy, autograd.grad": lambda: (Energy(False), normal(2, 3), TIMES),
    "energy, func.grad": lambda: (Energy(True), normal(2, 3), TIMES),
    "energy, vmap of grad": lambda: (PerSample(True), normal(2, 3), TIMES),
    "warp": lambda: (Warp(), normal(2, 2, 4, 5)),
    "losses": lambda: (Loss(), normal(4, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_are_right(name: str) -> None:
    torch.manual_seed(0)
    net, *inputs = NETWORKS[name]()
    if name not in ("energy, vmap of grad", "losses"):
        net.eval()
    assert dual.check(net, *inputs, tolerance=1e-6) < 1e-6


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_in_single_precision(kind: Any) -> None:
    """torch has no forward mode of these on a CPU."""
    torch.manual_seed(0)
    net, x, v = Sequence(kind), normal(3, 4, 3), normal(3, 4, 3).flip(0)
    value, tangent = dual.jvp(net, (x,), (v,))
    torch.testing.assert_close(value, net(x), rtol=1e-5, atol=1e-6)
    double = dual.jvp(net.double(), (x.double(),), (v.double(),))[1]
    torch.testing.assert_close(tangent, double.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["energy, autograd.grad", "energy, func.grad"])
def test_an_energy_with_a_detached_tangent(name: str) -> None:
    """The tangent has no graph, and the value's gradient is its own; time alone may move."""
    torch.manual_seed(0)
    net, x, t = NETWORKS[name]()
    for directions in ((torch.ones_like(x), torch.ones_like(t)), (None, torch.ones_like(t))):
        value, tangent = dual.jvp(net, (x, t), directions, detach_tangent=True)
        expected = dual.jvp(net, (x, t), directions)[1]
        assert not tangent.requires_grad
        torch.testing.assert_close(tangent, expected)
        slopes = torch.autograd.grad(value.square().sum(), list(net.parameters()), allow_unused=True)
        plain = torch.autograd.grad(net(x, t).square().sum(), list(net.parameters()), allow_unused=True)
        torch.testing.assert_close(slopes, plain)


class Branches(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2 if isinstance(x, Tensor) else x * 3


def test_check_notices_a_network_that_asks_for_the_class() -> None:
    """`isinstance(x, torch.Tensor)` is false for a pair: the other branch is taken, and `check` says so."""
    with pytest.raises(ValueError, match=r"the value is off by.*ask torch.is_tensor\(x\)"):
        dual.check(Branches(), normal(2, 3))
