"""Pictures of a run show what the laws say: an exact map agrees with itself in any number of steps, and inverts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from report_cases import texts_of, tiles_of
from torch import Tensor

from flowmaps.data import Images, Points, Source, Units
from flowmaps.evaluation.sampling import Inputs, Samples, jump_sampler, ode_sampler, sample, steps_in_words
from flowmaps.maps import FlowMap
from flowmaps.reports import pictures
from flowmaps.runs import recipes
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import Recipe
from flowmaps.samplers import Jump
from flowmaps.shapes import like

SHAPE, SPREAD = (3, 6, 4), 0.3
NAMES = ("ant", "bee", "cow")
CENTRES = torch.tensor([-0.4, 0.0, 0.4])
RECIPE = replace(recipes.points(), name="images", data="images", evaluation=recipes.Evaluation(batch=37))
PLAN = resolve(RECIPE)


class Exact(FlowMap):
    """The flow from N(0, 1) to N(m, SPREAD^2) along straight paths, m by class; `wrong` is added per unit of time."""

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        m = torch.zeros_like(s) if cond is None else CENTRES[cond]
        width = ((1 - t) ** 2 + t**2 * SPREAD**2).sqrt() / ((1 - s) ** 2 + s**2 * SPREAD**2).sqrt()
        return like(t * m, x) + like(width, x) * (x - like(s * m, x)) + self.wrong * like(t - s, x)

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        raise AssertionError("jumps and velocities are known in closed form")

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        m = torch.zeros_like(t) if cond is None else CENTRES[cond]
        rate = (t * SPREAD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * SPREAD**2)
        return like(m, x) + like(rate, x) * (x - like(t * m, x))


class ToData(FlowMap):
    """A jump to the data that keeps a part of x, from any time."""

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return -0.7 * x / like(t - s, x)


class Law(Source):
    """N(m, SPREAD^2), m by class, as images."""

    def __init__(self, units: Units) -> None:
        self.units = units

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        x = SPREAD * torch.randn(number, *self.shape, generator=generator)
        if self.classes is None:
            return x, None
        labels = torch.randint(self.classes, (number,), generator=generator)
        return x + like(CENTRES[labels], x), labels

    def to(self, device: torch.device | str) -> Law:
        return self


UNITS = Units(SHAPE, 3, (127.5,), (127.5,), True, NAMES)
PLAIN = replace(UNITS, classes=None, names=())


def made(flow_map: FlowMap, classes: bool = True, steps: tuple[int, ...] = (1, 2, 4, 8)) -> dict[str, Samples]:
    """The samples of an evaluation, the exact flow by a solver first."""
    draws = torch.Generator().manual_seed(5)
    x0 = torch.randn(120, *SHAPE, generator=draws)
    inputs = Inputs(x0, torch.randint(3, (120,), generator=draws) if classes else None)
    samplers = {"teacher, dopri5": ode_sampler(Exact().velocity, rtol=1e-6, atol=1e-6)}
    samplers |= {"teacher, euler": ode_sampler(Exact().velocity, method="euler", steps=3)}
    samplers |= {steps_in_words(n): jump_sampler(flow_map, Jump(n)) for n in steps}
    options = {"chunk": 50, "device": torch.device("cpu")}
    return {title: sample(sampler, inputs, **options) for title, sampler in samplers.items()}


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The greatest difference of pixels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# samples, steps -------------------------------------------------------------------------------------------------------


def test_a_row_of_samples_is_of_its_class_and_so_are_the_images_beside_it():
    drawn, draws = made(Exact())["4 steps"], torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    source = Images(torch.randint(0, 256, (30, *SHAPE), dtype=torch.uint8, generator=draws), labels, NAMES)
    figure = pictures.grid(source, "4 steps", drawn, 0)
    assert drawn.cond is not None
    assert texts_of(figure) == ["ant", "", "", "bee", "", "", "cow", "", "", "map, 4 steps", "data"]
    shown = tiles_of(figure, 9, 13, *SHAPE[1:], (10, 3)).reshape(3, 3, 13, *SHAPE[1:], 3)
    for k in range(3):
        own = UNITS.to_pixels(drawn.x[drawn.cond == k][:30]).movedim(1, 3).numpy()
        np.testing.assert_array_equal(shown[k, :, :10].reshape(own.shape), own)  # the first that came, none chosen
        data = {image.tobytes() for image in source.pixels[labels == k].movedim(1, 3).numpy()}
        assert all(image.tobytes() in data for row in shown[k, :, 10:] for image in row)


def test_samples_without_classes_are_the_first_hundred():
    drawn = made(Exact(), classes=False)["2 steps"]
    figure = pictures.grid(Law(PLAIN), "2 steps", drawn, 0)
    shown = tiles_of(figure, 10, 13, *SHAPE[1:], (10, 3)).reshape(10, 13, *SHAPE[1:], 3)
    own = PLAIN.to_pixels(drawn.x[:100]).movedim(1, 3).numpy()
    np.testing.assert_array_equal(shown[:, :10].reshape(own.shape), own)
    assert texts_of(figure) == ["map, 2 steps", "data"]


def test_of_many_classes_ten_are_shown_and_a_rare_one_leaves_white():
    labels = torch.arange(1200) % 40
    samples = Samples(torch.zeros(1200, *SHAPE), labels, 4)
    none = Images(torch.zeros(50, *SHAPE, dtype=torch.uint8), torch.arange(50) % 9, tuple(map(str, range(40))))
    shown = tiles_of(pictures.grid(none, "4 steps", samples, 0), 10, 13, *SHAPE[1:], (10, 3)).reshape(10, 13, -1)
    assert (shown[:, :10] == 128).all()
    assert (shown[:9, 10:] == 0).all()
    assert (shown[9, 10:] == 255).all()  # the data have no tenth class


def test_every_row_of_the_steps_grid_starts_from_the_same_noise_and_class():
    drawn = made(Exact())
    figure = pictures.steps_grid(UNITS, drawn)
    words = texts_of(figure)
    assert words[:5] == ["1 step", "2 steps", "4 steps", "8 steps", "teacher"]
    assert words[5] == f"dopri5, {drawn['teacher, dopri5'].nfe} evals"
    assert words[6:] == ["ant"] * 3 + ["bee"] * 3 + ["cow"] * 3
    shown = tiles_of(figure, 5, 9, *SHAPE[1:]).reshape(5, 9, -1)
    assert apart(shown, shown[:1]) <= 1  # an exact map, and its flow
    assert apart(shown[:, 1:], shown[:, :-1]) > 20
    means = shown.astype(float).mean((0, 2)).reshape(3, 3) / 127.5 - 1
    np.testing.assert_allclose(means, np.broadcast_to(CENTRES[:, None], (3, 3)), atol=4 * SPREAD / math.sqrt(72))
    off = tiles_of(pictures.steps_grid(UNITS, made(Exact(wrong=0.2))), 5, 9, *SHAPE[1:]).reshape(5, 9, -1)
    assert apart(off[0], off[4]) > 20


# interpolation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [UNITS, PLAIN])
def test_images_between_two_noises_are_of_the_noises_between(units: Units):
    seen: list[Tensor] = []

    class Watched(Exact):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            seen.extend(x[s == 0])
            return super().forward(x, s, t, cond)

    progress: list[tuple[str, float]] = []
    figure = pictures.interpolations(
        PLAN, Watched(), units, rows=4, columns=7, watch=lambda title, share: progress.append((title, share))
    )
    shown = tiles_of(figure, 4, 7, *SHAPE[1:]).reshape(4, 7, *SHAPE[1:], 3)
    heads = ["a = 0°", "15°", "30°", "45°", "60°", "75°", "90°"]
    labels = torch.tensor([0, 1, 1, 2])
    assert texts_of(figure) == ([NAMES[k] for k in labels.tolist()] if units.classes else []) + heads
    x0 = torch.stack(seen).reshape(4, 7, *SHAPE)
    assert float(x0.std()) == pytest.approx(1, abs=0.1)
    angle = torch.linspace(0, math.pi / 2, 7).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(x0, angle.cos() * x0[:, :1] + angle.sin() * x0[:, -1:])
    cond = labels.repeat_interleave(7) if units.classes else None
    ends = units.to_pixels(Jump(1)(Exact(), x0.flatten(0, 1), cond)).movedim(1, 3).numpy()
    assert apart(shown.reshape(ends.shape), ends) <= 1
    assert progress == [("interpolation", 1.0)]


def test_noise_that_is_added_on_the_way_is_the_same_along_a_row():
    plan = resolve(replace(RECIPE, method="consistency_training"))
    shown = tiles_of(pictures.interpolations(plan, ToData(), PLAIN), 6, 10, *SHAPE[1:]).reshape(6, 10, -1)
    assert apart(shown, shown[:, :1]) <= 2  # after fresh noise three times next to nothing is left of x0
    assert apart(shown[1:], shown[:-1]) > 20


# inversion ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "teacher", "encoder", "words", "least"),
    [
        (RECIPE, Exact(), "teacher", "the flow of its teacher, solved backwards", 80),
        (RECIPE, None, "diagonal", "the flow of the map's own velocity, solved backwards", 80),
        (replace(RECIPE, times="square"), Exact(), "map", "the map itself in 4 steps backwards", 115),
        (replace(RECIPE, times="square", method="lsd"), Exact(), "map", "the map itself in 4 steps backwards", 115),
        (replace(RECIPE, times="square", method="meanflow"), Exact(), "teacher", "the flow of its teacher", 80),
    ],
)
def test_an_exact_map_inverts(recipe: Recipe, teacher: FlowMap | None, encoder: str, words: str, least: float):
    found = pictures.invert(resolve(recipe), Exact(), teacher, Law(UNITS))
    assert found is not None
    numbers = found.numbers(UNITS)
    assert (numbers["encoder"], numbers["images"]) == (encoder, 64)
    assert numbers["noise_std"] == pytest.approx(1, abs=4 / math.sqrt(2 * 64 * 72))
    assert [row["steps"] for row in numbers["decoded"]] == [1, 4]
    assert all(least < row["psnr"] <= 120.1 for row in numbers["decoded"])
    assert words in found.caption(UNITS)
    shown = tiles_of(found.figure(UNITS), 4, 9, *SHAPE[1:])
    data, noise, back, difference = shown.reshape(4, 9, -1)
    assert apart(data, back) <= 1
    assert difference.max() <= 1
    assert noise.astype(float).std() == pytest.approx(42.5, rel=0.1)


def test_the_error_of_an_inversion_is_in_pixels_from_minus_one_to_one():
    wrong = Exact(wrong=0.1)  # a tenth too bright in one step; in four each step carries the error of those before
    for units, scale in ((UNITS, 1.0), (replace(UNITS, shift=(0.0,), scale=(255.0,)), 2.0)):
        found = pictures.invert(PLAN, wrong, Exact(), Law(units))
        assert found is not None
        one = found.numbers(units)["decoded"][0]
        assert one["mse"] == pytest.approx((0.1 * scale) ** 2, rel=1e-3)
        assert one["psnr"] == pytest.approx(10 * math.log10(4 / (0.1 * scale) ** 2), abs=0.01)
    caption = pictures.Inversion("map", "itself", found.data, found.noise, None, {1: found.data + 0.1}).caption(UNITS)
    assert "1 step: 0.01 (26.0 dB)" in caption
    *_, difference = tiles_of(found.figure(UNITS), 4, 9, *SHAPE[1:]).reshape(4, 9, -1)
    assert difference.mean() > 2


def test_what_is_lost_is_counted_and_left_out():
    found = pictures.invert(PLAN, Exact(), Exact(), Law(UNITS))
    assert found is not None
    found.decoded[4][:3] = math.nan
    numbers = found.numbers(UNITS)
    assert (numbers["images"], numbers["lost"]) == (61, 3)
    assert all(math.isfinite(row["mse"]) for row in numbers["decoded"])
    assert found.caption(UNITS).endswith("3 images were lost.")
    found.noise[:] = math.inf
    assert found.numbers(UNITS) == {"encoder": "teacher", "images": 0, "decoded": [], "lost": 64}
    tiles_of(found.figure(UNITS), 4, 9, *SHAPE[1:])


def test_a_map_to_the_data_alone_is_inverted_by_its_teacher_in_one_step_or_not_at_all():
    alone = resolve(replace(RECIPE, method="consistency_training"))
    assert pictures.invert(alone, Exact(), None, Law(UNITS)) is None
    distilled = resolve(replace(RECIPE, method="consistency_distillation"))
    found = pictures.invert(distilled, Exact(), Exact(), Law(UNITS))
    assert found is not None
    assert list(found.decoded) == [1]


# a run ----------------------------------------------------------------------------------------------------------------

ROWS = [{"sampler": "map", "steps": n, "nfe": n, "fd": 8 / n} for n in (1, 4)]


def test_a_run_of_images_has_its_pictures_and_numbers_and_always_the_same(tmp_path: Path):
    shares: list[float] = []
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        arguments = (tmp_path / name, PLAN, Exact(), Exact(), Law(UNITS), ROWS, made(Exact()))
        found.append(pictures.draw(*arguments, watch=lambda title, share: shares.append(share)))
    files = [path.name for path in found[0].files.values()]
    assert files == ["samples.png", "strip.png", "interpolation.png", "inversion.png", "quality.png"]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert "in 4 steps" in next(iter(found[0].files))
    assert list(json.loads(json.dumps(found[0].numbers))) == ["inversion"]
    half = shares[: len(shares) // 2]
    assert half == sorted(half)
    assert half[-1] == 1


def test_a_map_that_jumps_once_is_shown_in_one_step(tmp_path: Path):
    once = resolve(replace(RECIPE, evaluation=replace(RECIPE.evaluation, steps=(1,))))
    found = pictures.draw(tmp_path, once, Exact(), Exact(), Law(UNITS), ROWS, made(Exact(), steps=(1,)))
    assert [row["steps"] for row in found.numbers["inversion"]["decoded"]] == [1]
    assert "in 1 step," in next(iter(found.files))


def test_latents_have_no_pictures_of_pixels(tmp_path: Path):
    latents = Points(torch.randn(50, 4, 3, 3), None, torch.zeros(1), torch.ones(1))
    found = pictures.draw(tmp_path, PLAN, Exact(), None, latents, ROWS, {})
    assert [path.name for path in found.files.values()] == ["quality.png"]
    assert found.numbers == {}
