"""Flow maps by a numerical solver of the velocity's ODE.

X_{s,t}(x) solves dx_r = b_r(x_r) dr from r = s to r = t. Each row has its own (s, t), so the solver runs on
tau in [0, 1] with r = s + tau (t - s) and dx/dtau = (t - s) b_r(x), in either order of time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .maps import FlowMap
from .modules import evaluating, modules_of
from .shapes import Batch, Condition, Field, Time, check_time, like

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")
TABLEAUS: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "euler": ((), (1.0,)),
    "midpoint": (((1 / 2,),), (0.0, 1.0)),
    "heun2": (((1.0,),), (1 / 2, 1 / 2)),
    "rk4": (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""Butcher tableaus: the weights of the earlier slopes in each stage after the first, then those of all slopes."""
FIXED = tuple(TABLEAUS)
MAX_STEPS = 2_000
"""Steps of an adaptive method, refused ones among them, after which it gives up; a usual flow takes some twenty."""


class Unsolvable(ValueError):
    """No step of an adaptive method meets its tolerance, or it does not arrive within `MAX_STEPS`."""


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
        ValueError: the method is unknown, or `steps` does not go with it.
        Unsolvable: no step meets the tolerance, or the solver does not arrive within `MAX_STEPS`.
    """
    _check(method, steps)

    def field(tau: Tensor, y: Tensor) -> Tensor:
        if steps is None and bool(tau.isnan()):  # what a step becomes after values that are no numbers
            raise AssertionError("the step is nan")
        return like(t - s, y) * velocity(y, torch.lerp(s, t, tau.to(s.dtype).clamp(0, 1)), cond)

    if steps is not None:
        return _fixed(field, x, method, steps)
    with torch.inference_mode(False):  # tensors that it makes at import would be of no use to autograd otherwise
        from torchdiffeq import odeint  # imports scipy: half a second

    ends = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
    # a step ends at t, so that the field is not evaluated beyond it
    options = {"step_t": ends[1:], "max_num_steps": MAX_STEPS}
    try:
        return odeint(field, x, ends, method=method, rtol=rtol, atol=atol, options=options)[-1]  # type: ignore[index]
    except AssertionError as error:  # what torchdiffeq raises if its step becomes too small
        what = f"did not arrive in {MAX_STEPS:,} steps" if "max_num_steps" in str(error) else f"found no step ({error})"
        raise Unsolvable(
            f"{method} {what} with rtol={rtol:g}, atol={atol:g}: the velocity has values that are not finite, or is "
            f"too stiff; take a fixed-step method, or a larger tolerance."
        ) from None


def _fixed(field: Callable[[Tensor, Tensor], Tensor], x: Tensor, method: str, steps: int) -> Tensor:
    """Equal steps of tau from 0 to 1. Those of torchdiffeq synchronise with the device and break a compiled graph."""
    rows, weights = TABLEAUS[method]
    step = 1 / steps
    for k in range(steps):
        slopes = [field(x.new_full((), k * step), x)]
        for row in rows:
            moved = x + step * sum(a * slope for a, slope in zip(row, slopes, strict=True) if a)
            slopes.append(field(x.new_full((), (k + sum(row)) * step), moved))
        x = x + step * sum(b * slope for b, slope in zip(weights, slopes, strict=True) if b)
    return x


def _check(method: str, steps: int | None) -> None:
    if method in ADAPTIVE:
        if steps is not None:
            raise ValueError(
                f"{method} chooses its own steps, got steps={steps}: leave it out, or take one of {FIXED}."
            )
    elif method not in FIXED:
        raise ValueError(f"method must be one of {ADAPTIVE + FIXED}, got {method!r}.")
    elif steps is None or steps < 1:
        raise ValueError(f"{method} has a fixed step: pass steps >= 1, got steps={steps}.")


class SolverFlow(FlowMap):
    """The flow of a velocity field as a flow map; it counts evaluations of the field.

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
        _check(method, steps)
        self.field = velocity
        self.method, self.rtol, self.atol, self.steps = method, rtol, atol, steps
        self.nfe = 0
        self.train(any(module.training for module in modules_of(velocity)))

    def _in_mode(self) -> AbstractContextManager[None]:
        """Context in which the networks of a field that is no module, no parts of the flow, follow its mode."""
        if self.training or isinstance(self.field, nn.Module) or torch.compiler.is_compiling():
            return nullcontext()
        return evaluating(*modules_of(self.field))

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        check_time(s, x, "s")
        check_time(t, x, "t")
        self.nfe = 0

        def counted(y: Tensor, r: Tensor, c: Condition) -> Tensor:
            self.nfe += 1
            return self.field(y, r, c)

        with self._in_mode():
            return integrate(counted, x, s, t, cond, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {"method": self.method, "rtol": self.rtol, "atol": self.atol, "steps": self.steps}

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """u_{s,t}(x), the solution at tau = 1 of du/dtau = b(x + (t - s) u) from u = 0, which is regular at s = t."""
        check_time(s, x, "s")
        check_time(t, x, "t")
        self.nfe = 0

        def mean(u: Tensor, tau: Tensor, c: Condition) -> Tensor:
            self.nfe += 1
            return self.field(x + like(t - s, x) * u, torch.lerp(s, t, tau), c)

        zero, one = torch.zeros_like(s), torch.ones_like(s)
        with self._in_mode():
            return integrate(mean, torch.zeros_like(x), zero, one, cond, **self._settings())

    def velocity(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        with self._in_mode():
            return self.field(x, t, cond)
