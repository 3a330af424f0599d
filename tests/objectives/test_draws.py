"""Several draws of noise and times for each row of data, and terms of a self-distillation that take turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import generator
from torch import Tensor

import flowmaps as fm
from flowmaps import methods
from flowmaps.couplings import Coupling, MinibatchOT, Paired
from flowmaps.guidance import Guidance
from flowmaps.maps import AverageVelocity
from flowmaps.nn import MLP
from flowmaps.objectives import Objective, SplitRows, Sum, in_turns
from flowmaps.shapes import GuidedCondition
from flowmaps.training import Optimiser
from flowmaps.training.loop import train
from flowmaps.training.state import begin

DIM, ROWS, DRAWS = 2, 8, 3


def field(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    return torch.sin(x.flip(1)) * t[:, None]


def a_map(**options: Any) -> AverageVelocity:
    torch.manual_seed(0)
    return AverageVelocity(MLP(DIM, width=8, depth=2, **options))


def data(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, DIM, generator=generator(2))


MADE: dict[str, Callable[..., Objective]] = {
    "flow_matching": methods.flow_matching,
    "lmd": lambda m, **rest: methods.lmd(m, teacher=field, **rest),
    "fmm": methods.fmm,
    "lsd": methods.lsd,
    "ctm": lambda m, **rest: methods.ctm(m, teacher=field, **rest),
    "warm_up": lambda m, **rest: methods.warm_up(m, teacher=field, pairs=1, **rest),
}


@pytest.mark.parametrize("name", MADE)
def test_the_loss_is_the_mean_over_the_draws_of_the_same_rows(name: str):
    """Each copy of the batch is a batch: the loss of B draws rows is the mean of the losses of its copies."""
    loss, x1 = MADE[name](a_map(), draws=DRAWS), data()
    draw = loss.draw(x1, generator=generator(5))
    assert len(draw.x1) == ROWS * DRAWS
    copies = [draw.rows(slice(k * ROWS, (k + 1) * ROWS)) for k in range(DRAWS)]
    if name != "warm_up":  # whose draws have points of trajectories in the place of data
        assert all(copy.x1.equal(x1) for copy in copies)
    assert not copies[0].x0.equal(copies[1].x0)
    assert not copies[0].t.equal(copies[1].t)
    whole = loss.evaluate(draw)
    assert all(part.shape == (ROWS * DRAWS,) for part in whole.parts.values())
    losses = [loss.evaluate(copy).value for copy in copies]
    torch.testing.assert_close(torch.stack(losses).mean(), whole.value)


@pytest.mark.parametrize("name", MADE)
def test_one_draw_changes_no_random_number(name: str):
    with_option, without = (MADE[name](a_map(), **options) for options in ({"draws": 1}, {}))
    draws = [loss.draw(data(), generator=generator(5)) for loss in (with_option, without)]
    for one, other in zip(*draws, strict=True):
        assert one is other is None or (one.equal(other) if isinstance(one, Tensor) else one == other)


class Counted(Coupling):
    """Remembers how many rows it was asked to pair."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def match(self, x0: Tensor, x1: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        self.asked.append(len(x1))
        return x0, x1


def test_a_coupling_pairs_each_copy_by_itself():
    """So that minibatch transport is that of the batch: of all copies together it would be another one."""
    counted = Counted()
    methods.lsd(a_map(), coupling=counted, draws=DRAWS)(data())
    assert counted.asked == [ROWS] * DRAWS
    loss = methods.flow_matching(a_map(), coupling=MinibatchOT(), draws=DRAWS)
    draw, x1 = loss.draw(data(), generator=generator(5)), data()
    for k in range(DRAWS):
        x0 = draw.x0[k * ROWS : (k + 1) * ROWS]
        best = MinibatchOT().match(x0[torch.randperm(ROWS, generator=generator(1))], x1)[0]
        assert torch.equal(best, x0)


