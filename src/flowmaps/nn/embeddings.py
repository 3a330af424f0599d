"""Features of time: smooth, because their derivatives in time are part of the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..shapes import Time


class Fourier(nn.Module):
    """t -> (t, cos(pi k t), sin(pi k t)) for k = 1..number, computed in float32 or better, returned in the type of t.

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
        # integers: no .to() rounds them
        self.register_buffer("frequencies", torch.arange(1, number + 1), persistent=False)

    def forward(self, t: Time) -> Tensor:
        """`(B,) -> (B, 1 + 2 number)`."""
        r = t[:, None] if t.dtype in (torch.float32, torch.float64) else t[:, None].float()
        phase = r * (math.pi * self.frequencies.to(r.dtype))
        return torch.cat([r, torch.cos(phase), torch.sin(phase)], 1).to(t.dtype)
