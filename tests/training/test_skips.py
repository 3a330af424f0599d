"""Steps without a finite gradient: they are left out, what was at fault is named, and a run of too many ends."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Container
from pathlib import Path

import pytest
import torch
from run_cases import SETTINGS, TINY, Spoiled, equal, everything, log, objective, open_run, saved
from torch import Tensor, nn

from flowmaps import methods
from flowmaps.data import Board
from flowmaps.losses import Weight
from flowmaps.maps import AverageVelocity, FlowMap
from flowmaps.nn import MLP
from flowmaps.objectives import Objective, Sum
from flowmaps.runs.recipes import Optimiser
from flowmaps.storage import checkpoints
from flowmaps.training.failures import CHECKPOINTS
from flowmaps.training.guards import find_fault
from flowmaps.training.loop import train
from flowmaps.training.state import State, begin
from flowmaps.velocities import RandomInputs

ROWS = 17


def trained(settings: Optimiser, bad: Container[int], *, waits: bool = True) -> tuple[State, list[dict[str, Tensor]]]:
    """A state after ten steps, and what it was after each of them."""
    torch.manual_seed(0)
    state, kept = begin(methods.lsd(AverageVelocity(MLP(2, width=8, depth=3))), settings), []
    state.checks_gradient_on_host = waits
    for step in train(state, Spoiled(bad), settings, steps=10):
        assert bool(step.norm.isfinite()) is (step.number not in bad)
        kept.append(everything(state))
    state.guard.read_norms()
    return state, kept


# steps that are left out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_step_without_a_finite_gradient_leaves_all_as_it_was(kind: str, waits: bool):
    """Weights and moments, to the bit; the averages take in that the weights stayed where they were."""
    settings = dataclasses.replace(SETTINGS, kind=kind, weight_decay=0.1 * (kind == "adamw"))
    state, kept = trained(settings, (5,), waits=waits)
    before, after = kept[3:5]
    assert state.guard.skipped == 1
    for name, value in before.items():
        if name.startswith("average."):
            own = before[f"parameter.{name.partition('/')[2]}"]
            torch.testing.assert_close(after[name], torch.lerp(value, own, 1 - 5 / 14))
        else:
            assert torch.equal(after[name], value), name


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_host_and_device_leave_out_the_same_steps(kind: str):
    """The device does without the host: the two trainings are one, to the bit, also where the first step is bad."""
    settings = dataclasses.replace(SETTINGS, kind=kind, weight_decay=0.1 * (kind == "adamw"), ema_widths=(0.1,))
    host, device = (trained(settings, (1, 5, 6), waits=waits)[0] for waits in (True, False))
    ours, theirs = host.tensors(), device.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert host.about() == device.about()
    assert host.guard.skipped == 3
    assert not equal(host.averages.main, trained(settings, ())[0].averages.main)


@pytest.mark.parametrize("kind", ["radam", "muon"])
def test_other_kinds_leave_them_out_too(kind: str):
    state, kept = trained(dataclasses.replace(SETTINGS, kind=kind), (3,))
    assert all(torch.equal(kept[2][n], value) for n, value in kept[1].items() if not n.startswith("average."))
    assert state.guard.skipped == 1


def test_a_state_that_has_no_moments_yet_goes_on_in_its_warm_up():
    """All steps so far were left out, as the first ones in float16 may be: the rate is that of an unbroken run."""
    whole, source, rates = begin(objective(), SETTINGS), Spoiled((1, 2)), []
    for step in train(whole, source, SETTINGS, steps=6):
        rates.append(step.rate)
        if step.number == 2:
            kept, about = everything(whole), whole.about()
    late = begin(objective(seed=1), SETTINGS)
    late.restore(kept, about)
    assert [step.rate for step in train(late, Board(), SETTINGS, steps=6)] == rates[2:]
    assert all(torch.equal(value, late.tensors()[name]) for name, value in whole.tensors().items())


def test_a_step_is_left_out_whole_where_one_of_its_parts_is_bad():
    settings = dataclasses.replace(SETTINGS, batch=16, accumulate=4)
    before, after = trained(settings, (3,))[1][1:3]
    assert all(torch.equal(after[n], v) for n, v in before.items() if n.startswith(("parameter.", "optimiser.")))


def test_a_loss_in_float16_that_overflows_halves_its_scale_and_is_left_out():
    state = begin(objective(), SETTINGS, precision=torch.float16)
    before = 2.0**40  # far too large for gradients of half precision
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": before})
    steps = list(train(state, Board(), SETTINGS, steps=30))
    lost = [not bool(step.norm.isfinite()) for step in steps]
    assert lost[0]
    assert sum(lost[-5:]) < 3  # it fits, most of the time
    assert state.scaler.get_scale() == before / 2 ** sum(lost)
    assert state.guard.state()["skipped"] == sum(lost)


@pytest.mark.parametrize("bad", [(), (2,), (4,)])
def test_the_scale_of_a_loss_is_doubled_after_finite_steps_in_a_row(bad: tuple[int, ...]):
    state = begin(objective(), SETTINGS, precision=torch.float16)
    state.scaler.set_growth_interval(3)
    scales = [state.scaler.get_scale() / 2.0**14 for _ in train(state, Spoiled(bad), SETTINGS, steps=6)]
    assert (
        scales
        == {
            (): [1, 1, 2, 2, 2, 4],
            (2,): [1, 0.5, 0.5, 0.5, 1, 1],
            (4,): [1, 1, 2, 1, 1, 1],
        }[bad]
    )


def test_the_scale_of_a_loss_goes_on_over_an_interruption():
    """The steps that it has been finite for, too."""
    whole = begin(objective(), SETTINGS, precision=torch.float16)
    whole.scaler.set_growth_interval(4)
    for step in train(whole, Spoiled((2,)), SETTINGS, steps=6):
        if step.number == 4:
            kept, about = everything(whole), json.loads(json.dumps(whole.about()))
    again = begin(objective(seed=1), SETTINGS, precision=torch.float16)
    again.restore(kept, about)
    list(train(again, Board(), SETTINGS, steps=6))
    assert again.scaler.state_dict() == whole.scaler.state_dict()
    assert whole.scaler.get_scale() == 2.0**14
    assert all(torch.equal(value, again.tensors()[name]) for name, value in whole.tensors().items())


# what was at fault ---------------------------------------------------------------------------------------------------


def flow_map() -> FlowMap:
    torch.manual_seed(0)
    return AverageVelocity(MLP(2, width=8, depth=2))


def draw_of(loss: Objective) -> RandomInputs:
    rng = torch.Generator().manual_seed(0)
    return loss.draw(torch.randn(ROWS, 2, generator=rng), generator=rng)


def region(draw: RandomInputs, rows: Tensor) -> str:
    """The region as it is to be said."""
    s, t = draw.s[rows], draw.t[rows]
    return f"{int(rows.sum())} of {ROWS} rows, s {s.min():.2f}-{s.max():.2f}, t {t.min():.2f}-{t.max():.2f}"


@pytest.mark.parametrize("row, term", [(2, "diagonal"), (ROWS - 1, "lagrangian")])
def test_a_row_of_bad_data_is_blamed_on_its_term(row: int, term: str):
    loss = methods.lsd(flow_map())
    draw = draw_of(loss)
    draw.x1[row, 1] = math.nan
    assert find_fault(loss.evaluate, draw) == (f"{term}, {region(draw, torch.arange(ROWS) == row)}", 1)


def test_the_term_of_a_sum_is_blamed_where_it_is_bad():
    """Here a teacher that is infinite towards the data; the rows of the other term are finite."""
    own = flow_map()

    def teacher(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.where(t[:, None] > 0.6, math.inf, x)

    loss = Sum([methods.lmd(own, teacher=teacher), methods.flow_matching(own)])
    draw = draw_of(loss)
    bad = draw.t > 0.6
    assert 1 < int(bad.sum()) < ROWS
    assert find_fault(loss.evaluate, draw) == (f"lagrangian, {region(draw, bad)}", int(bad.sum()))


class Root(Weight):
    """The square root of 0 in rows with t > 0.5: its value is 0, its derivative infinite."""

    def forward(self, distance: Tensor, s: Tensor, t: Tensor, split: Tensor | None = None) -> Tensor:
        return distance + (distance * (t <= 0.5)).sqrt()


def test_a_gradient_alone_that_is_bad_is_blamed_on_its_rows():
    loss = methods.lmd(flow_map(), teacher=lambda x, t, cond=None: -x, weight=Root())
    draw = draw_of(loss)
    bad = draw.t > 0.5
    assert 1 < int(bad.sum()) < ROWS
    assert bool(loss.evaluate(draw).value.isfinite())
    assert find_fault(loss.evaluate, draw) == (f"the gradient of lagrangian, {region(draw, bad)}", int(bad.sum()))


class Offset(nn.Module):
    """A network plus the root of a weight that is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.zero = MLP(2, width=8, depth=2), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x, s, t, cond) + self.zero.sqrt()


