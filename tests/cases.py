"""All the cases of the laws, once: a new class is tested by adding its line to a list here.

    X_{s,t}(x) = x + (t - s) u_{s,t}(x)

A map of the library is a network read through a parametrisation. `Parametrisation` inverts that reading, so that any u
has its network, and `ExactNetwork` is the network of the closed-form flow of a Gaussian, moved away by features times
`cond`, one array of parameters a row: at `cond = 0` each law holds, and one backward pass gives each row its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowmaps import equations, exact, losses, maps, methods, solvers
from flowmaps.equations import Stop
from flowmaps.exact.mean_gradient import FEATURES as FEATURES
from flowmaps.exact.mean_gradient import Features
from flowmaps.interpolants import Interpolant, Linear, Trigonometric, VarianceExploding, VariancePreserving, WithNoise
from flowmaps.maps import FlowMap
from flowmaps.objectives import Objective
from flowmaps.shapes import like

DIMS = (1, 2, 5)
ENGINES = ("dual", "torch", "finite-difference")

# interpolants ---------------------------------------------------------------------------------------------------------

INTERPOLANTS: dict[str, Interpolant] = {
    "linear": Linear(),
    "trigonometric": Trigonometric(),
    "variance-preserving": VariancePreserving(),
    "variance-exploding": VarianceExploding(5.0, 3.0),
    "variance-exploding-edm": VarianceExploding(),
    "linear-noise": WithNoise(Linear(), 0.7),
    "trigonometric-noise": WithNoise(Trigonometric(), 0.4),
    "variance-preserving-noise": WithNoise(VariancePreserving(), 0.5),
    "variance-exploding-noise": WithNoise(VarianceExploding(5.0, 3.0), 0.6),
}


def last_time(interpolant: Interpolant) -> float:
    """The last time at which the coefficients are smooth: alpha of `VariancePreserving` has no derivative at t = 1."""
    path = interpolant.path if isinstance(interpolant, WithNoise) else interpolant
    return 0.97 if isinstance(path, VariancePreserving) else 1.0


# maps -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parametrisation:
    """A map, the network that a given u has in it, and its jump and velocity written by hand from the network's output.

    Args:
        build: network -> map.
        network: u, x, s, t -> what the network must return for the map to have this u.
        jump: the network's output n at (x, s, t), x, s, t -> X_{s,t}(x), for s not t.
        velocity: the network's output n at (x, t, t), x, t -> u_{t,t}(x).
        trained: whether the map has parameters to train.
    """

    build: Callable[[nn.Module], FlowMap]
    network: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    jump: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor]
    trained: bool = True


def _rotation(u: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """n from u = (cos(theta) - 1) / (t - s) x + sin(theta) / (t - s) n, with the limits at theta = 0 put in."""
    theta = 0.5 * math.pi * (t - s)
    same = theta == 0
    safe = torch.where(same, 1.0, theta)
    cosine = torch.where(same, 0.0, 0.5 * math.pi * (torch.cos(safe) - 1) / safe)
    sine = torch.where(same, 0.5 * math.pi, 0.5 * math.pi * torch.sin(safe) / safe)
    return (u - like(cosine, x) * x) / like(sine, x)


AVERAGE = Parametrisation(
    build=maps.AverageVelocity,
    network=lambda u, x, s, t: u,
    jump=lambda n, x, s, t: x + (t - s)[:, None] * n,
    velocity=lambda n, x, t: n,
)

MAPS: dict[str, Parametrisation] = {
    "average-velocity": AVERAGE,
    "endpoint": Parametrisation(
        build=maps.Endpoint,
        network=lambda u, x, s, t: x + like((1 - s).clamp_min(1e-3), x) * u,
        jump=lambda n, x, s, t: ((1 - t) / (1 - s))[:, None] * x + ((t - s) / (1 - s))[:, None] * n,
        velocity=lambda n, x, t: (n - x) / (1 - t)[:, None],
    ),
    "trigonometric": Parametrisation(
        build=maps.Trigonometric,
        network=_rotation,
        jump=lambda n, x, s, t: (
            torch.cos(math.pi / 2 * (t - s))[:, None] * x + torch.sin(math.pi / 2 * (t - s))[:, None] * n
        ),
        velocity=lambda n, x, t: math.pi / 2 * n,
    ),
}
"""The maps with a network of their own."""

WRAPPED: dict[str, Parametrisation] = {
    "composed": replace(AVERAGE, build=lambda net: maps.Composed(maps.AverageVelocity(net), 3)),
    "composed-trigonometric": replace(
        MAPS["trigonometric"], build=lambda net: maps.Composed(maps.Trigonometric(net), 2)
    ),
    "near": replace(AVERAGE, build=lambda net: maps.VelocityForShortJumps(maps.AverageVelocity(net), 0.0)),
    "frozen": replace(AVERAGE, build=lambda net: maps.Target(maps.AverageVelocity(net)), trained=False),
    "frozen-endpoint": replace(
        MAPS["endpoint"], build=lambda net: maps.Target(maps.Composed(maps.Endpoint(net), 2)), trained=False
    ),
}
"""Maps made of other maps; exact where those are."""

SOLVED: type[FlowMap] = solvers.SolverFlow
"""The map made of a velocity field; exact up to its tolerance, tested against the exact flow."""

# equations ------------------------------------------------------------------------------------------------------------

EQUATIONS: dict[str, Callable[..., equations.Equation]] = {
    "lagrangian": equations.Lagrangian,
    "eulerian": equations.Eulerian,
    "semigroup": equations.Semigroup,
    "eulerian-own": lambda stop=Stop.NONE, engine="dual": equations.Eulerian(
        stop, engine, along_own_velocity=stop is Stop.TARGET
    ),
    "semigroup-3": lambda stop=Stop.NONE, engine="dual": equations.Semigroup(stop, engine, legs=3),
}
DERIVATIVES = ("lagrangian", "eulerian", "eulerian-own")
"""The equations that take a derivative, and so have an engine."""

# methods --------------------------------------------------------------------------------------------------------------


def _whole(progress: float) -> float:
    """A derivative that counts in full."""
    return 1.0


@dataclass(frozen=True)
class Method:
    """A method of the library with its options.

    Args:
        function: the method.
        options: its options.
        source: where its velocity comes from: "teacher", "frozen" (a frozen map) or "data" (dI).
        exact: whether the exact map is a zero of the gradient, in the mean where the velocity is dI; else it is one as
            a step, a leg of dI, or a solver's step tends to 0. The laws are for those that are.
        descends: whether the exact map minimises its loss.
        plain: options for the laws, in the place of the paper's: an adaptive or learned weight makes of a mean
            something else, and so do a tangent normalised under dI and a derivative that counts in part.
        target: whether the other side is taken by a map of its own, the frozen one or a copy.
    """

    function: Callable[..., Objective]
    options: dict[str, Any]
    source: str = "data"
    exact: bool = field(kw_only=True)
    descends: bool = True
    plain: dict[str, Any] = field(default_factory=dict)
    target: bool = False

    def __call__(
        self,
        flow_map: FlowMap,
        *,
        velocity: Any = None,
        frozen: FlowMap | None = None,
        plain: bool = False,
        **rest: Any,
    ) -> Any:
        """The objective; `velocity` for a method with a teacher, `frozen` for one with a frozen map or a target."""
        given: dict[str, Any] = {"teacher": {"teacher": velocity}, "frozen": {"frozen": frozen}, "data": {}}[
            self.source
        ]
        if self.target:
            given = {**given, "target": flow_map if frozen is None else frozen}
        return self.function(flow_map, **{**given, **self.options, **(self.plain if plain else {}), **rest})


_UNIT: dict[str, Any] = {"weight": losses.Constant()}
_WARM: dict[str, Any] = {"warmup": _whole}
_BARE: dict[str, Any] = {"normalise": None, **_WARM, **_UNIT}

METHODS: dict[str, Method] = {
    "flow_matching": Method(methods.flow_matching, {}, exact=True),
    "reflow": Method(methods.reflow, {"steps": 5}, "teacher", exact=False),  # exact for the law of its pairs
    **{f"lmd-{stop.value}": Method(methods.lmd, {"stop": stop}, "teacher", exact=True) for stop in Stop},
    **{f"emd-{stop.value}": Method(methods.emd, {"stop": stop}, "teacher", exact=True) for stop in Stop},
    "fmm": Method(methods.fmm, {}, exact=True),
    "freeflow": Method(methods.freeflow, {}, "teacher", plain=_UNIT, exact=True),
    "ayf_lmd": Method(methods.ayf_lmd, {}, "teacher", plain=_WARM, exact=True),
    "ayf_lmd-bare": Method(methods.ayf_lmd, {"normalise": None}, "teacher", plain=_WARM, exact=True),
    "pfmm-2": Method(methods.pfmm, {"legs": 2}, "frozen", exact=True),
    "pfmm-4": Method(methods.pfmm, {"legs": 4}, "frozen", exact=True),
    "progressive_distillation": Method(
        methods.progressive_distillation, {"cells": 8}, "frozen", plain=_UNIT, exact=True
    ),
    "neural_operator": Method(methods.neural_operator, {"solver_steps": 3}, "teacher", exact=False),
    "ctm": Method(methods.ctm, {"matching": 0.7, "solver_steps": 1}, "teacher", exact=False),
    "ctm-target": Method(methods.ctm, {"solver": "rk4", "solver_steps": 2}, "teacher", exact=False, target=True),
    "eulerian_estimation": Method(methods.eulerian_estimation, {}, descends=False, exact=True),
    "lsd": Method(methods.lsd, {}, exact=True),
    "lsd-none": Method(methods.lsd, {"stop": Stop.NONE}, exact=True),
    "esd": Method(methods.esd, {}, exact=True),
    "esd-velocity": Method(methods.esd, {"stop": Stop.VELOCITY}, exact=True),
    "slim_lsd": Method(methods.slim_lsd, {}, exact=True),
    "tvm": Method(methods.tvm, {}, target=True, exact=True),
    "slim_esd": Method(methods.slim_esd, {}, exact=True),
    "psd-uniform": Method(methods.psd, {}, exact=True),
    "psd-midpoint": Method(methods.psd, {"midpoint": True}, exact=True),
    "shortcut": Method(methods.shortcut, {"levels": 3}, exact=False),  # legs of the least length are Euler steps
    "shortcut-target": Method(methods.shortcut, {}, exact=False, target=True),
    "split_meanflow": Method(methods.split_meanflow, {}, exact=True),
    "split_meanflow-taught": Method(methods.split_meanflow, {}, "teacher", exact=True),
    "meanflow": Method(methods.meanflow, {}, descends=False, plain=_UNIT, exact=True),
    "improved_meanflow": Method(methods.improved_meanflow, {}, plain=_UNIT, exact=True),
    "pixel_meanflow": Method(methods.pixel_meanflow, {}, plain=_UNIT, exact=True),
    "anyflow": Method(methods.anyflow, {"engine": "dual"}, descends=False, plain=_UNIT, exact=True),
    "anyflow-taught": Method(methods.anyflow, {"engine": "dual"}, "teacher", plain=_UNIT, exact=True),
    "soflow": Method(methods.soflow, {"first_leg": 0.3}, exact=False, plain=_UNIT),
    "facm": Method(methods.facm, {}, descends=False, plain={**_UNIT, "distance": losses.squared}, exact=True),
    "facm-taught": Method(methods.facm, {}, "teacher", plain=_UNIT, exact=True),
    "alphaflow": Method(methods.alphaflow, {"alpha": 0.3}, exact=False, plain=_UNIT),
    "alphaflow-own": Method(methods.alphaflow, {"alpha": 0.3, "velocity_first": False}, plain=_UNIT, exact=True),
    "ayf_emd": Method(methods.ayf_emd, {}, "teacher", plain=_WARM, exact=True),
    "ayf_emd-bare": Method(methods.ayf_emd, {"normalise": None}, "teacher", plain=_WARM, exact=True),
    "sct": Method(methods.sct, {}, descends=False, plain=_BARE, exact=True),
    "scd": Method(methods.scd, {}, "teacher", plain={**_WARM, **_UNIT}, exact=True),
    "scd-bare": Method(methods.scd, {"normalise": None}, "teacher", plain=_BARE, exact=True),
    "consistency_training": Method(methods.consistency_training, {"cells": 6}, exact=False),
    "consistency_training-target": Method(methods.consistency_training, {"cells": 6}, exact=False, target=True),
    "improved_consistency_training": Method(
        methods.improved_consistency_training, {"cells": 6, "huber": 0.03}, exact=False
    ),
    "easy_consistency_tuning": Method(methods.easy_consistency_tuning, {}, exact=False),
    "consistency_distillation": Method(methods.consistency_distillation, {"cells": 6}, "teacher", exact=False),
    "consistency_distillation-target": Method(
        methods.consistency_distillation, {"cells": 5, "solver": "euler"}, "teacher", exact=False, target=True
    ),
}
EXACT = [name for name, method in METHODS.items() if method.exact]
TAUGHT = [name for name in EXACT if METHODS[name].source != "data"]
DIRECT = [name for name in EXACT if METHODS[name].source == "data"]

# exact networks -------------------------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    """A source of randomness of its own."""
    return torch.Generator().manual_seed(seed)


def gaussian(dim: int, interpolant: Interpolant, seed: int = 0) -> exact.Gaussian:
    """Two Gaussians with full, commuting covariances and means that differ; the base has the path's own scale."""
    rng = generator(100 * dim + seed)
    vectors = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=rng))[0]
    base, data = 0.4 + torch.rand(2, dim, dtype=torch.float64, generator=rng)
    path = interpolant.path if isinstance(interpolant, WithNoise) else interpolant
    scale = path.sigma_max if isinstance(path, VarianceExploding) else 1.0
    return exact.Gaussian(
        mean=0.5 * torch.randn(dim, dtype=torch.float64, generator=rng),
        covariance=vectors @ torch.diag(data) @ vectors.mT,
        base_mean=0.3 * torch.randn(dim, dtype=torch.float64, generator=rng),
        base_covariance=scale**2 * vectors @ torch.diag(base) @ vectors.mT,
        interpolant=interpolant,
    )


