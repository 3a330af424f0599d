"""Objectives: from a batch of data to a loss.

An objective first draws its random inputs (x0, x1, z, s, t, ...), then computes the loss as a deterministic function of
them:

    loss  =  mean over the batch of w_{s,t} d(residual),        d = |.|^2 unless a distance is given

with the residual of a velocity, u_{t,t}(I_t) - dI_t, or of an equation at (I_s, s, t). An objective is a
`torch.nn.Module` whose forward pass is the whole loss, so that it can be compiled, or wrapped for several devices.
"""

from .base import Common, DrawnTimes, Loss, Moment, Objective
from .combined import SplitRows, Sum, in_turns
from .matching import Compare, MapMatching, RoundTrip, VelocityMatching
from .trajectories import TrajectoryMatching

__all__ = [
    "Common",
    "Compare",
    "DrawnTimes",
    "Loss",
    "MapMatching",
    "Moment",
    "Objective",
    "RoundTrip",
    "SplitRows",
    "Sum",
    "TrajectoryMatching",
    "VelocityMatching",
    "in_turns",
]
