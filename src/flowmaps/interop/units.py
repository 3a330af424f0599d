"""Samples in the units of their data, written in torch operations that a file for deployment can hold.

    images       x -> round(scale x + shift) in 0..255, uint8, (B, H, W, C)
    a table      x -> one number a column, float64: whole numbers rounded, a category as its place among the values
    other data   x -> scale x + shift
    a condition  the other way round, of the columns on which a map is conditioned

They are the values of `data.Units.to_file` (of a table `to_data`), which computes the columns in numpy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data import Units
from ..data.columns import MAX_EXPONENT, Column, ConditionColumn, scores
from ..shapes import Condition, GuidedCondition, condition_of, label_and_numbers


class InUnits(nn.Module):
    """From the network's coordinates `(B, *shape)` to the data's units.

    Args:
        units: of the data.
    """

    scale: Tensor
    shift: Tensor
    whitening: Tensor | None

    def __init__(self, units: Units) -> None:
        super().__init__()
        self.units = units
        table = units.table
        self.columns = nn.ModuleList() if table is None else nn.ModuleList(map(_InUnits, table.columns))
        kind = torch.float32 if units.pixels else torch.float64
        shape = (-1, *(1,) * (len(units.shape) - 1))
        self.register_buffer("scale", torch.tensor(units.scale, dtype=kind).reshape(shape))
        self.register_buffer("shift", torch.tensor(units.shift, dtype=kind).reshape(shape))
        whitening = () if table is None else table.whitening
        self.register_buffer("whitening", torch.tensor(whitening, dtype=kind) if whitening else None)
        self.conditions = nn.ModuleList(map(_AsSeen, units.conditions))
        if quantiles := [own.name for own in units.conditions if own.column.transform == "quantile"]:
            raise ValueError(
                f"the map knows its condition {quantiles[0]} by quantiles, which an exported file cannot compute: "
                "export it with --raw (in Python, units=None), and give it units.to_condition(values)."
            )

    def condition(self, cond: Condition) -> Condition:
        """A condition whose numbers are in the units of the table, float64, as the network takes it."""
        label, numbers = label_and_numbers(cond)
        if not self.units.conditions or numbers is None:
            return cond
        columns = zip(self.conditions, numbers.double().unbind(1), strict=True)
        changed = condition_of(label, torch.stack([column(x) for column, x in columns], 1).float())  # type: ignore[operator]
        return GuidedCondition(changed, cond.weight) if isinstance(cond, GuidedCondition) else changed

    def condition_in_units(self, cond: Condition) -> Condition:
        """An example of a condition in the units of the table, from one in those of the network."""
        label, numbers = label_and_numbers(cond)
        if not self.units.conditions or numbers is None:
            return cond
        columns = zip(self.units.conditions, numbers.double().unbind(1), strict=True)
        middle = [0.5 * (own.low + own.high) + 0.25 * (own.high - own.low) * x for own, x in columns]
        changed = condition_of(label, torch.stack(middle, 1))
        return GuidedCondition(changed, cond.weight) if isinstance(cond, GuidedCondition) else changed

    def forward(self, x: Tensor) -> Tensor:
        """Samples in the units of the data, from those of the network."""
        if self.units.pixels:
            y = x.float() * self.scale + self.shift if self.units.scale else x
            return y.round().clamp(0, 255).to(torch.uint8).movedim(1, 3)
        if not self.units.scale:
            return x
        y = x.double() if self.whitening is None else x.double() @ self.whitening
        y = y * self.scale + self.shift
        if not self.columns:
            return y.to(x.dtype)
        parts = y.split([column.width for column in self.columns], dim=1)  # type: ignore[misc]
        return torch.stack([column(part) for column, part in zip(self.columns, parts, strict=True)], dim=1)

    def about(self) -> str:
        """What the samples are, in words, with the shape of a batch."""
        if self.units.pixels:
            return "pixels 0..255, uint8, (batch, height, width, channels)"
        if self.units.table is not None:
            return "rows in the units of the table, float64, (batch, columns); a category is a place among its values"
        return "in the units of the data, (batch, " + ", ".join(map(str, self.units.shape)) + ")"


class _AsSeen(nn.Module):
    """A column of conditions: values `(B,)` in its units as the network sees them, as `ConditionColumn.encode`.

    Its numbers are buffers, as a file for ONNX has Python's numbers in float32.
    """

    numbers: Tensor

    def __init__(self, own: ConditionColumn) -> None:
        super().__init__()
        self.transform = own.column.transform
        knots = own.column.knots if self.transform == "asinh" else ()
        self.register_buffer("numbers", torch.tensor((own.shift, own.scale, *knots), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        shift, scale, *knots = self.numbers.unbind()
        if self.transform == "log":
            # not NaN, which is no condition: of -inf the network makes NaN, which no one takes for a sample
            x = torch.where(x <= 0, -torch.inf, x.log())
        elif self.transform == "asinh":
            y = (x - knots[0]) / knots[1]  # asinh written out: onnxruntime has it in float32 alone
            x = y.sign() * (y.abs() + (y.square() + 1).sqrt()).log()
        return (x - shift) / scale


class _InUnits(nn.Module):
    """A column: `(B, width)` before shift and scale to values `(B,)`, as `Column.decode`."""

    knots: Tensor
    scores: Tensor
    limits: Tensor | None

    def __init__(self, column: Column) -> None:
        super().__init__()
        self.column, self.width = column, column.width
        if column.knots:
            self.register_buffer("knots", torch.tensor(column.knots, dtype=torch.float64))
        if column.transform == "quantile":
            self.register_buffer("scores", torch.from_numpy(scores(len(column.knots))))
        limits = torch.tensor(column.limits, dtype=torch.float64) if column.limits else None
        self.register_buffer("limits", limits)

    def forward(self, y: Tensor) -> Tensor:
        column = self.column
        if column.transform == "categories":
            return y.nan_to_num(nan=-torch.inf).argmax(1).double()
        x = y[:, 0]
        if column.transform == "log":
            x = x.clamp(-MAX_EXPONENT, MAX_EXPONENT).exp()
        elif column.transform == "asinh":
            bounded = x.clamp(-MAX_EXPONENT, MAX_EXPONENT)
            # not sinh, which onnxruntime has in float32 alone
            x = 0.5 * (bounded.exp() - (-bounded).exp()) * self.knots[1] + self.knots[0]
        elif column.transform == "quantile":
            x = self._between_knots(x)
        return x if self.limits is None else x.round().clamp(self.limits[0], self.limits[1])

    def _between_knots(self, x: Tensor) -> Tensor:
        """Linear between the knots, constant beyond them."""
        if len(self.knots) == 1:
            return torch.zeros_like(x) + self.knots
        place = (x[:, None] >= self.scores).sum(1).clamp(1, self.knots.shape[0] - 1)
        low, high = self.scores[place - 1], self.scores[place]
        share = ((x - low) / (high - low)).clamp(0, 1)
        return self.knots[place - 1] + share * (self.knots[place] - self.knots[place - 1])


def described(units: Units) -> dict[str, Any]:
    """What whoever reads the samples must know of the data: the columns of a table, and the classes by number."""
    entries: dict[str, Any] = {}
    if units.table is not None:
        entries["columns"] = [
            {"name": column.name, "type": column.type, **({"values": column.values} if column.values else {})}
            for column in units.table.columns
        ]
    if units.conditions:
        entries["condition"] = [{"name": own.name, "from": own.low, "to": own.high} for own in units.conditions]
    if units.classes is not None:
        entries["classes"] = units.names or [str(number) for number in range(units.classes)]
    return entries
