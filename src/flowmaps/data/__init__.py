"""Data sets as sources of batches: the checkerboard, the digits, images, and arrays of the user's own."""

from .open import open_data
from .places import fingerprint, resolve
from .sources import Board, Images, Points, Source, Units
from .tables import SUFFIXES, is_array_file, read_array

__all__ = [
    "SUFFIXES",
    "Board",
    "Images",
    "Points",
    "Source",
    "Units",
    "fingerprint",
    "is_array_file",
    "open_data",
    "read_array",
    "resolve",
]
