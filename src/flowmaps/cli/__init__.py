"""The command line: `flowmaps train | sample | evaluate | average | compare`."""

from .main import main

__all__ = ["main"]
