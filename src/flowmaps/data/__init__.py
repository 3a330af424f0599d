"""Data sets as sources of batches: the checkerboard, the digits, images, and arrays of the user's own."""

from .open import open_data
from .places import fingerprint, resolve
from .sources import Board, Images, Points, Source, Units

__all__ = [
    "Board",
    "Images",
    "Points",
    "Source",
    "Units",
    "fingerprint",
    "open_data",
    "resolve",
]
