r"""The velocity of the linear path from a network that was trained on another path, another time, another output.

A diffusion or flow model sees z = m (cos(a) x1 + sin(a) x0), x1 data, x0 noise: the angle a in [0, pi / 2] says how
much noise there is, m is the model's own scale. A point x = (1 - t) x0 + t x1 of the linear path is z up to its scale:

    tan(a) = (1 - t) / t,      z = m x / r,      r = ((1 - t)^2 + t^2)^(1/2).

From what the network predicts, with E0 = E[x0 | x] and E1 = E[x1 | x], the velocity is b = E1 - E0:

| prediction | it is | b |
|---|---|---|
| epsilon | E0 | (x - E0) / t |
| sample | E1 | (E1 - x) / (1 - t) |
| v | cos(a) E0 - sin(a) E1 | (cos(a) - sin(a)) x / r - (cos(a) + sin(a)) v |
| velocity | b | b |
| reverse velocity | -b | -out |

References: T. Salimans, J. Ho, 2022, arXiv 2202.00512 (v); T. Karras et al., 2022, arXiv 2206.00364 (EDM).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..interpolants import Linear
from ..losses import Weight
from ..nn.two_times import Call, plain_call
from ..shapes import Batch, Condition, Time, like

Prediction = Literal["epsilon", "sample", "v", "velocity", "reverse velocity"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
PATH = Linear()
MAX_GAIN = 4.0
"""Greatest gain at which a network is a student as it is, and losses against its velocity need no weight."""
MIN_TIME = 1e-9
"""Lower bound on t, or on 1 - t, in the gains 1 / t and 1 / (1 - t)."""


class Clock(nn.Module, ABC):
    """A model's own time and scale as functions of the angle.

    Attributes:
        least, most: angles between which the model was trained; it is asked for no others.
    """

    least: float
    most: float

    @abstractmethod
    def forward(self, angle: Time) -> tuple[Time, Time]:
        """The time that the network takes and the scale m, both `(B,)`."""


class SameClock(Clock):
    """The time t of the linear path itself, multiplied by `factor`, or from data to noise if `reverse`."""

    def __init__(self, factor: float = 1.0, *, reverse: bool = False) -> None:
        super().__init__()
        self.factor, self.reverse, self.least, self.most = factor, reverse, 0.0, 0.5 * math.pi

    def forward(self, angle: Time) -> tuple[Time, Time]:
        cos, sin = torch.cos(angle), torch.sin(angle)
        time = (sin if self.reverse else cos) / (cos + sin)
        return self.factor * time, 1 / (cos + sin)


class SigmaClock(Clock):
    """Time is the noise level sigma = tan(a), and z = x1 + sigma x0, as in EDM."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.least, self.most = math.atan(sigma_min), math.atan(sigma_max)

    def forward(self, angle: Time) -> tuple[Time, Time]:
        return torch.tan(angle), 1 / torch.cos(angle)


class TableClock(Clock):
    """Times and scales at given angles, linear in between.

    Args:
        angles: `(K,)`, rising.
        times: `(K,)`, of the network.
        scales: m, `(K,)`; 1 unless given.
    """

    angles: Tensor
    times: Tensor
    scales: Tensor

    def __init__(self, angles: Tensor, times: Tensor, scales: Tensor | None = None) -> None:
        super().__init__()
        if angles.ndim != 1 or len(angles) < 2 or not bool((angles.diff() > 0).all()):
            raise ValueError("a schedule needs two or more steps, each with more noise than the one before.")
        given = {"angles": angles, "times": times, "scales": torch.ones_like(angles) if scales is None else scales}
        self._given = {name: value.double().cpu() for name, value in given.items()}
        for name, value in given.items():
            self.register_buffer(name, value.double(), persistent=False)
        self.least, self.most = float(angles[0]), float(angles[-1])

    @property
    def arguments(self) -> dict[str, Tensor]:
        """Those of the constructor, to all digits, whatever type the clock was moved to."""
        return self._given

    def forward(self, angle: Time) -> tuple[Time, Time]:
        """Piecewise linear, so that derivatives in the time pass."""
        knots = self.angles.to(torch.promote_types(angle.dtype, torch.float32))
        known = angle.detach().to(knots.dtype)
        if torch.compiler.is_exporting():  # ONNX has no searchsorted
            place = (known[:, None] >= knots).sum(1)
        else:
            place = torch.searchsorted(knots, known, right=True)
        place = place.clamp(1, len(knots) - 1)
        share = (angle - knots[place - 1]) / (knots[place] - knots[place - 1])
        time, scale = (self._between(values.to(knots.dtype), place, share) for values in (self.times, self.scales))
        return time, scale

    @staticmethod
    def _between(values: Tensor, place: Tensor, share: Tensor) -> Tensor:
        return values[place - 1] + share * (values[place] - values[place - 1])


