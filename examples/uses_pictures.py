"""The pictures of the pages of uses: certificates, likelihood, rewards, posterior maps, a physical flow.

    flowmaps train examples/demo.toml --times square --steps 16000 --out runs/square     # ten minutes on two cores
    python examples/uses_pictures.py runs/square --out docs/images/uses                  # some ten more on one

The first three are drawn from the run; a posterior map of the checkerboard and the pendulum's map are trained here.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pendulum
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import flowmaps as fm
from flowmaps.reports import figures
from flowmaps.reports.pictures import residual_square

BOARD = fm.exact.Checkerboard()
SIDE = 120
"""Points of a grid on each axis."""
PLACES, TIME = ((0.0, 0.0), (0.25, 0.25), (-0.5, 0.3)), 0.6
"""Noised data x_t whose posteriors are shown, and their time t."""


def normal(number: int, seed: int) -> Tensor:
    return torch.randn(number, 2, generator=torch.Generator().manual_seed(seed))


def panels(titles: list[str], reach: float = 1.25) -> tuple[Figure, list[Axes]]:
    """Square panels of the plane side by side."""
    figure = Figure(figsize=(3 * len(titles), 3.3), layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for ax, title in zip(axes, titles, strict=True):
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        ax.set_title(title, fontsize=10)
    return figure, axes


def certificates(flow_map: fm.maps.FlowMap) -> Figure:
    """The semigroup and round-trip residuals over (s, t)."""
    return residual_square(fm.uses.residual_square(flow_map, normal(256, 0), number=9))


def likelihood(flow_map: fm.maps.FlowMap, teacher: fm.maps.FlowMap) -> Figure:
    """Densities by determinants of one and two jumps back, and by the teacher's ODE."""
    line = torch.linspace(-1.25, 1.25, SIDE)
    x = torch.cartesian_prod(line, line)
    found = [fm.uses.jumps_log_likelihood(flow_map, x, steps=n, backwards=True) for n in (1, 2)]
    found.append(fm.uses.log_likelihood(teacher.velocity, x, rtol=1e-3, atol=1e-3))
    ways = ["one jump back", "two jumps back", "the teacher's ODE"]
    titles = [f"{way}: {one.evaluations} evaluations" for way, one in zip(ways, found, strict=True)]
    figure, axes = panels(titles)
    for ax, one in zip(axes, found, strict=True):
        density = one.value.exp().nan_to_num().reshape(SIDE, SIDE).T
        ax.imshow(density, origin="lower", extent=(-1.25, 1.25, -1.25, 1.25), cmap="Blues", vmin=0, vmax=0.75)
    return figure


def rewards(flow_map: fm.maps.FlowMap) -> Figure:
    """Samples of the map, tilted by a reward, under a constraint, and moved uphill."""
    x0, at = normal(3_000, 1), torch.tensor([0.3, 0.3])
    rng = torch.Generator().manual_seed(2)

    def near(x: Tensor) -> Tensor:
        return -4 * (x - at).square().sum(1)

    def right(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, 0.0, -torch.inf)

    tilted = fm.uses.tilted_samples(flow_map, x0, near, steps=4, generator=rng)
    inside = fm.uses.tilted_samples(flow_map, x0, right, steps=4, gradient=False, generator=rng)
    shown = {
        "no reward": fm.samplers.Jump(4)(flow_map, x0),
        "tilted by exp(-4 |x - a|²)": tilted.resampled(rng),
        "a constraint, x > 0": inside.resampled(rng),
        "guided jumps, which sample no law": fm.uses.guided_jumps(flow_map, x0, near, steps=4, strength=0.1),
    }
    figure, axes = panels(list(shown))
    for ax, x in zip(axes, shown.values(), strict=True):
        ax.scatter(*x.T, s=2, linewidths=0, alpha=0.5)
    for ax in axes[1:4:2]:
        ax.plot(*at, "x", color="black")
    return figure


