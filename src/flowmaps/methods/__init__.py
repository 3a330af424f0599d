"""A paper is a point of one space: equation x source of velocity x law of (s, t) x weight x stop-gradient x diagonal
term.

Each function returns the objective of a method, composed of those parts, and takes as options what its paper leaves
open. `**options` are those of every method (`Options`): interpolant, times, coupling, weight, guidance; one that is not
given, or `None`, is the paper's unless its page says otherwise.

Sorted by their equation: `diagonal` (the velocity alone), `lagrangian`, `eulerian`, `semigroup`, `self_distilled` for
the semigroups whose legs are the map's own, and `consistency` for the models of t = 1, whose first step is short. "FMM"
is 2406.07507, "SD" is 2505.18825.
"""

from . import consistency, diagonal, eulerian, lagrangian, self_distilled, semigroup
from ._parts import Options
from .consistency import (
    consistency_distillation,
    consistency_training,
    easy_consistency_tuning,
    improved_consistency_training,
    scd,
    sct,
)
from .diagonal import flow_matching, reflow
from .eulerian import ayf_emd, emd, esd, eulerian_estimation, improved_meanflow, meanflow, slim_esd
from .lagrangian import ayf_lmd, fmm, freeflow, lmd, lsd, slim_lsd
from .method import Choices, Jumps, LearnsFrom, Method, by_name
from .self_distilled import alphaflow, psd, shortcut, split_meanflow
from .semigroup import ctm, neural_operator, pfmm, progressive_distillation

METHODS = by_name(
    *lagrangian.METHODS,
    *eulerian.METHODS,
    *semigroup.METHODS,
    *self_distilled.METHODS,
    *consistency.METHODS,
    *diagonal.METHODS,
)
"""Every method by the name of its function."""

__all__ = [
    "METHODS",
    "Choices",
    "Jumps",
    "LearnsFrom",
    "Method",
    "Options",
    "alphaflow",
    "ayf_emd",
    "ayf_lmd",
    "consistency_distillation",
    "consistency_training",
    "ctm",
    "easy_consistency_tuning",
    "emd",
    "esd",
    "eulerian_estimation",
    "flow_matching",
    "fmm",
    "freeflow",
    "improved_consistency_training",
    "improved_meanflow",
    "lmd",
    "lsd",
    "meanflow",
    "neural_operator",
    "pfmm",
    "progressive_distillation",
    "psd",
    "reflow",
    "scd",
    "sct",
    "shortcut",
    "slim_esd",
    "slim_lsd",
    "split_meanflow",
]
