"""Guidance: what is drawn for it, and the targets that follow, against the equations of their papers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import generator
from test_times import correlation, distance, uniform
from torch import Tensor, nn

from flowmaps.exact import GaussianMixture
from flowmaps.guidance import AtWeight, Guidance, GuidedMap
from flowmaps.interpolants import Interpolant, Linear, Trigonometric, WithNoise
from flowmaps.maps import AverageVelocity, FlowMap
from flowmaps.nn import MLP
from flowmaps.objectives import VelocityMatching
from flowmaps.shapes import Condition, GuidedCondition, label_of
from flowmaps.velocities import FromInterpolant, FromMap, FromTeacher, Guided, RandomInputs, SelfGuided

ROWS, CLASSES = 40_001, 3


def labels(rows: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(CLASSES, (rows,), generator=generator(seed))


def data(rows: int = 7) -> Tensor:
    return torch.randn(rows, 2, generator=generator(5), dtype=torch.float64)


# what is drawn -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_labels_are_dropped_row_by_row_with_the_share_asked_for(dropout: float):
    before = labels(ROWS)
    after = Guidance(2.0, CLASSES, dropout).condition(before, data(ROWS), generator(1))
    dropped = after == CLASSES
    assert torch.equal(after[~dropped], before[~dropped])
    assert after.dtype == before.dtype
    spread = math.sqrt(dropout * (1 - dropout) / ROWS)
    assert abs(float(dropped.double().mean()) - dropout) < 4 * spread
    assert abs(correlation(dropped.double(), before.double())) < 4 / math.sqrt(ROWS)
    assert abs(correlation(dropped[1:].double(), dropped[:-1].double())) < 4 / math.sqrt(ROWS)


def test_nothing_is_dropped_unless_asked_for():
    before = labels()
    assert Guidance(2.0, dropout=0).condition(before, data()) is before
    features = torch.randn(7, 4, dtype=torch.float64)
    assert Guidance(2.0, dropout=0).condition(features, data()) is features  # any condition will then do


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("weight", [(1.0, 8.0), (0.5, 3.0), (2.0, 2.0)])
def test_weights_are_log_uniform_and_given_beside_the_label(weight: tuple[float, float], dropout: float):
    """p(w) ~ 1 / w on [low, high]: improved MeanFlow's law with beta = 1 (2512.02012)."""
    guidance = Guidance(weight, CLASSES, dropout)
    drawn = guidance.condition(labels(ROWS), data(ROWS), generator(1))
    assert isinstance(drawn, GuidedCondition)
    low, high = weight
    assert drawn.weight.shape == (ROWS,)
    assert drawn.weight.dtype == torch.float64
    assert float(drawn.weight.min()) >= low * (1 - 1e-12)
    assert float(drawn.weight.max()) <= high * (1 + 1e-12)
    dropped = (drawn.cond == CLASSES).double()
    assert abs(float(dropped.mean()) - dropout) < 4 * math.sqrt(dropout * (1 - dropout) / ROWS) + 1e-12
    if low < high:
        assert distance(drawn.weight, lambda w: (w / low).log() / math.log(high / low)) < 1.95
        assert abs(correlation(drawn.weight, drawn.cond.double())) < 4 / math.sqrt(ROWS)
    if low < high and dropout:  # the rows that lose their label have the same law of weights
        lost = drawn.weight[drawn.cond == CLASSES]
        assert distance((lost / low).log() / math.log(high / low), uniform) < 1.95


def test_what_is_drawn_follows_the_generator():
    guidance = Guidance((1.0, 3.0), CLASSES, 0.5)
    one, same, other = (guidance.condition(labels(33), data(33), generator(k)) for k in (0, 0, 1))
    assert torch.equal(one.cond, same.cond)
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.cond, other.cond)
    assert not torch.equal(one.weight, other.weight)


