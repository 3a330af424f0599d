"""Features of times, labels and guidance weights, and the vector that modulates the layers of a network.

Smooth in time, because derivatives in time are part of the loss; in float32 or better, also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..shapes import Batch, Condition, Guide, Time, label_of
from .bounds import FREQUENCIES, SIZE, flags, whole


class Fourier(nn.Module):
    """t -> (t, cos(pi k t), sin(pi k t)) for k = 1..number, computed in float32 or better, returned in the type of t.

    Low integer frequencies keep d/dt of the features below pi * number.

    Args:
        number: frequencies, at least 0.
    """

    frequencies: Tensor

    def __init__(self, number: int = 4) -> None:
        super().__init__()
        whole("Fourier", 0, FREQUENCIES, number=number)
        self.width = 1 + 2 * number
        # integers: no .to() rounds them
        self.register_buffer("frequencies", torch.arange(1, number + 1), persistent=False)

    def forward(self, t: Time) -> Tensor:
        """`(B,) -> (B, 1 + 2 number)`."""
        r = t[:, None] if t.dtype in (torch.float32, torch.float64) else t[:, None].float()
        phase = r * (math.pi * self.frequencies.to(r.dtype))
        return torch.cat([r, torch.cos(phase), torch.sin(phase)], 1).to(t.dtype)

    def from_zero(self, t: Time) -> Tensor:
        """The features less those of t = 0, `(B, 1 + 2 number)`: a linear layer without bias gives 0 for them there."""
        return self(t) - self(torch.zeros_like(t))


class Embedding(nn.Module):
    """(s, t, cond) -> `(B, width)`: what modulates each layer of an image network.

        silu(W_2 silu(W_1 F(s) + V (F(t - s) - F(0)) / sqrt(n) + U w + E_label)),    F = n features of `Fourier`,

    w those of the guidance weight; V is divided as W_1 is where it starts, so that both learn at one pace.

    V starts at zero and multiplies what is zero at t = s: training at t = s alone, the velocity, leaves it at zero, so
    that the network then is u_{s,t} = v_s for every t. U likewise, at guidance weight 1.

    Args:
        width: of the embedding.
        frequencies: of the features of s and t - s.
        classes: number of classes; one more row stands for no class.
        guidance: whether a guidance weight is taken.
        linear: the kind of the layers W_1 and W_2.
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
        whole("a network", 0, SIZE, classes=classes or 0)
        flags("a network", guidance=guidance)
        self.classes, self.guidance = classes, guidance
        self.time = Fourier(frequencies)
        self.first = linear(self.time.width, width)
        self.second_time = nn.Linear(self.time.width, width, bias=False)
        self.weight = nn.Linear(2, width, bias=False) if guidance else None
        self.label = None if classes is None else nn.Embedding(classes + 1, width)  # the last row: no class
        self.last = linear(width, width)
        self.act = nn.SiLU()
        self.hold_velocity()
        if self.weight is not None:
            nn.init.zeros_(self.weight.weight)

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Tensor:
        """`(B, ...), (B,), (B,), cond -> (B, width)`; x gives the number of rows alone.

        Raises:
            ValueError: labels or a guidance weight that the network does not take, or labels out of range.
        """
        with torch.autocast(s.device.type, enabled=False):
            kind = self.second_time.weight.dtype  # that of the weights: features are rounded to it, the times are not
            s, t = (value.to(torch.promote_types(value.dtype, kind)) for value in (s, t))
            h = (
                self.first(self.time(s).to(kind))
                + self.second_time(self.time.from_zero(t - s).to(kind)) * self.time.width**-0.5
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
    def hold_velocity(self) -> None:
        """Make the embedding that of t = s for every t."""
        nn.init.zeros_(self.second_time.weight)


def weight_features(cond: Condition, s: Tensor) -> Tensor:
    """Features `(B, 2)` of the guidance weight that vanish where it is 1, as it is where `cond` has none."""
    weight = cond.weight.to(s.dtype) if isinstance(cond, Guide) else torch.ones_like(s)
    return torch.stack([1 - 1 / weight, weight.log()], 1)


def label_rows(labels: Tensor | None, classes: int, x: Tensor) -> Tensor:
    """Labels `(B,)` as rows of an embedding of `classes` + 1, the last for no class, which `None` gives to all.

    Raises:
        ValueError: labels of another shape or type, or (on the CPU) out of range.
    """
    if labels is None:
        return torch.full((x.shape[0],), classes, device=x.device)
    if labels.shape != x.shape[:1] or labels.dtype.is_floating_point:
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
