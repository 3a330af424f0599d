"""`jvp`: the value of a function and its derivative along a direction, by one of three engines."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from .agreement import COMPARING, compare
from .core import Dual, NeedsGraph, unpack
from .faults import Refusal
from .foreign import introduce
from .randomness import SharedNumbers, uncompiled
from .states import Buffers
from .writing import Writes, plain_result

Engine: TypeAlias = Literal["dual", "torch", "finite-difference"]
ENGINES: tuple[str, ...] = get_args(Engine)


def jvp(
    fn: Callable[..., Any],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor | None, ...],
    *,
    engine: Engine = "dual",
    detach_tangent: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return `f(x)` and `Df(x) v`, both differentiable by reverse mode.

    Arguments:
        fn: `fn(*primals) -> Tensor`, of torch functions, tensor methods and modules.
        primals: the points x, tensors.
        tangents: the direction v, each a tensor of its primal's shape, or `None` for zero, which costs nothing.
        engine: `"dual"` (this package's rules), `"torch"` (`torch.func.jvp`), or `"finite-difference"` (central: two
            more evaluations, of an accuracy of about `eps^(2/3)`).
        detach_tangent: compute the derivative without an autograd graph; the value keeps its own, and is computed
            once (with `"dual"`; the other engines compute the derivative apart from it).

    Returns:
        The value and its tangent, of the same shape; zeros where the value does not depend on the primals along v.

    Raises:
        ValueError: an unknown engine, another number of tangents than primals, or another shape; `"torch"` round a
            function whose derivative torch gets wrong (`flowmaps.dual.faults`: layer_norm, det, solve, ...).
        NotImplementedError: `"dual"` met a function without a rule.
    """
    _check(primals, tangents, engine)
    if engine == "torch":
        return _torch(fn, primals, tangents, detach_tangent)
    if engine == "finite-difference":
        return _difference(fn, primals, tangents, detach_tangent)
    introduce()
    if torch.compiler.is_compiling():
        value, tangent = unpack(_single(fn(*_duals(primals, tangents, detach_tangent))))
    elif COMPARING.get():
        value, tangent = compare(fn, primals, lambda: _evaluated(fn, primals, tangents, detach_tangent))
    else:
        value, tangent = _evaluated(fn, primals, tangents, detach_tangent)
    if tangent is None:
        return value, torch.zeros_like(value)
    return value, tangent.detach() if detach_tangent else tangent


def _duals(primals: Any, tangents: Any, detach: bool) -> list[Any]:
    return [x if v is None else Dual(x, v.detach() if detach else v, detach)
            for x, v in zip(primals, tangents, strict=True)]  # fmt: skip


_NEED_GRAPH: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
"""Networks that were found to take gradients inside."""


def _refuse_known(module: torch.nn.Module) -> None:
    if module in _NEED_GRAPH:
        raise NeedsGraph


def _evaluated(fn: Any, primals: Any, tangents: Any, detach: bool) -> tuple[Any, Any]:
    """The value and the tangent; what `fn` left behind in tensors of others is plain again.

    A gradient inside the network needs tangents with a graph: then it is evaluated anew, from the same buffers.
    """
    if detach:
        with Writes() as writes, Buffers(first=_refuse_known) as buffers:
            try:
                return plain_result(_single(fn(*_duals(primals, tangents, True))))
            except NeedsGraph as error:
                error.__traceback__ = None  # which keeps the tensors of the network
            buffers.restore()
            _NEED_GRAPH.update(list(buffers.kept)[:1])
            if writes.left():
                raise NotImplementedError(
                    "a gradient inside the network comes after a write into a tensor of others, which cannot be "
                    "repeated: build that tensor with torch.cat or torch.where, or pass detach_tangent=False."
                )
    with Writes():
        return plain_result(_single(fn(*_duals(primals, tangents, False))))


def _check(primals: tuple[Any, ...], tangents: tuple[Any, ...], engine: str) -> None:
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}, got {engine!r}.")
    if len(primals) != len(tangents):
        raise ValueError(
            f"jvp needs one tangent (or None) for each primal, got {len(primals)} primals and {len(tangents)} tangents."
        )
    for place, (x, v) in enumerate(zip(primals, tangents, strict=True)):
        if v is not None and x.shape != v.shape:
            raise ValueError(
                f"tangent {place} must have its primal's shape {tuple(x.shape)}, got {tuple(v.shape)}: "
                "use tangent.expand_as(primal), or None for a zero direction."
            )


def _single(out: Any) -> Any:
    if not isinstance(out, (Tensor, Dual)):
        raise ValueError(f"the function given to jvp must return one tensor, got {type(out).__name__}.")
    return out


def _torch(fn: Any, primals: Any, tangents: Any, detach: bool) -> tuple[Tensor, Tensor]:
    moving = [place for place, v in enumerate(tangents) if v is not None]
    if not moving:
        value = fn(*primals)
        return value, torch.zeros_like(value)

    def along(*moved: Tensor) -> Tensor:
        inputs = list(primals)
        for place, x in zip(moving, moved, strict=True):
            inputs[place] = x
        return _single(fn(*inputs))

    points, directions = tuple(primals[i] for i in moving), tuple(tangents[i] for i in moving)
    if detach:
        with torch.no_grad(), Refusal(gradient=False):
            tangent = _forward_mode(along, points, directions)[1]
        return _single(fn(*primals)), tangent.detach()
    with Refusal(gradient=torch.is_grad_enabled()):
        return _forward_mode(along, points, directions)


def _forward_mode(fn: Any, points: Any, directions: Any) -> tuple[Tensor, Tensor]:
    try:
        pair = torch.func.jvp(fn, points, directions)
    except RuntimeError as error:
        error.add_note(
            "torch.func.jvp raised this; among other things it refuses a module that writes into a tensor of its own, "
            'as batch_norm does in training. Use engine="dual", or net.eval().'
        )
        raise
    return pair[0], pair[1]


def _finite_difference(fn: Any, primals: Any, tangents: Any, detach: bool) -> tuple[Tensor, Tensor]:
    """`(f(x + h v) - f(x - h v)) / 2h`, `h = eps^(1/3)` relative to the sizes of x and v.

    All evaluations draw the same random numbers from the same buffers; both are left as after one of them.
    """
    numbers = SharedNumbers(primals)
    with Buffers() as buffers:
        value = _single(fn(*primals))
    moving = [(x, v) for x, v in zip(primals, tangents, strict=True) if v is not None]
    if not moving:
        return value, torch.zeros_like(value)
    with torch.no_grad():
        size = max([1.0] + [float(x.abs().amax()) for x, _ in moving if x.numel()])
        speed = max([float(v.abs().amax()) for _, v in moving if v.numel()] + [0.0])
        step = size * torch.finfo(moving[0][0].dtype).eps ** (1 / 3) / (speed or 1.0)

    def shifted(sign: float) -> Tensor:
        with numbers.again(), buffers.again():
            return fn(*[x if v is None else x + sign * step * v for x, v in zip(primals, tangents, strict=True)])

    with torch.no_grad() if detach else contextlib.nullcontext():
        return value, (shifted(1.0) - shifted(-1.0)) / (2 * step)


_difference = uncompiled(_finite_difference, "finite differences set the state of torch's random numbers")
