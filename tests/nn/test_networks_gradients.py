"""Derivatives through the image networks: those of the network itself, and the gradient of every method's loss.

With stopped parts a loss's gradient is not the derivative of its value: it is that of theta -> L(theta, theta_0), where
each stopped part is held at theta_0. `Held` takes this literally. At theta_0 it records what every operation without
gradient returned (each under `no_grad`, each `detach`, down to single kernels, so also those within the library's
forward-mode rules); in evaluations at other weights it returns the recorded tensors in their place. Central differences
of such evaluations are the derivative of L in its first argument, and know nothing of reverse mode. That the value of L
is right, the tangents in it too, is said by `torch.func.jvp`, whose values are right where its gradients are not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from amount import named, pairs_of
from cases import METHODS, generator
from image_nets import CHANNELS, CLASSES, NETWORKS, SIDE, build, gradients, inputs
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from flowmaps import dual
from flowmaps.dual import core
from flowmaps.interpolants import Linear, WithNoise
from flowmaps.maps import AverageVelocity
from flowmaps.objectives import Objective
from flowmaps.shapes import GuidedCondition

CLOSE = 1e-6
STEPS = {"easy_consistency_tuning": 1e-5}
"""Of the differences, 1e-3 otherwise: this loss is a norm rounded off below 1e-4, which a step must resolve."""
ROWS = 5


class Held(TorchDispatchMode):
    """Records what takes no gradient, then holds it; each `with` starts from the first record."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []
        self.recorded, self.place = False, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        stopped = func is torch.ops.aten.detach.default or not torch.is_grad_enabled()
        if not stopped or func._schema.is_mutable:
            return out
        if not self.recorded:
            self.records.append(tree_map_only(Tensor, torch.clone, out))
            return out
        held, self.place = self.records[self.place], self.place + 1
        return tree_map_only(Tensor, torch.clone, held)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        assert not self.recorded or self.place == len(self.records), "two evaluations took different ways"
        self.recorded, self.place = True, 0


