"""Optimisers: steps are those of torch's own, moments come back to the bit, weights decay by themselves; rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from run_cases import SETTINGS, equal
from torch import Tensor, nn
from torch.optim import Optimizer

from flowmaps import methods
from flowmaps.losses import Learned
from flowmaps.maps import AverageVelocity
from flowmaps.nn import MLP, DiT, UNet
from flowmaps.objectives import Objective, SplitRows
from flowmaps.runs.recipes import Optimiser
from flowmaps.training.optimisers import build, can_skip_on_device, moments, remember, schedule

KINDS = ("adam", "adamw", "radam", "muon")
DECAYING = KINDS[1:]
STRONG = dataclasses.replace(SETTINGS, learning_rate=0.03, beta2=0.95)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(2, width=8, depth=3, modulation=4)


def named(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def of(kind: str, decay: float = 0.0) -> Optimiser:
    return dataclasses.replace(STRONG, kind=kind, weight_decay=decay)


def step(optimisers: list[Optimizer], parameters: dict[str, Tensor], seed: int) -> None:
    """A step along gradients drawn from a seed."""
    rng = torch.Generator().manual_seed(seed)
    for value in parameters.values():
        value.grad = torch.randn(value.shape, generator=rng)
    for optimiser in optimisers:
        optimiser.step()


def split(parameters: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices between hidden layers of the MLP above, and the rest, from the shapes of its layers."""
    inner = {f"hidden.{k}.weight" for k in range(2)}
    return [v for n, v in parameters.items() if n in inner], [v for n, v in parameters.items() if n not in inner]


