"""`python -m flowmaps`."""

from .cli import main

main()
