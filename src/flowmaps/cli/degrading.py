"""The operators of `flowmaps restore`: words such as hide:8 or blur:1.5 as a linear operator on a run's data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..data import Units
from ..data.numerals import is_number
from ..system.names import choose
from ..system.seeds import generator
from ..uses.operators import Blur, Downsample, Mask, Matrix, Operator, Radon

MASK_STREAM = 24  # of the seed


class Degrading(NamedTuple):
    """An operator, and the columns of a table that it hides."""

    operator: Operator
    hidden: tuple[str, ...] = ()

    @property
    def hides(self) -> bool:
        """Whether an observation is the data with a part left out, so that a file of data will do for one."""
        return isinstance(self.operator, (Mask, Matrix))


def degrading(words: str, units: Units, seed: int) -> Degrading:
    """The operator that words name, on rows of the shape of a run's data.

    Args:
        words: KIND:VALUE, as of --operator.
        units: of the data.
        seed: of pixels that are kept.

    Raises:
        ValueError: there is no such kind, or it does not fit the data.
    """
    kind, _, value = words.partition(":")
    if len(units.shape) == 1:
        if kind != "hide":
            raise ValueError(f"--operator of points is hide:COLUMN,COLUMN, got {words!r}.")
        return _columns(value, units)
    if not units.pixels:
        raise ValueError("this is a run of latents, and pictures are observed: restore takes runs of images or points.")
    kinds: dict[str, Callable[[float], Operator]] = {
        "hide": lambda size: _hole(size, units),
        "keep": lambda share: _kept(share, units, seed),
        "blur": lambda width: _blur(width, units),
        "downsample": lambda factor: Downsample(_whole("downsample", factor), units.shape),
        "radon": lambda number: Radon(
            torch.arange(_whole("radon", number)) * (math.pi / _whole("radon", number)), units.shape
        ),
    }
    make = choose("--operator", kind, kinds)
    if not is_number(value) or not 0 < float(value) < math.inf:
        raise ValueError(f"--operator of images is KIND:NUMBER with a number above 0, such as hide:8, got {words!r}.")
    return Degrading(make(float(value)))


def _whole(kind: str, value: float) -> int:
    if value % 1:
        raise ValueError(f"--operator {kind}:NUMBER takes a whole number, got {value:g}.")
    return int(value)


def _columns(value: str, units: Units) -> Degrading:
    table = units.table
    if table is None:
        names, widths = [f"x{k + 1}" for k in range(units.dim)], [1] * units.dim
    else:
        names, widths = [own.name for own in table.columns], [own.width for own in table.columns]
    hidden = (value,) if value in names else tuple(part.strip() for part in value.split(","))
    for name in hidden:
        choose("column to hide", name, dict.fromkeys(names))
    if len({*hidden}) == len(names):
        raise ValueError("--operator hides all columns: leave one to restore the others from.")
    seen = torch.tensor([float(name not in hidden) for name, k in zip(names, widths, strict=True) for _ in range(k)])
    if table is None or not table.whitening:
        return Degrading(Mask(seen), hidden)
    return Degrading(Matrix((torch.tensor(table.whitening) * seen).mT), hidden)


def _hole(size: float, units: Units) -> Mask:
    side, (_, height, width) = _whole("hide", size), units.shape
    if side >= min(height, width):
        raise ValueError(f"--operator hide:{side} hides all of an image of {height} x {width}: take a smaller square.")
    mask = torch.ones(units.shape)
    top, left = (height - side) // 2, (width - side) // 2
    mask[:, top : top + side, left : left + side] = 0
    return Mask(mask)


def _kept(share: float, units: Units, seed: int) -> Mask:
    if share >= 1:
        raise ValueError(f"--operator keep:SHARE takes a share of the pixels below 1, got {share:g}.")
    drawn = torch.rand(units.shape[1:], generator=generator(seed, MASK_STREAM))
    return Mask((drawn < share).float().expand(units.shape))


def _blur(width: float, units: Units) -> Blur:
    reach = min(math.ceil(3 * width), (min(units.shape[1:]) - 1) // 2)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width).square())
    kernel = line[:, None] * line
    return Blur(kernel / kernel.sum(), units.shape)
