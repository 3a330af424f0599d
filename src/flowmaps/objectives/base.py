"""What every objective is: a draw, which holds all the randomness, and a loss, a function of the draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeAlias, TypedDict

import torch
from torch import Tensor, nn

from ..couplings import Coupling, Independent
from ..interpolants import Interpolant
from ..losses import Constant, Distance, Perceptual, Weight, measure, squared
from ..maps import FlowMap, Frozen
from ..shapes import Batch, Condition, Time, like
from ..times import Times
from ..velocities import Draw, FromInterpolant, Guidance, SelfGuided, Velocity


class Loss(NamedTuple):
    """A loss and what it is made of.

    `value` is the scalar to descend. `parts` has, by name, the unweighted squared residual of each row, `(B,)`,
    detached; a row that a term does not use holds 0, so that the parts' means add up to the unweighted loss.
    """

    value: Tensor
    parts: dict[str, Tensor]


Drawn: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""s, t, split and warm, each `(B,)`."""


class Common(TypedDict, total=False):
    """Options of every objective; see `Objective`."""

    coupling: Coupling | None
    distance: Distance | None
    weight: Weight | None
    guidance: Guidance | None


class Objective(nn.Module, ABC):
    """A loss for a flow map.

    Args:
        flow_map: the map to train.
        interpolant: the path between base and data.
        coupling: the law of (x0, x1); a standard normal base, independent of the data, unless given.
        times: the law of (s, t).
        distance: of the residual, `(B, *shape) -> (B,)`; the squared norm unless given. A module is frozen.
        weight: w_{s,t}; 1 unless given.
        guidance: how strongly the condition is followed; not at all unless given.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        interpolant: Interpolant,
        *,
        times: Times,
        coupling: Coupling | None = None,
        distance: Distance | None = None,
        weight: Weight | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        super().__init__()
        self.flow_map, self.interpolant, self.times = flow_map, interpolant, times
        self.coupling = Independent() if coupling is None else coupling
        self.distance = squared if distance is None else distance
        if isinstance(self.distance, nn.Module):
            self.distance.requires_grad_(False).eval()
        self.weight = Constant() if weight is None else weight
        self.guidance = guidance

    def train(self, mode: bool = True) -> Objective:
        """Set the mode of the modules that are trained; a distance stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.distance, nn.Module):
            self.distance.eval()
        return self

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
        cond = cond if self.guidance is None else self.guidance.condition(cond, x1, generator)
        x0, x1 = self.coupling.pair(x1, x0, generator, cond)
        z = None
        if self.interpolant.noisy:
            z = torch.randn(x1.shape, dtype=x1.dtype, device=x1.device, generator=generator)
        s, t, split, warm = self.draw_times(x1, generator, progress)
        return Draw(x0, x1, z, s, t, split, cond, warm)

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> Drawn:
        """Times s and t, the share of the first leg, and the share of the derivative that counts, each `(B,)`."""
        s, t = self.times.draw(len(x1), generator, progress, x1)
        return s, t, torch.rand(s.shape, dtype=s.dtype, device=s.device, generator=generator), torch.ones_like(s)

    def shares(self, rows: int, number: int) -> Tensor:
        """Which of the rows of a batch make up each of `number` equal parts of it, `(number, rows // number)`.

        Evaluated one after the other, their losses have the mean of the whole batch's.

        Raises:
            ValueError: the batch has no such parts.
        """
        if rows % number:
            raise ValueError(f"a batch of {rows} rows has no {number} equal parts: take a multiple of {number}.")
        return torch.arange(rows).reshape(-1, number).T

    def follow(self, before: float, now: float) -> None:
        """Let the targets that follow the map do so, after a step that took progress from `before` to `now`."""
        for target in self.followers():
            target.follow(self.flow_map, before, now)

    def changes_with_progress(self) -> bool:
        """Whether the times that are drawn, or a target, depend on how far training has come."""
        x1 = torch.zeros(64, 8)
        draws = [self.draw_times(x1, torch.Generator().manual_seed(0), progress) for progress in (0.0, 0.4, 1.0)]
        first, *others = [torch.stack(draw) for draw in draws]
        renewed = any(target.rounds is not None for target in self.followers())
        return renewed or not all(torch.equal(first, other) for other in others)

    def followers(self) -> list[Frozen]:
        """The targets that follow the map."""
        return [module for module in self.modules() if isinstance(module, Frozen) and module.follows]

    def data_velocity(self) -> Velocity:
        """dI_t, guided where guidance is asked for.

        Raises:
            ValueError: it is asked for, and there is nothing to guide away from.
        """
        if self.guidance is None or self.guidance.weight == 1:
            return FromInterpolant(self.interpolant)
        if self.guidance.negative is None and not (self.guidance.classes and self.guidance.dropout):
            raise ValueError(
                "guidance of a method that learns from data needs classes= and dropout > 0, for the map to learn what "
                "no label means, or a negative= field."
            )
        return SelfGuided(self.interpolant, self.flow_map, self.guidance)

    def shared(self) -> dict[str, Any]:
        """What an objective made of this one draws with: its coupling and its guidance."""
        return {"coupling": self.coupling, "guidance": self.guidance}

    @abstractmethod
    def evaluate(self, draw: Draw) -> Loss:
        """The loss of a draw: deterministic, and what to give to `torch.compile`."""

    def between_points(self, one: Batch, other: Batch) -> Time:
        """The distance of two batches of points, `(B,)`."""
        if isinstance(self.distance, Perceptual):
            return measure(self.distance, one, other)
        return measure(self.distance, one - other)

    def between_velocities(self, u: Batch, target: Batch, x: Batch, s: Time) -> Time:
        """The distance of two velocities at points `x` of times `s`, `(B,)`: see `losses.Perceptual`."""
        if not isinstance(self.distance, Perceptual):
            return measure(self.distance, u - target)
        to_data = like(1 - s, x)
        return measure(self.distance, x + to_data * u, x + to_data * target)
