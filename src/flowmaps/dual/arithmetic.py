"""Sums, products, quotients, powers, comparisons, and choices between two tensors."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from .core import Dual, composite, named, tangent_of, tangent_rule, unpack, values_of, without_tangent


def add_tangents(*terms: Any) -> Any:
    """The sum of tangents, of which `None` is zero."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def scaled(tangent: Any, factor: Any) -> Any:
    """`tangent * factor`, `None` for a missing tangent."""
    return None if tangent is None else tangent * factor


@tangent_rule(*named("add", "__add__", "__radd__"), operator.add)
def _add(y: Tensor, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    return add_tangents(tangent_of(a), tangent_of(b) if alpha == 1 else scaled(tangent_of(b), alpha))


@tangent_rule(*named("sub", "subtract", "__sub__"), operator.sub)
def _sub(y: Tensor, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    ta, tb = tangent_of(a), tangent_of(b)
    if ta is not None and tb is not None:
        return torch.sub(ta, tb, alpha=alpha)
    return add_tangents(ta, scaled(tb, -alpha))


@tangent_rule(*named("rsub", "__rsub__"))
def _rsub(y: Tensor, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    ta, tb = tangent_of(a), tangent_of(b)
    if ta is None:
        return tb
    return (-ta if alpha == 1 else -alpha * ta) if tb is None else torch.sub(tb, ta, alpha=alpha)


@tangent_rule(*named("mul", "multiply", "__mul__", "__rmul__"), operator.mul)
def _mul(y: Tensor, a: Any, b: Any) -> Any:
    (a, ta), (b, tb) = unpack(a), unpack(b)
    return add_tangents(scaled(ta, b), scaled(tb, a))


@tangent_rule(*named("div", "divide", "true_divide", "__truediv__"), operator.truediv)
def _div(y: Tensor, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        return None
    ta, (b, tb) = tangent_of(a), unpack(b)
    if tb is None:
        return ta / b
    return (-y * tb if ta is None else ta - y * tb) / b


@composite(*named("__rtruediv__"))
def _rdiv(a: Any, b: Any) -> Any:
    return torch.reciprocal(a) * b


@tangent_rule(*named("pow", "__pow__", "float_power"), operator.pow)
def _pow(y: Tensor, a: Any, b: Any) -> Any:
    (a, ta), (b, tb) = unpack(a), unpack(b)
    base = None
    if ta is not None:
        if isinstance(b, Tensor):
            base = ta * torch.where(b == 0, 0.0, b * torch.pow(a, torch.where(b == 0, 1.0, b - 1)))
        elif b == 0:
            base = torch.zeros_like(ta)
        else:
            base = ta if b == 1 else ta * (b * (a if b == 2 else torch.pow(a, b - 1)))
    return (
        base
        if tb is None
        else add_tangents(base, tb * y * torch.log(torch.as_tensor(a, dtype=y.dtype, device=y.device)))
    )


@composite(*named("__rpow__"))
def _rpow(a: Any, b: Any) -> Any:
    return torch.pow(b, a)


@tangent_rule(*named("remainder", "__mod__"))
def _remainder(y: Tensor, a: Any, b: Any) -> Any:
    (a, ta), (b, tb) = unpack(a), unpack(b)
    return add_tangents(ta, None if tb is None else -tb * torch.floor(a / b))


@tangent_rule(*named("fmod"))
def _fmod(y: Tensor, a: Any, b: Any) -> Any:
    (a, ta), (b, tb) = unpack(a), unpack(b)
    return add_tangents(ta, None if tb is None else -tb * torch.trunc(a / b))


@tangent_rule(*named("atan2", "arctan2"))
def _atan2(y: Tensor, a: Any, b: Any) -> Any:
    (a, ta), (b, tb) = unpack(a), unpack(b)
    scale = (a * a + b * b).reciprocal()
    return add_tangents(scaled(ta, b * scale), None if tb is None else -tb * (a * scale))


@tangent_rule(*named("hypot"))
def _hypot(y: Tensor, a: Any, b: Any) -> Any:
    (a, ta), (b, tb) = unpack(a), unpack(b)
    return add_tangents(scaled(ta, a / y), scaled(tb, b / y))


@tangent_rule(*named("logaddexp"))
def _logaddexp(y: Tensor, a: Any, b: Any) -> Any:
    (a, ta), (b, tb) = unpack(a), unpack(b)
    return add_tangents(scaled(ta, torch.sigmoid(a - b)), scaled(tb, torch.sigmoid(b - a)))


@composite(*named("addcmul"))
def _addcmul(x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return x + (a * b if value == 1 else value * a * b)


@composite(*named("addcdiv"))
def _addcdiv(x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return x + (a / b if value == 1 else value * a / b)


@composite(*named("lerp"))
def _lerp(x: Any, end: Any, weight: Any) -> Any:
    return x + weight * (end - x)


@tangent_rule(*named("where"))
def _where(y: Tensor, condition: Any, a: Any, b: Any) -> Any:
    if isinstance(a, (Tensor, Dual)) and values_of(a).dtype == torch.bool:  # Tensor.where(self, condition, other)
        condition, a = a, condition
    ta, tb = tangent_of(a), tangent_of(b)
    return torch.where(condition, 0.0 if ta is None else ta, 0.0 if tb is None else tb)


@tangent_rule(*named("masked_fill"))
def _masked_fill(y: Tensor, x: Any, mask: Tensor, value: Any) -> Any:
    t, tv = tangent_of(x), tangent_of(value)
    return torch.where(mask, 0.0 if tv is None else tv, 0.0 if t is None else t)


def _larger(sign: int, y: Tensor, a: Any, b: Any) -> Any:
    """The tangent of the larger (sign 1) or smaller (-1) entry, the mean of both at a tie."""
    (a, ta), (b, tb) = unpack(a), unpack(b)
    share = 0.5 + 0.5 * torch.sign(a - b) * sign
    return add_tangents(scaled(ta, share), scaled(tb, 1 - share))


@tangent_rule(*named("maximum", "fmax"))
def _maximum(y: Tensor, a: Any, b: Any) -> Any:
    return _larger(1, y, a, b)


@tangent_rule(*named("minimum", "fmin"))
def _minimum(y: Tensor, a: Any, b: Any) -> Any:
    return _larger(-1, y, a, b)


@composite(*named("clamp", "clip"))
def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    x = x if min is None else torch.clamp_min(x, min)
    return x if max is None else torch.clamp_max(x, max)


@tangent_rule(*named("clamp_min"))
def _clamp_min(y: Tensor, x: Any, min: Any) -> Any:
    (v, t), (bound, tb) = unpack(x), unpack(min)
    inside = v >= bound
    return torch.where(inside, 0.0 if t is None else t, 0.0 if tb is None else tb)


@tangent_rule(*named("clamp_max"))
def _clamp_max(y: Tensor, x: Any, max: Any) -> Any:
    (v, t), (bound, tb) = unpack(x), unpack(max)
    inside = v <= bound
    return torch.where(inside, 0.0 if t is None else t, 0.0 if tb is None else tb)


without_tangent(
    *named("eq", "ne", "lt", "le", "gt", "ge", "less", "less_equal", "greater", "greater_equal", "not_equal"),
    *named("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "equal", "allclose", "isclose"),
    *named("isnan", "isinf", "isfinite", "isposinf", "isneginf", "isreal", "logical_not", "logical_and", "logical_or"),
    *named("floor_divide", "__floordiv__", "argmax", "argmin", "argsort", "any", "all", "count_nonzero", "nonzero"),
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
)
