r"""The divergence of a velocity: the trace of its Jacobian J, exact or estimated from products with J alone.

    exact         sum_i e_i . J e_i,                                    D products
    Hutchinson    mean_k v_k . J v_k,   v_k of independent signs        K products, unbiased
    Hutch++       tr(Q^T J Q) + mean_k P g_k . J P g_k,   P = Id - Q Q^T, Q an orthonormal basis of J S;
                  S and g are each a third of the K signs               K products, unbiased, exact for K >= 3 D

References: M. F. Hutchinson, 1990; W. Grathwohl et al., "FFJORD", 2018, arXiv 1810.01367 (one draw along a trajectory);
R. A. Meyer, C. Musco, C. Musco, D. Woodruff, "Hutch++: optimal stochastic trace estimation", 2020, arXiv 2010.09649.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..shapes import Batch, Condition, Field, Time
from ._jacobians import products, unit_directions

Estimator: TypeAlias = Literal["exact", "hutchinson", "hutch++"]
LEAST_PROBES: dict[str, int] = {"exact": 0, "hutchinson": 1, "hutch++": 3}
"""The estimators, each with the number of probes that it needs at least."""


def signs(x: Batch, number: int, generator: torch.Generator | None = None) -> Tensor:
    """Independent signs, `(number, B, *shape)`, for `divergence`.

    Raises:
        ValueError: `number` is not positive.
    """
    if number < 1:
        raise ValueError(f"an estimate of the divergence needs probes >= 1, got {number}.")
    drawn = torch.randint(2, (number, *x.shape), generator=generator, device=x.device)
    return (2 * drawn - 1).to(x.dtype)


def divergence(
    field: Field,
    x: Batch,
    t: Time,
    cond: Condition = None,
    *,
    estimator: Estimator = "exact",
    probes: Tensor | None = None,
) -> Time:
    """div b_t(x), `(B,)`, in 1 / time.

    Args:
        field: velocity `(x, t, cond) -> like x`.
        x: points, `(B, *shape)`.
        t: their times in [0, 1], `(B,)`.
        cond: condition.
        estimator: `exact`, `hutchinson` or `hutch++`.
        probes: `signs(x, K)`, `(K, B, *shape)`, for an estimate; K >= 3 for Hutch++.

    Raises:
        ValueError: an unknown estimator, or probes that are missing, of another shape, too few or of no use.
    """
    _check(x, estimator, probes)
    if probes is None:
        directions = unit_directions(x)
        return (products(field, x, t, cond, directions) * directions).flatten(2).sum((0, 2))
    if estimator == "hutchinson":
        return (products(field, x, t, cond, probes) * probes).flatten(2).sum(2).mean(0)
    return _hutch_plus_plus(field, x, t, cond, probes)


def _hutch_plus_plus(field: Field, x: Tensor, t: Tensor, cond: Condition, probes: Tensor) -> Tensor:
    third = len(probes) // 3
    rows = len(x)

    def times_jacobian(columns: Tensor) -> Tensor:
        """J A of columns `(B, D, k)`."""
        directions = columns.permute(2, 0, 1).reshape(-1, *x.shape)
        return products(field, x, t, cond, directions).reshape(-1, rows, columns.shape[1]).permute(1, 2, 0)

    flat = probes.reshape(len(probes), rows, -1).permute(1, 2, 0)
    basis = torch.linalg.qr(times_jacobian(flat[:, :, :third])).Q
    rest = flat[:, :, third : len(probes) - third]
    rest = rest - basis @ (basis.mT @ rest)
    inside = (basis * times_jacobian(basis)).sum((1, 2))
    return inside + (rest * times_jacobian(rest)).sum((1, 2)) / rest.shape[2]


def _check(x: Tensor, estimator: str, probes: Tensor | None) -> None:
    if estimator not in LEAST_PROBES:
        raise ValueError(f"estimator must be one of {', '.join(map(repr, LEAST_PROBES))}, got {estimator!r}.")
    if (estimator == "exact") != (probes is None):
        raise ValueError(
            f"probes go with an estimate, got {estimator!r} and {'no probes' if probes is None else 'probes'}: pass "
            "probes=signs(x, K) for 'hutchinson' or 'hutch++', none for 'exact'."
        )
    least = LEAST_PROBES[estimator]
    if probes is not None and (probes.shape[1:] != x.shape or len(probes) < least):
        raise ValueError(
            f"{estimator} needs probes of shape (K, *{tuple(x.shape)}), K >= {least}, got {tuple(probes.shape)}: use "
            "signs(x, K)."
        )
