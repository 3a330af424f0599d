"""Between two data sets: one map from eight Gaussians to two moons, and back by the same network.

    python examples/between_data.py --out docs/images/uses      # some four minutes on one core

The base of the path is data too, paired with the other data by optimal transport in each batch. A velocity is trained
first, then a map of both orders of time (LMD), so that X_{0,1} makes moons of the Gaussians and X_{1,0} undoes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import flowmaps as fm
from flowmaps.reports import figures


def gaussians(number: int, seed: int) -> Tensor:
    """Eight Gaussians on a circle, `(number, 2)`."""
    random = torch.Generator().manual_seed(seed)
    angle = torch.pi / 4 * torch.randint(8, (number,), generator=random)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.08 * torch.randn(number, 2, generator=random)


def moons(number: int, seed: int) -> Tensor:
    """Two half circles with noise, `(number, 2)`, within [-1, 1]^2 or so."""
    random = torch.Generator().manual_seed(seed)
    angle, upper = torch.pi * torch.rand(number, generator=random), torch.rand(number, generator=random) < 0.5
    sign = torch.where(upper, 1.0, -1.0)
    x = torch.stack([angle.cos() + torch.where(upper, -0.5, 0.5), sign * angle.sin() - 0.25 * sign], 1)
    return 0.6 * x + 0.05 * torch.randn(number, 2, generator=random)


def train(steps: int) -> fm.maps.FlowMap:
    """A map of both orders of time between the Gaussians, at t = 0, and the moons, at t = 1."""

    def fresh() -> fm.maps.FlowMap:
        return fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=128, depth=4, space_frequencies=8))

    torch.manual_seed(0)
    coupling = fm.couplings.MinibatchOT(fm.couplings.Empirical(gaussians(50_000, 1)))
    data = moons(50_000, 2)
    settings = {"batch": 256, "learning_rate": 2e-3, "decay": "cosine", "device": "cpu", "compile": False}
    teacher = fm.fit(fm.methods.flow_matching(fresh(), coupling=coupling), data, steps=steps, **settings)
    objective = fm.methods.lmd(fresh(), teacher=teacher.velocity, times=fm.times.Square(), coupling=coupling)
    return fm.fit(objective, data, steps=steps, **settings)


def picture(panels: dict[str, Tensor], colours: Tensor) -> Figure:
    """Points of the plane side by side, each in the colour that it had at first."""
    figure = Figure(figsize=(3 * len(panels), 3.3), layout="constrained")
    for ax, (title, x) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        ax.scatter(x[:, 0], x[:, 1], c=colours, cmap="twilight", s=2, linewidths=0)
        ax.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), xticks=[], yticks=[], aspect="equal")
        ax.set_title(title, fontsize=10)
    return figure


@torch.no_grad()
def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/between-data"), help="folder of the picture")
    parser.add_argument("--steps", type=int, default=4_000, help="of each training")
    options = parser.parse_args(given)
    with torch.enable_grad():
        flow_map = train(options.steps)
    x0, real = gaussians(5_000, 3), moons(5_000, 4)
    print(f"energy distance of other moons to moons {fm.metrics.energy_distance(moons(5_000, 5), real):.4f}")
    panels = {"eight Gaussians": x0}
    for steps in (1, 2):
        x1 = fm.samplers.Jump(steps)(flow_map, x0)
        back = fm.uses.invert(flow_map, x1, to=0.0, steps=steps, backwards=True)
        error = fm.uses.inversion.relative_error(back, x0)
        distance = fm.metrics.energy_distance(x1, real)
        print(f"{steps} + {steps} jumps: to moons {distance:.4f}; back with an error of {error:.3f} of the spread")
        if steps == 1:
            panels |= {"one jump, t = 0.5": fm.samplers.Jump(grid=[0.0, 0.5])(flow_map, x0), "one jump, t = 1": x1}
            panels |= {"and one jump back": back}
    options.out.mkdir(parents=True, exist_ok=True)
    print(figures.save(picture(panels, x0[:, 0] + 0.3 * x0[:, 1]), options.out / "between.png"))


if __name__ == "__main__":
    main()
