"""A network of the user's own examined: what is found is what is there."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowmaps.dual.survey import survey
from flowmaps.methods import METHODS
from flowmaps.nn import MLP
from flowmaps.runs import doctor
from flowmaps.runs.doctor import ExaminedNetwork, examine
from flowmaps.runs.own_networks import load_network

WITH_DERIVATIVE = {"lmd", "lsd", "emd", "esd", "fmm", "meanflow", "sct", "eulerian_estimation"}
WITHOUT = {"flow_matching", "psd", "shortcut", "consistency_training", "pfmm"}


class Net(nn.Module):
    """Two linear maps with something between them."""

    def __init__(self, between: Any = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between, self.into, self.out = between, nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: Any, s: Any, t: Any, cond: Any = None) -> Any:
        h = self.into(torch.cat([x, s[:, None], t[:, None]], 1))
        return self.out(self.between(h))


def examined(network: nn.Module, batch: int = 6) -> ExaminedNetwork:
    return ExaminedNetwork(network, (3,), None, batch, torch.device("cpu"))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROUNDS", 1)


def test_a_right_network_is_found_right_and_left_alone() -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    found = examine(examined(net))
    assert (found.name, found.parameters) == ("Net", 5 * 16 + 16 + 16 * 3 + 3)
    assert found.error is not None
    assert found.error < 1e-8
    assert (found.fault, found.survey.refused, found.survey.fallback) == ("", {}, ())
    assert {"tanh", "cat", "nn.functional.linear"} <= set(found.survey.rules)
    assert found.compiled.startswith("in one graph")
    assert found.methods == dict.fromkeys(METHODS, "")
    assert all(not cost.refusal and cost.time > 0 for cost in found.costs.values())
    assert found.costs["dual"].memory is not None
    assert found.costs["dual"].memory > 1.3
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def compiled_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_compiled", lambda examined: "tested above")


def test_what_is_refused_is_named_with_the_methods_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_elsewhere(monkeypatch)
    found = examine(examined(Net(lambda h: torch.special.bessel_j0(h))))
    assert "special.bessel_j0" in found.survey.refused
    assert found.error is None
    assert "special.bessel_j0" in found.fault
    assert "special.bessel_j0" in found.costs["dual"].refusal
    assert found.costs["torch"].refusal  # 0 in torch
    assert not found.costs["finite-difference"].refusal
    assert found.compiled.startswith("not tried")
    assert all(found.methods[name] for name in WITH_DERIVATIVE)
    assert not any(found.methods[name] for name in WITHOUT)


def test_a_gradient_that_is_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused, and the methods with a derivative would train on a wrong gradient."""
    compiled_elsewhere(monkeypatch)
    found = examine(examined(Net(lambda h: h * torch.sigmoid(h.detach()))))
    assert not found.survey.refused
    assert "gradient of the tangent is off" in found.fault
    assert all("which is wrong" in found.methods[name] for name in WITH_DERIVATIVE)
    assert not any(found.methods[name] for name in WITHOUT)


def test_a_survey_goes_on_behind_a_refusal() -> None:
    def fn(x: Tensor) -> Tensor:
        h = torch.special.bessel_j0(x.sin())
        return torch.special.bessel_y0(h.exp()) * float(3) + h.mean()

    found = survey(fn, (torch.rand(3),), (torch.ones(3),))
    assert list(found.refused) == ["special.bessel_j0", "special.bessel_y0"]
    assert set(found.refused.values()) == {"no rule"}
    assert {"Tensor.sin", "Tensor.exp", "Tensor.mean"} <= set(found.rules)
    leaves = survey(lambda x: x * float(x.sum()), (torch.rand(3),), (torch.ones(3),))
    assert "would drop the tangent" in leaves.refused["the network"]


def test_compilation_is_told_in_words() -> None:
    def branches(h: Any) -> Any:
        return h.sin() if h.detach().sum() > 0 else h.cos()

    assert "not in one graph" in doctor._compiled(examined(Net(branches)))


def test_networks_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from flowmaps.nn import MLP\n\n"
        "class Small(MLP):\n    def __init__(self):\n        super().__init__(dim=2, width=8)\n\n"
        "def made():\n    return Small()\n\nready = Small()\nnumber = 3\n\ndef wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert all(isinstance(load_network(f"my_nets:{name}"), MLP) for name in ("Small", "made", "ready"))
    for place, words in {
        "my_nets": "takes module:Class",
        "my_net:Small": "No module named 'my_net'",
        "my_nets:Smal": "has no attribute 'Smal'",
        "my_nets:MLP": "missing .* required positional argument",
        "my_nets:wrong": "gives a int, not an nn.Module",
        "my_nets:number": "'int' object is not callable",
    }.items():
        with pytest.raises(ValueError, match=words):
            load_network(place)


class OneTime(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def test_a_network_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ValueError, match=r"OneTime cannot be called as net\(x, s, t, cond\).*a second one"):
        examine(examined(OneTime()))
    with pytest.raises(ValueError, match=r"x of shape \(4, 2\).*give --shape"):
        examine(ExaminedNetwork(Net(), (2,), None, 4, torch.device("cpu")))
