"""What a resume restores and compares, and what a training leaves as it found it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit import ROWS, Net, after, content, objective, quiet
from torch import Tensor, nn

import flowmaps as fm
from flowmaps.training import Trainer
from flowmaps.training.identity import check_same

GIVEN: dict[str, Any] = {"batch": 17, "checkpoint_every": 3, "log_every": 1, "steps": 10, "say": quiet}


class Features(Net):
    """A network with random Fourier features, which are not trained."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(3, 3), requires_grad=False)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(torch.sin(x @ self.frequencies), s, t, cond)


def test_parameters_that_are_not_trained_are_restored(tmp_path: Path):
    def of_features(seed: int) -> Any:
        return fm.methods.lsd(fm.maps.AverageVelocity(Features(seed)))

    fm.fit(first := of_features(1), ROWS, tmp_path / "a", **GIVEN)
    fm.fit(of_features(1), ROWS, tmp_path / "b", **GIVEN, stop=after(4))
    fm.fit(again := of_features(2), ROWS, tmp_path / "b", **GIVEN)
    assert torch.equal(first.flow_map.net.frequencies, again.flow_map.net.frequencies)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_folder_of_a_run_is_not_one_of_fit(tmp_path: Path):
    """Its card has no identity: whatever the data, its weights would be taken for those of this training."""
    extra = {"trained_steps": 10, "recipe": {}}
    fm.save(fm.maps.AverageVelocity(fm.nn.MLP(3, width=8, depth=2)), tmp_path, extra=extra)
    with pytest.raises(ValueError, match=r"holds a config\.json that fit did not write"):
        fm.fit(fm.methods.lsd(fm.maps.AverageVelocity(fm.nn.MLP(3, width=8, depth=2))), ROWS, tmp_path, **GIVEN)


class Teacher(nn.Module):
    """A velocity of one weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.weight * x


def square(residual: Tensor) -> Tensor:
    """A distance of a user's own."""
    return residual.square().sum(1)


def flow_map(**arguments: Any) -> fm.maps.FlowMap:
    torch.manual_seed(0)
    return fm.maps.AverageVelocity(fm.nn.MLP(3, width=8, depth=2, **arguments))


def distilled(weight: float) -> fm.objectives.Objective:
    return fm.methods.lmd(flow_map(), teacher=Teacher(weight))


def of_copy(factor: float) -> fm.objectives.Objective:
    other = flow_map()
    with torch.no_grad():
        next(other.parameters()).mul_(factor)
    return fm.methods.lmd(flow_map(), teacher=fm.maps.Target(other).velocity)


CHANGED: dict[str, tuple[Any, Any]] = {
    "objective.share": (lambda: fm.methods.lsd(flow_map()), lambda: fm.methods.lsd(flow_map(), share=0.5)),
    "objective.first.distance": (
        lambda: fm.methods.lsd(flow_map()),
        lambda: fm.methods.lsd(flow_map(), distance=square),
    ),
    "objective.first.distance.scale": (
        lambda: fm.methods.lsd(flow_map(), distance=fm.losses.PseudoHuber(0.1)),
        lambda: fm.methods.lsd(flow_map(), distance=fm.losses.PseudoHuber(0.2)),
    ),
    "objective.first.weight.power": (
        lambda: fm.methods.lsd(flow_map(), weight=fm.losses.Adaptive(0.5)),
        lambda: fm.methods.lsd(flow_map(), weight=fm.losses.Adaptive(1.0)),
    ),
    "flow_map.net.residual": (
        lambda: fm.methods.lsd(flow_map()),
        lambda: fm.methods.lsd(flow_map(residual=True)),
    ),
    "objective.velocity.checksum": (lambda: distilled(1.0), lambda: distilled(2.0)),
    "objective.velocity.checksum of a map": (lambda: of_copy(1.0), lambda: of_copy(2.0)),
}


@pytest.mark.parametrize("part", CHANGED)
def test_another_part_of_the_objective_is_refused(part: str, tmp_path: Path):
    first, other = CHANGED[part]
    fm.fit(first(), ROWS, tmp_path, **GIVEN, stop=after(4))
    with pytest.raises(ValueError, match=f"was begun with another {part.split()[0]}, "):
        fm.fit(other(), ROWS, tmp_path, **GIVEN)
    fm.fit(first(), ROWS, tmp_path, **GIVEN)


def test_other_labels_are_refused(tmp_path: Path):
    labels = torch.arange(len(ROWS)) % 4
    fm.fit(objective(), (ROWS, labels), tmp_path, **GIVEN, stop=after(4))
    with pytest.raises(ValueError, match="was begun with another conditions, "):
        fm.fit(objective(), (ROWS, 3 - labels), tmp_path, **GIVEN)


def test_a_checkpoint_without_an_entry_is_compared_by_those_that_it_has():
    entries = json.loads(json.dumps(Trainer(objective(), ROWS, steps=3, say=quiet).identity))
    old = {name: value for name, value in entries.items() if name not in ("parts", "conditions")}
    check_same(old, entries, "a folder")
    with pytest.raises(ValueError, match="begun with another seed, 1, got 0"):
        check_same({**old, "seed": 1}, entries, "a folder")
