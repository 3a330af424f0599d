"""Sources of velocity: what is frozen, where gradients pass, guidance as its papers write it."""

from __future__ import annotations

import pytest
import torch
from cases import INTERPOLANTS
from torch import Tensor, nn

from flowmaps.exact import GaussianMixture
from flowmaps.guidance import Guidance
from flowmaps.interpolants import Linear, Trigonometric, WithNoise
from flowmaps.maps import AverageVelocity
from flowmaps.nn import MLP
from flowmaps.shapes import Guide
from flowmaps.solvers import SolverFlow
from flowmaps.velocities import BoundVelocity, FromInterpolant, FromMap, FromTeacher, Guided, RandomInputs


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


def a_draw(rows: int = 7) -> RandomInputs:
    generator = torch.Generator().manual_seed(1)
    x0, x1, z = torch.randn(3, rows, 3, generator=generator, dtype=torch.float64)
    s, t, split = torch.rand(3, rows, generator=generator, dtype=torch.float64)
    return RandomInputs(x0, x1, z, s, t, split, torch.arange(rows, dtype=torch.float64))


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
    with pytest.raises(ValueError, match=r"use it in an objective, or call .bind\(inputs\) first"):
        FromInterpolant(Linear())(x, t)


def test_rows_of_a_draw_are_rows_of_each_part():
    draw = a_draw()
    part = draw.rows(slice(2, 5))
    for whole, some in zip(draw[:7], part[:7], strict=True):
        assert torch.equal(some, whole[2:5])
    assert part.warmup is None
    warmup = draw._replace(warmup=torch.arange(7.0)).rows(slice(2, 5)).warmup
    assert warmup is not None
    assert warmup.tolist() == [2, 3, 4]
    assert RandomInputs(draw.x0, draw.x1, None, draw.s, draw.t, draw.split).rows(slice(0, 2)).z is None


def test_a_guide_is_cut_and_moved_with_its_rows():
    labels, weights = torch.arange(7), torch.linspace(1, 3, 7)
    draw = a_draw()._replace(cond=Guide(labels, weights))
    part = draw.rows(slice(1, 4)).cond
    assert isinstance(part, Guide)
    assert part.label.tolist() == [1, 2, 3]
    assert torch.equal(part.weight, weights[1:4])
    moved = draw.to("meta")
    assert moved.cond.label.device.type == moved.cond.weight.device.type == moved.x0.device.type == "meta"
    unlabelled = draw._replace(cond=Guide(None, weights)).rows(slice(1, 4)).cond
    assert unlabelled.label is None
    assert torch.equal(unlabelled.weight, weights[1:4])


# legs ----------------------------------------------------------------------------------------------------------------


def test_the_leg_of_a_teacher_is_a_straight_step():
    x, s = batch()
    teacher, cond = FromTeacher(Field()), torch.arange(7, dtype=torch.float64)
    t = 1 - 0.5 * s
    torch.testing.assert_close(teacher.leg(x, s, t, cond), teacher(x, s, cond))
    assert not torch.allclose(teacher.leg(x, s, t, cond), teacher(x, t, cond))


def test_the_leg_of_a_map_is_its_jump():
    x, s = batch()
    torch.manual_seed(0)
    flow_map = AverageVelocity(MLP(3, width=8, depth=2)).double()
    t = 1 - 0.5 * s
    leg = FromMap(flow_map).leg(x, s, t)
    torch.testing.assert_close(x + (t - s)[:, None] * leg, flow_map(x, s, t))
    leg.sum().backward()
    assert all(p.grad is not None for p in flow_map.parameters())  # its own legs can be trained


