"""Flow maps: X_{s,t}(x) = x + (t - s) u_{s,t}(x), in several parametrisations.

X_{s,s} = Id by construction; u is the average velocity and u_{t,t} = b_t the instantaneous one. A parametrisation is a
formula for u that is regular at s = t; the jump, the velocity and every equation follow from it.

Reference: N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden, "Flow map matching with stochastic interpolants", 2024,
arXiv 2406.07507; "How to build a consistency model", 2025, arXiv 2505.18825, equation 10 (the u form).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .shapes import Batch, Condition, Time, check_time, like


class FlowMap(nn.Module, ABC):
    """A two-time map X_{s,t}, any (s, t) in [0, 1]^2, both orders."""

    @abstractmethod
    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """u_{s,t}(x) = (X_{s,t}(x) - x) / (t - s), regular at s = t; shapes as in `forward`."""

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """Jump from times `s` to times `t`.

        Args:
            x: points at time s, `(B, *shape)`.
            s: their times in [0, 1], `(B,)`.
            t: the times to reach in [0, 1], `(B,)`, before or after `s`.
            cond: what the network is conditioned on.

        Returns:
            X_{s,t}(x), `(B, *shape)`.

        Raises:
            ValueError: a time of the wrong shape, or (on the CPU) outside [0, 1].
        """
        check_time(s, x, "s")
        check_time(t, x, "t")
        return x + like(t - s, x) * self.average_velocity(x, s, t, cond)

    def velocity(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """The instantaneous velocity v_t(x) = u_{t,t}(x), `(B, *shape)`."""
        check_time(t, x)
        return self.average_velocity(x, t, t, cond)


def evaluate(net: nn.Module, x: Tensor, s: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """Call `net(x, s, t, cond)` and refuse an output that is not shaped like `x`.

    Raises:
        ValueError: the network's output has another shape than its input.
    """
    out = net(x, s, t, cond)
    if out.shape != x.shape:
        raise ValueError(
            f"{type(net).__name__} must return the shape of its input x {tuple(x.shape)}, got {tuple(out.shape)}: "
            f"make its last layer as wide as the data."
        )
    return out


class AverageVelocity(FlowMap):
    """u_{s,t}(x) = net(x, s, t): the network is the average velocity (2505.18825, equation 10; MeanFlow, 2505.13447).

    Args:
        net: network `(x, s, t, cond=None) -> like x`, times `(B,)`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return evaluate(self.net, x, s, t, cond)


class Endpoint(FlowMap):
    """u_{s,t}(x) = (net(x, s, t) - x) / (1 - s): the network points at the data end of the line through x along u.

    At t = 1 it is X_{s,1} itself, a consistency model; at t = s the denoiser of the linear interpolant; in between
    CTM's g (2310.02279, equation 9). 1 - s is held above `floor`, so that s = 1 stays finite.

    Args:
        net: network `(x, s, t, cond=None) -> like x`.
        floor: smallest 1 - s divided by.
    """

    def __init__(self, net: nn.Module, floor: float = 1e-3) -> None:
        super().__init__()
        if not 0 < floor < 1:
            raise ValueError(f"Endpoint needs 0 < floor < 1, got {floor}.")
        self.net, self.floor = net, floor

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return (evaluate(self.net, x, s, t, cond) - x) / like((1 - s).clamp_min(self.floor), x)


class Trigonometric(FlowMap):
    """X_{s,t}(x) = cos(theta) x + sin(theta) net(x, s, t), theta = pi (t - s) / 2 (TrigFlow, 2410.11081, equation 6).

    As u: with h = theta / 2, u = pi / 2 (sinc(theta) net - sin(h) sinc(h) x), sinc(y) = sin(y) / y, regular at s = t.

    Args:
        net: network `(x, s, t, cond=None) -> like x`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        half = 0.25 * math.pi * (t - s)
        towards = like(torch.sinc((t - s) / 2), x) * evaluate(self.net, x, s, t, cond)
        return 0.5 * math.pi * (towards - like(torch.sin(half) * torch.sinc((t - s) / 4), x) * x)


class Composed(FlowMap):
    """X^K_{s,t}: `legs` jumps of one map on the uniform grid from s to t; u is the mean of the legs' u.

    Args:
        flow_map: the map that takes the legs.
        legs: number of jumps, at least 1.
    """

    def __init__(self, flow_map: FlowMap, legs: int) -> None:
        super().__init__()
        if legs < 1:
            raise ValueError(f"Composed needs legs >= 1, got {legs}.")
        self.flow_map, self.legs = flow_map, legs

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        total: Tensor | float = 0.0
        for k in range(self.legs):
            start, end = torch.lerp(s, t, k / self.legs), torch.lerp(s, t, (k + 1) / self.legs)
            u = self.flow_map.average_velocity(x, start, end, cond)
            x = x + like(end - start, x) * u
            total = total + u / self.legs
        return total  # type: ignore[return-value]


class Frozen(FlowMap):
    """A copy of a map that takes no gradient and keeps its weights until `refresh`: a teacher, or a target.

    Args:
        flow_map: the map to copy.
    """

    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.flow_map = copy.deepcopy(flow_map).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode."""
        return super().train(False)

    def refresh(self, flow_map: FlowMap) -> None:
        """Take over the weights of `flow_map`, a map of the same make."""
        self.flow_map.load_state_dict(flow_map.state_dict())

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return self.flow_map.average_velocity(x, s, t, cond)
