"""Training of any objective on any data: `fit`, `Trainer`, and their settings."""

from .fit import fit
from .loop import Step
from .optimisers import Optimiser
from .settings import Settings
from .trainer import Trainer

__all__ = ["Optimiser", "Settings", "Step", "Trainer", "fit"]
