"""Tiny recipes, networks and data of the tests of several processes, in float64: rounding hides nothing there."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowmaps.data import Source, Units
from flowmaps.maps import FlowMap, Target
from flowmaps.methods import METHODS
from flowmaps.nn import MLP
from flowmaps.objectives import Objective
from flowmaps.runs import initial
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import DiTNetwork, ImageRecipe, Network, Optimiser, Recipe, UNetNetwork
from flowmaps.velocities import RandomInputs

CLASSES, ROWS = 3, 16
SETTINGS = Optimiser(batch=ROWS, learning_rate=1e-2, warmup=2, ema_decay=0.9, clip=1.0)
PLANE = Recipe("plane", data="checkerboard", steps=5, teacher_steps=4, compile=False, device="cpu",
               checkpoint_every=1_000, log_every=1, show_every=0, optimiser=SETTINGS,
               network=Network(width=8, depth=2, modulation=4, time_frequencies=2))  # fmt: skip
IMAGES = ImageRecipe("images", data="cifar10", steps=5, teacher_steps=4, compile=False, device="cpu",
                     checkpoint_every=1_000, log_every=1, show_every=0, optimiser=SETTINGS,
                     unet=UNetNetwork(width=4, multipliers=(1, 2), blocks=1, attention=(2,), head=4, dropout=0.0,
                                      frequencies=2),
                     dit=DiTNetwork(width=8, depth=1, heads=2, patch=2, ratio=2.0, frequencies=2))  # fmt: skip


class Noise(Source):
    """Data of a normal law of mean 0.3, with labels or without.

    Args:
        shape: of a sample.
        classes: how many, or `None`.
        dtype: of the samples.
    """

    def __init__(self, shape: tuple[int, ...], classes: int | None = None, dtype: torch.dtype = torch.float64) -> None:
        self.units, self.dtype = Units(shape, classes), dtype

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        x = 0.3 + 0.6 * torch.randn(number, *self.shape, dtype=torch.float64, generator=generator)
        labels = torch.randint(self.classes, (number,), generator=generator) if self.classes else None
        return x.to(self.dtype), labels

    def to(self, device: torch.device | str) -> Source:
        return self


class Times(nn.Module):
    """Times as they are, of a network that is to have no buffer."""

    width = 1

    def forward(self, t: Tensor) -> Tensor:
        return t[:, None]


FEW = ("lmd", "fmm", "esd", "shortcut", "progressive_distillation", "consistency_training")


@dataclass(frozen=True)
class Net:
    """A network of the tests.

    Args:
        recipe: that makes it.
        buffer: give it a buffer of floats by which its input is scaled.
        bare: take away the buffers that it has.
        idle: give it a weight that it does not use.
        classes: of its labels.
        methods: that are tried on it at each change: all, or one of each kind of loss, the others in slow tests.
    """

    recipe: Recipe
    buffer: bool = False
    bare: bool = False
    idle: bool = False
    classes: int | None = None
    methods: tuple[str, ...] = FEW

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return (2, 4, 4) if isinstance(self.recipe, ImageRecipe) else (2,)

    def source(self) -> Noise:
        return Noise(self.shape, self.classes)

    def build(self, method: str, seed: int = 0) -> FlowMap:
        """A map of the recipe's, none of whose weights is zero."""
        flow_map = initial.new_map(replace(self.recipe, method=method), self.shape, self.classes).double()
        net = initial.network_of(flow_map)
        if self.bare:
            assert isinstance(net, MLP)
            net.time = Times()  # type: ignore[assignment]
            assert not list(flow_map.buffers())
        if self.buffer:
            net.register_buffer("stretch", torch.linspace(0.5, 1.5, 2, dtype=torch.float64))
            net.register_forward_pre_hook(_stretch)
        if self.idle:
            net.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))  # type: ignore[assignment]
        randomise(flow_map, seed)
        return flow_map


