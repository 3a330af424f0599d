"""Samples of a run, measured; runs compared."""
