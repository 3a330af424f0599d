"""Learning maps of images: every recipe and method, interruptions, teachers of other runs, bfloat16."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import image_cases
import pytest
import torch
from amount import named, pairs_of
from image_cases import DIT, SMALL, TINY, UNET, images, trained
from program import refused, run
from run_cases import open_run, weights

from flowmaps.evaluation.rows import metrics_rows
from flowmaps.maps import Target
from flowmaps.methods import METHODS
from flowmaps.runs import initial, recipes
from flowmaps.runs.folder import RunFolder, open_source
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import RECIPES, ImageRecipe
from flowmaps.shapes import GuidedCondition
from flowmaps.storage import models
from flowmaps.training.loop import train
from flowmaps.training.state import begin

pytestmark = pytest.mark.usefixtures("small_images")

NAMES = [name for name in RECIPES if isinstance(RECIPES[name](), ImageRecipe)]


# recipes and methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_of_images_can_run(name: str):
    """It survives its JSON and its first stage takes a step, at a small size."""
    recipe = RECIPES[name]()
    resolve(recipe)
    assert recipe.name == name
    assert recipes.from_dict(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe
    assert recipe.labels is (name in ("cifar10-tiny", "images"))
    net = replace(recipe.unet, width=8, multipliers=(1,) * len(recipe.unet.multipliers), blocks=1, head=8)
    flow_map = initial.new_map(replace(recipe, unet=net), (3, 16, 16), 10 if recipe.labels else None)
    objective = resolve(recipe).stages[0].build(flow_map, None)
    state = begin(objective, recipe.optimiser, precision=torch.bfloat16)
    source = images(600, recipe.labels, 16)
    settings = replace(recipe.optimiser, batch=4)
    (step,) = train(state, source, settings, steps=1)
    assert bool(step.loss.value.isfinite())


@pairs_of(every=4, method=named(METHODS), backbone=named(["unet", "dit"]), guided={"plain": False, "guided": True})
def test_every_method_learns_images(method: str, backbone: Any, guided: bool):
    """Each stage moves weights of the network; labels and weights of guidance reach it."""
    recipe = replace(SMALL, method=method, backbone=backbone, guidance=(1.0, 3.0) if guided else ())
    resolve(recipe)
    source = images(labels=guided)
    flow_map = initial.new_map(recipe, source.shape, source.classes)
    settings = replace(recipe.optimiser, learning_rate=1e-3)
    for stage in resolve(recipe).stages:
        state = begin(stage.build(flow_map, Target(flow_map).velocity), settings)
        before = [p.detach().clone() for p in state.parameters.values()]
        steps = list(train(state, source, settings, steps=2))
        assert all(bool(step.loss.value.isfinite()) for step in steps)
        assert any(not torch.equal(a, b) for a, b in zip(before, state.parameters.values(), strict=True))
    x, half = torch.zeros(2, *source.shape), torch.tensor([0.5, 0.25])
    cond = GuidedCondition(torch.tensor([0, 3]), torch.tensor([1.0, 3.0])) if guided else None
    assert flow_map(x, half, half + 0.2, cond).shape == x.shape
    assert initial.network_of(flow_map).arguments["classes"] == (4 if guided else None)


def test_images_have_no_labels_unless_they_are_asked_for():
    for labels, classes in ((False, None), (True, 10)):
        source = open_source(replace(SMALL, data="cifar10", labels=labels))
        assert source.classes == classes


def test_dropout_is_for_the_teacher_alone(tmp_path: Path):
    run_ = open_run(replace(SMALL, unet=replace(UNET, dropout=0.3)), tmp_path / "run")
    shares = {stage.name: {m.p for m in run_.flow_map.modules() if isinstance(m, torch.nn.Dropout)}
              for stage, _ in run_.train()}  # fmt: skip
    assert shares == {"teacher": {0.3}, "map": {0.0}}


# interruptions -------------------------------------------------------------------------------------------------------

CASES = {
    "lmd": replace(SMALL, unet=replace(UNET, dropout=0.2)),
    "lsd-bfloat16": replace(SMALL, method="lsd", precision="bfloat16", unet=replace(UNET, dropout=0.2)),
    "emd-dit": replace(SMALL, method="emd", backbone="dit", labels=True, guidance=(1.0, 2.0)),
    "progressive-bfloat16": replace(SMALL, method="progressive_distillation", precision="bfloat16"),
}


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, image_data: Path, tmp_path_factory: pytest.TempPathFactory):
    recipe = replace(CASES[request.param], data=str(image_data / "cifar10"))
    return recipe, trained(recipe, tmp_path_factory.mktemp("whole") / "run")


@pairs_of(every=2, indirect=["whole"], whole=named(CASES), after=named([1, 3, 4, 6]))
def test_a_resumed_run_is_the_same_to_the_bit(whole: tuple[ImageRecipe, Path], tmp_path: Path, after: int):
    """Dropout, Adam's moments in the memory format of convolutions, and a target that follows go on as they were."""
    recipe, expected = whole
    steps = open_run(recipe, tmp_path / "run").train()
    for _ in range(after):
        next(steps)
    steps.close()
    list(open_run(recipe, tmp_path / "run", resume=True).train())
    assert weights(tmp_path / "run") == weights(expected)
    assert image_cases.losses(tmp_path / "run") == image_cases.losses(expected)


