"""What a recipe changes of the defaults of a method's own function is listed, all of it, and told by the program."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flowmaps import methods
from flowmaps.cli import main as cli
from flowmaps.methods import METHODS
from flowmaps.objectives import Objective, SplitRows, Sum
from flowmaps.runs import recipes
from flowmaps.runs.changes import changes, in_words, lines, objectives
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import RECIPES, Recipe
from flowmaps.runs.stages import Stage
from flowmaps.times import Diagonal, TowardsData
from flowmaps.training import identity

SAME = ("flow_map", "velocity")  # of the two maps; and what follows from the path, the teacher and the guidance


def described(objective: Objective) -> dict[str, Any]:
    """The parts of an objective as a resume tells them apart, by the options of a method's function."""
    if isinstance(objective, SplitRows):
        names = {"times": "diagonal", "weight": "diagonal_weight"}
        first = {names.get(name, name): parts for name, parts in described(objective.first).items()}
        return {**first, **described(objective.second), "share": objective.share}
    if isinstance(objective, Sum):
        return {**described(objective.terms[0]), "scales": objective.scales}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for path, value in identity._Parts(objective).of("objective", objective):
        name, _, rest = path.removeprefix("objective").removeprefix(".").partition(".")
        if name == "equation" and rest:
            name, _, rest = rest.partition(".")
        if name not in SAME:
            found.setdefault(name, {})[rest] = value
    return found


def differences(stage: Stage, recipe: Recipe) -> set[str]:
    """The options in which the two objectives of a stage differ."""
    one, other = map(described, objectives(stage, recipe))
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def recipe_of(method: str, **changed: object) -> Recipe:
    return dataclasses.replace(recipes.checkerboard(), method=method, **changed)  # type: ignore[arg-type]


OTHER = {"learned_weight": True, "times": "square", "stop_gradient": "target", "interpolant": "trigonometric"}


@pytest.mark.parametrize(("method", "changed"), [*((m, {}) for m in METHODS), ("emd", OTHER), ("alphaflow", OTHER)])
def test_each_difference_of_the_two_objectives_is_listed(method: str, changed: dict[str, object]):
    recipe = recipe_of(method, **changed)
    for stage in resolve(recipe).stages:
        listed = changes(stage, recipe)
        assert set(listed) == differences(stage, recipe), stage.name
        assert all(own != here for own, here in listed.values())


def test_what_the_recipe_of_the_checkerboard_changes():
    """Where `fm.methods.lmd(...)` and `--method lmd` differ: stop, weight, law, and the share at s = 0."""
    recipe = recipe_of("lmd")
    teacher, distilled = (changes(stage, recipe) for stage in resolve(recipe).stages)
    assert teacher == {"times": ("Diagonal()", "TowardsData(Diagonal())")}
    assert distilled == {
        "times": ("Square()", "Mixture(FromBase(), Triangle(), 0.25)"),
        "weight": ("Constant()", "Adaptive(0.5, 0.01)"),
        "stop": ("Stop.NONE", "Stop.VELOCITY"),
    }
    recipe = recipe_of("lsd")
    assert changes(resolve(recipe).stages[-1], recipe) == {
        "diagonal": ("Diagonal()", "TowardsData(Diagonal())"),
        "times": ("Triangle()", "Mixture(FromBase(), Triangle(), 0.25)"),
        "weight": ("Constant()", "Adaptive(0.5, 0.01)"),
    }


@pytest.mark.parametrize(
    ("method", "changed", "listed"),
    [
        ("lsd", {"diagonal_share": 0.5}, {"share": ("0.75", "0.5")}),
        ("lsd", {"target_decay": 0.99}, {"target": ("None", "Target(decay=0.99)")}),
        ("tvm", {"target_decay": 0.0}, {"target": ("Target(decay=0.99)", "Target(decay=0)")}),
        ("shortcut", {"target_decay": 0.9}, {"target": ("None", "Target(decay=0.9)")}),
        (
            "psd",
            {"learned_weight": True},
            {"weight": ("Constant()", "Learned()"), "diagonal_weight": ("Constant()", "Learned()")},
        ),
    ],
)
def test_what_options_of_some_methods_change(method: str, changed: dict[str, Any], listed: dict[str, Any]):
    usual, recipe = recipe_of(method), recipe_of(method, **changed)
    before, after = (changes(resolve(one).stages[-1], one) for one in (usual, recipe))
    assert {name: pair for name, pair in after.items() if before.get(name) != pair} == listed


def test_the_weight_of_a_noisy_residual_is_constant_for_points_and_the_papers_for_images():
    images = dataclasses.replace(recipes.RECIPES["images"](), data="x")
    for recipe, chosen in (
        (recipe_of("meanflow"), "Constant()"),
        (dataclasses.replace(images, method="meanflow"), None),
    ):
        for name, weight in (("auto", chosen), ("constant", "Constant()"), ("paper", None)):
            one = dataclasses.replace(recipe, mean_weight=name)
            found = changes(resolve(one).stages[-1], one)
            assert found.get("weight") == (weight and ("Adaptive()", weight))


def test_a_recipe_at_the_methods_own_defaults_changes_nothing():
    plain = {"from_noise_share": 0.0, "adaptive_power": 0.0, "velocity_time_power": 1.0}
    recipe = recipe_of("lsd", **plain)
    assert changes(resolve(recipe).stages[-1], recipe) == {}
    assert in_words(TowardsData(Diagonal(), 1.0)) == "Diagonal()"  # which changes nothing


def test_guidance_is_listed():
    recipe = recipe_of("meanflow", guidance=(1.0, 3.0))
    own, here = changes(resolve(recipe).stages[-1], recipe, classes=5)["guidance"]
    assert (own, here) == ("None", "Guidance((1, 3), 5, mix=None)")


@pytest.mark.parametrize("name", ["checkerboard", "cifar10-meanflow"])
def test_help_says_what_a_recipe_changes(name: str, capsys: pytest.CaptureFixture[str]):
    """As the code has it now."""
    recipe = RECIPES[name]()
    with pytest.raises(SystemExit):
        cli.main(["train", name, "--help-all"])
    text = capsys.readouterr().out
    for stage in resolve(recipe).stages:
        assert f"{stage.name}, fm.methods.{stage.function.__name__}: " in text
        assert changes(stage, recipe)
        for option, (own, here) in changes(stage, recipe).items():
            assert f"{option} {own} -> {here}" in text


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_tells_its_changes(name: str):
    plan = resolve(RECIPES[name]())
    assert [line.partition(",")[0] for line in lines(plan)] == [stage.name for stage in plan.stages]


def test_the_functions_keep_their_own_defaults():
    """The list is told against the function that a user calls."""
    recipe = recipe_of("esd")
    (stage,) = resolve(recipe).stages
    assert stage.function is methods.esd
