"""The settings and data that a resumed training must share with its checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..objectives import Objective
from .optimisers import Optimiser

MAX_HASHED_ROWS = 2**16
"""Rows of the data that are compared, evenly spaced."""


def identity(objective: Objective, optimiser: Optimiser, seed: int, precision: str, data: str | None) -> dict[str, Any]:
    """A description of a training, as JSON: its loss, the settings of its steps, and its data.

    Args:
        objective: the objective.
        optimiser: settings; gradient accumulation, which changes the rounding alone, is left out.
        seed: of the draws.
        precision: type in which networks compute.
        data: from `digest`, or `None` where the data cannot be compared.
    """
    settings = dataclasses.asdict(optimiser)
    settings.pop("accumulate")
    parts = [module for module in objective.modules() if isinstance(module, Objective)]
    described = {
        "map": type(objective.flow_map).__name__,
        "interpolant": repr(objective.interpolant),
        "objective": "; ".join(_words(part) for part in parts),
    }
    return described | settings | {"seed": seed, "precision": precision, "data": data}


def _words(part: Objective) -> str:
    """An objective by its class and those of its parts that are plain values, such as its equation and its times."""
    values = {name: value for name, value in vars(part).items() if dataclasses.is_dataclass(value)}
    inner = ", ".join(f"{name}={value!r}" for name, value in sorted(values.items()))
    return re.sub(r" at 0x[0-9a-f]+", "", f"{type(part).__name__}({inner})")


def digest(x1: Tensor) -> str:
    """The shape of rows of data, and the SHA-256 of some of them."""
    some = x1[:: max(1, len(x1) // MAX_HASHED_ROWS)].detach().cpu().contiguous()
    return f"{list(x1.shape)} {hashlib.sha256(some.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()}"


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with another training than the one that was begun.

    Args:
        old: from a checkpoint or a card.
        new: of the training at hand.
        where: whose the old one is, for the message.

    Raises:
        ValueError: they differ.
    """
    for name, value in json.loads(json.dumps(new)).items():  # lists for tuples, as in a file
        was = old.get(name, value)
        if was != value:
            raise ValueError(
                f"{where} was begun with another {name}, {was!s:.200}, got {value!s:.200}: give what it began with, or "
                "choose another folder."
            )
