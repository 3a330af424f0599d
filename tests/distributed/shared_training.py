"""What a process does in the tests of training: some steps, and what they leave."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from amount import THOROUGH
from shared_cases import NETS, SETTINGS, Noise, objective
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from flowmaps.data import Source
from flowmaps.runs.recipes import Optimiser
from flowmaps.system import processes
from flowmaps.system.processes import full
from flowmaps.training.distributed import start
from flowmaps.training.loop import train
from flowmaps.training.state import State, begin

STEPS = 5


@dataclass(frozen=True)
class Case:
    """A training.

    Args:
        net: of the networks.
        name: of the objective.
        settings: of the optimiser.
        dtype: of weights and data.
        precision: in which networks compute.
        bad: what the second process finds in its data at the third step.
    """

    net: str = "mlp"
    name: str = "lsd"
    settings: Optimiser = SETTINGS
    dtype: torch.dtype = torch.float64
    precision: torch.dtype = torch.float32
    bad: float | None = None


@dataclass
class Left:
    """What a training leaves.

    Attributes:
        tensors: of the state, whole.
        norms: of the steps.
        moved: by how much the weights did in each step.
        meetings: how often the gradients met.
        losses: of this process.
        skipped: steps.
        factor: of the loss, in float16.
    """

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    meetings: int = 0
    skipped: int = 0
    factor: float = math.nan


class Spoilt(Noise):
    """Data of which the last process finds a value that is not finite at the third step."""

    def __init__(self, case: Case) -> None:
        own = NETS[case.net].source()
        super().__init__(own.shape, own.classes, case.dtype)
        self.bad, self.count = case.bad, 0

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        x, labels = super().sample(number, generator)
        self.count += 1
        if self.bad is not None and self.count == 3 and processes.rank() == processes.ranks() - 1:
            x[0] = self.bad
        return x, labels

    def to(self, device: torch.device | str) -> Source:
        return self


class Scatters(TorchDispatchMode):
    """Counts the reductions of FSDP2."""

    def __init__(self, left: Left) -> None:
        super().__init__()
        self.left = left

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left.meetings += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


def trained(case: Case, shard: bool) -> Left:
    """Train a case."""
    placement = start("cpu", shard=shard)
    made = objective(case.net, case.name).to(case.dtype)
    state = begin(made, case.settings, placement=placement, precision=case.precision)
    left = Left()
    if isinstance(state.module, DistributedDataParallel):
        state.module.register_comm_hook(None, _hook(left))
    before = _weights(state)
    with Scatters(left):
        for step in train(state, Spoilt(case), case.settings, steps=STEPS):
            left.norms.append(float(step.norm))
            left.losses.append(float(step.loss.value))
            now = _weights(state)
            left.moved.append(float((now - before).abs().max()))
            before = now
    state.guard.read_norms()
    left.skipped = state.guard.skipped
    left.factor = state.scaler.get_scale()
    left.tensors = {name: full(value).detach().double().numpy().copy() for name, value in state.tensors().items()}
    return left


def _weights(state: State) -> Tensor:
    return torch.cat([full(value).detach().flatten() for value in state.parameters.values()])


def _hook(left: Left) -> Any:
    """DDP's own reduction, counted."""

    def meet(_, bucket):  # annotations as text are refused
        left.meetings += bucket.is_last()
        done = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future()
        return done.then(lambda future: future.value()[0])

    return meet


def averages(settings: Optimiser) -> Optimiser:
    """With an average of each kind beside the main one."""
    return replace(settings, ema_decays=(0.5,), ema_widths=(0.1,))


MUON = replace(SETTINGS, kind="muon", weight_decay=0.1)
ALL: dict[str, Case] = {
    "mlp-adam": Case(settings=averages(SETTINGS)),
    "mlp-adamw": Case(name="meanflow", settings=replace(SETTINGS, kind="adamw", weight_decay=0.1)),
    "mlp-radam": Case(name="lmd", settings=replace(SETTINGS, kind="radam", weight_decay=0.1)),
    "mlp-muon": Case(settings=MUON),
    "unet-adam": Case(net="unet", name="fmm"),
    "dit-muon": Case(net="dit", name="lmd", settings=MUON),
    "dit-target": Case(net="dit", name="progressive_distillation", settings=averages(SETTINGS)),
    "accumulate": Case(name="psd", settings=replace(SETTINGS, accumulate=2)),
    "nan": Case(bad=math.nan),
    "inf": Case(bad=math.inf, settings=replace(SETTINGS, accumulate=2)),
    "float32": Case(dtype=torch.float32),
    "bfloat16": Case(dtype=torch.float32, precision=torch.bfloat16),
    "float16": Case(dtype=torch.float32, precision=torch.float16),
    "float16-overflow": Case(net="dit", name="lsd", dtype=torch.float32, precision=torch.float16),
}


THOROUGH_ALONE = ("mlp-radam", "mlp-muon", "unet-adam")
CASES = {name: case for name, case in ALL.items() if THOROUGH or name not in THOROUGH_ALONE}
"""All of them where slow tests run too."""


def everything() -> dict[str, dict[str, Left]]:
    """All cases under both ways of sharing."""
    return {name: {kind: trained(case, kind == "fsdp") for kind in ("ddp", "fsdp")} for name, case in CASES.items()}
