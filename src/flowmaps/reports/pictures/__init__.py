"""The pictures of a run: its figures as PNG files, each under its caption, and the numbers that come with them.

Points of the plane are drawn as densities and trajectories; images as samples beside data, in more and more steps from
the same noise, between two noises, and taken to noise and back. Latents have no pixels: only quality and losses are
drawn of them.
"""

from .images import grid, interpolations, strip
from .inversion import Inversion, invert
from .points import map_samples
from .previews import preview
from .run import Pictures, draw

__all__ = ["Inversion", "Pictures", "draw", "grid", "interpolations", "invert", "map_samples", "preview", "strip"]