def test_given_pairs_stay_pairs_in_each_draw():
    loss, x0 = methods.flow_matching(a_map(), coupling=Paired(), draws=DRAWS), data() + 5
    draw = loss.draw(data(), x0, generator=generator(5))
    assert torch.equal(draw.x0, x0.repeat(DRAWS, 1))
    assert torch.equal(draw.x1, data().repeat(DRAWS, 1))
    assert len(set(draw.t.tolist())) == ROWS * DRAWS


def test_labels_go_with_their_rows_and_are_dropped_draw_by_draw():
    labels = torch.arange(ROWS) % 4
    loss = methods.lsd(a_map(classes=4), guidance=Guidance((1.0, 2.0), classes=4, dropout=0.5), draws=40)
    draw = loss.draw(data(), cond=labels, generator=generator(5))
    assert isinstance(draw.cond, GuidedCondition)
    found = draw.cond.cond.reshape(40, ROWS)
    kept = found != 4
    assert torch.equal(found[kept], labels.repeat(40, 1)[kept])
    assert 0.35 < float(kept.double().mean()) < 0.65
    assert len({tuple(row) for row in found.tolist()}) > 30
    assert len(set(draw.cond.weight.tolist())) == 40 * ROWS


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_step_of_several_draws_in_parts_is_the_same_step(accumulate: int):
    found = []
    for parts in (1, accumulate):
        own = Optimiser(batch=ROWS, accumulate=parts, learning_rate=1e-2, warmup=0)
        state = begin(methods.lsd(a_map(), draws=4), own)
        found.append((list(train(state, fm.data.Board(), own, steps=2)), list(state.parameters.values())))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one.loss.parts["diagonal"].shape == (4 * ROWS,)
        torch.testing.assert_close(other.loss.value, one.loss.value)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_draws_that_are_refused():
    for draws in (0, -1, 1.0, True, "2"):
        with pytest.raises(ValueError, match="draws must be a whole number of at least 1, got"):
            methods.lsd(a_map(), draws=draws)  # type: ignore[arg-type]
    flow_map = a_map()
    with pytest.raises(ValueError, match="must share their coupling, guidance and draws"):
        SplitRows(methods.flow_matching(flow_map), methods.lmd(flow_map, teacher=field, draws=2))
    own = Optimiser(batch=ROWS, accumulate=2)
    state = begin(methods.lsd(a_map(), draws=4), own)
    with pytest.raises(ValueError, match=f"takes batches of {ROWS} rows, got 4:"):
        state.parts(state.objective.draw(data(4), generator=generator(0)))


# turns ----------------------------------------------------------------------------------------------------------------


def turns(every: int, share: float = 0.75) -> SplitRows:
    return in_turns(methods.lsd(a_map(), share=share), every)


@pytest.mark.parametrize("share, every, expected", [(0.75, 4, 0), (0.75, 2, 4), (0.75, 3, 2), (0.5, 2, 0)])
def test_a_turn_has_all_rows_of_its_term(share: float, every: int, expected: int):
    """The share of the second term over the steps is that of one draw without turns: nothing is weighed anew."""
    loss, counted = turns(every, share), torch.zeros(2)
    for step in range(3 * every):
        draw = loss.draw(data(), generator=generator(step), progress=0.0, step=step)
        own = (expected, ROWS - expected) if (step + 1) % every == 0 else (ROWS, 0)
        assert draw.counts == own
        assert torch.equal(draw.s == draw.t, torch.arange(ROWS) < own[0])
        counted += torch.tensor(draw.counts)
        found = loss.evaluate(draw)
        assert ("lagrangian" in found.parts) == (own[1] > 0)
        assert ("diagonal" in found.parts) == (own[0] > 0)
    assert float(counted[0] / counted.sum()) == pytest.approx(share)


