"""flowmaps: flow maps in PyTorch, by distillation from a velocity field or directly from data."""

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
    return [*globals(), *__all__]
