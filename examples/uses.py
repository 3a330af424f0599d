"""What a map saves beside the ODE of its velocity: evaluations for likelihood, tilting and posterior samples.

    python examples/uses.py              # some minutes on one core; prints a table

The data are a mixture of three Gaussians in the plane, of which density, tilted law and posterior are known. A map and
a head for the mean divergence are trained on the exact velocity. The ODE takes the same velocity: for the likelihood,
and by a solver in the place of each jump of the map. A forward pass, a JVP and a VJP count one each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import flowmaps as fm

LAW = fm.exact.GaussianMixture(
    [1, 1, 2],
    [[-1.5, 0.0], [1.0, 1.2], [1.0, -1.0]],
    [[[0.1, 0.0], [0.0, 0.4]], [[0.3, 0.1], [0.1, 0.1]], [[0.2, -0.1], [-0.1, 0.2]]],
)
PEAK, WIDTH, NOISE, ROWS = torch.tensor([0.5, 0.3]), 0.8, 0.3, 4000


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


def product(mean: Tensor, precision: Tensor) -> fm.exact.GaussianMixture:
    """The mixture times exp(-(x - mean)^T precision (x - mean) / 2), `precision` diagonal."""
    parts, masses = [], []
    for weight, m, c in zip(LAW.weights, LAW.means, LAW.covariances, strict=True):
        new = torch.linalg.inv(torch.linalg.inv(c) + precision)
        at = new @ (torch.linalg.solve(c, m) + precision @ mean)
        gap = m - mean
        inside = torch.eye(2) + c @ precision
        mass = (
            weight * (-0.5 * gap @ precision @ torch.linalg.solve(inside, gap)).exp() / torch.linalg.det(inside).sqrt()
        )
        parts.append((at, new))
        masses.append(mass)
    means, covariances = (torch.stack(values) for values in zip(*parts, strict=True))
    return fm.exact.GaussianMixture(torch.stack(masses), means, covariances)


def of_moments(found: fm.uses.Tilted, law: fm.exact.GaussianMixture) -> float:
    """Error of mean and second moments, in units of x."""
    w, x = found.weights.double(), found.x.double()
    first = w @ x - law.weights @ law.means
    second = (w[:, None] * x).mT @ x - torch.einsum("k,kij->ij", law.weights, law.covariances)
    second = second - torch.einsum("k,ki,kj->ij", law.weights, law.means, law.means)
    return math.sqrt(float(first.square().sum() + second.square().sum()))


def train() -> tuple[fm.maps.FlowMap, fm.uses.WithDivergence]:
    torch.manual_seed(0)
    data = LAW.sample(50_000, torch.Generator().manual_seed(1))
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=64, depth=3))
    settings = {"batch": 256, "learning_rate": 2e-3, "decay": "cosine", "device": "cpu", "compile": False}
    flow_map = fm.fit(fm.methods.lmd(flow_map, teacher=LAW.velocity), data, steps=2_500, **settings)
    head = fm.uses.WithDivergence(flow_map, fm.nn.MLP(dim=2, width=64, depth=3))
    objective = fm.uses.DivergenceMatching(head, velocity=LAW.velocity, estimator="exact")
    return flow_map, fm.fit(objective, data, steps=2_500, **settings)  # type: ignore[return-value]


def rows_of(
    flow_map: fm.maps.FlowMap, head: fm.uses.WithDivergence | None, steps: int | None
) -> list[tuple[float, int]]:
    """Error and evaluations of likelihood, tilting and restoration, with a map or the solver of an ODE."""
    x1 = LAW.sample(500, torch.Generator().manual_seed(2))
    if head is None:
        options = {"rtol": 1e-5, "atol": 1e-5} if steps is None else {"method": "rk4", "steps": steps}
        found = fm.uses.log_likelihood(LAW.velocity, x1, **options)
    else:
        found = fm.uses.learned_log_likelihood(head, x1, steps=steps or 1, backwards=True)  # lmd, both orders
    rows = [(float((found.value - LAW.log_density(x1)).abs().median()), found.evaluations)]
    counted = Counted(flow_map)

    def tilted(run: Callable[[torch.Generator], fm.uses.Tilted], law: fm.exact.GaussianMixture) -> None:
        counted.evaluations = 0
        rng = torch.Generator().manual_seed(3)
        rows.append((of_moments(run(rng), law), counted.evaluations))

    def noise(rng: torch.Generator) -> Tensor:
        return torch.randn(ROWS, 2, generator=rng)

    reward = lambda x: -0.5 * ((x - PEAK) / WIDTH).square().sum(1)  # noqa: E731
    law = product(PEAK.double(), torch.eye(2).double() / WIDTH**2)
    tilted(lambda rng: fm.uses.tilted_samples(counted, noise(rng), reward, steps=4, generator=rng), law)
    seen, y = fm.uses.Mask(torch.tensor([1.0, 0.0])), torch.tensor([[0.8, 0.0]])
    law = product(torch.tensor([0.8, 0.0]).double(), torch.diag(torch.tensor([1 / NOISE**2, 0.0])).double())
    options = {"noise": NOISE, "steps": 4}
    tilted(lambda rng: fm.uses.posterior_samples(counted, y, seen, noise(rng), generator=rng, **options), law)
    return rows


def main() -> None:
    torch.set_default_dtype(torch.float32)
    flow_map, head = train()
    print(f"{'':<16}{'likelihood, nats':>24}{'tilting, moments':>24}{'posterior, moments':>24}")
    runs: dict[str, tuple] = {f"map, {n} jumps": (flow_map, head, n) for n in (1, 2, 4)}
    for n in (1, 2, 4):
        runs[f"rk4, {n} steps"] = (fm.solvers.SolverFlow(LAW.velocity, method="rk4", steps=n), None, n)
    runs["dopri5, 1e-5"] = (fm.solvers.SolverFlow(LAW.velocity), None, None)
    for name, run in runs.items():
        cells = [f"{error:.3f} in {evaluations}" for error, evaluations in rows_of(*run)]
        print(f"{name:<16}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