def test_the_gradient_over_a_turn_is_that_of_the_rows_without_turns():
    """Of the same rows: 4 steps of 8, in turns, and one batch of 32 with a quarter off the diagonal."""
    loss = turns(4)
    draws = [loss.draw(data(), generator=generator(step), progress=0.0, step=step) for step in range(4)]
    whole = methods.lsd(loss.flow_map)
    together = type(draws[0])(
        *(torch.cat([getattr(draw, name) for draw in draws]) for name in ("x0", "x1")),
        None,
        *(torch.cat([getattr(draw, name) for draw in draws]) for name in ("s", "t", "split")),
        counts=(24, 8),
    )
    weights = list(loss.flow_map.parameters())
    wanted = torch.autograd.grad(whole.evaluate(together).value, weights)
    found = torch.autograd.grad(torch.stack([loss.evaluate(draw).value for draw in draws]).mean(), weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_every_step_is_as_before_without_turns():
    plain, one = methods.lsd(a_map()), turns(1)
    for step in (0, 1):
        draws = [loss.draw(data(), generator=generator(5), progress=0.0, step=step) for loss in (plain, one)]
        for ours, theirs in zip(*draws, strict=True):
            assert ours is theirs is None or (ours.equal(theirs) if isinstance(ours, Tensor) else ours == theirs)


def test_the_step_is_needed_in_training_and_both_terms_are_evaluated():
    loss = turns(4)
    with pytest.raises(ValueError, match=r"has its turn in one of 4 steps, .*: call objective\(x1, .*step=step\)"):
        loss(data(), progress=0.0)
    assert loss(data(), progress=0.0, step=3).parts.keys() == {"lagrangian"}
    assert turns(2).eval()(data()).parts.keys() == {"diagonal", "lagrangian"}


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("every", [2, 4])
def test_micro_batches_of_a_turn_have_the_mean_of_the_whole(every: int, number: int):
    loss = turns(every)
    for step in range(every):
        draw = loss.draw(data(16), generator=generator(step), progress=0.0, step=step)
        parts = [loss.evaluate(draw.micro_batch(rows)).value for rows in loss.micro_batches(16, number)]
        torch.testing.assert_close(torch.stack(parts).mean(), loss.evaluate(draw).value)


@pytest.mark.slow
def test_a_compiled_loss_has_a_graph_for_each_kind_of_step():
    torch.compiler.reset()
    loss = turns(2)
    compiled = torch.compile(loss.evaluate, fullgraph=True, backend="aot_eager")
    for step in range(4):
        draw = loss.draw(data(), generator=generator(step), progress=0.0, step=step)
        torch.testing.assert_close(compiled(draw).value, loss.evaluate(draw).value)


def test_a_training_in_turns_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path):
    """And may be made longer: turns are no schedule."""
    asked = iter(range(1, 100))
    given: dict[str, Any] = {"batch": ROWS, "compile": False, "device": "cpu", "log_every": 1, "say": lambda text: None}
    fm.fit(turns(3), data(50), tmp_path / "a", steps=8, **given)
    fm.fit(turns(3), data(50), tmp_path / "b", steps=8, **given, stop=lambda: next(asked) >= 2)
    fm.fit(turns(3), data(50), tmp_path / "b", steps=5, **given)
    fm.fit(turns(3), data(50), tmp_path / "b", steps=8, **given)
    ours, theirs = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "ab")
    assert ours == theirs
    with pytest.raises(ValueError, match=r"was begun with another objective\.every, 3, got 1"):
        fm.fit(turns(1), data(50), tmp_path / "b", steps=9, **given)
    with pytest.raises(ValueError, match="was begun with another objective"):
        fm.fit(in_turns(methods.lsd(a_map(), draws=2), 3), data(50), tmp_path / "b", steps=9, **given)


def test_turns_that_are_refused():
    with pytest.raises(ValueError, match=r"every <= 4 with share=0.75, .* 0.25 of the rows, got 5"):
        turns(5)
    with pytest.raises(ValueError, match=r"every <= 1 with share=0\.25"):
        turns(2, 0.25)
    for objective in (methods.fmm(a_map()), methods.lmd(a_map(), teacher=field), methods.flow_matching(a_map())):
        with pytest.raises(ValueError, match="in_turns is for an objective whose terms split the rows"):
            in_turns(objective, 2)
    inner = turns(2)
    with pytest.raises(ValueError, match="whose terms take turns is no part of a SplitRows"):
        SplitRows(inner, methods.flow_matching(inner.flow_map))
    with pytest.raises(ValueError, match="whose terms take turns is no part of a Sum"):
        Sum([inner])
