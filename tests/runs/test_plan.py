"""Recipes and plans: what a stage trains, and that its objective, compiled, is the one that is written."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flowmaps.interpolants import Linear
from flowmaps.maps import FlowMap, Target
from flowmaps.methods import METHODS, Jumps, LearnsFrom, Method, lsd
from flowmaps.objectives import Objective
from flowmaps.runs import initial, recipes
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import Network, Recipe
from flowmaps.runs.stages import choices_of
from flowmaps.samplers import Jump
from flowmaps.shapes import GuidedCondition, label_of
from flowmaps.solvers import integrate

SMALL = dataclasses.replace(
    recipes.checkerboard(), network=Network(width=12, depth=3, space_frequencies=2, time_frequencies=2, modulation=4)
)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lmd", "lsd"])
def test_the_recipes_own_objective_is_the_same_compiled(method: str):
    """Features, modulation, adaptive weight, mixed times: what the command line trains."""
    recipe = dataclasses.replace(SMALL, method=method)
    flow_map = initial.new_map(recipe, (2,), None)
    with torch.no_grad():
        for parameter in flow_map.parameters():  # nothing is left at zero
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    objective = resolve(recipe).stages[-1].build(flow_map, Target(flow_map).velocity)
    draw = objective.draw(torch.randn(37, 2), generator=torch.Generator().manual_seed(1))
    losses, gradients = [], []
    for evaluate in (objective.evaluate, torch.compile(objective.evaluate, dynamic=False)):
        loss = evaluate(draw).value
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, list(flow_map.parameters())))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    scale = max(g.abs().max() for g in gradients[0])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=float(1e-5 * scale))


def test_every_method_has_its_plan():
    """All stages of a method share one budget of steps."""
    taught, strip = [("teacher", 4_000), ("map", 16_000)], [("strip", 10_000), ("map", 10_000)]
    expected = {LearnsFrom.TEACHER: taught, LearnsFrom.VELOCITY: taught, LearnsFrom.STRIP: strip}
    for name, method in METHODS.items():
        stages = resolve(dataclasses.replace(SMALL, method=name)).stages
        assert tuple(stage.name for stage in stages) == method.stages
        got = [(stage.name, stage.steps) for stage in stages]
        assert got == expected.get(method.learns_from, [("map", 20_000)]), name


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.jumps is Jumps.TO_DATA])
@pytest.mark.parametrize("times", ["triangle", "square"])
def test_a_recipe_leaves_jumps_to_the_data_at_t_1(name: str, times: str):
    """Settings that pass the recipe's pairs to such a method would train other jumps than its sampler takes."""
    recipe = dataclasses.replace(SMALL, method=name, times=times)
    objective = resolve(recipe).stages[-1].build(initial.new_map(recipe, (2,), None), lambda x, t, cond=None: -x)
    for progress in (0.0, 0.5, 1.0):
        s, t, *_ = objective.draw_times(torch.zeros(200, 2), torch.Generator().manual_seed(0), progress)
        assert bool((t == 1)[s != t].all())
        assert bool((s != t).sum() > 50)


def test_what_the_recipe_leaves_to_a_method_is_not_passed():
    """So that a function of somebody's own may have defaults other than None."""
    passed: dict[str, object] = {}

    def own(flow_map: FlowMap, *, weight: object = 2, **options: object) -> Objective:
        passed.update(options, weight=weight)
        return lsd(flow_map)

    path = Linear()
    Method(own).build(initial.new_map(SMALL, (2,), None), choices_of(SMALL, path))
    assert passed == {"interpolant": path, "weight": 2}


