"""What every objective is: it draws random inputs (`draw`), and its loss is a function of them (`evaluate`).

    loss  =  mean over the batch of w_{s,t} d(prediction - target)

`Objective` is the base of the classes in `matching` and `combined`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeAlias, TypedDict

import torch
from torch import Tensor, nn

from ..couplings import Coupling, Independent
from ..interpolants import Interpolant
from ..losses import Constant, Distance, Perceptual, Weight, measure, squared
from ..maps import FlowMap, Target
from ..shapes import Batch, Condition, Time, like
from ..times import Times
from ..velocities import FromInterpolant, Guidance, RandomInputs, SelfGuided, Velocity
from .inputs import check_draws, check_inputs, check_map, copy_of, repeated
from .progress import Progress


class Loss(NamedTuple):
    """A loss and the squared residuals of its terms.

    `value` is the scalar to differentiate. `parts` holds for each term, by name, the squared norm of each row's
    residual, `(B,)`, detached and without a weight. A row that a term does not use has 0 there, so that the means of
    the parts add up to the unweighted loss.
    """

    value: Tensor
    parts: dict[str, Tensor]


DrawnTimes: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""s, t, split and warmup of `RandomInputs`, each `(B,)`."""


class Moment(NamedTuple):
    """When in the training a batch is drawn, and from which random numbers; see `Objective.forward`."""

    generator: torch.Generator | None
    progress: float
    step: int | None


class Common(TypedDict, total=False):
    """Options of every objective; see `Objective`."""

    coupling: Coupling | None
    distance: Distance | None
    weight: Weight | None
    guidance: Guidance | None
    draws: int


