r"""F2D2's head: the mean d_{s,t}(x) of the divergence over the trajectory from s to t, learned beside a map.

The integral (t - s) d_{s,t}(x) = int_s^t div b_r(X_{s,r}(x)) dr is that of the joint state (x, log rho), so that d
obeys the equations of u in `equations`, with the divergence in the place of the velocity:

    diagonal      d_{t,t}(x)                 =  div b_t(x)
    Lagrangian    d + (t - s) d_t d          =  div b_t(X_{s,t}(x))
    semigroup     d_{s,t}(x)                 =  l d_{s,w}(x) + (1 - l) d_{w,t}(X_{s,w}(x)),      w = s + l (t - s)

Reference: X. Ai et al., "Joint distillation for fast likelihood evaluation and sampling in flow-based models", 2025,
arXiv 2512.02636. Here the map is trained before, and stays as it is.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .. import dual
from ..interpolants import Interpolant, Linear
from ..maps import FlowMap, as_target
from ..objectives import Loss, Moment, Objective
from ..shapes import Batch, Condition, Field, Time, per_row
from ..times import Square, Times
from ..velocities import FromTeacher, RandomInputs
from .divergence import LEAST_PROBES, Estimator, divergence, signs

HeadEquation: TypeAlias = Literal["lagrangian", "semigroup"]


class WithDivergence(FlowMap):
    """A frozen copy of a map, with a head for the mean divergence; its jumps are those of the map.

    `fm.save` takes it, if the classes of its networks can be told (`fm.load`).

    Args:
        flow_map: the trained map.
        head: network `(x, s, t, cond)` that returns d itself, `(B,)`, or like x: then d is the sum of its output, so
            that any network of a map can be one.
    """

    def __init__(self, flow_map: FlowMap, head: nn.Module) -> None:
        super().__init__()
        self.flow_map, self.head = as_target(flow_map), head

    def average_velocity(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        return self.flow_map.average_velocity(x, s, t, cond)

    def mean_divergence(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Time:
        """d_{s,t}(x), `(B,)`, in 1 / time.

        Raises:
            ValueError: the head returns something of another shape.
        """
        out = self.head(x, s, t, cond)
        if out.shape != s.shape and out.shape != x.shape:
            raise ValueError(
                f"the head must return (B,) or the shape of x {tuple(x.shape)}, got {tuple(out.shape)}: change its "
                "last layer."
            )
        return per_row(out)


class _Probed(NamedTuple):
    """A condition, and the signs of an estimate, `(B, K, *shape)`."""

    cond: Condition
    probes: Tensor


class DivergenceMatching(Objective):
    """E w |residual of d at (I_s, s, t)|^2, for `fm.fit`; only the head is trained.

    Args:
        flow_map: a `WithDivergence`.
        interpolant: the path; `Linear()` unless given.
        velocity: b, the teacher's field; the map's own u_{t,t} unless given.
        equation: `lagrangian`, or `semigroup`, whose rows match the diagonal too.
        estimator: of the divergence; the noise of an estimate averages out in a squared loss.
        probes: K, for an estimate.
        times: law of (s, t); `Square()`, both orders, unless given.
        options: coupling, weight and guidance of `Objective`.

    Raises:
        ValueError: a map without a head, an unknown equation or estimator, too few probes.
    """

    def __init__(
        self,
        flow_map: WithDivergence,
        interpolant: Interpolant | None = None,
        *,
        velocity: Field | None = None,
        equation: HeadEquation = "lagrangian",
        estimator: Estimator = "hutchinson",
        probes: int = 1,
        times: Times | None = None,
        **options: Any,
    ) -> None:
        path = Linear() if interpolant is None else interpolant
        super().__init__(flow_map, path, times=Square() if times is None else times, **options)
        if not isinstance(flow_map, WithDivergence):
            raise ValueError(f"DivergenceMatching trains the head of a WithDivergence, got {type(flow_map).__name__}: "
                             "pass WithDivergence(flow_map, net).")  # fmt: skip
        if equation not in ("lagrangian", "semigroup"):
            raise ValueError(f"equation must be 'lagrangian' or 'semigroup', got {equation!r}.")
        least = LEAST_PROBES.get(estimator)
        if least is None or probes < least:
            raise ValueError(f"estimator is 'exact', 'hutchinson' (probes >= 1) or 'hutch++' (probes >= 3), got "
                             f"{estimator!r} with probes={probes}.")  # fmt: skip
        self.equation, self.probes = equation, probes
        self.estimator: Estimator = estimator
        self.velocity = None if velocity is None else FromTeacher(velocity)

    def draw_inputs(self, x1: Batch, x0: Batch | None, cond: Condition, at: Moment) -> RandomInputs:
        """`draw` of arguments that were checked, with the signs of an estimate beside the condition."""
        inputs = super().draw_inputs(x1, x0, cond, at)
        if self.estimator == "exact":
            return inputs
        probes = signs(inputs.x1, self.probes, at.generator).transpose(0, 1)  # a row for each of several draws
        return inputs._replace(cond=_Probed(inputs.cond, probes))

    def evaluate(self, inputs: RandomInputs) -> Loss:
        s, t, split = inputs.s, inputs.t, inputs.split
        cond, probes = inputs.cond if isinstance(inputs.cond, _Probed) else (inputs.cond, None)
        x = self.interpolant.point(inputs.x0, inputs.x1, s, inputs.z)
        semigroup = self.equation == "semigroup"
        residuals = {"divergence": (self._semigroup if semigroup else self._lagrangian)(inputs, x, cond, probes)}
        if semigroup:
            residuals["diagonal"] = self.head(x, s, s, cond) - self._growth(x, s, cond, probes)
        parts = {name: residual.square() for name, residual in residuals.items()}
        value = sum(self.weight(part, s, t, split).mean() for part in parts.values())
        return Loss(value, {name: part.detach() for name, part in parts.items()})  # type: ignore[arg-type]

    def head(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """d_{s,t}(x), `(B,)`."""
        return self.flow_map.mean_divergence(x, s, t, cond)  # type: ignore[operator]

    def _lagrangian(self, inputs: RandomInputs, x: Tensor, cond: Condition, probes: Tensor | None) -> Tensor:
        s, t = inputs.s, inputs.t
        d, d_dot = dual.jvp(lambda r: self.head(x, s, r, cond), (t,), (torch.ones_like(t),))
        with torch.no_grad():
            jump = self.flow_map(x, s, t, cond)
        return d + (t - s) * d_dot - self._growth(jump, t, cond, probes)

    def _semigroup(self, inputs: RandomInputs, x: Tensor, cond: Condition, probes: Tensor | None) -> Tensor:
        s, t, share = inputs.s, inputs.t, inputs.split
        with torch.no_grad():
            w = s + share * (t - s)
            first = self.head(x, s, w, cond)
            rest = self.head(self.flow_map(x, s, w, cond), w, t, cond)
            legs = share * first + (1 - share) * rest
        return self.head(x, s, t, cond) - legs

    @torch.no_grad()
    def _growth(self, x: Tensor, t: Tensor, cond: Condition, probes: Tensor | None) -> Tensor:
        """div b_t(x), `(B,)`."""
        field: Field = self.flow_map.velocity if self.velocity is None else self.velocity
        drawn = None if probes is None else probes.transpose(0, 1)
        return divergence(field, x, t, cond, estimator=self.estimator, probes=drawn)
