"""Objectives: one draw for all their parts, guidance through every one of them, targets that follow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from cases import generator
from torch import Tensor, nn

from flowmaps import methods, schedules, times
from flowmaps.couplings import Independent, Normal
from flowmaps.equations import Eulerian, Lagrangian, Semigroup, Stop
from flowmaps.guidance import Guidance
from flowmaps.interpolants import Interpolant, Linear, Trigonometric, VarianceExploding, VariancePreserving, WithNoise
from flowmaps.losses import Chain, Constant, Perceptual, PerNoise, PerSpeed, Power, absolute, squared
from flowmaps.maps import AverageVelocity, FlowMap, Target, VelocityForShortJumps
from flowmaps.objectives import Compare, MapMatching, Objective, RoundTrip, SplitRows, Sum, VelocityMatching
from flowmaps.shapes import Condition, GuidedCondition, label_of
from flowmaps.solvers import SolverFlow
from flowmaps.times import Diagonal, FromBase, ToData, Triangle
from flowmaps.velocities import FromInterpolant, FromMap, FromTeacher, SelfGuided

CLASSES, BATCH = 3, 8


class Net(nn.Module):
    """A smooth network of x, s, t, labels and the guidance weight; both Jacobians are full."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        rng = generator(seed)
        self.first = nn.Parameter(0.7 * torch.randn(4, 5, dtype=torch.float64, generator=rng))
        self.last = nn.Parameter(torch.randn(5, 2, dtype=torch.float64, generator=rng))
        self.label = nn.Parameter(torch.randn(CLASSES + 1, 5, dtype=torch.float64, generator=rng))

    def forward(self, x: Any, s: Any, t: Any, cond: Condition = None) -> Any:
        label = label_of(cond)
        own = self.label[-1] if label is None else self.label[label]
        h = torch.cat([x, s[:, None], t[:, None]], 1) @ self.first + own
        return torch.sin(h + cond.weight[:, None] if isinstance(cond, GuidedCondition) else h) @ self.last


def a_map() -> AverageVelocity:
    return AverageVelocity(Net())


def batch(rows: int = BATCH) -> tuple[Tensor, Tensor]:
    rng = generator(1)
    return torch.randn(rows, 2, generator=rng, dtype=torch.float64), torch.randint(CLASSES, (rows,), generator=rng)


@dataclass(frozen=True)
class Counting(Guidance):
    """Guidance that counts how often it draws."""

    calls: list[int] = field(default_factory=list)

    def condition(self, cond: Condition, x1: Tensor, generator: torch.Generator | None = None) -> Condition:
        self.calls.append(len(x1))
        return super().condition(cond, x1, generator)


GUIDED: dict[str, Callable[[FlowMap, Guidance], Objective]] = {
    "velocity": lambda m, g: VelocityMatching(m, Linear(), guidance=g),
    "map": lambda m, g: MapMatching(m, Linear(), Eulerian(Stop.TARGET), times=Triangle(), guidance=g),
    "round-trip": lambda m, g: RoundTrip(m, Linear(), guidance=g),
    "split": lambda m, g: methods.lsd(m, guidance=g),
    "split-of-split": lambda m, g: SplitRows(
        methods.meanflow(m, guidance=g), methods.flow_matching(m, guidance=g), share=0.5
    ),
    "sum": lambda m, g: Sum([methods.eulerian_estimation(m, guidance=g), methods.flow_matching(m, guidance=g)]),
    "sum-of-splits": lambda m, g: Sum([methods.psd(m, guidance=g), methods.improved_meanflow(m, guidance=g)]),
}
every = pytest.mark.parametrize("name", GUIDED)


# guidance ------------------------------------------------------------------------------------------------------------


