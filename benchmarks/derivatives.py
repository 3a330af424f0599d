"""What a derivative in the loss costs: one step (loss and gradient) of LSD, ESD, PSD and LMD, engine by engine.

The same weights and the same rows for all: an MLP of [x, s, t - s] with 5 hidden layers and tanh-GELU in the plane. The
engines take turns, round by round, so that other work on the machine falls on all alike; the median over rounds is
printed. "floor" is the time of the matrix products alone: no step of torch's kernels can be faster.

    python benchmarks/derivatives.py [--sizes 512x512 512x4096 128x1024] [--rounds 20] [--methods lsd esd psd lmd]
    python benchmarks/derivatives.py --profile           # where a compiled step spends its time
    python benchmarks/derivatives.py --against CHECKOUT  # this checkout and another in turns, each in its own process

A size is width x batch; the demo's is 128x1024. Every row carries the derivative unless `--share 0.75` gives that part
of the rows to the diagonal, as training does. JAX is optional (`pip install jax`). Beside other work give `--cores 1`:
a core taken away stalls torch's threads.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmaps import maps, methods, nn, objectives
from flowmaps.interpolants import Linear
from flowmaps.system import devices

METHODS = ("lsd", "esd", "psd", "lmd")
ENGINES = ("dual compiled", "dual eager", "torch.func.jvp eager", "JAX", "floor")
DEPTH = 5
SIZES = ("512x512", "512x4096", "128x1024")
Step = Callable[[], float]


def network(seed: int, width: int) -> nn.MLP:
    """Weights of variance 2 / inputs (He et al., 2015), so that the losses are of order one and can be compared."""
    torch.manual_seed(seed)
    net = nn.MLP(dim=2, width=width, depth=DEPTH)
    for layer in (net.first, *net.hidden, net.last):
        torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
    return net


class Teacher(torch.nn.Module):
    """A second network as the velocity field of LMD."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = network(1, width)

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


def floor_step(method: str, width: int, batch: int, cut: int) -> Step:
    """Only the matrix products of the passes, on preallocated tensors."""
    sizes = [4, *[width] * DEPTH, 2]
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


class Problem:
    """A step of each engine, on the same weights and the same draw."""

    def __init__(self, method: str, width: int, batch: int, share: float) -> None:
        self.method, self.width, self.batch, self.cut = method, width, batch, round(share * batch)
        self.net, self.teacher = network(0, width), Teacher(width)
        build = functools.partial(objective, method, self.net, self.teacher, share)
        self.dual, self.func = build("dual"), build("torch")
        generator = torch.Generator().manual_seed(2)
        self.draw = self.dual.draw(torch.rand(batch, 2, generator=generator) * 2 - 1, generator=generator)

    def dual_steps(self) -> dict[str, Step]:
        torch.compiler.reset()
        compiled = devices.compiled(self.dual.evaluate, print)
        assert compiled is not None, "a C++ compiler is needed"
        return {
            "dual compiled": torch_step(compiled, self.draw, self.net),
            "dual eager": torch_step(self.dual.evaluate, self.draw, self.net),
        }

    def steps(self, jax_steps: Callable[..., Step] | None) -> dict[str, Step]:
        found = self.dual_steps()
        found["torch.func.jvp eager"] = torch_step(self.func.evaluate, self.draw, self.net)
        if jax_steps is not None:
            found["JAX"] = jax_steps(self.method, self.net, self.teacher.net, self.draw, self.cut)
        return found | {"floor": floor_step(self.method, self.width, self.batch, self.cut)}


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


def report(title: str, losses: dict[str, float], medians: dict[str, float]) -> None:
    """Print a row, after making sure that all computed the same loss."""
    expected = losses["dual eager"]
    for name, loss in losses.items():
        if name != "floor" and abs(loss - expected) > 1e-4 * abs(expected):
            raise AssertionError(f"{title}: {name} found the loss {loss}, dual eager {expected}.")
    print(f"{title}  loss " + "  ".join(f"{n} {v:.6f}" for n, v in losses.items() if n != "floor"))
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


