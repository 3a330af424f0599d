r"""Laws of data plus Gaussian noise, whose posterior means are known: the flow map is then solved in polar coordinates.

With a base N(0, scale^2 Id) the law of I_t is that of beta_t x1 + omega_t eps, where eps ~ N(0, Id) and
omega_t^2 = alpha_t^2 scale^2 + gamma_t^2, and

    b_t(x) = beta_t' D + omega_t' e,    D = E[x1 | I_t = x],    e = E[eps | I_t = x],    x = beta_t D + omega_t e.

D and e depend on t through (beta_t, omega_t) alone. In polar coordinates (beta_t, omega_t) = r_t (cos a_t, sin a_t) the
flow is therefore one and the same curve for every interpolant,

    X_{s,t}(x) = r_t Y(a_t),    Y(a_s) = x / r_s,    dY/da = -sin(a) D + cos(a) e    at (cos a, sin a),

so that no derivative of the schedule, bounded or not, enters the solver.

Reference: M. S. Albergo, N. M. Boffi, E. Vanden-Eijnden, "Stochastic interpolants: a unifying framework for flows and
diffusions", 2023, arXiv 2303.08797. The change of variables is in the spirit of T. Karras et al., "Elucidating the
design space of diffusion-based generative models", 2022, arXiv 2206.00364, section 4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..interpolants import Interpolant
from ..shapes import Batch, Condition, Time, check_time, like
from ..solvers import integrate
from . import _checks

MIN_OMEGA = 1e-12  # lower bound on the omega that is divided by
CHUNK_ROWS = 2**13  # rows of one call of the solver


class Noised(ABC):
    """A law of data of which D and e are known; `scale` is the standard deviation of the base."""

    scale: float
    interpolant: Interpolant
    dim: int
    least_angle: float = 0.0
    """If positive, the solver runs in log(angle) down to this angle, and takes one step from there to the data."""

    @abstractmethod
    def _posterior(self, x: Tensor, beta: Tensor, omega: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """D and e, each `(B, dim)`, at points `(B, dim)` and levels `(B,)`."""

    @abstractmethod
    def _log_marginal(self, x: Tensor, beta: Tensor, omega: Tensor) -> Tensor:
        """Log density `(B,)` of beta x1 + omega eps."""

    def velocity(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """b_t(x) = beta' D + omega' e.

        Args:
            x: points, `(B, dim)`.
            t: times in [0, 1], `(B,)`.
            cond: what the class allows, else None.

        Returns:
            b_t(x), `(B, dim)`, in the dtype of `x`. At omega_t = 0 (t = 1) it is beta' D, the limit on the support.

        Raises:
            ValueError: wrong shapes, times outside [0, 1], or a condition that the law does not have.
        """
        t = self._checked(x, t)
        path, omega = self.interpolant, self._omega(t)
        if path.noisy:
            growth = path.alpha(t) * path.alpha_dot(t) * self.scale**2 + path.gamma(t) * path.gamma_dot(t)
            growth = growth / omega
        else:
            growth = path.omega_dot(t, self.scale) * (path.omega(t, self.scale) / omega)
        y, beta, omega, beta_dot, growth = _computed(x, path.beta(t), omega, path.beta_dot(t), growth)
        denoised, noise = self._posterior(y, beta, omega, cond)
        return (like(beta_dot, y) * denoised + like(growth, y) * noise).to(x.dtype)

    def denoiser(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """D = E[x1 | I_t = x], `(B, dim)`; arguments and errors as in `velocity`."""
        t = self._checked(x, t)
        y, beta, omega = _computed(x, self.interpolant.beta(t), self._omega(t))
        return self._posterior(y, beta, omega, cond)[0].to(x.dtype)

    def log_density(self, x: Batch, t: Time | None = None) -> Time:
        """Log density of the law of I_t, or of the data where `t` is None.

        Args:
            x: points, `(B, dim)`.
            t: times in [0, 1], `(B,)`, or None.

        Returns:
            log rho_t(x), `(B,)`.

        Raises:
            ValueError: wrong shapes or times outside [0, 1].
        """
        if t is None:
            _checks.points(x, self.dim)
            return self._log_data(x)
        t = self._checked(x, t)
        y, beta, omega = _computed(x, self.interpolant.beta(t), self._omega(t))
        return self._log_marginal(y, beta, omega).to(x.dtype)

    def _log_data(self, x: Tensor) -> Tensor:
        one = x.new_ones(x.shape[0])
        return self._log_marginal(x, one, 0 * one)

    def _checked(self, x: Tensor, t: Tensor, name: str = "t") -> Tensor:
        """Check points and times, and return the times in at least single precision."""
        _checks.points(x, self.dim)
        check_time(t, x, name)
        return t.to(torch.promote_types(t.dtype, torch.float32))

    def _omega(self, t: Tensor) -> Tensor:
        """omega_t, at least MIN_OMEGA."""
        return self.interpolant.omega(t, self.scale).clamp_min(MIN_OMEGA)

    def _flow(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition, method: str, tolerance: float) -> Tensor:
        """X_{s,t}(x) by the solver, in float64, `CHUNK_ROWS` rows at once."""
        s, t = self._checked(x, s, "s"), self._checked(x, t)
        parts = []
        for start in range(0, x.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            labels = None if cond is None else cond[rows]
            y, first, last = (z[rows].double() for z in (x, s, t))
            parts.append(self._flow_rows(y, first, last, labels, method, tolerance))
        return torch.cat(parts).to(x.dtype) if parts else x

    def _flow_rows(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition, method: str, tolerance: float) -> Tensor:
        (radius_s, angle_s), (radius_t, angle_t) = self._polar(s), self._polar(t)
        least = self.least_angle
        logarithmic = least > 0

        def field(y: Tensor, clock: Tensor, cond: Condition) -> Tensor:
            angle = clock.exp() if logarithmic else clock
            cos, sin = angle.cos(), angle.sin()
            denoised, noise = self._posterior(y, cos, sin.clamp_min(MIN_OMEGA), cond)
            turn = like(cos, y) * noise - like(sin, y) * denoised
            return like(angle, y) * turn if logarithmic else turn

        first, last = (a.clamp_min(least).log() if logarithmic else a for a in (angle_s, angle_t))
        y = x / like(radius_s, x)
        y = integrate(field, y, first, last, cond, method=method, rtol=tolerance, atol=tolerance)
        if logarithmic:
            y = torch.where(like(angle_t < least, y), self._step_to(y, least, angle_t, cond), y)
            y = torch.where(like((s == t) & (angle_t < least), y), x / like(radius_t, x), y)
        return like(radius_t, x) * y

    def _step_to(self, y: Tensor, least: float, angle: Tensor, cond: Condition) -> Tensor:
        """One step Y(angle) = cos D + sin e from the least angle to a smaller one, the data at angle zero."""
        start = torch.full_like(angle, least)
        denoised, noise = self._posterior(y, start.cos(), start.sin(), cond)
        return like(angle.cos(), y) * denoised + like(angle.sin(), y) * noise

    def _polar(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta, omega = self.interpolant.beta(t), self.interpolant.omega(t, self.scale)
        return torch.sqrt(beta.square() + omega.square()), torch.atan2(omega, beta)


def _computed(x: Tensor, *levels: Tensor) -> tuple[Tensor, ...]:
    """`x` and the levels in one dtype of at least single precision; levels are first computed in that of t."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype), *(level.to(dtype) for level in levels))
