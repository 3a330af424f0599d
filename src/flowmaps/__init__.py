"""flowmaps: flow maps in PyTorch, by distillation from a velocity field or directly from data.

shapes.py          what a batch, a time and a condition are; like(t, x) aligns a time with a batch
dual/              forward-mode derivatives of networks, in ordinary differentiable torch code
nn/                networks of (x, s, t, cond): MLP, UNet, DiT; TwoTimes, any network with a second time
interpolants.py    the path from noise to data; velocity, score, denoiser and noise prediction
schedules.py       numbers that change while training goes on
times.py           laws (distributions) of (s, t), and of the first leg of a semigroup; methods/ choose
losses.py          distances of a residual, and weights w_{s,t}
modules.py         the modules in a teacher, called in evaluation mode with detached weights
maps.py            X_{s,t}: the parametrisations; Target, a frozen or EMA copy (teachers, stop-gradient targets)
guidance.py        classifier-free guidance of maps and teachers; label dropout
teachers.py        other call signatures of a teacher, made into fn(x, t, cond)
velocities.py      where the velocity b comes from: the interpolant, a teacher (FromTeacher freezes it), the map
couplings.py       the law of (x0, x1)
equations.py       Lagrangian, Eulerian, semigroup; Stop, the kinds of stop-gradient (methods/ choose)
solvers.py         ODE solvers of a teacher, as a map
objectives/        the random inputs of a loss, and the loss of them; which rows are on the diagonal; trajectories.py:
                   regression on solved trajectories
samplers.py        jumps, multistep consistency sampling; grids.py: which times
methods/           a paper = a function that composes the above, and its Method; lagrangian.py: lmd, lsd and
                   how it draws its rows, ...; trajectories.py: the warm-up before a method; _parts.py: what several
                   share
exact/             Gaussians, mixtures and the checkerboard in closed form; a law for a method, `mean_gradient`
uses/              what a map is for: certificates, inversion, likelihood, rewards, restoration, posteriors
---- machinery ----
system/            this machine: files, devices, seeds; processes.py: ranks, full copies of weights that FSDP2 shards
data/  metrics/    data sets; distances between laws
storage/           models and checkpoints as files
training/          fit and Trainer; state.py: the tensors of a checkpoint; identity.py: what a resume compares;
                   distributed.py: DDP and FSDP2, which gathers the weights for a step
interop/           models of other libraries as teachers and students, and back; export.py: ONNX and .pt2
runs/              recipes; plan.py: a recipe resolved; stages.py: what each stage trains; folder.py: RESUMABLE, the
                   options that a resume may change; prepare.py: first checks
evaluation/        sampling and measuring a run; compare.py: methods on one budget; cells.py: its folder, which
                   processes share; curves.py: residuals   reports/   figures.py draws; spread.py: seeds and ranks;
                   pictures/, tables, report.html
cli/               the program: main.py parses options and prints errors
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
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
        interop,
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
        uses,
        velocities,
    )
    from .interop.export import export as export
    from .storage.hub import from_pretrained as from_pretrained
    from .storage.hub import push_to_hub as push_to_hub
    from .storage.hub import save_pretrained as save_pretrained
    from .storage.models import load as load
    from .storage.models import load_interpolant as load_interpolant
    from .storage.models import save as save
    from .training.fit import fit as fit
    from .velocities import teacher as teacher

__version__ = "0.1.0"

_FUNCTIONS = {
    "interop.export": ("export",),
    "storage.hub": ("from_pretrained", "push_to_hub", "save_pretrained"),
    "storage.models": ("load", "load_interpolant", "save"),
    "training.fit": ("fit",),
    "velocities": ("teacher",),
}
"""Functions of the top level, by the module that each is in."""


def __getattr__(name: str) -> Any:
    """Import a module or a function of the package when it is first used, so that `import flowmaps` is quick."""
    for module, functions in _FUNCTIONS.items():
        if name in functions:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    if name in _modules():
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'flowmaps' has no attribute {name!r}: it has {', '.join(__dir__())}.")


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def __dir__() -> list[str]:
    return sorted({*_modules(), *itertools.chain(*_FUNCTIONS.values())})
