"""Fourier features of times, and the embedding of times, label and guidance weight that modulates a network's layers.

Features have low frequencies, because derivatives in time are part of the loss, and are computed in float32 or better,
also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..shapes import Batch, Condition, Guide, Time, label_of
from .limits import MAX_FREQUENCIES, MAX_SIZE, check_bool, check_integer


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


class Embedding(nn.Module):
    """The embedding of (s, t, cond), `(B, width)`, that modulates each layer of an image network.

        silu(W_2 silu(W_1 F(s) + V (F(t - s) - F(0)) / sqrt(n) + U w + E_label))

    F are the n features of `Fourier`, w features of the guidance weight. V starts at zero, and its features are zero at
    t = s: training a velocity, at t = s alone, leaves it at zero, so that the network has u_{s,t} = v_s for every t. U
    likewise, at guidance weight 1. The division by sqrt(n) gives V the learning pace of W_1.

    Args:
        width: of the embedding.
        frequencies: of the features of s and t - s.
        classes: number of classes; the label `classes` means no class.
        guidance: whether `cond` may be a `Guide`, with a guidance weight.
        linear: class of the layers W_1 and W_2, called as `linear(inner, outer)`.
    """

    def __init__(
        self,
        width: int,
        *,
        frequencies: int = 8,
        classes: int | None = None,
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
            elif isinstance(cond, Guide):
                raise ValueError("this network takes no guidance weight, got one: build it with guidance=True.")
            if self.label is not None:
                assert self.classes is not None
                h = h + self.label(label_rows(label_of(cond), self.classes, x))
            elif label_of(cond) is not None:
                raise ValueError("this network has no classes, got cond: build it with classes=..., or leave cond out.")
            return self.act(self.last(self.act(h)))

    @torch.no_grad()
    def zero_second_time(self) -> None:
        """Put V to zero: then the embedding is that of t = s for every t."""
        nn.init.zeros_(self.second_time.weight)


def weight_features(cond: Condition, s: Tensor) -> Tensor:
    """Features `(B, 2)` of the guidance weight, zero at weight 1 and for a condition without a weight."""
    weight = cond.weight.to(s.dtype) if isinstance(cond, Guide) else torch.ones_like(s)
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
