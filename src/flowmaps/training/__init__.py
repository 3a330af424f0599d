"""Training of any objective on any data: `fit`, `Trainer`, and their settings."""

from .fit import fit
from .loop import Step
from .optimisers import Optimiser
from .trainer import Settings, Trainer

__all__ = ["Optimiser", "Settings", "Step", "Trainer", "fit"]
