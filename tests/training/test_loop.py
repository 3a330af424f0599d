"""Training: draws, averages and rates by their formulas, whatever is interrupted, clipped, or taken in parts."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from run_cases import SETTINGS, equal, everything, objective, values
from torch.nn.utils import clip_grad_norm_

from flowmaps import methods
from flowmaps.data import Board
from flowmaps.maps import AverageVelocity
from flowmaps.nn import MLP
from flowmaps.objectives import Loss, Objective
from flowmaps.runs.recipes import Optimiser
from flowmaps.system.seeds import generator
from flowmaps.training import loop as training
from flowmaps.training.loop import train
from flowmaps.training.optimisers import remember
from flowmaps.training.state import begin
from flowmaps.velocities import RandomInputs


class Recorder:
    """Keeps the draws that an objective is given."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.draws = objective, []

    def __call__(self, draw: RandomInputs) -> Loss:
        self.draws.append(draw)
        return self.objective.evaluate(draw)


# streams of random numbers -------------------------------------------------------------------------------------------


def test_streams_are_functions_of_seed_and_numbers_and_differ():
    numbers = list(itertools.product(range(12), range(12), range(12)))
    seeds = {n: generator(*n).initial_seed() for n in numbers}
    assert len(set(seeds.values())) == len(numbers)
    assert generator(3, 1, 4).initial_seed() == seeds[3, 1, 4]
    assert generator(0).initial_seed() != generator(0, 0).initial_seed()


def test_streams_of_neighbouring_steps_are_unrelated():
    draws = torch.stack([torch.randn(400, generator=generator(0, step)) for step in range(40)])
    correlations = torch.corrcoef(draws)[~torch.eye(40, dtype=torch.bool)]
    assert float(correlations.abs().max()) < 4.5 / math.sqrt(400)


def test_draws_are_a_function_of_seed_and_step():
    """Whatever came before: step k of a restored state sees what step k of an unbroken run saw."""
    whole, part, other = (Recorder(objective()) for _ in range(3))
    state = begin(whole.objective, SETTINGS, evaluate=whole)
    for step in train(state, Board(), SETTINGS, steps=6, seed=5):
        if step.number == 3:
            kept, about = everything(state), state.about()
    late = begin(part.objective, SETTINGS, evaluate=part)
    late.restore(kept, about)
    list(train(late, Board(), SETTINGS, steps=6, seed=5))
    list(train(begin(other.objective, SETTINGS, evaluate=other), Board(), SETTINGS, steps=1, seed=6))
    for one, same in zip(whole.draws[3:], part.draws, strict=True):
        assert one.counts == same.counts
        for a, b in zip(one[:-1], same[:-1], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    firsts = [draw.x0 for draw in (*whole.draws, *other.draws)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(firsts, 2))


# the loop ------------------------------------------------------------------------------------------------------------


def test_averages_follow_their_formula():
    state = begin(objective(), SETTINGS)
    averages = values(state)
    for step in train(state, Board(), SETTINGS, steps=30):
        decay = min(0.9, step.number / (step.number + 9))  # short memory at first, so that the start is forgotten
        averages = [decay * a + (1 - decay) * p for a, p in zip(averages, values(state), strict=True)]
        for a, b in zip(state.averages.main, averages, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    now = values(state)
    assert not equal(state.averages.main, now)
    state.use_averages()
    assert equal(values(state), state.averages.main)


def test_an_average_without_memory_is_the_parameters():
    settings = dataclasses.replace(SETTINGS, ema_decay=0.0)
    state = begin(objective(), settings)
    for _ in train(state, Board(), settings, steps=3):
        assert equal(state.averages.main, values(state))


def test_steps_report_the_rate_that_was_used():
    """Adam's first step moves each weight by the rate, whatever the gradient."""
    settings = Optimiser(batch=17, learning_rate=1e-3, warmup=1)
    state = begin(objective(), settings)
    before = values(state)
    step = next(train(state, Board(), settings, steps=10))
    assert step.rate == pytest.approx(1e-3)
    moved = torch.cat([(a - b).abs().flatten() for a, b in zip(before, values(state), strict=True)])
    assert float(moved.median()) == pytest.approx(1e-3, rel=1e-3)
    assert float(moved.max()) <= 1.001e-3


def test_gradients_are_clipped():
    settings = dataclasses.replace(SETTINGS, clip=1e-3)
    state = begin(objective(), settings)
    for _ in train(state, Board(), settings, steps=2):
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in state.parameters.values() if p.grad is not None))
        assert norm == pytest.approx(1e-3, rel=1e-3)


