"""Couplings rho(x0, x1): where the base comes from, and how its samples are paired with data.

A base is a law of x0; a coupling draws x0 for a batch of data and pairs the two. Marginals are kept: only the pairing
changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .maps import FlowMap
from .shapes import Batch, Condition, on_each


class Base(ABC):
    """A law of x0."""

    @property
    def deviation(self) -> float:
        """Its standard deviation, where the law is a normal one; else 1."""
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
        if self.scale <= 0:
            raise ValueError(f"Normal needs scale > 0, got {self.scale}.")

    @property
    def deviation(self) -> float:
        return self.scale

    def sample(self, like: Batch, generator: torch.Generator | None = None) -> Batch:
        return self.scale * torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


@dataclass(frozen=True, eq=False)
class Empirical(Base):
    """Rows of a data set, drawn with replacement: for maps from data to data.

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
        """Return `(x0, x1)`, row by row a pair with the condition `cond`.

        `x0` given by the caller replaces a draw from the base.
        """
        return self.match(self.base.sample(x1, generator) if x0 is None else x0, x1, cond)

    @abstractmethod
    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        """The pairs of a batch of each end."""


@dataclass(frozen=True)
class Independent(Coupling):
    """rho(x0, x1) = rho0(x0) rho1(x1)."""

    base: Base = Normal()

    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        return x0, x1


@dataclass(frozen=True)
class MinibatchOT(Coupling):
    """The optimal pairing of each batch under |x0 - x1|^2 (Tong et al., 2302.00482; Pooladian et al., 2304.14772).

    Solved exactly by scipy on the CPU, in time cubic in the batch size. The base is reordered, so labels of the data
    stay in place.
    """

    base: Base = Normal()

    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        from scipy.optimize import linear_sum_assignment  # only this coupling needs it

        cost = torch.cdist(x1.flatten(1).double(), x0.flatten(1).double()).square().cpu().numpy()
        _, order = linear_sum_assignment(cost)  # of the rows of x0, one for each row of x1
        return x0[torch.as_tensor(order, device=x0.device)], x1


class Unknown(Base):
    """No law: x0 comes from the caller."""

    def sample(self, like: Batch, generator: torch.Generator | None = None) -> Batch:
        raise ValueError("the coupling Paired() needs both ends of each pair: call objective(x1, x0).")


@dataclass(frozen=True)
class Paired(Coupling):
    """Pairs that the caller has: `objective(x1, x0)`."""

    base: Base = field(default_factory=Unknown, init=False, compare=False, repr=False)

    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        return x0, x1


@dataclass(frozen=True)
class NoData(Coupling):
    """x0 alone, x1 = 0: I_0 = x0, for objectives that look at s = 0 only and need no data (FreeFlow, 2511.19428)."""

    base: Base = Normal()

    def match(self, x0: Batch, x1: Batch, cond: Condition = None) -> tuple[Batch, Batch]:
        return x0, torch.zeros_like(x1)


@dataclass(frozen=True, eq=False)
class Carried(Coupling):
    """(x0, X_{0,1}(x0)): each noise with the sample that a flow makes of it; reflow (2209.03003).

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
        return x0, self.flow(x0.to(device), zero, 1 + zero, moved).to(x0.device)
