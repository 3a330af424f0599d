"""Objectives: what is drawn, where a residual is taken, and how it adds up to a loss.

An objective is a `torch.nn.Module` whose forward pass is the whole loss, so that it can be compiled, or wrapped for
several devices, as one. `draw` holds all the randomness; `evaluate` is a deterministic function of a draw.

    value = mean over the batch of w_{s,t} distance(residual),      distance = |.|^2, summed over dimensions.
"""

from .base import Common, Drawn, Loss, Objective
from .combined import Split, Sum
from .matching import Compare, MapMatching, RoundTrip, VelocityMatching

__all__ = [
    "Common",
    "Compare",
    "Drawn",
    "Loss",
    "MapMatching",
    "Objective",
    "RoundTrip",
    "Split",
    "Sum",
    "VelocityMatching",
]
