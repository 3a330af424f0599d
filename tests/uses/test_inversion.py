"""Inversion is the inverse flow, transfer between components of a mixture is the map of one Gaussian to the other."""

from __future__ import annotations

import pytest
import torch
from cases import AVERAGE, exact_map, gaussian, generator
from torch import Tensor

import flowmaps as fm
from flowmaps.uses.inversion import trained_backwards

LINEAR = fm.interpolants.Linear()
LAW = fm.exact.GaussianMixture(
    [1, 2], [[-1.0, 0.5], [2.0, 0.0]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.8]]], interpolant=LINEAR
)


class Exact(fm.maps.FlowMap):
    """The flow of a component of a mixture, in closed form: `cond` is its label, the same in all rows."""

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        k = int(cond[0])
        component = fm.exact.Gaussian(LAW.means[k], LAW.covariances[k], interpolant=LINEAR)
        return (component.flow_map(x, s, t) - x) / (t - s)[:, None]


class Forward(fm.maps.FlowMap):
    """A map that goes to the data rightly, and does nothing on the way back."""

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        law = gaussian(2, LINEAR)
        return torch.where((t > s)[:, None], (law.flow_map(x, s, t) - x) / (t - s)[:, None], 0)


def rows(number: int = 50) -> Tensor:
    return LAW.means[0] + torch.randn(number, 2, dtype=torch.float64, generator=generator(0))


def labels(k: int, number: int = 50) -> Tensor:
    return torch.full((number,), k)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("to", [0.0, 0.4])
def test_inversion_is_the_flow_backwards(to: float, steps: int):
    law = gaussian(3, LINEAR)
    x1 = law.sample(20, generator(1), torch.float64)
    z = fm.uses.invert(exact_map(law, AVERAGE), x1, to=to, steps=steps)
    one = torch.ones(20, dtype=torch.float64)
    torch.testing.assert_close(z, law.flow_map(x1, one, to * one))
    error = fm.uses.round_trip_error(exact_map(law, AVERAGE), x1, to=to, steps=steps)
    assert error.shape == (20,)
    assert float(error.max()) < 1e-12


def test_transfer_from_noise_up_is_the_map_of_one_gaussian_to_the_other():
    x1 = rows()
    found = fm.uses.transfer(Exact(), x1, labels(0), labels(1))
    # x -> mu1 + C1^(1/2) C0^(-1/2) (x - mu0), principal roots, for a standard normal base
    roots = []
    for k in (0, 1):
        values, vectors = torch.linalg.eigh(LAW.covariances[k])
        roots.append(vectors @ torch.diag(values.sqrt()) @ vectors.mT)
    want = LAW.means[1] + (x1 - LAW.means[0]) @ torch.linalg.inv(roots[0]) @ roots[1]
    torch.testing.assert_close(found, want)


def test_the_depth_says_how_much_is_kept():
    x1 = rows()
    moved = [float((fm.uses.transfer(Exact(), x1, labels(0), labels(1), to=to) - x1).norm()) for to in (0.0, 0.5, 0.95)]
    assert moved[0] > 1.05 * moved[1] > 1.05**2 * moved[2]
    torch.testing.assert_close(fm.uses.transfer(Exact(), x1, labels(0), labels(0), to=0.3, steps=2), x1)


def test_a_map_that_was_never_trained_backwards_is_refused():
    x1 = gaussian(2, LINEAR).sample(50, generator(0), torch.float64)
    with pytest.raises(ValueError, match=r"error of .* never trained backwards: train it with times=fm.times.Square"):
        fm.uses.invert(Forward(), x1)
    assert fm.uses.invert(Forward(), x1, backwards=True).shape == (50, 2)
    with pytest.raises(ValueError, match="the map was never trained backwards, from data to noise: train"):
        fm.uses.invert(exact_map(gaussian(2, LINEAR), AVERAGE), x1, backwards=False)


def test_the_method_says_which_jumps_its_map_learns():
    law = gaussian(2, LINEAR)
    x1, flow_map = law.sample(50, generator(0), torch.float64), exact_map(law, AVERAGE)
    with pytest.raises(ValueError, match=r"\(sct learns jumps from any time to the data, t = 1\)"):
        fm.uses.invert(flow_map, x1, backwards=fm.methods.METHODS["sct"])
    assert fm.uses.invert(flow_map, x1, backwards=fm.methods.METHODS["lmd"]).shape == (50, 2)
    with pytest.raises(ValueError, match="error of"):
        fm.uses.invert(Forward(), x1, backwards=fm.methods.METHODS["lmd"])


def test_the_objective_says_which_jumps_it_trains():
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(2, width=4, depth=1))
    velocity = lambda x, t, cond=None: -x  # noqa: E731
    assert trained_backwards(fm.methods.lmd(flow_map, teacher=velocity))
    assert trained_backwards(fm.methods.fmm(flow_map))
    assert not trained_backwards(fm.methods.lmd(flow_map, teacher=velocity, times=fm.times.Triangle()))
    assert not trained_backwards(fm.methods.lsd(flow_map))
    assert trained_backwards(fm.methods.lsd(flow_map, times=fm.times.Square()))
    with pytest.raises(ValueError, match="never trained backwards"):
        fm.uses.transfer(flow_map, torch.ones(3, 2), None, None, backwards=fm.methods.lsd(flow_map))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"to": 1.0}, r"a time in \[0, 1\).* got to=1.0"),
        ({"to": -0.1}, "got to=-0.1"),
        ({"steps": 0}, "steps >= 1"),
        ({"cond": torch.zeros(3)}, "a row for each of the 50 rows"),
    ],
)
def test_wrong_input_is_told_in_one_line(options: dict, said: str):
    with pytest.raises(ValueError, match=said):
        fm.uses.invert(Exact(), rows(), **options)


@pytest.mark.parametrize("start", [0.0, 0.4])
def test_forth_is_the_flow_from_a_time_to_the_data(start: float):
    law = gaussian(3, LINEAR)
    z = torch.randn(20, 3, dtype=torch.float64, generator=generator(1))
    s, one = torch.full((20,), start, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    found = fm.uses.generate(exact_map(law, AVERAGE), z, start=start, steps=3)
    torch.testing.assert_close(found, law.flow_map(z, s, one))
