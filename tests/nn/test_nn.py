"""Networks: what the features are, which labels are taken, what a class changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flowmaps.nn import MLP, Fourier


def inputs(rows: int = 5, dim: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    s, t = torch.rand(2, rows, generator=generator, dtype=torch.float64)
    return x, s, t


def network(*, dim: int = 3, **options: object) -> MLP:
    torch.manual_seed(0)
    return MLP(dim, width=16, depth=3, **options).double()  # type: ignore[arg-type]


def test_fourier_features_are_t_and_harmonics():
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    features = Fourier(3)(t)
    for row, time in zip(features.tolist(), t.tolist(), strict=True):
        cosines = [math.cos(math.pi * k * time) for k in (1, 2, 3)]
        sines = [math.sin(math.pi * k * time) for k in (1, 2, 3)]
        assert row == pytest.approx([time, *cosines, *sines], abs=1e-6)


def test_fourier_features_are_exact_in_double_precision():
    """pi rounded to float32 would cost 1e-7, which exact tests of the equations would see."""
    t = torch.tensor([0.3], dtype=torch.float64)
    assert Fourier(1)(t)[0, 1].item() == pytest.approx(math.cos(0.3 * math.pi), abs=1e-15)
    assert Fourier(1).double()(t)[0, 1].item() == pytest.approx(math.cos(0.3 * math.pi), abs=1e-15)


def test_fourier_frequencies_differ():
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    features = Fourier(5)(t)
    assert torch.linalg.matrix_rank(features) == features.shape[1]  # no feature is a combination of others
    assert Fourier(0)(t).tolist() == t[:, None].tolist()


def test_time_features_stay_in_single_precision_under_bf16_autocast():
    t = torch.tensor([0.501, 0.5011])  # one number in bf16
    with torch.autocast("cpu", torch.bfloat16):
        features = Fourier(4)(t)
    assert features.dtype == torch.float32
    assert torch.equal(features, Fourier(4)(t))
    assert float((features[0] - features[1]).abs().min()) > 0


def test_a_net_in_half_precision_does_not_blur_its_frequencies():
    """`net.to(torch.bfloat16)` must not round pi k: the features follow the type of t."""
    t = torch.tensor([0.3, 0.7])
    torch.testing.assert_close(Fourier(4).to(torch.bfloat16)(t), Fourier(4)(t), rtol=0, atol=1e-6)


def test_the_mlp_is_the_composition_that_its_docstring_says():
    x, s, t = inputs()
    for residual in (False, True):
        net = network(residual=residual, time_frequencies=2, space_frequencies=2)
        k = torch.arange(1, 3, dtype=torch.float64)
        space = [f(0.5 * math.pi * axis[:, None] * k) for f in (torch.cos, torch.sin) for axis in x.T]
        h = net.first(torch.cat([x, *space, net.time(s), net.time(t - s)], 1))
        h = nn.functional.gelu(h, approximate="tanh")
        for layer in net.hidden:
            y = nn.functional.gelu(layer(h), approximate="tanh")
            h = h + y if residual else y
        torch.testing.assert_close(net(x, s, t), net.last(h))


def test_a_plain_mlp_sees_x_s_and_the_step():
    """Moving s and t together leaves t - s: the output changes through s alone."""
    x, s, t = inputs()
    net = network()
    assert net.first.in_features == 3 + 2
    with torch.no_grad():
        net.first.weight[:, 3] = 0  # forget s
    moved = net(x, s / 2, s / 2 + (t - s))
    torch.testing.assert_close(moved, net(x, s, t))
    assert float((net(x, s, s) - net(x, s, t)).abs().amin().detach()) > 0


def test_rows_do_not_mix():
    x, s, t = inputs(7)
    net = network(classes=4, residual=True, space_frequencies=3)
    labels = torch.tensor([0, 3, 1, 2, 2, 0, 1])
    together = net(x, s, t, labels)
    for k in range(7):
        alone = net(x[k : k + 1], s[k : k + 1], t[k : k + 1], labels[k : k + 1])
        torch.testing.assert_close(alone[0], together[k])


def test_labels_change_the_output_and_none_is_a_class_of_its_own():
    x, s, t = inputs(4)
    net = network(classes=3)
    outputs = [net(x, s, t, torch.full((4,), k)) for k in range(3)] + [net(x, s, t)]
    for i in range(4):
        for j in range(i):
            assert float((outputs[i] - outputs[j]).detach().abs().max()) > 1e-3
    with torch.no_grad():
        net.label.weight[3] = net.label.weight[1]  # type: ignore[union-attr, index]
    torch.testing.assert_close(net(x, s, t), outputs[1])
    torch.testing.assert_close(net(x, s, t, torch.full((4,), 3)), outputs[1])  # row by row, for guidance


def test_arguments_rebuild_the_network():
    x, s, t = inputs()
    net = network(residual=True, classes=2, time_frequencies=3, space_frequencies=1)
    copy = MLP(**net.arguments).double()
    copy.load_state_dict(net.state_dict())
    assert torch.equal(copy(x, s, t), net(x, s, t))


def test_a_network_without_hidden_layers_beyond_the_first():
    x, s, t = inputs()
    torch.manual_seed(0)
    net = MLP(3, width=8, depth=1).double()
    expected = net.last(net.act(net.first(torch.cat([x, s[:, None], (t - s)[:, None]], 1))))
    torch.testing.assert_close(net(x, s, t), expected)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"dim": 0}, "dim >= 1, got 0"),
        ({"dim": 2, "width": 0}, "width >= 1, got 0"),
        ({"dim": 2, "depth": 0}, "depth >= 1, got 0"),
        ({"dim": 2, "classes": 0}, "classes >= 1, got 0"),
        ({"dim": 2, "time_frequencies": -1}, "time_frequencies >= 0, got -1"),
        ({"dim": 2, "space_frequencies": -1}, "space_frequencies >= 0, got -1"),
    ],
)
def test_arguments_that_are_refused(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        MLP(**options)


def test_inputs_that_are_refused():
    x, s, t = inputs()
    with pytest.raises(ValueError, match=r"x of shape \(B, 3\), got \(5, 4\): flatten each sample"):
        network()(torch.zeros(5, 4), s, t)
    with pytest.raises(ValueError, match=r"x of shape \(B, 3\), got \(5, 3, 1\)"):
        network()(x[:, :, None], s, t)
    with pytest.raises(ValueError, match="no classes, got cond: build it with classes="):
        network()(x, s, t, torch.zeros(5, dtype=torch.int64))
    net = network(classes=3)
    with pytest.raises(ValueError, match=r"integer labels of shape \(5,\), got torch.float32 \(5,\)"):
        net(x, s, t, torch.zeros(5))
    with pytest.raises(ValueError, match=r"integer labels of shape \(5,\), got torch.int64 \(4,\)"):
        net(x, s, t, torch.zeros(4, dtype=torch.int64))
    for label in (-1, 4):  # 3 is no class
        with pytest.raises(ValueError, match=f"labels from 0 to 2, or 3 for no class, got values from {label}"):
            net(x, s, t, torch.full((5,), label))
    with pytest.raises(ValueError, match="number >= 0, got -1"):
        Fourier(-1)