def test_steps_report_the_norm_before_it_was_clipped():
    settings = dataclasses.replace(SETTINGS, clip=1e-3)
    state, same = begin(objective(), settings), objective()
    step = next(train(state, Board(), settings, steps=2))
    same.evaluate(step.draw).value.backward()
    assert float(clip_grad_norm_(same.parameters(), 1.0)) == pytest.approx(float(step.norm), rel=1e-5)
    assert float(step.norm) > 2e-3


def test_steps_are_counted_and_the_loss_is_the_objectives():
    recorder = Recorder(objective())
    state = begin(recorder.objective, SETTINGS, evaluate=recorder)
    before = None
    for k, step in enumerate(train(state, Board(), SETTINGS, steps=4), 1):
        assert (step.number, state.step) == (k, k)
        assert step.progress == pytest.approx((k - 1) / 4)
        assert not step.loss.value.requires_grad
        if before is not None:
            loss = objective()
            with torch.no_grad():
                torch._foreach_copy_(list(loss.parameters()), before)
            assert torch.equal(loss.evaluate(step.draw).value.detach(), step.loss.value)
            assert step.draw is recorder.draws[-1]
        before = values(state)
    assert list(train(state, Board(), SETTINGS, steps=4)) == []  # nothing is left to do


def test_training_lowers_the_loss():
    settings = Optimiser(batch=256, learning_rate=5e-3, warmup=5)
    losses = [float(step.loss.value) for step in train(begin(objective(), settings), Board(), settings, steps=80)]
    assert sum(losses[-10:]) < 0.92 * sum(losses[:10])


def test_a_budget_ends_training_and_drives_the_rate(monkeypatch: pytest.MonkeyPatch):
    clock = itertools.count()  # a second each time it is read: once at the start, once a step
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    settings = dataclasses.replace(SETTINGS, warmup=0, final_rate_scale=0.0)
    steps = list(train(begin(objective(), settings), Board(), settings, steps=1000, budget=8.0))
    assert len(steps) == 7
    assert [step.progress for step in steps] == pytest.approx([k / 8 for k in range(1, 8)])
    assert steps[-1].rate == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))
    few = list(train(begin(objective(), settings), Board(), settings, steps=4, budget=1e9))
    assert [step.progress for step in few] == pytest.approx(
        [0, 0.25, 0.5, 0.75], abs=1e-6
    )  # the greater of the two shares


def test_a_budget_may_be_of_another_clock():
    clock = itertools.count()
    steps = train(begin(objective(), SETTINGS), Board(), SETTINGS, steps=1000, budget=4.0, clock=lambda: next(clock))
    assert len(list(steps)) == 3