def test_the_leg_of_a_solver_is_its_trajectory():
    x, s = batch()
    flow = SolverFlow(FromTeacher(Field()), method="rk4", steps=3)
    t = 1 - 0.5 * s
    torch.testing.assert_close(x + (t - s)[:, None] * FromMap(flow).leg(x, s, t), flow(x, s, t))


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6, 1e-9, 1e-13, 0.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_leg_of_the_interpolant_lands_on_its_path(name: str, size: float, sign: int):
    """I_s + (w - s) leg = I_w for one pair: consistency training takes no solver. Tiny steps, none, and backwards."""
    path, draw = INTERPOLANTS[name], a_draw()
    s = 0.1 + 0.7 * draw.s
    w = s + size * (0.85 - s) if sign > 0 else s - size * (s - 0.05)
    field = FromInterpolant(path).bind(draw)
    here, there = path.point(draw.x0, draw.x1, s, draw.z), path.point(draw.x0, draw.x1, w, draw.z)
    leg = field.leg(here, s, w)
    torch.testing.assert_close(here + (w - s)[:, None] * leg, there, rtol=1e-12, atol=1e-12)
    assert bool(leg.isfinite().all())
    if size <= 1e-4:  # and it tends to dI, with no loss of digits
        exact = path.velocity(draw.x0, draw.x1, 0.5 * (s + w), draw.z)
        torch.testing.assert_close(leg, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("cells", [50, 400, 1280])
def test_the_leg_lands_on_its_path_on_grids_in_single_precision(name: str, cells: int):
    """Cells as fine as iCT's: the last lands on the data, though some paths have no slope there.

    What is lost is small beside the step itself, |I_w - I_s|, which is what a loss looks at.
    """
    path = INTERPOLANTS[name]
    draw = a_draw().map(lambda value: value.float())
    k = torch.tensor([1, 2, cells // 3, cells // 2, cells - 3, cells - 2, cells - 1])
    s, w = k / cells, (k + 1) / cells
    here, there = path.point(draw.x0, draw.x1, s, draw.z), path.point(draw.x0, draw.x1, w, draw.z)
    landed = here + (w - s)[:, None] * FromInterpolant(path).bind(draw).leg(here, s, w)
    off, step = (landed - there).norm(dim=1), (there - here).norm(dim=1)
    assert float((off / (step + 1e-3)).max()) < 0.02


@pytest.mark.parametrize("scale", [0.0, 1.1, 7.5])
def test_the_leg_of_a_guided_source_is_the_guided_one(scale: float):
    x, s = batch()
    net, cond, t = Field().eval(), torch.arange(7, dtype=torch.float64), 1 - 0.5 * s
    guided = Guided(FromTeacher(net), scale)
    torch.testing.assert_close(guided.leg(x, s, t, cond), guided(x, s, cond))
    torch.testing.assert_close(guided.bind(a_draw()).leg(x, s, t, cond), guided(x, s, cond))


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
    """The weaker model is given the same condition (2406.02507; its own presets pass the labels to both)."""
    x, t = batch()
    cond = torch.arange(7, dtype=torch.float64)
    net, other = Field().eval(), FromTeacher(lambda x, t, cond: -x * cond[:, None])
    guided = Guided(FromTeacher(net), 2.0, negative=other)(x, t, cond)
    weak = -x * cond[:, None]
    torch.testing.assert_close(guided, weak + 2 * (net(x, t, cond) - weak))
    one = Guided(FromTeacher(net), 1.0, negative=other)(x, t, cond)  # a scale of 1 is the model itself
    torch.testing.assert_close(one, net(x, t, cond))


def test_guidance_by_rows_has_the_weights_of_its_guides():
    """w = 1 outside the interval and for the label that means none; no weight reaches the teacher."""
    x, _ = batch()
    t = torch.tensor([0.0, 0.19, 0.2, 0.5, 0.7, 0.71, 0.4], dtype=torch.float64)
    net, labels = Field().eval(), torch.tensor([1, 2, 3, 1, 2, 3, 4])
    own = torch.linspace(1.5, 4.5, 7, dtype=torch.float64)
    guided = Guided(FromTeacher(net), Guidance((1.0, 5.0), 4, interval=(0.2, 0.7)))
    w = torch.tensor([1, 1, own[2], own[3], own[4], 1, 1], dtype=torch.float64)[:, None]
    expected = net(x, t) + w * (net(x, t, labels) - net(x, t))
    torch.testing.assert_close(guided(x, t, Guide(labels, own)), expected)
    fixed = Guided(FromTeacher(net), Guidance(1.1, 4))(x, t, labels)
    expected = net(x, t) + 1.1 * (net(x, t, labels) - net(x, t))
    torch.testing.assert_close(fixed[:6], expected[:6], rtol=1e-13, atol=1e-13)  # 1.1 is not rounded
    torch.testing.assert_close(fixed[6:], net(x, t, labels)[6:], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=str)
@pytest.mark.parametrize("w", [0.0, 1.0, 1.7, 4.0])
def test_guidance_of_a_mixture_tilts_its_density(path, w: float):
    """b^w is the velocity of the score (1 - w) grad log p_t + w grad log p_t(. | label) (2207.12598)."""
    means = [[-1.0, 0.3], [0.8, -0.5]]
    covariances = [[[0.4, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.5]]]
    law = GaussianMixture([0.7, 0.3], means, covariances, interpolant=path)
    parts = [GaussianMixture([1.0], means[k : k + 1], covariances[k : k + 1], interpolant=path) for k in (0, 1)]
    x, t = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).double(), torch.linspace(0.1, 0.9, 7).double()
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])

    def score(of: GaussianMixture) -> Tensor:
        y = x.clone().requires_grad_()
        return torch.autograd.grad(of.log_density(y, t).sum(), y)[0]

    own = torch.where(labels[:, None] == 0, score(parts[0]), score(parts[1]))
    expected = path.score_to_velocity((1 - w) * score(law) + w * own, x, t)
    guided = Guided(FromTeacher(law.velocity), w)(x, t, labels)
    torch.testing.assert_close(guided, expected, rtol=1e-9, atol=1e-9)
    if w:
        guided = Guided(FromTeacher(law.velocity), Guidance(w, dropout=0))(x, t, labels)
        torch.testing.assert_close(guided, expected, rtol=1e-9, atol=1e-9)


def test_guidance_keeps_single_precision():
    x, t = (value.float() for value in batch())
    guided = Guided(FromTeacher(Field().float()), 1.5)(x, t, torch.ones(7))
    assert guided.dtype == torch.float32


def test_guidance_of_the_interpolant_is_bound_with_its_pairs():
    """scale dI + (1 - scale) v(x, t, cond), away from a weaker model, or towards one."""
    x, t = batch()
    draw, net = a_draw(), Field().eval()
    field = Guided(FromInterpolant(Linear()), 1.7, negative=FromTeacher(net)).bind(draw)
    torch.testing.assert_close(field(x, t, draw.cond), 1.7 * (draw.x1 - draw.x0) - 0.7 * net(x, t, draw.cond))
    both = Guided(FromTeacher(net), 1.7, negative=FromInterpolant(Linear())).bind(draw)
    torch.testing.assert_close(both(x, t, draw.cond), 1.7 * net(x, t, draw.cond) - 0.7 * (draw.x1 - draw.x0))


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.2, 1.1)])
def test_intervals_that_are_refused(interval: tuple[float, float]):
    with pytest.raises(ValueError, match=r"interval inside \[0, 1\], got"):
        Guided(FromTeacher(Field()), 2.0, interval=interval)


def test_a_bound_velocity_has_a_hash_before_it_has_its_fields():
    """The compiler of torch 2.11 asks for it when a bound velocity is made and called in the same compiled function."""
    assert hash(BoundVelocity.__new__(BoundVelocity)) != hash(BoundVelocity.__new__(BoundVelocity))
