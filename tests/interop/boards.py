"""Teachers on the checkerboard, each trained with the code of its own library, and their own solvers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import flowmaps as fm

BOARD = fm.exact.Checkerboard()
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SPREAD = 0.5
"""Data standard deviation of EDM's preconditioning."""
ROWS = 512


class Net(nn.Module):
    """A plain network of (z, time), whose time may be one number, as solvers pass it.

    Args:
        width: of the hidden layers.
        time_factor: of the time, before it is an input.
    """

    def __init__(self, width: int = 128, time_factor: float = 1.0) -> None:
        super().__init__()
        self.width, self.time_factor = width, time_factor
        sizes = [3, width, width, width]
        hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = (self.time_factor * t).to(x.dtype).reshape(-1, 1).expand(x.shape[0], 1)
        return self.layers(torch.cat([x, time], 1))


class Denoiser(nn.Module):
    """D(x, sigma) of T. Karras et al., 2022, arXiv 2206.00364, equation 7, round a plain network.

    Args:
        width: of its network.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.width, self.model = width, Net(width)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.to(x.dtype).reshape(-1, 1).expand(x.shape[0], 1)
        square = sigma.square() + SPREAD**2
        skip, out = SPREAD**2 / square, sigma * SPREAD / square.sqrt()
        return skip * x + out * self.model(x / square.sqrt(), sigma.log() / 4)


def batches(steps: int, seed: int = 1) -> Iterator[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield BOARD.sample(ROWS, rng)


def descend(net: nn.Module, losses: Iterator[Tensor], steps: int, rate: float = 2e-3) -> None:
    """Adam with a rate that falls to zero by a cosine."""
    optimiser = torch.optim.Adam(net.parameters(), rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for loss in losses:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        falling.step()


def of_torchcfm(steps: int, width: int = 128) -> nn.Module:
    """A model of torchcfm, trained with its matcher as its README does."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    from torchcfm.models.models import MLP

    torch.manual_seed(0)
    net, matcher = MLP(dim=2, time_varying=True, w=width), ConditionalFlowMatcher(sigma=0.0)

    def losses() -> Iterator[Tensor]:
        for x1 in batches(steps):
            t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            yield (net(torch.cat([xt, t[:, None]], 1)) - ut).square().mean()

    descend(net, losses(), steps)
    return net


def of_flow_matching(path: Any, steps: int, width: int = 128) -> nn.Module:
    """A network trained as a velocity of a path of flow_matching."""
    torch.manual_seed(0)
    net = Net(width)

    def losses() -> Iterator[Tensor]:
        for x1 in batches(steps):
            point = path.sample(x_0=torch.randn_like(x1), x_1=x1, t=torch.rand(len(x1)))
            yield (net(point.x_t, point.t) - point.dx_t).square().mean()

    descend(net, losses(), steps)
    return net


def of_ddpm(steps: int, width: int = 128) -> nn.Module:
    """Predicts the noise at step k of 1,000, by the simple loss of J. Ho et al., 2020, arXiv 2006.11239."""
    torch.manual_seed(0)
    net = Net(width, time_factor=1e-3)

    def losses() -> Iterator[Tensor]:
        for x1 in batches(steps):
            k, noise = torch.randint(len(ABAR), (len(x1),)), torch.randn_like(x1)
            bar = ABAR[k, None].float()
            yield (net(bar.sqrt() * x1 + (1 - bar).sqrt() * noise, k) - noise).square().mean()

    descend(net, losses(), steps)
    return net


def of_edm(steps: int, width: int = 128) -> nn.Module:
    """A denoiser trained by EDM's loss: ln sigma ~ N(-1.2, 1.2^2), weight 1 / c_out^2."""
    torch.manual_seed(0)
    net = Denoiser(width)

    def losses() -> Iterator[Tensor]:
        for x1 in batches(steps):
            sigma = (1.2 * torch.randn(len(x1), 1) - 1.2).exp()
            weight = (sigma.square() + SPREAD**2) / (sigma * SPREAD).square()
            yield (weight * (net(x1 + sigma * torch.randn_like(x1), sigma) - x1).square()).mean()

    descend(net, losses(), steps)
    return net


# their own solvers ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_torchdiffeq(net: nn.Module, x0: Tensor) -> Tensor:
    """The flow of a model of torchcfm, whose README solves it in the same way."""
    from torchdiffeq import odeint

    field: Callable[..., Tensor] = lambda t, x: net(torch.cat([x, t.expand(len(x), 1)], 1))  # noqa: E731
    return odeint(field, x0, torch.tensor([0.0, 1.0]), method="dopri5", rtol=1e-6, atol=1e-6)[-1]  # type: ignore[index]


def by_flow_matching(net: nn.Module, x0: Tensor) -> Tensor:
    from flow_matching.solver import ODESolver

    return ODESolver(net).sample(x_init=x0, step_size=None, method="dopri5", rtol=1e-6, atol=1e-6)  # type: ignore[return-value]


@torch.no_grad()
def by_ddim(net: nn.Module, x0: Tensor) -> Tensor:
    """DDIM without noise through all steps (J. Song et al., 2020, arXiv 2010.02502, equation 12), to the data."""
    z, bars = x0, [1.0, *ABAR.tolist()]
    for k in reversed(range(len(ABAR))):
        now, after = bars[k + 1], bars[k]
        noise = net(z, torch.tensor(k))
        data = (z - math.sqrt(1 - now) * noise) / math.sqrt(now)
        z = math.sqrt(after) * data + math.sqrt(1 - after) * noise
    return z


@torch.no_grad()
def by_heun(net: nn.Module, x0: Tensor, steps: int = 200) -> Tensor:
    """EDM's sampler without churn, algorithm 1, at its noise levels from 80 to 0.002, then 0."""
    high, low, rho = 80 ** (1 / 7), 0.002 ** (1 / 7), 7
    levels = [(high + k / (steps - 1) * (low - high)) ** rho for k in range(steps)] + [0.0]
    x = levels[0] * x0
    for now, after in pairwise(levels):
        slope = (x - net(x, torch.tensor(now))) / now
        ahead = x + (after - now) * slope
        if after > 0:
            slope = (slope + (ahead - net(ahead, torch.tensor(after))) / after) / 2
        x = x + (after - now) * slope
    return x
