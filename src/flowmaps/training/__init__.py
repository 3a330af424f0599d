"""The engine, for an objective and data of anybody's: `fit`, `Trainer`, and the settings of both."""

from .fit import fit
from .loop import Step
from .optimisers import Optimiser
from .trainer import Settings, Trainer

__all__ = ["Optimiser", "Settings", "Step", "Trainer", "fit"]