@every
def test_labels_are_dropped_once_a_draw(name: str):
    """Twice would drop 1 - (1 - p)^2 of them."""
    rows, share = 4_001, 0.4
    guidance = Counting((1.0, 3.0), CLASSES, share)
    objective = GUIDED[name](a_map(), guidance)
    x1, labels = batch(rows)
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    assert guidance.calls == [rows]
    assert isinstance(draw.cond, GuidedCondition)
    dropped = draw.cond.cond == CLASSES
    assert abs(float(dropped.double().mean()) - share) < 4 * math.sqrt(share * (1 - share) / rows)
    assert torch.equal(draw.cond.cond[~dropped], labels[~dropped])
    for part in (dropped[: rows // 4], dropped[rows // 4 :]):  # in both parts of a split
        assert abs(float(part.double().mean()) - share) < 4.5 * math.sqrt(share * (1 - share) / len(part))


@every
def test_guidance_reaches_every_part(name: str):
    """At a weight of one nothing changes; at another each part has another loss."""
    x1, labels = batch()
    flow_map = a_map()
    plain, one, two = (GUIDED[name](flow_map, Guidance(w, CLASSES, dropout=1e-9)) for w in (1.0, 1.0 + 1e-13, 2.0))
    draw = plain.draw(x1, cond=labels, generator=generator(0))
    losses = [objective.evaluate(draw) for objective in (plain, one, two)]
    torch.testing.assert_close(losses[0].value, losses[1].value)
    assert abs(float(losses[0].value.detach() - losses[2].value.detach())) > 1e-3
    # those that look at dI change; a self-distillation off the diagonal learns from the map alone
    changed = {k for k in losses[0].parts if not torch.allclose(losses[0].parts[k], losses[2].parts[k])}
    own = {"split": {"lagrangian"}, "sum-of-splits": {"semigroup"}}.get(name, set())
    own |= {"round_trip"} if name == "round-trip" else set()
    assert changed == set(losses[0].parts) - own
    inner = [module for module in two.modules() if isinstance(module, SelfGuided)]
    assert inner
    assert all(source.guidance.weight == 2 for source in inner)


def test_guidance_needs_a_condition_in_an_objective_too():
    with pytest.raises(ValueError, match=r"guidance needs a condition: call objective\(x1, cond=labels\)"):
        methods.lsd(a_map(), guidance=Guidance(2.0, CLASSES))(batch()[0])


def test_without_guidance_the_condition_stays_as_it_is():
    x1, labels = batch()
    assert methods.lsd(a_map()).draw(x1, cond=labels).cond is labels
    assert methods.lsd(a_map()).draw(x1).cond is None


@pytest.mark.parametrize("improved", [False, True])
def test_guided_meanflow_is_the_papers_algorithm(improved: bool):
    """MeanFlow: u on sg(v_g + (t - s) D u), D along v_g, the guided velocity (2505.13447, equations 19 to 21).

    Improved MeanFlow: u - (t - s) sg(D u) on v_g, D along the map's own u_{s,s}(I_s | c, w) (2512.02012, equation 12).
    Labels dropped, an interval of guidance, the gradient too.
    """
    flow_map = a_map()
    omega, kappa = 0.9, 0.55
    own = Guidance((1.0, 8.0), CLASSES, 0.3, (0.2, 0.8), None)
    guidance = own if improved else Guidance(omega / (1 - kappa), CLASSES, 0.3, (0.2, 0.8), kappa)
    options = {"guidance": guidance, "weight": Constant(), "times": Triangle(), "diagonal": Diagonal()}
    method = methods.improved_meanflow if improved else methods.meanflow
    objective = method(flow_map, share=0.5, **options)
    x1, labels = batch(33)
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    s, t, cond, net = draw.s, draw.t, draw.cond, flow_map.net
    label = label_of(cond)
    assert 0 < int((label == CLASSES).sum()) < 33
    x = (1 - s)[:, None] * draw.x0 + s[:, None] * draw.x1
    along = draw.x1 - draw.x0
    none = torch.full_like(label, CLASSES)
    if improved:
        factor = (1 - 1 / cond.weight)[:, None]
        v_u = net(x, s, s, GuidedCondition(none, torch.ones_like(s)))
        guided = along + factor * (net(x, s, s, cond) - v_u)
    else:
        guided = omega * along + kappa * net(x, s, s, cond) + (1 - omega - kappa) * net(x, s, s, none)
    acts = ((s >= 0.2) & (s <= 0.8) & (label != CLASSES))[:, None]
    target = torch.where(acts, guided, along).detach()
    direction = net(x, s, s, cond).detach() if improved else target
    _, slope = torch.func.jvp(lambda y, r: net(y, r, t, cond), (x, s), (direction, torch.ones_like(s)))
    expected = (net(x, s, t, cond) - (target + (t - s)[:, None] * slope).detach()).square().sum(1).mean()
    loss = objective.evaluate(draw).value
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)  # kappa in single precision would be 1e-7 off
    got = torch.autograd.grad(loss, list(net.parameters()))
    wanted = torch.autograd.grad(expected, list(net.parameters()))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_a_guided_teacher_is_distilled_with_the_labels_that_were_drawn():
    """LMD with guidance: d_t X_{s,t} = b^w_t(X), b^w = b(none) + w (b(label) - b(none)) of the teacher."""
    teacher = Net(9)

    def fn(x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        assert not isinstance(cond, GuidedCondition)
        return teacher(x, t, t, cond)

    flow_map = a_map()
    guidance = Guidance((1.0, 3.0), CLASSES, 0.3)
    objective = methods.lmd(flow_map, teacher=fn, guidance=guidance, weight=Constant())
    x1, labels = batch(33)
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    s, t, cond = draw.s, draw.t, draw.cond
    x = (1 - s)[:, None] * draw.x0 + s[:, None] * draw.x1
    _, slope = torch.func.jvp(lambda r: flow_map.net(x, s, r, cond), (t,), (torch.ones_like(t),))
    u = flow_map.net(x, s, t, cond)
    jump = x + (t - s)[:, None] * u
    w = torch.where(cond.cond == CLASSES, 1, cond.weight)[:, None]
    b = fn(jump, t) + w * (fn(jump, t, cond.cond) - fn(jump, t))
    expected = (u + (t - s)[:, None] * slope - b).square().sum(1).mean()
    torch.testing.assert_close(objective.evaluate(draw).value, expected)


def test_reflow_carries_its_pairs_along_the_guided_flow():
    """Guidance is in the pairs; the velocity of the pairs is then learned as it is, without more of it."""
    teacher = Net(9)
    objective = methods.reflow(
        a_map(), teacher=lambda x, t, cond=None: teacher(x, t, t, cond), guidance=Guidance(2.0, dropout=0), steps=32
    )
    x1, labels = batch()
    draw = objective.draw(x1, cond=labels, generator=generator(0))

    def guided(x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        away = teacher(x, t, t, None)
        return away + 2 * (teacher(x, t, t, cond) - away)

    zero = torch.zeros(BATCH, dtype=torch.float64)
    carried = SolverFlow(guided, rtol=1e-8, atol=1e-8)(draw.x0, zero, zero + 1, labels)
    torch.testing.assert_close(draw.x1, carried, rtol=1e-3, atol=1e-3)
    assert isinstance(objective.velocity, FromInterpolant)


TAUGHT: dict[str, Callable[..., Objective]] = {
    method.__name__: method
    for method in (
        methods.lmd,
        methods.emd,
        methods.ayf_emd,
        methods.ayf_lmd,
        methods.scd,
        methods.freeflow,
        methods.ctm,
        methods.neural_operator,
        methods.consistency_distillation,
        methods.split_meanflow,
        methods.reflow,
    )
}


@pytest.mark.parametrize("name", TAUGHT)
@pytest.mark.parametrize("weight", [2.0, (1.0, 3.0)])
def test_what_learns_from_a_teacher_needs_no_label_for_none(name: str, weight: float | tuple[float, float]):
    """The teacher knows b(none): `dropout=0` and no `classes`. A weight that is drawn comes with its row."""
    teacher = Net(9)
    field = lambda x, t, cond=None: teacher(x, t, t, cond)  # noqa: E731
    objective = TAUGHT[name](a_map(), teacher=field, guidance=Guidance(weight, dropout=0)).double().eval()
    plain = TAUGHT[name](a_map(), teacher=field, guidance=Guidance(1.0, dropout=0)).double().eval()
    x1, labels = batch()
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    assert isinstance(draw.cond, GuidedCondition) == isinstance(weight, tuple)
    value = float(objective.evaluate(draw).value.detach())
    assert math.isfinite(value)
    if not isinstance(weight, tuple):
        other = plain.evaluate(plain.draw(x1, cond=labels, generator=generator(0)))
        assert abs(value - float(other.value.detach())) > 1e-6


@pytest.mark.parametrize("method", [methods.improved_consistency_training, methods.easy_consistency_tuning])
def test_edms_levels_on_the_variance_exploding_path(method: Callable[..., Objective]):
    """log sigma ~ N(-1.1, 2^2) where sigma = omega / beta = 80 (1 - s)^7, the base being N(0, 80^2)."""
    path, coupling = VarianceExploding(80.0, 7.0), Independent(Normal(80.0))
    objective = method(a_map(), interpolant=path, coupling=coupling)
    s = objective.draw(torch.zeros(4_001, 2, dtype=torch.float64), generator=generator(0), progress=1.0).s
    median = float(path.omega(s, 80.0).log().median())
    assert abs(median + 1.1) < 0.3


# draws and their parts -----------------------------------------------------------------------------------------------


@every
def test_a_draw_is_all_the_randomness(name: str):
    x1, labels = batch()
    objective = GUIDED[name](a_map(), Guidance((1.0, 3.0), CLASSES, 0.5))
    one, same, other = (objective.draw(x1, cond=labels, generator=generator(k)) for k in (0, 0, 1))
    for a, b in zip(one[:6], same[:6], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert torch.equal(one.cond.weight, same.cond.weight)
    assert not torch.equal(one.x0, other.x0)
    before = torch.get_rng_state()
    values = [objective.evaluate(one).value for _ in range(2)]
    assert torch.equal(*values)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(objective(x1, cond=labels, generator=generator(0)).value, values[0])


def test_a_split_is_the_mean_over_all_rows_and_a_sum_the_weighted_sum():
    flow_map = a_map()
    x1, labels = batch(11)
    diagonal = VelocityMatching(flow_map, Linear())
    jumps = MapMatching(flow_map, Linear(), Lagrangian(Stop.VELOCITY), FromMap(flow_map), times=Triangle())
    split = SplitRows(diagonal, jumps, 0.4)
    draw = split.draw(x1, cond=labels, generator=generator(0))
    assert split.rows_of_first(11) == 4
    assert torch.equal(draw.s[:4], draw.t[:4])
    assert bool((draw.s[4:] < draw.t[4:]).all())
    first, second = diagonal.evaluate(draw.rows(slice(0, 4))), jumps.evaluate(draw.rows(slice(4, 11)))
    loss = split.evaluate(draw)
    torch.testing.assert_close(loss.value, (4 * first.value + 7 * second.value) / 11)
    total = sum(part.mean() for part in loss.parts.values())
    torch.testing.assert_close(total, loss.value.detach())  # no weights: the parts add up to the loss
    both = Sum([diagonal, jumps], [2.0, 0.5])
    one = both.evaluate(draw)
    expected = 2 * diagonal.evaluate(draw).value + 0.5 * jumps.evaluate(draw).value
    torch.testing.assert_close(one.value, expected)


SPLITS: dict[str, Callable[[FlowMap], Objective]] = {
    "lsd": methods.lsd,
    "meanflow": methods.meanflow,
    "split-of-split": lambda m: SplitRows(methods.meanflow(m), methods.psd(m), share=0.5),
    "sum-of-split": lambda m: Sum([methods.psd(m), methods.lsd(m, share=0.75)]),
    "one": methods.flow_matching,
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_draw_that_is_cut_by_rows_has_the_gradient_of_the_whole(name: str):
    """Rows drawn on the diagonal stay there, whatever share of a slice they are."""
    flow_map = a_map()
    objective = SPLITS[name](flow_map).eval()
    x1, labels = batch(24)
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    weights = list(flow_map.parameters())
    wanted = torch.autograd.grad(objective.evaluate(draw).value, weights)
    for bounds in ((0, 7, 24), (0, 12, 13, 24), (0, 18, 24), (0, 23, 24)):
        value = sum(
            (b - a) / 24 * objective.evaluate(draw.rows(slice(a, b))).value for a, b in itertools.pairwise(bounds)
        )
        torch.testing.assert_close(torch.autograd.grad(value, weights), wanted)  # type: ignore[arg-type]
    cut = draw.map(lambda value: value[::2])
    if objective.number_of_parts == 1:
        objective.evaluate(cut)
        return
    with pytest.raises(ValueError, match=r"a draw of 24 rows was cut to 12 by hand, .* cut it by draw\.rows\(slice"):
        objective.evaluate(cut)
    with pytest.raises(ValueError, match="rows that follow each other, got a step of 2"):
        draw.rows(slice(0, 24, 2))


@pytest.mark.parametrize("name", ["lsd", "meanflow", "split-of-split", "sum-of-split"])
def test_a_draw_whose_rows_are_moved_is_right_or_refused(name: str):
    """Rows of one part may change places; a row that leaves the diagonal's place would be matched elsewhere."""
    flow_map = a_map()
    objective = SPLITS[name](flow_map).eval()
    x1, labels = batch(24)
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    weights, bounds = list(flow_map.parameters()), [0, *itertools.accumulate(draw.counts)]
    wanted = torch.autograd.grad(objective.evaluate(draw).value, weights)
    within = torch.cat([torch.arange(a, b).flip(0) for a, b in itertools.pairwise(bounds)])
    found = torch.autograd.grad(objective.evaluate(draw.map(lambda value: value[within])).value, weights)
    torch.testing.assert_close(found, wanted)  # type: ignore[arg-type]
    swapped = torch.arange(24)
    swapped[[0, 23]] = swapped[[23, 0]]
    for moved in (draw.map(lambda value: value[swapped]), draw.map(lambda value: value.flip(0))):
        with pytest.raises(ValueError, match=r"rows of a draw were moved .* on the diagonal.*: shuffle x1 before"):
            objective.evaluate(moved)


def test_the_split_and_the_warm_up_are_drawn_for_a_progress():
    flow_map = a_map()
    x1, labels = batch()
    led = Semigroup(Stop.TARGET, velocity_first=True)
    finite = MapMatching(flow_map, Linear(), led, times=ToData(), split=times.FixedLeg(schedules.Sigmoid()))
    for progress, share in [(0.0, 1.0), (0.5, 0.5), (1.0, 5e-3)]:
        drawn = finite.draw(x1, cond=labels, progress=progress).split
        torch.testing.assert_close(drawn, torch.full_like(drawn, share))
    warmed = MapMatching(flow_map, Linear(), Eulerian(Stop.TARGET), times=Triangle(), warmup=lambda p: p**2)
    assert warmed.draw(x1, cond=labels, progress=0.5).warmup.tolist() == [0.25] * BATCH
    # a split hands each half its own
    both = SplitRows(finite, warmed, 0.5).draw(x1, cond=labels, progress=0.5)
    assert both.split[:4].tolist() == [0.5] * 4
    assert both.warmup.tolist() == [1.0] * 4 + [0.25] * 4


def test_a_weight_of_the_first_leg_sees_its_share():
    """CT's loss in full, iCT's weight: |X_{s,1}(I_s) - sg X_{w,1}(I_w)|^2 / (sigma_s - sigma_w)."""
    flow_map, path = a_map(), Trigonometric()
    weight = Chain(Power(2), PerNoise(path))
    objective = methods.consistency_training(flow_map, cells=6, interpolant=path, weight=weight)
    x1, labels = batch(33)
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    s, one = draw.s, torch.ones(33, dtype=torch.float64)
    w = s + 1 / 6
    here, there = path.point(draw.x0, draw.x1, s), path.point(draw.x0, draw.x1, w)
    target = torch.where((w > 1 - 1e-9)[:, None], there, flow_map(there, w.clamp_max(1), one, labels)).detach()
    jump = flow_map(here, s, one, labels)
    lost = (1 / torch.tan(0.5 * math.pi * s) - 1 / torch.tan(0.5 * math.pi * w)).clamp_max(80)
    expected = ((jump - target).square().sum(1) / lost).mean()
    value = objective.evaluate(draw).value
    torch.testing.assert_close(value, expected)
    got, wanted = (torch.autograd.grad(loss, flow_map.net.last)[0] for loss in (value, expected))  # type: ignore[arg-type]
    torch.testing.assert_close(got, wanted)


def test_the_data_end_is_where_the_frozen_map_carries_both_sides():
    """CTM: |X-_{t,1}(X_{s,t}(I_s)) - X-_{t,1}(X-_{w,t}(solver(I_s)))|^2, gradient through the inner jump alone."""
    flow_map, target = a_map(), Target(AverageVelocity(Net(11)))
    teacher, split = FromTeacher(lambda x, t, cond=None: torch.cos(x) + t[:, None]), times.UniformLeg()
    equation = Semigroup(Stop.TARGET, velocity_first=True)
    options: dict[str, Any] = {"times": Triangle(), "split": split, "target": target, "compare": Compare.DATA}
    objective = MapMatching(flow_map, Linear(), equation, teacher, **options)
    x1, labels = batch(17)
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    s, t, one = draw.s, draw.t, torch.ones(17, dtype=torch.float64)
    w = s + draw.split * (t - s)
    x = (1 - s)[:, None] * draw.x0 + s[:, None] * draw.x1
    led = x + (w - s)[:, None] * (torch.cos(x) + s[:, None])
    goal = target(target(led, w, t, labels), t, one, labels)
    expected = (target(flow_map(x, s, t, labels), t, one, labels) - goal.detach()).square().sum(1).mean()
    value = objective.evaluate(draw).value
    torch.testing.assert_close(value, expected)
    got, wanted = (torch.autograd.grad(loss, list(flow_map.parameters())) for loss in (value, expected))
    torch.testing.assert_close(got, wanted)
    assert max(float(g.abs().max()) for g in got) > 1e-3  # no_grad around the outer map would kill it


# distances -----------------------------------------------------------------------------------------------------------


def test_a_distance_of_ones_own_needs_no_subclass():
    """A loss by pixel, and an L1, in a method of two objectives: the mean over all rows, parts squared as ever."""
    mask = torch.tensor([1.0, 4.0], dtype=torch.float64)
    by_pixel = lambda residual: (mask * residual.square()).sum(1)  # noqa: E731
    flow_map = a_map()
    x1, labels = batch(12)
    plain = methods.psd(flow_map)
    draw = plain.draw(x1, cond=labels, generator=generator(0))
    parts = plain.evaluate(draw).parts
    for distance in (by_pixel, absolute, squared):
        objective = methods.psd(flow_map, distance=distance)
        first, second = objective.first, objective.second  # type: ignore[attr-defined]
        diagonal, jumps = draw.rows(slice(0, 9)), draw.rows(slice(9, 12))
        x = Linear().point(diagonal.x0, diagonal.x1, diagonal.t)
        one = distance(flow_map.velocity(x, diagonal.t, labels[:9]) - (diagonal.x1 - diagonal.x0))
        x = Linear().point(jumps.x0, jumps.x1, jumps.s)
        two = distance(second.equation(flow_map, x, *jumps[3:5], FromMap(flow_map), jumps.split, cond=jumps.cond).value)
        loss = objective.evaluate(draw)
        torch.testing.assert_close(loss.value, torch.cat([one, two]).mean())
        assert first.distance is distance
        assert all(torch.equal(loss.parts[name], parts[name]) for name in parts)


class Features(nn.Module):
    """Stands for LPIPS: a distance of the features of two images, with weights and dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(2, 5, dtype=torch.float64), nn.Dropout(0.5)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return (self.dropout(self.layer(one).tanh()) - self.layer(other).tanh()).square().sum(1)


def test_a_perceptual_distance_compares_images():
    """Of a consistency model the two jumps to the data; on the diagonal the denoiser and the data point."""
    flow_map, features = a_map(), Features()
    x1, labels = batch(12)
    objective = methods.consistency_training(flow_map, cells=6, distance=Perceptual(features)).train()
    assert not features.dropout.training
    assert not any(p.requires_grad for p in features.parameters())
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    s, one, w = draw.s, torch.ones(12, dtype=torch.float64), (draw.s + 1 / 6).clamp_max(1)
    here, there = Linear().point(draw.x0, draw.x1, s), Linear().point(draw.x0, draw.x1, w)
    target = flow_map(there, w, one, labels).detach()
    expected = features(flow_map(here, s, one, labels), target).mean()
    value = objective.evaluate(draw).value
    torch.testing.assert_close(value, expected)
    got, wanted = (torch.autograd.grad(loss, flow_map.net.last)[0] for loss in (value, expected))  # type: ignore[arg-type]
    torch.testing.assert_close(got, wanted)
    matching = VelocityMatching(flow_map, Linear(), distance=Perceptual(features))
    denoised = Linear().velocity_to_denoiser(flow_map.velocity(here, s, labels), here, s)
    expected = features(denoised, draw.x1).mean()
    torch.testing.assert_close(matching.evaluate(draw._replace(t=s)).value, expected)


def test_comparisons_that_are_refused():
    options: dict[str, Any] = {"times": ToData()}
    equation = Eulerian(Stop.TARGET, normalise=0.1)
    with pytest.raises(ValueError, match=r"Compare\.DATA is for jumps of a semigroup, got Eulerian"):
        MapMatching(a_map(), Linear(), Eulerian(), compare=Compare.DATA, **options)
    for refused in ({"compare": Compare.JUMP}, {"distance": Perceptual(Features())}):
        with pytest.raises(ValueError, match="a normalised residual is no difference of points, got"):
            MapMatching(a_map(), Linear(), equation, **options, **refused)
    x, t = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"warmup is for a derivative with stop=Stop\.TARGET, got it for Eulerian"):
        Eulerian(step=0.1)(a_map(), x, t, t, FromTeacher(torch.sin), warmup=t)


# targets that follow -------------------------------------------------------------------------------------------------


def follower(flow_map: FlowMap) -> tuple[Objective, Target]:
    frozen = Target(flow_map, decay=0.5)
    return methods.consistency_training(flow_map, cells=5, target=frozen), frozen


NESTED: dict[str, Callable[[FlowMap], tuple[Objective, Target]]] = {
    "target": follower,
    "in-split": lambda m: (lambda o, f: (SplitRows(VelocityMatching(m, Linear()), o), f))(*follower(m)),
    "in-sum": lambda m: (lambda o, f: (Sum([o, VelocityMatching(m, Linear())]), f))(*follower(m)),
    "in-near": lambda m: (lambda f: (methods.shortcut(m, target=f), f))(Target(m, decay=0.5)),
    "legs": lambda m: (lambda f: (methods.pfmm(m, frozen=f), f))(Target(m, decay=0.5)),
    "ctm": lambda m: (lambda f: (methods.ctm(m, teacher=lambda x, t, cond=None: -x, target=f), f))(
        Target(m, decay=0.5)
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_targets_follow_wherever_they_are(name: str):
    flow_map = a_map()
    objective, frozen = NESTED[name](flow_map)
    start = flow_map.net.last.detach().clone()
    assert objective.moving_targets() == [frozen]
    with torch.no_grad():
        flow_map.net.last.add_(1)
    objective.step(0.1)
    torch.testing.assert_close(frozen.flow_map.net.last.detach(), start + 0.5)  # followed once, not twice
    objective.step(0.2)
    torch.testing.assert_close(frozen.flow_map.net.last.detach(), start + 0.75)


def test_only_what_follows_is_followed():
    flow_map = a_map()
    objective = methods.pfmm(flow_map)
    assert objective.moving_targets() == []
    before = [p.clone() for p in objective.parameters() if not p.requires_grad]
    with torch.no_grad():
        flow_map.net.last.add_(1)
    objective.step(1.0)
    after = [p for p in objective.parameters() if not p.requires_grad]
    assert len(before) == 3
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_progressive_distillation_takes_a_new_teacher_after_each_round():
    flow_map = a_map()
    objective = methods.progressive_distillation(flow_map, cells=schedules.Halving(4))
    (frozen,) = objective.moving_targets()
    seen = []
    for k in range(30):
        with torch.no_grad():
            flow_map.net.last.fill_(k + 1)
        objective.step((k + 1) / 30)
        seen.append(float(frozen.flow_map.net.last.detach()[0, 0]))
    assert seen[9] == seen[18] == 10
    assert seen[19] == seen[28] == 20
    assert seen[29] == 30


def test_what_is_frozen_is_not_trained():
    flow_map = a_map()
    for name, make in NESTED.items():
        objective, _ = make(flow_map)
        trained = {id(p) for p in objective.parameters() if p.requires_grad}
        assert trained == {id(p) for p in flow_map.parameters()}, name


# what is refused -----------------------------------------------------------------------------------------------------


def test_objectives_that_are_refused():
    flow_map, other = a_map(), a_map()
    one = VelocityMatching(flow_map, Linear())
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"SplitRows needs 0 < share < 1, got {share}"):
            SplitRows(one, one, share)
    for different in (VelocityMatching(other, Linear()), VelocityMatching(flow_map, Trigonometric())):
        with pytest.raises(ValueError, match="of a SplitRows must share their flow map and their interpolant"):
            SplitRows(one, different)
    with pytest.raises(ValueError, match="needs at least 2 rows, got 1"):
        SplitRows(one, one)(batch(1)[0], cond=batch(1)[1])
    with pytest.raises(ValueError, match="Sum needs a factor for each of its terms, got 0 terms"):
        Sum([])
    with pytest.raises(ValueError, match=r"got 2 terms and \[1.0\]"):
        Sum([one, one], [1.0])


def test_batches_that_are_refused():
    objective = VelocityMatching(a_map(), Linear())
    for x1 in (torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match=r"x1 must be a floating-point batch \(B, \*shape\), got"):
            objective(x1)
    with pytest.raises(ValueError, match=r"x0 and x1 must have one shape, got \(4, 2\) and \(3, 2\)"):
        objective(torch.zeros(3, 2), torch.zeros(4, 2))


def test_the_power_of_two_is_the_loss_on_the_jump_for_a_base_line():
    """FromBase and Power(2): E |X_{0,t}(x0) - solver(x0)|^2, the error of one-step sampling."""
    flow_map = a_map()

    def field(x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        return torch.cos(x)

    options: dict[str, Any] = {"times": FromBase(), "weight": Power(2), "solver_steps": 5}
    objective = methods.neural_operator(flow_map, teacher=field, **options)
    x1, labels = batch()
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    zero = torch.zeros(BATCH, dtype=torch.float64)
    solved = SolverFlow(field, method="rk4", steps=5)(draw.x0, zero, draw.t)
    expected = (flow_map(draw.x0, zero, draw.t, labels) - solved).square().sum(1).mean()
    torch.testing.assert_close(objective.evaluate(draw).value, expected)


def test_near_legs_take_the_velocity_of_the_target():
    """Shortcut models: the legs of the shortest jumps are u_{s,s} of the target, the others its own jumps."""
    flow_map = a_map()
    target = Target(AverageVelocity(Net(11)))
    objective = methods.shortcut(flow_map, levels=2, share=0.5, target=target)
    x1, labels = batch(32)
    draw = objective.draw(x1, cond=labels, generator=generator(0)).rows(slice(16, 32))
    s, t, labels = draw.s, draw.t, labels[16:]
    w = 0.5 * (s + t)
    short = t - s < 0.75
    assert 0 < int(short.sum()) < 16
    x = (1 - s)[:, None] * draw.x0 + s[:, None] * draw.x1
    net = target.flow_map.net
    first = net(x, s, torch.where(short, s, w), labels)
    there = x + (w - s)[:, None] * first
    second = net(there, w, torch.where(short, w, t), labels)
    goal = 0.5 * (first + second).detach()
    expected = (flow_map.net(x, s, t, labels) - goal).square().sum(1).mean()
    torch.testing.assert_close(objective.second.evaluate(draw).value, expected)
    assert isinstance(objective.second.velocity.flow_map, VelocityForShortJumps)


# paths whose speed has no bound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VariancePreserving(), WithNoise(VariancePreserving(), 0.5)], ids=["plain", "noise"])
def test_no_row_owns_the_loss_of_velocity_matching(path: Interpolant):
    """Without the weight one row of 1,024 is 16 % of the loss at the mean; with it less than a fiftieth, always."""
    flow_map = AverageVelocity(Zero())
    objective = methods.flow_matching(flow_map, interpolant=path)
    assert isinstance(objective.weight, PerSpeed)
    largest, plain = [], []
    for k in range(20):
        draw = objective.draw(torch.randn(1_024, 2, generator=generator(k)), generator=generator(k + 100))
        part = objective.evaluate(draw).parts["diagonal"]
        weighted = objective.weight(part, draw.s, draw.t)
        torch.testing.assert_close(objective.evaluate(draw).value, weighted.mean())
        largest.append(float(weighted.max() / weighted.sum()))
        plain.append(float(part.max() / part.sum()))
    assert max(largest) < 0.02
    assert sum(plain) / 20 > 0.1


def test_the_weight_of_the_variance_preserving_path_is_v_prediction():
    """(1 - t^2) |v - dI|^2 = |sqrt(1 - t^2) v + t x0 - sqrt(1 - t^2) x1|^2."""
    flow_map = a_map()
    x1, labels = batch(33)
    objective = methods.flow_matching(flow_map, interpolant=VariancePreserving())
    draw = objective.draw(x1, cond=labels, generator=generator(0))
    t = draw.t[:, None]
    root = (1 - t * t).sqrt()
    x = root * draw.x0 + t * draw.x1
    residual = root * flow_map.net(x, draw.t, draw.t, labels) + t * draw.x0 - root * draw.x1
    torch.testing.assert_close(objective.evaluate(draw).value, residual.square().sum(1).mean())


@pytest.mark.parametrize("path", [Linear(), Trigonometric(), VarianceExploding()])
def test_paths_of_bounded_speed_have_no_weight(path: Interpolant):
    assert isinstance(methods.flow_matching(a_map(), interpolant=path).weight, Constant)
    given = methods.flow_matching(a_map(), interpolant=VariancePreserving(), weight=Constant(2.0))
    assert isinstance(given.weight, Constant)


class Zero(nn.Module):
    """A network that returns zero."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        return 0 * x
