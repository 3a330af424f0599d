"""Regression on solved trajectories: the exact flow has no loss but the solver's, and the loss is the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FEATURES, INTERPOLANTS, MAPS, Network, exact_map, gaussian, generator
from torch import Tensor

from flowmaps import guidance, methods
from flowmaps.losses import Perceptual, squared
from flowmaps.maps import AverageVelocity
from flowmaps.methods import Jumps
from flowmaps.objectives import Compare, TrajectoryMatching
from flowmaps.shapes import GuidedCondition
from flowmaps.times import FromBase, Square, ToData, Triangle
from flowmaps.velocities import FromTeacher, RandomInputs

DIM, ROWS = 3, 22


def field(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """A smooth field that is nothing special."""
    return torch.sin(x.flip(1)) * (1 + t[:, None]) - 0.3 * x + (0 if cond is None else cond)


def data(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, DIM, dtype=torch.float64, generator=generator(2))


def matching(**options: Any) -> TrajectoryMatching:
    made = methods.warm_up(AverageVelocity(Network(DIM)), teacher=field, **options)
    assert isinstance(made, TrajectoryMatching)
    return made


@pytest.mark.parametrize("map_name", MAPS)
@pytest.mark.parametrize("path", ["linear", "trigonometric", "linear-noise"])
def test_at_the_exact_map_the_loss_is_that_of_the_solver(path: str, map_name: str):
    """A solver of order 2: eight times as many steps, a residual of 1 / 64, its square of 1 / 4096."""
    law = gaussian(DIM, INTERPOLANTS[path])
    flow_map = exact_map(law, MAPS[map_name])
    x0 = torch.randn(ROWS, DIM, dtype=torch.float64, generator=generator(1))
    cond = torch.zeros(ROWS, FEATURES, DIM, dtype=torch.float64, requires_grad=True)
    found = []
    for points in (16, 128):
        options: dict[str, Any] = {
            "teacher": lambda x, t, cond=None: law.velocity(x, t),
            "interpolant": law.interpolant,
        }
        loss = methods.warm_up(flow_map, times=Square(), points=points, **options)
        draw = loss.draw(data(), x0, cond=cond, generator=generator(3))
        fine = replace_times(loss, draw, 16)
        value = loss.evaluate(fine).value
        (slope,) = torch.autograd.grad(value, cond, materialize_grads=True)
        found.append((float(value.detach()), float(slope.norm())))
    (coarse, coarse_slope), (close, close_slope) = found
    assert 0 < close < 1e-6
    assert coarse / close > 2_000
    assert coarse_slope / close_slope > 40


def replace_times(loss: TrajectoryMatching, draw: Any, steps: int) -> Any:
    """The draw at the pairs of a grid of so many steps, whatever the grid of the solver."""
    rng = generator(5)
    s, t = Triangle().draw(len(draw.s), rng, like=draw.s)
    first = (s * steps).floor() / steps
    last = torch.maximum((t * steps).ceil() / steps, first + 1 / steps)
    every = (len(loss.points) - 1) // steps
    start, end = ((r * steps).round().long() * every for r in (first, last))
    number = -(-len(s) // loss.pairs)
    own = torch.arange(len(s)) % number
    noise = torch.randn(ROWS, DIM, dtype=torch.float64, generator=generator(1))[:number]
    solved = loss.solve(noise)
    return draw._replace(x0=solved[start, own], x1=solved[end, own], s=first, t=last)


def literal(loss: TrajectoryMatching, x0: Tensor, s: Tensor, t: Tensor, cond: Tensor, jumps: bool) -> Tensor:
    """The loss written out: midpoint steps of one trajectory, of which several rows take two points each."""
    steps, number = len(loss.points) - 1, -(-len(x0) // loss.pairs)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(x0)):
        k = row % number
        x, where = x0[k : k + 1], []
        for j in range(steps):
            h, now = 1 / steps, torch.full((1,), j / steps, dtype=torch.float64)
            where.append(x)
            half = x + h / 2 * field(x, now, cond[k : k + 1])
            x = x + h * field(half, now + h / 2, cond[k : k + 1])
        where.append(x)
        i, j = round(float(s[row]) * steps), round(float(t[row]) * steps)
        assert i != j
        one, other, c = s[row : row + 1], t[row : row + 1], cond[k : k + 1]
        net = loss.flow_map.net(where[i], one, other, c)  # type: ignore[operator, attr-defined]
        if jumps:
            total = total + (where[i] + (other - one)[:, None] * net - where[j]).square().sum()
        else:
            total = total + (net - (where[j] - where[i]) / (other - one)[:, None]).square().sum()
    return total / len(x0)


class Conditioned(torch.nn.Module):
    """A network whose condition is `(B, DIM)`."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.width = Network(DIM), torch.nn.Linear(DIM, 2).double()

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x, s, t, self.width(torch.zeros_like(x) if cond is None else cond))


