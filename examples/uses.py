"""What a map saves beside the ODE of its velocity: evaluations for likelihood, tilting and posterior samples.

    python examples/uses.py mixture            # some minutes on one core; prints a table
    python examples/uses.py checkerboard       # some twenty: a larger map, trained for longer

The data are a mixture of three Gaussians in the plane, or the checkerboard: of both, density, tilted law and posterior
are known. A map and a head for the mean divergence are trained on the exact velocity. The ODE takes the same velocity:
for the likelihood, and by a solver in the place of each jump of the map. A forward pass, a JVP and a VJP count one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import flowmaps as fm

Moments = tuple[Tensor, Tensor]
"""Mean, and E x x^T."""


@dataclass(frozen=True)
class Setting:
    """A law, what is asked of it, and how its map is trained.

    Args:
        law: exact.
        moments: of the law times exp(-(x - mean)^T diag(precision) (x - mean) / 2).
        width, depth, steps, batch: of the network and its training.
        peak, spread: of the reward -|x - peak|^2 / (2 spread^2).
        seen, noise: the first coordinate, as it is observed.
        solver_steps: of rk4.
    """

    law: Any
    moments: Callable[[Tensor, Tensor], Moments]
    width: int
    depth: int
    steps: int
    batch: int
    peak: tuple[float, float]
    spread: float
    seen: float
    noise: float
    solver_steps: tuple[int, ...]


MIXTURE = fm.exact.GaussianMixture(
    [1, 1, 2],
    [[-1.5, 0.0], [1.0, 1.2], [1.0, -1.0]],
    [[[0.1, 0.0], [0.0, 0.4]], [[0.3, 0.1], [0.1, 0.1]], [[0.2, -0.1], [-0.1, 0.2]]],
)
ROWS, QUADRATURE = 4000, 2000


def of_mixture(mean: Tensor, precision: Tensor) -> Moments:
    """Each Gaussian times the exponential is a Gaussian with another mass."""
    parts, masses = [], []
    for weight, m, c in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.covariances, strict=True):
        new = torch.linalg.inv(torch.linalg.inv(c) + precision.diag())
        at = new @ (torch.linalg.solve(c, m) + precision * mean)
        gap, inside = m - mean, torch.eye(2) + c * precision
        factor = (-0.5 * gap * precision @ torch.linalg.solve(inside, gap)).exp() / torch.linalg.det(inside).sqrt()
        parts.append((at, new))
        masses.append(weight * factor)
    means, covariances = (torch.stack(values) for values in zip(*parts, strict=True))
    law = torch.stack(masses) / sum(masses)
    second = torch.einsum("k,kij->ij", law, covariances) + torch.einsum("k,ki,kj->ij", law, means, means)
    return law @ means, second


def of_board(mean: Tensor, precision: Tensor) -> Moments:
    """By the midpoints of squares, none of which is cut by a cell of the board."""
    at = (2 * torch.arange(QUADRATURE).double() + 1) / QUADRATURE - 1
    x = torch.cartesian_prod(at, at)
    w = BOARD.cell_masses(QUADRATURE).flatten() * (-0.5 * (x - mean).square() @ precision).exp()
    w = w / w.sum()
    return w @ x, (w[:, None] * x).mT @ x


BOARD = fm.exact.Checkerboard()
SETTINGS = {
    "mixture": Setting(MIXTURE, of_mixture, 64, 3, 2_500, 256, (0.5, 0.3), 0.8, 0.8, 0.3, (1, 2, 4)),
    "checkerboard": Setting(BOARD, of_board, 128, 4, 8_000, 256, (0.3, 0.2), 0.4, 0.4, 0.15, (2, 4, 8, 16, 32)),
}


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


def error_of(found: fm.uses.Tilted, moments: Moments) -> float:
    """Error of mean and second moments, in units of x."""
    w, x = found.weights.double(), found.x.double()
    first, second = w @ x - moments[0], (w[:, None] * x).mT @ x - moments[1]
    return math.sqrt(float(first.square().sum() + second.square().sum()))


def train(setting: Setting) -> tuple[fm.maps.FlowMap, fm.uses.WithDivergence]:
    """A map of jumps in both orders of time, and the head for its mean divergence."""
    torch.manual_seed(0)
    law, sizes = setting.law, {"dim": 2, "width": setting.width, "depth": setting.depth}
    data = law.sample(50_000, torch.Generator().manual_seed(1))
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(**sizes))
    options = {"batch": setting.batch, "learning_rate": 2e-3, "decay": "cosine", "device": "cpu", "compile": False}
    objective = fm.methods.lmd(flow_map, teacher=law.velocity, times=fm.times.Square())
    flow_map = fm.fit(objective, data, steps=setting.steps, **options)
    head = fm.uses.WithDivergence(flow_map, fm.nn.MLP(**sizes))
    matching = fm.uses.DivergenceMatching(head, velocity=law.velocity, estimator="exact")
    return flow_map, fm.fit(matching, data, steps=setting.steps, **options)  # type: ignore[return-value]


def rows_of(
    setting: Setting, flow_map: fm.maps.FlowMap, head: fm.uses.WithDivergence | None, steps: int | None
) -> list[tuple[float, int]]:
    """Error and evaluations of likelihood, tilting and restoration, with a map or the solver of an ODE."""
    law = setting.law
    x1 = law.sample(500, torch.Generator().manual_seed(2))
    if head is None:
        options = {"rtol": 1e-5, "atol": 1e-5} if steps is None else {"method": "rk4", "steps": steps}
        found = fm.uses.log_likelihood(law.velocity, x1, **options)
    else:
        found = fm.uses.learned_log_likelihood(head, x1, steps=steps or 1, backwards=True)
    rows = [(float((found.value - law.log_density(x1)).abs().median()), found.evaluations)]
    counted = Counted(flow_map)

    def tilted(run: Callable[[torch.Generator], fm.uses.Tilted], moments: Moments) -> None:
        counted.evaluations = 0
        rows.append((error_of(run(torch.Generator().manual_seed(3)), moments), counted.evaluations))

    def noise(rng: torch.Generator) -> Tensor:
        return torch.randn(ROWS, 2, generator=rng)

    peak = torch.tensor(setting.peak)
    reward = lambda x: -0.5 * ((x - peak) / setting.spread).square().sum(1)  # noqa: E731
    moments = setting.moments(peak.double(), torch.full((2,), setting.spread**-2).double())
    tilted(lambda rng: fm.uses.tilted_samples(counted, noise(rng), reward, steps=4, generator=rng), moments)
    seen, y = fm.uses.Mask(torch.tensor([1.0, 0.0])), torch.tensor([[setting.seen, 0.0]])
    moments = setting.moments(y[0].double(), torch.tensor([setting.noise**-2, 0.0]).double())
    options = {"noise": setting.noise, "steps": 4}
    tilted(lambda rng: fm.uses.posterior_samples(counted, y, seen, noise(rng), generator=rng, **options), moments)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("law", choices=SETTINGS, nargs="?", default="mixture")
    setting = SETTINGS[parser.parse_args().law]
    flow_map, head = train(setting)
    print(f"{'':<16}{'likelihood, nats':>24}{'tilting, moments':>24}{'posterior, moments':>24}")
    runs: dict[str, tuple] = {f"map, {n} jumps": (flow_map, head, n) for n in (1, 2, 4)}
    for n in setting.solver_steps:
        runs[f"rk4, {n} steps"] = (fm.solvers.SolverFlow(setting.law.velocity, method="rk4", steps=n), None, n)
    runs["dopri5, 1e-5"] = (fm.solvers.SolverFlow(setting.law.velocity), None, None)
    for name, run in runs.items():
        cells = [f"{error:.3f} in {evaluations}" for error, evaluations in rows_of(setting, *run)]
        print(f"{name:<16}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
