"""Linear algebra, where the gradient through `torch.func.jvp`'s tangent is wrong, or the half that is not read counts.

    X = A^-1 B:  dX = A^-1 (dB - dA X),    d log|det A| = tr(A^-1 dA),    d det A = det A tr(A^-1 dA)
    A = L L^H:   dL = L phi(L^-1 dA L^-H),  phi the lower triangle with half the diagonal
    A V = V diag(w):  dw = diag(V^H dA V),  dV = V (F * V^H dA V),  F_ij = 1 / (w_j - w_i), 0 for i = j

`cholesky` and `eigh` read one triangle of A alone, as torch's kernels do: the other triangle's tangent has no effect.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arithmetic import add_tangents
from .core import Dual, composite, named, paired, run_tangent, tangent_of, tangent_rule, unpack, values_of


def _is_vector(a: Tensor, b: Tensor) -> bool:
    """Whether `linalg.solve(A, b)` takes b as a batch of vectors."""
    return b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])


@tangent_rule(torch.linalg.solve)
def _solve(y: Tensor, a: Any, b: Any, *, left: bool = True) -> Any:
    (a, da), db = unpack(a), tangent_of(b)
    if da is not None:
        vector = _is_vector(a, values_of(b))
        known = y.unsqueeze(-1) if vector else y
        change = da @ known if left or vector else known @ da
        change = change.squeeze(-1) if vector else change
        db = -change if db is None else db - change
    return torch.linalg.solve(a, db.expand(y.shape), left=left)


def _trace_of_inverse(a: Any) -> Tensor:
    """`tr(A^-1 dA)`."""
    return torch.linalg.solve(a.value, a.tangent).diagonal(dim1=-2, dim2=-1).sum(-1)


@tangent_rule(torch.linalg.det, *named("det"))
def _det(y: Tensor, a: Any) -> Any:
    return y * _trace_of_inverse(a)


@tangent_rule(*named("logdet"))
def _logdet(y: Tensor, a: Any) -> Any:
    return _trace_of_inverse(a)


@composite(torch.linalg.slogdet, *named("slogdet"))
def _slogdet(a: Any) -> Any:
    out = torch.linalg.slogdet(a.value)
    if a.tangent is None:
        return out
    change = run_tangent(a.detached, _trace_of_inverse, a)
    sign, size = out
    turning = sign * (1j * change.imag) if change.is_complex() else None
    return type(out)([paired(sign, turning, a.detached), paired(size, change.real, a.detached)])


def _read(tangent: Tensor, upper: bool) -> Tensor:
    """The Hermitian matrix of the triangle that the kernels read."""
    half = tangent.triu() if upper else tangent.tril()
    diagonal = torch.diag_embed(half.diagonal(dim1=-2, dim2=-1))
    return half + half.mH - (diagonal.real if diagonal.is_complex() else diagonal)


@tangent_rule(torch.linalg.cholesky, *named("cholesky"))
def _cholesky(y: Tensor, a: Any, upper: bool = False) -> Any:
    factor = y.mH if upper else y
    inner = torch.linalg.solve_triangular(factor, _read(a.tangent, upper), upper=False)
    inner = torch.linalg.solve_triangular(factor.mH, inner, upper=True, left=False)
    diagonal = torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
    change = factor @ (inner.tril() - diagonal / 2)
    return change.mH if upper else change


def _eigen(a: Dual, upper: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The eigenvalues and eigenvectors of a Hermitian matrix, and their tangents."""
    w, v = torch.linalg.eigh(a.value, UPLO="U" if upper else "L")
    assert a.tangent is not None
    inner = v.mH @ _read(a.tangent, upper) @ v
    gaps = w.unsqueeze(-2) - w.unsqueeze(-1)
    same = torch.eye(w.shape[-1], dtype=torch.bool, device=w.device)
    turns = torch.where(same, 0.0, inner / torch.where(same, 1.0, gaps))
    return w, v, inner.diagonal(dim1=-2, dim2=-1).real, v @ turns


@composite(torch.linalg.eigh)
def _eigh(a: Any, UPLO: str = "L") -> Any:
    out = torch.linalg.eigh(a.value, UPLO=UPLO)
    if a.tangent is None:
        return out
    _, _, dw, dv = run_tangent(a.detached, _eigen, a, UPLO.upper() == "U")
    return type(out)([paired(out[0], dw, a.detached), paired(out[1], dv, a.detached)])


@tangent_rule(torch.linalg.eigvalsh)
def _eigvalsh(y: Tensor, a: Any, UPLO: str = "L") -> Any:
    upper = UPLO.upper() == "U"
    vectors = torch.linalg.eigh(a.value, UPLO=UPLO)[1]
    return (vectors.mH @ _read(a.tangent, upper) @ vectors).diagonal(dim1=-2, dim2=-1).real


@tangent_rule(torch.sparse.mm)
def _sparse_product(y: Tensor, a: Any, b: Any) -> Any:
    (a, da), (b, db) = unpack(a), unpack(b)
    return add_tangents(None if da is None else torch.sparse.mm(da, b), None if db is None else torch.sparse.mm(a, db))
