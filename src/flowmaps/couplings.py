"""Couplings rho(x0, x1): where the base comes from, and how its samples are paired with data.

A base is a law (a distribution) of x0. A coupling draws x0 for a batch of data x1 and pairs the two; it changes the
pairing, not the laws of x0 and x1 (but `FlowPairs` replaces x1 by samples of a flow).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .maps import FlowMap
from .modules import evaluating, modules_of
from .shapes import Batch, Condition, label_of, on_each


class Base(ABC):
    """A distribution of x0."""

    @property
    def std(self) -> float:
        """Standard deviation of a `Normal`; 1 for any other distribution."""
        return 1.0

    @abstractmethod
    def sample(self, like: Batch, generator: torch.Generator | None = None) -> Batch:
        """Draw as many points as `like` has rows, of its shape, type and device."""


@dataclass(frozen=True)
class Normal(Base):
    """N(0, scale^2 Id).

    Args:
        scale: standard deviation, in units of the data.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"Normal needs a finite scale > 0, got {self.scale}.")

    @property
    def std(self) -> float:
        return self.scale

    def sample(self, like: Batch, generator: torch.Generator | None = None) -> Batch:
        return self.scale * torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


@dataclass(frozen=True, eq=False)
class Empirical(Base):
    """Rows of a data set, drawn with replacement, for maps from one data set to another.

    Args:
        data: `(N, *shape)`.
    """

    data: Tensor

    def sample(self, like: Batch, generator: torch.Generator | None = None) -> Batch:
        if self.data.shape[1:] != like.shape[1:]:
            raise ValueError(f"the base has rows {tuple(self.data.shape[1:])}, the data {tuple(like.shape[1:])}.")
        device = self.data.device if generator is None else generator.device
        rows = torch.randint(len(self.data), like.shape[:1], generator=generator, device=device)
        return self.data[rows.to(self.data.device)].to(like)


class Coupling(ABC):
    """A law of pairs (x0, x1) with the data as its second marginal."""

    base: Base = Normal()

    def pair(
        self,
        x1: Batch,
        x0: Batch | None = None,
        generator: torch.Generator | None = None,
        cond: Condition = None,
    ) -> tuple[Batch, Batch]:
        """Return pairs `(x0, x1)` of the shape of `x1`.

        Args:
            x1: data, `(B, *shape)`.
            x0: base samples; drawn from the base unless given.
            generator: source of randomness.
            cond: condition of each row of `x1`.
        """
        return self.match(self.base.sample(x1, generator) if x0 is None else x0, x1, cond)

    @abstractmethod
    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        """Pair a batch of base samples with a batch of data."""


@dataclass(frozen=True)
class Independent(Coupling):
    """rho(x0, x1) = rho0(x0) rho1(x1): rows are paired as they come."""

    base: Base = Normal()

    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        return x0, x1


@dataclass(frozen=True)
class MinibatchOT(Coupling):
    """The optimal pairing of each batch under |x0 - x1|^2 (Tong et al., 2302.00482; Pooladian et al., 2304.14772).

    With labels each class is paired within itself: the noise of a class is then the whole base, where sampling of that
    class starts. Over all rows it would be a part of the base (H. K. Cheng, A. Schwing, 2025, arXiv 2503.10636).

    scipy solves the assignment exactly, on the CPU, in a time cubic in the number of rows. The rows of x0 are permuted,
    so that the labels of x1 stay in place. Each of N processes pairs its own B / N rows.

    Raises:
        ValueError: the condition is not of integers, so that there are no classes.
    """

    base: Base = Normal()

    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        order = torch.empty(len(x1), dtype=torch.int64)
        for rows in _classes(cond, len(x1)):
            order[rows] = rows[_assigned(x1[rows.to(x1.device)], x0[rows.to(x0.device)])]
        return x0[order.to(x0.device)], x1


def _assigned(x1: Tensor, x0: Tensor) -> Tensor:
    """The row of x0 for each row of x1, `(B,)`."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and only this coupling needs it

    cost = torch.cdist(x1.flatten(1).double(), x0.flatten(1).double()).square().cpu().numpy()
    return torch.as_tensor(linear_sum_assignment(cost)[1])


def _classes(cond: Condition, rows: int) -> list[Tensor]:
    """The numbers of the rows of each class; all rows where there is no condition."""
    labels: list[Tensor] = []
    on_each(label_of(cond), lambda value: labels.append(value) or value)
    if not labels:
        return [torch.arange(rows)]
    if any(value.is_floating_point() or value.is_complex() for value in labels):
        raise ValueError(
            "MinibatchOT pairs the rows of each class, and these conditions are no classes (they are not integers): "
            "take coupling=Independent()."
        )
    table = torch.cat([value.detach().cpu().reshape(rows, -1).long() for value in labels], 1)
    number = table.unique(dim=0, return_inverse=True)[1]
    return [torch.nonzero(number == k)[:, 0] for k in range(int(number.max()) + 1)]


class Unknown(Base):
    """A base that cannot be sampled: the caller gives x0."""

    def sample(self, like: Batch, generator: torch.Generator | None = None) -> Batch:
        raise ValueError("the coupling Paired() needs both ends of each pair: call objective(x1, x0).")


@dataclass(frozen=True)
class Paired(Coupling):
    """Pairs that the caller gives, `objective(x1, x0)`."""

    base: Base = field(default_factory=Unknown, init=False, compare=False, repr=False)

    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        return x0, x1


@dataclass(frozen=True)
class NoData(Coupling):
    """x0 with x1 = 0, for objectives at s = 0 alone, where I_0 = x0: they need no data (FreeFlow, 2511.19428)."""

    base: Base = Normal()

    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        return x0, torch.zeros_like(x1)


@dataclass(frozen=True, eq=False)
class FlowPairs(Coupling):
    """(x0, X_{0,1}(x0)), each noise with the sample that a flow makes of it: the pairs of reflow (2209.03003).

    Args:
        flow: the flow of a trained model, a `SolverFlow` or another map.
        base: law of x0.
    """

    flow: FlowMap
    base: Base = Normal()

    @torch.no_grad()
    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        device = next((p.device for p in self.flow.parameters()), x0.device)
        zero = torch.zeros(len(x0), dtype=x0.dtype, device=device)
        moved = on_each(cond, lambda value: value.to(device))
        with evaluating(*modules_of(self.flow)):
            return x0, self.flow(x0.to(device), zero, 1 + zero, moved).to(x0.device)