def test_a_teacher_is_trained_late_and_a_map_from_the_base():
    """t <- 1 - (1 - t)^2 has mean 2 / 3; a quarter of a distillation's rows start at s = 0."""
    teacher, distilled = resolve(SMALL).stages
    flow_map = initial.new_map(SMALL, (2,), None)
    x1, source = torch.randn(40_000, 2), torch.Generator().manual_seed(0)
    s, t = teacher.build(flow_map, None).draw(x1, generator=source)[3:5]
    assert torch.equal(s, t)
    assert abs(t.mean() - 2 / 3) < 4 * (4 / 45) ** 0.5 / 200
    s, t = distilled.build(flow_map, Target(flow_map).velocity).draw(x1, generator=source)[3:5]
    assert bool((s <= t).all())
    assert abs((s == 0).float().mean() - 0.25) < 4 * (0.25 * 0.75) ** 0.5 / 200


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_survives_its_json(name: str):
    recipe = recipes.RECIPES[name]()
    assert recipes.from_dict(dataclasses.asdict(recipe)) == recipe


def test_maps_are_a_function_of_the_seed():
    one, same, other = (initial.new_map(dataclasses.replace(SMALL, seed=k), (2,), None).state_dict() for k in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["net.last.weight"], other["net.last.weight"])


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="unknown method 'lmx': did you mean 'lmd'\\? choose one of lmd, "):
        resolve(Recipe(name="x", method="lmx"))


def test_a_velocity_alone_is_sampled_by_eulers_steps():
    recipe = dataclasses.replace(SMALL, method="flow_matching")
    flow_map = initial.new_map(recipe, (2,), None)
    x, zero = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(9)
    sampled = Jump(4)(resolve(recipe).as_sampled(flow_map, None)[0], x)
    torch.testing.assert_close(sampled, integrate(flow_map.velocity, x, zero, zero + 1, method="euler", steps=4))
    assert not torch.allclose(sampled, Jump(4)(flow_map, x), atol=1e-3)


def test_a_map_from_noise_alone_is_measured_in_one_step():
    plan = resolve(dataclasses.replace(SMALL, method="freeflow"))
    assert plan.evaluation().steps == plan.supported_steps([4]) == (1,)
    with pytest.raises(ValueError, match="freeflow learns jumps from noise alone: its map is sampled in 1 step, got 4"):
        plan.check_steps([4])


def rates(recipe: Recipe) -> list[float]:
    """The learning rate of each stage."""
    return [stage.optimiser.learning_rate for stage in resolve(recipe).stages]


def test_an_unstable_method_trains_its_map_at_a_lower_rate():
    recipe, rate = dataclasses.replace(SMALL, method="easy_consistency_tuning"), SMALL.optimiser.learning_rate
    assert rates(recipe) == [rate, recipe.unstable_rate_scale * rate]
    assert rates(SMALL) == [rate, rate]


@pytest.mark.parametrize("method", METHODS)
def test_guidance_reaches_each_method(method: str):
    """A teacher knows labels and none, unguided; the map is guided, by weights that are drawn and given to it."""
    recipe = dataclasses.replace(SMALL, method=method, guidance=(1.0, 3.0))
    flow_map = initial.new_map(recipe, (2,), 5)
    stages = resolve(recipe).stages
    x1, labels = torch.randn(64, 2), torch.arange(64) % 5
    for stage in stages:
        objective = stage.build(flow_map, Target(flow_map).velocity)
        cond = objective.draw(x1, cond=labels, generator=torch.Generator().manual_seed(0), progress=1.0).cond
        taught = stage.name == "teacher" and not METHODS[method].copies_teacher
        assert isinstance(cond, GuidedCondition) is not taught
        assert bool((label_of(cond) == 5).any())
        objective.evaluate(objective.draw(x1, cond=labels, progress=1.0)).value.backward()


def test_guidance_needs_classes():
    with pytest.raises(ValueError, match="--guidance is for data with classes, checkerboard has none"):
        initial.new_map(dataclasses.replace(SMALL, guidance=(2.0,)), 2, None)


def test_a_map_learns_at_its_share_of_the_teachers_rate() -> None:
    recipe = dataclasses.replace(recipes.checkerboard(), map_rate_scale=0.25)
    rate = recipe.optimiser.learning_rate
    assert rates(recipe) == [rate, 0.25 * rate]
    assert rates(dataclasses.replace(recipe, method="lsd")) == [rate]
