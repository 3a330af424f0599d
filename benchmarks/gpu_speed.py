"""How fast training steps are on one GPU, beside what the GPU could do (benchmarks/gpu.sh).

    python benchmarks/gpu_speed.py                  every network and method, eager, by `dual` and by torch.func.jvp
    python benchmarks/gpu_speed.py unet lmd-target  one of them compiled

A step is draw, loss, gradient, optimiser and EMA, in bf16 autocast: the median of a few, timed by the device's events.
Beside it stands the least time that the device could need, max(operations / matrix ceiling, bytes / memory ceiling).

operations: multiplications and additions of matrix products and convolutions, forward and backward, counted by torch.
bytes: what was kept for the backward pass, written and read once; weights, gradients, moments and EMA, 44 bytes each.
The ceilings are measured here: products of 8192 x 8192 bf16 matrices, and copies of 1 GiB.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from gpu_report import SCALE, get_ready, record, wait_for_turn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowmaps import methods
from flowmaps.data import Images
from flowmaps.equations import Stop
from flowmaps.maps import AverageVelocity, Target
from flowmaps.nn import DiT, UNet
from flowmaps.objectives import Objective
from flowmaps.system.seeds import generator
from flowmaps.training.loop import train
from flowmaps.training.optimisers import Optimiser
from flowmaps.training.state import State, begin

TINY = SCALE == "tiny"
DEVICE = torch.device(os.environ.get("DEVICE", "cuda"))
CUDA = DEVICE.type == "cuda"
PRECISION = torch.bfloat16 if CUDA else torch.float32
WARM_UP, TIMED = (1, 2) if TINY else (2, 5)
COUNTED_ROWS = 4  # whose operations are counted
BYTES_OF_STATE = 44  # a weight: read twice, written once; gradient written and read; two moments and an EMA, both ways

# name -> (title, network, resolution, batch)
NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], int, int]] = {
    "unet": ("U-Net", partial(UNet, 3, 32, classes=10), 32, 128),
    "dit-s": ("DiT-S/2", partial(DiT, 3, 32, classes=10), 32, 256),
    "dit-b": ("DiT-B/2", partial(DiT, 3, 32, width=768, depth=12, heads=12, classes=10), 32, 64),
    "dit-b-1024": ("DiT-B/2, 1,024 tokens", partial(DiT, 3, 64, width=768, depth=12, heads=12, classes=10), 64, 16),
}
if TINY:
    NETWORKS = {
        "unet": ("U-Net", partial(UNet, 3, 8, width=8, multipliers=(1,), blocks=1, head=8, classes=10), 8, 8),
        "dit-b": ("DiT", partial(DiT, 3, 8, width=32, depth=1, heads=1, classes=10), 8, 8),
    }
METHODS: dict[str, Callable[..., Objective]] = {
    "flow-matching": methods.flow_matching,
    "lmd-target": partial(methods.lmd, stop=Stop.TARGET),
    "lsd": methods.lsd,
    "lmd-velocity": partial(methods.lmd, stop=Stop.VELOCITY),
    "meanflow": methods.meanflow,
}


class Case:
    """A method on a network, ready to train.

    Args:
        network: a key of `NETWORKS`.
        method: a key of `METHODS`.
        engine: how the derivative is taken: `dual` or `torch`.
        compiled: compile the loss.
    """

    def __init__(self, network: str, method: str, engine: str = "dual", *, compiled: bool = False) -> None:
        title, build, resolution, batch = NETWORKS[network]
        torch.manual_seed(0)
        with DEVICE:  # where the weights are drawn
            flow_map = AverageVelocity(build())
        if engine == "torch":
            write_out_norms(flow_map)
        options: dict[str, Any] = {"teacher": Target(flow_map).velocity} if method.startswith("lmd") else {}
        options |= {"engine": engine} if method != "flow-matching" else {}
        self.batch, self.optimiser = batch, Optimiser(batch=batch, learning_rate=1e-4)
        self.objective = METHODS[method](flow_map, **options).to(DEVICE).train()
        pixels = torch.randint(0, 256, (1_000, 3, resolution, resolution), dtype=torch.uint8)
        self.source = Images(pixels, torch.arange(1_000) % 10).to(DEVICE)
        self.parameters = sum(p.numel() for p in flow_map.parameters())
        evaluate = torch.compile(self.objective.evaluate, dynamic=False, backend=os.environ["COMPILER"])
        self.state: State = begin(
            self.objective, self.optimiser, evaluate=evaluate if compiled else None, precision=PRECISION
        )
        self.about = {"network": title, "method": method, "engine": engine, "compiled": compiled, "batch": batch}

    def warm_up(self) -> None:
        """Take the first steps, which compile and choose kernels."""
        begun = time.monotonic()
        self._steps(WARM_UP)
        self.about["first_seconds"] = time.monotonic() - begun

    def _steps(self, number: int) -> list[float]:
        """Seconds of so many more steps."""
        resting = torch.cuda.memory_allocated() if CUDA else 0
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        marks, steps = [_mark()], self.state.step + number
        with self.attention():
            for _ in train(self.state, self.source, self.optimiser, steps=steps, device=DEVICE):
                marks.append(_mark())
        if CUDA:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
            self.kept = self.peak - resting
        return [_seconds(a, b) for a, b in itertools.pairwise(marks)]

    def attention(self) -> AbstractContextManager[Any]:
        """For torch.func.jvp, which has no rule for fused attention, the written-out one."""
        if self.about["engine"] != "torch":
            return nullcontext()
        return patch("torch.nn.functional.scaled_dot_product_attention", written_out_attention)

    def measure(self, ceilings: tuple[float, float], flops: float) -> None:
        """Time steps of so many operations and record them beside what the device could do."""
        seconds = statistics.median(self._steps(TIMED))
        row: dict[str, Any] = self.about | {"seconds": seconds, "images_per_second": self.batch / seconds}
        row |= {"parameters": self.parameters, "flops": flops, "utilisation": flops / seconds / ceilings[0]}
        if CUDA:
            moved = 2 * self.kept + BYTES_OF_STATE * self.parameters
            row |= {"peak_bytes": self.peak, "roofline_compute": flops / ceilings[0]}
            row |= {"roofline_memory": moved / ceilings[1]}
        record("speed", **row)

    def operations(self) -> float:
        """Floating-point operations of a step by `dual`, forward and backward."""
        rng = generator(0, device=DEVICE)
        x1, cond = self.source.sample(COUNTED_ROWS, rng)
        draw = self.objective.draw(x1, cond=cond, generator=rng, progress=0.0)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused ones are not all counted
            self.objective.evaluate(draw).value.backward()
        self.objective.zero_grad(set_to_none=True)
        return counter.get_total_flops() * self.batch / COUNTED_ROWS


def written_out_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in products and a softmax, of which torch.func.jvp has the derivatives."""
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v


