r"""The checkerboard, its exact velocity and its exact flow map: an exact teacher.

The board on [-1, 1]^2 has 4 x 4 cells of side 1/2; data are uniform on the eight cells (i, j) with i + j even.
Split the four intervals of an axis into the even A = {0, 2} and the odd B = {1, 3}: the law is a mixture of products,

    rho = (A x A + B x B) / 2,

so that each axis is treated alone. For the interval with centre c, given I_t = x on that axis, the noise is a
standard normal cut to [lo, hi] = [m - h, m + h], m = (x - beta c) / omega, h = beta / (4 omega). With phi the normal
density, Phi its integral, mills = (1 - Phi) / phi, and m >= 0 (else reflect):

    mass  int phi / phi(lo) = mills(lo) - exp(-2 m h) mills(hi),        e = (phi(lo) - phi(hi)) / mass,
    r = (e - m) / h in [-1, 1],        D = c - r / 4.

Where h and m h are small, differences cancel, and mass and r come from Gauss's quadrature on [-h, h] instead.

Source of the experiment: N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden, "Flow map matching with stochastic
interpolants: A mathematical framework for consistency models", TMLR 2025, arXiv 2406.07507.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..interpolants import Interpolant, Linear
from ..shapes import Batch, Condition, Time, like
from . import _checks
from ._noised import Noised

HALF = 0.25  # half the side of a cell
NODES = (0.1834346424956498, 0.5255324099163290, 0.7966664774136267, 0.9602898564975363)  # Gauss, eight on [-1, 1]
WEIGHTS = (0.3626837833783620, 0.3137066458778873, 0.2223810344533745, 0.1012285362903763)


@dataclass(frozen=True)
class Checkerboard(Noised):
    """Uniform law on the even cells of a 4 x 4 board on [-1, 1]^2, from a base N(0, scale^2 Id).

    As t -> 1, b_t grows like 1 / omega_t off the support; it stays finite in single precision, and at t = 1 it is
    beta' times the denoiser, the nearest point of the support.

    Args:
        scale: standard deviation of the base, positive.
        interpolant: path from base to data.

    Raises:
        ValueError: `scale` is not positive and finite.
    """

    scale: float = 1.0
    interpolant: Interpolant = Linear()  # noqa: RUF009  (frozen)
    dim: ClassVar[int] = 2
    least_angle: ClassVar[float] = 1e-8

    def __post_init__(self) -> None:
        _checks.positive("scale", self.scale)

    def sample(self, number: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Independent data, `(number, 2)`, on the device of the generator."""
        device = None if generator is None else generator.device
        coins = torch.randint(2, (number, 3), generator=generator, device=device)
        inside = torch.rand(number, 2, generator=generator, dtype=dtype, device=device)
        cell = 2 * coins[:, :2] + coins[:, 2:]
        return (cell + inside) * (2 * HALF) - 1

    def flow_map(
        self, x: Batch, s: Time, t: Time, cond: Condition = None, *, method: str = "dopri8", tolerance: float = 1e-8
    ) -> Batch:
        """X_{s,t}(x) by an adaptive solver in float64, for both orders of s and t.

        b_t is singular off the support as t -> 1, like 1 / omega_t. The solver therefore runs in the logarithm of the
        angle a = atan(omega / beta), where the flow is regular, down to a = 1e-8, and then steps to D, the data, with
        an error of the order of 1e-8. A start at t = 1 is taken at that angle, with the same error, and must lie on the
        support: other points at t = 1 are on no trajectory.

        Args:
            x: points, `(B, 2)`.
            s: times of the points, `(B,)`.
            t: times of the results, `(B,)`.
            cond: None.
            method: a method of torchdiffeq with adaptive steps.
            tolerance: relative and absolute error of a step, a norm over the batch. At 1e-8 the worst of 4096 points
                was off by 1e-7, the median by 1e-10.

        Returns:
            X_{s,t}(x), `(B, 2)`, in the dtype of `x`.

        Raises:
            ValueError: wrong shapes, times outside [0, 1], or a condition.
        """
        _checks.no_condition(cond, "Checkerboard")
        return self._flow(x, s, t, None, method, tolerance)

    def cell_masses(self, bins: int = 50) -> Tensor:
        """Exact masses of the data on a grid of `bins` x `bins` equal squares over [-1, 1]^2.

        Returns:
            float64 `(bins, bins)` of sum one, axis 0 along x and axis 1 along y.

        Raises:
            ValueError: `bins` is not positive.
        """
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}: the published tables use 50.")
        edges = 2 * torch.arange(bins + 1, dtype=torch.float64) / bins - 1
        low = _centres(edges) - HALF
        overlap = torch.minimum(edges[1:, None], low + 2 * HALF) - torch.maximum(edges[:-1, None], low)
        share = (overlap.clamp_min(0) / (2 * HALF)).unflatten(1, (2, 2)).mean(1)
        return share @ share.T / 2

    def nearest_cell(self, x: Batch) -> Tensor:
        """The number, from 0 to 7, of the data's cell that is nearest to each point: `(B, 2) -> (B,)`."""
        first = torch.arange(4, device=x.device)
        cells = torch.cartesian_prod(first, first)
        centres = _centres(x)[cells[cells.sum(1) % 2 == 0]]
        beyond = ((x[:, None] - centres).abs() - HALF).clamp_min(0)
        return beyond.square().sum(2).argmin(1)

    def _log_data(self, x: Tensor) -> Tensor:
        cell = ((x + 1) / (2 * HALF)).floor().clamp(0, 3)
        inside = (x.abs() <= 1).all(1) & (cell.sum(1) % 2 == 0)
        level = x.new_full((x.shape[0],), -math.log(2))
        return torch.where(inside, level, -math.inf * torch.ones_like(level))

    def _posterior(self, x: Tensor, beta: Tensor, omega: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        _checks.no_condition(cond, "Checkerboard")
        log_mass, r, e, _ = _intervals(x, beta, omega)
        log_mass = log_mass.unflatten(2, (2, 2))  # axis, member of the pair, pair
        member = log_mass.softmax(2)
        pair = log_mass.logsumexp(2).sum(1, keepdim=True).softmax(2)
        weight = (member * pair.unsqueeze(2)).flatten(2)
        return (weight * (_centres(x) - HALF * r)).sum(2), (weight * e).sum(2)

    def _log_marginal(self, x: Tensor, beta: Tensor, omega: Tensor) -> Tensor:
        log_mass, _, _, outside = _intervals(x, beta, omega)
        pairs = log_mass.unflatten(2, (2, 2)).logsumexp(2).sum(1).logsumexp(1) - 3 * math.log(2)
        return pairs - outside.square().sum(1) / 2 - math.log(2 * math.pi) - 2 * omega.log()


def _centres(x: Tensor) -> Tensor:
    return (torch.arange(4, dtype=x.dtype, device=x.device) - 1.5) * (2 * HALF)


def _intervals(x: Tensor, beta: Tensor, omega: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The posterior of the noise for each interval of each axis, at each point.

    `outside` is the distance of the point to the board over omega. Half its square is left out of every log mass, which
    far from the board would otherwise be equal for all intervals in single precision.

    Returns:
        log of the mean of exp(-eps^2 / 2 + outside^2 / 2) over the interval, r and e, each `(B, 2, 4)`; outside,
        `(B, 2)`.
    """
    beta, omega = like(beta, x), like(omega, x)
    clipped = x.minimum(beta).maximum(-beta)
    outside = (x.abs() - beta).clamp_min(0) / omega
    h = (HALF * beta / omega).unsqueeze(2)
    offset = (x.unsqueeze(2) - beta.unsqueeze(2) * _centres(x)) / omega.unsqueeze(2)
    sign = torch.where(offset < 0, -torch.ones_like(offset), torch.ones_like(offset))
    m = sign * offset
    gap = (clipped.unsqueeze(2) - beta.unsqueeze(2) * _centres(x)).abs() / omega.unsqueeze(2) - h
    gap = gap.clamp_min(0)
    log_mass, r, e = _truncated(m, h.expand_as(m))
    return log_mass - gap * (gap / 2 + outside.unsqueeze(2)), sign * r, sign * e, outside


def _truncated(m: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The standard normal law truncated to [m - h, m + h], m >= 0.

    Returns:
        log of the mean density over the density at max(m - h, 0), r = (e - m) / h, and the mean e.
    """
    narrow = (h < 0.5) & (m * h < 1)
    log_narrow, r_narrow = _narrow(torch.where(narrow, m, 0 * m), torch.where(narrow, h, 0 * h))
    one = torch.ones_like(m)
    log_wide, r_wide, e_wide = _wide(torch.where(narrow, one, m), torch.where(narrow, one, h))
    return (
        torch.where(narrow, log_narrow, log_wide),
        torch.where(narrow, r_narrow, r_wide),
        torch.where(narrow, m + h * r_narrow, e_wide),
    )


def _narrow(m: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """`_truncated` by Gauss's quadrature of exp(-m h u - h^2 u^2 / 2) over u in [-1, 1], node by pair of nodes."""
    even, odd = torch.zeros_like(m), torch.zeros_like(m)
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        up = (m * h * node).exp()
        down = up.reciprocal()
        decay = weight / 2 * (-((h * node) ** 2) / 2).exp()
        even = even + decay * (down + up)
        odd = odd + decay * node * (down - up)
    low = m - h
    drop = torch.where(low > 0, -h * (low + h / 2), -m * m / 2)
    return even.log() + drop, odd / even


def _wide(m: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_truncated` in closed form: by Mills's ratio if the interval lies beyond zero, else by the error function."""
    low, high = m - h, m + h
    beyond = low > 0
    low_out = torch.where(beyond, low, torch.zeros_like(low))
    fall = -torch.expm1(-2 * m * h)
    tail = 1 / _hazard(low_out) - (1 - fall) / _hazard(high)
    core = math.sqrt(math.pi / 2) * (torch.erf(high * math.sqrt(0.5)) - torch.erf(low * math.sqrt(0.5)))
    low_in = torch.where(beyond, torch.zeros_like(low), low)
    mass = torch.where(beyond, tail, core)
    e = fall * (-low_in.square() / 2).exp() / mass
    return (mass / (2 * h)).log(), ((e - m) / h).clamp(-1, 1), e


def _hazard(z: Tensor) -> Tensor:
    """1 / mills(z) = phi(z) / (1 - Phi(z)), z >= 0; a series far out, where the derivative of erfcx cancels."""
    far = 40.0 if z.dtype == torch.float64 else 12.0
    near = torch.where(z < far, z, torch.zeros_like(z))
    mills = math.sqrt(math.pi / 2) * torch.special.erfcx(near * math.sqrt(0.5))
    q = z.clamp_min(far).reciprocal().square()
    series = 1 - q * (2 - q * (10 - q * (74 - q * (706 - q * (8162 - q * 110410)))))
    return torch.where(z < far, 1 / mills, z + z.clamp_min(far).reciprocal() * series)
