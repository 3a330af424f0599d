"""Random numbers drawn on the device: they are there, a function of the seed, and of the right law."""

from __future__ import annotations

import math
from collections.abc import Callable

import cuda_cases
import pytest
import torch
from cuda_cases import DEVICE
from torch import Tensor

from flowmaps import times
from flowmaps.couplings import Empirical, FlowPairs, MinibatchOT, Normal
from flowmaps.data import Board, Images, Points, Source
from flowmaps.exact import Checkerboard, Gaussian, GaussianMixture
from flowmaps.interpolants import Linear, VarianceExploding
from flowmaps.solvers import SolverFlow
from flowmaps.system import seeds
from flowmaps.training.batches import FromRows

pytestmark = cuda_cases.gpu

NUMBER = 20_000
SIGMAS = 6  # of the difference of two means


def same_law(one: Tensor, other: Tensor) -> None:
    """Means and mean squares of two samples, column by column, differ by chance alone."""
    for a, b in ((one, other), (one.square(), other.square())):
        a, b = (value.detach().cpu().double().flatten(1) for value in (a, b))
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() <= SIGMAS * error + 1e-6).all())


def check_draw(draw: Callable[[torch.Generator], Tensor]) -> None:
    """A draw is on the device, a function of the seed, and of the law that it has on the CPU."""
    found = draw(cuda_cases.generator(1))
    assert found.device.type == DEVICE.type
    assert torch.equal(found, draw(cuda_cases.generator(1)))
    assert not torch.equal(found, draw(cuda_cases.generator(2)))
    assert bool(found.isfinite().all())


# data -----------------------------------------------------------------------------------------------------------------


def sources() -> dict[str, Source]:
    rng = torch.Generator().manual_seed(0)
    points = Points(torch.randn(50, 3, generator=rng) * 2 + 1, torch.arange(50) % 4, torch.ones(3), 2 * torch.ones(3))
    pixels = torch.randint(256, (9, 3, 4, 4), generator=rng, dtype=torch.uint8)
    return {"board": Board(), "points": points, "images": Images(pixels, torch.arange(9), flips=True)}


@pytest.mark.parametrize("name", sources())
def test_a_source_draws_on_the_device(name: str):
    source = sources()[name]
    moved = source.to(DEVICE)
    check_draw(lambda rng: moved.sample(100, rng)[0])
    x, labels = moved.sample(NUMBER, cuda_cases.generator(3))
    wanted, others = source.sample(NUMBER, torch.Generator().manual_seed(3))
    assert x.dtype == torch.float32
    same_law(x, wanted)
    if labels is not None and others is not None:
        assert labels.device.type == DEVICE.type
        same_law(labels[:, None].double(), others[:, None].double())


def test_rows_are_drawn_with_their_conditions():
    rows = torch.arange(40.0)[:, None].expand(-1, 2).to(DEVICE)
    source = FromRows(rows, {"label": torch.arange(40, device=DEVICE)})
    x, cond = source.sample(NUMBER, cuda_cases.generator(5))
    assert torch.equal(x[:, 0].long(), cond["label"])
    same_law(x, rows)
    check_draw(lambda rng: source.sample(100, rng)[0])


