"""Methods on one budget: what training a method takes, and teachers that are shared."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowmaps import maps, methods, nn
from flowmaps.data import open_data
from flowmaps.evaluation import budget
from flowmaps.evaluation.compare import Comparison
from flowmaps.guidance import Guidance
from flowmaps.interpolants import Linear, WithNoise
from flowmaps.objectives import Loss, MapMatching, VelocityMatching
from flowmaps.runs.plan import Plan, resolve
from flowmaps.runs.recipes import checkerboard
from flowmaps.velocities import RandomInputs


def tiny(method: str, batch: int = 16) -> Plan:
    recipe = checkerboard()
    network = replace(recipe.network, width=8, depth=2)
    optimiser = replace(recipe.optimiser, batch=batch)
    return resolve(replace(recipe, method=method, compile=False, network=network, optimiser=optimiser))


def test_memory_is_of_the_objective_and_grows_with_the_batch(tmp_path: Path):
    def needed(method: str, batch: int) -> float:
        return budget.train_method(tiny(method, batch), open_data("checkerboard"), 0.05, tmp_path)[2]["mb_per_step"]

    plain = needed("flow_matching", 1000)
    assert needed("lsd", 1000) > 1.5 * plain  # derivatives
    assert needed("flow_matching", 4000) == pytest.approx(4 * plain, rel=0.1)


def test_the_time_of_a_step_is_the_median(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(budget, "take_steps", lambda *_: ([1.0, 0.002, 0.001, 0.003, 0.002], True))
    training = budget.train_method(tiny("lsd"), open_data("checkerboard"), 1.0, tmp_path)[2]
    assert training["ms_per_step"] == 2.0


def test_a_method_is_trained_in_the_precision_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan, seen, evaluate = tiny("flow_matching"), set(), VelocityMatching.evaluate

    def watched(self: VelocityMatching, inputs: RandomInputs) -> Loss:
        seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return evaluate(self, inputs)

    monkeypatch.setattr(VelocityMatching, "evaluate", watched)
    for precision in ("float32", "bfloat16"):
        changed = replace(plan, recipe=replace(plan.recipe, precision=precision))
        budget.train_method(changed, open_data("checkerboard"), 0.05, tmp_path)
        assert seen == {getattr(torch, precision)}
        seen.clear()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_method_that_takes_no_step_has_diverged_however_short_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    evaluate = VelocityMatching.evaluate

    def lost(self: VelocityMatching, inputs: RandomInputs) -> Loss:
        loss = evaluate(self, inputs)
        root = (0 * next(self.parameters()).square().sum()).sqrt()  # zero, with a gradient that is not finite
        return Loss(loss.value * math.nan if where == "loss" else loss.value + root, loss.parts)

    monkeypatch.setattr(VelocityMatching, "evaluate", lost)
    plan = tiny("flow_matching")
    assert budget.train_method(plan, open_data("checkerboard"), 4, tmp_path, unit="steps")[2]["diverged"]
    monkeypatch.setattr(VelocityMatching, "evaluate", evaluate)
    assert "diverged" not in budget.train_method(plan, open_data("checkerboard"), 4, tmp_path, unit="steps")[2]


def test_paths_of_one_kind_with_other_numbers_have_teachers_of_their_own():
    stage, files = tiny("lmd").stages[0], set()
    for strength in (0.01, 2.0, 2.0):
        path = WithNoise(Linear(), strength)
        objective = VelocityMatching(maps.AverageVelocity(nn.MLP(2)), path)
        files.add(budget.teacher_file(stage, objective, 1.0, 0))
    assert len(files) == 2
    floors = {
        budget.teacher_file(stage, VelocityMatching(maps.Endpoint(nn.MLP(2), floor), Linear()), 1.0, 0)
        for floor in (1e-3, 0.1)
    }
    assert len(floors) == 2


def test_the_name_of_a_teacher_stays():
    """Under another name a comparison or search that goes on would train its teacher again, and mix the two."""
    stage = resolve(replace(checkerboard(), method="lmd")).stages[0]
    objective = stage.build(maps.AverageVelocity(nn.MLP(2)), None)
    assert budget.teacher_file(stage, objective, 24, 0) == (
        "teacher-AverageVelocity-Linear-24-seconds-0-7d208d.safetensors"
    )


def test_a_teacher_of_another_network_is_told(tmp_path: Path):
    source = open_data("checkerboard")
    budget.train_method(tiny("lmd"), source, 4, tmp_path, unit="steps")
    other = tiny("emd")
    wider = resolve(replace(other.recipe, network=replace(other.recipe.network, width=9)))
    with pytest.raises(ValueError, match="is the teacher of another network: compare methods of unlike networks in"):
        budget.train_method(wider, source, 4, tmp_path, unit="steps")


def test_a_teacher_that_is_damaged_is_to_be_deleted(tmp_path: Path):
    source = open_data("checkerboard")
    training = budget.train_method(tiny("lmd"), source, 4, tmp_path, unit="steps")[2]
    path = tmp_path / training["teacher"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"teacher-.* is damaged: delete it, and it is trained again"):
        budget.train_method(tiny("emd"), source, 4, tmp_path, unit="steps")
    path.unlink()
    budget.train_method(tiny("emd"), source, 4, tmp_path, unit="steps")


def test_a_teacher_that_is_loaded_is_the_one_that_was_saved(tmp_path: Path):
    source = open_data("checkerboard")
    _, first, _ = budget.train_method(tiny("lmd"), source, 0.3, tmp_path)
    _, second, training = budget.train_method(tiny("emd"), source, 0.3, tmp_path)
    assert first is not None
    assert second is not None
    old, new = first.state_dict(), second.state_dict()
    assert all(bool((old[name] == new[name]).all()) for name in old)
    assert (tmp_path / training["teacher"]).exists()


def test_a_teacher_that_diverges_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(budget, "train_stage", lambda *_, **__: {"ms_per_step": 1.0, "diverged": True})
    _, teacher, training = budget.train_method(tiny("lmd"), open_data("checkerboard"), 1.0, tmp_path)
    assert teacher is None
    assert training["diverged"]
    assert list(tmp_path.iterdir()) == []


def test_terms_that_take_turns_have_had_theirs_before_the_clock_starts_and_a_step_costs_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clocks, plan = list[str](), tiny("lsd")
    plan = resolve(replace(plan.recipe, diagonal_share=0.9, off_diagonal_every=8))
    evaluate = MapMatching.evaluate

    def watched(self: MapMatching, inputs: RandomInputs) -> Loss:
        clocks.append("term")
        return evaluate(self, inputs)

    def clock() -> float:
        clocks.append("clock")
        return float(clocks.count("clock"))

    monkeypatch.setattr(MapMatching, "evaluate", watched)
    monkeypatch.setattr(
        budget, "take_steps", lambda steps, *_: (next(steps), [0.001] * 7 + [0.009] + [0.001], True)[1:]
    )
    training = budget.train_method(plan, open_data("checkerboard"), 100.0, tmp_path, clock=clock)[2]
    assert clocks.index("term") < clocks.index("clock")  # it is compiled by then
    assert training["ms_per_step"] == 2.0


def test_a_teacher_that_learned_guidance_is_another_than_one_that_did_not():
    plan, names = tiny("progressive_distillation"), set()
    for guidance in (None, Guidance(1.0, classes=3), Guidance(2.0, classes=3)):
        stage = plan.stages[0]
        flow_map = maps.AverageVelocity(nn.MLP(2, classes=3))
        objective = methods.flow_matching(flow_map, interpolant=plan.interpolant, guidance=guidance)
        names.add(budget.teacher_file(stage, objective, 1.0, 0))
    assert len(names) == 3


@pytest.mark.parametrize("steps", [2, 3, 5, 7, 12])
@pytest.mark.parametrize("method", ["lmd", "pfmm", "lsd"])
def test_a_budget_in_steps_is_the_same_whatever_the_stages(method: str, steps: int, tmp_path: Path):
    training = budget.train_method(tiny(method), open_data("checkerboard"), steps, tmp_path, unit="steps")[2]
    assert sum(value for name, value in training.items() if name.endswith("_steps")) == steps


def test_a_map_without_a_step_after_its_warm_up_has_no_cost(tmp_path: Path):
    plan = resolve(replace(tiny("lmd").recipe, teacher_steps=16_000, steps=4_000))
    training = budget.train_method(plan, open_data("checkerboard"), 12, tmp_path, unit="steps")[2]
    assert (training["teacher_steps"], training["map_steps"]) == (10, 2)
    assert "ms_per_step" not in training  # which would be the teacher's


def test_fewer_steps_than_stages_are_refused_and_a_stage_without_steps_is_left_out(tmp_path: Path):
    with pytest.raises(ValueError, match="lmd has 2 stages, for which --budget-steps must be at least 2, got 1"):
        Comparison(tiny("lmd").recipe, ("lsd", "lmd"), 1, tmp_path / "new", unit="steps")
    assert not (tmp_path / "new").exists()
    plan = resolve(replace(tiny("pfmm").recipe, steps=1, teacher_steps=0))  # one step of strip, none of map
    training = budget.train_method(plan, open_data("checkerboard"), 0.01, tmp_path)[2]
    assert "map_steps" not in training
