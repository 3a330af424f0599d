"""Sources of velocity: what is frozen, where gradients pass, guidance as its papers write it."""

from __future__ import annotations

import collections
import copy
import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import INTERPOLANTS
from torch import Tensor, nn

from flowmaps.exact import GaussianMixture
from flowmaps.guidance import Guidance
from flowmaps.interpolants import Linear, Trigonometric, WithNoise
from flowmaps.maps import AverageVelocity
from flowmaps.methods import lmd
from flowmaps.nn import MLP
from flowmaps.shapes import GuidedCondition
from flowmaps.solvers import SolverFlow
from flowmaps.velocities import BoundVelocity, FromInterpolant, FromMap, FromTeacher, Guided, RandomInputs, teacher


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


GLOBAL = Field()


class Holder:
    """Something of a user's that has a network."""

    def __init__(self, net: nn.Module) -> None:
        self.parts = {"nets": [net]}

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.parts["nets"][0](x, t, cond)


class Called(Holder):
    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.velocity(x, t, cond)


def through_a_global(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    return GLOBAL(x, t, cond)


def through_another_function(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    return next(through_a_global(x, t, cond) for _ in range(1))


def renamed(net: nn.Module, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    return net(x, t, cond)


FORMS: dict[str, Callable[[Field], Any]] = {
    "module": lambda net: net,
    "method": lambda net: net.method,
    "lambda": lambda net: lambda x, t, cond=None: net(x, t, cond),
    "default": lambda net: lambda x, t, cond=None, net=net: net(x, t, cond),
    "partial": lambda net: functools.partial(renamed, net),
    "partial-lambda": lambda net: functools.partial(lambda of, x, t, cond=None: of(x, t, cond), net.method),
    "nested": lambda net: (lambda inner: lambda x, t, cond=None: inner(x, t, cond))(lambda *a: net(*a)),
    "global": lambda net: through_a_global,
    "function-of-function": lambda net: through_another_function,
    "holder": lambda net: Holder(net).velocity,
    "callable": lambda net: Called(net),
    "adapted": lambda net: teacher(lambda t, x, cond=None: net(x, t, cond), order="tx").fn,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_teacher_is_left_as_it_is_and_gets_no_gradient(form: str):
    """Whatever form it has: evaluation mode for the call alone, gradients to the input alone."""
    x, t = batch()
    net = GLOBAL if form in ("global", "function-of-function") else Field()
    net.train()
    net.dropout.eval()  # each part gets its own mode back
    net.head = nn.Dropout(0.5)  # in training mode
    source = FromTeacher(FORMS[form](net))
    nn.ModuleList([source]).train()
    assert list(source.parameters()) == []
    assert source.used == [net]
    x = x.requires_grad_(True)
    v = source(x, t)
    assert (net.training, net.dropout.training, net.head.training) == (True, False, True)
    assert net.matrix.requires_grad
    v.sum().backward()
    assert net.matrix.grad is None
    assert x.grad is not None
    expected = torch.cos(x.detach()) * net.matrix.detach().sum(1)  # d/dx of the sum of A sin(x)
    torch.testing.assert_close(x.grad, expected)
    with torch.no_grad():
        net.matrix.mul_(2)  # the weights are those of the call
    torch.testing.assert_close(source(x, t) - t[:, None], 2 * (v - t[:, None]))


@pytest.mark.parametrize("form", FORMS)
def test_dropout_of_a_teacher_is_off(form: str):
    x, t = batch()
    net = (GLOBAL if form in ("global", "function-of-function") else Field()).train()
    source = FromTeacher(FORMS[form](net)).train()
    torch.testing.assert_close(source(x, t), torch.sin(x) @ net.matrix.detach() + t[:, None])
    assert all(part.training for part in net.modules())


def test_a_teacher_moves_with_its_objective_and_its_owner_does_not():
    """`objective.to` takes copies of its weights; a deep copy, as FSDP2 takes, is no other teacher."""
    x, t = batch()
    net = Field()
    source = FromTeacher(lambda x, t, cond=None: net(x, t, cond))
    nn.ModuleList([source]).float()
    copied = copy.deepcopy(source)
    assert copied.used == source.used == [net]
    v = copied(x.float().requires_grad_(), t.float())
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, source(x.float(), t.float()))  # no dropout
    assert net.matrix.dtype == torch.float64
    v.sum().backward()
    assert net.matrix.grad is None


def test_networks_that_share_layers_get_no_gradient():
    """A layer inside another that is used too, two networks with one layer, two layers with one weight."""
    x, t = batch()
    layers = [nn.Linear(3, 3, dtype=torch.float64) for _ in range(3)]
    layers[2].weight = layers[1].weight
    one, two = nn.Sequential(layers[0], layers[1]), nn.Sequential(layers[1], layers[2])
    before = {id(value) for layer in layers for value in layer.parameters()}

    def both(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return one(x) + two(x) + layers[0](x)

    x.requires_grad_()
    v = FromTeacher(both)(x, t)
    torch.testing.assert_close(v, both(x, t))
    v.sum().backward()
    assert all(value.grad is None and value.requires_grad for layer in layers for value in layer.parameters())
    assert {id(value) for layer in layers for value in layer.parameters()} == before


def test_an_error_in_a_teacher_leaves_its_modes():
    x, t = batch()
    net = Field().train()
    with pytest.raises(RuntimeError):
        FromTeacher(net)(x[:, :2], t)
    assert all(part.training for part in net.modules())
    assert net.matrix.requires_grad


def test_weights_that_are_not_found_are_refused():
    x, t = batch()
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"uses a tensor that takes gradients: detach it, weight = weight\.detach\(\)"):
        FromTeacher(lambda x, t, cond=None: x * weight)
    net = Field()
    known = weakref.ref(net)  # where nobody looks
    hidden = FromTeacher(lambda x, t, cond=None: known()(x, t, cond))  # type: ignore[misc]
    with pytest.raises(ValueError, match="uses weights that take gradients and were not found: pass the network"):
        hidden(x, t)
    with pytest.raises(ValueError, match="uses weights that take gradients and were not found"):
        FromTeacher(hidden.fn)(x.requires_grad_(), t)  # as where the map is differentiated through the teacher
    net.requires_grad_(False).eval()
    torch.testing.assert_close(hidden(x, t), net(x, t))


class Shelf:
    """Something of a user's that has its network nowhere in its attributes."""

    net: Any = None
    made: Any = None

    @property
    def asked(self) -> Any:
        return self.made["net"]()

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.asked(x, t, cond)


def deep(net: nn.Module, levels: int) -> Any:
    call = lambda x, t, cond=None: net(x, t, cond)  # noqa: E731
    for _ in range(levels):
        call = (lambda inner: lambda x, t, cond=None: inner(x, t, cond))(call)
    return call


def shelf(net: nn.Module) -> Any:
    found = type("Found", (Shelf,), {"net": net})()
    return lambda x, t, cond=None: found.net(x, t, cond)


def asked(net: nn.Module) -> Any:
    return type("Asked", (Shelf,), {"made": {"net": weakref.ref(net)}})().velocity


HIDDEN: dict[str, Callable[[Field], Any]] = {
    "class attribute": shelf,
    "deque": lambda net: (lambda nets: lambda x, t, cond=None: nets[0](x, t, cond))(collections.deque([net])),
    "property": asked,
    "deep closure": lambda net: deep(net, 20),
}


@pytest.mark.parametrize("form", HIDDEN)
@pytest.mark.parametrize("frozen", [True, False])
def test_the_dropout_of_a_hidden_teacher_is_off_or_it_is_refused(form: str, frozen: bool):
    """Found, or refused by a line that works."""
    x, t = batch()
    net = Field().train().requires_grad_(not frozen)
    fn = HIDDEN[form](net)
    expected = torch.sin(x) @ net.matrix.detach() + t[:, None]
    source = FromTeacher(fn)
    if form in ("class attribute", "deque"):
        torch.testing.assert_close(source(x, t), expected)
    else:
        words = "calls Field, which is in training mode" if frozen else "uses weights that take gradients"
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"{words}.* not found: pass .*fm\.teacher\(fn, modules=\[net\]\)"):
                source(x, t)
    torch.testing.assert_close(teacher(fn, modules=[net])(x, t), expected)
    assert net.training
    net.requires_grad_(False).eval()
    torch.testing.assert_close(source(x, t), expected)


def test_layers_that_are_the_same_in_both_modes_may_be_made_in_a_call():
    x, t = batch()
    source = FromTeacher(lambda x, t, cond=None: nn.Softplus()(x))
    torch.testing.assert_close(source(x, t), nn.functional.softplus(x))
    with pytest.raises(ValueError, match="calls Dropout, which is in training mode"):
        FromTeacher(lambda x, t, cond=None: nn.Dropout()(x))(x, t)


def test_a_teacher_of_another_type_is_refused_in_one_line():
    """Times would lose their digits if they were converted without a word."""
    x, t = (value.float() for value in batch())
    net = nn.Linear(4, 3).half()
    fn = lambda x, t, cond=None: net(torch.cat([x, t[:, None]], 1))  # noqa: E731
    for rows in (x, x.half()):
        with pytest.raises(
            ValueError,
            match=r"has weights of torch\.float16, and was called with x of .* and t of torch\.float32",
        ):
            FromTeacher(fn)(rows, t)
    v = FromTeacher(lambda x, t, cond=None: fn(x.half(), t.half(), cond).to(x.dtype))(x, t)
    torch.testing.assert_close(v, net.float()(torch.cat([x, t[:, None]], 1)), rtol=1e-2, atol=1e-2)


def test_a_scripted_teacher_is_frozen_by_its_owner():
    """TorchScript has no other weights for one call."""
    x, t = batch()
    net = torch.jit.trace(Field().eval(), (x, t))
    with pytest.raises(ValueError, match=r"freeze it, net\.requires_grad_\(False\)\.eval\(\)"):
        FromTeacher(net)
    net.requires_grad_(False).eval()
    torch.testing.assert_close(FromTeacher(lambda x, t, cond=None: net(x, t))(x, t), net(x, t))


def test_a_plain_function_is_a_teacher():
    x, t = batch()
    teacher = FromTeacher(lambda x, t, cond=None: 2 * x + t[:, None])
    torch.testing.assert_close(teacher(x, t), 2 * x + t[:, None])
    assert teacher.bind(a_draw()) is teacher


# other forms ---------------------------------------------------------------------------------------------------------


def expected(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    v = 2 * x + t[:, None]
    return v if cond is None else v + cond[:, None]


class Named(nn.Module):
    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return expected(sample, timestep, class_labels)


ADAPTED: dict[str, tuple[FromTeacher, bool]] = {
    "xt": (teacher(lambda x, t: expected(x, t)), False),
    "xt-cond": (teacher(lambda x, t, cond=None: expected(x, t, cond)), True),
    "xt-cond-needed": (teacher(lambda x, t, cond: expected(x, t, cond)), True),
    "tx": (teacher(lambda t, x: expected(x, t), order="tx"), False),
    "tx-cond": (teacher(lambda t, x, y=None: expected(x, t, y), "tx"), True),
    "keywords": (teacher(lambda *, x, t, cond=None: expected(x, t, cond), order="keywords"), True),
    "named": (
        teacher(Named(), "keywords", names={"x": "sample", "t": "timestep", "cond": "class_labels"}),
        True,
    ),
    "column": (teacher(lambda x, t, cond=None: expected(x, t[:, 0], cond), time="column"), True),
    "cat": (teacher(lambda x, t: 2 * torch.cat([x, t], 1)[:, :3] + t, time="column"), False),
    "number": (teacher(lambda t, x: 2 * x + t, "tx", time="number"), False),
    "number-cond": (
        teacher(lambda x, t, cond=None: 2 * x + t + (0 if cond is None else cond[:, None]), time="number"),
        True,
    ),
}


@pytest.mark.parametrize("form", ADAPTED)
def test_a_teacher_of_another_form(form: str):
    x, t = batch()
    source, conditional = ADAPTED[form]
    torch.testing.assert_close(source(x, t), expected(x, t))
    cond = torch.arange(7, dtype=torch.float64)
    if conditional:
        torch.testing.assert_close(source(x, t, cond), expected(x, t, cond))
    else:
        with pytest.raises(ValueError, match=r"takes no condition, and one was given: write fm\.teacher\(lambda"):
            source(x, t, cond)


def test_a_method_takes_an_adapted_teacher_and_gives_its_network_no_gradient():
    torch.manual_seed(0)
    net, flow_map = Field().train(), AverageVelocity(MLP(3, width=8, depth=2)).double()
    objective = lmd(flow_map, teacher=teacher(lambda t, x: net(x, t), order="tx"))
    objective(batch()[0]).value.backward()
    assert net.matrix.grad is None
    assert net.training
    assert all(value.grad is not None for value in flow_map.parameters())
    with pytest.raises(ValueError, match="lmd: the teacher is the map itself, or shares parameters with it"):
        lmd(flow_map, teacher=teacher(lambda t, x: flow_map.velocity(x, t), order="tx"))
    with pytest.raises(ValueError, match=r"pass Target\(flow_map\)\.velocity"):
        lmd(flow_map, teacher=lambda x, t, cond=None: flow_map.net(x, t, t, cond))


def test_forms_that_are_refused():
    net = MLP(3, width=8, depth=2)
    with pytest.raises(
        ValueError, match=r"must take \(x, t, cond=None\) -> like x, got <lambda>\(x, t\): .*fm\.teacher"
    ):
        FromTeacher(lambda x, t: x)
    with pytest.raises(ValueError, match=r"got a map: pass its velocity, flow_map\.velocity"):
        FromTeacher(AverageVelocity(net))
    with pytest.raises(ValueError, match=r"a network of two times: pass its velocity, fm\.maps\.AverageVelocity"):
        FromTeacher(net)
    with pytest.raises(ValueError, match=r"order of a teacher is one of xt, tx, keywords, got 'yx'"):
        teacher(torch.sin, order="yx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"time of a teacher is one of row, column, number, got 'B'"):
        teacher(torch.sin, time="B")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'names of a teacher are for order="keywords"'):
        teacher(torch.sin, names={"x": "sample"})
    with pytest.raises(ValueError, match="a teacher takes two arguments, or three with a condition, got <lambda>"):
        teacher(lambda x: x)


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
    draw = a_draw()._replace(cond=GuidedCondition(labels, weights))
    part = draw.rows(slice(1, 4)).cond
    assert isinstance(part, GuidedCondition)
    assert part.cond.tolist() == [1, 2, 3]
    assert torch.equal(part.weight, weights[1:4])
    moved = draw.to("meta")
    assert moved.cond.cond.device.type == moved.cond.weight.device.type == moved.x0.device.type == "meta"
    unlabelled = draw._replace(cond=GuidedCondition(None, weights)).rows(slice(1, 4)).cond
    assert unlabelled.cond is None
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
    torch.testing.assert_close(guided(x, t, GuidedCondition(labels, own)), expected)
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