def test_where_no_row_is_at_fault_it_is_said():
    loss = methods.flow_matching(AverageVelocity(Offset()))
    draw = draw_of(loss)
    loss.evaluate(draw).value.backward()
    assert not all(bool(p.grad.isfinite().all()) for p in loss.parameters() if p.grad is not None)
    said = "the loss is finite in every row, the gradient of the weights is not"
    assert find_fault(loss.evaluate, draw) == (said, 0)
    assert find_fault(objective().evaluate, draw_of(objective())) == (said, 0)  # gone by the time one looks


def test_looking_for_it_changes_nothing():
    loss = methods.lsd(flow_map())
    draw = draw_of(loss)
    with torch.no_grad():
        find_fault(loss.evaluate, draw)
    assert not draw.x0.requires_grad
    assert all(p.grad is None for p in loss.parameters())


# runs ----------------------------------------------------------------------------------------------------------------

RUN = dataclasses.replace(TINY, method="lsd", log_every=1, max_skipped_steps=3)


def test_a_run_goes_on_after_fewer_bad_steps_than_its_patience(tmp_path: Path):
    run = open_run(RUN, tmp_path / "run")
    run.source = Spoiled((2, 3, 5, 7, 8))
    list(run.train())
    assert (tmp_path / "run" / "weights.safetensors").exists()
    lines = log(tmp_path / "run")
    assert [line.get("skipped", 0) for line in lines] == [0, 1, 2, 2, 3, 3, 4, 5, 5]
    for line in lines:
        assert (line["norm"] is None) is (line["loss"] is None) is (line["step"] in (2, 3, 5, 7, 8))


