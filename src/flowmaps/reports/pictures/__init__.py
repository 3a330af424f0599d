"""The pictures of a run: plots and grids of images as PNG files, with captions, and numbers for metrics.json.

Points of the plane are drawn as densities and trajectories; images as samples beside data, in more and more steps from
the same noise, between two noises, and taken to noise and back. Latents have no pixels: only quality and losses are
drawn of them.
"""

from .images import grid, interpolations, steps_grid
from .inversion import Inversion, invert
from .parts import steps_nearest_four
from .points import map_samples
from .previews import preview
from .run import Pictures, draw
from .square import residual_square

__all__ = [
    "Inversion",
    "Pictures",
    "draw",
    "grid",
    "interpolations",
    "invert",
    "map_samples",
    "preview",
    "residual_square",
    "steps_grid",
    "steps_nearest_four",
]
