"""Functions of one number: `y = f(x)`, tangent `f'(x) v`, each line below being `f'` in terms of `x` and `y`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import (
    composite,
    linear_in_first,
    named,
    paired,
    run_tangent,
    tangent_rule,
    unpack,
    values_of,
    without_tangent,
)
from .sharing import detached, link

DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exp": lambda x, y: y,
    "exp2": lambda x, y: y * math.log(2),
    "expm1": lambda x, y: y + 1,
    "log": lambda x, y: x.reciprocal(),
    "log2": lambda x, y: (x * math.log(2)).reciprocal(),
    "log10": lambda x, y: (x * math.log(10)).reciprocal(),
    "log1p": lambda x, y: (x + 1).reciprocal(),
    "sqrt": lambda x, y: 0.5 / y,
    "rsqrt": lambda x, y: -0.5 * y / x,
    "reciprocal": lambda x, y: -y * y,
    "square": lambda x, y: 2 * x,
    "sin": lambda x, y: x.cos(),
    "cos": lambda x, y: -x.sin(),
    "tan": lambda x, y: 1 + y * y,
    "asin": lambda x, y: (1 - x * x).rsqrt(),
    "acos": lambda x, y: -(1 - x * x).rsqrt(),
    "atan": lambda x, y: (1 + x * x).reciprocal(),
    "sinh": lambda x, y: x.cosh(),
    "cosh": lambda x, y: x.sinh(),
    "tanh": lambda x, y: 1 - y * y,
    "asinh": lambda x, y: (1 + x * x).rsqrt(),
    "acosh": lambda x, y: (x * x - 1).rsqrt(),
    "atanh": lambda x, y: (1 - x * x).reciprocal(),
    "erf": lambda x, y: 2 / math.sqrt(math.pi) * (-x * x).exp(),
    "erfc": lambda x, y: -2 / math.sqrt(math.pi) * (-x * x).exp(),
    "sigmoid": lambda x, y: y * (1 - y),
    "logit": lambda x, y: (x * (1 - x)).reciprocal(),
    "frac": lambda x, y: torch.ones_like(x),
    "tanhshrink": lambda x, y: x.tanh().square(),
    "logsigmoid": lambda x, y: torch.sigmoid(-x),
}
ALIASES = {
    "sigmoid": ("expit",),
    "asin": ("arcsin",),
    "acos": ("arccos",),
    "atan": ("arctan",),
    "asinh": ("arcsinh",),
    "acosh": ("arccosh",),
    "atanh": ("arctanh",),
}


def _chain(derivative: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    def rule(y: Tensor, x: Any) -> Any:
        return x.tangent * derivative(x.value, y)

    return rule


for _name, _derivative in DERIVATIVES.items():
    tangent_rule(*named(_name, *ALIASES.get(_name, ())))(_chain(_derivative))

linear_in_first(*named("neg", "negative", "positive", "__neg__", "__pos__", "deg2rad", "rad2deg", "conj"))
without_tangent(*named("sign", "floor", "ceil", "round", "trunc", "fix", "signbit"))


@composite(*named("softsign"))
def _softsign(x: Any) -> Any:
    return x / (1 + x.abs())


@composite(*named("heaviside"))
def _heaviside(x: Any, values: Any) -> Any:
    """0, 1, or at x = 0 `values`, of which alone the result has a derivative (torch itself has none)."""
    x = values_of(x)
    return torch.where(x == 0, values, (x > 0).to(x.dtype))


@tangent_rule(*named("relu"))
def _relu(y: Tensor, x: Any, inplace: bool = False) -> Any:
    return torch.where(x.value > 0, x.tangent, 0.0)


@tangent_rule(F.relu6)
def _relu6(y: Tensor, x: Any, inplace: bool = False) -> Any:
    return torch.where((x.value > 0) & (x.value < 6), x.tangent, 0.0)


@tangent_rule(F.hardtanh)
def _hardtanh(y: Tensor, x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    return torch.where((x.value > min_val) & (x.value < max_val), x.tangent, 0.0)


@tangent_rule(F.hardsigmoid)
def _hardsigmoid(y: Tensor, x: Any, inplace: bool = False) -> Any:
    return torch.where((x.value > -3) & (x.value < 3), x.tangent / 6, 0.0)


@tangent_rule(F.hardswish)
def _hardswish(y: Tensor, x: Any, inplace: bool = False) -> Any:
    v, t = unpack(x)
    return torch.where(v >= 3, t, torch.where(v > -3, t * (v / 3 + 0.5), 0.0))


@tangent_rule(F.threshold, torch.threshold)
def _threshold(y: Tensor, x: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    return torch.where(x.value > threshold, x.tangent, 0.0)


@tangent_rule(F.leaky_relu)
def _leaky_relu(y: Tensor, x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return torch.where(x.value > 0, x.tangent, negative_slope * x.tangent)


@tangent_rule(F.elu)
def _elu(y: Tensor, x: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    return x.tangent * torch.where(x.value > 0, 1.0, alpha * x.value.clamp_max(0).exp())


@tangent_rule(F.celu, torch.celu)
def _celu(y: Tensor, x: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    return x.tangent * torch.where(x.value > 0, 1.0, (x.value.clamp_max(0) / alpha).exp())


@tangent_rule(F.selu, torch.selu)
def _selu(y: Tensor, x: Any, inplace: bool = False) -> Any:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * x.tangent * torch.where(x.value > 0, 1.0, alpha * x.value.clamp_max(0).exp())


@composite(F.gelu)
def _gelu(x: Any, approximate: str = "none") -> Any:
    """Compiled, the tanh form is `x sigmoid(2 z)`, a third of tanh's price on a CPU; eager, torch's fused kernels."""
    v, t = unpack(x)
    if t is None:
        return F.gelu(v, approximate=approximate)
    if torch.compiler.is_compiling() and approximate == "tanh":
        return paired(v * _gate(v), run_tangent(x.detached, _gated, t, v), x.detached)
    tangent = run_tangent(x.detached, torch.ops.aten.gelu_backward, t, v, approximate=approximate)
    return paired(F.gelu(v, approximate=approximate), tangent, x.detached)


def _gate(v: Tensor) -> Tensor:
    """`sigmoid(2 z)`, `z = k (v + c v^3)`."""
    return torch.sigmoid(v * (2 * _K + 2 * _K * _C * (v * v)))


def _gated(t: Tensor, v: Tensor) -> Tensor:
    """The tangent of `v sigmoid(2 z)`."""
    gate = _gate(v)
    return t * (gate + v * (gate * (1 - gate)) * (2 * _K + 6 * _K * _C * (v * v)))


_K, _C = math.sqrt(2 / math.pi), 0.044715


@tangent_rule(F.silu)
def _silu(y: Tensor, x: Any, inplace: bool = False) -> Any:
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(x.tangent, x.value)  # one kernel, which has no gradient of its own
    gate = torch.sigmoid(x.value)
    return x.tangent * (gate * (1 + x.value * (1 - gate)))


@tangent_rule(F.mish)
def _mish(y: Tensor, x: Any, inplace: bool = False) -> Any:
    h = torch.tanh(F.softplus(x.value))
    return x.tangent * (h + x.value * torch.sigmoid(x.value) * (1 - h * h))


@tangent_rule(F.softplus)
def _softplus(y: Tensor, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    return x.tangent * torch.where(x.value * beta > threshold, 1.0, torch.sigmoid(x.value * beta))


@tangent_rule(F.softshrink, F.hardshrink, *named("hardshrink"))
def _shrink(y: Tensor, x: Any, lambd: float = 0.5) -> Any:
    return torch.where(x.value.abs() > lambd, x.tangent, 0.0)


@tangent_rule(*named("prelu"))
def _prelu(y: Tensor, x: Any, weight: Any) -> Any:
    (v, t), (w, dw) = unpack(x), unpack(weight)
    shape = (-1, *[1] * (v.dim() - 2)) if v.dim() > 1 and w.numel() > 1 else w.shape
    out = 0.0 if t is None else torch.where(v > 0, t, w.view(shape) * t)
    return out if dw is None else torch.where(v > 0, 0.0, dw.view(shape) * v) + out


@composite(F.glu)
def _glu(x: Any, dim: int = -1) -> Any:
    a, b = torch.chunk(x, 2, dim)  # type: ignore[arg-type]
    return a * torch.sigmoid(b)


def sinc(x: Tensor) -> Tensor:
    """`sin(pi x) / (pi x)`, by its power series for `|x| < 1/2`: every derivative is right at and near zero."""
    small = x.abs() < 0.5
    safe = torch.where(small, 1.0, x) * math.pi
    return torch.where(small, _series(torch.where(small, x, 0.0), 0), safe.sin() / safe)


def sinc_derivative(x: Tensor) -> Tensor:
    """`(cos(pi x) - sinc x) / x`, by its power series for `|x| < 1/2`."""
    small = x.abs() < 0.5
    safe = torch.where(small, 1.0, x)
    z = safe * math.pi
    near = torch.where(small, x, 0.0)
    return torch.where(small, near * _series(near, 1), (z.cos() - z.sin() / z) / safe)


def _series(x: Tensor, order: int) -> Tensor:
    """`sum_k (-1)^k pi^2k x^2k / (2k + 1)!` (order 0), or its derivative divided by x (order 1), by Horner."""
    square = x * x
    total = torch.zeros_like(x)
    for k in range(11, order - 1, -1):
        coefficient = (-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k + 1)
        total = total * square + coefficient * (2 * k if order else 1)
    return total


@composite(*named("sinc"))
def _sinc(x: Any) -> Any:
    value, tangent = unpack(x)
    if tangent is None:
        return sinc(value)
    return paired(sinc(value), tangent * run_tangent(x.detached, sinc_derivative, value), x.detached)


@tangent_rule(*named("nan_to_num"))
def _nan_to_num(y: Tensor, x: Any, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Any:
    return torch.where(x.value.isfinite(), x.tangent, 0.0)


@composite(*named("detach"))
def _detach(x: Any) -> Tensor:
    return link(x, detached, (), {}, x.value.detach())
