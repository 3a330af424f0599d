"""A physical flow: long jumps of a pendulum by a map that is distilled from the equations of motion, and an error bar.

    python examples/pendulum.py          # a minute or two on one core; with 20 steps of training, pendulum.py 20

The state is (q, p), the energy p^2 / 2 - cos q. A jump of the map from s = 0 to t = 1 is `SPAN` units of time. LMD
needs points, not data: the interpolant between a point and itself is that point. The semigroup residual, one jump
against two halves, is the map's own error bar: no solver is asked for it.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import flowmaps as fm

SPAN = 2.0


def motion(x: Tensor, t: Tensor, cond: None = None) -> Tensor:
    """(q', p') = SPAN (p, -sin q)."""
    return SPAN * torch.stack([x[:, 1], -torch.sin(x[:, 0])], 1)


def energy(x: Tensor) -> Tensor:
    return 0.5 * x[:, 1].square() - torch.cos(x[:, 0])


def states(number: int, generator: torch.Generator) -> Tensor:
    """Swings of any height below 150 degrees, at any phase."""
    q = (2 * torch.rand(number, generator=generator) - 1) * 2.6
    x = torch.stack([q, torch.zeros(number)], 1)
    phase = 2 * torch.rand(number, generator=generator)  # up to 4 units of time, in two halves
    whole = fm.solvers.SolverFlow(motion, method="rk4", steps=40)
    for share in (phase.clamp(max=1), (phase - 1).clamp(min=0)):
        x = whole(x, torch.zeros(number), share)
    return x


def train(steps: int) -> fm.maps.FlowMap:
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=96, depth=3))
    objective = fm.methods.lmd(flow_map, teacher=motion)
    pool, optimiser = states(20_000, rng), torch.optim.Adam(flow_map.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        x = pool[torch.randint(len(pool), (256,), generator=rng)]
        loss = objective(x, x, generator=rng, progress=step / steps)  # x0 = x1: the path stays where it is
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
        rate.step()
    return flow_map.eval()


@torch.no_grad()
def main(steps: int) -> None:
    with torch.enable_grad():
        flow_map = train(steps)
    x = start = states(500, torch.Generator().manual_seed(1))
    truth, zero, one = start, torch.zeros(500), torch.ones(500)
    solver = fm.solvers.SolverFlow(motion, rtol=1e-6, atol=1e-6)
    square = fm.uses.residual_square(flow_map, start, number=3)
    print(f"semigroup residual of a jump, the error bar: {float(square.semigroup[0, 2]):.4f}")
    print("time   error of the map   energy drift   jumps   evaluations of dopri5")
    asked = 0
    for k in range(1, 6):
        x, truth = flow_map(x, zero, one), solver(truth, zero, one)
        asked += solver.nfe
        error, drift = (x - truth).square().sum(1).mean().sqrt(), (energy(x) - energy(start)).abs().mean()
        print(f"{SPAN * k:4.0f}   {float(error):16.4f}   {float(drift):12.4f}   {k:5d}   {asked:21d}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4_000)
