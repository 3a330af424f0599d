"""The image networks: what they compute, what they take, how they are built again, and start from a velocity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from image_nets import CHANNELS, CLASSES, NETWORKS, SIDE, build, gradients, inputs
from torch import Tensor, nn

from flowmaps import dual, methods
from flowmaps.maps import AverageVelocity
from flowmaps.nn import DiT, UNet
from flowmaps.nn.dit import sine_positions
from flowmaps.shapes import GuidedCondition

LABELS = torch.tensor([0, CLASSES, 2])


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    """Each network in turn."""
    return request.param


# what they compute ----------------------------------------------------------------------------------------------------


def test_a_fresh_network_is_zero_and_learns(name: str):
    """Its last layer starts at zero, and has a gradient."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    x, s, t = inputs(torch.float32)
    out = net(x, s, t)
    assert not out.any()
    assert any(g.any() for g in gradients((out - x).square().sum(), net))


def test_every_argument_changes_the_output(name: str):
    net = build(name, classes=CLASSES, guidance=True)
    x, s, t = inputs()
    here = net(x, s, t, GuidedCondition(LABELS, 2 * torch.ones_like(s)))
    others = [
        net(x.flip(3), s, t, GuidedCondition(LABELS, 2 * torch.ones_like(s))),
        net(x, 0.9 * s, t, GuidedCondition(LABELS, 2 * torch.ones_like(s))),
        net(x, s, 0.9 * t, GuidedCondition(LABELS, 2 * torch.ones_like(s))),
        net(x, s, t, GuidedCondition((LABELS + 1) % (CLASSES + 1), 2 * torch.ones_like(s))),
        net(x, s, t, GuidedCondition(LABELS, 3 * torch.ones_like(s))),
    ]
    for other in others:
        assert bool(((other - here).abs().amax((1, 2, 3)) > 1e-4).all())


def test_every_weight_has_a_gradient(name: str):
    net = build(name, classes=CLASSES, guidance=True)
    x, s, t = inputs()
    out = net(x, s, t, GuidedCondition(torch.tensor([0, 1, 2]), 2 * torch.ones_like(s)))
    for weight, slope in zip(net.named_parameters(), gradients(out.square().sum(), net), strict=True):
        assert slope.any(), weight[0]


def test_rows_do_not_mix(name: str):
    net = build(name, classes=CLASSES)
    x, s, t = inputs()
    together = net(x, s, t, LABELS)
    for k in range(len(x)):
        alone = net(x[k : k + 1], s[k : k + 1], t[k : k + 1], LABELS[k : k + 1])
        torch.testing.assert_close(alone[0], together[k])