def profile(title: str, problem: Problem) -> None:
    """Print how often a compiled step calls matrix products, fused kernels and the rest of torch, and their times."""
    config = importlib.import_module("torch._inductor.config")
    with config.patch({"cpp.enable_kernel_profile": True}):
        step = problem.dual_steps()["dual compiled"]
        for _ in range(5):
            step()
    rounds, groups = 50, {"matrix products": [0, 0.0], "fused kernels": [0, 0.0], "other operations": [0, 0.0]}
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    whole = 1e3 * (time.perf_counter() - start) / rounds
    with torch.profiler.profile() as recorded:
        for _ in range(rounds):
            step()
    for event in recorded.key_averages():
        products = event.key in ("aten::mm", "aten::addmm", "aten::bmm") or "mkl" in event.key
        name = "matrix products" if products else "fused kernels" if "cpp_fused" in event.key else "other operations"
        groups[name][0] += event.count / rounds
        groups[name][1] += event.self_cpu_time_total / 1e3 / rounds
    print(f"{title}  a compiled step, not profiled: {whole:.3f} ms; profiled, by kind:")
    for name, (count, milliseconds) in groups.items():
        print(f"    {name:22s} {milliseconds:9.3f} ms    {count:6.1f} calls")


def against(checkout: str, arguments: list[str], runs: int) -> None:
    """Print the medians of this checkout and another, each run in a process of its own, in turns."""
    here = Path(__file__).resolve().parents[1]
    times: dict[str, dict[Path, list[float]]] = {}
    for run, root in itertools.product(range(runs), (here, Path(checkout).resolve())):
        environment = os.environ | {"PYTHONPATH": str(root / "src")}
        command = [sys.executable, str(Path(__file__).resolve()), "--medians", *arguments]
        lines = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
        for title, median in json.loads(lines[-1]).items():
            times.setdefault(title, {}).setdefault(root, []).append(median)
        print(f"run {run + 1} of {runs} of {root} is done", file=sys.stderr)
    print(f"medians of {runs} runs of each in turns; load now {os.getloadavg()[0]:.1f}")
    for title, found in times.items():
        ours, theirs = (statistics.median(found[root]) for root in found)
        print(f"{title:40s} here {ours:9.3f} ms    there {theirs:9.3f} ms    here / there {ours / theirs:6.3f}")


def medians(args: argparse.Namespace) -> dict[str, float]:
    """The median milliseconds of a step of `dual`, compiled and eager, of the flowmaps that is imported."""
    found = {}
    for title, problem in problems(args):
        steps = problem.dual_steps()
        found |= {f"{title}  {name}": value for name, value in measure(steps, args.rounds)[1].items()}
    return found


def problems(args: argparse.Namespace) -> Iterator[tuple[str, Problem]]:
    for size, method in itertools.product(args.sizes, args.methods):
        width, batch = map(int, size.split("x"))
        yield f"{method}  width {width}  batch {batch}", Problem(method, width, batch, args.share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="width x batch")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each engine")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--share", type=float, default=0.0, help="part of the rows on the diagonal (not for lmd)")
    parser.add_argument("--cores", type=int, default=None, help="how many cores to use; all unless given")
    parser.add_argument("--profile", action="store_true", help="print what a compiled step consists of")
    parser.add_argument("--against", metavar="CHECKOUT", help="compare with the flowmaps of another checkout")
    parser.add_argument("--runs", type=int, default=10, help="processes of each checkout")
    parser.add_argument("--medians", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.against is not None:
        cores = [] if args.cores is None else ["--cores", str(args.cores)]
        same = ["--rounds", str(args.rounds), "--share", str(args.share), *cores]
        against(args.against, ["--sizes", *args.sizes, "--methods", *args.methods, *same], args.runs)
        return
    if args.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
        torch.set_num_threads(args.cores)
    if args.medians:
        print(json.dumps(medians(args)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    jax_steps = None if args.profile else find_jax()
    for title, problem in problems(args):
        if args.profile:
            profile(title, problem)
        else:
            report(title, *measure(problem.steps(jax_steps), args.rounds))


if __name__ == "__main__":
    main()
