"""Where training stands: the ten lines of the README train as the engine does, and calls that cannot are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import generator
from torch import Tensor

from flowmaps import methods, schedules
from flowmaps.losses import Learned
from flowmaps.maps import AverageVelocity, FlowMap, Target
from flowmaps.methods import METHODS
from flowmaps.nn import MLP
from flowmaps.objectives import Objective
from flowmaps.system import seeds
from flowmaps.training import Optimiser, Settings, Trainer

STEPS, BATCH, SEED, RATE = 12, 16, 5, 1e-2
ROWS = torch.randn(64, 2, generator=generator(0))


def field(x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
    """A teacher."""
    return torch.cos(x) - t[:, None] * x


def built(name: str) -> Objective:
    """A method as its page shows it; its target follows the map where it takes one."""
    torch.manual_seed(0)
    method = METHODS[name]
    flow_map = method.flow_map(MLP(2, width=8, depth=2))
    known = inspect.signature(method.objective).parameters
    given: dict[str, Any] = {"teacher": field} if "teacher" in known else {}
    if "target" in known:
        given["target"] = Target(flow_map, decay=0.9)
    return method.objective(flow_map, **given)


def tensors(objective: Objective) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in objective.named_parameters()}


def own_loop(objective: Objective) -> None:
    """The README's loop, with the draws of the engine."""
    optimiser, steps = torch.optim.Adam(objective.parameters(), lr=RATE), STEPS
    for step in range(steps):
        rng = seeds.generator(SEED, step)
        x1 = ROWS[torch.randint(len(ROWS), (BATCH,), generator=rng)]
        loss = objective(x1, generator=rng, progress=step / steps)
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
        objective.step((step + 1) / steps)


def engine(objective: Objective) -> None:
    settings = Optimiser(batch=BATCH, learning_rate=RATE, warmup=0, decay="constant", clip=1e9)
    for _ in Trainer(objective, ROWS, steps=STEPS, optimiser=settings, settings=Settings(seed=SEED)):
        pass


@pytest.mark.parametrize("name", METHODS)
def test_the_ten_lines_train_as_the_engine_does(name: str):
    """The same times, weights, targets and weights of the loss after twelve steps."""
    one, two = built(name), built(name)
    start = tensors(one)
    own_loop(one)
    engine(two)
    found, wanted = tensors(one), tensors(two)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(
            found[key], value, rtol=2e-4, atol=2e-6, msg=lambda words, key=key: f"{key}: {words}"
        )
    moved = {key for key in found if not torch.equal(found[key], start[key])}
    targets = {id(value) for target in one.moving_targets() for value in target.parameters()}
    for key, value in one.named_parameters():
        trained = value.requires_grad or id(value) in targets
        assert (key in moved) == trained or "second" in key or "bias" in key, key
    assert targets or "target" not in inspect.signature(METHODS[name].objective).parameters


@pytest.mark.parametrize("name", ["sct", "scd"])
def test_a_weight_of_the_loss_is_among_the_parameters_of_the_objective(name: str):
    objective = built(name)
    assert isinstance(objective.weight, Learned)
    own = {id(value) for value in objective.parameters()} - {id(value) for value in objective.flow_map.parameters()}
    assert {id(value) for value in objective.weight.parameters()} <= own
    before = [value.clone() for value in objective.weight.parameters()]
    own_loop(objective)
    assert any(not torch.equal(a, b) for a, b in zip(before, objective.weight.parameters(), strict=True))
    assert "objective.parameters()" in (inspect.getdoc(METHODS[name].objective) or "")


# calls that are refused ----------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Callable[[FlowMap], Objective]] = {
    "alphaflow": methods.alphaflow,
    "consistency_training": methods.consistency_training,
    "improved_consistency_training": methods.improved_consistency_training,
    "easy_consistency_tuning": methods.easy_consistency_tuning,
    "progressive_distillation": methods.progressive_distillation,
    "sct": methods.sct,
    "ayf_lmd": lambda m: methods.ayf_lmd(m, teacher=field),
    # one that moves late, and comes back
    "ayf_emd": lambda m: methods.ayf_emd(m, teacher=field, warmup=lambda p: 0.5 if 0.6 < p < 0.9 else 1.0),
}


WARM_UPS = ("sct", "ayf_lmd", "ayf_emd")


