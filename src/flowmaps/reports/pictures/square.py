"""The semigroup and round-trip residuals of a map over the square of (s, t)."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ...uses.square import ResidualSquare
from ..style import DENSITY, FAINT, INK, RULE

DECADES = 4
"""Powers of ten that the colours cover, below the greatest residual."""


def residual_square(square: ResidualSquare) -> Figure:
    """The two residuals side by side, t against s, on one logarithmic scale of colours; white is at or below its end.

    Raises:
        ValueError: no residual is positive and finite.
    """
    panels = {
        "semigroup\n$X_{w,t}(X_{s,w}) - X_{s,t}$": square.semigroup.numpy(),
        "round trip\n$X_{t,s}(X_{s,t}) - x$": square.round_trip.numpy(),
    }
    values = np.stack(list(panels.values()))
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        raise ValueError("the square has no positive finite residual to draw: the map is exact, or gives no numbers.")
    least = float(positive.max()) / 10**DECADES
    norm = LogNorm(least, float(positive.max()), clip=True)
    figure = Figure(figsize=(7.6, 3.9), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    half = 0.5 / (len(square.times) - 1)
    for ax, (title, residual) in zip(axes, panels.items(), strict=True):
        shown = np.where(residual > 0, residual, least)
        extent = (-half, 1 + half, -half, 1 + half)
        image = ax.imshow(shown.T, origin="lower", extent=extent, cmap=DENSITY, norm=norm, interpolation="nearest")
        ax.set_title(title, fontsize=10, color=INK)
        ax.set_xlabel("s, from", fontsize=9, color=FAINT)
        ax.tick_params(labelsize=8, colors=FAINT, length=2)
        for spine in ax.spines.values():
            spine.set_edgecolor(RULE)
    axes[0].set_ylabel("t, to", fontsize=9, color=FAINT)
    bar = figure.colorbar(image, ax=list(axes), shrink=0.85, aspect=30, pad=0.02)
    bar.set_label("root mean square [units of x]", fontsize=8, color=FAINT)
    bar.ax.tick_params(labelsize=7, colors=FAINT, length=2)
    bar.outline.set_edgecolor(RULE)  # pyright: ignore[reportCallIssue]
    return figure
