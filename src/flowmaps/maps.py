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
from torch.func import functional_call

from .interpolants import Interpolant
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

    def held(self, x: Batch, s: Time, t: Time, u: Batch) -> tuple[Time, Batch]:
        """The map as X_{s,t}(x) = a x + c v, with v the output of its network read as a velocity.

        Returns:
            The factor a of x, `(B,)`, and v, where `u` is u_{s,t}(x); v = u_{s,s}(x) at t = s.
        """
        return torch.ones_like(s), u


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

    def held(self, x: Batch, s: Time, t: Time, u: Batch) -> tuple[Time, Batch]:
        half = 0.25 * math.pi * (t - s)
        output = u / like(torch.sinc((t - s) / 2), x) + 0.5 * math.pi * like(torch.tan(half), x) * x
        return torch.cos(2 * half), output


class Preconditioned(nn.Module):
    """EDM's network: a denoiser for `Endpoint`, whose inner network sees and returns numbers of unit size.

        g(x, s, t) = c_skip x + c_out net(c_in x, s, t),      V = omega_s^2 + beta_s^2 sigma^2,
        c_skip = beta_s sigma^2 / V,    c_out = omega_s sigma / sqrt(V),    c_in = 1 / sqrt(V)

    Reference: T. Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, arXiv
    2206.00364, table 1 (there of x / beta_s, in terms of omega_s / beta_s).

    Args:
        net: network `(x, s, t, cond=None) -> like x`.
        interpolant: the path.
        deviation: sigma, the standard deviation of the data.
        scale: deviation of the base.
        floor: smallest omega_s that multiplies the output.
    """

    def __init__(
        self,
        net: nn.Module,
        interpolant: Interpolant,
        deviation: float = 0.5,
        scale: float = 1.0,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        if deviation <= 0 or scale <= 0 or floor <= 0:
            raise ValueError(
                f"Preconditioned needs deviation, scale and floor > 0, got {deviation}, {scale} and {floor}."
            )
        self.net, self.interpolant, self.deviation, self.scale, self.floor = net, interpolant, deviation, scale, floor

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """The denoiser, `(B, *shape)`; arguments as those of a network."""
        omega, beta = self.interpolant.omega(s, self.scale), self.interpolant.beta(s)
        variance = omega.square() + (beta * self.deviation).square()
        inner = evaluate(self.net, x * like(variance.rsqrt(), x), s, t, cond)
        skip, out = beta * self.deviation**2 / variance, omega.clamp_min(self.floor) * self.deviation * variance.rsqrt()
        return like(skip, x) * x + like(out, x) * inner


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


class Near(FlowMap):
    """A map that takes jumps of at most `step` with its velocity, u_{s,s} in the place of u_{s,t}.

    Args:
        flow_map: the map.
        step: longest |t - s| that counts as near.
    """

    def __init__(self, flow_map: FlowMap, step: float) -> None:
        super().__init__()
        if not 0 <= step <= 1:
            raise ValueError(f"Near needs a step in [0, 1], got {step}.")
        self.flow_map, self.step = flow_map, step

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        near = (t - s).abs() <= self.step * (1 + 1e-5)
        return self.flow_map.average_velocity(x, s, torch.where(near, s, t), cond)


class Frozen(FlowMap):
    """A copy of a map that takes no gradient: a teacher, or a target. It stays as it is until `refresh`.

    A target that follows the map is refreshed by `Objective.follow` after each step of training.

    Args:
        flow_map: the map to copy.
        decay: follow as a moving average of this decay (an EMA teacher), in [0, 1).
        rounds: follow by copying the map at the end of each of this many equal parts of training.
    """

    def __init__(self, flow_map: FlowMap, *, decay: float | None = None, rounds: int | None = None) -> None:
        super().__init__()
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"Frozen needs a decay in [0, 1), got {decay}.")
        if rounds is not None and (rounds < 1 or decay is not None):
            raise ValueError(f"Frozen needs rounds >= 1 and no decay beside it, got {rounds} and {decay}.")
        self.flow_map = copy.deepcopy(flow_map).requires_grad_(False).eval()
        self.decay, self.rounds = decay, rounds

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def refresh(self, flow_map: FlowMap, decay: float = 0.0) -> None:
        """Take over the weights of `flow_map`, a map of the same make, all but a share `decay` of the old ones."""
        if decay == 0:
            self.flow_map.load_state_dict(flow_map.state_dict())
            return
        new = flow_map.state_dict()
        for name, old in self.flow_map.state_dict().items():
            old.lerp_(new[name], 1 - decay) if old.is_floating_point() else old.copy_(new[name])

    @property
    def follows(self) -> bool:
        """Whether the copy changes while training goes on."""
        return self.decay is not None or self.rounds is not None

    def follow(self, flow_map: FlowMap, before: float, now: float) -> None:
        """Follow `flow_map` over a step that took progress from `before` to `now`."""
        if self.decay is not None:
            self.refresh(flow_map, self.decay)
        elif self.rounds is not None and math.floor(before * self.rounds) < math.floor(now * self.rounds):
            self.refresh(flow_map)

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return self.flow_map.average_velocity(x, s, t, cond)


def frozen(flow_map: FlowMap) -> Frozen:
    """A map that takes no gradient: a `Frozen` as it is, so that it may follow, any other copied."""
    return flow_map if isinstance(flow_map, Frozen) else Frozen(flow_map)


class Detached:
    """A map as it is now, for points that take gradients though its weights do not: `call(x, s, t, cond)`.

    Not a module: the weights stay those of the map, and are not listed twice.

    Args:
        flow_map: the map.
    """

    def __init__(self, flow_map: FlowMap) -> None:
        self.flow_map = flow_map

    def __call__(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        weights = {name: value.detach() for name, value in self.flow_map.named_parameters()}
        return functional_call(self.flow_map, weights, (x, s, t, cond))