class Objective(nn.Module, ABC):
    """A loss for a flow map.

    Args:
        flow_map: the map to train.
        interpolant: the path between base and data.
        times: the law of (s, t).
        coupling: the law of (x0, x1); a standard normal base, independent of the data, unless given.
        distance: of the residual, `(B, *shape) -> (B,)`; the squared norm unless given. A module is frozen.
        weight: w_{s,t}; 1 unless given.
        guidance: classifier-free guidance, and label dropout; neither unless given.
        draws: number of draws of noise, times and label dropout for each row of data: the loss of a batch of B rows is
            over B * draws rows, so that less data is read or encoded for each of them (Pocket TTS). A coupling pairs
            each copy of the batch by itself; partners that the caller gives are used in each draw.

    Raises:
        ValueError: `flow_map` is no map, or `draws` is no whole number of at least 1.
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
        draws: int = 1,
    ) -> None:
        super().__init__()
        check_map(flow_map)
        check_draws(draws)
        self.flow_map, self.interpolant, self.times = flow_map, interpolant, times
        self.coupling = Independent() if coupling is None else coupling
        self.distance = squared if distance is None else distance
        if isinstance(self.distance, nn.Module):
            self.distance.requires_grad_(False).eval()
        self.weight = Constant() if weight is None else weight
        self.guidance, self.draws = guidance, draws
        self._progress = Progress()

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
        progress: float | None = None,
        step: int | None = None,
    ) -> Loss:
        """Draw the random inputs and return their loss.

        Args:
            x1: data, `(B, *shape)`.
            x0: base samples paired with it; drawn from the coupling unless given.
            cond: condition, one a row.
            generator: source of randomness, on the device of `x1`.
            progress: share of the training steps that have been taken, in [0, 1]. In evaluation mode, and where nothing
                depends on it, 1 unless given; an objective with a schedule or a moving target needs it in training.
            step: number of training steps that have been taken; one whose terms take turns needs it in training.

        Returns:
            The loss, and the squared residuals of its terms.

        Raises:
            ValueError: x1 is not a floating-point batch, x0 has another shape, or the objective changes during training
                and was not told of it (`progress`, `step`).
        """
        return self.evaluate(self.draw(x1, x0, cond, generator=generator, progress=progress, step=step))

    def draw(
        self,
        x1: Batch,
        x0: Batch | None = None,
        cond: Condition = None,
        *,
        generator: torch.Generator | None = None,
        progress: float | None = None,
        step: int | None = None,
    ) -> RandomInputs:
        """Draw the random inputs of one loss; arguments as in `forward`."""
        progress = self._progress.of_draw(progress, self)
        check_inputs(self.flow_map, x1, x0, cond)
        return self.draw_inputs(x1, x0, cond, Moment(generator, progress, step))

    def draw_inputs(self, x1: Batch, x0: Batch | None, cond: Condition, at: Moment) -> RandomInputs:
        """`draw` of arguments that were checked; an objective that draws in a way of its own does so here."""
        generator = at.generator
        x1, x0, cond = (repeated(value, self.draws) for value in (x1, x0, cond))
        cond = cond if self.guidance is None else self.guidance.condition(cond, x1, generator)
        x0, x1 = self._pair(x1, x0, cond, generator)
        z = None
        if self.interpolant.noisy:
            z = torch.randn(x1.shape, dtype=x1.dtype, device=x1.device, generator=generator)
        s, t, split, warmup = self.draw_times(x1, generator, at.progress)
        return RandomInputs(x0, x1, z, s, t, split, cond, warmup, self.counts(len(x1)))

    def _pair(
        self, x1: Batch, x0: Batch | None, cond: Condition, generator: torch.Generator | None
    ) -> tuple[Batch, Batch]:
        """Pairs (x0, x1), each of the copies of the batch by itself."""
        if self.draws == 1:
            return self.coupling.pair(x1, x0, generator, cond)
        rows = len(x1) // self.draws
        pairs = []
        for k in range(self.draws):
            one, other, label = (copy_of(value, k, rows) for value in (x1, x0, cond))
            pairs.append(self.coupling.pair(one, other, generator, label))
        x0, x1 = (torch.cat(ends) for ends in zip(*pairs, strict=True))
        return x0, x1

    @property
    def number_of_parts(self) -> int:
        """How many objectives with rows of their own it is made of."""
        return 1

    def counts(self, rows: int) -> tuple[int, ...]:
        """How many of `rows` are drawn for each part of an objective made of others; empty for one part."""
        return ()

    def draw_times(self, x1: Batch, generator: torch.Generator | None, progress: float) -> DrawnTimes:
        """Draw the times s and t and the share of the first leg, beside the factor of the warm-up, each `(B,)`."""
        s, t = self.times.draw(len(x1), generator, progress, x1)
        return s, t, torch.rand(s.shape, dtype=s.dtype, device=s.device, generator=generator), torch.ones_like(s)

    def micro_batches(self, rows: int, number: int) -> Tensor:
        """The rows of each of `number` equal micro-batches of a draw, `(number, rows // number)`.

        The mean of the losses of the micro-batches is the loss of the draw, so that gradients can be accumulated.
        A batch of B rows makes a draw of B * draws rows.

        Raises:
            ValueError: the batch cannot be divided like that.
        """
        if rows % number:
            raise ValueError(f"a batch of {rows} rows has no {number} equal parts: take a multiple of {number}.")
        return torch.arange(rows).reshape(-1, number).T

    def step(self, progress: float, *, before: float | None = None) -> None:
        """Do what is due after a step of the optimiser: update the moving targets.

            for step in range(steps):
                loss = objective(x1, progress=step / steps)
                optimiser.zero_grad(); loss.value.backward(); optimiser.step()
                objective.step((step + 1) / steps)

        Args:
            progress: share of the training steps that have been taken, this one included, in [0, 1].
            before: that share before this step; unless given, that of the last call, or in the first call that of the
                first draw.

        Raises:
            ValueError: a share outside [0, 1].
        """
        before = self._progress.of_step(progress, before)
        for target in self.moving_targets():
            target.update(self.flow_map, before, progress)

    def moving_targets(self) -> list[Target]:
        """The targets that change with the map during training: EMAs, and copies that are made anew each round."""
        return [module for module in self.modules() if isinstance(module, Target) and module.moves]

    def changes_with_progress(self, *, warmup: bool = True) -> bool:
        """Whether the law of the times, or a target that is renewed, depends on the progress of training.

        Args:
            warmup: count the warm-up of a derivative too.
        """
        if any(target.rounds is not None for target in self.moving_targets()):
            return True
        x1 = torch.zeros(64, 8)
        drawn = [self.draw_times(x1, torch.Generator().manual_seed(0), k / 10) for k in range(11)]
        first, *others = [torch.stack(times if warmup else times[:3]) for times in drawn]
        return not all(torch.equal(first, other) for other in others)

    def data_velocity(self) -> Velocity:
        """The source of dI_t, guided if the objective has guidance.

        Raises:
            ValueError: there is guidance, but no velocity without a label to be guided away from.
        """
        if self.guidance is None or self.guidance.weight == 1:
            return FromInterpolant(self.interpolant)
        if self.guidance.negative is None and not (self.guidance.knows_none and self.guidance.dropout):
            raise ValueError(
                "guidance of a method that learns from data needs classes=, condition_dim= or null=, and dropout > 0, "
                "for the map to learn what no condition means, or a negative= field."
            )
        return SelfGuided(self.interpolant, self.flow_map, self.guidance)

    def shared(self) -> dict[str, Any]:
        """The options that a combination of objectives takes over from its parts: coupling, guidance and draws."""
        return {"coupling": self.coupling, "guidance": self.guidance, "draws": self.draws}

    @abstractmethod
    def evaluate(self, inputs: RandomInputs) -> Loss:
        """The loss of given random inputs: a deterministic function, which `torch.compile` can compile."""

    def between_points(self, one: Batch, other: Batch) -> Time:
        """The distance of two batches of points, row by row, `(B,)`."""
        if isinstance(self.distance, Perceptual):
            return measure(self.distance, one, other)
        return measure(self.distance, one - other)

    def between_velocities(self, u: Batch, target: Batch, x: Batch, s: Time) -> Time:
        """The distance of two velocities at points `x` and times `s`, row by row, `(B,)`."""
        if not isinstance(self.distance, Perceptual):
            return measure(self.distance, u - target)
        to_data = like(1 - s, x)
        return measure(self.distance, x + to_data * u, x + to_data * target)
