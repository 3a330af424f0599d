"""This machine: files, devices, random numbers, processes."""
