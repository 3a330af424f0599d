"""Recipes and plans: what a stage trains, and that its objective, compiled, is the one that is written."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flowmaps import methods, plans, recipes
from flowmaps.maps import Frozen
from flowmaps.recipes import Network, Recipe

SMALL = dataclasses.replace(
    recipes.checkerboard(), network=Network(width=12, depth=3, space_frequencies=2, time_frequencies=2, modulation=4)
)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lmd", "lsd"])
def test_the_recipes_own_objective_is_the_same_compiled(method: str):
    """Features, modulation, adaptive weight, mixed times: what the command line trains."""
    recipe = dataclasses.replace(SMALL, method=method)
    flow_map = plans.new_map(recipe, 2, None)
    with torch.no_grad():
        for parameter in flow_map.parameters():  # nothing is left at zero
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    objective = plans.stages(recipe)[-1].build(flow_map, Frozen(flow_map).velocity)
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
    """Each function of `flowmaps.methods` is a `--method`, and each has its stages: all of them share one budget."""
    assert set(plans.METHODS) == set(methods.__all__) - {"Options"}
    assert set(plans.TO_DATA + plans.ROTATING) <= set(plans.METHODS)
    taught, strip = [("teacher", 4_000), ("map", 16_000)], [("strip", 10_000), ("map", 10_000)]
    for method in plans.METHODS:
        got = [(stage.name, stage.steps) for stage in plans.stages(dataclasses.replace(SMALL, method=method))]
        alone = strip if method in plans.STRIPPED else [("map", 20_000)]
        assert got == (taught if method in plans.DISTILLED + plans.PRETRAINED else alone), method


def test_a_teacher_is_trained_late_and_a_map_from_the_base():
    """t <- 1 - (1 - t)^2 has mean 2 / 3; a quarter of a distillation's rows start at s = 0."""
    teacher, distilled = plans.stages(SMALL)
    flow_map = plans.new_map(SMALL, 2, None)
    x1, source = torch.randn(40_000, 2), torch.Generator().manual_seed(0)
    s, t = teacher.build(flow_map, None).draw(x1, generator=source)[3:5]
    assert torch.equal(s, t)
    assert abs(t.mean() - 2 / 3) < 4 * (4 / 45) ** 0.5 / 200
    s, t = distilled.build(flow_map, Frozen(flow_map).velocity).draw(x1, generator=source)[3:5]
    assert bool((s <= t).all())
    assert abs((s == 0).float().mean() - 0.25) < 4 * (0.25 * 0.75) ** 0.5 / 200


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_survives_its_json(name: str):
    recipe = recipes.RECIPES[name]()
    assert recipes.from_dict(dataclasses.asdict(recipe)) == recipe


def test_maps_are_a_function_of_the_seed():
    one, same, other = (plans.new_map(dataclasses.replace(SMALL, seed=k), 2, None).state_dict() for k in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["net.last.weight"], other["net.last.weight"])


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="unknown method 'lmx': did you mean 'lmd'\\? choose one of lmd, emd"):
        plans.stages(Recipe(name="x", method="lmx"))
