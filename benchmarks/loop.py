"""What the training loop costs beyond the bare loss, backward pass and optimiser step of the same objective.

Both sides run in one process and take turns, a block of steps each. The loop is the whole of `flowmaps train`: draws
from streams of their own, clipping, the guard, the moving average, the log, the progress bar. The bare side draws its
data and times from one generator, evaluates the same objective, compiled alike, and steps the same Adam.

    python benchmarks/loop.py
    python benchmarks/loop.py --only cifar10-tiny --blocks 10
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from flowmaps.cli import commands, terminal
from flowmaps.data import Source
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import Recipe
from flowmaps.runs.run import Run, initial, recipes
from flowmaps.system.devices import compiled, pick_device

WARM = 2  # blocks of each side that are not counted


def board(name: str, batch: int) -> Recipe:
    """The checkerboard by self-distillation, compiled."""
    recipe = dataclasses.replace(recipes.checkerboard(), method="lsd", steps=500_000, teacher_steps=500_000)
    return dataclasses.replace(recipe, name=name, optimiser=dataclasses.replace(recipe.optimiser, batch=batch))


def images(name: str) -> Recipe:
    """CIFAR-10 at 16 x 16 by velocity matching, as it is."""
    recipe = recipes.RECIPES[name]()
    return dataclasses.replace(recipe, method="flow_matching", steps=500_000, teacher_steps=500_000)


CASES: dict[str, tuple[Callable[[], Recipe], int]] = {
    "checkerboard-1024": (lambda: board("checkerboard-1024", 1024), 100),
    "checkerboard-4096": (lambda: board("checkerboard-4096", 4096), 50),
    "cifar10-tiny": (lambda: images("cifar10-tiny"), 10),
}
"""Recipe and steps of a block."""


class Bare:
    """The step without a loop round it: data, draw, loss, backward pass, Adam."""

    def __init__(self, recipe: Recipe, source: Source, device: torch.device) -> None:
        flow_map = initial.new_map(recipe, source.shape, source.classes).to(device)
        stage = resolve(recipe).stages[0]
        self.objective, self.source, self.batch = stage.build(flow_map, None).to(device), source, recipe.optimiser.batch
        fast = compiled(self.objective.evaluate, print) if recipe.compile else None
        self.evaluate = self.objective.evaluate if fast is None else fast
        betas = (0.9, recipe.optimiser.beta2)
        learns = [value for value in self.objective.parameters() if value.requires_grad]
        self.adam = torch.optim.Adam(learns, lr=recipe.optimiser.learning_rate, betas=betas, fused=True)
        self.generator = torch.Generator(device).manual_seed(0)
        precision = getattr(torch, recipe.precision)
        self.autocast = torch.autocast(device.type, precision, enabled=precision != torch.float32)

    def step(self) -> None:
        x1, cond = self.source.sample(self.batch, self.generator)
        draw = self.objective.draw(x1, cond=cond, generator=self.generator, progress=0.0)
        with self.autocast:
            loss = self.evaluate(draw)
        self.adam.zero_grad(set_to_none=True)
        loss.value.backward()
        self.adam.step()


class Turns:
    """Called after each step of the loop: after a block of them the bare side has its block, and both are timed."""

    def __init__(self, bare: Bare, block: int, blocks: int, device: torch.device) -> None:
        self.bare, self.block, self.blocks, self.device = bare, block, blocks + WARM, device
        self.steps, self.loop, self.alone = 0, [], []
        self.begun = time.perf_counter()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self) -> bool:
        self.steps += 1
        if self.steps % self.block:
            return False
        middle = self.now()
        for _ in range(self.block):
            self.bare.step()
        end = self.now()
        self.loop.append((middle - self.begun) / self.block)
        self.alone.append((end - middle) / self.block)
        self.begun = self.now()
        return len(self.loop) >= self.blocks


def measure(name: str, blocks: int, device: str, more: bool = False) -> str:
    """A line of the table."""
    build, block = CASES[name]
    recipe = build()
    averaged = (
        dataclasses.replace(recipe.optimiser, ema_decays=(0.9999,), ema_widths=(0.1,)) if more else recipe.optimiser
    )
    rare = {"checkpoint_every": 10**6, "store_averages_every": 10**6, "show_every": 0, "device": device}
    recipe = dataclasses.replace(recipe, optimiser=averaged, **rare)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.open(recipe, Path(folder) / "run", say=lambda _: None)
        turns = Turns(Bare(recipe, run.source, run.placement.device), block, blocks, run.placement.device)
        commands.follow(run, turns)
    loop, alone = turns.loop[WARM:], turns.alone[WARM:]
    ratios = sorted(a / b for a, b in zip(loop, alone, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    milliseconds = [1e3 * statistics.median(times) for times in (loop, alone)]
    return (
        f"{name:18} {milliseconds[0]:9.3f} {milliseconds[1]:9.3f} {statistics.median(ratios):9.3f}   "
        f"{low:.3f}-{high:.3f}  {len(loop)} x {block}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases")
    parser.add_argument("--blocks", type=int, default=30, help="blocks of each side that are counted")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--averages", action="store_true", help="three moving averages in the place of one")
    given = parser.parse_args()
    hidden = Console(file=io.StringIO(), force_terminal=True, width=120)  # a bar is drawn, and nobody is disturbed
    terminal.console = commands.console = hidden
    device = pick_device(given.device)
    what = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device.type}, {what}: milliseconds a step, medians of blocks that take turns")
    print(f"{'':18} {'loop':>9} {'bare':>9} {'ratio':>9}   quartiles    blocks x steps")
    for name in given.only:
        print(measure(name, given.blocks, given.device, given.averages), flush=True)


if __name__ == "__main__":
    main()
