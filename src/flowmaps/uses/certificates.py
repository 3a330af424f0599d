r"""Certificates: how far a map's samples can be from those of the flow that it follows, from its residuals alone.

With the flow's trajectories x_t, dx_t = b_t(x_t) dt, x_0 = x0 ~ rho_0, and the residuals

    Lagrangian   R_t = d_t X_{0,t}(x0) - b_t(X_{0,t}(x0)),      on s = 0
    Eulerian     R_s = d_s X_{s,1}(x_s) + grad X_{s,1}(x_s) b_s(x_s)  =  d/ds X_{s,1}(x_s),      on t = 1

the distance W2 between the law of X_{0,1}(x0) and that of x_1 is at most

    Eulerian, paper      ( e int E|R_s|^2 ds )^(1/2)                                FMM, proposition 3.10
    Eulerian             ( int E|R_s|^2 ds )^(1/2)                                  x_1 - X_{0,1}(x0) = int R_s ds
    Lagrangian, paper    ( exp(1 + 2 int |C_t| dt) int E|R_t|^2 dt )^(1/2)          FMM, proposition 3.9
    Lagrangian           int exp(int_t^1 C_r dr) (E|R_t|^2)^(1/2) dt                Gronwall's lemma

with C_t the one-sided Lipschitz constant of b_t (`lipschitz`). Here means over x are means over samples, integrals are
sums over Gauss-Legendre times, and C_t is the greatest value at samples: each number is an estimate, not a bound.

Reference: N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden, "Flow map matching with stochastic interpolants", 2024, arXiv
2406.07507.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..equations import Equation, Eulerian, Lagrangian
from ..interpolants import Interpolant
from ..maps import FlowMap
from ..modules import evaluating, modules_of
from ..shapes import Batch, Condition, Field, check_condition, on_each, per_row
from ..solvers import integrate
from ._quadrature import Quadrature
from .lipschitz import LANCZOS_STEPS, largest_stretching

RESAMPLES = 1_000
"""Resamples of a bootstrap interval."""


def eulerian_form(squares: Tensor, rule: Quadrature, *, paper: bool = False) -> Tensor:
    """The Eulerian estimate of W2 from E|R_s|^2 at the times of a quadrature, `(..., K) -> (...)`, in units of x."""
    return ((math.e if paper else 1.0) * (squares @ rule.weights)).sqrt()


def lagrangian_form(squares: Tensor, constants: Tensor, rule: Quadrature, *, paper: bool = False) -> Tensor:
    """The Lagrangian estimate of W2 from E|R_t|^2 and C_t at the times of a quadrature, each `(..., K) -> (...)`."""
    if paper:
        return ((1 + 2 * constants.abs() @ rule.weights).exp() * (squares @ rule.weights)).sqrt()
    return ((constants @ rule.tails.mT).exp() * squares.sqrt()) @ rule.weights


class Estimate(NamedTuple):
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Certificate:
    """Estimates of W2 between a map's samples and those of a flow, in units of x.

    Attributes:
        times: of the quadrature, `(K,)`.
        eulerian, lagrangian: root mean square of the residual at these times, `(K,)`.
        constants: greatest eigenvalue found at these times, `(K,)`; an estimate of C_t from below.
        forms: the four forms of the module, by name; "Eulerian" is the headline.
        coupled: (E|X_{0,1}(x0) - x_1|^2)^(1/2), at least W2 and the least of all these numbers, where the flow was
            solved; else `None`.
        sample_distance: root mean square distance of two samples of the map, of independent noise.
        rows: number of samples.
        own: whether the flow is that of the map's own velocity.
        evaluations: network evaluations a row; a forward pass, a JVP and a VJP count one each.
    """

    times: Tensor
    eulerian: Tensor
    lagrangian: Tensor
    constants: Tensor
    forms: dict[str, Estimate]
    coupled: Estimate | None
    sample_distance: float
    rows: int
    own: bool
    evaluations: int

    def vacuous(self, form: str) -> bool:
        """Whether a form says nothing: it is not below the distance of two independent samples of the map."""
        return not self.forms[form].value < self.sample_distance

    def text(self, w2: float | None = None) -> str:
        """The certificate in lines; with a measured W2 beside, if it is given."""
        whose = "the ODE of the map's own velocity, which may be wrong itself" if self.own else "the given velocity"
        lines = [
            f"W2 between the samples of the map and the flow of {whose}:",
            f"estimates from {self.rows:,} samples at {len(self.times)} times, 95 % intervals in brackets; no bounds",
        ]
        for form, estimate in self.forms.items():
            said = f"vacuous: {estimate.value:.3g}, distance of two samples {self.sample_distance:.3g}"
            lines.append(f"  {form:<18} {said if self.vacuous(form) else estimate}")
        if self.coupled is not None:
            lines.append(f"  {'same noise':<18} {self.coupled}")
        if w2 is not None:
            lines.append(f"  {'measured':<18} {w2:.4g}")
        worst = int(self.constants.argmax())
        lines.append(
            f"one-sided Lipschitz constant: {float(self.constants[worst]):.3g} at t = {float(self.times[worst]):.3f}, "
            "the greatest at samples, an estimate from below"
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def residual_squares(
    equation: Equation, flow_map: FlowMap, x: Batch, s: float, t: float, velocity: Field, cond: Condition = None
) -> Tensor:
    """|R|^2 of an equation, in units of x / time, a row each, `(B,)`; at points `x` of time s."""
    return per_row(equation(flow_map, x, _time(x, s), _time(x, t), velocity, cond=cond).value.square())


@torch.no_grad()
def certificate(
    flow_map: FlowMap,
    x0: Batch,
    x1: Tensor | None = None,
    *,
    velocity: Field | None = None,
    interpolant: Interpolant | None = None,
    cond: Condition = None,
    times: int = 16,
    lipschitz_rows: int = 32,
    lanczos_steps: int = LANCZOS_STEPS,
    tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
) -> Certificate:
    """Estimate W2 between a map's one-step samples and the flow of a velocity, from residuals on s = 0 and t = 1.

    Args:
        flow_map: the map.
        x0: base samples, `(B, *shape)`.
        x1: data, `(B, *shape)`: the points x_s are then those of the interpolant, and no ODE is solved. This is right
            where the velocity is that of the interpolant between x0 and x1; the trajectories are solved otherwise.
        velocity: b, the teacher's field; the map's own velocity u_{t,t} unless given: the certificate then speaks of
            the map's own ODE, and not of how well that ODE follows the data.
        interpolant: the path, with `x1`.
        cond: condition, one a row.
        times: K, number of Gauss-Legendre times.
        lipschitz_rows: rows at which C_t is looked for, on the flow and on the map each.
        lanczos_steps: for each of them.
        tolerance: of dopri5, where the trajectories are solved.
        generator: source of Lanczos' first vectors, of latent noise and of the bootstrap, on the device of `x0`.

    Raises:
        ValueError: fewer than two rows, `x1` without `interpolant` or of another shape, or no row for C_t.
    """
    _check(x0, x1, interpolant, cond, lipschitz_rows)
    field: Field = flow_map.velocity if velocity is None else velocity
    rule = Quadrature.gauss_legendre(times)
    with evaluating(flow_map, *modules_of(field)):
        path = _Solved(field, x0, cond, tolerance) if x1 is None else _Interpolated(interpolant, x0, x1, generator)
        found = [
            _at(flow_map, field, path.to(time), x0, time, cond, lipschitz_rows, lanczos_steps, generator)
            for time in rule.times.tolist()
        ]
        samples = flow_map(x0, _time(x0, 0.0), _time(x0, 1.0), cond)
        gaps = None if x1 is not None else per_row((samples - path.to(1.0)).square())
    eulerian, lagrangian = (torch.stack(values, 1).double().cpu() for values in list(zip(*found, strict=True))[:2])
    constants = torch.stack([greatest for *_, greatest in found]).double().cpu()
    return Certificate(
        times=rule.times,
        eulerian=eulerian.mean(0).sqrt(),
        lagrangian=lagrangian.mean(0).sqrt(),
        constants=constants,
        forms=_forms(eulerian, lagrangian, constants, rule, generator),
        coupled=None if gaps is None else _bootstrap(gaps.double().cpu()[:, None], _root, generator),
        sample_distance=float((2 * samples.double().var(0).sum()).sqrt()),
        rows=len(x0),
        own=velocity is None,
        evaluations=4 * times + path.evaluations + 1,
    )


def _at(
    flow_map: FlowMap,
    field: Field,
    x: Tensor,
    x0: Tensor,
    time: float,
    cond: Condition,
    lipschitz_rows: int,
    lanczos_steps: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """|R|^2 of the Eulerian and the Lagrangian residual at one time, `(B,)`, and the greatest eigenvalue found."""
    eulerian = residual_squares(Eulerian(), flow_map, x, time, 1.0, field, cond)
    lagrangian = residual_squares(Lagrangian(), flow_map, x0, 0.0, time, field, cond)
    few = slice(min(lipschitz_rows, len(x0)))
    c = on_each(cond, lambda value: value[few])
    stretching = [
        largest_stretching(field, y, _time(y, time), c, steps=lanczos_steps, generator=generator)
        for y in (x[few], flow_map(x0[few], _time(x0[few], 0.0), _time(x0[few], time), c))
    ]
    return eulerian, lagrangian, torch.cat(stretching).amax()


def _check(
    x0: Tensor, x1: Tensor | None, interpolant: Interpolant | None, cond: Condition, lipschitz_rows: int
) -> None:
    if len(x0) < 2 or lipschitz_rows < 1:
        raise ValueError(f"a certificate needs x0 of 2 rows or more and lipschitz_rows >= 1, got {len(x0)} and "
                         f"{lipschitz_rows}: a few hundred rows make narrow intervals.")  # fmt: skip
    if (x1 is None) != (interpolant is None):
        raise ValueError("x1 and interpolant go together: pass both for points of the path, neither to solve the flow.")
    if x1 is not None and x1.shape != x0.shape:
        raise ValueError(f"x0 and x1 must have one shape, got {tuple(x0.shape)} and {tuple(x1.shape)}.")
    check_condition(cond, x0, "x0")


def _time(x: Tensor, time: float) -> Tensor:
    return x.new_full((len(x),), time)


class _Interpolated:
    """The points of an interpolant at a time."""

    evaluations = 0

    def __init__(
        self, interpolant: Interpolant | None, x0: Tensor, x1: Tensor, generator: torch.Generator | None
    ) -> None:
        assert interpolant is not None
        self.interpolant, self.x0, self.x1, self.z = interpolant, x0, x1, None
        if interpolant.noisy:
            self.z = torch.randn(x0.shape, dtype=x0.dtype, device=x0.device, generator=generator)

    def to(self, time: float) -> Tensor:
        return self.interpolant.point(self.x0, self.x1, _time(self.x0, time), self.z)


class _Solved:
    """The trajectories of a velocity from x0, solved from one time to the next.

    Attributes:
        evaluations: of the velocity, a row.
    """

    def __init__(self, field: Field, x0: Tensor, cond: Condition, tolerance: float) -> None:
        self.field, self.cond, self.tolerance = field, cond, tolerance
        self.x, self.time, self.evaluations = x0, 0.0, 0

    def to(self, time: float) -> Tensor:
        """The points at `time`, no earlier than that of the last call, `(B, *shape)`."""

        def counted(x: Tensor, t: Tensor, cond: Condition) -> Tensor:
            self.evaluations += 1
            return self.field(x, t, cond)

        s, t = _time(self.x, self.time), _time(self.x, time)
        self.x = integrate(counted, self.x, s, t, self.cond, rtol=self.tolerance, atol=self.tolerance)
        self.time = time
        return self.x


def _forms(
    eulerian: Tensor, lagrangian: Tensor, constants: Tensor, rule: Quadrature, generator: torch.Generator | None
) -> dict[str, Estimate]:
    """The estimates from |R|^2 of each row and time, `(B, K)`."""
    forms: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
        "Eulerian": (eulerian, lambda m: eulerian_form(m, rule)),
        "Eulerian, paper": (eulerian, lambda m: eulerian_form(m, rule, paper=True)),
        "Lagrangian": (lagrangian, lambda m: lagrangian_form(m, constants, rule)),
        "Lagrangian, paper": (lagrangian, lambda m: lagrangian_form(m, constants, rule, paper=True)),
    }
    return {name: _bootstrap(squares, form, generator) for name, (squares, form) in forms.items()}


def _root(mean: Tensor) -> Tensor:
    return mean[..., 0].sqrt()


def _bootstrap(values: Tensor, form: Callable[[Tensor], Tensor], generator: torch.Generator | None) -> Estimate:
    """A function of the mean over rows, `(B, K) -> (K,)`, and the 2.5 and 97.5 % quantiles of it over resamples."""
    device = "cpu" if generator is None else generator.device
    rows = len(values)
    drawn = torch.randint(rows, (RESAMPLES, rows), generator=generator, device=device).cpu()
    one = torch.ones(drawn.shape, dtype=values.dtype)
    counts = torch.zeros_like(one).scatter_add_(1, drawn, one)
    resampled = form(counts @ values / rows)
    low, high = resampled.sort().values[[round(share * (RESAMPLES - 1)) for share in (0.025, 0.975)]].tolist()
    return Estimate(float(form(values.mean(0))), low, high)
