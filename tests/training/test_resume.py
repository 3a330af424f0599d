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
from flowmaps.storage import checkpoints
from flowmaps.training import Optimiser, Settings, Trainer
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
    "objective.second.weight.power": (
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


def test_a_training_does_not_go_on_from_its_averages(tmp_path: Path):
    """The map has the EMA for weights after `finish` and inside of `averaged`: steps on it would train the EMA."""
    trainer = Trainer(objective(), ROWS, tmp_path, steps=5, say=quiet)
    steps = iter(trainer)
    next(steps)
    with trainer.averaged(), pytest.raises(ValueError, match=r"not possible inside `with averaged\(\)`"):
        next(steps)
    with trainer.averaged(), pytest.raises(ValueError, match=r"not possible inside `with averaged\(\)`"):
        next(iter(trainer))
    assert next(iter(trainer)).number == 2
    trainer.finish()
    for go_on in (trainer.save, lambda: next(iter(trainer))):
        with pytest.raises(ValueError, match=r"finish\(\) has replaced the map's weights by their EMA at step 2 of 5"):
            go_on()


def test_a_break_keeps_the_average_of_its_step(tmp_path: Path):
    settings = Settings(store_averages_every=2)
    optimiser = Optimiser(batch=17, ema_widths=(0.1,))
    for step in Trainer(objective(), ROWS, tmp_path, steps=5, optimiser=optimiser, settings=settings, say=quiet):
        if step.number == 2:
            break
    assert (tmp_path / "averages" / "map-width-0.1-00000002.safetensors").exists()


def test_the_random_numbers_of_the_caller_go_on(tmp_path: Path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    made = objective()
    torch.manual_seed(5)
    fm.fit(made, ROWS, steps=3, batch=17, say=quiet)
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 4)
    fm.fit(objective(), ROWS, tmp_path, **GIVEN, stop=after(4))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="map-00000004 is of format 4, this version reads format 3"):
        fm.fit(objective(), ROWS, tmp_path, **GIVEN)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_a_training_that_has_ended_is_not_trained_again(decay: str, tmp_path: Path):
    given = {**GIVEN, "decay": decay, "keep_checkpoints_every": 6}
    fm.fit(objective(), ROWS, tmp_path, **given)
    said = list[str]()
    fm.fit(objective(), ROWS, tmp_path, **{**given, "say": said.append})
    assert said == []


def test_resume_from_needs_a_folder():
    with pytest.raises(ValueError, match=r"resume_from='previous' needs the folder of a training, got none"):
        fm.fit(objective(), ROWS, steps=3, resume_from="previous", say=quiet)


def test_a_list_is_taken_for_a_tuple():
    fm.fit(objective(), ROWS, steps=2, batch=17, ema_widths=[0.1], say=quiet)


def test_data_that_require_gradients_are_detached():
    rows = ROWS.clone().requires_grad_()
    fm.fit(objective(), rows, steps=2, batch=17, say=quiet)
    assert rows.grad is None


def test_a_network_without_values_is_refused():
    made = objective().to("meta")
    with pytest.raises(ValueError, match="the network is on the meta device, without values"):
        fm.fit(made, ROWS, steps=2, batch=17, say=quiet)


class Deaf(Net):
    """A network that ignores its weights."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return 0 * x


def test_a_network_that_ignores_its_weights_is_refused():
    with pytest.raises(ValueError, match="the loss does not depend on any trained parameter"):
        fm.fit(fm.methods.flow_matching(fm.maps.AverageVelocity(Deaf())), ROWS, steps=2, batch=17, say=quiet)


def test_a_training_is_the_same_where_gradients_are_off():
    first = fm.fit(objective(), ROWS, steps=3, batch=17, say=quiet)
    with torch.no_grad():
        other = fm.fit(objective(), ROWS, steps=3, batch=17, say=quiet)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_averages_of_half_precision_are_kept_in_full():
    """A decay of 0.999 is below the resolution of bfloat16."""
    made = objective().bfloat16()
    trainer = Trainer(made, ROWS.bfloat16(), steps=2, optimiser=Optimiser(batch=17), say=quiet)
    for _ in trainer:
        with trainer.averaged() as flow_map:
            assert next(flow_map.parameters()).dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in trainer._state.averages.main)
    assert next(trainer.finish().parameters()).dtype == torch.bfloat16


def test_a_break_under_several_processes_says_that_nothing_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said = list[str]()
    trainer = Trainer(objective(), ROWS, tmp_path, steps=5, say=said.append)
    for step in trainer:
        if step.number == 2:
            monkeypatch.setattr("flowmaps.training.trainer.together", lambda: True)
            break
    assert any(
        "left at step 2; with several processes no checkpoint is saved there: call save()" in text for text in said
    )
