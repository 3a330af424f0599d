r"""How far the exact map is from a zero of an objective's mean gradient, on Gaussian data.

    u_{s,t}(x) + sum_k c_k f_k(x, s, t),        E dL/dc_k = 0 at c = 0

Where a method's velocity is dI, its loss is not zero at the exact map; its gradient is, in the mean over pairs
(x0, x1), and no further: a first leg of dI with a length l > 0 has a mean gradient of order l. Here the closed-form
flow map of a Gaussian is moved along features f_k by parameters c of its own for each row, so that one backward pass
gives one gradient a row, whose mean is compared with its standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..interpolants import Interpolant, Linear
from ..losses import Learned
from ..maps import FlowMap
from ..objectives import Objective
from ..shapes import Batch, Condition, Time, like
from ..velocities import RandomInputs
from .gaussian import Gaussian

FEATURES = 4
BANDS = 4
"""Into so many parts of equally many rows, in the order of s, the growth is divided."""


class MeanGradient(NamedTuple):
    """Means of a gradient in units of their standard errors (z), from `mean_gradient`.

    Attributes:
        parameters: z of each parameter, `(4, D)`: of three sines of (x, s, t), and of (x - m_s) / s_s, the growth.
        bands: z of the growth, summed over the coordinates, in four bands of s, `(4,)`.
        edges: the times s between which the bands lie, `(5,)`.
    """

    parameters: Tensor
    bands: Tensor
    edges: Tensor

    @property
    def largest(self) -> float:
        """The largest |z| of all."""
        return float(torch.cat([self.parameters.flatten(), self.bands]).abs().max())

    def __str__(self) -> str:
        names = [f"sine {k + 1}" for k in range(len(self.parameters) - 1)] + ["growth"]
        rows = [(name, z.tolist()) for name, z in zip(names, self.parameters, strict=True)]
        edges = self.edges.tolist()
        rows += [
            (f"s {low:.2f} to {high:.2f}", [z])
            for low, high, z in zip(edges[:-1], edges[1:], self.bands.tolist(), strict=True)
        ]
        return "\n".join(f"{name:16}" + "".join(f"{z:8.1f}" for z in values) for name, values in rows)


def mean_gradient(
    method: Callable[[FlowMap], Objective],
    law: Gaussian | None = None,
    *,
    rows: int = 20_000,
    progress: float = 1.0,
    generator: torch.Generator | None = None,
) -> MeanGradient:
    """How far the exact map is from a zero of a method's mean gradient, in standard errors.

        fm.exact.mean_gradient(lambda flow_map: my_method(flow_map, weight=fm.losses.Constant())).largest

    Where the exact map is a zero of the gradient, `largest` is below 4 in all but about one of a thousand seeds. Where
    it is none, z grows as the root of `rows`: in doubt take four times as many, and see whether z doubles.

    It sees the mean gradient along four functions, one of them the growth (x - m_s) / s_s: a target that goes on from a
    point of the path further on, as from the map's own, draws the map together, and the growth shows it. It sees it
    for Gaussian data, at the method's own law of (s, t). It does not see where gradients stop, whether the exact map is
    a minimum, a bias that is small beside the noise of `rows`, or one that cancels along all four functions. An
    adaptive or learned weight multiplies the noise, so that the exact map is no zero of the mean: pass a constant one.

    Args:
        method: map -> objective, such as a function of `flowmaps.methods`, with its options. The map is exact, and has
            no parameters: each row has its own, in `cond`, which a teacher gets too and leaves alone:
            `teacher=lambda x, t, cond=None: law.velocity(x, t)`.
        law: data and path, the path of the objective; unless given, two correlated coordinates on that path.
        rows: number of independent rows.
        progress: share of the training steps that have been taken, at which schedules are.
        generator: source of randomness, on the CPU; seed 0 unless given.

    Raises:
        ValueError: there are too few rows, the law is on another path than the objective, the objective has guidance, a
            learned weight or several draws for each row, or a gradient is not finite.
    """
    if rows < 2 * BANDS:
        raise ValueError(f"rows must be at least {2 * BANDS}, two in each band, got {rows}: take thousands.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if law is None:
        objective = method(_Moved(_law(Linear())))
        law = _law(objective.interpolant, objective.coupling.base.std)
    objective = method(_Moved(law))
    _check(objective, law)
    x0 = Gaussian(law.base_mean, law.base_covariance).sample(rows, generator, torch.float64)
    x1 = law.sample(rows, generator, torch.float64)
    moved = torch.zeros(rows, FEATURES, law.dim, dtype=torch.float64).requires_grad_()
    draw = objective.draw(x1, x0, moved, generator=generator, progress=progress)
    gradients = row_gradients(objective, draw)
    if not bool(gradients.isfinite().all()):
        raise ValueError(
            f"the gradient of {int((~gradients.isfinite()).flatten(1).any(1).sum())} of {rows} rows is not finite: "
            f"look at the objective's distance and weight, and keep its times from those where "
            f"{type(law.interpolant).__name__} has no derivative."
        )
    return z_scores(gradients, draw.s)


class Features:
    """The functions along which the exact map of a law is moved.

    All but the last are smooth functions of all of x, s and t, of no symmetry, and the same in each coordinate; the
    last is the growth, each coordinate of (x - m_s) / s_s.

    Args:
        law: of the data, and its path.
    """

    def __init__(self, law: Gaussian) -> None:
        self.law = law
        rng = torch.Generator().manual_seed(7)
        self.directions = torch.randn(law.dim, FEATURES - 1, dtype=torch.float64, generator=rng) / law.dim**0.5

    def __call__(self, x: Batch, s: Time, t: Time) -> Tensor:
        """Their values, `(B, FEATURES, D)`."""
        phase = torch.arange(1, FEATURES, dtype=x.dtype)
        sines = torch.sin(x @ self.directions + like(s, x) * phase + 2 * like(t, x) + phase)
        centre, variance = self.law._moments(s, x)
        growth = (x - centre) / variance.mean(1, keepdim=True).sqrt()
        return torch.cat([sines[:, :, None].expand(-1, -1, self.law.dim), growth[:, None]], 1)


def row_gradients(objective: Objective, draw: RandomInputs) -> Tensor:
    """The gradient of each row's loss in the row's own parameters, `(B, FEATURES, D)`; they are the draw's `cond`."""
    return len(draw.x1) * torch.autograd.grad(objective.evaluate(draw).value, draw.cond)[0]


