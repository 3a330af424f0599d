"""A paper is a point of one space: equation x source of velocity x law of (s, t) x weight x stop-gradient x diagonal
term.

Each function returns the objective of a method, composed of those parts, and takes as options what its paper leaves
open. `**options` are those of every method (`Options`): interpolant, times, coupling, weight, guidance; one that is
left out, or `None`, is the paper's; exceptions are in the docstring.

Sorted by their equation: `diagonal` (the velocity alone), `lagrangian` (`lmd`, `lsd`, ...), `eulerian`, `semigroup`
with legs of a teacher or a frozen map, `semigroup_self_distillation` with legs of the map itself (`psd`, `shortcut`,
...), and `consistency` for the models of t = 1, whose first step is short. `trajectories` has `warm_up`, which is no
method of its own but a stage that may come before one. "FMM" is 2406.07507, "SD" is 2505.18825.
"""

from . import consistency, diagonal, eulerian, lagrangian, method, semigroup, semigroup_self_distillation
from ._parts import Options as Options
from .consistency import *
from .diagonal import *
from .eulerian import *
from .lagrangian import *
from .method import *
from .semigroup import *
from .semigroup_self_distillation import *
from .trajectories import *

METHODS = method.by_name(
    *lagrangian.METHODS,
    *eulerian.METHODS,
    *semigroup.METHODS,
    *semigroup_self_distillation.METHODS,
    *consistency.METHODS,
    *diagonal.METHODS,
)
"""Every method by the name of its function."""
