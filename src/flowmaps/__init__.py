"""flowmaps: flow maps in PyTorch, by distillation from a velocity field or directly from data.

shapes.py          what a batch, a time and a condition are; like(t, x) aligns a time with a batch
dual/              forward-mode derivatives of networks, in ordinary differentiable torch code
nn/                networks of (x, s, t, cond): MLP, UNet, DiT
interpolants.py    the path from noise to data; velocity, score, denoiser and noise prediction
schedules.py       numbers that change while training goes on
times.py           laws of (s, t), and of the first leg of a semigroup
losses.py          distances of a residual, and weights w_{s,t}
maps.py            X_{s,t}: the parametrisations; Target, a frozen or EMA copy (teachers, stop-gradient targets)
guidance.py        classifier-free guidance of maps and teachers; label dropout
velocities.py      where the velocity b comes from: the interpolant, a teacher, the map itself
couplings.py       the law of (x0, x1)
equations.py       Lagrangian, Eulerian, semigroup; Stop, the stop-gradient
solvers.py         ODE solvers of a teacher, as a map
objectives/        the random inputs of a loss, and the loss of them; which rows are on the diagonal
samplers.py        jumps, multistep consistency sampling; grids.py: which times
methods/           a paper = a function that composes the above (lsd: its rows, times and stop-gradient), and its Method
exact/             Gaussians, mixtures and the checkerboard in closed form
---- machinery ----
system/            this machine: files, processes, devices, seeds, progress
data/  metrics/    data sets; distances between laws
storage/           models and checkpoints as files
training/          fit and Trainer; state.py: what a checkpoint holds; distributed.py: DDP and FSDP2
runs/              recipes; plan.py: a recipe resolved; folder.py: a run's folder, and what a resume compares
evaluation/        sampling and measuring a run        reports/   figures (PNG), tables, report.html
cli/               the program: main.py parses options and prints errors
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        couplings,
        data,
        dual,
        equations,
        exact,
        grids,
        guidance,
        interpolants,
        losses,
        maps,
        methods,
        metrics,
        nn,
        objectives,
        samplers,
        schedules,
        shapes,
        solvers,
        times,
        training,
        velocities,
    )
    from .storage.models import from_pretrained, load, load_interpolant, push_to_hub, save, save_pretrained
    from .training.fit import fit

__version__ = "0.1.0"

_MODULES = (
    "couplings",
    "data",
    "dual",
    "equations",
    "exact",
    "grids",
    "guidance",
    "interpolants",
    "losses",
    "maps",
    "methods",
    "metrics",
    "nn",
    "objectives",
    "samplers",
    "schedules",
    "shapes",
    "solvers",
    "times",
    "training",
    "velocities",
)
_FUNCTIONS = {
    "fit": "training.fit",
    "from_pretrained": "storage.models",
    "load": "storage.models",
    "load_interpolant": "storage.models",
    "push_to_hub": "storage.models",
    "save": "storage.models",
    "save_pretrained": "storage.models",
}

__all__ = [*_MODULES, *_FUNCTIONS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a module or a function of the package when it is first used, so that `import flowmaps` is quick."""
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f".{_FUNCTIONS[name]}", __name__), name)
    raise AttributeError(f"module 'flowmaps' has no attribute {name!r}: it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
