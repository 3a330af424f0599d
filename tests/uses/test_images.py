"""Images are vectors of another shape: every use gives the same numbers for both, conditions included."""

from __future__ import annotations

import torch
from cases import Network, generator
from torch import Tensor

import flowmaps as fm

SHAPE, DIM, ROWS = (1, 2, 3), 6, 12
CONDITION = 0.3 * torch.ones(ROWS, 2, dtype=torch.float64)


class Vectors(fm.maps.FlowMap):
    """A random smooth map of vectors, with a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Network(DIM, seed=3)

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return 0.4 * self.net(x, s, t, cond) - 0.3 * x


class Images(fm.maps.FlowMap):
    """The same map of images."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = Vectors()

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.vectors.average_velocity(x.flatten(1), s, t, cond).reshape(x.shape)


def both() -> list[tuple[fm.maps.FlowMap, Tensor]]:
    x = torch.randn(ROWS, DIM, dtype=torch.float64, generator=generator(0))
    return [(Vectors(), x), (Images(), x.reshape(ROWS, *SHAPE))]


def same(*values: Tensor) -> None:
    torch.testing.assert_close(values[0], values[1].reshape(values[0].shape))


def test_certificates_and_squares():
    found = [
        fm.uses.certificate(m, x, cond=CONDITION, times=2, tolerance=1e-4, generator=generator(1)) for m, x in both()
    ]
    for name, form in found[0].forms.items():
        same(torch.tensor(form), torch.tensor(found[1].forms[name]))
    same(found[0].constants, found[1].constants)
    squares = [fm.uses.residual_square(m, x, cond=CONDITION, number=3) for m, x in both()]
    same(squares[0].semigroup, squares[1].semigroup)


def test_inversion():
    same(*(fm.uses.transfer(m, x, CONDITION, -CONDITION, steps=2, backwards=True) for m, x in both()))
    same(*(fm.uses.round_trip_error(m, x, CONDITION, to=0.5) for m, x in both()))


def test_likelihoods():
    for options in ({}, {"estimator": "hutchinson", "probes": 2}, {"estimator": "hutch++", "probes": 3}):
        given = {"method": "rk4", "steps": 2, **options}
        same(*(fm.uses.log_likelihood(m, x, CONDITION, **given, generator=generator(1)).value for m, x in both()))
    same(*(fm.uses.jumps_log_likelihood(m, x, CONDITION, steps=2, backwards=True).value for m, x in both()))
    heads = [fm.uses.WithDivergence(m, Head(Network(DIM))) for m, _ in both()]
    found = []
    for head, (_, x) in zip(heads, both(), strict=True):
        found.append(fm.uses.learned_log_likelihood(head, x, CONDITION, steps=2, backwards=True).value)
        objective = fm.uses.DivergenceMatching(head, estimator="hutchinson", probes=2, draws=2)
        x0 = x.flip(0)
        assert objective(x, x0, CONDITION, generator=generator(2)).value.isfinite()
    same(*found)


class Head(torch.nn.Module):
    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.net(x.flatten(1), s, t, cond).reshape(x.shape)


def test_rewards_and_restoration():
    def reward(x: Tensor) -> Tensor:
        return -(x.flatten(1) - 0.5).square().sum(1)

    found = [fm.uses.tilted_samples(m, x, reward, CONDITION, steps=3, generator=generator(4)) for m, x in both()]
    same(found[0].x, found[1].x)
    same(found[0].weights, found[1].weights)
    same(*(fm.uses.guided_jumps(m, x, reward, CONDITION, steps=2) for m, x in both()))
    mask = (torch.arange(DIM) % 2).double()
    restored = []
    for m, x in both():
        operator = fm.uses.Mask(mask.reshape(x.shape[1:]))
        restored.append(fm.uses.restore(m, operator(x), operator, x, CONDITION, times=3, generator=generator(5)))
    same(*restored)
