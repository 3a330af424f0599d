"""EMAs and power-function averages of the trained weights, and the files that store them.

An average at step t weighs the weights theta(tau) of the steps before it by a profile p_t(tau) that integrates to 1:

    decay d:    p_t(tau) ~ d^{t - tau}                               its memory is 1 / (1 - d) steps, always
    width w:    p_t(tau) = (gamma + 1) tau^gamma / t^{gamma + 1}     its memory is a share of the steps taken

The profile of a power function has the mean t (gamma + 1) / (gamma + 2) and the standard deviation w t, with

    w = (gamma + 1)^{1/2} (gamma + 2)^{-1} (gamma + 3)^{-1/2},

so that it is named by w, its relative width. Where the weights stay put during a step, its integral over a step is
exactly what the rule average <- beta average + (1 - beta) theta with beta = (1 - 1 / t)^{gamma + 1} leaves there.

Karras et al., Analyzing and improving the training dynamics of diffusion models, 2024, arXiv 2312.02696 (section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..storage.models import save_tensors
from ..system.processes import gather, on_first

FOLDER = "averages"
MAX_WIDTH = 1 / math.sqrt(12)
"""The relative width of gamma = 0, the plain mean of all steps."""
MIN_WIDTH = 1e-6
"""The smallest relative width; float64 cannot resolve gamma far below it."""


class Averages:
    """Moving averages of the trained parameters: of given decays, and power functions of time of given relative widths.

    Args:
        parameters: the trained parameters; if they are sharded, the averages are too.
        decays: in [0, 1), the first of them that of the main average. All warm up: at step t a decay is at most
            t / (t + 9).
        widths: relative widths, in [1e-6, 12^{-1/2}].

    Attributes:
        decays: as given.
        widths: as given.
        values: the averages by name, `decay-0.999` and then `width-0.05`, each in the order of the parameters.

    Raises:
        ValueError: a decay or a width is out of range, two have one name, or there is no decay.
    """

    def __init__(self, parameters: Sequence[Tensor], decays: Sequence[float], widths: Sequence[float] = ()) -> None:
        self.decays, self.widths = tuple(decays), tuple(widths)
        if not self.decays:
            raise ValueError("got no decay: give one at least, such as 0.999, whose average becomes the map.")
        for decay in self.decays:
            if not 0 <= decay < 1:
                raise ValueError(f"a decay is at least 0 and less than 1, got {decay:g}: try 0.999.")
        self._powers = [exponent(width) + 1 for width in self.widths]
        names = [f"decay-{decay:g}" for decay in self.decays] + [f"width-{width:g}" for width in self.widths]
        for name in names:
            if names.count(name) > 1:
                kind, value = name.split("-", 1)
                raise ValueError(
                    f"two averages have the {kind} {value} (of which six digits count): leave one of them out."
                )
        own = [_in_full(value.detach()) for value in parameters]
        self.values: dict[str, list[Tensor]] = {name: [value.clone() for value in own] for name in names}

    @property
    def main(self) -> list[Tensor]:
        """The average of the first decay, which becomes the map."""
        return self.values[f"decay-{self.decays[0]:g}"]

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], step: int) -> None:
        """Update the averages in place with the parameters after a step.

        Args:
            parameters: in the order in which they were given first.
            step: the number of the step that was taken, from 1.
        """
        shares = [1 - min(decay, step / (step + 9)) for decay in self.decays]
        # 1 - beta; the first step replaces the weights of the start, which have no part in the integral
        shares += [1.0 if step == 1 else -math.expm1(power * math.log1p(-1 / step)) for power in self._powers]
        parameters = [_in_full(value) for value in parameters]
        for average, share in zip(self.values.values(), shares, strict=True):
            torch._foreach_lerp_(average, parameters, share)  # pyright: ignore[reportPrivateImportUsage]


def _in_full(value: Tensor) -> Tensor:
    """A tensor of half precision in float32: one less a decay of 0.999 is below the resolution of bfloat16."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def exponent(width: float) -> float:
    """The exponent gamma >= 0 of the power function of a relative width.

    With g = gamma + 1 the relation between the two is the cubic g^3 + 4 g^2 + (5 - width^{-2}) g + 2 = 0. Its roots are
    real up to the widest, and the largest root gives gamma = g - 1 >= 0.

    Args:
        width: in [1e-6, 12^{-1/2}].

    Raises:
        ValueError: it is out of range.
    """
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(
            f"a relative width is more than 0 and at most {math.floor(MAX_WIDTH * 1e6) / 1e6} (the mean of all steps), "
            f"got {width:g}: try 0.05, a twentieth of the training."
        )
    if width < MIN_WIDTH:
        raise ValueError(
            f"a relative width is at least {MIN_WIDTH:g}, a millionth of the training, got {width:g}: try 0.05."
        )
    # g = y - 4 / 3 takes the square away, y^3 + p y + q = 0: the trigonometric form of the largest root
    linear = 5 - width**-2
    p, q = linear - 16 / 3, 128 / 27 - 4 * linear / 3 + 2
    radius = 2 * math.sqrt(-p / 3)
    return max(radius * math.cos(math.acos(3 * q / (p * radius)) / 3) - 7 / 3, 0.0)


def relative_width(gamma: float) -> float:
    """The standard deviation of the profile of a power function, as a share of its time; `exponent` undoes it."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def store(folder: Path, stage: str, step: int, names: Sequence[str], averages: Averages) -> None:
    """Write the power-function averages of a step, each to a file of its own; all processes take part.

    Args:
        folder: of the run.
        stage: name of the stage.
        step: steps taken in it, at which the averages are.
        names: of the parameters, in their order.
        averages: of those parameters.

    Raises:
        OSError: the first process could not write; it reaches all of them.
    """
    for width in averages.widths:
        kept = averages.values[f"width-{width:g}"]
        path = folder / FOLDER / f"{stage}-width-{width:g}-{step:08d}.safetensors"
        _write(path, names, kept, {"step": step, "width": width})


def finish(folder: Path, stage: str, names: Sequence[str], averages: Averages) -> None:
    """Write the averages of all decays but the first, which is the map, at the end of a stage; arguments as above.

    Raises:
        OSError: as above.
    """
    for decay in averages.decays[1:]:
        path = folder / FOLDER / f"{stage}-decay-{decay:g}.safetensors"
        _write(path, names, averages.values[f"decay-{decay:g}"], {"decay": decay})


def _write(path: Path, names: Sequence[str], values: Sequence[Tensor], about: Mapping[str, Any]) -> None:
    """Write one average: gathered from its shards, and written by the first process; every process calls this."""
    whole = gather(dict(zip(names, values, strict=True)))

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, whole, about)

    on_first(write)