def slope(function: Callable[[], Tensor], weights: list[Tensor], direction: list[Tensor], step: float) -> float:
    """The derivative of a function of the weights along a direction, to fourth order, stopped parts held."""
    held = Held()
    with held:
        function()

    def at(share: float) -> float:
        with torch.no_grad():
            for weight, along in zip(weights, direction, strict=True):
                weight.add_(along, alpha=share * step)
        with held:
            value = function()
        with torch.no_grad():
            for weight, along in zip(weights, direction, strict=True):
                weight.sub_(along, alpha=share * step)
        return float(value.detach())

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def teacher(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """A smooth field that is nothing special."""
    return torch.sin(x.flip(3)) * t[:, None, None, None] - 0.3 * x


def objective(method: str, network: str, **options: Any) -> tuple[Objective, Any]:
    """A method's loss on a network with classes, and a draw."""
    flow_map, frozen = (AverageVelocity(build(network, seed=k, classes=CLASSES)) for k in (0, 1))
    path = WithNoise(Linear(), 0.5) if method == "fmm" else Linear()
    loss = METHODS[method](flow_map, velocity=teacher, frozen=frozen, interpolant=path, **options).double()
    rng = generator(3)
    x1 = torch.randn(ROWS, CHANNELS, SIDE, SIDE, dtype=torch.float64, generator=rng)
    labels = torch.randint(0, CLASSES + 1, (ROWS,), generator=rng)
    return loss, loss.draw(x1, cond=labels, generator=rng, progress=1.0)


def error(loss: Objective, draw: Any, step: float = 1e-3) -> float:
    """|grad . v - difference along v| over what the terms of grad . v would give if they did not cancel."""
    weights: list[Tensor] = [p for p in loss.parameters() if p.requires_grad]
    rng = generator(4)
    along = [torch.randn(p.shape, dtype=p.dtype, generator=rng) * p.square().mean().sqrt() for p in weights]
    slopes = gradients(loss.evaluate(draw).value, loss)
    found = [float((g * v).sum().detach()) for g, v in zip(slopes, along, strict=True)]
    size = sum(term * term for term in found) ** 0.5
    assert size > 1e-3, "the loss has no gradient: nothing is compared"
    expected = slope(lambda: loss.evaluate(draw).value, weights, along, step)
    return abs(sum(found) - expected) / size


@pairs_of(every=4, method=named(METHODS), network=named(NETWORKS))
def test_the_gradient_of_every_method_is_that_of_its_loss_with_stopped_parts_held(method: str, network: str):
    assert error(*objective(method, network), STEPS.get(method, 1e-3)) < CLOSE


DERIVED = [name for name, method in METHODS.items() if "engine" in inspect.signature(method.function).parameters]
"""The methods whose loss has a derivative in it."""


@torch.no_grad()
@pairs_of(method=named(DERIVED), network=named(NETWORKS))
def test_the_value_of_a_loss_with_a_derivative_is_that_of_torch_func(method: str, network: str):
    loss, draw = objective(method, network)
    other, _ = objective(method, network, engine="torch")
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
        wanted = other.evaluate(draw)
    torch.testing.assert_close(loss.evaluate(draw), wanted, rtol=1e-10, atol=1e-12)


def bent(rule: Callable[..., Any], change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A rule whose tangent is changed."""

    def wrong(*args: Any, **kwargs: Any) -> Any:
        out = rule(*args, **kwargs)
        return out if out.tangent is None else dual.Dual(out.value, change(out.tangent), out.detached)

    return wrong


class Bent(torch.autograd.Function):
    """The identity, with a gradient that is 1 % off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 1.01 * gradient


@pytest.mark.parametrize("network", NETWORKS)
def test_wrong_rules_are_found(network: str, monkeypatch: pytest.MonkeyPatch):
    """As torch's own normalisations are wrong: a right tangent with a wrong gradient; and a wrong tangent."""
    functions = core.named("silu")
    right = {function: core.TABLE[function] for function in functions}

    def bend(change: Callable[[Tensor], Tensor]) -> None:
        for function in functions:
            monkeypatch.setitem(core.TABLE, function, bent(right[function], change))

    bend(Bent.apply)
    assert error(*objective("lsd", network)) > 1e3 * CLOSE
    bend(lambda tangent: 1.01 * tangent)
    with pytest.raises(ValueError, match="tangent is off"):
        dual.check(build(network), *inputs())


@pytest.mark.parametrize("network", NETWORKS)
def test_what_a_stop_holds_makes_a_difference(network: str):
    """The gradient with a stop is neither the derivative of the value nor the gradient without it."""
    stopped, draw = objective("lmd-velocity", network)
    free, _ = objective("lmd-none", network)
    pairs = zip(
        gradients(stopped.evaluate(draw).value, stopped), gradients(free.evaluate(draw).value, free), strict=True
    )
    assert max(float((a - b).norm()) for a, b in pairs) > 1e-2
    assert error(free, draw) < CLOSE


# the networks by themselves -------------------------------------------------------------------------------------------


class Conditioned(nn.Module):
    """A network of (x, s, t, w) at fixed labels: its guidance weight has a derivative too."""

    def __init__(self, net: nn.Module, labels: Tensor | None) -> None:
        super().__init__()
        self.net, self.labels = net, labels

    def forward(self, x: Tensor, s: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return self.net(x, s, t, GuidedCondition(self.labels, w))


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {}),
    "unet, three levels": ("unet", {"multipliers": (1, 1, 2), "attention": (2, 4), "blocks": 2}),
    "unet without attention": ("unet", {"attention": ()}),
    "unet, many heads": ("unet", {"attention": (4, 2), "head": 2}),
    "unet, patch 2": ("unet", {"patch": 2}),
    "dit": ("dit", {}),
    "dit, plain queries": ("dit", {"qk_norm": False}),
    "dit, rms": ("dit", {"norm": "rms"}),
    "dit, patch 1": ("dit", {"patch": 1, "depth": 1}),
    "dit, one token": ("dit", {"patch": 4, "heads": 1}),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("case", OPTIONS)
def test_derivatives_are_right(case: str, training: bool):
    name, options = OPTIONS[case]
    net = build(name, dropout=0.3, **options).train(training)
    assert dual.check(net, *inputs(), tolerance=1e-7) < 1e-7


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_are_right_with_labels_and_a_guidance_weight(name: str, checkpointing: bool):
    net = build(name, classes=CLASSES, guidance=True, dropout=0.2).train()
    net.checkpointing = checkpointing
    net.embedding.weight.weight.data.normal_(generator=generator(5))  # type: ignore[union-attr]
    weight = torch.tensor([1.0, 2.5, 0.7], dtype=torch.float64)
    assert dual.check(Conditioned(net, torch.tensor([0, 3, 2])), *inputs(), weight, tolerance=1e-7) < 1e-7
    assert dual.check(net, *inputs(), torch.tensor([0, 3, 2]), tolerance=1e-7) < 1e-7