class PerGain(Weight):
    """w = min(1, (4 / g_t)^2) of a velocity that comes from predicted noise, g = 1 / t, or data, g = 1 / (1 - t).

    An error e of a network that predicts noise is g e in its velocity, 160 e near the noise for the schedule of DDPM:
    under a plain square a fiftieth of the rows has most of the loss, and a student learns the errors of its teacher
    there. Up to g = 4 the weight is 1, as of a network that predicts the velocity; beyond, the weighted error is that
    of the prediction.

    Args:
        prediction: `epsilon` or `sample`.
        low, high: times between which the model was trained.
    """

    def __init__(self, prediction: Literal["epsilon", "sample"], low: float, high: float) -> None:
        super().__init__()
        self.prediction, self.low, self.high = prediction, low, high

    def forward(self, distance: Time, s: Time, t: Time, split: Time | None = None) -> Time:
        known = t.clamp(self.low, self.high)
        share = known if self.prediction == "epsilon" else 1 - known
        return (MAX_GAIN * share).clamp_max(1).square() * distance


class Conversion(nn.Module):
    """Calls a network as the velocity of the linear path: `conversion(net, x, t, cond) -> b_t(x)`.

    Beyond the angles that the model was trained for, t is the nearest one that it knows.

    Args:
        prediction: what the network predicts.
        clock: its time and scale.
        call: calls it, at its own time and scale.
        gain: the largest factor by which a change of what the network's last layer returns moves the velocity; that of
            the table above unless given. A network that scales its output itself has its own.

    Attributes:
        low, high: times of the linear path between which the model was trained.

    Raises:
        ValueError: an unknown prediction, or one that is no velocity where the schedule ends.
    """

    def __init__(
        self, prediction: Prediction, clock: Clock, call: Call | None = None, *, gain: float | None = None
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}.")
        self.prediction, self.clock, self.call = prediction, clock, plain_call if call is None else call
        self.low, self.high = (_time_of(angle) for angle in (clock.most, clock.least))
        if (prediction == "epsilon" and self.low == 0) or (prediction == "sample" and self.high == 1):
            what, end = ("noise", "noise alone") if prediction == "epsilon" else ("data", "data alone")
            raise ValueError(
                f"a model that predicts {prediction} says nothing of the velocity at {end}, where its schedule ends: "
                f"there the {what} is the input itself. Leave that step out of the schedule."
            )
        factors = {"v": math.sqrt(2), "velocity": 1.0, "reverse velocity": 1.0}
        factors |= {"epsilon": 1 / max(self.low, MIN_TIME), "sample": 1 / max(1 - self.high, MIN_TIME)}
        self.gain = factors[prediction] if gain is None else gain

    @property
    def weight(self) -> Weight | None:
        """A weight of losses against this velocity, by the time t at which it is asked; `None` for w = 1."""
        if self.gain > MAX_GAIN and self.prediction in ("epsilon", "sample"):
            return PerGain(self.prediction, self.low, self.high)
        return None

    def forward(self, net: nn.Module, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """`(B, *shape), (B,), cond -> (B, *shape)`.

        Raises:
            ValueError: the network returns another shape than that of its input.
        """
        t = t.clamp(self.low, self.high)
        angle = torch.atan2(1 - t, t)
        time, scale = self.clock(angle)
        length = ((1 - t).square() + t.square()).sqrt()
        out = self.call(net, like((scale / length).to(x.dtype), x) * x, time.to(t.dtype), cond)
        if out.shape != x.shape:
            raise ValueError(f"the network must return the shape of x {tuple(x.shape)}, got {tuple(out.shape)}.")
        return self._velocity(out, x, t)

    def _velocity(self, out: Tensor, x: Tensor, t: Tensor) -> Tensor:
        if self.prediction in ("velocity", "reverse velocity"):
            return out if self.prediction == "velocity" else -out
        if self.prediction == "epsilon":
            return PATH.noise_to_velocity(out, x, t)
        if self.prediction == "sample":
            return PATH.denoiser_to_velocity(out, x, t)
        square = (1 - t).square() + t.square()
        return like((2 * t - 1) / square, x) * x - like(square.rsqrt(), x) * out


def _time_of(angle: float) -> float:
    """The time t of the linear path at an angle."""
    return math.cos(angle) / (math.cos(angle) + math.sin(angle)) if angle < 0.5 * math.pi else 0.0