def test_weights_by_row_are_one_outside_the_interval_and_without_a_label():
    t = torch.tensor([0.0, 0.2, 0.3, 0.5, 0.7, 0.71, 1.0], dtype=torch.float64)
    label = torch.tensor([0, 1, 2, CLASSES, 0, 1, CLASSES])
    fixed = Guidance(1.7, CLASSES, interval=(0.2, 0.7)).weights(t, label)
    assert fixed.dtype == torch.float64
    assert fixed.tolist() == [1, 1.7, 1.7, 1, 1.7, 1, 1]  # both ends belong to it
    own = torch.arange(2, 9, dtype=torch.float64)
    drawn = Guidance((1.0, 9.0), CLASSES, interval=(0.2, 0.7)).weights(t, GuidedCondition(label, own))
    assert drawn.tolist() == [1, 3, 4, 1, 6, 1, 1]
    everywhere = Guidance(1.7, dropout=0).weights(t, label)
    assert everywhere.tolist() == [1.7] * 7
    assert Guidance(1.7, CLASSES).weights(t, None).tolist() == [1.7] * 7


@pytest.mark.parametrize(
    "options, words",
    [
        ({"weight": 0.0, "classes": 2}, r"weight > 0, or a pair 0 < low <= high, got 0.0"),
        ({"weight": -1.0, "classes": 2}, r"weight > 0, or a pair"),
        ({"weight": (0.0, 2.0), "classes": 2}, r"pair 0 < low <= high, got \(0.0, 2.0\)"),
        ({"weight": (3.0, 2.0), "classes": 2}, r"pair 0 < low <= high, got \(3.0, 2.0\)"),
        ({"dropout": 1.0, "classes": 2}, r"dropout in \[0, 1\), got 1.0"),
        ({"dropout": -0.1, "classes": 2}, r"dropout in \[0, 1\), got -0.1"),
        ({}, "drops labels: pass classes=, the number of classes, or dropout=0"),
        ({"classes": 0}, "drops labels: pass classes="),
        ({"condition_dim": 0}, "condition_dim >= 1, or None for no numbers, got 0"),
        ({"classes": 2, "mix": 1.0}, r"mix in \[0, 1\), or None for 1 - 1/w, got 1.0"),
        ({"classes": 2, "mix": -0.5}, r"mix in \[0, 1\), or None for 1 - 1/w, got -0.5"),
        ({"classes": 2, "interval": (0.5, 0.5)}, r"Guidance needs an interval inside \[0, 1\], got \(0.5, 0.5\)"),
        ({"classes": 2, "interval": (-0.1, 0.5)}, r"Guidance needs an interval inside \[0, 1\]"),
        ({"classes": 2, "interval": (0.1, 1.5)}, r"Guidance needs an interval inside \[0, 1\]"),
    ],
)
def test_guidance_that_is_refused(options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        Guidance(**options)


def test_guidance_needs_a_condition():
    with pytest.raises(ValueError, match=r"guidance needs a condition: call objective\(x1, cond=labels\)"):
        Guidance(2.0, CLASSES).condition(None, data())


@pytest.mark.parametrize(
    "cond", [torch.randn(7, 7), torch.randn(7, 4), torch.randn(7)], ids=lambda cond: str(cond.shape)
)
def test_only_labels_can_be_dropped(cond: Tensor):
    """A square batch of features is the trap: a choice of rows would put the null label into its columns."""
    with pytest.raises(ValueError, match="label"):
        Guidance(2.0, CLASSES, 0.5).condition(cond, data(), generator(0))


def test_weights_that_were_to_be_drawn_are_asked_for():
    """A guided teacher of drawn weights, sampled with plain labels, has no weight to go by."""
    with pytest.raises(ValueError, match="GuidedCondition"):
        Guidance((1.0, 3.0), CLASSES).weights(torch.rand(7), labels())


# features as the condition ---------------------------------------------------------------------------------------


def features(rows: int, seed: int = 0) -> dict[str, Any]:
    """A tree like that of a text encoder."""
    rng = generator(seed)
    text, pooled = torch.randn(rows, 3, 4, generator=rng), torch.randn(rows, 5, generator=rng)
    return {"text": text.double(), "more": {"pooled": pooled.double()}}


NULL = {"more": {"pooled": torch.full((1, 5), 7.0)}, "text": torch.full((1, 3, 4), 9.0)}  # another order of names


def read(x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """A field that depends on all features."""
    assert cond is not None
    return (1 + t[:, None]) * x * cond["text"].sum((1, 2))[:, None] + cond["more"]["pooled"].square().mean(1)[:, None]


def rows_of_null(rows: int) -> dict[str, Any]:
    return {
        "text": NULL["text"].double().expand(rows, 3, 4),
        "more": {"pooled": NULL["more"]["pooled"].double().expand(rows, 5)},  # type: ignore[index]
    }


def test_features_are_dropped_together_and_have_no_guidance_then():
    before = features(ROWS)
    after = Guidance(2.5, null=NULL, dropout=0.2).condition(before, data(ROWS), generator(1))
    dropped = (after["text"] == 9).all((1, 2))
    assert torch.equal(dropped, (after["more"]["pooled"] == 7).all(1))
    assert torch.equal(after["text"][~dropped], before["text"][~dropped])
    assert abs(float(dropped.double().mean()) - 0.2) < 4 * math.sqrt(0.16 / ROWS)
    weights = Guidance(2.5, null=NULL).weights(torch.full((ROWS,), 0.5), after)
    assert torch.equal(weights, torch.where(dropped, 1.0, 2.5))


def test_a_teacher_is_guided_away_from_the_features_of_no_condition():
    x, t, cond = data(), torch.rand(7, generator=generator(2)).double(), features(7)
    guided = Guided(FromTeacher(read), Guidance(3.0, null=NULL, dropout=0))
    expected = read(x, t, rows_of_null(7)) + 3 * (read(x, t, cond) - read(x, t, rows_of_null(7)))
    torch.testing.assert_close(guided(x, t, cond), expected)


class OfFeatures(nn.Module):
    """A network of (x, s, t, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Parameter(torch.randn(2, 2, generator=generator(3), dtype=torch.float64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any) -> Tensor:
        return torch.sin(read(x, s, cond) + t[:, None]) @ self.last


@pytest.mark.parametrize("kappa", [0.0, 0.4])
def test_the_target_of_a_direct_method_is_guided_away_from_them_too(kappa: float):
    """v_g = omega dI + kappa u(x | c) + (1 - omega - kappa) u(x | none) (2505.13447, equation 21)."""
    cond = features(7)
    draw, flow_map = a_draw(cond), AverageVelocity(OfFeatures())
    x, guidance = Linear().point(draw.x0, draw.x1, draw.t), Guidance(2.0, null=NULL, mix=kappa)
    got = SelfGuided(Linear(), flow_map, guidance).bind(draw)(x, draw.t, cond)
    omega, none = 2 * (1 - kappa), flow_map.net(x, draw.t, draw.t, rows_of_null(7))
    expected = omega * (draw.x1 - draw.x0) + kappa * flow_map.net(x, draw.t, draw.t, cond) + (1 - omega - kappa) * none
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_features_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="got both: leave one out"):
        Guidance(2.0, 3, null=NULL)
    with pytest.raises(ValueError, match=r"a null condition of one row, got \(2, 3, 4\): pass null\[:1\]"):
        Guidance(2.0, null=features(2))
    Guidance(2.0, null=features(2)["text"][:1])  # as it says
    with pytest.raises(ValueError, match=r"got \(5,\).*null\[None\] where it has no axis of rows"):
        Guidance(2.0, null=torch.zeros(5))
    with pytest.raises(ValueError, match="must have the same structure and names"):
        Guidance(2.0, null=NULL, dropout=0.5).condition({"text": features(7)["text"]}, data(), generator(0))


# what a direct method learns -----------------------------------------------------------------------------------------


class Net(nn.Module):
    """A network of everything: x, s, t, labels, and the guidance weight where there is one."""

    def __init__(self) -> None:
        super().__init__()
        rng = generator(3)
        self.first = nn.Parameter(torch.randn(4, 5, dtype=torch.float64, generator=rng))
        self.last = nn.Parameter(torch.randn(5, 2, dtype=torch.float64, generator=rng))
        self.label = nn.Parameter(torch.randn(CLASSES + 1, 5, dtype=torch.float64, generator=rng))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        h = torch.cat([x, s[:, None], t[:, None]], 1) @ self.first + self.label[label_of(cond)]
        return torch.sin(h + cond.weight[:, None].sqrt() if isinstance(cond, GuidedCondition) else h) @ self.last


def a_draw(cond: Condition, rows: int = 7) -> RandomInputs:
    rng = generator(1)
    x0, x1, z = torch.randn(3, rows, 2, generator=rng, dtype=torch.float64)
    s, t, split = torch.rand(3, rows, generator=rng, dtype=torch.float64)
    return RandomInputs(x0, x1, z, s, t, split, cond)


@pytest.mark.parametrize("path", [Linear(), Trigonometric(), WithNoise(Linear(), 0.3)], ids=str)
@pytest.mark.parametrize("omega, kappa", [(1.0, 0.5), (0.2, 0.92), (2.5, 0.0)])
def test_the_target_of_meanflow(path: Interpolant, omega: float, kappa: float):
    """v_g = omega dI + kappa u(x, t, t | c) + (1 - omega - kappa) u(x, t, t | none) (2505.13447, equation 21)."""
    draw, flow_map = a_draw(labels()), AverageVelocity(Net())
    x = path.point(draw.x0, draw.x1, draw.t, draw.z)
    guidance = Guidance(omega / (1 - kappa), CLASSES, mix=kappa)
    got = SelfGuided(path, flow_map, guidance).bind(draw)(x, draw.t, draw.cond)
    along = path.velocity(draw.x0, draw.x1, draw.t, draw.z)
    with_label = flow_map.net(x, draw.t, draw.t, draw.cond)
    without = flow_map.net(x, draw.t, draw.t, torch.full((7,), CLASSES))
    expected = omega * along + kappa * with_label + (1 - omega - kappa) * without
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [False, True])
def test_the_target_of_improved_meanflow(given: bool):
    """v_g = dI + (1 - 1/w) (v_c(w) - v_u(1)): v_c at the weight w, v_u at the weight 1 (2512.02012)."""
    w = torch.tensor([1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 8.0], dtype=torch.float64) if given else torch.full((7,), 2.5)
    label = labels()
    draw, flow_map = a_draw(GuidedCondition(label, w) if given else label), AverageVelocity(Net())
    x = Linear().point(draw.x0, draw.x1, draw.t)
    guidance = Guidance((1.0, 8.0) if given else 2.5, CLASSES, mix=None)
    got = SelfGuided(Linear(), flow_map, guidance).bind(draw)(x, draw.t, draw.cond)
    none = torch.full((7,), CLASSES)
    v_c = flow_map.velocity(x, draw.t, draw.cond)
    v_u = flow_map.velocity(x, draw.t, GuidedCondition(none, torch.ones(7).double()) if given else none)
    expected = draw.x1 - draw.x0 + (1 - 1 / w.double())[:, None] * (v_c - v_u)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mix", [0.0, 0.6, None])
@pytest.mark.parametrize("given", [False, True])
def test_rows_without_a_label_or_outside_the_interval_get_the_plain_velocity(mix: float | None, given: bool):
    label = torch.tensor([0, CLASSES, 1, 2, CLASSES, 0, 1])
    cond = GuidedCondition(label, torch.full((7,), 3.0, dtype=torch.float64)) if given else label
    draw, flow_map = a_draw(cond), AverageVelocity(Net())
    time = torch.tensor([0.1, 0.5, 0.25, 0.9, 0.9, 0.75, 0.5], dtype=torch.float64)
    x = Linear().point(draw.x0, draw.x1, time)
    guidance = Guidance((1.0, 3.0) if given else 3.0, CLASSES, interval=(0.25, 0.75), mix=mix)
    field = SelfGuided(Linear(), flow_map, guidance).bind(draw)
    plain = draw.x1 - draw.x0
    changed = (field(x, time, cond) - plain).abs().amax(1) > 1e-6
    assert changed.tolist() == [False, False, True, False, False, True, True]
    torch.testing.assert_close(field(x, time, cond)[~changed], plain[~changed], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mix", [0.0, 0.6, None])
def test_no_gradient_passes_through_the_target(mix: float | None):
    draw, flow_map = a_draw(labels()), AverageVelocity(Net())
    x = Linear().point(draw.x0, draw.x1, draw.t).requires_grad_()
    field = SelfGuided(Linear(), flow_map, Guidance(2.0, CLASSES, mix=mix)).bind(draw)
    assert not field(x, draw.t, draw.cond).requires_grad
    assert not field.leg(x, draw.s, draw.t, draw.cond).requires_grad
    matching = VelocityMatching(flow_map, Linear(), guidance=Guidance(2.0, CLASSES, mix=mix))
    (got,) = torch.autograd.grad(matching.evaluate(draw).value, flow_map.net.last)  # type: ignore[arg-type]
    # the gradient of |u - number|^2
    target = field(x.detach(), draw.t, draw.cond)
    u = flow_map.net(x.detach(), draw.t, draw.t, draw.cond)
    (expected,) = torch.autograd.grad((u - target).square().sum(1).mean(), flow_map.net.last)  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected)


def test_away_from_a_weaker_model_with_the_same_label():
    """Autoguidance, 2406.02507: both models are given the condition."""
    draw, flow_map = a_draw(labels()), AverageVelocity(Net())
    x = Linear().point(draw.x0, draw.x1, draw.t)

    def weak(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return -x + cond[:, None]

    own = SelfGuided(Linear(), flow_map, Guidance(2.0, dropout=0, negative=weak)).bind(draw)
    expected = 2 * (draw.x1 - draw.x0) - (-x + draw.cond[:, None])
    torch.testing.assert_close(own(x, draw.t, draw.cond), expected)
    taught = Guided(FromTeacher(lambda x, t, cond=None: 3 * x), Guidance(2.0, dropout=0), FromTeacher(weak))
    torch.testing.assert_close(taught(x, draw.t, draw.cond), 6 * x - (-x + draw.cond[:, None]))
    weighted = GuidedCondition(draw.cond, torch.full_like(draw.t, 2.0))  # the weaker model is not asked for a weight
    torch.testing.assert_close(taught(x, draw.t, weighted), taught(x, draw.t, draw.cond))


def test_a_leg_of_a_guided_target_is_the_guided_chord():
    draw, flow_map = a_draw(labels()), AverageVelocity(Net())
    path, guidance = Trigonometric(), Guidance(2.0, CLASSES, mix=0.4)
    x = path.point(draw.x0, draw.x1, draw.s)
    got = SelfGuided(path, flow_map, guidance).bind(draw).leg(x, draw.s, draw.t, draw.cond)
    chord = FromInterpolant(path).bind(draw).leg(x, draw.s, draw.t)
    v_c = flow_map.velocity(x, draw.s, draw.cond)
    v_u = flow_map.velocity(x, draw.s, torch.full((7,), CLASSES))
    torch.testing.assert_close(got, 1.2 * chord + 0.4 * v_c - 0.6 * v_u)


def test_guidance_of_one_is_none():
    draw, flow_map = a_draw(labels()), AverageVelocity(Net())
    x = Linear().point(draw.x0, draw.x1, draw.t)
    for mix in (0.0, 0.5, None):
        field = SelfGuided(Linear(), flow_map, Guidance(1.0, CLASSES, mix=mix)).bind(draw)
        torch.testing.assert_close(field(x, draw.t, draw.cond), draw.x1 - draw.x0, rtol=1e-13, atol=1e-13)


def test_a_direct_method_has_to_know_which_label_means_none():
    """Without `classes` or a `negative` there is nothing to guide away from."""
    draw, flow_map = a_draw(labels()), AverageVelocity(Net())
    with pytest.raises(ValueError, match="classes"):
        VelocityMatching(flow_map, Linear(), guidance=Guidance(2.0, dropout=0)).evaluate(draw)


# the fixed point -----------------------------------------------------------------------------------------------------

LAW = GaussianMixture(
    [0.5, 0.2, 0.3],
    [[-1.0, 0.3], [0.8, -0.5], [0.2, 1.1]],
    [[[0.4, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.5]], [[0.2, 0.0], [0.0, 0.6]]],
)


class ExactGuided(FlowMap):
    """A map that is exact on the diagonal: b(none) + w (b(label) - b(none)), and b(none) without a label."""

    def __init__(self, guidance: Guidance) -> None:
        super().__init__()
        self.guidance = guidance

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        label = label_of(cond)
        none, kept = LAW.velocity(x, t), label < CLASSES
        change = LAW.velocity(x, t, label.clamp_max(CLASSES - 1)) - none
        inside = kept & (t >= self.guidance.interval[0]) & (t <= self.guidance.interval[1])
        w = cond.weight if isinstance(cond, GuidedCondition) else torch.full_like(t, self.guidance.weight)  # type: ignore
        return none + torch.where(kept, torch.where(inside, w, 1), 0)[:, None] * change


def pairs_through(x: Tensor, t: float, label: int, number: int) -> tuple[Tensor, Tensor]:
    """x0 and x1 of class `label` given I_t = x, I_t = (1 - t) x0 + t x1: the Gaussian posterior, by its formulas."""
    inverse = LAW.covariances[label].inverse()
    covariance = (inverse + (t / (1 - t)) ** 2 * torch.eye(2, dtype=torch.float64)).inverse()
    mean = covariance @ (inverse @ LAW.means[label] + t / (1 - t) ** 2 * x)
    noise = torch.randn(number, 2, dtype=torch.float64, generator=generator(11))
    x1 = mean + noise @ torch.linalg.cholesky(covariance).mT
    return (x - t * x1) / (1 - t), x1


@pytest.mark.parametrize("mix", [0.0, 0.7, None])
@pytest.mark.parametrize("w", [1.0, 2.5])
@pytest.mark.parametrize("label", range(CLASSES))
def test_the_mean_target_at_a_point_is_the_guided_velocity(mix: float | None, w: float, label: int):
    """With the guided field as the map, E[target | I_t = x, label] is that field: it is the fixed point of learning."""
    rows, time, x = 20_001, 0.45, torch.tensor([0.3, -0.4], dtype=torch.float64)
    x0, x1 = pairs_through(x, time, label, rows)
    t, cond = torch.full((rows,), time, dtype=torch.float64), torch.full((rows,), label)
    guidance = Guidance(w, CLASSES, mix=mix)
    draw = RandomInputs(x0, x1, None, t, t, t, cond)
    points = Linear().point(x0, x1, t)
    torch.testing.assert_close(points, x.expand(rows, 2))
    target = SelfGuided(Linear(), ExactGuided(guidance), guidance).bind(draw)(points, t, cond)
    none, full = LAW.velocity(points[:1], t[:1]), LAW.velocity(points[:1], t[:1], cond[:1])
    error = target.mean(0) - (none + w * (full - none))[0]
    assert float((error / (target.std(0) / math.sqrt(rows))).abs().max()) < 4


@pytest.mark.parametrize("mix", [0.0, 0.7, None])
@pytest.mark.parametrize("weight", [2.5, (1.0, 4.0)])
def test_the_guided_field_is_stationary_for_a_whole_draw(mix: float | None, weight: float | tuple[float, float]):
    """Labels dropped, weights drawn, an interval: E (target - field) phi(I_t, label, w) = 0 for any phi."""
    guidance = Guidance(weight, CLASSES, 0.3, (0.2, 0.7), mix)
    flow_map = ExactGuided(guidance)
    matching = VelocityMatching(flow_map, Linear(), guidance=guidance)
    x1, label = LAW.sample_with_labels(ROWS, generator(2), torch.float64)
    draw = matching.draw(x1, cond=label, generator=generator(3))
    x = Linear().point(draw.x0, draw.x1, draw.t)
    residual = matching.velocity.bind(draw)(x, draw.t, draw.cond) - flow_map.velocity(x, draw.t, draw.cond)
    kept = label_of(draw.cond)
    w = draw.cond.weight if isinstance(draw.cond, GuidedCondition) else torch.ones_like(draw.t)
    features = [*torch.nn.functional.one_hot(kept, CLASSES + 1).double().mT, w, draw.t, x[:, 0], torch.sin(3 * x[:, 1])]
    for phi in features:
        for axis in residual.mT:
            product = phi * axis
            assert abs(float(product.mean() / (product.std() / math.sqrt(ROWS)))) < 4.5


# guided maps as they are sampled --------------------------------------------------------------------------------------


def test_a_map_at_one_weight_takes_plain_labels():
    flow_map, x, cond = AverageVelocity(Net()), data(), labels()
    s, t = torch.rand(2, 7, dtype=torch.float64, generator=generator(1))
    at = AtWeight(flow_map, 2.5)
    expected = flow_map(x, s, t, GuidedCondition(cond, torch.full((7,), 2.5, dtype=torch.float64)))
    torch.testing.assert_close(at(x, s, t, cond), expected, rtol=0, atol=0)
    other = GuidedCondition(cond, torch.full((7,), 1.5, dtype=torch.float64))  # a weight that is given wins
    torch.testing.assert_close(at(x, s, t, other), flow_map(x, s, t, other), rtol=0, atol=0)


def test_the_diagonal_of_a_guided_map_is_its_guided_velocity():
    flow_map, x, cond = AverageVelocity(MLP(2, width=8, classes=CLASSES).double()), data(), labels()
    t = torch.rand(7, dtype=torch.float64, generator=generator(1))
    guided = Guided(FromMap(flow_map), 2.5)(x, t, cond)
    torch.testing.assert_close(GuidedMap(flow_map, 2.5).velocity(x, t, cond), guided)