def test_frozen_parts_are_not_trained():
    torch.manual_seed(0)
    flow_map, teacher = (AverageVelocity(MLP(2, width=8, depth=2)) for _ in range(2))
    state = begin(methods.lmd(flow_map, teacher=teacher.velocity), SETTINGS)
    assert len(state.parameters) == len(list(flow_map.parameters()))
    before, own = [p.clone() for p in teacher.parameters()], values(state)
    list(train(state, Board(), SETTINGS, steps=2))
    assert equal(before, list(teacher.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(own, values(state), strict=True))


def test_a_state_of_another_network_is_refused():
    torch.manual_seed(0)
    small = begin(methods.lsd(AverageVelocity(MLP(2, width=4, depth=2))), SETTINGS)
    deep = begin(methods.lsd(AverageVelocity(MLP(2, width=8, depth=3))), SETTINGS)
    tensors = begin(objective(), SETTINGS).tensors()
    for state in (small, deep):
        with pytest.raises(ValueError, match=r"checkpoint is of another network .*: resume with what it began with"):
            state.restore(tensors, {"step": 1})


# interruptions -------------------------------------------------------------------------------------------------------


def test_all_of_a_state_comes_back():
    """Weights, averages of each kind, moments, what the guard has counted: the rest is the same to the bit."""
    settings = dataclasses.replace(SETTINGS, ema_decays=(0.5,), ema_widths=(0.1,))
    whole = begin(objective(), settings)
    for step in train(whole, Board(), settings, steps=6):
        if step.number == 3:
            kept, about = everything(whole), whole.about()
    late = begin(objective(seed=1), settings)
    late.restore(kept, about)
    assert late.step == 3
    list(train(late, Board(), settings, steps=6))
    ours, theirs = late.tensors(), whole.tensors()
    assert ours.keys() == theirs.keys()
    assert {"average.decay-0.9", "average.decay-0.5", "average.width-0.1"} <= {name.split("/")[0] for name in ours}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert late.about() == whole.about()


def test_without_moments_the_optimiser_begins_anew():
    """Adam's first step moves each weight by the rate, which is that of the step."""
    settings = dataclasses.replace(SETTINGS, warmup=4, clip=1e9)
    state = begin(objective(), settings)
    list(train(state, Board(), settings, steps=6))
    kept = {name: value for name, value in everything(state).items() if not name.startswith("optimiser.")}
    late = begin(objective(seed=1), settings)
    late.restore(kept, {"step": 6})
    assert late.step == 6
    before, steps = values(late), train(late, Board(), settings, steps=10**9)
    step = next(steps)
    assert step.rate == pytest.approx(1e-2)
    moved = torch.cat([(a - b).abs().flatten() for a, b in zip(before, values(late), strict=True)])
    assert float(moved.median()) == pytest.approx(step.rate, rel=1e-2)


def test_moments_come_back_laid_out_as_their_parameters():
    """Convolutions keep weights and moments in a memory format of their own, which decides the order of sums."""
    torch.manual_seed(0)
    weight = torch.nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last).weight  # type: ignore[call-overload]
    kept = {"weight.exp_avg": torch.randn(5, 3, 3, 3), "weight.exp_avg_sq": torch.rand(5, 3, 3, 3)}
    assert weight.stride() != kept["weight.exp_avg"].stride()
    optimiser = torch.optim.Adam([weight], fused=True)
    remember([optimiser], {"weight": weight}, kept | {"weight.step": torch.tensor(3.0)})
    for key, value in optimiser.state[weight].items():
        assert value.stride() == (weight.stride() if value.ndim else ())
        assert torch.equal(value, kept.get(f"weight.{key}", torch.tensor(3.0)))


# precision -----------------------------------------------------------------------------------------------------------


def test_float16_agrees_with_float32_to_its_precision():
    """Networks compute in it, weights stay as they are; the scale of the loss is taken out of gradients and norms."""
    settings = dataclasses.replace(SETTINGS, learning_rate=1e-3, clip=1e9)
    runs = {}
    for precision in (torch.float32, torch.float16):
        state = begin(objective(), settings, precision=precision)
        runs[precision] = list(train(state, Board(), settings, steps=5)), state
    (whole, full), (half, scaled) = runs.values()
    assert full.scaler.get_scale() == 1
    assert scaled.scaler.get_scale() == 2.0**14
    assert {p.dtype for p in scaled.parameters.values()} == {torch.float32}
    for one, other in zip(whole, half, strict=True):
        assert float(other.loss.value) == pytest.approx(float(one.loss.value), rel=1e-2)
        assert float(other.norm) == pytest.approx(float(one.norm), rel=3e-2)
    assert any(float(a.loss.value) != float(b.loss.value) for a, b in zip(whole, half, strict=True))
    assert scaled.guard.skipped == 0
