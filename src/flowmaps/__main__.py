"""`python -m flowmaps`."""

from .cli.main import main

main()