def a_map() -> AverageVelocity:
    torch.manual_seed(0)
    return AverageVelocity(MLP(2, width=8, depth=2))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_told_where_training_stands(name: str):
    objective, x1 = SCHEDULES[name](a_map()), ROWS[:BATCH]
    words = r"has a schedule .* call objective\(x1, progress=step / steps\), and objective\.step\("
    if name in WARM_UPS:  # the loss after the warm-up, before anything is trained
        objective(x1)
        with torch.no_grad():
            next(objective.parameters()).add_(0.1)
    for call in (objective, objective.draw):
        with pytest.raises(ValueError, match=words):
            call(x1)
    early = objective.draw(x1, generator=generator(1), progress=0.0)
    objective.step(0.1)
    late = objective.draw(x1, generator=generator(1), progress=0.75)
    assert any(not torch.equal(a, b) for a, b in zip(early[3:6], late[3:6], strict=True)) or not torch.equal(
        early.warmup, late.warmup
    )
    end = objective.eval().draw(x1, generator=generator(1))  # in evaluation it stands at the end
    again = objective.draw(x1, generator=generator(1), progress=1.0)
    assert torch.equal(end.split, again.split)


@pytest.mark.parametrize("name", WARM_UPS)
def test_weights_that_are_written_behind_torchs_back_are_seen_too(name: str):
    """As some optimisers do, through `.data`, which no version counts."""
    objective = SCHEDULES[name](a_map())
    objective(ROWS[:BATCH])
    objective(ROWS[:BATCH])  # looked at twice
    for value in objective.parameters():
        value.data.add_(1e-3)
    with pytest.raises(ValueError, match="was not told where training stands"):
        objective(ROWS[:BATCH])


@pytest.mark.parametrize("method", [methods.lsd, methods.meanflow, methods.psd, methods.flow_matching, methods.fmm])
def test_what_does_not_change_needs_no_word(method: Callable[..., Objective]):
    objective = method(a_map())
    objective(ROWS[:BATCH])
    objective(ROWS[:BATCH], progress=0.5)
    objective(ROWS[:BATCH], progress=0.7)
    objective.step(0.8)


def test_a_target_that_should_follow_is_not_forgotten():
    flow_map = a_map()
    target = Target(flow_map, decay=0.5)
    objective, x1 = methods.shortcut(flow_map, target=target), ROWS[:BATCH]
    with pytest.raises(ValueError, match=r"has a target that follows the map, and was not told where training stands"):
        objective(x1)
    objective(x1, progress=0.0)
    objective(x1, progress=0.0)  # gradient accumulation
    with pytest.raises(ValueError, match=r"from progress 0 to 0\.1 without it: call objective\.step\("):
        objective(x1, progress=0.1)
    with torch.no_grad():
        for value in flow_map.parameters():
            value.add_(1)
        objective(x1, progress=0.9)  # a loss that trains nothing
    before = next(target.parameters()).clone()
    objective.step(0.1)
    assert not torch.equal(before, next(target.parameters()))
    objective(x1, progress=0.1)
    objective.eval()(x1)


def test_a_round_ends_where_the_engine_ends_it():
    """A loop that goes on from 0.5, and one that begins anew, renew the copy at the bounds of rounds alone."""
    flow_map = a_map()
    objective = methods.progressive_distillation(flow_map, cells=schedules.Halving(2))  # two rounds

    def copied(progress: float, now: float) -> bool:
        objective(ROWS[:BATCH], progress=progress)
        with torch.no_grad():
            next(flow_map.parameters()).add_(1)
        before = [value.clone() for value in objective.moving_targets()[0].parameters()]
        objective.step(now)
        after = objective.moving_targets()[0].parameters()
        return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    assert not copied(0.6, 0.7)  # a resumed loop: the round that ended at 0.5 is not its own
    assert copied(0.9, 1.0)
    assert not copied(0.0, 0.1)  # anew
    assert copied(0.4, 0.5)


@pytest.mark.parametrize("progress", [-0.1, 1.1, 7, float("nan")])
def test_progress_is_a_share(progress: float):
    objective = methods.lsd(a_map())
    for call in (lambda: objective(ROWS[:4], progress=progress), lambda: objective.step(progress)):
        with pytest.raises(ValueError, match=r"progress is the share .* in \[0, 1\], got .*: pass step / steps"):
            call()
