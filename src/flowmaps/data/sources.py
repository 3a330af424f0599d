"""Sources of batches: the checkerboard, rows of an array, images.

A source draws `(x1, labels)` from a generator, in coordinates that suit a network (about unit scale), and turns samples
back into the data's own units.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..exact import Checkerboard

HALF_RANGE = 127.5  # pixels 0..255 are to the network -1..1


@dataclass(frozen=True)
class Units:
    """Shape, classes and scale of data, by which a map's samples are read: the network sees (data - shift) / scale.

    Args:
        shape: of a sample: `(dim,)` for points, `(C, H, W)` for images and latents.
        classes: number of classes, or `None`.
        shift, scale: none for data that the network sees as they are, one number each, or `shape[0]` numbers: one a
            dimension of points, one a channel of images.
        pixels: whether samples are images of 0..255.
        names: of the classes, in the order of their labels; none where they have none.

    Raises:
        ValueError: numbers that do not go with the shape.
    """

    shape: tuple[int, ...]
    classes: int | None = None
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    pixels: bool = False
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.shape or any(type(n) is not int or n < 1 for n in self.shape):
            raise ValueError(
                f"a sample's shape must be positive integers such as (2,) or (3, 32, 32), got {self.shape}."
            )
        if len(self.shift) != len(self.scale) or len(self.shift) not in (0, 1, self.shape[0]):
            raise ValueError(
                f"shift and scale must be 0, 1 or {self.shape[0]} numbers each for samples of shape {self.shape}, "
                f"got {len(self.shift)} and {len(self.scale)}."
            )
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"{len(self.names)} names were given to {self.classes} classes: give each class its name.")
        if self.pixels and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise ValueError(f"images have the shape (1 or 3, height, width), got {self.shape}.")

    @property
    def dim(self) -> int:
        """Numbers a sample."""
        return math.prod(self.shape)

    def to_data(self, x: Tensor) -> Tensor:
        """From the network's coordinates to the data's units, `(..., *shape)`; of images 0..255, not yet rounded."""
        return x * self._broadcast(self.scale, x) + self._broadcast(self.shift, x) if self.scale else x

    def to_pixels(self, x: Tensor) -> Tensor:
        """From the network's coordinates `(B, C, H, W)` to pixels, uint8, rounded and clamped to 0..255.

        Raises:
            ValueError: the samples are no images.
        """
        if not self.pixels:
            raise ValueError(f"samples of shape {self.shape} are no images: there are no pixels to show, use to_data.")
        return self.to_data(x.float()).round().clamp(0, 255).to(torch.uint8)

    def _broadcast(self, numbers: tuple[float, ...], x: Tensor) -> Tensor:
        return x.new_tensor(numbers).reshape(-1, *(1,) * (len(self.shape) - 1))

    @classmethod
    def from_dict(cls, fields: Any) -> Units:
        """From the JSON of a card; `dim` is understood for the shape of points, as it was written once.

        Raises:
            ValueError: it is none.
        """
        try:
            fields = dict(fields)
            if "dim" in fields:
                fields["shape"] = (fields.pop("dim"),)
            fields |= {name: tuple(fields[name]) for name in ("shape", "shift", "scale", "names") if name in fields}
            return cls(**fields)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"the run's config.json does not say what its data are like ({error!r:.300}).") from None


class Source(ABC):
    """A law of data, in the network's coordinates."""

    units: Units

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
    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """`number` points `(B, *shape)` in the network's coordinates, and their labels `(B,)` or `None`.

        Args:
            number: B.
            generator: of the random numbers, on the device of the source.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Source:
        """The same source with its tensors on `device`, where it draws from now on."""

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
        shift, scale: the network sees (data - shift) / scale, each `(shape[0],)` or `(1,)`.
        names: of the classes.
    """

    def __init__(
        self, data: Tensor, labels: Tensor | None, shift: Tensor, scale: Tensor, names: tuple[str, ...] = ()
    ) -> None:
        classes, shape = _number_of_classes(labels, names), tuple(data.shape[1:])
        self.units = Units(shape, classes, tuple(shift.tolist()), tuple(scale.tolist()), names=names)
        aligned = (-1, *(1,) * (data.ndim - 2))
        self.labels, self.data = labels, ((data - shift.reshape(aligned)) / scale.reshape(aligned)).float()

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        rows = torch.randint(len(self.data), (number,), generator=generator, device=self.data.device)
        return self.data[rows], None if self.labels is None else self.labels[rows]

    def to(self, device: torch.device | str) -> Points:
        moved = copy.copy(self)
        moved.data, moved.labels = self.data.to(device), None if self.labels is None else self.labels.to(device)
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
        self.units = Units(tuple(pixels.shape[1:]), number, (HALF_RANGE,), (HALF_RANGE,), True, names)

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        device = self.pixels.device
        rows = torch.randint(len(self.pixels), (number,), generator=generator, device=device)
        drawn = self.pixels[rows]
        if self.flips:
            mirrored = torch.rand(number, generator=generator, device=device) < 0.5
            drawn = torch.where(mirrored[:, None, None, None], drawn.flip(3), drawn)
        return drawn.float() / HALF_RANGE - 1, None if self.labels is None else self.labels[rows]

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
