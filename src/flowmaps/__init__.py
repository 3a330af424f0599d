"""flowmaps: flow maps in PyTorch, by distillation from a velocity field or directly from data."""

from . import (
    couplings,
    dual,
    equations,
    exact,
    grids,
    guidance,
    interpolants,
    maps,
    methods,
    nn,
    objectives,
    samplers,
    schedules,
    shapes,
    solvers,
    space,
    times,
    velocities,
    weights,
)
from .checkpoint import from_pretrained, load, load_interpolant, push_to_hub, save, save_pretrained

__version__ = "0.1.0"

__all__ = [
    "couplings",
    "dual",
    "equations",
    "exact",
    "from_pretrained",
    "grids",
    "guidance",
    "interpolants",
    "load",
    "load_interpolant",
    "maps",
    "methods",
    "nn",
    "objectives",
    "push_to_hub",
    "samplers",
    "save",
    "save_pretrained",
    "schedules",
    "shapes",
    "solvers",
    "space",
    "times",
    "velocities",
    "weights",
]
