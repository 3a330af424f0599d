"""Functions whose tangent is taken by `torch.func.jvp` of the one call.

Each function here is tested (tests/dual/test_dual_functions.py): its tangent, and the gradient through its tangent,
against central differences. A function is not here where torch has no forward mode for it, or a wrong gradient
through it: solve, det, slogdet, eigh, cholesky have rules of their own in `matrices`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from .core import Dual, add_handler, composite, first_dual, like_sequence, look_up, named, paired, values_of

SPECIAL = (
    *("lgamma", "gammaln", "digamma", "psi", "polygamma", "mvlgamma", "multigammaln", "i0", "i0e", "i1", "i1e"),
    *("erfinv", "erfcx", "ndtr", "ndtri", "log_ndtr", "xlogy", "xlog1py", "entr", "logaddexp2", "copysign", "ldexp"),
)
REDUCTIONS = (
    *("quantile", "nanquantile", "kthvalue", "cummax", "cummin", "mode", "nansum", "nanmean", "nanmedian", "aminmax"),
    *("trapezoid", "trapz", "cumulative_trapezoid", "cov", "corrcoef", "renorm", "dist", "pairwise_distance"),
)
LOSSES = (
    *("cross_entropy", "nll_loss", "smooth_l1_loss", "huber_loss", "kl_div"),
    *("binary_cross_entropy_with_logits", "soft_margin_loss", "multilabel_soft_margin_loss", "triplet_margin_loss"),
    *("cosine_embedding_loss", "margin_ranking_loss", "hinge_embedding_loss", "poisson_nll_loss", "gaussian_nll_loss"),
)
OTHERS = (
    *("combinations", "cartesian_prod", "lp_pool1d", "lp_pool2d", "lp_pool3d", "affine_grid", "inverse", "pinverse"),
    *("max_unpool1d", "max_unpool2d", "max_unpool3d", "angle", "polar", "complex", "matrix_exp", "matrix_power"),
    *("cholesky_solve",),
)
MATRICES = (
    *("inv", "svdvals", "matrix_exp", "matrix_norm", "multi_dot", "solve_triangular", "pinv", "lu"),
    *("matrix_power", "lstsq", "cond", "tensorinv", "lu_solve", "eigvals", "vander"),
)


EAGER = ("quantile", "nanquantile")
"""Functions that torch's compiler fails at within `torch.func.jvp`."""


def through_torch(*functions: Any) -> None:
    """Register functions whose tangent `torch.func.jvp` of the one call returns."""
    for function in functions:
        add_handler(function, _forward_mode(function))


def _forward_mode(function: Any) -> Callable[..., Any]:
    def handler(*args: Any, **kwargs: Any) -> Any:
        found = first_dual((args, kwargs))
        if function.__name__ in EAGER and torch.compiler.is_compiling():
            raise NotImplementedError(f"torch.{function.__name__} of a Dual is not compiled: leave the compiler out.")
        if found is None:
            return function(*values_of(args), **values_of(kwargs))
        leaves, tree = pytree.tree_flatten((args, kwargs), is_leaf=lambda x: isinstance(x, Dual))
        moving = [i for i, x in enumerate(leaves) if isinstance(x, Dual) and x.tangent is not None]

        def of_tensors(*moved: Tensor) -> Any:
            entries = [values_of(x) for x in leaves]
            for place, x in zip(moving, moved, strict=True):
                entries[place] = x
            inner, named_inner = pytree.tree_unflatten(entries, tree)
            out = function(*inner, **named_inner)
            shape.append(out)
            return out if isinstance(out, Tensor) else tuple(out)

        shape: list[Any] = []
        points, directions = tuple(leaves[i].value for i in moving), tuple(leaves[i].tangent for i in moving)
        pair: Any = torch.func.jvp(of_tensors, points, directions)
        value, tangent = pair
        return _named_as(shape[0], value, tangent, found.detached)

    return handler


def _named_as(like: Any, value: Any, tangent: Any, detached: bool) -> Any:
    """The pairs, in the (named) type of the function's result; detached tangents without a graph."""
    if isinstance(value, Tensor):
        return paired(value, tangent.detach() if detached else tangent, detached)
    pairs = [_named_as(None, v, t, detached) for v, t in zip(value, tangent, strict=True)]
    return like_sequence(like, pairs)


through_torch(*named(*SPECIAL, *REDUCTIONS, *OTHERS))
through_torch(*(getattr(F, name) for name in LOSSES), *(getattr(torch.linalg, name) for name in MATRICES))


def _thin(function: Any, allowed: Any, advice: str) -> None:
    """Register a factorisation whose further columns, which are no function of the matrix, are refused."""
    through_torch(function)
    plain = look_up(function)

    @composite(function)
    def factors(a: Any, *args: Any, **kwargs: Any) -> Any:
        if a.shape[-2] != a.shape[-1] and not allowed(a, *args, **kwargs):
            raise NotImplementedError(f"{function.__name__} with columns that are no function of the matrix: {advice}.")
        return plain(a, *args, **kwargs)


_thin(torch.linalg.svd, lambda a, full_matrices=True, **_: not full_matrices, "write full_matrices=False")
_thin(torch.linalg.qr, lambda a, mode="reduced": mode == "reduced", 'write mode="reduced"')
for _function in named("svd"):
    _thin(_function, lambda a, some=True, compute_uv=True: some, "write some=True")
for _function in named("qr"):
    _thin(_function, lambda a, some=True: some, "write some=True")
