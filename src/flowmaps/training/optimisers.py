"""Optimisers of a recipe: Adam, AdamW, RAdam, Muon; and the rate of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval, Le, Len, Predicate
from torch import Tensor
from torch.optim import Optimizer

from .averages import MAX_WIDTH, MIN_WIDTH
from .distributed import fill
from .settings import CountOrZero, Share, ShareBelowOne, without_repeats

MIN_ROWS = 2
"""Fewest rows of a micro-batch: `SplitRows` needs one row for each of its two objectives."""

RelativeWidth = Annotated[float, Interval(ge=MIN_WIDTH, le=MAX_WIDTH)]


@dataclass(frozen=True)
class Optimiser:
    """Kind of the optimiser, batch, warm-up and decay of the learning rate, gradient clipping, EMAs of the weights."""

    kind: Literal["adam", "adamw", "radam", "muon"] = "adam"
    """The optimiser. `muon` trains the matrices between hidden layers by Muon and all other weights by AdamW."""
    batch: Annotated[int, Ge(MIN_ROWS), Le(2**24)] = 1024
    """Batch size of a step, over all processes."""
    accumulate: Annotated[int, Ge(1), Le(2**16)] = 1
    """Gradient accumulation: parts in which a process computes its share of the batch. Less memory, the same step."""
    learning_rate: Annotated[float, Gt(0), Le(100)] = 8e-3
    """Highest learning rate."""
    warmup: CountOrZero = 200
    """Steps over which the learning rate rises linearly from 0."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up; `constant` leaves it at the highest."""
    final_rate_scale: Share = 0.01
    """Last learning rate, as a share of the highest."""
    clip: Annotated[float, Gt(0), Le(1e9)] = 10.0
    """Gradient clipping: the largest norm of the gradient over all weights."""
    weight_decay: Annotated[float, Interval(ge=0, le=100)] = 0.0
    """Decoupled weight decay of adamw, radam and muon: each step multiplies a weight by 1 minus
    this times the learning rate."""
    ema_decay: ShareBelowOne = 0.999
    """Decay of the EMA of the weights that becomes the map."""
    ema_decays: Annotated[tuple[ShareBelowOne, ...], Len(0, 16), Predicate(without_repeats)] = ()
    """Decays of more EMAs, stored in averages/ of the run for `flowmaps average`."""
    ema_widths: Annotated[tuple[RelativeWidth, ...], Len(0, 16), Predicate(without_repeats)] = ()
    """Relative widths of power-function EMAs (arXiv 2312.02696), such as 0.05 0.1, stored while training goes on;
    `flowmaps average` computes the EMA of any other width from them."""
    beta2: ShareBelowOne = 0.999
    """Adam's decay of the mean square of the gradient."""


def uneven(settings: Optimiser, processes: int) -> str | None:
    """Why a batch does not split into equal parts over processes and gradient accumulation; `None` if it does."""
    parts = processes * settings.accumulate
    if settings.batch % parts == 0 and settings.batch >= MIN_ROWS * parts:
        return None
    return (
        f"must be a multiple of {parts:,} and at least {MIN_ROWS * parts:,}, {MIN_ROWS} rows for each of {processes} "
        f"processes x {settings.accumulate} parts, got {settings.batch}."
    )


NAMES_FOR_ADAMW = ("first", "last", "embedding", "embed", "label", "modulation", "films", "scales")
"""Name parts of input, output and modulation layers, which AdamW trains instead of Muon."""


def build(parameters: Mapping[str, Tensor], settings: Optimiser) -> list[Optimizer]:
    """The optimisers of parameters by name; together they have each of them once.

    Muon (K. Jordan et al., 2024; as scaled by J. Liu et al., "Muon is scalable for LLM training", 2025, arXiv
    2502.16982, so that AdamW's rate fits both) takes the matrices between hidden layers, AdamW the rest.

    Args:
        parameters: what is trained; `DTensor` where it is sharded.
        settings: of the recipe.

    Raises:
        ValueError: Muon, and there are no matrices between hidden layers.
    """
    betas, rate, decay = (0.9, settings.beta2), settings.learning_rate, settings.weight_decay
    every = list(parameters.values())
    if settings.kind == "adam":
        return [torch.optim.Adam(every, lr=rate, betas=betas, fused=True)]
    if settings.kind == "radam":
        return [torch.optim.RAdam(every, lr=rate, betas=betas, weight_decay=decay, decoupled_weight_decay=True)]
    inner = {name for name, value in parameters.items() if _is_hidden(name, value)} if settings.kind == "muon" else ()
    if settings.kind == "muon" and not inner:
        raise ValueError(
            "the optimiser muon is for matrices between hidden layers, and this network has none (a U-Net is made "
            "of convolutions): take adamw, or a transformer."
        )
    rest = [value for name, value in parameters.items() if name not in inner]
    built: list[Optimizer] = []
    if rest:
        built.append(torch.optim.AdamW(rest, lr=rate, betas=betas, weight_decay=decay, fused=True))
    if inner:
        hidden = [parameters[name] for name in parameters if name in inner]
        built.append(torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return built


def _is_hidden(name: str, value: Tensor) -> bool:
    words = name.replace("_", ".").split(".")
    if "weight" in words[:-1]:  # the network of a learned weight of the loss
        return False
    return value.ndim == 2 and min(value.shape) > 1 and not any(word in NAMES_FOR_ADAMW for word in words)


def can_skip_on_device(optimisers: list[Optimizer]) -> bool:
    """Whether all can leave out a step by a flag on their device, so that the host need not wait to know it."""
    return all(optimiser.defaults.get("fused") for optimiser in optimisers)


def moments(optimisers: list[Optimizer], names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimisers' state as `NAME.KEY`, NAME that of the parameter; `names` maps its id to NAME."""
    return {
        f"{names[id(parameter)]}.{key}": value
        for optimiser in optimisers
        for parameter, kept in optimiser.state.items()
        for key, value in kept.items()
    }


def remember(optimisers: list[Optimizer], parameters: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Restore the state that `moments` returned; without stored state the optimisers restart."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for name, value in kept.items():
        parameter, key = name.rsplit(".", 1)
        moment = torch.empty_like(parameters[parameter] if value.ndim else value)  # a count of steps is a number
        fill(moment, value)
        by_name.setdefault(parameter, {})[key] = moment
    names = {id(value): name for name, value in parameters.items()}
    for optimiser in optimisers:
        listed = [names[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]
        state: dict[int, Any] = {k: by_name[name] for k, name in enumerate(listed) if name in by_name}
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def schedule(settings: Optimiser, step: int, progress: float) -> float:
    """The learning rate: linear warm-up over the first steps, then down to `final_rate_scale` times the highest.

    Args:
        settings: of the recipe.
        step: steps taken since the optimiser began.
        progress: of training, from 0 to 1.
    """
    rise = min(1.0, (step + 1) / max(settings.warmup, 1))
    left = 1 - min(progress, 1.0)
    if settings.decay == "constant":
        return settings.learning_rate * rise
    share = left if settings.decay == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return settings.learning_rate * rise * (settings.final_rate_scale + (1 - settings.final_rate_scale) * share)
