"""Previews: what is drawn of a stage that is trained, and that the training does not notice."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from image_cases import images
from matplotlib.image import imread
from run_cases import log, open_run

from flowmaps import guidance, maps
from flowmaps.cli import commands
from flowmaps.data import Points
from flowmaps.reports import pictures
from flowmaps.reports.pictures import previews
from flowmaps.runs import initial, recipes
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import Recipe
from flowmaps.runs.run import Run
from flowmaps.samplers import Jump, MultistepConsistency

SMALL = {
    "network": recipes.plane.Network(width=8, depth=2),
    "optimiser": recipes.fields.Optimiser(batch=16, ema_decays=(0.5,)),
    "steps": 6,
    "teacher_steps": 4,
    "compile": False,
    "device": "cpu",
    "log_every": 2,
}


def recipe(name: str = "checkerboard", **changes: object) -> Recipe:
    return dataclasses.replace(recipes.RECIPES[name](), **(SMALL | changes))


def followed(folder: Path, recipe: Recipe) -> Run:
    run = open_run(recipe, folder)
    commands.follow(run)
    return run


@pytest.mark.parametrize("options", [{"method": "lmd"}, {"method": "sct", "precision": "bfloat16"}])
def test_the_training_does_not_notice(options: dict, tmp_path: Path):
    """To the last bit: weights, other averages, and the log."""
    shown = followed(tmp_path / "shown", recipe(show_every=2, **options))
    plain = followed(tmp_path / "plain", recipe(show_every=0, **options))
    names = [f"{stage.name}-{k:08}.png" for stage in shown.plan.stages for k in range(2, stage.steps + 1, 2)]
    assert sorted(path.name for path in (tmp_path / "shown" / "previews").iterdir()) == sorted(names)
    assert not (tmp_path / "plain" / "previews").exists()
    assert all(a.equal(b) for a, b in zip(shown.flow_map.parameters(), plain.flow_map.parameters(), strict=True))
    for path in (tmp_path / "plain").rglob("*.safetensors"):
        assert (tmp_path / "shown" / path.relative_to(tmp_path / "plain")).read_bytes() == path.read_bytes()
    assert log(tmp_path / "shown") == log(tmp_path / "plain")


def test_the_averages_are_shown_from_the_same_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, seen = open_run(recipe(method="lsd"), tmp_path / "run"), []
    drawn = previews.preview_figure

    def preview_figure(plan, stage, flow_map, source):
        assert not flow_map.training
        seen.append([value.clone() for value in flow_map.parameters()])
        return drawn(plan, stage, flow_map, source)

    monkeypatch.setattr(previews, "preview_figure", preview_figure)
    for stage, step in run.train():
        if step.number == 3:
            assert run.trainer is not None
            state = run.trainer._state
            random, mode = torch.get_rng_state(), state.objective.flow_map.training
            first, again = (pictures.preview(run, stage.name, number, print) for number in (3, 4))
            assert first is not None
            assert again is not None
            assert first == tmp_path / "run" / "previews" / "map-00000003.png"
            shots = [imread(path) for path in (first, again)]
            assert np.array_equal(shots[0][40:], shots[1][40:])
            assert not np.array_equal(shots[0][:40], shots[1][:40])  # the number of the step
            assert torch.get_rng_state().equal(random)
            assert state.objective.flow_map.training == mode
            main, own = state.averages.main, list(state.parameters.values())
            assert all(a.equal(b) for a, b in zip(seen[0], main, strict=True))
            assert not all(a.equal(b) for a, b in zip(seen[0], own, strict=True))


@pytest.mark.parametrize(
    "method,stage,titles",
    [
        ("lmd", "teacher", ["velocity, 8 Euler steps"]),
        ("lmd", "map", ["1 step", "4 steps"]),
        ("progressive_distillation", "teacher", ["velocity, 8 Euler steps"]),
        ("pfmm", "strip", ["4 steps"]),
        ("pfmm", "map", ["1 step", "4 steps"]),
        ("freeflow", "map", ["1 step"]),
        ("flow_matching", "map", ["1 step", "4 steps", "8 steps"]),
        ("sct", "map", ["1 step", "4 steps"]),
    ],
)
def test_each_stage_is_sampled_as_it_can_be(method: str, stage: str, titles: list[str]):
    own = recipe(method=method)
    found = previews.samplers_of_stage(resolve(own), stage, initial.new_map(own, (2,), None))
    assert [title for title, _, _ in found] == titles
    assert {entry.name for entry in resolve(own).stages} >= {stage}
    numbers = [len(how.grid) if isinstance(how, MultistepConsistency) else len(how.times) - 1 for _, _, how in found]
    assert all(str(number) in title for title, number in zip(titles, numbers, strict=True))


def test_a_teacher_is_shown_by_eulers_steps_along_its_guided_velocity():
    own = recipe("digits", method="lmd", guidance=(2.0,))
    flow_map = initial.new_map(own, (64,), 10).eval()
    for value in flow_map.parameters():
        torch.nn.init.normal_(value, std=0.2)
    ((_, sampler, how),) = previews.samplers_of_stage(resolve(own), "teacher", flow_map)
    assert how == Jump(8)
    x, labels = torch.randn(5, 64), torch.arange(5)
    found, expected = x, x
    for k in range(8):
        s, t = torch.full((5,), k / 8), torch.full((5,), (k + 1) / 8)
        found = sampler(found, s, t, labels)
        none, label = flow_map.velocity(expected, s), flow_map.velocity(expected, s, labels)
        expected = expected + (none + 2 * (label - none)) / 8
    torch.testing.assert_close(found, expected)
    assert (found - flow_map(x, 0 * t, 0 * t + 1, labels)).abs().max() > 1e-2


def test_a_range_of_guidance_is_shown_at_its_lower_end():
    own = recipe("digits", method="lsd", guidance=(1.5, 3.0))
    found = previews.samplers_of_stage(resolve(own), "map", initial.new_map(own, (64,), 10))
    assert all(isinstance(sampler, guidance.AtWeight) and sampler.weight == 1.5 for _, sampler, _ in found)


def test_jumps_to_the_data_add_fresh_noise():
    """In four steps a map of jumps to t = 1 adds noise between them; in training as when it is measured."""
    plan = resolve(recipe(method="sct"))
    flow_map = initial.new_map(plan.recipe, (2,), 3)
    samplers = [how for _, _, how in previews.samplers_of_stage(plan, "map", flow_map)]
    assert samplers == [Jump(1), plan.sampler(4)]
    assert isinstance(samplers[1], MultistepConsistency)
    previews.preview_figure(plan, "map", flow_map, training_source())
    ((_, _, how),) = previews.samplers_of_stage(resolve(recipe(method="scd")), "teacher", flow_map)
    assert how == Jump(8)  # a velocity is solved


def training_source() -> Points:
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    return Points(data, torch.arange(50) % 3, torch.zeros(2), torch.ones(2))


class Shifted(maps.FlowMap):
    """x + t - s in every pixel, or nothing that is a number."""

    def __init__(self, velocity: float) -> None:
        super().__init__()
        self.speed = velocity

    def average_velocity(self, x, s, t, cond=None):
        return torch.full_like(x, self.speed)


def test_images_stand_in_rows_beside_data(monkeypatch: pytest.MonkeyPatch):
    source, kept = images(side=8), []
    monkeypatch.setattr(previews, "image_grid", lambda *given, **options: kept.append((given, options)))
    previews.preview_figure(resolve(recipe()), "map", Shifted(1.0), source)
    (pixels, rows), options = kept[0]
    assert options == {"blocks": {"1 step": 8, "4 steps": 8, "data": 4}}
    assert (rows, pixels.shape) == (8, (8 * 20, 3, 8, 8))
    table = pixels.unflatten(0, (8, 20))
    noise = torch.randn(64, 3, 8, 8, generator=previews.generator(0, previews.NOISE_STREAM))
    expected = source.units.to_pixels(noise + 1).unflatten(0, (8, 8))
    assert table[:, :8].equal(expected)
    assert (table[:, 8:16].int() - expected.int()).abs().max() <= 1  # the same noise in other steps
    known = {image.numpy().tobytes() for image in (source.pixels, source.pixels.flip(-1)) for image in image}
    assert {image.numpy().tobytes() for image in table[:, 16:].flatten(0, 1)} <= known


@pytest.mark.parametrize("source", [images(side=8), training_source()])
def test_what_has_diverged_is_drawn_all_the_same(source, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for speed in (float("nan"), float("inf"), 1e30):
            previews.figures.save(
                previews.preview_figure(resolve(recipe()), "map", Shifted(speed), source), tmp_path / "x.png"
            )


def test_points_of_more_dimensions_are_not_shown(tmp_path: Path):
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(40, 3)))
    own = recipe("points", data=str(tmp_path / "points.npy"), method="lsd", show_every=1)
    followed(tmp_path / "run", own)
    assert not (tmp_path / "run" / "previews").exists()


def ends_nothing(folder: Path) -> str:
    """What is said, once, of a run that shows two pictures which both fail."""
    said: list[str] = []
    run = Run.open(recipe(method="lsd", show_every=4), folder, say=said.append)
    (folder / "previews").touch()
    commands.follow(run)
    assert (folder / "weights.safetensors").exists()
    (words,) = said
    assert words.startswith(f"{folder / 'previews' / 'map-00000004.png'} cannot be made (")
    return words.partition("(")[2]


def test_a_picture_that_cannot_be_written_ends_nothing(tmp_path: Path):
    assert ends_nothing(tmp_path / "run") == "File exists): the training goes on without such pictures."


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of\nmemory"), ValueError("out of"), KeyError()])
def test_no_failure_of_drawing_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def preview_figure(*_: object) -> None:
        raise error

    followed(tmp_path / "plain", recipe(method="lsd", show_every=0))
    monkeypatch.setattr(previews, "preview_figure", preview_figure)
    words = ends_nothing(tmp_path / "run")
    assert words.startswith("KeyError): " if isinstance(error, KeyError) else "out of): ")
    name = "weights.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_images_are_drawn_no_more_at_a_time_than_are_trained(monkeypatch: pytest.MonkeyPatch):
    """A step of so many rows, with its gradients, fits the memory."""
    rows: list[int] = []

    class Counted(Shifted):
        def average_velocity(self, x, s, t, cond=None):
            rows.append(len(x))
            return super().average_velocity(x, s, t, cond)

    settings = recipes.fields.Optimiser(batch=20, accumulate=4)
    previews.preview_figure(resolve(recipe(optimiser=settings)), "map", Counted(1.0), images(side=8))
    assert max(rows) == 5
    assert sum(rows) == 64 * (1 + 4)
