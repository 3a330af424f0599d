"""What the papers' formulas are written with, by hand: points of the path, jumps, derivatives of jumps.

Nothing of the library is used but alpha, beta, gamma: the interpolant's point and derivative are taken by hand, a map
is `X_{s,t}(x)` written from its network, and derivatives are `torch.func.jvp` of X, not of u.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases import METHODS, Network, Parametrisation, generator
from torch import Tensor, nn
from torch.func import functional_call, jvp

from flowmaps.interpolants import Interpolant
from flowmaps.objectives import Objective
from flowmaps.velocities import RandomInputs

ROWS, DIM, DIAGONAL = 11, 3, 8
"""Eleven rows of three dimensions; 0.75 of eleven rows are eight, to the nearest row."""
CLOSE = 1e-9

Vector = Callable[..., Tensor]
"""A map X(x, s, t) or a field b(x, t)."""


def squares(residual: Tensor) -> Tensor:
    """|r|^2 of each row."""
    return (residual * residual).sum(1)


@dataclass(frozen=True)
class Paper:
    """What the papers' formulas speak of, for the rows of one draw."""

    net: nn.Module
    case: Parametrisation
    interpolant: Interpolant
    draw: RandomInputs
    frozen: nn.Module | None = None

    def rows(self, part: slice) -> Paper:
        """Some of the rows."""
        draw = RandomInputs(*(None if value is None else value[part] for value in self.draw))
        return Paper(self.net, self.case, self.interpolant, draw, self.frozen)

    def I(self, t: Tensor) -> Tensor:  # noqa: E743
        """I_t = alpha_t x0 + beta_t x1 + gamma_t z."""
        path, draw = self.interpolant, self.draw
        point = path.alpha(t)[:, None] * draw.x0 + path.beta(t)[:, None] * draw.x1
        return point if draw.z is None else point + path.gamma(t)[:, None] * draw.z

    def dI(self, t: Tensor) -> Tensor:
        """The derivative of I_t, from the coefficients themselves."""
        return jvp(self.I, (t,), (torch.ones_like(t),))[1]

    def X(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """X_{s,t}(x)."""
        return self.case.jump(self.net(x, s, t, self.draw.cond), x, s, t)

    def Xc(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The frozen map."""
        assert self.frozen is not None
        return self.case.jump(self.frozen(x, s, t, self.draw.cond), x, s, t).detach()

    def u(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """(X_{s,t}(x) - x) / (t - s)."""
        return (self.X(x, s, t) - x) / (t - s)[:, None]

    def held(self, net: nn.Module, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The jump of a network whose weights take no gradient, though x may; x itself where s = t."""
        weights = {name: value.detach() for name, value in net.named_parameters()}
        out = functional_call(net, weights, (x, s, t, self.draw.cond))
        return torch.where((s == t)[:, None], x, self.case.jump(out, x, s, t))

    def v(self, x: Tensor, t: Tensor) -> Tensor:
        """u_{t,t}(x)."""
        return self.case.velocity(self.net(x, t, t, self.draw.cond), x, t)

    def b(self, x: Tensor, t: Tensor) -> Tensor:
        """The teacher."""
        return teacher(x, t, self.draw.cond)

    def d_t(self, x: Tensor) -> Tensor:
        """d_t X_{s,t}(x)."""
        s, t = self.draw.s, self.draw.t
        return jvp(lambda r: self.X(x, s, r), (t,), (torch.ones_like(t),))[1]

    def d_s(self, x: Tensor) -> Tensor:
        """d_s X_{s,t}(x)."""
        s, t = self.draw.s, self.draw.t
        return jvp(lambda r: self.X(x, r, t), (s,), (torch.ones_like(s),))[1]

    def grad(self, x: Tensor, b: Tensor) -> Tensor:
        """grad X_{s,t}(x) . b."""
        s, t = self.draw.s, self.draw.t
        return jvp(lambda y: self.X(y, s, t), (x,), (b,))[1]


def teacher(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """A field that depends on all it is given, not linearly."""
    shift = 0.0 if cond is None else cond.sum(1, keepdim=True)
    return torch.sin(x.flip(1) + shift) * (1 + t[:, None]) - 0.4 * x * x


def build(
    name: str, case: Parametrisation, interpolant: Interpolant, progress: float = 1.0, **options: object
) -> tuple[Objective, Paper]:
    """A method on a small network, and what its formula speaks of on the same draw."""
    rng = generator(5)
    net, frozen = Network(DIM, 1), Network(DIM, 2)
    objective = METHODS[name](
        case.build(net), velocity=teacher, frozen=case.build(frozen), interpolant=interpolant, **options
    )
    x1, cond = torch.randn(ROWS, DIM, dtype=torch.float64, generator=rng), torch.randn(ROWS, 2, generator=rng).double()
    objective = objective.double()
    draw = objective.draw(x1, cond=cond, generator=rng, progress=progress)
    return objective, Paper(net, case, interpolant, draw, frozen)


def assert_same(objective: Objective, paper: Paper, value: Tensor, close: float = CLOSE) -> None:
    """Value and gradient of an objective and of a formula, to 1e-9 of their size."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    loss = objective.evaluate(paper.draw)
    wanted = torch.autograd.grad(value, parameters, materialize_grads=True)
    got = torch.autograd.grad(loss.value, parameters, materialize_grads=True)
    assert abs(loss.value - value) <= close * abs(value)
    size = max(float(g.norm()) for g in wanted)
    assert size > 1e-3 * abs(value), "the formula has no gradient: nothing is compared"
    for ours, theirs in zip(got, wanted, strict=True):
        assert float((ours - theirs).norm()) <= close * size
