"""Features of time: smooth, because their derivatives in time are part of the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..shapes import Time


class Fourier(nn.Module):
    """t -> (t, cos(pi k t), sin(pi k t)) for k = 1..number, in float32 or better whatever the autocast.

    Low integer frequencies keep d/dt of the features below pi * number.

    Args:
        number: frequencies, at least 0.
    """

    frequencies: Tensor

    def __init__(self, number: int = 4) -> None:
        super().__init__()
        if number < 0:
            raise ValueError(f"Fourier needs number >= 0, got {number}.")
        self.width = 1 + 2 * number
        self.register_buffer(
            "frequencies", torch.arange(1, number + 1), persistent=False
        )  # integers: no .to() rounds them

    def forward(self, t: Time) -> Tensor:
        """`(B,) -> (B, 1 + 2 number)`."""
        phase = t[:, None] * (math.pi * self.frequencies.to(t.dtype))
        return torch.cat([t[:, None], torch.cos(phase), torch.sin(phase)], 1)