class WrittenOutNorm(nn.Module):
    """LayerNorm in elementary operations: torch.func.jvp has no right gradient of a tangent through torch's own."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y - y.mean(-1, keepdim=True)
        return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)


def write_out_norms(module: nn.Module) -> None:
    """Replace each LayerNorm, without weights as in DiT, by one in elementary operations."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, WrittenOutNorm(child.eps))


def _mark() -> Any:
    if not CUDA:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(first: Any, second: Any) -> float:
    return first.elapsed_time(second) / 1000 if CUDA else second - first


def ceilings() -> tuple[float, float]:
    """Operations a second of large matrix products, and bytes a second of large copies; recorded too."""
    size, number = (8192, 20) if CUDA else (512, 5)
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=PRECISION)
    out = torch.empty_like(a)
    source = torch.empty(2**30 if CUDA else 2**24, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)

    def rate(work: Callable[[], Any], amount: float) -> float:
        for _ in range(3):
            work()
        marks = [_mark()]
        for _ in range(number):
            work()
            marks.append(_mark())
        if CUDA:
            torch.cuda.synchronize()
        return amount / statistics.median(_seconds(a, b) for a, b in itertools.pairwise(marks))

    flops = rate(lambda: torch.mm(a, b, out=out), 2 * size**3)
    moved = rate(lambda: target.copy_(source), 2 * source.numel())
    record("ceiling", flops=flops, bytes=moved)
    return flops, moved


def eager() -> None:
    """Every method, network and engine, the methods in turn; a case that fails costs itself alone."""
    found = ceilings()
    for method, network in itertools.product(METHODS, NETWORKS):
        flops = math.nan
        for engine in ("dual", "torch") if method != "flow-matching" else ("dual",):
            case = None
            try:
                case = Case(network, method, engine)
                case.warm_up()
                if engine == "dual":
                    flops = case.operations()
                case.measure(found, flops)
            except Exception as error:
                words = "out of memory" if isinstance(error, torch.OutOfMemoryError) else repr(error)[:300]
                record("speed", network=NETWORKS[network][0], method=method, engine=engine, compiled=False, error=words)
            del case
            if CUDA:
                torch.cuda.empty_cache()


def main(arguments: list[str]) -> None:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    if not arguments:
        wait_for_turn()
        return eager()
    case = Case(*arguments, compiled=True)
    get_ready(case.warm_up)
    if CUDA:
        torch.cuda.empty_cache()
    wait_for_turn()
    case.measure(ceilings(), case.operations())


if __name__ == "__main__":
    main(sys.argv[1:])
