"""Sources of batches: the checkerboard, rows of an array, images.

A source draws `(x1, labels)` from a generator, in coordinates that suit a network (about unit scale), and turns samples
back into the data's own units.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..exact import Checkerboard
from ..shapes import Condition, condition_of, label_and_numbers, on_each
from .pixels import HALF_RANGE
from .units import Units


class Source(ABC):
    """A law of data, in the network's coordinates.

    Attributes:
        units: of the data.
        about: what was found in the data and what is done about it, line by line, for `flowmaps train --check`.
        notes: what was left out or guessed, and what should be changed: a sentence each.
    """

    units: Units
    about: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return self.units.shape

    @property
    def dim(self) -> int:
        """Numbers a sample."""
        return self.units.dim

    @property
    def classes(self) -> int | None:
        """Number of classes, or `None`."""
        return self.units.classes

    @abstractmethod
    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """`number` points `(B, *shape)` in the network's coordinates, and their conditions or `None`: labels `(B,)`, or
        of tables also numbers `(B, D)`, or `Conditions` of both; features of latents.

        Args:
            number: B.
            generator: of the random numbers, on the device of the source.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Source:
        """The same source with its tensors on `device`, where it draws from now on."""

    def reference(self, number: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """Points that samples are measured against, `(B, *shape)`, and their conditions: at most `number`; held-out
        rows where there are any.

        Args:
            number: of points.
            generator: of the random numbers, on the device of the source.
        """
        return self.sample(number, generator)

    def conditions(self, number: int) -> Condition:
        """Conditions for `number` samples, on the CPU: classes in turn; `None` for data without conditions."""
        return self.units.labels_in_turn(number)

    def to_data(self, x: Tensor) -> Tensor:
        """From the network's coordinates to the data's units."""
        return self.units.to_data(x)


class Board(Source):
    """The checkerboard, drawn afresh each time, with its exact law at hand as `exact`."""

    def __init__(self) -> None:
        self.exact, self.units = Checkerboard(), Units((2,))

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        return self.exact.sample(number, generator=generator).float(), None

    def to(self, device: torch.device | str) -> Board:
        return self


class Points(Source):
    """Rows of an array, drawn with replacement: points, or latents of images.

    Args:
        data: `(N, *shape)`, finite.
        labels: `(N,)` integers, or `None`.
        shift, scale: the network sees (data - shift) / scale, each `(shape[0],)` or `(1,)`; a scale of 0 is a constant.
        names: of the classes.
    """

    held_out: Tensor | None = None
    """Rows `(M, *shape)` that are not trained on, in the network's coordinates."""
    held_out_cond: Condition = None
    """Their conditions."""
    numbers: Tensor | None = None
    """Numbers `(N, D)` on which the rows are conditioned, in the network's coordinates."""

    def __init__(
        self, data: Tensor, labels: Tensor | None, shift: Tensor, scale: Tensor, names: tuple[str, ...] = ()
    ) -> None:
        classes, shape = _number_of_classes(labels, names), tuple(data.shape[1:])
        absent = _absent(labels, classes)
        self.units = Units(shape, classes, tuple(shift.tolist()), tuple(scale.tolist()), names=names, absent=absent)
        aligned = (-1, *(1,) * (data.ndim - 2))
        divisor = torch.where(scale != 0, scale, 1).reshape(aligned)
        self.labels, self.data = labels, ((data - shift.reshape(aligned)) / divisor).float()

    @classmethod
    def of(
        cls,
        data: Tensor,
        cond: Condition,
        units: Units,
        held_out: Tensor | None = None,
        held_out_cond: Condition = None,
    ) -> Points:
        """Points that are in the network's coordinates already.

        Args:
            data: `(N, *shape)`, float32.
            cond: labels `(N,)`, integers from 0; numbers `(N, D)`; both in `Conditions`; or `None`.
            units: of the data.
            held_out: rows to measure against, `(M, *shape)`; none of them where M is 0.
            held_out_cond: their conditions.
        """
        points = cls.__new__(cls)
        points.data, (points.labels, points.numbers) = data, label_and_numbers(cond)
        points.units = dataclasses.replace(units, absent=_absent(points.labels, units.classes))
        if held_out is not None and len(held_out):
            points.held_out, points.held_out_cond = held_out, held_out_cond
        return points

    @property
    def cond(self) -> Condition:
        """The conditions of the rows: labels, numbers, both, or `None`."""
        return condition_of(self.labels, self.numbers)

    def reference(self, number: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """The held-out rows, at most `number`, and their conditions; draws of all rows where none are held out."""
        if self.held_out is None:
            return super().reference(number, generator)
        return self.held_out[:number], on_each(self.held_out_cond, lambda value: value[:number])

    def conditions(self, number: int) -> Condition:
        """Of data with numbers as conditions, those of held-out rows in turn, or of rows spread over all."""
        if self.numbers is None:
            return super().conditions(number)
        cond, rows = (self.cond, len(self.data)) if self.held_out is None else (self.held_out_cond, len(self.held_out))
        turn = torch.arange(number)
        turn = turn % rows if number > rows or self.held_out is not None else turn * rows // number
        return on_each(cond, lambda value: value.cpu()[turn])

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        rows = torch.randint(len(self.data), (number,), generator=generator, device=self.data.device)
        return self.data[rows], on_each(self.cond, lambda value: value[rows])

    def to(self, device: torch.device | str) -> Points:
        moved = copy.copy(self)
        for name in ("data", "labels", "numbers", "held_out", "held_out_cond"):
            setattr(moved, name, on_each(getattr(self, name), lambda value: value.to(device)))
        return moved


class Images(Source):
    """Images, kept as pixels on their device and drawn with replacement; the network sees pixel / 127.5 - 1.

    Args:
        pixels: `(N, C, H, W)` uint8, C = 1 (grey) or 3 (red, green, blue).
        labels: `(N,)` integers from 0, or `None`.
        names: of the classes.
        classes: how many there are, if the labels and names do not tell.
        flips: mirror each image left to right with probability 1/2 as it is drawn.

    Raises:
        ValueError: pixels of another type or shape, or labels that do not go with them.
    """

    held_out: Tensor | None = None
    """Images `(M, C, H, W)` that are not trained on, uint8; they stay on the CPU."""
    held_out_labels: Tensor | None = None
    """Their labels."""
    held_out_of: str = ""
    """Where they come from, such as "the data's own test split"; empty for a share of the images."""

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor | None = None,
        names: tuple[str, ...] = (),
        *,
        classes: int = 0,
        flips: bool = False,
    ) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
            raise ValueError(
                f"images are uint8 of shape (number, 1 or 3, height, width), got {pixels.dtype} of shape "
                f"{tuple(pixels.shape)}."
            )
        if labels is not None and (labels.shape != pixels.shape[:1] or labels.dtype != torch.int64):
            raise ValueError(
                f"labels of {len(pixels)} images are int64 of shape ({len(pixels)},), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )
        self.pixels, self.labels, self.flips = pixels, labels, flips
        number, names = _number_of_classes(labels, names, classes), () if labels is None else names
        shape, absent = tuple(pixels.shape[1:]), _absent(labels, number)
        self.units = Units(shape, number, (HALF_RANGE,), (HALF_RANGE,), True, names, absent=absent, type="uint8")

    def __len__(self) -> int:
        return len(self.pixels)

    def pictures(self, rows: Tensor) -> Tensor:
        """Some of them as pixels `(B, C, H, W)`, uint8."""
        return self.pixels[rows]

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        device = self.pixels.device
        rows = torch.randint(len(self.pixels), (number,), generator=generator, device=device)
        drawn = self.pixels[rows]
        if self.flips:
            mirrored = torch.rand(number, generator=generator, device=device) < 0.5
            drawn = torch.where(mirrored[:, None, None, None], drawn.flip(3), drawn)
        return drawn.float() / HALF_RANGE - 1, None if self.labels is None else self.labels[rows]

    @property
    def real(self) -> Tensor:
        """The images that samples are measured against, as pixels: those held out, if any, else all."""
        return self.pixels if self.held_out is None else self.held_out

    def reference(self, number: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """The held-out images, at most `number`, and their labels; draws of all images where none are held out."""
        if self.held_out is None:
            return super().reference(number, generator)
        labels = self.held_out_labels
        return self.held_out[:number].float() / HALF_RANGE - 1, None if labels is None else labels[:number]

    def to(self, device: torch.device | str) -> Images:
        moved = copy.copy(self)
        moved.pixels, moved.labels = self.pixels.to(device), None if self.labels is None else self.labels.to(device)
        return moved


def _number_of_classes(labels: Tensor | None, names: tuple[str, ...], classes: int = 0) -> int | None:
    """The number of classes: as many as there are names, as is said, or as the labels need."""
    if labels is None:
        return None
    number = len(names) or classes or int(labels.max()) + 1
    if not 0 <= int(labels.min()) <= int(labels.max()) < number:
        raise ValueError(f"labels of {number} classes are 0 to {number - 1}, got others.")
    return number


def _absent(labels: Tensor | None, classes: int | None) -> tuple[int, ...]:
    """The classes that no row has."""
    if labels is None or classes is None:
        return ()
    counts = torch.bincount(labels, minlength=classes)
    return tuple((counts == 0).nonzero()[:, 0].tolist())
