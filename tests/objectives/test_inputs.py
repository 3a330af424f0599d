"""What is handed to an objective, a map or a path by mistake is refused in the words of whoever handed it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import flowmaps as fm
from flowmaps.losses import Weight
from flowmaps.maps import AverageVelocity, Composed, Endpoint, FlowMap, Target, Trigonometric, VelocityForShortJumps
from flowmaps.nn import MLP
from flowmaps.shapes import GuidedCondition, on_each

X, LABELS = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5


class OfVelocity(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def a_map() -> AverageVelocity:
    torch.manual_seed(0)
    return AverageVelocity(MLP(2, width=8, depth=2, classes=5))


def loss(x1: Any, cond: Any = None, **given: Any) -> Any:
    return fm.methods.lsd(a_map())(x1, cond=cond, **given)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "numpy": (lambda: loss(X.numpy()), "got a numpy.ndarray: pass torch.from_numpy(x1).float()"),
    "pair": (lambda: loss([X, LABELS]), "got a list of Tensor, Tensor: call objective(x1, cond=labels) for a pair"),
    "number": (lambda: loss(3.0), "got a float: pass torch.as_tensor(x1)"),
    "integers": (lambda: loss(X.long()), "x1 must be a floating-point batch (B, *shape), got torch.int64"),
    "float64": (lambda: loss(X.double()), "x1 is torch.float64, the weights of the map torch.float32: pass x1.to("),
    "x0": (lambda: loss(X, x0=X.numpy()), "x0 and x1 must have one shape, got ndarray and (8, 2)"),
    "numpy-labels": (lambda: loss(X, LABELS.numpy()), "got a ndarray: cond=torch.as_tensor(labels)"),
    "list-of-labels": (lambda: loss(X, LABELS.tolist()), "got a int: cond=torch.as_tensor(labels)"),
    "truth-values": (lambda: loss(X, LABELS > 2), "cond must hold integer labels of shape (8,), got torch.bool (8,)"),
    "float-labels": (lambda: loss(X, LABELS.float()), "integer labels of shape (8,), got torch.float32 (8,)"),
    "labels-from-one": (lambda: loss(X, LABELS + 2), "cond must hold labels from 0 to 4, or 5 for no class"),
    "fewer-labels": (lambda: loss(X, LABELS[:4]), "a row for each of the 8 rows of x1, got (4,)"),
    "fewer-in-a-tree": (lambda: loss(X, {"y": LABELS, "z": X[:3]}), "a row for each of the 8 rows of x1, got (3, 2)"),
    "one-label": (lambda: fm.samplers.Jump(1)(a_map(), X, 3), "got a int: pass a tensor, torch.full((8,), label)"),
    "network": (lambda: fm.methods.lsd(MLP(2)), "trains a flow map, got MLP: pass fm.maps.AverageVelocity(net)"),
    "network-taught": (lambda: fm.methods.lmd(MLP(2), teacher=torch.sin), "pass fm.maps.AverageVelocity(net)"),
    "of-(x, t)": (
        lambda: fm.methods.lsd(AverageVelocity(OfVelocity()))(X),
        "takes (x, s, t, cond=None), times of shape (B,), got OfVelocity(x: 'Tensor', t: 'Tensor')",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_refused_in_the_callers_words(name: str):
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


# times ---------------------------------------------------------------------------------------------------------------

MAPS: dict[str, Callable[[], FlowMap]] = {
    "average": a_map,
    "endpoint": lambda: Endpoint(a_map().net),
    "trigonometric": lambda: Trigonometric(a_map().net),
    "composed": lambda: Composed(a_map(), 2),
    "short": lambda: VelocityForShortJumps(a_map(), 0.5),
    "target": lambda: Target(a_map()),
    "guided": lambda: fm.guidance.GuidedMap(a_map(), 2.0),
    "solver": lambda: fm.solvers.SolverFlow(a_map().velocity, method="euler", steps=2),
}
WRONG = {"(1,)": torch.rand(1), "(B, 1)": torch.rand(8, 1), "()": torch.rand(()), "number": 0.5}


@pytest.mark.parametrize("shape", WRONG)
@pytest.mark.parametrize("name", MAPS)
def test_times_of_a_map_are_one_a_row(name: str, shape: str):
    flow_map, good, bad = MAPS[name](), torch.rand(8), WRONG[shape]
    doors: list[Callable[[Any, Any], Any]] = [flow_map, flow_map.average_velocity]
    for s, t in ((bad, good), (good, bad)):
        for door in doors:
            with pytest.raises(ValueError, match=r"must (have|be a tensor of) shape \(8,\)"):
                door(X, s, t)
    if name != "solver":
        with pytest.raises(ValueError, match=r"must (have|be a tensor of) shape \(8,\)"):
            flow_map.velocity(X, bad)


@pytest.mark.parametrize("shape", ["(1,)", "(B, 1)", "()"])
@pytest.mark.parametrize("path", [fm.interpolants.Linear(), fm.interpolants.VariancePreserving()])
def test_times_of_a_path_are_one_a_row(path: fm.interpolants.Interpolant, shape: str):
    t = WRONG[shape]
    doors = [path.point, path.velocity, path.velocity_to_denoiser, path.score_to_velocity, path.denoiser_to_velocity]
    for door in doors:
        with pytest.raises(ValueError, match=r"t must have shape \(8,\), one time for each row of x \(8, 2\), got"):
            door(X, X, t)


# conditions ----------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    label: Tensor
    text: dict[str, Tensor]


@dataclass
class Prompt:
    tokens: Tensor
    mask: Tensor | None = None


TREES: dict[str, Any] = {
    "tensor": LABELS,
    "tuple": (LABELS, X),
    "list": [LABELS, X],
    "dict": {"label": LABELS, "none": None, "deep": {"x": X}},
    "named": Pair(LABELS, {"a": X}),
    "dataclass": Prompt(LABELS),
    "guide": GuidedCondition({"label": LABELS}, torch.ones(8)),
}


def first(cond: Any) -> Tensor:
    """The labels of a tree."""
    found: list[Tensor] = []
    on_each(cond, lambda value: (found.append(value), value)[1])
    return found[0]


class ByTree(nn.Module):
    """A network whose condition is any tree that has labels first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        label = first(cond)
        assert len(label) == len(x)
        return self.layer(torch.cat([x, s[:, None], t[:, None], label[:, None].float()], 1))


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("method", [fm.methods.lsd, fm.methods.meanflow, fm.methods.psd, fm.methods.fmm])
def test_a_condition_is_any_tree_cut_by_rows(method: Callable[..., Any], tree: str):
    torch.manual_seed(0)
    objective = method(AverageVelocity(ByTree()))
    values = [
        objective(X, cond=cond, generator=torch.Generator().manual_seed(1)).value.detach()
        for cond in (LABELS, TREES[tree])
    ]
    assert torch.equal(*values)
    assert type(objective.draw(X, cond=TREES[tree]).rows(slice(2, 5)).cond) is type(TREES[tree])
    with pytest.raises(ValueError, match=r"a row for each of the 7 rows of x1, got \(8,"):
        objective(X[:7], cond=TREES[tree])


@pytest.mark.parametrize("tree", TREES)
def test_fit_takes_rows_of_any_tree(tree: str):
    torch.manual_seed(0)
    objective = fm.methods.lsd(AverageVelocity(ByTree()))
    fm.fit(objective, (X, TREES[tree]), steps=2, batch=4, say=lambda text: None)


# the probe of a weight -----------------------------------------------------------------------------------------------


class OnDevice(Weight):
    """A weight with a tensor, which refuses one of another device."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1, device="meta"))

    def forward(self, distance: Tensor, s: Tensor, t: Tensor, split: Tensor | None = None) -> Tensor:
        assert distance.device == s.device == t.device == self.scale.device
        return torch.ones(1)


def test_a_weight_is_tried_on_its_own_device():
    fm.objectives.VelocityMatching(a_map(), fm.interpolants.Linear(), weight=OnDevice())