def test_no_label_is_the_last_and_no_weight_is_one(name: str):
    net = build(name, classes=CLASSES, guidance=True)
    x, s, t = inputs()
    none, one = torch.full((3,), CLASSES), torch.ones_like(s)
    assert torch.equal(net(x, s, t), net(x, s, t, none))
    assert torch.equal(net(x, s, t, LABELS), net(x, s, t, GuidedCondition(LABELS, one)))
    assert torch.equal(net(x, s, t), net(x, s, t, GuidedCondition(None, one)))
    assert not torch.equal(net(x, s, t), net(x, s, t, LABELS))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_transformer_is_the_composition_that_its_docstring_says(norm: str):
    net = build("dit", qk_norm=False, norm=norm)
    assert isinstance(net, DiT)
    norm_of = {"layer": _standardised, "rms": _of_unit_square}[norm]
    x, s, t = inputs()
    embedded = net.embedding(x, s, t)[:, None]
    tokens = F.unfold(x, 2, stride=2).mT  # (B, 4, 2 * 2 * 2), each row-major over (channel, row, column)
    h = tokens @ net.first.weight.flatten(1).mT + net.positions
    assert net.first.bias is not None
    h = h + net.first.bias
    for block in net.blocks:
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(embedded).chunk(6, 2)  # type: ignore[operator]
        y = norm_of(h) * (1 + scale1) + shift1
        q, k, v = (block.qkv(y)[..., 8 * i : 8 * i + 8] for i in range(3))  # type: ignore[operator]
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            scores = q[..., part] @ k[..., part].mT / 4**0.5
            heads.append(torch.softmax(scores, 2) @ v[..., part])
        h = h + gate1 * block.out(torch.cat(heads, 2))  # type: ignore[operator]
        y = F.gelu(block.wide(norm_of(h) * (1 + scale2) + shift2), approximate="tanh")  # type: ignore[operator]
        h = h + gate2 * block.narrow(y)  # type: ignore[operator]
    shift, scale = net.modulation(embedded).chunk(2, 2)
    out = net.last(norm_of(h) * (1 + scale) + shift).reshape(3, 2, 2, 2, 2, CHANNELS)
    wanted = torch.zeros_like(x)
    for row in range(SIDE):
        for column in range(SIDE):
            wanted[:, :, row, column] = out[:, row // 2, column // 2, row % 2, column % 2]
    torch.testing.assert_close(net(x, s, t), wanted)


def _standardised(h: Tensor) -> Tensor:
    centred = h - h.mean(2, keepdim=True)
    return centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()


def _of_unit_square(h: Tensor) -> Tensor:
    return h / (h.square().mean(2, keepdim=True) + 1e-6).sqrt()


def test_the_norm_has_no_parameters_and_the_default_is_unchanged():
    default, rms = build("dit"), build("dit", norm="rms")
    assert default.state_dict().keys() == rms.state_dict().keys()
    assert torch.equal(default(*inputs()), build("dit", norm="layer")(*inputs()))
    assert not torch.allclose(default(*inputs()), rms(*inputs()))


def test_normalised_queries_keep_logits_bounded():
    """Whatever the weights: |q . k| <= d for unit scales."""
    net = build("dit").float()
    x, s, t = inputs(torch.float32)
    with torch.no_grad():
        for block in net.blocks:  # type: ignore[union-attr]
            block.scales.fill_(1)  # type: ignore[union-attr, operator]
        before = net(x, s, t)
        for block in net.blocks:  # type: ignore[union-attr]
            block.qkv.weight[:16] *= 1e3  # type: ignore[union-attr, index]
            block.qkv.bias[:16] *= 1e3  # type: ignore[union-attr, index]
    torch.testing.assert_close(net(x, s, t), before, rtol=1e-3, atol=1e-3)


def test_places_of_tokens_tell_rows_from_columns():
    positions = sine_positions(4, 4, 16).double()
    apart = torch.cdist(positions, positions) + 10 * torch.eye(16)
    assert float(apart.min()) > 0.5
    assert positions.square().sum(1).tolist() == pytest.approx([8.0] * 16, abs=1e-5)
    squares = positions.reshape(4, 4, 16)
    torch.testing.assert_close(squares[:, :, :8], squares[:, :1, :8].expand(4, 4, 8))  # of the row alone
    torch.testing.assert_close(squares[:, :, 8:], squares[:1, :, 8:].expand(4, 4, 8))  # of the column alone


def test_dropout_has_one_mask_for_value_and_tangent(name: str):
    """The tangent is that of the network with the very mask of its value, by differences with the same draws."""
    net = build(name, dropout=0.5).train()
    x, s, t = inputs()

    def at(r: Tensor) -> Tensor:
        torch.manual_seed(5)
        return net(x, s, r)

    value, tangent = dual.jvp(at, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(value, at(t))
    torch.testing.assert_close(tangent, (at(t + 1e-5) - at(t - 1e-5)) / 2e-5, rtol=1e-6, atol=1e-7)
    assert not torch.equal(net(x, s, t), net(x, s, t))
    net.eval()
    assert torch.equal(net(x, s, t), net(x, s, t))


# built again, and from a velocity -------------------------------------------------------------------------------------


def test_arguments_rebuild_the_network(name: str):
    net = build(name, classes=CLASSES, guidance=True, dropout=0.1)
    copy = type(net)(**net.arguments).double().eval()
    copy.load_state_dict(net.state_dict())
    x, s, t = inputs()
    assert torch.equal(copy(x, s, t, LABELS), net(x, s, t, LABELS))


@pytest.mark.parametrize("changes", [{}, {"guidance": True}, {"guidance": True, "dropout": 0.2}])
def test_a_map_from_a_velocity_keeps_its_outputs_for_every_second_time(name: str, changes: dict[str, Any]):
    velocity = build(name, torch.float32, classes=CLASSES)
    velocity.checkpointing = True
    net = type(velocity).from_velocity(velocity, **changes).eval()
    x, s, t = inputs(torch.float32)
    before = velocity(x, s, s, LABELS)
    for end in (s, t, torch.zeros_like(t), torch.ones_like(t)):
        torch.testing.assert_close(net(x, s, end, LABELS), before, rtol=1e-6, atol=1e-6)
    if changes:
        guided = net(x, s, t, GuidedCondition(LABELS, torch.full((3,), 2.5)))
        torch.testing.assert_close(guided, before, rtol=1e-6, atol=1e-6)
    assert net.arguments == {**velocity.arguments, **changes}
    assert net.checkpointing
    assert not torch.equal(velocity(x, s, t, LABELS), before)  # the velocity itself is left as it was


def test_training_a_velocity_leaves_the_second_time_at_zero(name: str):
    torch.manual_seed(0)
    net = NETWORKS[name](classes=CLASSES, guidance=True).train()
    loss = methods.flow_matching(AverageVelocity(net))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for seed in range(5):
        optimiser.zero_grad()
        x1, _, _ = inputs(torch.float32, seed=seed)
        loss(x1, cond=LABELS, generator=torch.Generator().manual_seed(seed)).value.backward()
        optimiser.step()
    assert not net.embedding.second_time.weight.any()
    assert net.embedding.weight is not None
    assert not net.embedding.weight.weight.any()
    x, s, t = inputs(torch.float32)
    assert net(x, s, t, LABELS).any()
    torch.testing.assert_close(net(x, s, t, LABELS), net(x, s, s, LABELS), rtol=0, atol=0)
    objective = methods.lsd(AverageVelocity(net))
    value = objective(x, cond=LABELS, generator=torch.Generator().manual_seed(0)).value
    value.backward()
    assert net.embedding.second_time.weight.grad is not None
    assert net.embedding.second_time.weight.grad.any()  # the map does train it


@pytest.mark.parametrize(
    "changes",
    [{"width": 16}, {"classes": 5}, {"frequencies": 4}, {"resolution": 8}, {"channels": 3}, {"patch": 1}],
    ids=str,
)
def test_changes_that_are_refused(name: str, changes: dict[str, Any]):
    velocity = build(name, classes=CLASSES, patch=2)
    key = next(iter(changes))
    with pytest.raises(ValueError, match=f"may change dropout and add guidance, got {key}=.*: leave {key} out"):
        type(velocity).from_velocity(velocity, **changes)


def test_changes_of_the_function_alone_are_refused():
    """The weights would fit, and mean something else."""
    with pytest.raises(ValueError, match="got head=2 for a velocity with head=4"):
        UNet.from_velocity(build("unet"), head=2)
    with pytest.raises(ValueError, match="got heads=4 for a velocity with heads=2"):
        DiT.from_velocity(build("dit", qk_norm=False), heads=4)
    with pytest.raises(ValueError, match="got guidance=False for a velocity with guidance=True"):
        DiT.from_velocity(build("dit", guidance=True), guidance=False)


def test_a_velocity_of_another_class_is_refused():
    with pytest.raises(ValueError, match=r"DiT.from_velocity takes a DiT, got UNet"):
        DiT.from_velocity(build("unet"))
    with pytest.raises(ValueError, match=r"UNet.from_velocity takes a UNet, got Linear"):
        UNet.from_velocity(nn.Linear(2, 2))  # type: ignore[arg-type]


# what is refused ------------------------------------------------------------------------------------------------------

COMMON = [
    ({"channels": 0}, "channels >= 1, got 0"),
    ({"resolution": 0}, "resolution >= 1, got 0"),
    ({"patch": 0}, "patch >= 1, got 0"),
    ({"width": 0}, "width >= 1, got 0"),
    ({"dropout": -0.1}, "dropout >= 0, got -0.1"),
    ({"classes": 0}, "classes >= 1, or None for no classes, got 0"),
    ({"frequencies": -1}, "number >= 0, got -1"),
]
OWN = [
    (UNet, {"blocks": 0}, "blocks >= 1, got 0"),
    (UNet, {"head": 0}, "head >= 1, got 0"),
    (UNet, {"multipliers": ()}, r"one or more multipliers >= 1, got \(\)"),
    (UNet, {"multipliers": (1, 0)}, r"one or more multipliers >= 1, got \(1, 0\)"),
    (UNet, {"resolution": 30}, "resolution divisible by 4 .*, got 30"),
    (UNet, {"resolution": 36, "patch": 2}, "resolution divisible by 8 .*, got 36"),
    (UNet, {"width": 48}, "channels divisible by head where there is attention, got 96 and 64"),
    (DiT, {"depth": 0}, "depth >= 1, got 0"),
    (DiT, {"heads": 0}, "heads >= 1, got 0"),
    (DiT, {"resolution": 31}, "resolution divisible by patch, got 31 and 2: take another patch"),
    (DiT, {"width": 380}, "width divisible by heads and by 4, got 380 and 6"),
    (DiT, {"width": 30}, "width divisible by heads and by 4, got 30 and 6"),
    (DiT, {"norm": "batch"}, "DiT takes norm='layer' or norm='rms', got 'batch'"),
    (DiT, {"ratio": 0.0}, r"ratio \* width >= 1, got 0.0 and 384"),
]
REFUSED = [(network, options, words) for options, words in COMMON for network in (UNet, DiT)] + OWN


@pytest.mark.parametrize("network, options, words", REFUSED)
def test_arguments_that_are_refused(network: Any, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        network(**options)


def test_inputs_that_are_refused(name: str):
    x, s, t = inputs()
    net = build(name)
    kind = type(net).__name__
    with pytest.raises(ValueError, match=rf"this {kind} takes x of shape \(B, 2, 4, 4\), got \(3, 2, 4, 5\)"):
        net(torch.zeros(3, 2, 4, 5), s, t)
    with pytest.raises(ValueError, match=r"got \(2, 4, 4\)"):
        net(x[0], s, t)
    with pytest.raises(ValueError, match="no classes, got cond: build it with classes="):
        net(x, s, t, LABELS)
    with pytest.raises(ValueError, match="takes no guidance weight, got one: build it with guidance=True"):
        net(x, s, t, GuidedCondition(None, torch.ones(3)))
    net = build(name, classes=CLASSES)
    with pytest.raises(ValueError, match=r"integer labels of shape \(3,\), got torch.float64 \(3,\)"):
        net(x, s, t, s)
    with pytest.raises(ValueError, match=r"integer labels of shape \(3,\), got torch.int64 \(2,\)"):
        net(x, s, t, LABELS[:2])
    for label in (-1, CLASSES + 1):
        with pytest.raises(ValueError, match=f"labels from 0 to 2, or 3 for no class, got values from {label}"):
            net(x, s, t, torch.full((3,), label))


def test_check_takes_a_condition_with_a_guidance_weight() -> None:
    net = UNet(1, 4, width=4, multipliers=(1,), blocks=1, attention=(), classes=2, guidance=True)
    guide = GuidedCondition(torch.tensor([0, 2]), torch.tensor([1.5, 3.0]))
    assert dual.check(net, torch.randn(2, 1, 4, 4), torch.rand(2), torch.rand(2), guide) < 1e-7
