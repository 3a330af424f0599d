r"""The one-sided Lipschitz constant of a velocity: how fast two of its trajectories can move apart.

    C_t  =  sup_x  lambda_max( (grad b_t(x) + grad b_t(x)^T) / 2 ),       d/dt |x_t - y_t|  <=  C_t |x_t - y_t|

lambda_max is the algebraically largest eigenvalue, so that C_t is negative where all trajectories approach each other.
Lanczos' method finds it from products with the Jacobian and its transpose alone: after k steps from a vector q the
largest eigenvalue of the k x k tridiagonal matrix of the Krylov space of q is a lower bound, exact for k = D.

A supremum over samples of x is at most that over all x: what is found here is an estimate from below.

References: C. Lanczos, 1950; FMM (2406.07507), proposition 3.9, which has |C_t|; the signed form is Gronwall's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..shapes import Batch, Condition, Field, Time, like, per_row
from ._jacobians import product, transposed_product

LANCZOS_STEPS = 16
"""Steps that leave a relative error of about 1 % of the width of a spectrum without a gap at its end."""


@torch.no_grad()
def largest_stretching(
    field: Field,
    x: Batch,
    t: Time,
    cond: Condition = None,
    *,
    steps: int = LANCZOS_STEPS,
    generator: torch.Generator | None = None,
) -> Time:
    """The largest eigenvalue of the symmetrised Jacobian of a velocity at each point, `(B,)`, in 1 / time.

    Args:
        field: velocity `(x, t, cond) -> like x`, differentiable in x.
        x: points, `(B, *shape)`.
        t: their times in [0, 1], `(B,)`.
        cond: condition.
        steps: of Lanczos' method, at most D are taken and D are exact; each costs a JVP and a VJP.
        generator: source of the first vectors, on the device of `x`.

    Raises:
        ValueError: `steps` is not positive.
    """
    if steps < 1:
        raise ValueError(f"Lanczos' method needs steps >= 1, got {steps}.")
    steps = min(steps, x[0].numel() if len(x) else 1)
    basis: list[Tensor] = [_unit(_random(x, generator), [])[0]]
    diagonal, beside = [], []
    for k in range(steps):
        q = basis[-1]
        w = 0.5 * (product(field, x, t, cond, q) + transposed_product(field, x, t, cond, q))
        diagonal.append(per_row(q * w))
        if k + 1 < steps:
            following, size = _unit(w, basis)
            spent = size <= 1e-6 * torch.stack(diagonal).abs().amax(0).clamp_min(torch.finfo(x.dtype).tiny)
            other, _ = _unit(_random(x, generator), basis)  # the Krylov space is invariant: go on in another
            basis.append(torch.where(like(spent, x), other, following))
            beside.append(torch.where(spent, 0, size))
    matrix = torch.diag_embed(torch.stack(diagonal, 1).double())
    if beside:
        off = torch.stack(beside, 1).double()
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return torch.linalg.eigvalsh(matrix)[:, -1].to(x.dtype)


def _random(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def _unit(w: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The part of w orthogonal to the basis, of norm one, and its norm `(B,)`; projected twice against rounding."""
    for _ in range(2):
        for q in basis:
            w = w - like(per_row(q * w), w) * q
    size = per_row(w.square()).sqrt()
    return w / like(size.clamp_min(torch.finfo(w.dtype).tiny), w), size