# bfloat16 ------------------------------------------------------------------------------------------------------------


def test_weights_stay_in_float32_where_networks_compute_in_bfloat16(tmp_path: Path):
    seen: set[torch.dtype] = set()
    run_ = open_run(replace(SMALL, precision="bfloat16"), tmp_path / "run")
    for layer in run_.flow_map.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda m, inputs, out: seen.add(out.dtype))
    for _, step in run_.train():
        assert step.loss.value.dtype == torch.float32
    assert torch.bfloat16 in seen
    assert {p.dtype for p in run_.flow_map.parameters()} == {torch.float32}
    opened = RunFolder.open(tmp_path / "run")
    flow_map, teacher, source = opened.load_map(), opened.load_teacher(), opened.open_source()
    seen.clear()
    for layer in (*flow_map.modules(), *teacher.modules()):  # type: ignore[union-attr]
        layer.register_forward_hook(lambda m, inputs, out: seen.add(out.dtype))
    list(metrics_rows(opened.plan, flow_map, teacher, source, 0))
    assert seen == {torch.float32}


# a teacher of another run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(image_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A velocity alone."""
    recipe = replace(SMALL, name="teacher", method="flow_matching", data=str(image_data / "cifar10"))
    return trained(recipe, tmp_path_factory.mktemp("teacher") / "run")


