"""A `Trainer` in one process or in several that have the same rows between them: what it leaves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flowmaps as fm
from flowmaps.couplings import Coupling
from flowmaps.objectives import Objective
from flowmaps.shapes import Condition, Time
from flowmaps.system.processes import rank, ranks
from flowmaps.times import Times
from flowmaps.training import Optimiser, Settings, Trainer
from flowmaps.training.distributed import start

ROWS, STEPS = 16, 6


class Folded(Coupling):
    """Noise that is a function of the datum, so that a row is the same in whichever process."""

    def match(self, x0: Tensor, x1: Tensor, cond: Condition = None) -> tuple[Tensor, Tensor]:
        return torch.sin(7 * x1), x1


@dataclass(frozen=True)
class FromRows(Times):
    """Times that are a function of the datum: s < t, or s = t."""

    diagonal: bool = False

    def pair(self, uniforms: Tensor, progress: float = 1.0) -> tuple[Time, Time]:
        raise NotImplementedError

    def draw(
        self, rows: int, generator: torch.Generator | None = None, progress: float = 1.0, like: Tensor | None = None
    ) -> tuple[Time, Time]:
        assert like is not None
        rows = like.flatten(1)
        s = rows[:, 0].sin().abs() / 2
        return (s, s) if self.diagonal else (s, s + rows[:, 1].cos().abs() / 2)


def objective() -> Objective:
    torch.manual_seed(0)
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(2, width=8, depth=2).double())
    laws = {"times": FromRows(), "diagonal": FromRows(diagonal=True), "coupling": Folded()}
    return fm.methods.lsd(flow_map, **laws)  # type: ignore[arg-type]


def trained(folder: Path, shard: bool = False, stop_after: int = STEPS) -> dict[str, np.ndarray]:
    """The weights after the steps that were asked for; each process has its part of the same rows."""
    made = objective()
    rows = torch.randn(STEPS, ROWS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    placement = start("cpu", shard=shard)
    mine = made.micro_batches(ROWS, ranks())[rank()]
    trainer = Trainer(
        made,
        [batch[mine] for batch in rows],
        folder,
        steps=STEPS,
        optimiser=Optimiser(batch=ROWS, learning_rate=1e-2, decay="constant", warmup=0, ema_decay=0.9),
        settings=Settings(checkpoint_every=2, log_every=1),
        placement=placement,
        stop=lambda: trainer.step >= stop_after,
        say=lambda text: None,
    )
    for _ in trainer:
        pass
    return {name: value.detach().numpy().copy() for name, value in trainer.finish().named_parameters()}


def fitted(folder: Path, stop_after: int | None = None) -> dict[str, np.ndarray]:
    """The weights that `fit` leaves after a call; each process has its part of the same batches, and a position."""
    made = objective()
    rows = torch.randn(STEPS, ROWS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mine = made.micro_batches(ROWS, ranks())[rank()]
    asked = itertools.count(1)
    stop = None if stop_after is None else lambda: next(asked) >= stop_after
    batches = Counted([batch[mine] for batch in rows])
    options: dict[str, Any] = {"learning_rate": 1e-2, "warmup": 0, "checkpoint_every": 2, "device": "cpu"}
    flow_map = fm.fit(made, batches, folder, steps=STEPS, batch=ROWS, stop=stop, say=lambda text: None, **options)
    return {name: value.detach().numpy().copy() for name, value in flow_map.named_parameters()}


def students() -> dict[str, np.ndarray]:
    """The weights of students of `diffusers` after `fit`, without LoRA and with it; each process has its images."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}
    net = UNet2DModel(sample_size=4, layers_per_block=1, **sizes, **blocks).double()
    pipeline, found = DDIMPipeline(net, DDIMScheduler(prediction_type="v_prediction")), dict[str, np.ndarray]()
    images = torch.randn(3, ROWS, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"learning_rate": 1e-3, "warmup": 0, "ema_decay": 0.5, "device": "cpu"}
    for lora in (None, 2):
        torch.manual_seed(1)
        model = fm.interop.diffusers(pipeline, lora=lora)
        made = fm.methods.lmd(model.student, teacher=model.teacher, times=FromRows(), coupling=Folded())
        mine = made.micro_batches(ROWS, ranks())[rank()]
        flow_map = fm.fit(made, [part[mine] for part in images], steps=3, batch=ROWS, say=lambda text: None, **options)
        found |= {f"{lora} {name}": value.detach().numpy().copy() for name, value in flow_map.named_parameters()}
    return found


class Counted(list):
    """Batches that can be asked where they are; the processes count from numbers of their own."""

    def __init__(self, batches: list[Tensor]) -> None:
        super().__init__(batches)
        self.next = 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.next < len(self):
            self.next += 1
            yield self[self.next - 1]

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next + 100 * rank()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state["next"] // 100 == rank(), "the position of another process"
        self.next = state["next"] % 100
