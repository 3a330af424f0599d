"""Flows of a velocity field by a numerical solver: the slow, faithful way along a trajectory.

X_{s,t}(x) solves dx_r = b_r(x_r) dr from r = s to r = t. Each row has its own (s, t), so the solver runs on
tau in [0, 1] with r = s + tau (t - s) and dx/dtau = (t - s) b_r(x), in either order of time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from .maps import FlowMap
from .shapes import Batch, Condition, Field, Time, check_time, like

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "rk4")


def integrate(
    velocity: Field,
    x: Batch,
    s: Time,
    t: Time,
    cond: Condition = None,
    *,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
) -> Batch:
    """Carry `x` from times `s` to times `t` along dx = velocity(x, r, cond) dr.

    Args:
        velocity: field `(x, t, cond) -> like x`.
        x: starting points, `(B, *shape)`.
        s: their times in [0, 1], `(B,)`.
        t: the times to reach, `(B,)`, before or after `s`.
        cond: passed to `velocity`.
        method: an adaptive method (`dopri5`, `dopri8`, `bosh3`, `adaptive_heun`) or a fixed-step one (`euler`,
            `midpoint`, `heun2`, `rk4`).
        rtol: relative tolerance of an adaptive method; its error is a norm over the whole batch.
        atol: absolute tolerance, in units of x.
        steps: number of steps of a fixed-step method.

    Returns:
        The points at `t`, `(B, *shape)`.

    Raises:
        ValueError: the method is unknown, `steps` does not go with it, or no step is small enough.
    """
    options = _options(method, steps)

    def field(tau: Tensor, y: Tensor) -> Tensor:
        return like(t - s, y) * velocity(y, torch.lerp(s, t, tau.to(s.dtype).clamp(0, 1)), cond)

    ends = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
    options = {"step_t": ends[1:]} if method in ADAPTIVE else options  # land on t: no look beyond the end of time
    try:
        return odeint(field, x, ends, method=method, rtol=rtol, atol=atol, options=options)[-1]  # type: ignore[index]
    except AssertionError as error:  # torchdiffeq's word for a step that shrinks to nothing
        raise ValueError(
            f"{method} found no step that meets rtol={rtol:g}, atol={atol:g} ({error}): the velocity has values that "
            f"are not finite, or is too stiff; take a fixed-step method, or a larger tolerance."
        ) from None


def _options(method: str, steps: int | None) -> dict[str, Any]:
    if method in ADAPTIVE:
        if steps is not None:
            raise ValueError(
                f"{method} chooses its own steps, got steps={steps}: leave it out, or take one of {FIXED}."
            )
        return {}
    if method not in FIXED:
        raise ValueError(f"method must be one of {ADAPTIVE + FIXED}, got {method!r}.")
    if steps is None or steps < 1:
        raise ValueError(f"{method} has a fixed step: pass steps >= 1, got steps={steps}.")
    return {"step_size": 1.0 / steps * (1 + 1e-6)}  # a hair more than 1/steps: no sliver of a last step from rounding


class SolverFlow(FlowMap):
    """The flow of a velocity field as a flow map, counting evaluations.

    Args:
        velocity: field `(x, t, cond=None) -> like x`; a `torch.nn.Module` becomes a submodule.
        method, rtol, atol, steps: as in `integrate`.

    Attributes:
        nfe: evaluations of the field in the last call of `forward`.
    """

    def __init__(
        self,
        velocity: Field,
        *,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        _options(method, steps)
        self.field = velocity
        self.method, self.rtol, self.atol, self.steps = method, rtol, atol, steps
        self.nfe = 0
        self.train(isinstance(velocity, nn.Module) and velocity.training)

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        check_time(s, x, "s")
        check_time(t, x, "t")
        self.nfe = 0

        def counted(y: Tensor, r: Tensor, c: Condition) -> Tensor:
            self.nfe += 1
            return self.field(y, r, c)

        settings = {"method": self.method, "rtol": self.rtol, "atol": self.atol, "steps": self.steps}
        return integrate(counted, x, s, t, cond, **settings)

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        step = like(t - s, x)
        jump = (self.forward(x, s, t, cond) - x) / torch.where(step == 0, 1, step)
        return torch.where(step == 0, self.field(x, s, cond), jump)

    def velocity(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        return self.field(x, t, cond)