def z_scores(gradients: Tensor, s: Time) -> MeanGradient:
    """The means of gradients in their standard errors.

    Args:
        gradients: of independent rows, `(B, FEATURES, D)`.
        s: the rows' times, `(B,)`.
    """
    order = s.argsort(stable=True)
    parts = gradients[order, -1].sum(1, keepdim=True).tensor_split(BANDS)
    edges = s[order][torch.linspace(0, len(s) - 1, BANDS + 1).long()]
    return MeanGradient(z_score(gradients), torch.cat([z_score(part) for part in parts]), edges)


def z_score(values: Tensor) -> Tensor:
    """Mean over rows in units of its standard error; 0 for what is zero in each row."""
    error = values.std(0) / len(values) ** 0.5
    return torch.where(values.abs().amax(0) < 1e-8, 0.0, values.mean(0) / error)


class _Moved(FlowMap):
    """The flow map of a law, moved along `features` by `cond`, `(B, FEATURES, D)`, where it is given."""

    def __init__(self, law: Gaussian) -> None:
        super().__init__()
        self.law, self.features = law, Features(law)

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        step = like(t - s, x)
        same = step == 0
        jump = (self.law.flow_map(x, s, t) - x) / torch.where(same, 1.0, step)
        u = torch.where(same, self.law.velocity(x, t), jump)
        if cond is None:
            return u
        assert isinstance(cond, Tensor)
        return u + (self.features(x, s, t) * cond).sum(1)


def _law(interpolant: Interpolant, scale: float = 1.0) -> Gaussian:
    """Data of two correlated coordinates, on a path from a base of a standard deviation."""
    base = scale**2 * torch.eye(2)
    return Gaussian([1.0, -0.5], [[0.5, 0.2], [0.2, 0.3]], base_covariance=base, interpolant=interpolant)


def _check(objective: Objective, law: Gaussian) -> None:
    """Refuse an objective whose gradient is not zero at the exact map of the law for other reasons than its own."""
    if objective.interpolant != law.interpolant:
        raise ValueError(
            f"the objective is on the path {objective.interpolant}, the law on {law.interpolant}: pass "
            "interpolant=law.interpolant to the method, or no law."
        )
    if objective.guidance is not None or objective.draws != 1:
        raise ValueError("the mean gradient is of one draw without guidance: leave guidance= and draws= out.")
    if any(isinstance(module, Learned) for module in objective.modules()):
        raise ValueError("a learned weight multiplies the noise of dI: pass weight=fm.losses.Constant() to the method.")
