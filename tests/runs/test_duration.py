"""How long a run will take, with a clock that the work itself moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from flowmaps import maps
from flowmaps.data import Points, open_data
from flowmaps.evaluation import rows
from flowmaps.runs import duration, initial
from flowmaps.runs.plan import Plan, resolve
from flowmaps.runs.recipes import checkerboard

CALL, ROW = 0.002, 0.001  # seconds of the clock below


class Clock:
    """Stands still but for the work that is told to it."""

    def __init__(self) -> None:
        self.now, self.tried = 0.0, list[int]()

    def __call__(self) -> float:
        return self.now

    def work(self, rows: int) -> None:
        self.now += CALL + ROW * rows
        self.tried.append(rows)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(duration.time, "perf_counter", made)
    return made


@pytest.mark.parametrize("whole", [1, 3, 4, 5, 37, 200, 247])
def test_work_of_few_rows_is_timed_as_it_is(whole: int, clock: Clock):
    seconds = duration._seconds(clock.work, whole)
    assert (seconds.rows, seconds.fits) == (whole, True)
    assert seconds.value == pytest.approx(CALL + ROW * whole)


def test_work_of_many_rows_is_told_from_fewer(clock: Clock):
    seconds = duration._seconds(clock.work, 1_000_000)
    assert 250 <= seconds.rows == max(clock.tried) <= 1_024  # a quarter of a second, and no more than four times that
    assert seconds.value == pytest.approx(1_000_000 * ROW, rel=CALL / ROW / seconds.rows * 1.01)


@pytest.mark.parametrize("wait", [0.2, 0.3, 30.0])
@pytest.mark.parametrize("slow", [4, 16, 64])
def test_a_slow_first_call_of_any_size_does_not_count(slow: int, wait: float, clock: Clock):
    def work(rows: int) -> None:
        clock.now += wait if rows == slow and rows not in clock.tried else 0.0
        clock.work(rows)

    assert duration._seconds(work, 150) == duration.Seconds(pytest.approx(CALL + 150 * ROW), 150)


def test_what_does_not_fit_the_memory_is_told_from_what_does(clock: Clock):
    def work(rows: int) -> None:
        clock.work(rows)
        if rows > 20:
            raise torch.OutOfMemoryError("no room")

    assert duration._seconds(work, 160) == duration.Seconds(pytest.approx(10 * (CALL + 16 * ROW)), 16, fits=False)
    with pytest.raises(torch.OutOfMemoryError):
        duration._seconds(lambda rows: work(rows + 20), 160)


def tiny(method: str, **changes: Any) -> Plan:
    recipe = checkerboard()
    network = replace(recipe.network, width=8, depth=2)
    optimiser = replace(recipe.optimiser, batch=changes.pop("batch", 16), accumulate=changes.pop("accumulate", 1))
    evaluation = replace(recipe.evaluation, **changes.pop("evaluation", {}))
    fields = {"network": network, "optimiser": optimiser, "evaluation": evaluation, "method": method, "compile": False}
    return resolve(replace(recipe, **fields, **changes))


def first_map(plan: Plan) -> maps.FlowMap:
    return initial.new_map(plan.recipe, (2,), None)


def of_rows(work: Callable[[int], None], whole: int) -> duration.Seconds:
    """As `_seconds`, of work that takes a second a row."""
    work(whole)
    return duration.Seconds(whole, whole)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_is_of_all_its_parts(accumulate: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(duration, "_seconds", of_rows)
    plan = tiny("lsd", batch=16, accumulate=accumulate)
    objective = plan.stages[-1].build(first_map(plan), None)
    seconds = duration.step_seconds(plan.recipe, objective, open_data("checkerboard"))
    assert seconds == duration.Seconds(16, 16 // accumulate)


def test_terms_that_take_turns_count_by_how_often_they_come(monkeypatch: pytest.MonkeyPatch):
    plan = tiny("lsd", diagonal_share=0.75, off_diagonal_every=4)
    objective = plan.stages[-1].build(first_map(plan), None)
    seen = iter([1.0, 0.2])  # the costly one, then the other three
    monkeypatch.setattr(duration, "_seconds", lambda work, whole: duration.Seconds(next(seen), whole))
    seconds = duration.step_seconds(plan.recipe, objective, open_data("checkerboard"))
    assert seconds.value == pytest.approx(1.6 / 4)


@pytest.mark.parametrize("samples, batch", [(100, 30), (100, 100), (100, 1_000)])
@pytest.mark.parametrize("method", ["lmd", "lsd", "consistency_training", "freeflow", "flow_matching"])
def test_the_rows_that_are_counted_are_those_that_the_evaluation_evaluates(
    method: str, samples: int, batch: int, monkeypatch: pytest.MonkeyPatch
):
    """But for those of dopri5, whose number is not known before."""
    settings = {"samples": samples, "points": 50, "batch": batch, "steps": (1, 2, 4), "solver_steps": 7}
    plan, source, seen = tiny(method, evaluation=settings), open_data("checkerboard"), list[int]()
    flow_map = first_map(plan)
    flow_map.net.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))  # type: ignore[union-attr]
    teacher = maps.Target(flow_map) if plan.method.distils else None
    measured = plan.as_sampled(flow_map, teacher)
    for _ in rows.metrics_rows(plan, *measured, source, 0, solvers=("euler",)):
        pass
    evaluated = sum(seen)

    def counted(work: Callable[[int], None], whole: int) -> duration.Seconds:
        seen.clear()
        work(whole)
        return duration.Seconds(sum(seen), whole)

    monkeypatch.setattr(duration, "_seconds", counted)
    monkeypatch.setattr(duration, "DOPRI5_EVALUATIONS", 0)
    assert duration.measuring_seconds(plan, flow_map, None, source) == pytest.approx(evaluated)


def test_a_teacher_from_elsewhere_is_timed_by_itself(monkeypatch: pytest.MonkeyPatch):
    plan = tiny("lmd", evaluation={"samples": 100, "points": 10, "batch": 100, "steps": (1,), "solver_steps": 1})
    seen = iter([1.0, 100.0])
    monkeypatch.setattr(duration, "_seconds", lambda work, whole: duration.Seconds(next(seen), whole))
    flow_map = first_map(plan)
    seconds = duration.measuring_seconds(plan, flow_map, maps.Target(flow_map), open_data("checkerboard"))
    assert seconds == pytest.approx(2 * (1.0 + 100.0 * (duration.DOPRI5_EVALUATIONS + 1)))


def test_a_guided_teacher_takes_two_evaluations(monkeypatch: pytest.MonkeyPatch):
    settings = {"samples": 100, "points": 10, "batch": 30, "steps": (1,)}
    plan, seen = tiny("lmd", evaluation=settings, guidance=(2.0,)), list[int]()
    flow_map = initial.new_map(plan.recipe, (2,), 3)
    flow_map.net.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))  # type: ignore[union-attr]
    labels = torch.arange(40) % 3
    source = Points(torch.randn(40, 2), labels, shift=torch.zeros(1), scale=torch.ones(1))
    found = list[int]()

    def counted(work: Callable[[int], None], whole: int) -> duration.Seconds:
        seen.clear()
        work(whole)
        found.append(sum(seen) // whole)
        return duration.Seconds(1.0, whole)

    monkeypatch.setattr(duration, "_seconds", counted)
    duration.measuring_seconds(plan, flow_map, None, source)
    assert found == [1, 2]


def test_timing_leaves_the_generators_of_torch_alone():
    plan = tiny("lsd")
    flow_map = first_map(plan)
    flow_map.net = torch.nn.Sequential()  # type: ignore[assignment]
    flow_map.net.forward = lambda x, s, t, cond=None: weight * torch.nn.functional.dropout(x)  # type: ignore
    weight = torch.nn.Parameter(torch.ones(()))
    flow_map.net.register_parameter("weight", weight)  # type: ignore[union-attr]
    objective = plan.stages[-1].build(flow_map, None)
    before = torch.get_rng_state()
    duration.step_seconds(plan.recipe, objective, open_data("checkerboard"))
    duration.measuring_seconds(plan, flow_map, None, open_data("checkerboard"))
    assert torch.equal(torch.get_rng_state(), before)
    flow_map(torch.ones(2, 2), torch.zeros(2), torch.ones(2))
    assert not torch.equal(torch.get_rng_state(), before)  # of which there is something to leave alone