def test_a_map_begins_as_the_teacher_that_is_given(teacher: Path, tmp_path: Path):
    recipe = replace(SMALL, teacher=str(teacher))
    given = models.load(teacher)
    opened = open_run(recipe, tmp_path / "run")
    x, s, t = torch.randn(5, 3, 8, 8), torch.full((5,), 0.2), torch.full((5,), 0.9)
    opened.flow_map.eval()
    with torch.no_grad():
        torch.testing.assert_close(opened.flow_map(x, s, t), x + 0.7 * given.velocity(x, s))
        torch.testing.assert_close(opened.flow_map.velocity(x, s), given.velocity(x, s))
    opened.flow_map.train()
    stages = [stage.name for stage, _ in opened.train()]
    assert stages == ["map"] * SMALL.steps
    kept = RunFolder.open(tmp_path / "run").load_teacher()
    for a, b in zip(kept.parameters(), given.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(a, b)
    part = open_run(recipe, tmp_path / "part").train()
    next(part), next(part), part.close()
    list(open_run(recipe, tmp_path / "part", resume=True).train())
    assert weights(tmp_path / "part") == weights(tmp_path / "run")


def test_a_run_from_a_given_teacher_is_measured(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Also when the teacher is named from where it is, and has gone by then."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "velocity").symlink_to(teacher)
    monkeypatch.chdir(there)
    words = [*TINY, "--teacher", "velocity", "--evaluation.steps", 1, "--unet.dropout", 0.1]
    run("train", "cifar10-emd", "--out", tmp_path / "run", *words)
    (there / "velocity").unlink()
    monkeypatch.chdir(tmp_path)
    run("evaluate", tmp_path / "run", "--steps", 2)
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert [row["sampler"] for row in rows] == ["teacher", "teacher", "map"]
    assert "has finished training" in refused(capsys, "train", "cifar10-emd", "--out", "run", *words, "--resume")


REFUSED = [
    ({"data": "imagenet32"}, "trained on other data"),
    ({"labels": True}, "trained on other data, .*3 x 8 x 8, no classes.* than .*3 x 8 x 8, 10 classes"),
    ({"resolution": 16}, "trained on other data, .*3 x 8 x 8.* than .*3 x 16 x 16"),
    ({"unet": replace(UNET, width=16, head=16)}, "the network of the teacher is not that of the recipe .*width"),
    ({"backbone": "dit", "dit": DIT}, "the network of the teacher is not that of the recipe"),
    ({"method": "lsd"}, "lsd has no teacher, got --teacher"),
    ({"interpolant": "trigonometric"}, "on the path linear, lmd takes Trigonometric"),
    ({"method": "scd"}, "on the path linear"),
    ({"teacher": "nowhere"}, "there is no folder .*nowhere"),
    ({"teacher": "."}, "no config.json"),
    ({"teacher": "bare"}, "holds a map saved by flowmaps.save, not a run"),
]


@pytest.mark.parametrize("changes, said", REFUSED)
def test_teachers_that_are_refused(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if changes.get("teacher") == "bare":
        models.save(models.load(teacher), "bare")
    with pytest.raises(ValueError, match=said) as caught:
        open_run(replace(SMALL, **{"teacher": str(teacher), **changes}), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_guidance_knows_no_label(tmp_path: Path):
    """--guidance 1 drops labels and guides nothing: so a teacher is trained for a map with weights."""
    taught = replace(SMALL, labels=True, method="flow_matching")
    guided = replace(SMALL, labels=True, guidance=(1.0, 3.0), teacher=str(tmp_path / "plain"))
    trained(taught, tmp_path / "plain")
    needed = "for lmd with --guidance, train the teacher with --guidance 1"
    with pytest.raises(ValueError, match=f"without --guidance: {needed}"):
        open_run(guided, tmp_path / "run")
    trained(replace(taught, guidance=(2.0,)), tmp_path / "strong")
    with pytest.raises(ValueError, match=f"with --guidance 2: {needed}"):
        open_run(replace(guided, teacher=str(tmp_path / "strong")), tmp_path / "run")
    trained(replace(taught, guidance=(1.0,)), tmp_path / "dropped")
    trained(replace(guided, teacher=str(tmp_path / "dropped")), tmp_path / "run")


# devices -------------------------------------------------------------------------------------------------------------


@pairs_of(every=4, method=named(METHODS))
def test_all_is_drawn_on_the_device_of_the_data(method: str, monkeypatch: pytest.MonkeyPatch):
    """A draw with a generator names its device; without, it would fail where the generator is on a GPU."""
    recipe = replace(SMALL, method=method, guidance=(1.0, 3.0))
    source = images()
    flow_map = initial.new_map(recipe, source.shape, source.classes)
    drawn: list[str] = []

    def watched(name: str):
        draw = getattr(torch, name)

        def checked(*arguments: Any, **options: Any) -> torch.Tensor:
            if options.get("generator") is not None:
                assert options.get("device") == options["generator"].device, name
                drawn.append(name)
            return draw(*arguments, **options)

        return checked

    for name in ("rand", "randn", "randint", "randperm"):
        monkeypatch.setattr(torch, name, watched(name))
    for stage in resolve(recipe).stages:
        state = begin(stage.build(flow_map, Target(flow_map).velocity), recipe.optimiser)
        list(train(state, source, recipe.optimiser, steps=1))
    assert {"randint", "randn", "rand"} <= set(drawn)


def test_checkpointing_changes_no_gradient_where_weights_are_held():
    """ctm carries both sides on by the map with its weights held fixed, by a call that is gone by the backward pass."""
    found = []
    for checkpointing in (False, True):
        recipe = replace(SMALL, method="ctm", activation_checkpointing=checkpointing)
        flow_map = initial.new_map(recipe, (3, 8, 8), None)
        for parameter in flow_map.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
        objective = resolve(recipe).stages[-1].build(flow_map, Target(flow_map).velocity)
        x1 = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        objective(x1, generator=torch.Generator().manual_seed(2), progress=0.5).value.backward()
        found.append([p.grad for p in flow_map.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert max(float(grad.abs().max()) for grad in found[0]) > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
