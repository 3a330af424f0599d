"""The warm-up of a run: a stage between a teacher and any method, resumed to the bit; draws and turns of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import TINY, interrupt, kill, log, open_run, weights

from flowmaps.maps import Target
from flowmaps.methods import METHODS, Jumps
from flowmaps.objectives import Compare, SplitRows, TrajectoryMatching
from flowmaps.runs import initial
from flowmaps.runs.folder import RunFolder
from flowmaps.runs.plan import Plan, resolve
from flowmaps.runs.preflight import preflight
from flowmaps.runs.recipes import Optimiser
from flowmaps.runs.run import Run
from flowmaps.times import FromBase, Mixture, Triangle

WARM = replace(TINY, warm_up_steps=3, teacher_steps=2, steps=4)


def names(plan: Plan) -> list[tuple[str, int]]:
    return [(stage.name, stage.steps) for stage in plan.stages]


def test_the_stage_stands_between_a_teacher_and_every_method():
    """A method without a teacher has one trained first, whose steps are then not its own."""
    for name, method in METHODS.items():
        recipe = replace(WARM, method=name)
        if method.jumps is Jumps.NONE:
            with pytest.raises(ValueError, match=f"{name} learns no jumps, which a warm-up teaches"):
                resolve(recipe)
            continue
        rest = [("strip", 2), ("map", 2)] if "strip" in method.stages else [("map", 4)]
        assert names(resolve(recipe)) == [("teacher", 2), ("warm_up", 3), *rest], name
    assert "2 steps of teacher, then 3 steps of warm_up" in resolve(WARM).summary()
    assert [name for name, _ in names(resolve(replace(WARM, warm_up_steps=0)))] == ["teacher", "map"]


@pytest.mark.parametrize("method", METHODS)
def test_it_teaches_the_jumps_of_the_method(method: str):
    if METHODS[method].jumps is Jumps.NONE:
        return
    plan = resolve(replace(WARM, method=method))
    flow_map = initial.new_map(plan.recipe, (2,), None)
    loss = plan.stages[1].build(flow_map, Target(flow_map).velocity)
    assert isinstance(loss, TrajectoryMatching)
    to_data = METHODS[method].jumps is Jumps.TO_DATA
    assert loss.compare is (Compare.JUMP if to_data else Compare.VELOCITY)
    assert loss.interpolant == plan.interpolant
    draw = loss.draw(torch.randn(20, 2), generator=torch.Generator().manual_seed(0))
    assert bool((draw.t == 1).all()) is to_data
    assert (not draw.s.any()) is (METHODS[method].jumps is Jumps.FROM_BASE)
    if METHODS[method].jumps is Jumps.ANY:
        assert loss.times == Mixture(FromBase(), Triangle(), 0.25)
    assert loss.evaluate(draw).value.isfinite()


def test_it_learns_at_the_rate_of_what_learns_from_a_teacher():
    for method in ("lmd", "esd"):
        recipe = replace(WARM, method=method, map_rate_scale=0.3, unstable_rate_scale=0.1)
        assert resolve(recipe).stages[1].optimiser.learning_rate == pytest.approx(0.3e-2)


def test_the_method_goes_on_from_the_weights_of_the_warm_up(tmp_path: Path):
    """Also one that would start from jumps along the velocity."""
    for method in ("lsd", "easy_consistency_tuning"):
        recipe = replace(WARM, method=method, optimiser=replace(TINY.optimiser, ema_decay=0.0))
        run, before = open_run(recipe, tmp_path / method), None
        for stage, step in run.train():
            if stage.name == "map" and step.number == 1:
                before = run.folder.load_map("warm_up").state_dict()
        teacher = run.folder.load_map("teacher").state_dict()
        assert before is not None
        assert not all(torch.equal(teacher[name], value) for name, value in before.items())
        plan = resolve(recipe)
        started = initial.new_map(recipe, (2,), None)
        started.load_state_dict(before)
        plan.stages[-1].build(started, None)
        assert all(torch.equal(before[name], value) for name, value in started.state_dict().items())


CASES = {"lsd": {"draws": 2, "off_diagonal_every": 3, "optimiser": replace(TINY.optimiser, batch=18)}, "scd": {}}


@pytest.fixture(scope="module", params=CASES)
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    recipe = replace(WARM, method=request.param, checkpoint_every=2, log_every=1, **CASES[request.param])
    folder = tmp_path_factory.mktemp("warm") / "run"
    list(open_run(recipe, folder).train())
    return recipe, folder


@pytest.mark.parametrize("stop, after", [(interrupt, 1), (kill, 4), (interrupt, 5), (kill, 7)])
def test_a_resume_is_bit_identical(
    unbroken: tuple[Any, Path], tmp_path: Path, after: int, stop: Callable[[Run, int], None]
):
    recipe, expected = unbroken
    stop(open_run(recipe, tmp_path / "run"), after)
    list(open_run(recipe, tmp_path / "run", resume=True).train())
    assert weights(tmp_path / "run") == weights(expected)
    assert {"teacher", "warm_up"} <= {Path(name).parent.name for name in weights(expected)}
    assert log(tmp_path / "run") == log(expected)


def test_the_log_and_the_card_say_it(unbroken: tuple[Any, Path]):
    recipe, folder = unbroken
    lines = [line for line in log(folder) if line["stage"] == "warm_up"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["trajectory"] > 0 for line in lines)
    assert RunFolder.open(folder).recipe == recipe
    if recipe.off_diagonal_every == 3:
        kinds = ["lagrangian" in line for line in log(folder) if line["stage"] == "map"]
        assert kinds == [False, False, True, False]


def test_the_dry_run_says_it():
    said = "\n".join(preflight(WARM))
    assert "2 steps of teacher, then 3 steps of warm_up, then 4 steps of map" in said
    assert "warm_up, fm.methods.warm_up: " in said
    said = "\n".join(preflight(replace(TINY, method="lsd", draws=2, off_diagonal_every=4)))
    assert "draws 1 -> 2" in said
    assert "every 1 -> 4" in said


def test_a_teacher_of_another_run_is_taken(tmp_path: Path):
    """By a method that learns from data too, for the warm-up alone."""
    list(open_run(replace(TINY, method="flow_matching"), tmp_path / "teacher").train())
    recipe = replace(WARM, method="psd", teacher=str(tmp_path / "teacher"))
    assert names(resolve(recipe)) == [("warm_up", 3), ("map", 4)]
    list(open_run(recipe, tmp_path / "run").train())
    assert (tmp_path / "run" / "warm_up" / "weights.safetensors").exists()


REFUSED = [
    ({"from_run": "somewhere"}, "starts from the weights of --from-run has no warm-up, got --warm-up-steps 3"),
    ({"method": "lsd", "teacher_steps": 0}, "a warm-up trains a teacher first, .* --teacher-steps must be at least 1"),
    ({"method": "psd", "teacher": "some/model"}, "psd learns from data, and --teacher some/model is of another lib"),
    ({"method": "progressive_distillation", "guidance": (2.0,)}, "its teacher is guided already"),
]


@pytest.mark.parametrize("changes, words", REFUSED)
def test_what_goes_without_one_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        resolve(replace(WARM, **changes))


def test_turns_of_a_method_without_a_diagonal_are_refused_before_it_begins(tmp_path: Path):
    with pytest.raises(ValueError, match="in_turns is for an objective whose terms split the rows"):
        open_run(replace(TINY, method="lmd", off_diagonal_every=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_draws_and_turns_reach_every_stage():
    plan = resolve(replace(WARM, method="lsd", draws=3, off_diagonal_every=4, optimiser=Optimiser(batch=8)))
    flow_map = initial.new_map(plan.recipe, (2,), None)
    built = [stage.build(flow_map, Target(flow_map).velocity) for stage in plan.stages]
    assert [loss.draws for loss in built] == [3, 3, 3]
    assert isinstance(built[-1], SplitRows)
    assert built[-1].every == 4
