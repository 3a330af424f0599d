"""Objectives: what is drawn, where a residual is taken, and how it adds up to a loss.

An objective is a `torch.nn.Module` whose forward pass is the whole loss, so that it can be compiled, or wrapped for
several devices, as one. `draw` holds all the randomness; `evaluate` is a deterministic function of a draw.

    value = mean over the batch of w_{s,t} distance(residual),      distance = |.|^2, summed over dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .couplings import Coupling, Independent
from .equations import Equation, Lagrangian
from .interpolants import Interpolant
from .maps import FlowMap
from .shapes import Batch, Condition
from .times import Diagonal, Square, Times
from .velocities import Draw, FromInterpolant, Velocity
from .weights import Constant, Weight, squared


class Loss(NamedTuple):
    """A loss and what it is made of.

    `value` is the scalar to descend. `parts` has, by name, the unweighted squared residual of each row, `(B,)`,
    detached; a row that a term does not use holds 0, so that the parts' means add up to the unweighted loss.
    """

    value: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """A loss for a flow map.

    Args:
        flow_map: the map to train.
        interpolant: the path between base and data.
        coupling: the law of (x0, x1); a standard normal base, independent of the data, unless given.
        times: the law of (s, t).
        weight: w_{s,t}; 1 unless given.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        interpolant: Interpolant,
        *,
        times: Times,
        coupling: Coupling | None = None,
        weight: Weight | None = None,
    ) -> None:
        super().__init__()
        self.flow_map, self.interpolant, self.times = flow_map, interpolant, times
        self.coupling = Independent() if coupling is None else coupling
        self.weight = Constant() if weight is None else weight

    def forward(
        self,
        x1: Batch,
        x0: Batch | None = None,
        cond: Condition = None,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Loss:
        """Draw and evaluate.

        Args:
            x1: data, `(B, *shape)`.
            x0: base samples paired with it; drawn from the coupling unless given.
            cond: condition, one a row.
            generator: source of randomness, on the device of `x1`.
            progress: how far training has come, in [0, 1], for laws of (s, t) that change.

        Returns:
            The loss and its unweighted parts.

        Raises:
            ValueError: x1 is no floating-point batch, or x0 has another shape.
        """
        return self.evaluate(self.draw(x1, x0, cond, generator=generator, progress=progress))

    def draw(
        self,
        x1: Batch,
        x0: Batch | None = None,
        cond: Condition = None,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Draw:
        """All the randomness of one evaluation; arguments as in `forward`."""
        if x1.ndim < 2 or not x1.dtype.is_floating_point or not len(x1):
            raise ValueError(f"x1 must be a floating-point batch (B, *shape), got {x1.dtype} {tuple(x1.shape)}.")
        if x0 is not None and x0.shape != x1.shape:
            raise ValueError(f"x0 and x1 must have one shape, got {tuple(x0.shape)} and {tuple(x1.shape)}.")
        x0, x1 = self.coupling.pair(x1, x0, generator)
        z = None
        if self.interpolant.noisy:
            z = torch.randn(x1.shape, dtype=x1.dtype, device=x1.device, generator=generator)
        s, t = self.draw_times(x1, generator, progress)
        split = torch.rand(s.shape, dtype=s.dtype, device=s.device, generator=generator)
        return Draw(x0, x1, z, s, t, split, cond)

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> tuple[Tensor, Tensor]:
        """Times (s, t), one pair a row."""
        return self.times.draw(len(x1), generator, progress, x1)

    @abstractmethod
    def evaluate(self, draw: Draw) -> Loss:
        """The loss of a draw: deterministic, and what to give to `torch.compile`."""

    def weigh(self, residual: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """The weighted loss of a residual, and its unweighted squared norms `(B,)`."""
        distance = squared(residual)
        return self.weight(distance, draw.s, draw.t).mean(), distance.detach()


class VelocityMatching(Objective):
    """E |u_{t,t}(I_t) - dI_t|^2, minimised by u_{t,t} = b_t (2303.08797; flow matching, 2210.02747)."""

    def __init__(
        self,
        flow_map: FlowMap,
        interpolant: Interpolant,
        *,
        times: Times | None = None,
        coupling: Coupling | None = None,
        weight: Weight | None = None,
    ) -> None:
        times = Diagonal() if times is None else times
        super().__init__(flow_map, interpolant, times=times, coupling=coupling, weight=weight)

    def evaluate(self, draw: Draw) -> Loss:
        x0, x1, z, _, t, _, cond = draw
        v = self.flow_map.velocity(self.interpolant.point(x0, x1, t, z), t, cond)
        value, part = self.weigh(v - self.interpolant.velocity(x0, x1, t, z), draw)
        return Loss(value, {"diagonal": part})


class MapMatching(Objective):
    """E w_{s,t} |residual of an equation at (I_s, s, t)|^2.

    Args:
        equation: the law that the map should obey, with its stop-gradient.
        velocity: where b comes from.
        uniform_split: draw the share of the first leg uniformly instead of taking equal legs (semigroup).
    """

    def __init__(
        self,
        flow_map: FlowMap,
        interpolant: Interpolant,
        equation: Equation,
        velocity: Velocity,
        *,
        times: Times,
        coupling: Coupling | None = None,
        weight: Weight | None = None,
        uniform_split: bool = False,
    ) -> None:
        super().__init__(flow_map, interpolant, times=times, coupling=coupling, weight=weight)
        self.equation, self.velocity, self.uniform_split = equation, velocity, uniform_split

    def evaluate(self, draw: Draw) -> Loss:
        x = self.interpolant.point(draw.x0, draw.x1, draw.s, draw.z)
        split = draw.split if self.uniform_split else None
        field = self.velocity.bind(draw)
        residual = self.equation(self.flow_map, x, draw.s, draw.t, field, split, cond=draw.cond)
        value, part = self.weigh(residual.value, draw)
        return Loss(value, {type(self.equation).__name__.lower(): part})


class RoundTrip(Objective):
    """E w ( |Lagrangian residual at x = X_{t,s}(I_t), with dI_t|^2 + |X_{s,t}(x) - I_t|^2 ): FMM, proposition 3.11.

    The path starts from where the map itself carries I_t, so both terms share one pull-back and one jump. Without the
    second term the map is not determined.

    Args:
        equation: the Lagrangian equation, with its derivative engine.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        interpolant: Interpolant,
        *,
        equation: Lagrangian | None = None,
        times: Times | None = None,
        coupling: Coupling | None = None,
        weight: Weight | None = None,
    ) -> None:
        times = Square() if times is None else times
        super().__init__(flow_map, interpolant, times=times, coupling=coupling, weight=weight)
        self.equation = Lagrangian() if equation is None else equation
        self.velocity = FromInterpolant(interpolant)

    def evaluate(self, draw: Draw) -> Loss:
        x0, x1, z, s, t, _, cond = draw
        here = self.interpolant.point(x0, x1, t, z)
        back = self.flow_map(here, t, s, cond)
        residual = self.equation(self.flow_map, back, s, t, self.velocity.bind(draw), cond=cond)
        assert residual.jump is not None
        transport, returning = squared(residual.value), squared(residual.jump - here)
        value = self.weight(transport + returning, s, t).mean()  # one weight on both: w ( | |^2 + | |^2 )
        return Loss(value, {"lagrangian": transport.detach(), "round_trip": returning.detach()})


class Split(Objective):
    """The first share of the rows for one objective, the rest for another; the loss is the mean over all rows.

    The share is a number of rows, not a chance: 0.75 of 512 rows are the same 384 in each batch, on each device. Rows
    of a batch are exchangeable, and their times are drawn row by row.

    Args:
        first, second: objectives of one map, interpolant and coupling.
        share: part of the rows that `first` takes, between 0 and 1.
    """

    def __init__(self, first: Objective, second: Objective, share: float = 0.75) -> None:
        if not 0 < share < 1:
            raise ValueError(f"Split needs 0 < share < 1, got {share}.")
        if first.flow_map is not second.flow_map or first.interpolant != second.interpolant:
            raise ValueError("the objectives of a Split must share their flow map and their interpolant.")
        super().__init__(first.flow_map, first.interpolant, times=first.times, coupling=first.coupling)
        self.first, self.second, self.share = first, second, share

    def cut(self, rows: int) -> int:
        """How many of `rows` the first objective takes: at least one each.

        Raises:
            ValueError: fewer than two rows.
        """
        if rows < 2:
            raise ValueError(f"a batch that is split between two objectives needs at least 2 rows, got {rows}.")
        return min(max(round(self.share * rows), 1), rows - 1)

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> tuple[Tensor, Tensor]:
        cut = self.cut(len(x1))
        pairs = [
            self.first.draw_times(x1[:cut], generator, progress),
            self.second.draw_times(x1[cut:], generator, progress),
        ]
        return torch.cat([pairs[0][0], pairs[1][0]]), torch.cat([pairs[0][1], pairs[1][1]])

    def evaluate(self, draw: Draw) -> Loss:
        rows = len(draw.x1)
        cut = self.cut(rows)
        one, two = self.first.evaluate(draw.rows(slice(None, cut))), self.second.evaluate(draw.rows(slice(cut, None)))
        first = {name: nn.functional.pad(part, (0, rows - cut)) for name, part in one.parts.items()}
        second = {name: nn.functional.pad(part, (cut, 0)) for name, part in two.parts.items()}
        return Loss((cut * one.value + (rows - cut) * two.value) / rows, _together([first, second]))


class Sum(Objective):
    """A weighted sum of objectives on one draw.

    Args:
        terms: objectives of one map, interpolant and coupling; the times of the first are drawn for all.
        scales: their factors; 1 unless given.
    """

    def __init__(self, terms: list[Objective], scales: list[float] | None = None) -> None:
        scales = [1.0] * len(terms) if scales is None else scales
        if not terms or len(scales) != len(terms):
            raise ValueError(f"Sum needs a factor for each of its terms, got {len(terms)} terms and {scales}.")
        super().__init__(terms[0].flow_map, terms[0].interpolant, times=terms[0].times, coupling=terms[0].coupling)
        self.terms, self.scales = nn.ModuleList(terms), scales

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> tuple[Tensor, Tensor]:
        first: Objective = self.terms[0]  # type: ignore[assignment]
        return first.draw_times(x1, generator, progress)

    def evaluate(self, draw: Draw) -> Loss:
        losses = [term.evaluate(draw) for term in self.terms]  # type: ignore[operator]
        value = sum(scale * loss.value for scale, loss in zip(self.scales, losses, strict=True))
        return Loss(value, _together([loss.parts for loss in losses]))  # type: ignore[arg-type]


def _together(several: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Parts of several losses in one dictionary; parts of one name add up."""
    total: dict[str, Tensor] = {}
    for parts in several:
        for name, part in parts.items():
            total[name] = total[name] + part if name in total else part
    return total
