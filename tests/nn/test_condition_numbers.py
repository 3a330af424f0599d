"""Networks conditioned on numbers: what they compute, rows of NaN, numbers beside labels, dropped numbers, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import generator
from torch import Tensor

import flowmaps as fm
from flowmaps import methods
from flowmaps.guidance import Guidance
from flowmaps.maps import AverageVelocity
from flowmaps.nn import MLP, DiT, UNet
from flowmaps.nn.embeddings import NumbersEmbedding
from flowmaps.shapes import Conditions, GuidedCondition, condition_of, label_and_numbers

ROWS, DIM = 5, 2
NAN = torch.full((ROWS, DIM), math.nan, dtype=torch.float64)
IMAGE: dict[str, Any] = {"width": 8, "condition_dim": DIM}
NETWORKS = {
    "mlp": lambda **more: MLP(3, width=8, depth=2, modulation=4, condition_dim=DIM, **more),
    "unet": lambda **more: UNet(1, 4, multipliers=(1,), blocks=1, attention=(), head=4, **{**IMAGE, **more}),
    "dit": lambda **more: DiT(1, 4, depth=1, heads=2, **{**IMAGE, **more}),
}


def build(name: str, **more: Any) -> Any:
    """A network of no zero weights, in float64."""
    net, rng = NETWORKS[name](**more).double().eval(), generator(0)
    with torch.no_grad():
        for weights in net.parameters():
            weights.copy_(0.5 * torch.randn(weights.shape, dtype=torch.float64, generator=rng))
    return net


def inputs(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = generator(1)
    shape = (3,) if name == "mlp" else (1, 4, 4)
    x = torch.randn(ROWS, *shape, dtype=torch.float64, generator=rng)
    s, t = torch.rand(2, ROWS, dtype=torch.float64, generator=rng)
    return x, s, t, torch.randn(ROWS, DIM, dtype=torch.float64, generator=rng)


def test_the_numbers_are_added_to_the_first_layer_of_an_mlp():
    net, (x, s, t, c) = build("mlp"), inputs("mlp")
    plain = build("mlp")
    with torch.no_grad():
        plain.numbers.linear.weight.zero_()
        plain.first.bias += net.numbers.linear.weight[:, :DIM] @ c[0]
    torch.testing.assert_close(net(x, s, t, c[:1].expand(ROWS, -1)), plain(x, s, t))


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_nan_are_rows_without_a_condition(name: str):
    net, (x, s, t, c) = build(name), inputs(name)
    torch.testing.assert_close(net(x, s, t, NAN), net(x, s, t, None))
    some = c.clone()
    some[2] = math.nan
    mixed = torch.stack([net(x, s, t, c)[k] if k != 2 else net(x, s, t)[k] for k in range(ROWS)])
    torch.testing.assert_close(net(x, s, t, some), mixed)
    for k in range(ROWS):
        assert not torch.allclose(net(x, s, t, c)[k], net(x, s, t)[k])


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_stand_beside_labels_and_a_guidance_weight(name: str):
    net, (x, s, t, c) = build(name, classes=3, guidance=True), inputs(name)
    label, weight = torch.tensor([0, 1, 2, 3, 0]), torch.linspace(1, 3, ROWS, dtype=torch.float64)
    given = net(x, s, t, GuidedCondition(Conditions(label, c), weight))
    for other in (
        GuidedCondition(Conditions(label, c + 1), weight),
        GuidedCondition(Conditions(label.flip(0) % 3, c), weight),
    ):
        assert not torch.allclose(given, net(x, s, t, other))
    assert not torch.allclose(given, net(x, s, t, GuidedCondition(Conditions(label, c), weight + 1)))
    none = Conditions(torch.full_like(label, 3), NAN)
    torch.testing.assert_close(net(x, s, t, none), net(x, s, t, None))
    torch.testing.assert_close(net(x, s, t, label), net(x, s, t, Conditions(label, None)))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_row_of_nan_makes_a_gradient_nan(name: str):
    net, (x, s, t, c) = build(name), inputs(name)
    c[1] = math.nan
    net(x, s, t, c).square().sum().backward()
    assert all(bool(weights.grad.isfinite().all()) for weights in net.parameters() if weights.grad is not None)
    assert bool(net.get_submodule("numbers" if name == "mlp" else "embedding.numbers").linear.weight.grad.any())


def test_a_network_of_numbers_is_saved_and_loaded(tmp_path):
    net, (x, s, t, c) = build("mlp", classes=2), inputs("mlp")
    fm.save(AverageVelocity(net), tmp_path / "map")
    cond = Conditions(torch.tensor([0, 1, 2, 0, 1]), c)
    torch.testing.assert_close(fm.load(tmp_path / "map").net(x, s, t, cond), net(x, s, t, cond))  # type: ignore[operator]


@pytest.mark.parametrize(
    "cond, words",
    [
        (torch.zeros(ROWS), r"2 numbers a row, of shape \(5, 2\), got torch.float32 \(5,\)"),
        (torch.zeros(ROWS, 3), r"2 numbers a row, of shape \(5, 2\), got torch.float32 \(5, 3\)"),
        (torch.zeros(ROWS, 2).long(), r"2 numbers a row, of shape \(5, 2\), got torch.int64 \(5, 2\)"),
        (torch.full((ROWS, 2), math.inf), "all finite, or all NaN"),
        (torch.tensor([[0.0, math.nan]] * ROWS), "all finite, or all NaN"),
        ([[0.0, 1.0]] * ROWS, "got a list: pass a tensor"),
    ],
)
def test_conditions_that_are_refused(cond: Any, words: str):
    net, (x, s, t, _) = build("mlp"), inputs("mlp")
    with pytest.raises(ValueError, match=words):
        net(x, s, t, cond)


def test_a_row_that_lacks_some_numbers_is_never_taken_for_one_without_a_condition():
    """Values are checked on the CPU alone, outside the compiler: elsewhere such a row gives NaN, which a loss shows."""
    layer = NumbersEmbedding(DIM, 4)
    layer.check = lambda c, x: None  # type: ignore[method-assign]
    out = layer(torch.tensor([[0.0, math.nan], [math.nan, math.nan], [0.0, 1.0]]), torch.zeros(3, 1))
    assert out.isnan().all(1).tolist() == [True, False, False]


def test_numbers_in_the_place_of_labels_are_refused_by_a_network_of_numbers_alone():
    x, s, t, c = inputs("mlp")
    with pytest.raises(ValueError, match="no classes, only numbers, got labels: build it with classes="):
        build("mlp")(x, s, t, Conditions(torch.zeros(ROWS, DIM), c))


def test_numbers_are_refused_by_a_network_without_them():
    x, s, t, c = inputs("mlp")
    with pytest.raises(ValueError, match="no classes, got cond: build it with condition_dim="):
        MLP(3, width=8).double()(x, s, t, c)
    with pytest.raises(ValueError, match="condition_dim >= 1, got 0"):
        MLP(3, condition_dim=0)


# guidance ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 3])
def test_labels_and_numbers_are_dropped_together(classes: int | None):
    rows = 4_000
    numbers, label = torch.randn(rows, DIM), None if classes is None else torch.arange(rows) % 3
    guidance = Guidance(2.0, classes, dropout=0.25, condition_dim=DIM)
    cond = guidance.condition(condition_of(label, numbers), torch.zeros(rows, 1), generator(0))
    found, kept = label_and_numbers(cond)
    dropped = kept.isnan().all(1)
    assert 0.2 < dropped.float().mean() < 0.3
    torch.testing.assert_close(kept[~dropped], numbers[~dropped])
    assert torch.equal(guidance.weights(torch.rand(rows), cond) == 1, dropped)
    if label is not None:
        assert torch.equal(found == 3, dropped)


def test_rows_with_a_label_or_with_numbers_are_guided():
    cond = Conditions(
        torch.tensor([0, 3, 0, 3]), torch.tensor([[1.0] * DIM, [1.0] * DIM, [math.nan] * DIM, [math.nan] * DIM])
    )
    assert Guidance(2.0, 3, condition_dim=DIM).weights(torch.rand(4), cond).tolist() == [2, 2, 2, 1]


def test_what_cannot_be_dropped_is_refused():
    x1 = torch.zeros(ROWS, 3)
    with pytest.raises(ValueError, match=r"numbers of shape \(5, 2\) can be dropped, got torch.float32 \(5, 3\)"):
        Guidance(2.0, condition_dim=2).condition(torch.zeros(ROWS, 3), x1)
    with pytest.raises(ValueError, match=r"only integer labels of shape \(5,\), and numbers of shape \(5, 2\), can be"):
        Guidance(2.0, 3, condition_dim=2).condition(torch.zeros(ROWS, 2), x1)


@pytest.mark.parametrize("name", ["meanflow", "lsd", "flow_matching", "consistency_training"])
@pytest.mark.parametrize("weight", [2.0, (1.0, 3.0)])
def test_methods_train_with_guided_numbers(name: str, weight: Any):
    torch.manual_seed(0)
    flow_map = AverageVelocity(
        MLP(3, width=8, depth=2, classes=2, condition_dim=DIM, guidance=isinstance(weight, tuple))
    )
    guidance = Guidance(weight, 2, dropout=0.5, mix=None, condition_dim=DIM)
    objective = getattr(methods, name)(flow_map, guidance=guidance)
    cond = Conditions(torch.arange(ROWS) % 2, torch.randn(ROWS, DIM))
    draw = objective.draw(torch.randn(ROWS, 3), cond=cond, generator=generator(0), progress=0.5)
    loss = objective.evaluate(draw).value
    loss.backward()
    assert bool(loss.isfinite())
    weights = flow_map.net.numbers.linear.weight.grad  # type: ignore[union-attr]
    assert bool(weights.isfinite().all())
    assert bool(weights[:, :DIM].any())
    assert bool(weights[:, DIM].any())  # of the rows without a condition
