"""Data sets as sources of batches: the checkerboard, the digits, images, tables and arrays of the user's own."""

from .columns import Column, ConditionColumn, Table
from .encode import encode
from .latents import Latents, save_latents
from .open import open_data
from .options import DataWarning, TableOptions
from .places import fingerprint, resolve
from .sources import Board, Images, Points, Source
from .units import Units

__all__ = [
    "Board",
    "Column",
    "ConditionColumn",
    "DataWarning",
    "Images",
    "Latents",
    "Points",
    "Source",
    "Table",
    "TableOptions",
    "Units",
    "encode",
    "fingerprint",
    "open_data",
    "resolve",
    "save_latents",
]
