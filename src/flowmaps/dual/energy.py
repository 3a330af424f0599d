"""Gradients inside a network, as in energy models: `torch.autograd.grad` and `torch.func.grad`.

    g(x) = dE/dx(x),    its tangent: (d/dx) [DE(x) v]    (v fixed)

is the gradient of E's tangent, so that reverse mode runs over the value and over the tangent of the energy.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.utils import _pytree as pytree

from .core import Dual, NeedsGraph, add_handler, first_dual, paired, tangent_of, unpack, values_of


def requires_grad_(x: Dual, requires_grad: bool = True) -> Dual:
    """Make the value of `x` a variable that its own tangent does not depend on."""
    if not requires_grad:
        raise NotImplementedError("x.requires_grad_(False) of a Dual: write x.detach() if no derivative is meant.")
    if x.detached:
        raise NeedsGraph
    with torch.enable_grad():
        x.value = x.value.view_as(x.value) if x.value.requires_grad else x.value.detach().requires_grad_()
    x.variable = True
    return x


def _sequence(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, (list, tuple)) else (x,)


def _grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> Any:
    outs, ins = _sequence(outputs), _sequence(inputs)
    if is_grads_batched or any(isinstance(x, Dual) and not x.variable for x in ins):
        raise NotImplementedError(
            "torch.autograd.grad in a Dual that is no variable: call x.requires_grad_() before the energy is computed "
            "(is_grads_batched=True is not supported)."
        )
    weights = (None,) * len(outs) if grad_outputs is None else _sequence(grad_outputs)
    options = {"retain_graph": True, "create_graph": create_graph}
    found = first_dual((outs, weights))
    if found is not None and found.detached:
        raise NeedsGraph
    tangents = [(tangent_of(y), values_of(w)) for y, w in zip(outs, weights, strict=True)]
    tangents += [(values_of(y), tangent_of(w)) for y, w in zip(outs, weights, strict=True) if tangent_of(w) is not None]
    tangents = [(y, w) for y, w in tangents if y is not None and y.requires_grad]
    values = torch.autograd.grad(
        values_of(outs), values_of(ins), values_of(weights), allow_unused=allow_unused,
        materialize_grads=materialize_grads, **options,
    )  # fmt: skip
    if found is None or not tangents:
        return values
    terms, factors = zip(*tangents, strict=True)
    turned = torch.autograd.grad(terms, values_of(ins), factors, allow_unused=True, **options)
    return tuple([g if g is None else paired(g, t, found.detached) for g, t in zip(values, turned, strict=True)])


add_handler(torch.autograd.grad, _grad)


class _Carries(Exception):
    """The function of plain tensors returned a `Dual`: it has a tangent of something else."""


def _is_dual(x: Any) -> bool:
    return isinstance(x, Dual)


_plain_grad_and_value = eager_transforms.grad_and_value_impl


@functools.wraps(_plain_grad_and_value)
def _grad_and_value(func: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
    """`torch.func.grad_and_value`, of functions that take or return a `Dual` too."""
    if torch.compiler.is_compiling():
        return _plain_grad_and_value(func, argnums, has_aux, args, kwargs)
    given = [x for x in pytree.tree_leaves((args, kwargs), is_leaf=_is_dual) if isinstance(x, Dual)]
    if any(x.detached for x in given):
        raise NeedsGraph
    if not given:

        def watched(*args: Any, **kwargs: Any) -> Any:
            out = func(*args, **kwargs)
            first = out[0] if has_aux and isinstance(out, tuple) else out
            if isinstance(first, Dual):
                raise NeedsGraph if first.detached else _Carries
            return out

        try:
            return _plain_grad_and_value(watched, argnums, has_aux, args, kwargs)
        except _Carries:
            pass  # the function is called again
    return _pair_of_gradients(func, argnums, has_aux, args, kwargs)


def _pair_of_gradients(func: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
    """Reverse mode over the value and the tangent of the function, in one evaluation."""
    places = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    chosen = [args[p] for p in places]
    leaves, tree = pytree.tree_flatten(chosen, is_leaf=_is_dual)

    def of_tensors(*values: Tensor) -> Any:
        moved = [Dual(v, x.tangent) if _is_dual(x) else v for v, x in zip(values, leaves, strict=True)]
        inputs = list(args)
        for place, x in zip(places, pytree.tree_unflatten(moved, tree), strict=True):
            inputs[place] = x
        out = func(*inputs, **kwargs)
        out, aux = out if has_aux else (out, ())
        value, tangent = unpack(out)
        return (value, torch.zeros_like(value) if tangent is None else tangent), aux

    found: Any = torch.func.vjp(of_tensors, *[values_of(x) for x in leaves], has_aux=True)
    (value, slope), pull, aux = found
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    gradients, turned = pull((one, zero)), pull((zero, one))
    pairs = [Dual(g, t) for g, t in zip(gradients, turned, strict=True)]
    result = pytree.tree_unflatten(pairs, tree)
    grads = result[0] if isinstance(argnums, int) else tuple(result)
    return grads, (Dual(value, slope), aux) if has_aux else Dual(value, slope)


eager_transforms.grad_and_value_impl = _grad_and_value
