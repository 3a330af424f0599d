"""flowmaps: flow maps in PyTorch, by distillation from a velocity field or directly from data."""

from . import couplings, dual, equations, exact, interpolants, maps, methods, nn, objectives, samplers, solvers, times
from . import velocities, weights

__version__ = "0.1.0"
