"""`flowmaps evaluate DIR --certificate`: how far a run's one-step samples are from the flow that it follows."""

from __future__ import annotations

import json
from typing import Any

import torch

from ..reports.figures import save
from ..reports.pictures import residual_square
from ..runs.folder import RunFolder
from ..shapes import on_each
from ..system.files import write_atomically
from ..system.seeds import generator
from ..uses.certificates import Certificate, certificate
from ..uses.square import residual_square as measure_square
from .terminal import console, watching

ROWS, IMAGE_ROWS = 256, 16
"""Samples that residuals are averaged over."""
STREAM = 21  # of the seed


def certify(folder: RunFolder, seed: int | None) -> None:
    """Print the certificate of a run; write certificate.json and certificate.png beside its metrics.

    Against the flow of the teacher where the run has one, else of the map's own velocity.

    Args:
        folder: of the run.
        seed: of noise and data; that of the recipe unless given.

    Raises:
        ValueError: a map that takes no jump from noise to data at once.
    """
    plan, path = folder.plan, folder.path
    if longest := plan.short_jumps():
        raise ValueError(
            f"a certificate is of one jump from noise to data; the jumps of this {plan.method.name} are {longest}: "
            "leave --certificate out."
        )
    with watching("certificate") as watch:
        source = folder.open_source(watch)
        teacher = folder.load_teacher()
        flow_map, teacher = plan.as_sampled(folder.load_map().to(folder.device), teacher and teacher.to(folder.device))
        random = generator(plan.recipe.seed if seed is None else seed, STREAM)
        rows = IMAGE_ROWS if source.units.pictures else ROWS
        x1, cond = source.to("cpu").sample(rows, random)
        x0 = torch.randn(x1.shape, generator=random, dtype=x1.dtype)
        x0, x1, cond = x0.to(folder.device), x1.to(folder.device), on_each(cond, lambda v: v.to(folder.device))
        velocity = None if teacher is None else teacher.velocity
        few: dict[str, Any] = {"times": 8, "lipschitz_rows": 8} if source.units.pictures else {}
        watch("residuals", 0.2)
        found = certificate(flow_map, x0, velocity=velocity, cond=cond, tolerance=1e-4, **few)
        watch("square", 0.8)
        square = measure_square(flow_map, x0, x1, interpolant=plan.interpolant, cond=cond)
    console.print(found.text(), soft_wrap=True, markup=False, highlight=False)
    console.print(
        f"{plan.method.name} learns jumps {plan.method.jumps.value}: the estimates say nothing of other jumps."
    )
    numbers = _numbers(found) | {"square": {name: value.tolist() for name, value in square._asdict().items()}}
    write_atomically(path / "certificate.json", json.dumps(numbers, indent=2) + "\n")
    save(residual_square(square), path / "certificate.png")
    console.print(f"residuals over (s, t): {path / 'certificate.png'}", soft_wrap=True)


def _numbers(found: Certificate) -> dict[str, Any]:
    """For certificate.json; what is not finite is left out, as JSON has no such numbers."""
    forms = {
        name: {**form._asdict(), "vacuous": found.vacuous(name)}
        for name, form in found.forms.items()
        if bool(torch.tensor(form).isfinite().all())
    }
    same = {} if found.coupled is None else {"same_noise": found.coupled._asdict()}
    return {
        "against": "the map's own velocity" if found.own else "the teacher",
        "estimates": forms,
        **same,
        "sample_distance": found.sample_distance,
        "rows": found.rows,
        "evaluations": found.evaluations,
        "times": found.times.tolist(),
        "lipschitz_constants": found.constants.tolist(),
    }