def _stretch(net: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The input by the buffer, channel by channel."""
    x, *rest = given
    scale: Tensor = net.stretch  # type: ignore[assignment]
    return x * scale.view(1, 2, *(1 for _ in x.shape[2:])), *rest


@torch.no_grad()
def randomise(net: nn.Module, seed: int = 0) -> None:
    """Weights of a size that keeps activations near one: one that is zero would hide a wrong gradient of the others."""
    rng = torch.Generator().manual_seed(seed)
    for value in net.parameters():
        fan = value[0].numel() if value.ndim > 1 else 10
        value.copy_(torch.randn(value.shape, dtype=torch.float64, generator=rng) / fan**0.5)


BARE = replace(PLANE.network, time_frequencies=0)
FLAT = UNetNetwork(width=4, multipliers=(1,), blocks=1, attention=(4,), head=4, dropout=0.0, frequencies=2)
DIT = replace(IMAGES, backbone="dit")
ALL = tuple(METHODS)
GUIDED: dict[str, Any] = {"guidance": (1.0, 3.0)}
NETS: dict[str, Net] = {
    "mlp": Net(PLANE, methods=ALL),
    "mlp-bare": Net(replace(PLANE, network=BARE), bare=True),
    "mlp-buffer": Net(PLANE, buffer=True),
    "mlp-idle": Net(PLANE, idle=True),
    "mlp-guided": Net(replace(PLANE, learned_weight=True, **GUIDED), classes=CLASSES),
    "unet": Net(IMAGES),
    "unet-buffer": Net(replace(IMAGES, unet=FLAT), buffer=True),
    "dit": Net(DIT),
    "dit-buffer": Net(DIT, buffer=True),
    "dit-guided": Net(replace(DIT, **GUIDED), classes=CLASSES),
}
"""A new network is tested by adding its line."""


def stages(net: str, *, every: bool = False) -> list[str]:
    """The objectives of a network's methods, or of every method: METHOD, or METHOD/STAGE of the first of two; each
    first stage once."""
    names, seen = [], set[str]()
    for method in METHODS if every else NETS[net].methods:
        for stage in resolve(replace(NETS[net].recipe, method=method)).stages:
            if stage.name == "map":
                names.append(method)
            elif stage.name not in seen:
                seen.add(stage.name)
                names.append(f"{method}/{stage.name}")
    return names


def objective(net: str, name: str) -> Objective:
    """The objective of one of `stages`, the same in each process; its teacher is another network of the same make."""
    case, (method, _, stage) = NETS[net], name.partition("/")
    flow_map = case.build(method)
    teacher = Target(case.build(method, seed=1)).velocity
    built = {one.name: one for one in resolve(replace(case.recipe, method=method)).stages}[stage or "map"]
    made = built.build(flow_map, teacher).double()
    randomise(made.flow_map)  # a map that starts from its velocity has zeros again
    return made


def draw(made: Objective, net: str, rows: int = ROWS, seed: int = 3) -> RandomInputs:
    """One draw, in the middle of training."""
    rng = torch.Generator().manual_seed(seed)
    x1, cond = NETS[net].source().sample(rows, rng)
    return made.draw(x1, cond=cond, generator=rng, progress=0.5)


def gradients(made: nn.Module) -> dict[str, Tensor | None]:
    """Of what is trained, by name."""
    return {name: value.grad for name, value in made.named_parameters() if value.requires_grad}


def alone(made: Objective, given: RandomInputs) -> dict[str, Tensor | None]:
    """Gradients of a draw in this process, of a copy."""
    copied = copy.deepcopy(made)
    copied.evaluate(given).value.backward()
    return gradients(copied)


def gap(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> float:
    """The largest difference, as a share of the largest entry expected; one that is missing is zero."""
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values() if value is not None)
    assert largest > 1e-6, "the gradient is zero, so that nothing is tested"
    gaps = [0.0]
    for name, value in expected.items():
        one, other = (torch.zeros(1) if v is None else v for v in (found[name], value))
        gaps.append(float((one - other).abs().max()))
    return max(gaps) / largest