def base_sample(law: exact.Gaussian, number: int, rng: torch.Generator) -> Tensor:
    """Draws of x0, `(number, D)`, float64."""
    return exact.Gaussian(law.base_mean, law.base_covariance).sample(number, rng, torch.float64)


class ExactNetwork(nn.Module):
    """The network whose map is the exact flow of `law`, plus features(x, s, t) . cond where `cond` is given.

    Args:
        law: the Gaussian.
        case: the parametrisation that reads the network.
    """

    def __init__(self, law: exact.Gaussian, case: Parametrisation) -> None:
        super().__init__()
        self.law, self.case = law, case
        self.features = Features(law)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """`(B, D), (B,), (B,), (B, FEATURES, D) or None -> (B, D)`."""
        step = like(t - s, x)
        same = step == 0
        jump = (self.law.flow_map(x, s, t) - x) / torch.where(same, 1.0, step)
        out = self.case.network(torch.where(same, self.law.velocity(x, t), jump), x, s, t)
        return out if cond is None else out + (self.features(x, s, t) * cond).sum(1)


def exact_map(law: exact.Gaussian, case: Parametrisation) -> FlowMap:
    """The exact flow of `law` as a map of the library; `cond`, `(B, FEATURES, D)`, moves it away."""
    return case.build(ExactNetwork(law, case))


# trained networks -----------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """A small network of (x, s, t, cond) with random layers, the last one too; `cond` is `(B, 2)`, always needed."""

    def __init__(self, dim: int, seed: int = 0, width: int = 9, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = nn.Linear(dim + 4, width, dtype=dtype)
        self.hidden = nn.Linear(width, width, dtype=dtype)
        self.last = nn.Linear(width, dim, dtype=dtype)
        rng = generator(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                spread = 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
                parameter.copy_(spread * torch.randn(parameter.shape, dtype=dtype, generator=rng))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """`(B, D), (B,), (B,), (B, 2) -> (B, D)`."""
        h = torch.tanh(self.first(torch.cat([x, s[:, None], t[:, None], cond], 1)))
        return self.last(torch.nn.functional.silu(self.hidden(h)))
