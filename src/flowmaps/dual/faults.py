"""What `torch.func.jvp` gets wrong without an error: functions that `engine="torch"` refuses.

Found with torch 2.13 by putting all operators of its own test suite (`op_db`) and their compositions through it, in
float64, against finite differences: the tangent, and the gradient of `<w, tangent>` by reverse mode. What torch refuses
itself is not listed here (`glu` and `hardsigmoid` under a gradient, `grid_sample`, `cdist`, `embedding_bag`, ...).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch._functorch.autograd_function import custom_function_call
from torch.overrides import TorchFunctionMode

_HOMES = (torch, torch.Tensor, F, torch.linalg, torch.special)


def _named(*names: str) -> set[Any]:
    found = {getattr(home, name) for name in names for home in _HOMES if hasattr(home, name)}
    assert found, names
    return found


WRONG_GRADIENT = _named(
    *("layer_norm", "native_layer_norm", "instance_norm"),  # pytorch#175754, #196700
    *("det", "logdet", "slogdet", "solve", "solve_ex", "tensorsolve", "householder_product", "orgqr"),
    "eigh",  # NaN
)
"""The tangent is right; the gradient through it is wrong, lost or NaN."""

WRONG_TANGENT = _named(
    "cholesky_inverse",
    *(f"bessel_{kind}" for kind in ("j0", "j1", "y0", "y1")),
    *(f"modified_bessel_{kind}" for kind in ("i0", "i1", "k0", "k1")),
    *(f"scaled_modified_bessel_{kind}" for kind in ("k0", "k1")),
    *("spherical_bessel_j0", "airy_ai"),
    *(f"{start}chebyshev_polynomial_{kind}" for start in ("", "shifted_") for kind in "tuvw"),
    *("hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p"),
)
"""The tangent itself is wrong: of special functions 0."""

_BATCH_NORMS = (F.batch_norm, torch.batch_norm, torch.native_batch_norm)


class Refusal(TorchFunctionMode):
    """Refuses the functions of this file.

    Args:
        gradient: whether a gradient through the tangent may be taken.
    """

    def __init__(self, gradient: bool) -> None:
        super().__init__()
        self.gradient = gradient

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        product = func in _SCATTERS and "prod" in (*args, *kwargs.values())
        if func in WRONG_TANGENT or product:
            raise ValueError(_message(func, "tangent", 'Use engine="dual" or "finite-difference".'))
        training = func in _BATCH_NORMS and (kwargs.get("training") or True in args[5:6])
        custom = func is custom_function_call
        if self.gradient and (func in WRONG_GRADIENT or training or custom):
            name = args[0] if custom else func
            remedy = 'Use engine="dual", or detach_tangent=True for no such gradient.'
            raise ValueError(_message(name, "gradient through the tangent", remedy))
        return func(*args, **kwargs)


_SCATTERS = (torch.scatter_reduce, torch.Tensor.scatter_reduce, torch.Tensor.scatter_reduce_)


def _message(function: Any, what: str, remedy: str) -> str:
    return (
        f'engine="torch" met {function.__name__}: the {what} that torch.func.jvp returns for it may be silently wrong '
        f"(see flowmaps.dual.faults). {remedy}"
    )