def test_images_are_drawn_on_the_gpu():
    pixels = torch.randint(256, (7, 3, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    source = Images(pixels, torch.arange(7), flips=True).to(DEVICE)
    x, labels = source.sample(100, cuda_cases.generator(0))
    assert labels is not None
    assert x.device.type == labels.device.type == DEVICE.type
    plain, turned = source.pixels[labels], source.pixels[labels].flip(3)
    drawn = source.units.to_pixels(x)
    assert bool(((drawn == plain).flatten(1).all(1) | (drawn == turned).flatten(1).all(1)).all())


LAWS = {
    "checkerboard": Checkerboard(),
    "gaussian": Gaussian([1.0, -2.0], [[2.0, 0.5], [0.5, 1.0]]),
    "mixture": GaussianMixture(
        [0.3, 0.7], [[0.0, 3.0], [2.0, -1.0]], [[[1.0, 0.3], [0.3, 0.5]], [[0.2, 0.0], [0.0, 0.4]]]
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_an_exact_law_is_drawn_and_evaluated_on_the_device(name: str):
    law = LAWS[name]
    check_draw(lambda rng: law.sample(100, rng))
    same_law(law.sample(NUMBER, cuda_cases.generator(1)), law.sample(NUMBER, torch.Generator().manual_seed(1)))
    rng = torch.Generator().manual_seed(2)
    x, t = torch.randn(11, 2, dtype=torch.float64, generator=rng), torch.rand(11, dtype=torch.float64, generator=rng)
    for fn in (law.velocity, law.log_density):
        assert cuda_cases.distance([fn(x.to(DEVICE), t.to(DEVICE))], [fn(x, t)]) < 1e-7
    if name == "checkerboard":
        return  # its solver, that of the mixture too, takes seconds
    moved = law.flow_map(x.to(DEVICE), 0.5 * t.to(DEVICE), t.to(DEVICE))
    assert cuda_cases.distance([moved], [law.flow_map(x, 0.5 * t, t)]) < 1e-6


# bases and couplings --------------------------------------------------------------------------------------------------


def test_the_base_is_normal():
    like = torch.empty(NUMBER, 3, device=DEVICE)
    check_draw(lambda rng: Normal(2.0).sample(like[:100], rng))
    x = Normal(2.0).sample(like, cuda_cases.generator(0)).cpu().double()
    assert float(x.mean().abs()) < SIGMAS * 2 / math.sqrt(x.numel())
    assert abs(float(x.var()) / 4 - 1) < SIGMAS * math.sqrt(2 / x.numel())


@pytest.mark.parametrize("where", ["cpu", DEVICE.type])
def test_the_base_is_a_data_set(where: str):
    """Whose rows may lie on the CPU."""
    rows, like = torch.arange(30.0)[:, None].to(where), torch.empty(NUMBER, 1, device=DEVICE)
    check_draw(lambda rng: Empirical(rows).sample(like[:100], rng))
    same_law(Empirical(rows).sample(like, cuda_cases.generator(0)), rows)


def test_optimal_pairs_are_those_of_the_cpu():
    rng = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 64, 3, generator=rng)
    found, same = MinibatchOT().match(x0.to(DEVICE), x1.to(DEVICE))
    assert found.device.type == same.device.type == DEVICE.type
    assert torch.equal(found.cpu(), MinibatchOT().match(x0, x1)[0])


def test_pairs_of_a_flow_are_on_the_device():
    law = Gaussian([1.0, -2.0], [[2.0, 0.5], [0.5, 1.0]])
    coupling = FlowPairs(SolverFlow(law.velocity, method="rk4", steps=8))
    x0, x1 = coupling.pair(torch.empty(500, 2, device=DEVICE), None, cuda_cases.generator(0))
    assert x0.device.type == x1.device.type == DEVICE.type
    one = torch.ones(len(x0), device=DEVICE)
    assert cuda_cases.distance([x1], [law.flow_map(x0, 0 * one, one)]) < 1e-2


# times ----------------------------------------------------------------------------------------------------------------

TIMES: dict[str, times.Times] = {
    "diagonal": times.Diagonal(),
    "square": times.Square(),
    "triangle": times.Triangle(),
    "strip": times.Strip(0.3),
    "to-data": times.ToData(),
    "from-base": times.FromBase(),
    "mixture": times.Mixture(times.Diagonal(), times.Triangle(), 0.6),
    "towards-data": times.TowardsData(times.Triangle()),
    "logit-normal": times.LogitNormal(times.Triangle()),
    "log-normal": times.LogNormal(times.Triangle(), VarianceExploding()),
    "interval": times.Interval(),
    "snapped": times.Snapped(times.Triangle(), 7),
    "cell": times.Cell(5),
    "dyadic": times.Dyadic(4),
}
LEGS: dict[str, times.LegLaw] = {
    "uniform": times.UniformLeg(),
    "fixed": times.FixedLeg(0.3),
    "cell": times.CellLeg(8),
    "shrinking": times.ShrinkingLeg(Linear()),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_are_drawn_on_the_device(name: str):
    law, like = TIMES[name], torch.empty(1, device=DEVICE)
    check_draw(lambda rng: torch.stack(law.draw(100, rng, 0.5, like), 1))
    s, t = law.draw(NUMBER, cuda_cases.generator(1), 0.5, like)
    assert bool(((s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)).all())
    others = law.draw(NUMBER, torch.Generator().manual_seed(1), 0.5)
    same_law(torch.stack([s, t], 1), torch.stack(others, 1))
    uniforms = torch.rand(3, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found, wanted = law.pair(uniforms.to(DEVICE), 0.5), law.pair(uniforms, 0.5)
    assert float((torch.stack(found).cpu() - torch.stack(wanted)).abs().max()) < 1e-9


@pytest.mark.parametrize("name", LEGS)
def test_first_legs_are_those_of_the_cpu(name: str):
    uniforms = torch.rand(3, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    given = [uniforms[0], *uniforms[1:].sort(0).values]  # s below t
    found = LEGS[name].share(*(value.to(DEVICE) for value in given), 0.4)
    assert found.device.type == DEVICE.type
    assert float((found.cpu() - LEGS[name].share(*given, 0.4)).abs().max()) < 1e-9


# seeds ----------------------------------------------------------------------------------------------------------------


def test_a_stream_is_a_function_of_seed_and_step():
    def numbers(*of: int) -> Tensor:
        return torch.rand(5, generator=seeds.generator(*of, device=DEVICE), device=DEVICE)

    assert torch.equal(numbers(0, 3), numbers(0, 3))
    assert not torch.equal(numbers(0, 3), numbers(0, 4))


def test_the_generator_of_dropout_is_seeded():
    def dropped() -> Tensor:
        with seeds.seeded_globally(DEVICE, 7):
            return torch.nn.functional.dropout(torch.ones(200, device=DEVICE))

    def state() -> Tensor:
        return torch.cuda.get_rng_state(DEVICE) if DEVICE.type == "cuda" else torch.get_rng_state()

    before = state()
    assert torch.equal(dropped(), dropped())
    assert torch.equal(before, state())
