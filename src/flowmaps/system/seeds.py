"""Random streams: every draw is a function of a seed and of numbers such as the stage, the rank and the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of the seed and the numbers, such as (stage, rank, step)."""
    value = seed
    for number in numbers:  # splitmix64, so that neighbouring numbers give unrelated streams
        value = (value + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        value ^= value >> 31
    return torch.Generator(device=device).manual_seed(value % 2**63)


@contextmanager
def seeded_globally(device: torch.device, number: int) -> Iterator[None]:
    """Context with a seed of its own for the generators that have no name, those of dropout: of the CPU and a device.

    They are in the state that they were in before when it ends, so that draws of the caller's go on.
    torch.manual_seed would keep a traceback at each call, for devices that are not in use yet.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(
            torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        )
    before = [generator.get_state() for generator in generators]
    of_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        for generator in generators:
            generator.manual_seed(number)
        if of_mps is not None:
            torch.mps.manual_seed(number)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
        if of_mps is not None:
            torch.mps.set_rng_state(of_mps)
