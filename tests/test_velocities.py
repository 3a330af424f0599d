"""Sources of velocity: what is frozen, where gradients pass, guidance as its papers write it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flowmaps.interpolants import Linear, Trigonometric, WithNoise
from flowmaps.maps import AverageVelocity
from flowmaps.nn import MLP
from flowmaps.velocities import Draw, FromInterpolant, FromMap, FromTeacher, Guided


class Field(nn.Module):
    """b_t(x) = A sin(x) + t + label, with dropout in training."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        v = torch.sin(x) @ self.matrix + t[:, None]
        return self.dropout(v if cond is None else v + cond[:, None])

    def method(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self(x, t, cond)


def batch(rows: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return x, torch.rand(rows, generator=generator, dtype=torch.float64)


def a_draw(rows: int = 7) -> Draw:
    generator = torch.Generator().manual_seed(1)
    x0, x1, z = torch.randn(3, rows, 3, generator=generator, dtype=torch.float64)
    s, t, split = torch.rand(3, rows, generator=generator, dtype=torch.float64)
    return Draw(x0, x1, z, s, t, split, torch.arange(rows, dtype=torch.float64))


# a teacher -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [False, True])
def test_a_teacher_is_frozen_whether_a_module_or_its_method(bound: bool):
    x, t = batch()
    net = Field().train()
    teacher = FromTeacher(net.method if bound else net)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    nn.ModuleList([teacher]).train()
    assert not net.training
    x = x.requires_grad_(True)
    v = teacher(x, t)
    torch.testing.assert_close(v, net(x, t))
    v.sum().backward()
    assert net.matrix.grad is None
    assert x.grad is not None
    expected = torch.cos(x.detach()) * net.matrix.sum(1)  # d/dx of the sum of A sin(x)
    torch.testing.assert_close(x.grad, expected)


def test_a_frozen_teachers_weights_are_not_trained_with_the_objective():
    teacher = FromTeacher(Field())
    assert [p for p in teacher.parameters() if p.requires_grad] == []


def test_a_plain_function_is_a_teacher():
    x, t = batch()
    teacher = FromTeacher(lambda x, t, cond=None: 2 * x + t[:, None])
    torch.testing.assert_close(teacher(x, t), 2 * x + t[:, None])
    assert teacher.bind(a_draw()) is teacher


def test_a_teacher_gets_the_condition():
    x, t = batch()
    cond = torch.arange(7, dtype=torch.float64)
    teacher = FromTeacher(Field())
    torch.testing.assert_close(teacher(x, t, cond) - teacher(x, t), cond[:, None].expand(7, 3))


def test_teachers_that_are_refused():
    x, t = batch()
    with pytest.raises(ValueError, match=r"must return the shape of x \(7, 3\), got \(7, 2\)"):
        FromTeacher(lambda x, t, cond=None: x[:, :2])(x, t)
    with pytest.raises(ValueError, match=r"callable \(x, t, cond=None\) -> like x, got Tensor"):
        FromTeacher(torch.zeros(3))  # type: ignore[arg-type]


# the map and the interpolant -----------------------------------------------------------------------------------------


def test_the_map_as_a_source_is_its_diagonal_and_stays_trainable():
    x, t = batch()
    torch.manual_seed(0)
    flow_map = AverageVelocity(MLP(3, width=8, depth=2)).double()
    source = FromMap(flow_map)
    torch.testing.assert_close(source(x, t), flow_map.net(x, t, t))
    assert source.bind(a_draw()) is source
    source(x, t).square().sum().backward()
    assert all(p.grad is not None for p in flow_map.parameters())


@pytest.mark.parametrize("path", [Linear(), Trigonometric(), WithNoise(Linear(), 0.3)])
def test_the_interpolant_as_a_source_is_the_derivative_of_the_path(path):
    draw = a_draw()
    time = 0.2 + 0.6 * draw.t
    field, h = FromInterpolant(path).bind(draw), 1e-6
    after, before = (path.point(draw.x0, draw.x1, time + e, draw.z) for e in (h, -h))
    x = torch.zeros_like(draw.x0)  # where it is asked for does not matter
    torch.testing.assert_close(field(x, time), (after - before) / (2 * h), rtol=1e-8, atol=1e-8)


def test_the_interpolant_has_to_be_bound_to_its_pairs():
    x, t = batch()
    with pytest.raises(ValueError, match=r"use it in an objective, or call .bind\(draw\) first"):
        FromInterpolant(Linear())(x, t)


def test_rows_of_a_draw_are_rows_of_each_part():
    draw = a_draw()
    part = draw.rows(slice(2, 5))
    for whole, some in zip(draw, part, strict=True):
        assert torch.equal(some, whole[2:5])
    assert Draw(draw.x0, draw.x1, None, draw.s, draw.t, draw.split).rows(slice(0, 2)).z is None


# guidance ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.1, 7.5])
def test_guidance_is_the_papers_formula(scale: float):
    x, t = batch()
    net, cond = Field().eval(), torch.arange(7, dtype=torch.float64)
    expected = (1 - scale) * net(x, t) + scale * net(x, t, cond)
    guided = Guided(FromTeacher(net), scale)(x, t, cond)
    torch.testing.assert_close(guided, expected, rtol=1e-13, atol=1e-13)  # the scale is not rounded to float32


def test_guidance_acts_inside_its_interval_only():
    x, _ = batch()
    t = torch.tensor([0.0, 0.19, 0.2, 0.5, 0.7, 0.71, 1.0], dtype=torch.float64)
    net, cond = Field().eval(), torch.arange(1, 8, dtype=torch.float64)
    guided = Guided(FromTeacher(net), 3.0, interval=(0.2, 0.7))(x, t, cond)
    inside = torch.tensor([False, False, True, True, True, False, False])
    plain = net(x, t, cond)
    torch.testing.assert_close(guided[~inside], plain[~inside])
    torch.testing.assert_close(guided[inside], (3 * plain - 2 * net(x, t))[inside])


def test_guidance_away_from_another_source():
    x, t = batch()
    net, other, cond = Field().eval(), FromTeacher(lambda x, t, cond=None: -x), torch.ones(7, dtype=torch.float64)
    guided = Guided(FromTeacher(net), 2.0, negative=other)(x, t, cond)
    torch.testing.assert_close(guided, -x + 2 * (net(x, t, cond) + x))


def test_guidance_keeps_single_precision():
    x, t = (value.float() for value in batch())
    guided = Guided(FromTeacher(Field().float()), 1.5)(x, t, torch.ones(7))
    assert guided.dtype == torch.float32


def test_guidance_of_the_interpolant_is_bound_with_its_pairs():
    """MeanFlow's guided target: scale dI + (1 - scale) v(x, t, none) (2505.13447, section 4.2)."""
    x, t = batch()
    draw, net = a_draw(), Field().eval()
    field = Guided(FromInterpolant(Linear()), 1.7, negative=FromTeacher(net)).bind(draw)
    torch.testing.assert_close(field(x, t, draw.cond), 1.7 * (draw.x1 - draw.x0) - 0.7 * net(x, t))
    both = Guided(FromTeacher(net), 1.7, negative=FromInterpolant(Linear())).bind(draw)
    torch.testing.assert_close(both(x, t, draw.cond), 1.7 * net(x, t, draw.cond) - 0.7 * (draw.x1 - draw.x0))


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.2, 1.1)])
def test_intervals_that_are_refused(interval: tuple[float, float]):
    with pytest.raises(ValueError, match=r"interval inside \[0, 1\], got"):
        Guided(FromTeacher(Field()), 2.0, interval=interval)
