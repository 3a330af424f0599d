"""`Units`: shape, classes and scale of data, by which a map's samples are read and written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..system.names import choose
from .columns import ConditionColumn, Table
from .labels import TYPES, as_in_file
from .options import listed
from .raw import missing
from .vae import codec_at


@dataclass(frozen=True)
class Units:
    """Shape, classes and scale of data, by which a map's samples are read: the network sees (data - shift) / scale.

    Args:
        shape: of a sample: `(dim,)` for points, `(C, H, W)` for images and latents.
        classes: number of classes, or `None`.
        shift, scale: none for data that the network sees as they are, one number each, or `shape[0]` numbers: one a
            dimension of points, one a channel of images. A scale of 0 is a constant: the shift itself comes back.
        pixels: whether samples are images of 0..255.
        names: of the classes, in the order of their numbers; none where they have none.
        label_type: numpy's name of the type of the labels in the file, `str` for text; empty where they are 0..K-1.
        absent: classes that no row has, which are not sampled.
        type: numpy's name of the type of the numbers in the file.
        table: the columns of a table; `None` for other data.
        vae: folder of the autoencoder that makes pictures of latents; empty for other data.
        features: names of the tensors that are the condition in the place of classes.

    Raises:
        ValueError: numbers that do not go with the shape.
    """

    shape: tuple[int, ...]
    classes: int | None = None
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    pixels: bool = False
    names: tuple[str, ...] = ()
    label_type: str = ""
    absent: tuple[int, ...] = ()
    type: str = "float32"
    table: Table | None = None
    vae: str = ""
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.shape or any(type(n) is not int or n < 1 for n in self.shape):
            raise ValueError(
                f"a sample's shape must be positive integers such as (2,) or (3, 32, 32), got {self.shape}."
            )
        if any(type(number) not in (int, float) for number in (*self.shift, *self.scale)):
            raise ValueError("shift and scale are numbers.")
        if len(self.shift) != len(self.scale) or len(self.shift) not in (0, 1, self.shape[0]):
            raise ValueError(
                f"shift and scale must be 0, 1 or {self.shape[0]} numbers each for samples of shape {self.shape}, "
                f"got {len(self.shift)} and {len(self.scale)}."
            )
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"{len(self.names)} names were given to {self.classes} classes: give each class its name.")
        if self.pixels and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise ValueError(f"images have the shape (1 or 3, height, width), got {self.shape}.")
        if self.type not in TYPES or self.label_type not in ("", *TYPES):
            raise ValueError(f"there is no type of numbers {self.type!r:.40} or of labels {self.label_type!r:.40}.")
        if any(type(name) is not str for name in (*self.names, *self.features, self.vae)):
            raise ValueError("names of classes and features, and the autoencoder's folder, are text.")
        as_in_file(np.zeros(1, np.int64), self.names, self.label_type)  # which says what is not of its type
        if self.absent and not {*self.absent} < {*range(self.classes or 0)}:
            raise ValueError(f"of {self.classes} classes some have rows, got {len(self.absent)} without.")
        if self.table is not None and (self.table.width,) != self.shape:
            raise ValueError(f"a table of {self.table.width} numbers a row has not the shape {self.shape}.")

    @property
    def dim(self) -> int:
        """Numbers a sample."""
        return math.prod(self.shape)

    @property
    def pictures(self) -> bool:
        """Whether samples can be shown as pictures: images, and latents with their autoencoder."""
        return self.pixels or bool(self.vae)

    @property
    def in_plane(self) -> bool:
        """Whether samples are points of the plane, and stay so in the data's units."""
        return self.shape == (2,) and (self.table is None or len(self.table.columns) == 2)

    def to_data(self, x: Tensor) -> Tensor:
        """From the network's coordinates `(..., *shape)` to the data's units, computed in float64.

        Images are 0..255, not yet rounded. Of a table it is `(..., columns)` in float64, whole numbers rounded and
        categories as their places; other data keep the type of `x`.
        """
        if not self.scale:
            return x
        if self.pixels:
            return self._scaled(x)
        values = self._scaled(x.double() if self.table is None else self.standardised(x))
        if self.table is None:
            return values.to(x.dtype)
        if self.table.plain:
            return values
        flat = self.table.decode(values.reshape(-1, self.dim).cpu().numpy())
        return torch.from_numpy(flat).reshape(*x.shape[:-1], -1).to(x.device)

    def standardised(self, x: Tensor) -> Tensor:
        """Coordinates in which a column of small units counts like one of large ones, `(..., *shape)` in float64."""
        y = x.double()
        if self.table is not None and self.table.whitening:
            y = y @ y.new_tensor(self.table.whitening)
        return y

    def to_measure(self, x: Tensor) -> Tensor:
        """Coordinates in which distances between samples are measured.

        The columns of a table have units of their own: each is standardised, and a constant one does not count. Other
        data are measured in their own units.
        """
        if self.table is None:
            return self.to_data(x)
        return self.standardised(x) * self._broadcast(self.scale, x.double()).ne(0)

    def to_pixels(self, x: Tensor) -> Tensor:
        """From the network's coordinates `(B, C, H, W)` to pixels, uint8, rounded and clamped; latents are decoded.

        Raises:
            ValueError: the samples are no images.
        """
        if self.vae:
            return codec_at(self.vae).pixels(self.to_data(x.float()))
        if not self.pixels:
            raise ValueError(f"samples of shape {self.shape} are no images: there are no pixels to show, use to_data.")
        return self.to_data(x.float()).round().clamp(0, 255).to(torch.uint8)

    def to_file(self, x: Tensor) -> np.ndarray:
        """From the network's coordinates `(B, *shape)` to one array of the file's type; of images `(B, H, W, C)`.

        Raises:
            ValueError: a table has columns of text, which no array of numbers holds.
        """
        if self.pixels:
            return self.to_pixels(x).movedim(1, 3).numpy()
        if self.table is None:
            return self.to_data(x.double()).numpy().astype(self.type)
        columns = self.to_columns(x)
        if text := [name for name, values in columns.items() if values.dtype.kind == "O"]:
            raise ValueError(
                f"column {text[0]!r} is text, which an array of numbers does not hold: take --out FILE.csv, .tsv, "
                ".parquet, .feather or .xlsx."
            )
        return np.stack(list(columns.values()), axis=1)

    def to_columns(self, x: Tensor) -> dict[str, np.ndarray]:
        """From the network's coordinates `(B, dim)` of points to arrays `(B,)` of the file's types, by column.

        Raises:
            ValueError: the samples are images or latents.
        """
        if len(self.shape) != 1:
            raise ValueError(f"samples of shape {self.shape} are no rows of a table: take --out FILE.npz.")
        if self.table is None:
            return {f"x{k + 1}": column for k, column in enumerate(self.to_file(x).T)}
        return self.table.written(self.to_data(x).numpy())

    def labels_in_file(self, labels: Tensor) -> np.ndarray:
        """Classes `(B,)` as the file has them."""
        return as_in_file(labels.numpy(), self.names, self.label_type)

    def labels_in_turn(self, number: int) -> Tensor | None:
        """`number` classes in turn, of those that have rows, `(number,)`; `None` for data without classes."""
        if self.classes is None:
            return None
        present = torch.tensor([k for k in range(self.classes) if k not in {*self.absent}])
        return present[torch.arange(number) % len(present)]

    @property
    def conditions(self) -> tuple[ConditionColumn, ...]:
        """The columns of numbers on which a map is conditioned; none for most data."""
        return () if self.table is None else self.table.conditions

    @property
    def condition_dim(self) -> int | None:
        """How many numbers the condition of a row has; `None` for none."""
        return len(self.conditions) or None

    def to_condition(self, values: Mapping[str, Any]) -> Tensor:
        """The numbers of a condition, in the units of the file, as the network sees them: `(B, condition_dim)`.

        Args:
            values: by the names of the columns: a number, or an array `(B,)`; one number stands for all rows.

        Raises:
            ValueError: a column is missing or unknown, or values are no finite numbers, or of another length.
        """
        names = [own.name for own in self.conditions]
        for name in values:
            choose("column to condition on", name, dict.fromkeys(names))
        if lacking := [name for name in names if name not in values]:
            raise ValueError(f"a condition has a value for each of {listed(names)}: {lacking[0]!r} has none.")
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(values[name])) for name in names))
        found = []
        for own, array in zip(self.conditions, arrays, strict=True):
            if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
                raise ValueError(f"the values of {own.name} must be finite numbers, got {array[:3].tolist()}.")
            if (beyond := missing(array.astype(np.float64))).any():
                value = float(array[beyond][0])
                raise ValueError(f"a value of {own.name} is {value:g}, which single precision does not hold.")
            found.append(own.encode(array))
            if missing(found[-1]).any():
                raise ValueError(
                    f"a value of {own.name} is too far from {own.ends}, where all rows of the training are: give a "
                    "value that is closer."
                )
        return torch.from_numpy(np.stack(found, axis=1)).float()

    def _scaled(self, x: Tensor) -> Tensor:
        return x * self._broadcast(self.scale, x) + self._broadcast(self.shift, x)

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
            tuples = ("shape", "shift", "scale", "names", "absent", "features")
            fields |= {name: tuple(fields[name]) for name in tuples if name in fields}
            if fields.get("table") is not None:
                fields["table"] = Table.from_dict(fields["table"])
            return cls(**fields)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"the run's config.json does not say what its data are like ({error!r:.300}).") from None
