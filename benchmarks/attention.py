"""What attention with a derivative costs on long sequences: a step (loss, gradient) of LSD, in blocks and written out.

    python benchmarks/attention.py [--lengths 512 1024 2048] [--rounds 5] [--batch 2] [--compile]

The network is one layer of self-attention over n tokens, with a LayerNorm before it and a residual round it, so that
the weights of attention, n x n a head, are most of the memory. "peak" is what a step allocates at most beyond what was
there (`flowmaps.system.memory`); both sides take the same draw, and their gradients are compared. The sides take turns,
round by round; the median over rounds is printed, and the load of the machine beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowmaps import maps, methods, objectives
from flowmaps.dual import blocks
from flowmaps.system.memory import peak

WRITTEN_OUT = 10**9
"""A length from which sequences are cut that none has."""


class Layer(nn.Module):
    """`(B, n, channels) -> (B, n, channels)`: attention of `heads` heads."""

    def __init__(self, channels: int = 16, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.into, self.times, self.norm = nn.Linear(channels, width), nn.Linear(2, width), nn.LayerNorm(width)
        self.qkv, self.joined, self.out = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            nn.Linear(width, channels),
        )

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        h = self.into(x) + self.times(torch.stack([s, t], 1))[:, None]
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(h + self.joined(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class Step:
    """A step of LSD at one length of sequence, in blocks or written out."""

    def __init__(self, length: int, batch: int, cut: bool, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.net, self.least = Layer(), blocks.LENGTH if cut else WRITTEN_OUT
        objective = methods.lsd(maps.AverageVelocity(self.net), share=0.5)
        assert isinstance(objective, objectives.SplitRows)
        draw = objective.second.draw(torch.randn(batch, length, 16), generator=torch.Generator().manual_seed(1))
        loss = objective.second.evaluate
        loss = torch.compile(loss, dynamic=False, fullgraph=True) if compiled else loss
        self._run = lambda: loss(draw).value

    def __call__(self) -> list[Tensor]:
        usual, blocks.LENGTH = blocks.LENGTH, self.least
        try:
            return list(torch.autograd.grad(self._run(), list(self.net.parameters())))
        finally:
            blocks.LENGTH = usual


def median_ms(steps: list[Step], rounds: int) -> list[float]:
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, found in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048], help="tokens of a sequence")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--batch", type=int, default=2, help="sequences in a batch")
    parser.add_argument("--compile", action="store_true", help="compile both sides")
    args = parser.parse_args()
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"torch {torch.__version__}, {threads} threads, load {load:.1f}, {args.rounds} rounds")
    print("tokens   peak MiB in blocks  written out   step ms in blocks  written out  ratio   gradients differ by")
    for length in args.lengths:
        torch.compiler.reset()
        steps = [Step(length, args.batch, cut, args.compile) for cut in (True, False)]
        gradients = [step() for step in steps]
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(*gradients, strict=True) if b.any())
        sizes = [(peak(step, torch.device("cpu")) or 0) / 2**20 for step in steps]
        ours, theirs = median_ms(steps, args.rounds)
        print(
            f"{length:6d} {sizes[0]:20.1f} {sizes[1]:12.1f} {ours:19.0f} {theirs:12.0f} {ours / theirs:6.2f}"
            f" {worst:21.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
