"""What a resume restores and compares, and what a training leaves as it found it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit import ROWS, Net, after, content, objective, quiet
from torch import Tensor, nn

import flowmaps as fm
from flowmaps.training import Trainer

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
