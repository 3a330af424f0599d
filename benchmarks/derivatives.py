"""What a derivative in the loss costs: one step (loss and gradient) of LSD, ESD, PSD and LMD, engine by engine.

The same weights and the same rows for all: an MLP of [x, s, t - s] with 5 hidden layers of 512 and tanh-GELU in two
dimensions. The engines take turns, round by round, so that other work on the machine falls on all alike; the median
over rounds is printed. "floor" is the time of the matrix products alone: no step of torch's kernels can be faster.

    python benchmarks/derivatives.py [--batch 512 4096] [--rounds 20] [--methods lsd esd psd lmd] [--cores 1]

Every row carries the derivative unless `--share 0.75` gives that part of the rows to the diagonal, as training does.
JAX is optional (`pip install jax`). Beside other work give `--cores 1`: a core taken away stalls torch's threads.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowmaps import maps, methods, nn, objectives
from flowmaps.interpolants import Linear

METHODS = ("lsd", "esd", "psd", "lmd")
ENGINES = ("dual compiled", "dual eager", "torch.func.jvp eager", "JAX", "floor")
WIDTH, DEPTH = 512, 5
Step = Callable[[], float]


def network(seed: int) -> nn.MLP:
    """Weights of variance 2 / inputs (He et al., 2015), so that the losses are of order one and can be compared."""
    torch.manual_seed(seed)
    net = nn.MLP(dim=2, width=WIDTH, depth=DEPTH)
    for layer in (net.first, *net.hidden, net.last):
        torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
    return net


class Teacher(torch.nn.Module):
    """A second network as the velocity field of LMD."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x, t, t)


def objective(method: str, net: nn.MLP, teacher: Teacher, share: float, engine: Any) -> objectives.Objective:
    flow_map = maps.AverageVelocity(net)
    if method == "lmd":
        return methods.lmd(flow_map, teacher=teacher, interpolant=Linear(), engine=engine)
    build, options = {"lsd": methods.lsd, "esd": methods.esd, "psd": methods.psd}[method], {"engine": engine}
    split = build(flow_map, interpolant=Linear(), share=share or 0.5, **({} if method == "psd" else options))
    assert isinstance(split, objectives.SplitRows)
    return split if share else split.second


def torch_step(evaluate: Callable[..., Any], draw: Any, net: nn.MLP) -> Step:
    def step() -> float:
        value = evaluate(draw).value
        net.zero_grad(set_to_none=True)
        value.backward()
        return value.item()

    return step


def passes(method: str, batch: int, cut: int) -> list[tuple[int, str]]:
    """The rows that go through the network, and whether forward, backward to weights ("full") or to the input only."""
    own = batch - cut
    if method == "lmd":
        return [(2 * batch, "full"), (batch, "input")]
    legs = {"lsd": [(2 * own, "full"), (own, "forward")], "psd": [(own, "full"), (2 * own, "forward")]}
    legs["esd"] = [(2 * own, "full"), (2 * own, "forward")]
    return [*([(cut, "full")] if cut else []), *legs[method]]


def floor_step(method: str, batch: int, cut: int) -> Step:
    """Only the matrix products of the passes, on preallocated tensors."""
    sizes = [4, *[WIDTH] * DEPTH, 2]
    products: list[tuple[Tensor, Tensor, Tensor]] = []

    def product(n: int, k: int, m: int, left_transposed: bool = False, right_transposed: bool = False) -> None:
        a = torch.randn(k, n).T if left_transposed else torch.randn(n, k)
        b = torch.randn(m, k).T if right_transposed else torch.randn(k, m)
        products.append((a, b, torch.empty(n, m)))

    for rows, kind in passes(method, batch, cut):
        for layer, (inner, outer) in enumerate(itertools.pairwise(sizes)):
            product(rows, inner, outer, right_transposed=True)
            if kind == "full":
                product(outer, rows, inner, left_transposed=True)
            if kind == "input" or (kind == "full" and layer > 0):
                product(rows, outer, inner)

    def step() -> float:
        for a, b, out in products:
            torch.mm(a, b, out=out)
        return float("nan")

    return step


def engines(method: str, batch: int, share: float, jax_steps: Callable[..., Step] | None) -> dict[str, Step]:
    """A step of each engine, on the same weights and the same draw."""
    net, teacher = network(0), Teacher()
    generator = torch.Generator().manual_seed(2)
    cut = round(share * batch)
    duals, funcs = (objective(method, net, teacher, share, engine) for engine in ("dual", "torch"))
    draw = duals.draw(torch.rand(batch, 2, generator=generator) * 2 - 1, generator=generator)
    compiled = torch.compile(duals.evaluate, dynamic=False, fullgraph=True)
    found = {
        "dual compiled": torch_step(compiled, draw, net),
        "dual eager": torch_step(duals.evaluate, draw, net),
        "torch.func.jvp eager": torch_step(funcs.evaluate, draw, net),
    }
    if jax_steps is not None:
        found["JAX"] = jax_steps(method, net, teacher.net, draw, cut)
    return found | {"floor": floor_step(method, batch, cut)}


def measure(steps: dict[str, Step], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """The loss that each engine finds, and the median milliseconds of a step."""
    losses = {name: [step() for _ in range(3)][-1] for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    return losses, {name: statistics.median(values) for name, values in times.items()}


def report(method: str, batch: int, losses: dict[str, float], medians: dict[str, float]) -> None:
    """Print a row, after making sure that all computed the same loss."""
    expected = losses["dual eager"]
    for name, loss in losses.items():
        if name != "floor" and abs(loss - expected) > 1e-4 * abs(expected):
            raise AssertionError(f"{method}: {name} found the loss {loss}, dual eager {expected}.")
    print(f"{method}  batch {batch}  loss " + "  ".join(f"{n} {v:.6f}" for n, v in losses.items() if n != "floor"))
    ours = medians["dual compiled"]
    for name in ENGINES:
        if name in medians:
            print(f"    {name:22s} {medians[name]:9.2f} ms    dual compiled / this {ours / medians[name]:6.2f}")


def find_jax() -> Callable[..., Step] | None:
    """The steps in JAX, `None` and a line where it is not installed; after the cores are set, which JAX reads once."""
    try:
        return importlib.import_module("jax_reference").steps
    except ImportError as error:
        print(f"JAX left out ({error}): pip install jax")
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[512], help="rows in a batch")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each engine")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--share", type=float, default=0.0, help="part of the rows on the diagonal (not for lmd)")
    parser.add_argument("--cores", type=int, default=None, help="how many cores to use; all unless given")
    args = parser.parse_args()
    if args.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
        torch.set_num_threads(args.cores)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    jax_steps = find_jax()
    for batch in args.batch:
        for method in args.methods:
            torch.compiler.reset()
            report(method, batch, *measure(engines(method, batch, args.share, jax_steps), args.rounds))


if __name__ == "__main__":
    main()
