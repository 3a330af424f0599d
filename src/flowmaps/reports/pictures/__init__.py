"""What a run shows: its figures as PNG files, each under its caption, and the numbers that come with them.

Points of the plane are shown as densities and trajectories; images as samples beside data, in more and more steps from
the same noise, between two noises, and taken to noise and back. Latents have no pixels: of them quality and losses.
"""

from .images import grid, interpolations, strip
from .inversion import Inversion, invert
from .run import Pictures, draw
from .training import show

__all__ = ["Inversion", "Pictures", "draw", "grid", "interpolations", "invert", "show", "strip"]
