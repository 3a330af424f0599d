"""Products with the Jacobian of a field, row by row: J v in forward mode, J^T v in reverse mode."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dual
from ..shapes import Batch, Condition, Field, Time, on_each

MAX_ROWS = 2**14
"""Rows of one call of a field in which several directions are stacked."""


def product(field: Field, x: Batch, t: Time, cond: Condition, v: Batch) -> Batch:
    """J v, the derivative of `field(., t, cond)` at `x` along `v`, `(B, *shape)`, without a graph."""
    return dual.jvp(lambda y: field(y, t, cond), (x,), (v,), detach_tangent=True)[1]


def transposed_product(field: Field, x: Batch, t: Time, cond: Condition, v: Batch) -> Batch:
    """J^T v, `(B, *shape)`, without a graph."""
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        out = field(y, t, cond)
        if not out.requires_grad:  # a field that does not depend on x
            return torch.zeros_like(x)
        return torch.autograd.grad(out, y, v)[0]


def products(field: Field, x: Tensor, t: Tensor, cond: Condition, directions: Tensor) -> Tensor:
    """J v for several directions, `(K, B, *shape) -> (K, B, *shape)`, up to `MAX_ROWS` rows in one call."""
    number, rows = directions.shape[:2]
    many = max(1, MAX_ROWS // max(rows, 1))
    found = []
    for part in directions.split(many):
        k = len(part)

        def again(value: Tensor, k: int = k) -> Tensor:
            return value.repeat(k, *[1] * (value.ndim - 1))

        out = product(field, again(x), again(t), on_each(cond, again), part.flatten(0, 1))
        found.append(out.reshape(part.shape))
    return torch.cat(found) if number else directions


def jacobian(field: Field, x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
    """The Jacobian of a field, flattened, `(B, D, D)`: entry (i, j) is the derivative of output i along input j."""
    rows, dim = len(x), x[0].numel()
    return products(field, x, t, cond, unit_directions(x)).reshape(dim, rows, dim).permute(1, 2, 0)


def unit_directions(x: Tensor) -> Tensor:
    """The D unit vectors of a row, for each row of x, `(D, B, *shape)`."""
    rows, dim = len(x), x.flatten(1).shape[1]
    basis = torch.eye(dim, dtype=x.dtype, device=x.device)
    return basis[:, None].expand(dim, rows, dim).reshape(dim, *x.shape)
