"""How many images of each row of figures can be made and measured in the time that is left."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from flowmaps.evaluation.measure import open_features
from flowmaps.evaluation.sampling import Inputs, ode_sampler, sample
from flowmaps.maps import FlowMap
from flowmaps.metrics.features import extract
from flowmaps.runs.recipes import ImageEvaluation
from flowmaps.storage.models import device_of
from flowmaps.system.seeds import generator

NUMBERS = (50_000, 40_000, 30_000, 20_000, 10_000, 5_000, 2_000, 1_000)
REFERENCE = 50_000  # real images, whose features are computed too
FIXED = 90.0  # seconds for distances between features, which a CPU computes, and for pictures
TRIED = 512  # images whose features are timed


def samples_that_fit(taught: FlowMap, shape: Sequence[int], settings: ImageEvaluation, seconds: float) -> int:
    """The greatest number that fits: the one asked for, else a round one below it; the least if none does.

    Args:
        taught: the map whose velocity is solved first, the slowest of the samplers, of which one chunk is timed.
        shape: of an image in the network's coordinates.
        settings: what is to be measured, and of how many samples at most.
        seconds: that are left.
    """
    rounder = [number for number in NUMBERS if number < settings.samples]
    if not rounder:
        return settings.samples
    begun = time.monotonic()
    sampling, features = sampling_time(taught, shape, settings), feature_time(shape, settings, device_of(taught))
    each = sampling + (2 + len(settings.steps)) * features
    left = seconds - (time.monotonic() - begun) - FIXED - features * (settings.reference_images or REFERENCE)
    return next((number for number in (settings.samples, *rounder) if number * each <= left), rounder[-1])


def sampling_time(taught: FlowMap, shape: Sequence[int], settings: ImageEvaluation) -> float:
    """Seconds for an image by each sampler in turn: dopri5 is timed, the others are in proportion to evaluations."""
    x0 = torch.randn(settings.batch, *shape, generator=generator(0))
    cond = None if not taught.net.arguments["classes"] else torch.zeros(len(x0), dtype=torch.long)  # type: ignore
    tolerance = settings.solver_tolerance
    solver = ode_sampler(taught.velocity, method="dopri5", rtol=tolerance, atol=tolerance)
    device = device_of(taught)
    sampled = sample(solver, Inputs(x0, cond), chunk=settings.batch, device=device, warm_up=True)
    others = 2 * settings.solver_steps + sum(settings.steps)  # Heun's method evaluates twice a step
    return sampled.seconds / len(x0) * (1 + others / sampled.nfe)


def feature_time(shape: Sequence[int], settings: ImageEvaluation, device: torch.device) -> float:
    """Seconds for the features of an image."""
    network, batch = open_features(settings.features), 32 if device.type == "cpu" else 256
    images = torch.zeros(TRIED, *shape, dtype=torch.uint8)
    extract(network, images[:batch], batch=batch, device=device)  # warm
    begun = time.monotonic()
    extract(network, images, batch=batch, device=device)
    return (time.monotonic() - begun) / TRIED
