"""Metrics of samples: of points (`points`, whose functions are here), and of images (`images` and what it takes)."""

from . import features, images, reference, row
from .points import energy_distance, kl, kl_floor, map_error, share_in_other_cell, sliced_wasserstein2, wasserstein2

__all__ = [
    "energy_distance",
    "features",
    "images",
    "kl",
    "kl_floor",
    "map_error",
    "reference",
    "row",
    "share_in_other_cell",
    "sliced_wasserstein2",
    "wasserstein2",
]