@pytest.mark.parametrize("pairs", [1, 4, 100])
@pytest.mark.parametrize("jumps", [Jumps.ANY, Jumps.TO_DATA, Jumps.FROM_BASE])
def test_the_loss_and_its_gradient_are_the_formula(jumps: Jumps, pairs: int):
    flow_map = AverageVelocity(Conditioned())
    loss = methods.warm_up(flow_map, teacher=field, jumps=jumps, points=5, pairs=pairs)
    assert isinstance(loss, TrajectoryMatching)
    x0, cond = data(), 0.3 * torch.randn(ROWS, DIM, dtype=torch.float64, generator=generator(8))
    draw = loss.draw(data(), x0, cond=cond, generator=generator(4))
    assert {round(float(r) * 5, 9) % 1 for r in (*draw.s, *draw.t)} == {0}
    if jumps is not Jumps.ANY:
        assert bool((draw.t == 1).all()) if jumps is Jumps.TO_DATA else not draw.s.any()
    found = loss.evaluate(draw)
    wanted = literal(loss, x0, draw.s, draw.t, cond, jumps is Jumps.TO_DATA)
    torch.testing.assert_close(found.value, wanted)
    weights = list(flow_map.parameters())
    for one, other in zip(torch.autograd.grad(found.value, weights), torch.autograd.grad(wanted, weights), strict=True):
        torch.testing.assert_close(one, other)
    u = flow_map.average_velocity(draw.x0, draw.s, draw.t, draw.cond)
    target = (draw.x1 - draw.x0) / (draw.t - draw.s)[:, None]
    torch.testing.assert_close(found.parts["trajectory"], squared(u - target).detach())


def test_times_are_rounded_outwards_in_either_order_and_never_equal():
    loss = matching(times=Square(), points=4)
    s = torch.tensor([0.0, 0.3, 0.3, 1.0, 1.0, 0.26, 0.5])
    t = torch.tensor([1.0, 0.31, 0.2, 0.0, 1.0, 0.6, 0.5])
    start, end = loss._on_grid(s, t)
    assert start.tolist() == [0, 1, 2, 4, 3, 1, 2]
    assert end.tolist() == [4, 2, 0, 0, 4, 3, 3]
    drawn = loss.draw(data(4_001), generator=generator(0))
    assert 0.4 < float((drawn.s < drawn.t).double().mean()) < 0.6
    assert not bool((drawn.s == drawn.t).any())


def test_times_are_rounded_outwards_on_a_grid_of_unequal_steps():
    loss = matching(points=[0.0, 0.1, 0.2, 1.0], times=Square())
    points = torch.tensor(loss.points, dtype=torch.float64)
    s, t = torch.rand(2, 200, dtype=torch.float64, generator=generator(5))
    start, end = (points[k] for k in loss._on_grid(s, t))
    low, high = torch.minimum(s, t), torch.maximum(s, t)
    assert torch.equal(start < end, s < t)
    assert (torch.minimum(start, end) == torch.stack([points[points <= x].max() for x in low])).all()
    assert (torch.maximum(start, end) == torch.stack([points[points >= x].min() for x in high])).all()


def test_a_grid_of_ones_own_has_its_own_times():
    points = (0.0, 0.5, 0.9, 1.0)
    drawn = matching(points=points, pairs=2).draw(data(), generator=generator(0))
    assert {*drawn.s.tolist()} | {*drawn.t.tolist()} == {*points}


def test_a_step_in_parts_is_the_same():
    loss, draw = single_precision()
    whole = loss.evaluate(draw)
    parts = [loss.evaluate(draw.micro_batch(rows)).value for rows in loss.micro_batches(24, 3)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole.value)


@pytest.mark.slow
def test_a_compiled_step_is_the_same():
    loss, draw = single_precision()
    torch.compiler.reset()
    whole, weights = loss.evaluate(draw), list(loss.flow_map.parameters())
    compiled = torch.compile(loss.evaluate, fullgraph=True)(draw)
    torch.testing.assert_close(compiled.value, whole.value)
    torch.testing.assert_close(compiled.parts, whole.parts)
    ours, theirs = (torch.autograd.grad(value.value, weights) for value in (compiled, whole))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def single_precision() -> tuple[TrajectoryMatching, RandomInputs]:
    flow_map = AverageVelocity(Network(DIM, dtype=torch.float32))
    loss = methods.warm_up(flow_map, teacher=field)
    assert isinstance(loss, TrajectoryMatching)
    draw = loss.draw(data(24).float(), cond=None, generator=generator(0))
    return loss, draw._replace(cond=torch.randn(24, 2, generator=generator(1)))


