"""A map that takes its guidance weight as an input, learned from data alone, beside the exact guided flow.

    python examples/guidance.py docs/images/guidance.png

Three overlapping Gaussians are three classes, so that the guided velocity is known in closed form. One network learns
all weights from 1 to 4 (a minute or two on one core); the picture has the classes' samples at three of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.progress import track

import flowmaps as fm
from flowmaps.guidance import Guidance
from flowmaps.shapes import GuidedCondition
from flowmaps.velocities import FromTeacher, Guided

WEIGHTS, STEPS, BATCH, ROWS = (1.0, 2.0, 4.0), 4000, 1024, 3000
MEANS = [[0.0, 1.0], [0.87, -0.5], [-0.87, -0.5]]


def learn(law: fm.exact.GaussianMixture) -> fm.maps.FlowMap:
    """Train by LSD on guided velocities, a tenth of the labels dropped."""
    torch.manual_seed(0)
    net = fm.nn.MLP(2, width=128, depth=4, residual=True, classes=3, time_frequencies=2, modulation=16, guidance=True)
    flow_map = fm.maps.AverageVelocity(net)
    guidance = Guidance(weight=(1.0, 4.0), classes=3, dropout=0.1, mix=None)
    objective = fm.methods.lsd(flow_map, guidance=guidance)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in track(range(STEPS), "training", transient=True):
        x1, labels = law.sample_with_labels(BATCH)
        loss = objective(x1, cond=labels)
        optimiser.zero_grad()
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return flow_map.eval()


def main(picture: Path) -> None:
    """Learn, print the map's error at each weight, and draw."""
    law = fm.exact.GaussianMixture([1.0, 1.0, 1.0], MEANS, 0.25 * torch.eye(2).expand(3, 2, 2))
    flow_map = learn(law)
    x0, labels = torch.randn(ROWS, 2), torch.arange(ROWS) % 3
    zero, one = torch.zeros(ROWS), torch.ones(ROWS)
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    axes = figure.subplots(2, len(WEIGHTS), sharex=True, sharey=True)
    for column, weight in enumerate(WEIGHTS):
        guided = fm.solvers.SolverFlow(Guided(FromTeacher(law.velocity), weight), rtol=1e-6, atol=1e-6)
        exact = guided(x0, zero, one, labels)
        jumped = fm.samplers.Jump(steps=2)(flow_map, x0, GuidedCondition(labels, weight * one))
        error = float((jumped - exact).square().sum(1).mean())
        print(f"w = {weight:g}: E|map in 2 steps - exact guided flow|^2 = {error:.4f}")
        for row, (name, x) in enumerate({"exact guided flow": exact, "map, 2 steps": jumped.detach()}.items()):
            axes[row, column].scatter(x[:, 0], x[:, 1], c=labels, s=3, cmap="viridis", alpha=0.5, linewidths=0)
            axes[row, column].set_title(f"{name}, w = {weight:g}", fontsize=10)
            axes[row, column].set_aspect("equal")
    figure.savefig(picture, dpi=110)
    print(f"picture: {picture}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} PICTURE.png")
    main(Path(sys.argv[1]))
