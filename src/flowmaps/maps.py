"""Flow maps: X_{s,t}(x) = x + (t - s) u_{s,t}(x), in several parametrisations.

X_{s,s} = Id by construction; u is the average velocity and u_{t,t} = b_t the instantaneous one. A parametrisation is a
formula for u that is regular at s = t; the jump, the velocity and every equation follow from it. `Target` is a copy of
a map without gradients: a fixed one, an EMA, or one that is made anew each round.

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
from .shapes import Batch, Condition, Time, check_shape, check_time, like


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
        """The map's own velocity u_{t,t}(x), `(B, *shape)`, an estimate of b_t(x).

        Arguments and errors are as in `forward`.
        """
        check_time(t, x)
        return self.average_velocity(x, t, t, cond)

    def decompose(self, x: Batch, s: Time, t: Time, u: Batch) -> tuple[Time, Batch]:
        """Write the jump as X_{s,t}(x) = a x + c v, with v the network's output scaled to a velocity.

        Args:
            x, s, t: as in `forward`.
            u: u_{s,t}(x), `(B, *shape)`.

        Returns:
            a, `(B,)`, and v, `(B, *shape)`; at s = t v is the velocity u_{s,s}(x).
        """
        return torch.ones_like(s), u


def call_network(net: nn.Module, x: Tensor, s: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """Return `net(x, s, t, cond)`, an output of the shape of `x`.

    Raises:
        ValueError: the output has another shape.
    """
    check_shape(s, x, "s")
    check_shape(t, x, "t")
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
        return call_network(self.net, x, s, t, cond)


class Endpoint(FlowMap):
    """u_{s,t}(x) = (net(x, s, t) - x) / (1 - s): the network returns where the line from x along u reaches t = 1.

    At t = 1 the network is X_{s,1} itself, a consistency model; at t = s the denoiser of the linear interpolant; in
    between the g of CTM (2310.02279, equation 9). 1 - s is clamped to at least `floor`, so that u is finite at s = 1.

    Args:
        net: network `(x, s, t, cond=None) -> like x`.
        floor: lower bound on 1 - s.

    Raises:
        ValueError: `floor` outside (0, 1).
    """

    def __init__(self, net: nn.Module, floor: float = 1e-3) -> None:
        super().__init__()
        if not 0 < floor < 1:
            raise ValueError(f"Endpoint needs 0 < floor < 1, got {floor}.")
        self.net, self.floor = net, floor

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return (call_network(self.net, x, s, t, cond) - x) / like((1 - s).clamp_min(self.floor), x)


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
        towards = like(torch.sinc((t - s) / 2), x) * call_network(self.net, x, s, t, cond)
        return 0.5 * math.pi * (towards - like(torch.sin(half) * torch.sinc((t - s) / 4), x) * x)

    def decompose(self, x: Batch, s: Time, t: Time, u: Batch) -> tuple[Time, Batch]:
        half = 0.25 * math.pi * (t - s)
        output = u / like(torch.sinc((t - s) / 2), x) + 0.5 * math.pi * like(torch.tan(half), x) * x
        return torch.cos(2 * half), output


class Preconditioned(nn.Module):
    """EDM's preconditioning: a denoiser for `Endpoint`, around a network of inputs and outputs of unit variance.

        g(x, s, t) = c_skip x + c_out net(c_in x, s, t),      V = omega_s^2 + beta_s^2 sigma^2,
        c_skip = beta_s sigma^2 / V,    c_out = omega_s sigma / sqrt(V),    c_in = 1 / sqrt(V)

    Reference: T. Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, arXiv
    2206.00364, table 1 (there of x / beta_s, in terms of omega_s / beta_s).

    Args:
        net: network `(x, s, t, cond=None) -> like x`.
        interpolant: the path.
        data_std: sigma, the standard deviation of the data.
        scale: standard deviation of the base.
        floor: lower bound on the omega_s that multiplies the network's output.

    Raises:
        ValueError: `data_std`, `scale` or `floor` is not positive.
    """

    def __init__(
        self,
        net: nn.Module,
        interpolant: Interpolant,
        data_std: float = 0.5,
        scale: float = 1.0,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        if data_std <= 0 or scale <= 0 or floor <= 0:
            raise ValueError(
                f"Preconditioned needs data_std, scale and floor > 0, got {data_std}, {scale} and {floor}."
            )
        self.net, self.interpolant, self.data_std, self.scale, self.floor = net, interpolant, data_std, scale, floor

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """The denoiser, `(B, *shape)`; arguments as those of a network."""
        omega, beta = self.interpolant.omega(s, self.scale), self.interpolant.beta(s)
        variance = omega.square() + (beta * self.data_std).square()
        inner = call_network(self.net, x * like(variance.rsqrt(), x), s, t, cond)
        skip, out = beta * self.data_std**2 / variance, omega.clamp_min(self.floor) * self.data_std * variance.rsqrt()
        return like(skip, x) * x + like(out, x) * inner


class Composed(FlowMap):
    """K jumps of one map, on the uniform grid from s to t, as one map; its u is the mean of the u of the legs.

    Args:
        flow_map: the map of each leg.
        legs: K, at least 1.

    Raises:
        ValueError: `legs` below 1.
    """

    def __init__(self, flow_map: FlowMap, legs: int) -> None:
        super().__init__()
        if legs < 1:
            raise ValueError(f"Composed needs legs >= 1, got {legs}.")
        self.flow_map, self.legs = flow_map, legs

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        check_shape(s, x, "s")
        check_shape(t, x, "t")
        total: Tensor | float = 0.0
        for k in range(self.legs):
            start, end = torch.lerp(s, t, k / self.legs), torch.lerp(s, t, (k + 1) / self.legs)
            u = self.flow_map.average_velocity(x, start, end, cond)
            x = x + like(end - start, x) * u
            total = total + u / self.legs
        return total  # type: ignore[return-value]


class VelocityForShortJumps(FlowMap):
    """Another map, with u_{s,s} in the place of u_{s,t} for jumps of at most `step`: these are Euler steps.

    Args:
        flow_map: the map.
        step: greatest |t - s| of a jump that is an Euler step.

    Raises:
        ValueError: `step` outside [0, 1].
    """

    def __init__(self, flow_map: FlowMap, step: float) -> None:
        super().__init__()
        if not 0 <= step <= 1:
            raise ValueError(f"VelocityForShortJumps needs a step in [0, 1], got {step}.")
        self.flow_map, self.step = flow_map, step

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        check_shape(s, x, "s")
        check_shape(t, x, "t")
        near = (t - s).abs() <= self.step * (1 + 1e-5)
        return self.flow_map.average_velocity(x, s, torch.where(near, s, t), cond)


class Target(FlowMap):
    """A copy of a map without gradients, for a target under a stop-gradient, or for a teacher.

    The copy is fixed, unless `decay` or `rounds` is given: then `Objective.step` updates it after each step.

    Args:
        flow_map: the map to copy.
        decay: make the copy an EMA of the map, of this decay in [0, 1).
        rounds: number of equal parts of training; the copy is made anew at the end of each.

    Raises:
        ValueError: `decay` outside [0, 1), `rounds` below 1, or both of them.
    """

    def __init__(self, flow_map: FlowMap, *, decay: float | None = None, rounds: int | None = None) -> None:
        super().__init__()
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"Target needs a decay in [0, 1), got {decay}.")
        if rounds is not None and (rounds < 1 or decay is not None):
            raise ValueError(f"Target takes rounds >= 1 or a decay, not both, got rounds={rounds} and decay={decay}.")
        self.flow_map = copy.deepcopy(flow_map).requires_grad_(False).eval()
        self.decay, self.rounds = decay, rounds

    def train(self, mode: bool = True) -> Target:
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)

    @torch.no_grad()
    def copy_from(self, flow_map: FlowMap, decay: float = 0.0) -> None:
        """Set the weights to decay times the old ones plus 1 - decay times those of `flow_map`, a map of this kind."""
        if decay == 0:
            self.flow_map.load_state_dict(flow_map.state_dict())
            return
        new = flow_map.state_dict()
        for name, old in self.flow_map.state_dict().items():
            old.lerp_(new[name], 1 - decay) if old.is_floating_point() else old.copy_(new[name])

    @property
    def moves(self) -> bool:
        """Whether `update` changes the copy."""
        return self.decay is not None or self.rounds is not None

    def update(self, flow_map: FlowMap, before: float, now: float) -> None:
        """Update the copy after a step of training `flow_map`, in which progress went from `before` to `now`."""
        if self.decay is not None:
            self.copy_from(flow_map, self.decay)
        elif self.rounds is not None and math.floor(before * self.rounds) < math.floor(now * self.rounds):
            self.copy_from(flow_map)

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return self.flow_map.average_velocity(x, s, t, cond)


def as_target(flow_map: FlowMap) -> Target:
    """Return `flow_map` itself if it is a `Target`, which may move, else a frozen copy of it."""
    return flow_map if isinstance(flow_map, Target) else Target(flow_map)


class DetachedWeights:
    """A map whose gradient reaches its input x but not its weights: call it as `(x, s, t, cond)`.

    It uses the map's own weights, and is no module, so that they are not among the parameters twice.

    Args:
        flow_map: the map.
    """

    def __init__(self, flow_map: FlowMap) -> None:
        self.flow_map = flow_map

    def __call__(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        weights = {name: value.detach() for name, value in self.flow_map.named_parameters()}
        return functional_call(self.flow_map, weights, (x, s, t, cond))