def test_rows_of_a_trajectory_share_noise_condition_and_guidance_weight():
    """Guided as the method is: v(none) + w (v(cond) - v(none)), with the weight that the map is told."""
    flow_map = AverageVelocity(Conditioned())
    own = guidance.Guidance((1.0, 3.0), null=torch.zeros(1, DIM, dtype=torch.float64))
    loss = methods.warm_up(flow_map, teacher=field, points=1, pairs=3, guidance=own)
    cond = 0.3 * torch.randn(6, DIM, dtype=torch.float64, generator=generator(8))
    draw = loss.draw(data(6), cond=cond, generator=generator(4))
    assert isinstance(draw.cond, GuidedCondition)
    for k in (0, 1):
        assert draw.x0[k].equal(draw.x0[k + 2])
        assert draw.x0[k].equal(draw.x0[k + 4])
        assert draw.cond.weight[k] == draw.cond.weight[k + 4]
        assert draw.cond.cond[k].equal(draw.cond.cond[k + 2])
    zero, half = torch.zeros(6, dtype=torch.float64), torch.full((6,), 0.5, dtype=torch.float64)
    w = draw.cond.weight[:, None]

    def guided(x: Tensor, t: Tensor) -> Tensor:
        none = field(x, t, torch.zeros(DIM, dtype=torch.float64))
        return none + w * (field(x, t, draw.cond.cond) - none)

    torch.testing.assert_close(draw.x1, draw.x0 + guided(draw.x0 + 0.5 * guided(draw.x0, zero), half))


def test_a_distance_of_images_compares_the_ends():
    flow_map = AverageVelocity(Conditioned())
    distance = Perceptual(lambda one, other: (one - other).abs().sum(1))
    loss = methods.warm_up(flow_map, teacher=field, jumps=Jumps.TO_DATA, distance=distance)
    draw = loss.draw(data(), generator=generator(4))
    jump = flow_map(draw.x0, draw.s, draw.t)
    torch.testing.assert_close(loss.evaluate(draw).value, (jump - draw.x1).abs().sum(1).mean())


def test_defaults_follow_the_jumps():
    laws = {Jumps.ANY: (Triangle(), Compare.VELOCITY), Jumps.TO_DATA: (ToData(), Compare.JUMP)}
    laws[Jumps.FROM_BASE] = (FromBase(), Compare.VELOCITY)
    for jumps, expected in laws.items():
        loss = matching(jumps=jumps)
        assert (loss.times, loss.compare) == expected


def test_what_is_refused():
    flow_map = AverageVelocity(Network(DIM))
    for options, words in (
        ({"jumps": Jumps.NONE}, "a method of Jumps.NONE learns none: train without one"),
        ({"points": (0.1, 1.0)}, "points must rise from 0 to 1"),
        ({"points": (1.0, 0.0)}, "points must rise from 0 to 1"),
        ({"points": 0}, "steps must be at least 1, got 0"),
        ({"solver": "dopri5"}, "solver must be one of .*, got 'dopri5'"),
        ({"pairs": 0}, "pairs must be a whole number of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            matching(**options)
    with pytest.raises(ValueError, match="warm_up needs a teacher, got none"):
        methods.warm_up(flow_map)
    with pytest.raises(ValueError, match=r"pass compare=Compare\.JUMP"):
        TrajectoryMatching(flow_map, matching().interpolant, FromTeacher(field), compare=Compare.DATA)


def test_streams_at_one_draw_are_those_of_every_objective():
    """Noise and times come from the generator as for a method on the same law."""
    loss = matching(points=3)
    other = methods.neural_operator(loss.flow_map, teacher=field, times=Triangle())
    mine, theirs = (made.draw(data(), generator=generator(9)) for made in (loss, other))
    own = torch.arange(ROWS) % -(-ROWS // loss.pairs)
    start, end = loss._on_grid(theirs.s, theirs.t)
    solved = loss.solve(theirs.x0[: int(own.max()) + 1])
    assert torch.equal(mine.x0, solved[start, own])
    assert torch.equal(mine.x1, solved[end, own])