def posterior(steps: int) -> Figure:
    """Samples of p(x1 | x_t) by a map that is trained here, over the exact posterior's support."""
    torch.manual_seed(0)
    net = fm.uses.WithNoisyDatum(fm.nn.MLP(dim=4, width=128, depth=4, condition_dim=1, space_frequencies=8))
    objective = fm.uses.PosteriorMatching(fm.methods.lsd(fm.maps.AverageVelocity(net)))
    settings = {"batch": 512, "learning_rate": 2e-3, "decay": "cosine", "device": "cpu", "compile": False}
    with torch.enable_grad():
        flow_map = fm.fit(objective, BOARD.sample(50_000, torch.Generator().manual_seed(3)), steps=steps, **settings)
    figure, axes = panels([f"x at t = {TIME} is ({a:g}, {b:g})" for a, b in PLACES])
    for ax, place in zip(axes, PLACES, strict=True):
        x, t = torch.tensor([place]).expand(1_500, 2), torch.full((1_500,), TIME)
        made = fm.uses.sample_posterior_map(flow_map, normal(1_500, 4), x, t, steps=2)
        exact = BOARD.sample(200_000, torch.Generator().manual_seed(5))  # weighed by p(x_t | x1)
        gap = (torch.tensor(place) - TIME * exact) / (1 - TIME)
        weight = (-0.5 * gap.square().sum(1)).softmax(0)
        kept = exact[torch.multinomial(weight, 1_500, replacement=True, generator=torch.Generator().manual_seed(6))]
        ax.scatter(*kept.T, s=3, linewidths=0, alpha=0.35, color="silver", label="exact")
        ax.scatter(*made.T, s=2, linewidths=0, alpha=0.6, label="map, 2 jumps")
        ax.plot(*place, "x", color="black")
    axes[0].legend(loc="lower left", fontsize=8, markerscale=4)
    return figure


def physics(steps: int) -> Figure:
    """Ten jumps of the pendulum's map, each over 2 units of time, along the orbits of a solver."""
    with torch.enable_grad():
        flow_map = pendulum.train(steps)
    start = torch.tensor([[q, 0.0] for q in (0.6, 1.2, 1.8, 2.4)])
    solver, zero = fm.solvers.SolverFlow(pendulum.motion, rtol=1e-7, atol=1e-7), torch.zeros(4)
    figure, axes = panels(["orbits, and ten jumps"], reach=2.9)
    shares = torch.linspace(0, 5, 200)  # of 2 units of time each
    orbit = [start]
    for last, share in itertools.pairwise(shares):
        orbit.append(solver(orbit[-1], zero, zero + (share - last)))
    jumps = [start]
    for _ in range(10):
        jumps.append(flow_map(jumps[-1], zero, zero + 1))
    axes[0].set(xlabel="angle", ylabel="momentum")
    for k, colour in enumerate(("C0", "C1", "C2", "C3")):
        axes[0].plot(*torch.stack(orbit)[:, k].T, color=colour, lw=1, alpha=0.6)
        axes[0].plot(*torch.stack(jumps)[:, k].T, "o", color=colour, ms=4)
    return figure


@torch.no_grad()
def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run on the checkerboard, of both orders of time and with its teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/uses"), help="folder of the pictures")
    parser.add_argument("--steps", type=int, default=4_000, help="of the trainings for the posterior and the pendulum")
    options = parser.parse_args(given)
    flow_map, teacher = fm.load(options.run), fm.load(options.run / "teacher")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in {
        "certificates": lambda: certificates(flow_map),
        "likelihood": lambda: likelihood(flow_map, teacher),
        "rewards": lambda: rewards(flow_map),
        "posterior": lambda: posterior(options.steps),
        "physics": lambda: physics(options.steps),
    }.items():
        print(figures.save(draw(), options.out / f"{name}.png"), flush=True)


if __name__ == "__main__":
    main()
