"""The residuals of a run's map over the square of (s, t)."""

from __future__ import annotations

from ..evaluation.sampling import guide
from ..system.progress import Watch, quiet
from ..uses.square import ResidualSquare, residual_square
from .opened import Asked, OpenRun

ROWS, IMAGE_ROWS = 256, 4
"""Samples that residuals are averaged over."""
TIMES, IMAGE_TIMES = 9, 5
"""Times on each axis."""


def square(run: OpenRun, asked: Asked, watch: Watch = quiet) -> ResidualSquare:
    """The semigroup and round-trip residuals of the map: at noised data, or where the data cannot be read here at the
    points to which the map itself takes noise.

    Args:
        run: the run.
        asked: the seed, the guidance, and the conditions where the data cannot be read.
        watch: progress callback.

    Raises:
        ValueError: the map takes no jump from noise to data at once; or as in `OpenRun.inputs`.
    """
    plan = run.plan
    if longest := plan.short_jumps():
        raise ValueError(
            f"residuals over (s, t) are of jumps between any two times; the jumps of this {plan.method.name} are "
            f"{longest}."
        )
    rows, number = (IMAGE_ROWS, IMAGE_TIMES) if run.units.pictures else (ROWS, TIMES)
    data = None if plan.interpolant.noisy else run.data(rows, asked.seed, asked.label)
    inputs = run.inputs(asked, rows)
    options = {}
    if data is not None:
        cond = data[1] if asked.guidance is None else guide(plan.recipe, data[1], rows, asked.guidance)
        inputs = inputs._replace(cond=cond)
        options = {"x1": data[0].to(run.device), "interpolant": plan.interpolant}
    inputs = run.on_device(inputs)
    told = lambda share: watch("residuals", share)  # noqa: E731
    return residual_square(run.flow_map, inputs.x0, cond=inputs.cond, number=number, watch=told, **options)
