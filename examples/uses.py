"""What a map saves beside the ODE of its teacher: evaluations for likelihood, tilted samples and posterior samples.

    flowmaps train examples/demo.toml --times square --steps 16000 --out runs/square     # ten minutes on two cores
    python examples/uses.py runs/square                                                  # some twenty on one

The data are the checkerboard. Both sides take what the run has learned: the map, and the ODE of the teacher that it was
distilled from, by several solvers and numbers of steps. A forward pass, a JVP and a VJP count one each.

Likelihood: log densities of 300 data, their median error in nats against the teacher's ODE, solved to 1e-6. The map
goes back to noise in jumps, with the determinants of their Jacobians (two JVPs a jump), or with a learned mean
divergence. Tilting and restoration: KL of 20,000 samples to the exact law, on a grid of 20 x 20, above that of as many
exact samples. The law is the board's times exp of a reward, and that of x given one coordinate of it, seen with noise.
Each is drawn by importance weights alone (one jump), and by guided samples in several jumps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import flowmaps as fm

BOARD, BINS, ROWS, DATA = fm.exact.Checkerboard(), 20, 20_000, 300
PEAK, WIDTH = torch.tensor([0.25, 0.25]), 0.35
SEEN, NOISE = torch.tensor([[0.3, 0.0]]), 0.1
SOLVERS = {
    "euler": (1, 4, 8, 12, 16, 24, 32, 64),
    "midpoint": (1, 2, 4, 5, 6, 7, 8, 12, 16, 32),
    "rk4": (2, 3, 4, 6, 8, 16),
}
CALLS = {"euler": 1, "midpoint": 2, "rk4": 4}
CHAINS = (1, 4, 16)
"""Jumps of a chain of guided samples; one is importance weighting alone."""
MOST = 260
"""Evaluations of a sample, at most."""


class Found(NamedTuple):
    """A way to do it, its error, and evaluations of the network for each row."""

    way: str
    error: float
    evaluations: int


class Counted(fm.maps.FlowMap):
    """Another map, counting evaluations a row: one a call, or those of a solver."""

    def __init__(self, flow_map: fm.maps.FlowMap) -> None:
        super().__init__()
        self.flow_map, self.evaluations = flow_map, 0

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: None = None) -> Tensor:
        u = self.flow_map.average_velocity(x, s, t, cond)
        calls = getattr(self.flow_map, "nfe", 1)
        self.evaluations += calls * (2 if u.requires_grad and torch.is_grad_enabled() else 1)  # its VJP
        return u


def told(found: Found) -> Found:
    """The same, once it is printed as progress."""
    print(f"  {found.way}: {found.error:.4f} in {found.evaluations}", file=sys.stderr, flush=True)
    return found


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# likelihood


def with_head(flow_map: fm.maps.FlowMap, teacher: fm.maps.FlowMap, steps: int) -> fm.uses.WithDivergence:
    """The map with a head for the mean divergence of the teacher, trained here."""
    torch.manual_seed(0)
    head = fm.uses.WithDivergence(flow_map, fm.nn.MLP(dim=2, width=128, depth=4, space_frequencies=8))
    weight = fm.losses.Adaptive(power=0.5)  # the divergence is large near the data
    objective = fm.uses.DivergenceMatching(head, velocity=teacher.velocity, estimator="exact", weight=weight)
    data = BOARD.sample(50_000, generator(1))
    options = {"batch": 512, "learning_rate": 2e-3, "decay": "cosine", "device": "cpu", "compile": False}
    return fm.fit(objective, data, steps=steps, **options)  # type: ignore[return-value]


def likelihoods(head: fm.uses.WithDivergence, teacher: fm.maps.FlowMap, number: int) -> tuple[list[Found], list[Found]]:
    """Log densities by the map and by the ODE of its teacher."""
    x1 = BOARD.sample(number, generator(2))
    exact = fm.uses.log_likelihood(teacher.velocity, x1, rtol=1e-6, atol=1e-6).value

    def found(way: str, got: fm.uses.LogLikelihood) -> Found:
        return told(Found(way, float((got.value - exact).abs().median()), got.evaluations))

    by_map = [
        found(f"{n} jumps, learned divergence", fm.uses.learned_log_likelihood(head, x1, steps=n, backwards=True))
        for n in (1, 2, 4)
    ] + [
        found(f"{n} jumps, determinants", fm.uses.jumps_log_likelihood(head.flow_map, x1, steps=n, backwards=True))
        for n in (1, 2, 4)
    ]
    by_ode = [
        found(f"{name}, {n} steps", fm.uses.log_likelihood(teacher.velocity, x1, method=name, steps=n))
        for name, steps in SOLVERS.items()
        for n in steps
    ]
    return by_map, by_ode


# tilted laws


def reward(x: Tensor) -> Tensor:
    return -0.5 * ((x - PEAK) / WIDTH).square().sum(1)


def masses_of(log_weight: Callable[[Tensor], Tensor]) -> Tensor:
    """Masses of the board times exp(log_weight), on the grid of the KL, `(BINS, BINS)`: midpoints of 20 x 20 a bin."""
    side = (torch.arange(20 * BINS, dtype=torch.float64) + 0.5) / (10 * BINS) - 1
    points = torch.cartesian_prod(side, side)
    cell = ((points + 1) / 0.5).floor().sum(1) % 2 == 0
    mass = torch.where(cell, log_weight(points).exp(), 0).reshape(BINS, 20, BINS, 20).sum((1, 3))
    return mass / mass.sum()


def floor_of(masses: Tensor, log_weight: Callable[[Tensor], Tensor], rows: int) -> float:
    """The KL of as many exact samples."""
    rng, kept = generator(4), list[Tensor]()
    while sum(map(len, kept)) < rows:
        x = BOARD.sample(rows, rng)
        kept.append(x[torch.rand(len(x), generator=rng) < log_weight(x).exp()])
    return fm.metrics.kl(masses, torch.cat(kept)[:rows])


def tilted(
    flow: fm.maps.FlowMap,
    way: str,
    chain: int,
    rows: int,
    draw: Callable[..., fm.uses.Tilted],
    masses: Tensor,
    floor: float,
) -> Found:
    """Samples of a tilted law by a map, or by a solver in its place."""
    counted, rng = Counted(flow), generator(3)
    found = draw(counted, torch.randn(rows, 2, generator=rng), steps=chain, generator=rng)
    error = fm.metrics.kl(masses, found.resampled(rng)) - floor
    return told(Found(f"{way}; chain of {chain}", error, counted.evaluations))


def laws(flow_map: fm.maps.FlowMap, teacher: fm.maps.FlowMap, rows: int) -> dict[str, tuple[list[Found], list[Found]]]:
    """Tilted samples and posterior samples by the map and by the ODE of its teacher."""
    seen = fm.uses.Mask(torch.tensor([1.0, 0.0]))

    def of_reward(flow: fm.maps.FlowMap, x0: Tensor, **options: object) -> fm.uses.Tilted:
        return fm.uses.tilted_samples(flow, x0, reward, **options)  # type: ignore[arg-type]

    def of_posterior(flow: fm.maps.FlowMap, x0: Tensor, **options: object) -> fm.uses.Tilted:
        return fm.uses.posterior_samples(flow, SEEN, seen, x0, noise=NOISE, **options)

    def log_likelihood(x: Tensor) -> Tensor:
        return -0.5 * ((x[:, 0] - SEEN[0, 0]) / NOISE).square()

    tasks = {"tilting, KL": (of_reward, reward), "restoration, KL": (of_posterior, log_likelihood)}
    results = {}
    for title, (draw, log_weight) in tasks.items():
        masses = masses_of(log_weight)
        floor = floor_of(masses, log_weight, rows)
        by_map = [tilted(flow_map, "map", n, rows, draw, masses, floor) for n in (1, 2, 4)]
        by_ode = list[Found]()
        for name, steps in SOLVERS.items():
            for n in steps:
                flow = fm.solvers.SolverFlow(teacher.velocity, method=name, steps=n)
                some = [k for k in CHAINS if n * CALLS[name] * (4 * k - 3) <= MOST]
                by_ode += [tilted(flow, f"{name}, {n} steps", k, rows, draw, masses, floor) for k in some]
        results[title] = (by_map, by_ode)
    return results


# the table


def show(title: str, by_map: list[Found], by_ode: list[Found]) -> None:
    """What the map does, and for each the ODE of as small an error in the fewest evaluations."""
    print(f"\n{title:<44}{'error':>8}{'in':>6}   ODE of no larger error in the fewest evaluations")
    for one in by_map:
        as_good = [other for other in by_ode if other.error <= one.error]
        best = min(as_good, key=lambda other: other.evaluations, default=None)
        beside = (
            f"none of {len(by_ode)} tried; least error {min(other.error for other in by_ode):.4f}"
            if best is None
            else f"{best.way}: {best.error:.4f} in {best.evaluations:,}, {best.evaluations / one.evaluations:.3g} times"
        )
        print(f"  {one.way:<42}{one.error:>8.4f}{one.evaluations:>6}   {beside}", flush=True)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run on the checkerboard, of both orders of time and with its teacher")
    parser.add_argument("--head-steps", type=int, default=6_000, help="of training of the learned divergence")
    parser.add_argument("--rows", type=int, default=ROWS, help="samples of a tilted law")
    options = parser.parse_args(given)
    flow_map, teacher = fm.load(options.run), fm.load(options.run / "teacher")
    results = laws(flow_map, teacher, options.rows)
    head = with_head(flow_map, teacher, options.head_steps)
    results = {"likelihood, nats": likelihoods(head, teacher, DATA)} | results
    for title, (by_map, by_ode) in results.items():
        show(title, by_map, by_ode)


if __name__ == "__main__":
    main()
