"""Fourier features of times, and the embedding of times, label and guidance weight that modulates a network's layers.

Features have low frequencies, because derivatives in time are part of the loss, and are computed in float32 or better,
also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..shapes import Batch, Condition, GuidedCondition, Time, label_and_numbers, label_of
from .limits import MAX_FREQUENCIES, MAX_SIZE, check_bool, check_integer

if TYPE_CHECKING:
    from .mlp import MLP


class Fourier(nn.Module):
    """t -> (t, cos(pi k t), sin(pi k t)) for k = 1..number, computed in float32 or better, returned in the type of t.

    Low integer frequencies keep d/dt of the features below pi * number.

    Args:
        number: frequencies, at least 0.
    """

    frequencies: Tensor

    def __init__(self, number: int = 4) -> None:
        super().__init__()
        check_integer("Fourier", 0, MAX_FREQUENCIES, number=number)
        self.width = 1 + 2 * number
        # integers, which .to(dtype) of the module does not round
        self.register_buffer("frequencies", torch.arange(1, number + 1), persistent=False)

    def forward(self, t: Time) -> Tensor:
        """`(B,) -> (B, 1 + 2 number)`."""
        r = t[:, None] if t.dtype in (torch.float32, torch.float64) else t[:, None].float()
        phase = r * (math.pi * self.frequencies.to(r.dtype))
        return torch.cat([r, torch.cos(phase), torch.sin(phase)], 1).to(t.dtype)

    def relative_to_zero(self, t: Time) -> Tensor:
        """The features minus those of t = 0, `(B, 1 + 2 number)`, which are zero at t = 0."""
        return self(t) - self(torch.zeros_like(t))


class NumbersEmbedding(nn.Module):
    """The embedding W (c, 0) of the numbers c `(B, D)` of a condition, and W (0, 1) of a row of NaN: no condition.

    Args:
        numbers: D, at least 1. They should be of about unit scale.
        width: of the embedding.
    """

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.linear = nn.Linear(numbers + 1, width, bias=False)

    def forward(self, c: Tensor | None, x: Tensor) -> Tensor:
        """`(B, D) -> (B, width)`; of x only the number of rows is used. Without numbers, no row has a condition.

        Raises:
            ValueError: numbers of another shape or type, or (on the CPU) infinite, or NaN in a part of a row.
        """
        kind = self.linear.weight.dtype
        if c is None:
            c = torch.full((x.shape[0], self.numbers), math.nan, dtype=kind, device=x.device)
        self.check(c, x)
        missing = c.isnan().all(1, keepdim=True)  # a row with some NaN stays NaN
        return self.linear(torch.cat([c.masked_fill(missing, 0), missing], 1).to(kind))

    def check(self, c: Any, x: Tensor) -> None:
        """Refuse what is no condition of `x`, as `forward` does."""
        wanted = f"cond must hold {self.numbers} numbers a row, of shape ({x.shape[0]}, {self.numbers})"
        if not isinstance(c, Tensor):
            raise ValueError(f"{wanted}, got a {type(c).__name__}: pass a tensor.")
        if c.shape != (x.shape[0], self.numbers) or not c.is_floating_point():
            raise ValueError(f"{wanted}, got {c.dtype} {tuple(c.shape)}.")
        if torch.compiler.is_compiling() or c.device.type != "cpu":
            return
        missing = c.isnan()
        if bool(c.isinf().any()) or not bool((missing.any(1) == missing.all(1)).all()):
            raise ValueError(f"{wanted}, all finite, or all NaN for no condition; got infinite ones, or some NaN.")


def embedded_condition(net: MLP | Embedding, cond: Condition, x: Tensor, name: str) -> list[Tensor]:
    """The embeddings `(B, width)` of the labels and of the numbers of a condition, of those that a network takes.

    Args:
        net: with `label`, `classes` and `numbers`.
        cond: the condition.
        x: as many rows.
        name: of the network in an error.

    Raises:
        ValueError: labels or numbers that the network does not take, or that are out of range.
    """
    label, numbers = label_and_numbers(cond) if net.numbers is not None else (label_of(cond), None)
    found = []
    if net.label is not None:
        assert net.classes is not None
        found.append(net.label(label_rows(label, net.classes, x)))
    elif label is not None and net.numbers is not None:
        net.numbers.check(label, x)  # which says what numbers are
        raise ValueError(f"this {name} has no classes, only numbers, got labels: build it with classes=..., too.")
    elif label is not None:
        what = "condition_dim=..." if isinstance(label, Tensor) and label.is_floating_point() else "classes=..."
        raise ValueError(f"this {name} has no classes, got cond: build it with {what}, or leave cond out.")
    return found if net.numbers is None else [*found, net.numbers(numbers, x)]


class Embedding(nn.Module):
    """The embedding of (s, t, cond), `(B, width)`, that modulates each layer of an image network.

        silu(W_2 silu(W_1 F(s) + V (F(t - s) - F(0)) / sqrt(n) + U w + E_label + C c))

    F are the n features of `Fourier`, w features of the guidance weight. V starts at zero, and its features are zero at
    t = s: training a velocity, at t = s alone, leaves it at zero, so that the network has u_{s,t} = v_s for every t. U
    likewise, at guidance weight 1. The division by sqrt(n) gives V the learning pace of W_1. C c is the embedding of
    the numbers of the condition.

    Args:
        width: of the embedding.
        frequencies: of the features of s and t - s.
        classes: number of classes; the label `classes` means no class.
        condition_dim: how many numbers `cond` has, if any; a row of NaN means none.
        guidance: whether `cond` may be a `GuidedCondition`, with a guidance weight.
        linear: class of the layers W_1 and W_2, called as `linear(inner, outer)`.

    Raises:
        ValueError: `classes` below 1.
    """

    def __init__(
        self,
        width: int,
        *,
        frequencies: int = 8,
        classes: int | None = None,
        condition_dim: int | None = None,
        guidance: bool = False,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        if classes is not None and classes < 1:
            raise ValueError(f"a network needs classes >= 1, or None for no classes, got {classes}.")
        check_integer("a network", 0, MAX_SIZE, classes=classes or 0)
        check_bool("a network", guidance=guidance)
        self.classes, self.guidance = classes, guidance
        self.time = Fourier(frequencies)
        self.first = linear(self.time.width, width)
        self.second_time = nn.Linear(self.time.width, width, bias=False)
        self.weight = nn.Linear(2, width, bias=False) if guidance else None
        self.label = None if classes is None else nn.Embedding(classes + 1, width)  # the last row: no class
        self.last = linear(width, width)
        self.numbers = numbers_embedding("a network", condition_dim, width)
        self.act = nn.SiLU()
        self.zero_second_time()
        if self.weight is not None:
            nn.init.zeros_(self.weight.weight)

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Tensor:
        """`(B, ...), (B,), (B,), cond -> (B, width)`; of x only the number of rows is used.

        Raises:
            ValueError: labels or a guidance weight that the network does not take, or labels out of range.
        """
        with torch.autocast(s.device.type, enabled=False):
            kind = self.second_time.weight.dtype  # of the weights: features are rounded to it, times are not
            s, t = (value.to(torch.promote_types(value.dtype, kind)) for value in (s, t))
            h = (
                self.first(self.time(s).to(kind))
                + self.second_time(self.time.relative_to_zero(t - s).to(kind)) * self.time.width**-0.5
            )
            if self.weight is not None:
                h = h + self.weight(weight_features(cond, s).to(kind))
            elif isinstance(cond, GuidedCondition):
                raise ValueError("this network takes no guidance weight, got one: build it with guidance=True.")
            for embedded in embedded_condition(self, cond, x, "network"):
                h = h + embedded
            return self.act(self.last(self.act(h)))

    @torch.no_grad()
    def zero_second_time(self) -> None:
        """Put V to zero: then the embedding is that of t = s for every t."""
        nn.init.zeros_(self.second_time.weight)


def numbers_embedding(network: str, condition_dim: int | None, width: int) -> NumbersEmbedding | None:
    """The layer of the numbers of a condition; `None` for a network that takes none.

    Raises:
        ValueError: `condition_dim` is no number from 1 on.
    """
    if condition_dim is None:
        return None
    check_integer(network, 1, MAX_SIZE, condition_dim=condition_dim)
    return NumbersEmbedding(condition_dim, width)


def weight_features(cond: Condition, s: Tensor) -> Tensor:
    """Features `(B, 2)` of the guidance weight, zero at weight 1 and for a condition without a weight."""
    weight = cond.weight.to(s.dtype) if isinstance(cond, GuidedCondition) else torch.ones_like(s)
    return torch.stack([1 - 1 / weight, weight.log()], 1)


def label_rows(labels: Tensor | None, classes: int, x: Tensor) -> Tensor:
    """The rows `(B,)` of an embedding of `classes` + 1 labels, of which the last means no class, as `None` does.

    Raises:
        ValueError: labels of another shape or type, or (on the CPU) out of range.
    """
    if labels is None:
        return torch.full((x.shape[0],), classes, device=x.device)
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"cond must hold integer labels of shape ({x.shape[0]},), got a {type(labels).__name__}: pass a tensor, "
            f"torch.full(({x.shape[0]},), label) for one label."
        )
    if labels.shape != x.shape[:1] or labels.dtype.is_floating_point or labels.dtype is torch.bool:
        raise ValueError(
            f"cond must hold integer labels of shape ({x.shape[0]},), got {labels.dtype} {tuple(labels.shape)}."
        )
    if not torch.compiler.is_compiling() and labels.device.type == "cpu" and len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high > classes:
            raise ValueError(
                f"cond must hold labels from 0 to {classes - 1}, or {classes} for no class, "
                f"got values from {low} to {high}: number the classes from 0."
            )
    return labels