def test_a_run_ends_when_its_patience_does(tmp_path: Path):
    """The last checkpoint that was saved is finite, and what is said names it, the term and the way on."""
    run = open_run(RUN, tmp_path / "run")
    run.source = Spoiled(range(5, 100))
    with pytest.raises(ValueError) as ended:
        list(run.train())
    words = str(ended.value)
    assert re.match(
        r"the gradient was not finite for 3 steps in a row, which were skipped, up to step 7 of stage map: "
        r"diagonal, 1 of 17 rows, s [\d.]+-[\d.]+, t [\d.]+-[\d.]+\. Look at the data, lower "
        r"the optimiser's learning_rate or clip. "
        r"The last checkpoint, map-\d+, is intact: resume from it.$",
        words,
    )
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    (name,) = {re.search(r"checkpoint, (map-\d+),", words)[1]}  # type: ignore[index]
    assert saved(tmp_path / "run")[-1] == name
    tensors, _ = checkpoints.read(tmp_path / "run" / CHECKPOINTS, name)
    assert all(bool(value.isfinite().all()) for value in tensors.values())


def test_steps_in_a_row_are_counted_over_an_interruption(tmp_path: Path):
    run = open_run(RUN, tmp_path / "run")
    run.source = Spoiled(range(3, 100))
    steps = run.train()
    for _ in range(4):
        next(steps)
    steps.close()
    again = open_run(RUN, tmp_path / "run", resume=True)
    again.source = Spoiled((1,))
    with pytest.raises(ValueError, match=r"for 3 steps in a row, .* up to step 5 of stage map"):
        list(again.train())


def test_weights_that_have_gone_bad_are_not_saved(tmp_path: Path):
    """Whatever made them so: the checkpoint before stays the last."""
    run = open_run(dataclasses.replace(RUN, max_skipped_steps=20), tmp_path / "run")
    said = r"training state is not finite at step 6 of stage map .*learning_rate .*map-00000003, is intact"
    steps = run.train()
    for _ in range(4):
        next(steps)
    next(run.flow_map.parameters()).data.fill_(math.nan)
    with pytest.raises(ValueError, match=said):
        list(steps)
    assert saved(tmp_path / "run") == ["map-00000003"]
    assert not (tmp_path / "run" / "weights.safetensors").exists()
