"""How long a run will take, with a clock that the work itself moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from flowmaps import maps, methods
from flowmaps.data import open_data
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
    seconds, rows = duration._seconds(clock.work, whole)
    assert rows == whole
    assert seconds == pytest.approx(CALL + ROW * whole)


def test_work_of_many_rows_is_told_from_fewer(clock: Clock):
    seconds, rows = duration._seconds(clock.work, 1_000_000)
    assert 250 <= rows == max(clock.tried) <= 1_024  # a quarter of a second, and no more than four times that
    assert seconds == pytest.approx(1_000_000 * ROW, rel=CALL / ROW / rows * 1.01)


def test_a_slow_first_call_does_not_count(clock: Clock):
    def work(rows: int) -> None:
        clock.now += 0.2 if not clock.tried else 0.0
        clock.work(rows)

    assert duration._seconds(work, 3)[0] == pytest.approx(CALL + 3 * ROW)


def test_what_does_not_fit_the_memory_is_told_from_what_does(clock: Clock):
    def work(rows: int) -> None:
        clock.work(rows)
        if rows > 20:
            raise torch.OutOfMemoryError("no room")

    seconds, rows = duration._seconds(work, 160)
    assert (rows, seconds) == (16, pytest.approx(10 * (CALL + 16 * ROW)))
    with pytest.raises(torch.OutOfMemoryError):
        duration._seconds(lambda rows: work(rows + 20), 160)


def tiny(method: str, **changes: Any) -> Plan:
    recipe = checkerboard()
    network = replace(recipe.network, width=8, depth=2)
    optimiser = replace(recipe.optimiser, batch=changes.pop("batch", 16), accumulate=changes.pop("accumulate", 1))
    evaluation = replace(recipe.evaluation, **changes.pop("evaluation", {}))
    fields = {"network": network, "optimiser": optimiser, "evaluation": evaluation, "method": method, "compile": False}
    return resolve(replace(recipe, **fields, **changes))


@pytest.fixture
def of_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows that are timed, at `ROW` seconds a row and no seconds a call."""
    asked = list[int]()

    def seconds(work: Callable[[int], None], whole: int) -> tuple[float, int]:
        work(whole)
        asked.append(whole)
        return ROW * whole, whole

    monkeypatch.setattr(duration, "_seconds", seconds)
    return asked


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_is_of_all_its_parts(accumulate: int, of_rows: list[int]):
    plan = tiny("lsd", batch=16, accumulate=accumulate)
    objective = plan.stages[-1].build(initial.new_map(plan.recipe, (2,), None), None)
    assert duration.step_seconds(plan.recipe, objective, open_data("checkerboard")) == (
        pytest.approx(16 * ROW),
        16 // accumulate,
    )


def test_terms_that_take_turns_count_by_how_often_they_come(monkeypatch: pytest.MonkeyPatch):
    plan = tiny("lsd", diagonal_share=0.75, off_diagonal_every=4)
    objective = plan.stages[-1].build(initial.new_map(plan.recipe, (2,), None), None)
    seen = iter([1.0, 0.2])  # the costly one, then the other three
    monkeypatch.setattr(duration, "_seconds", lambda work, whole: (next(seen), whole))
    assert duration.step_seconds(plan.recipe, objective, open_data("checkerboard"))[0] == pytest.approx(1.6 / 4)


def test_measuring_counts_the_evaluations_of_the_map_and_of_the_ode(of_rows: list[int]):
    settings = {"samples": 1_000, "points": 10, "batch": 50, "steps": (1, 2, 4), "solver_steps": 30}
    for method, evaluations in {
        "lmd": 7 + duration.DOPRI5_EVALUATIONS + 30,
        "lsd": 7 + duration.DOPRI5_EVALUATIONS + 30,  # of its own diagonal
        "consistency_training": 7,
        "freeflow": 1 + duration.DOPRI5_EVALUATIONS + 30,
    }.items():
        plan = tiny(method, evaluation=settings)
        flow_map = initial.new_map(plan.recipe, (2,), None)
        seconds = duration.measuring_seconds(plan, flow_map, None, open_data("checkerboard"))
        assert seconds == pytest.approx(1_000 * evaluations * ROW), method
    assert set(of_rows) == {50}


def test_a_teacher_from_elsewhere_is_timed_by_itself(monkeypatch: pytest.MonkeyPatch):
    plan = tiny("lmd", evaluation={"samples": 100, "points": 10, "batch": 100, "steps": (1,), "solver_steps": 1})
    seen = iter([1.0, 100.0])
    monkeypatch.setattr(duration, "_seconds", lambda work, whole: (next(seen), whole))
    flow_map = initial.new_map(plan.recipe, (2,), None)
    teacher = maps.Target(methods.flow_matching(flow_map).flow_map)
    seconds = duration.measuring_seconds(plan, flow_map, teacher, open_data("checkerboard"))
    assert seconds == pytest.approx(1.0 + 100.0 * (duration.DOPRI5_EVALUATIONS + 1))


def test_timing_leaves_the_generators_of_torch_alone():
    plan = tiny("lsd")
    objective = plan.stages[-1].build(initial.new_map(plan.recipe, (2,), None), None)
    before = torch.get_rng_state()
    duration.step_seconds(plan.recipe, objective, open_data("checkerboard"))
    assert torch.equal(torch.get_rng_state(), before)
