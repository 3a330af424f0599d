"""Linear maps: with weights that have no tangent, one product over the stacked [value; tangent] batch.

`f(x, w)` linear in each argument has the tangent `f(dx, w) + f(x, dw)`; a bias is added to the value alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .arithmetic import add_tangents
from .core import Dual, composite, first_dual, named, paired, run_tangent, tangent_of, tangent_rule, unpack, values_of
from .sharing import sharing


def apply_linear(function: Any, x: Dual, *args: Any, batched: bool = False, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Apply a linear function to value and tangent, in one call unless the tangent is detached.

    They are stacked along a new first axis, or concatenated along the batch axis if `batched`.
    """
    value, tangent = x.value, x.tangent
    assert tangent is not None
    if x.detached:
        return function(value, *args, **kwargs), run_tangent(True, function, tangent, *args, **kwargs)
    if batched:
        pair = function(torch.cat([value, tangent]), *args, **kwargs).chunk(2)
    else:
        pair = function(torch.stack([value, tangent]), *args, **kwargs).unbind(0)
    return pair[0], pair[1]


def _biased(out: Any, bias: Any) -> Any:
    """Add a bias to the product, in the type of the product: under autocast the bias has a wider one."""
    return out + (bias if isinstance(bias, Dual) else bias.to(values_of(out).dtype))


@composite(F.linear)
def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    if tangent_of(weight) is None and tangent_of(input) is not None:
        value, tangent = apply_linear(F.linear, input, values_of(weight))
        return (
            paired(value, tangent, input.detached)
            if bias is None
            else _biased(paired(value, tangent, input.detached), bias)
        )
    product = _multilinear(F.linear)(input, weight)
    return product if bias is None else _biased(product, bias)


def _multilinear(function: Any) -> Any:
    """The rule of a function linear in each of its tensors: the sum over the tensors that have a tangent."""

    def derivative(y: Tensor, *args: Any, **kwargs: Any) -> Any:
        terms = []
        for place, x in enumerate(args):
            if tangent_of(x) is not None:
                others = [values_of(a) for a in args]
                others[place] = x.tangent
                terms.append(function(*others, **kwargs))
        return add_tangents(*terms)

    def handler(*args: Any, **kwargs: Any) -> Any:
        found = first_dual(args)
        value = function(*values_of(args), **kwargs)
        if found is None:
            return value
        return paired(value, run_tangent(found.detached, derivative, value, *args, **kwargs), found.detached)

    return handler


for _function in named("mm", "bmm", "mv", "dot", "vdot", "inner", "outer", "ger", "kron", "cross"):
    composite(_function)(_multilinear(_function))
for _function in (torch.linalg.vecdot, torch.linalg.cross):
    composite(_function)(_multilinear(_function))


@composite(*named("matmul", "__matmul__"), torch.linalg.matmul)
def _matmul(input: Any, other: Any) -> Any:
    if isinstance(input, Dual) and tangent_of(other) is None and input.tangent is not None and other.dim() <= 2:
        return paired(*apply_linear(torch.matmul, input, values_of(other)), input.detached)
    return _multilinear(torch.matmul)(input, other)


@composite(torch.Tensor.__rmatmul__)
def _rmatmul(input: Any, other: Any) -> Any:
    return torch.matmul(other, input)


@composite(torch.einsum)
def _einsum(equation: Any, *operands: Any) -> Any:
    parts = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    product = _multilinear(lambda *tensors: torch.einsum(equation, *tensors))
    return sharing(product)(*parts) if len(parts) == 1 else product(*parts)


@composite(torch.tensordot)
def _tensordot(a: Any, b: Any, dims: Any = 2, out: None = None) -> Any:
    return _multilinear(lambda *tensors: torch.tensordot(*tensors, dims=dims))(a, b)


def _added(product: Any) -> Any:
    """The rule of `beta x + alpha product(a, b)`."""

    def handler(input: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
        out = product(a, b)
        out = out if alpha == 1 else alpha * out
        return out if beta == 0 else out + (input if beta == 1 else beta * input)

    return handler


composite(*named("addmm"))(_added(torch.mm))
composite(*named("baddbmm"))(_added(torch.bmm))
composite(*named("addbmm"))(_added(lambda a, b: torch.bmm(a, b).sum(0)))
composite(*named("addmv"))(_added(torch.mv))
composite(*named("addr"))(_added(torch.outer))


@composite(F.bilinear)
def _bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    product = _multilinear(F.bilinear)(input1, input2, weight)
    return product if bias is None else _biased(product, bias)


def _convolution(function: Any, axes: int) -> Any:
    """The rule of a convolution over `axes` axes: the first axis of a batch is doubled."""

    def handler(input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
        def without_bias(x: Any, w: Any) -> Any:
            return function(x, w, None, *args, **kwargs)

        if tangent_of(weight) is None and tangent_of(input) is not None:
            pair = apply_linear(without_bias, input, values_of(weight), batched=input.dim() == axes + 2)
            out = paired(*pair, input.detached)
        else:
            out = _multilinear(without_bias)(input, weight)
        return out if bias is None else _biased(out, bias.view(-1, *[1] * axes))

    return handler


for _axes, _functions in enumerate(
    ((F.conv1d, F.conv_transpose1d), (F.conv2d, F.conv_transpose2d), (F.conv3d, F.conv_transpose3d)), start=1
):
    for _function in _functions:
        composite(_function)(_convolution(_function, _axes))


@tangent_rule(F.embedding)
def _embedding(y: Tensor, input: Tensor, weight: Any, *args: Any, **kwargs: Any) -> Any:
    tangent = unpack(weight)[1]
    return None if tangent is None else F.embedding(input, tangent, *args, **kwargs)
