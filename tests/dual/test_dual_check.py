"""`dual.check` of networks with kinks, computed weights, complex numbers, conditions in trees, and state."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from flowmaps import dual


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def deep(activation: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 4)]
    return nn.Sequential(*layers)


class Lost(nn.Module):
    """Loses a part of the gradient."""

    def forward(self, x: Any) -> Any:
        return x * torch.sigmoid(0.1 * x.detach())


ACTIVATIONS = (nn.SELU, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Hardtanh, nn.PReLU)


@pytest.mark.filterwarnings("ignore:.*at or near a kink")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kinks_raise_no_false_alarm(activation: Callable[[], nn.Module]) -> None:
    """At 64 rows some of thousands of units lie between the points of a difference."""
    for seed in range(6):
        assert dual.check(deep(activation, seed), draw(64, 4, seed=seed)) < 1e-6


@pytest.mark.filterwarnings("ignore:.*at or near a kink")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_wrong_gradient_is_found_beside_kinks(activation: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(deep(activation, 0), Lost())
    with pytest.raises(ValueError, match=r"wrong or missing at '1' \(Lost\): .*gradient of the tangent is off"):
        dual.check(net, draw(64, 4))


@pytest.mark.filterwarnings("ignore:.*at or near a kink")
def test_kinks_beside_statistics_of_the_batch() -> None:
    """One unit at its kink touches every row through the mean of the batch."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(2, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 2, 1)
    )
    assert dual.check(net, draw(32, 2, 16)) < 1e-6


def test_outputs_at_a_kink_are_said_to_be() -> None:
    x = draw(5, 3).abs() + 0.1
    x[1, 2] = 0.0  # x at 0 has no derivative
    with pytest.warns(UserWarning, match=r"1 of 15 outputs of ReLU are at or near a kink.*nothing is wrong"):
        assert dual.check(nn.ReLU(), x) < 1e-7
    with pytest.raises(ValueError, match=r"15 of 15 outputs of ReLU are at or near a kink.*draw other inputs"):
        dual.check(nn.ReLU(), torch.zeros(5, 3))


def test_smooth_networks_get_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dual.check(deep(nn.SiLU, 0), draw(64, 4)) < 1e-8


WEIGHTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm, old": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm, old": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "orthogonal, cayley": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
}


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
@pytest.mark.parametrize("name", WEIGHTS)
def test_computed_weights(name: str) -> None:
    """In training, after a step of the network; and a fault beside them is found."""
    torch.manual_seed(0)
    layer = WEIGHTS[name](nn.Linear(8, 4))
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), layer)
    net(draw(5, 3)).sum().backward()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert dual.check(net, draw(5, 3)) < 1e-8
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net(draw(5, 3)).sum().backward()
    with pytest.raises(ValueError, match=r"'3' \(Lost\)"):
        dual.check(nn.Sequential(*net, Lost()), draw(5, 3))


class Complex(nn.Module):
    """Multiplies pairs of real numbers by complex weights."""

    def __init__(self, lost: bool = False) -> None:
        super().__init__()
        self.weight, self.lost = nn.Parameter(torch.view_as_complex(draw(3, 2))), lost

    def forward(self, x: Any) -> Any:
        z = torch.view_as_complex(x.unflatten(-1, (3, 2)))
        y = torch.view_as_real(z * z * self.weight).flatten(-2)
        return y * torch.sigmoid(0.1 * y.detach()) if self.lost else y


def test_complex_weights() -> None:
    assert dual.check(Complex(), draw(5, 6)) < 1e-8
    with pytest.raises(ValueError, match="the gradient of the tangent is off"):
        dual.check(Complex(lost=True), draw(5, 6))


class Guided(NamedTuple):
    label: dict[str, Tensor]
    weight: Tensor


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.label, self.linear = nn.Embedding(3, 4), nn.Linear(4, 4)

    def forward(self, x: Any, s: Any, t: Any, cond: Any = None) -> Any:
        h = x + self.label(cond.label["class"]) + cond.weight[:, None] * cond.label["features"][0]
        return torch.tanh(self.linear(h)) * (t - s)[:, None]


def test_conditions_that_are_trees() -> None:
    cond = Guided({"class": torch.tensor([0, 2, 1]), "features": [draw(3, 4, seed=1)]}, draw(3, seed=2))  # type: ignore
    assert dual.check(Conditioned(), draw(3, 4), torch.rand(3), torch.rand(3), cond) < 1e-8


def test_messages_name_the_engine_of_the_method() -> None:
    net = nn.Sequential(nn.Linear(3, 3), Lost())
    with pytest.raises(
        ValueError, match=r'give the method engine="finite-difference", as in fm.methods.lsd\(flow_map, '
    ):
        dual.check(net, draw(5, 3))
    with pytest.raises(ValueError, match=r'give the method engine="dual"'):
        dual.check(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), draw(5, 3), engine="torch")


class Drifting(nn.Module):
    """Changes an attribute at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x * self.calls


class Averaged(nn.Module):
    """Changes a buffer at each call, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(3))

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            self.mean.mul_(1.5)
        return x * self.mean


def test_what_differs_between_evaluations_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Drifting()), nn.Tanh())
    with pytest.raises(ValueError, match=r"two evaluations at the same inputs differ at '1.0' \(Drifting\).*net.eval"):
        dual.check(net, draw(5, 3))
    assert dual.check(nn.Sequential(nn.Linear(3, 3), Averaged()), draw(5, 3)) < 1e-8
