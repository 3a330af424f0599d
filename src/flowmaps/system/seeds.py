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


def seed_global(device: torch.device, number: int) -> None:
    """Seed the generators that have no name, those of dropout: of the CPU and of a device.

    torch.manual_seed would keep a traceback at each call, for devices that are not in use yet.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


@contextmanager
def global_state_kept(device: torch.device) -> Iterator[None]:
    """Context after which the generators that `seed_global` seeds are in the state that they were in before."""
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    of_device = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng([index] if device.type == "cuda" else []):
        yield
    if of_device is not None:
        torch.mps.set_rng_state(of_device)