THEIRS: dict[str, Callable[[dict[str, Tensor], float], list[Optimizer]]] = {
    "adam": lambda p, _: [torch.optim.Adam(p.values(), 0.03, (0.9, 0.95))],
    "adamw": lambda p, decay: [torch.optim.AdamW(p.values(), 0.03, (0.9, 0.95), weight_decay=decay)],
    "radam": lambda p, decay: [
        torch.optim.RAdam(p.values(), 0.03, (0.9, 0.95), weight_decay=decay, decoupled_weight_decay=True)
    ],
    "muon": lambda p, decay: [
        torch.optim.Muon(split(p)[0], 0.03, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(split(p)[1], 0.03, (0.9, 0.95), weight_decay=decay),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_torch(kind: str):
    decay = 0.1 if kind in DECAYING else 0.0
    ours, theirs = net(), net()
    mine, own = build(named(ours), of(kind, decay)), THEIRS[kind](named(theirs), decay)
    for seed in range(8):  # radam begins without the second moment
        step(mine, named(ours), seed)
        step(own, named(theirs), seed)
    for name, value in named(ours).items():
        torch.testing.assert_close(value, named(theirs)[name], rtol=1e-5, atol=1e-6)
    assert not equal(ours.parameters(), net().parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_each_parameter_is_moved_once(kind: str):
    parameters = named(net())
    held = [p for o in build(parameters, of(kind)) for group in o.param_groups for p in group["params"]]
    assert len(held) == len(parameters)
    assert {id(p) for p in held} == {id(p) for p in parameters.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_makes_the_next_step_the_same_to_the_bit(kind: str):
    whole, late = net(), net(seed=1)
    mine = build(named(whole), of(kind, 0.1 if kind in DECAYING else 0.0))
    for seed in range(7):
        step(mine, named(whole), seed)
    names = {id(value): name for name, value in named(whole).items()}
    kept = {name: value.clone() for name, value in moments(mine, names).items()}
    assert {name.rpartition(".")[0] for name in kept} == named(whole).keys()
    late.load_state_dict(whole.state_dict())
    other = build(named(late), of(kind, 0.1 if kind in DECAYING else 0.0))
    step(other, named(late), 99)  # whatever it had in mind before is forgotten
    late.load_state_dict(whole.state_dict())
    remember(other, named(late), kept)
    for seed in range(7, 10):
        step(mine, named(whole), seed)
        step(other, named(late), seed)
    assert equal(whole.parameters(), late.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_to_remember_it_begins_anew(kind: str):
    one, fresh = net(), net()
    mine, own = build(named(one), of(kind)), build(named(fresh), of(kind))
    step(mine, named(one), 0)
    one.load_state_dict(fresh.state_dict())
    remember(mine, named(one), {})
    step(mine, named(one), 1)
    step(own, named(fresh), 1)
    assert equal(one.parameters(), fresh.parameters())


@pytest.mark.parametrize("kind", DECAYING)
def test_weights_decay_by_themselves(kind: str):
    """By rate times decay a step, whatever the gradient's size: here there is none."""
    module = net()
    before = [p.detach().clone() for p in module.parameters()]
    mine = build(named(module), of(kind, 0.5))
    for value in module.parameters():
        value.grad = torch.zeros_like(value)
    for optimiser in mine:
        optimiser.step()
    for value, old in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(value.detach(), (1 - 0.03 * 0.5) * old, rtol=1e-5, atol=1e-7)


def inner(optimisers: list[Optimizer], module: nn.Module) -> set[str]:
    """Names of the parameters that Muon moves."""
    (muon,) = [o for o in optimisers if isinstance(o, torch.optim.Muon)]
    ids = {id(p) for p in muon.param_groups[0]["params"]}
    return {name for name, value in named(module).items() if id(value) in ids}


def test_muon_takes_the_matrices_between_hidden_layers():
    mlp, dit = net(), DiT(2, 4, width=8, depth=2, heads=2, patch=2, classes=3)
    assert inner(build(named(mlp), of("muon")), mlp) == {"hidden.0.weight", "hidden.1.weight"}
    found = inner(build(named(dit), of("muon")), dit)
    assert {name.split(".")[0] for name in found} == {"blocks"}
    layers = ("qkv", "out", "wide", "narrow")
    assert found == {f"blocks.{k}.{layer}.weight" for k in range(2) for layer in layers}


def test_muon_is_refused_where_there_are_no_such_matrices():
    unet = UNet(2, 4, width=4, multipliers=(1,), blocks=1, attention=(), head=4)
    with pytest.raises(ValueError, match=r"the optimiser muon is for matrices .* none \(a U-Net .*: take adamw, or"):
        build(named(unet), of("muon"))


@pytest.mark.parametrize("split", [False, True])
def test_muon_leaves_a_learned_weight_of_the_loss_alone(split: bool):
    """It is no hidden layer of the map, and does not make one of a U-Net."""
    own = AverageVelocity(UNet(2, 4, width=4, multipliers=(1,), blocks=1, attention=(), head=4))
    loss: Objective = methods.flow_matching(own, weight=Learned())
    loss = SplitRows(loss, methods.flow_matching(own, weight=Learned())) if split else loss
    with pytest.raises(ValueError, match="muon is for matrices between hidden layers"):
        build(named(loss), of("muon"))


def test_a_step_can_be_left_out_on_its_device_by_fused_kinds_alone():
    assert [can_skip_on_device(build(named(net()), of(kind))) for kind in KINDS] == [True, True, False, False]


# rates ---------------------------------------------------------------------------------------------------------------


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    settings = Optimiser(learning_rate=0.3, warmup=4, final_rate_scale=0.1)
    assert [schedule(settings, k, 0.0) for k in range(6)] == pytest.approx([0.075, 0.15, 0.225, 0.3, 0.3, 0.3])
    assert schedule(settings, 99, 1.0) == pytest.approx(0.03)
    assert schedule(settings, 99, 0.5) == pytest.approx(0.3 * 0.55)
    rates = [schedule(settings, 99, p / 20) for p in range(21)]
    assert rates == sorted(rates, reverse=True)
    assert schedule(settings, 1, 1.5) == pytest.approx(0.5 * 0.03)
    assert schedule(Optimiser(learning_rate=0.3, warmup=0), 0, 0.0) == pytest.approx(0.3)


def test_the_rate_falls_linearly_or_not_at_all():
    linear = Optimiser(learning_rate=0.3, warmup=4, final_rate_scale=0.1, decay="linear")
    assert [schedule(linear, 99, p / 4) for p in range(5)] == pytest.approx([0.3, 0.2325, 0.165, 0.0975, 0.03])
    assert schedule(linear, 1, 0.5) == pytest.approx(0.5 * 0.165)
    constant = Optimiser(learning_rate=0.3, warmup=4, final_rate_scale=0.1, decay="constant")
    assert [schedule(constant, 99, p / 4) for p in range(6)] == pytest.approx([0.3] * 6)
    assert schedule(constant, 1, 0.9) == pytest.approx(0.15)
