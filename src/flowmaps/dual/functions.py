"""Networks with a `torch.autograd.Function`: the value by the function itself, the tangent by its own derivative.

The function's backward pass is `g(w) = J^T w`, linear in w, so that `J v = d/dw <g(w), v>`: its backward pass taken
twice. A function that has a `jvp` gives `J v` itself. Whether the gradient of `J v` is right as well depends on how the
function was written (a backward pass that uses tensors which `forward` computed loses their gradient, without an
error), so that each function is tried out when it is first met, against finite differences (`trials`).

Re-entrant checkpointing is such a function too; its region is run by non-reentrant checkpointing instead.

`Function.apply` does not ask its arguments for `__torch_function__`: `apply` below stands between it and torch.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor
from torch._functorch.autograd_function import custom_function_call
from torch.nn.modules._functions import SyncBatchNorm
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from . import trials
from .core import TABLE, Dual, composite, first_dual, paired, run_tangent, values_of
from .randomness import SharedNumbers, uncompiled

Function = torch.autograd.function._SingleLevelFunction
"""The class in whose `apply` every custom function ends, also one that was taken as `Scores.apply` before."""


def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
    """`Function.apply` for arguments some of which may be a `Dual`."""
    if any(isinstance(a, Dual) for a in args):
        if torch._C._are_functorch_transforms_active():
            return _inside_a_transform(function, *args)
        return _carried(function, args)
    if _dual_in((*args, kwargs)):
        raise NotImplementedError(_refusal(function, "it takes a Dual in a list, a dict or by keyword"))
    out = super(Function, function).apply(*args, **kwargs)  # type: ignore[misc]
    if _dual_in((out,)):
        raise NotImplementedError(_refusal(function, "it uses a Dual that is none of its arguments") + _REENTRANT)
    return out


setattr(Function, "apply", classmethod(apply))  # noqa: B010


@composite(custom_function_call)
def _inside_a_transform(function: Any, *args: Any) -> Any:
    raise NotImplementedError(_refusal(function, "it is called inside torch.func.grad, vmap or jvp"))


def carry(function: Any, args: tuple[Any, ...]) -> Any:
    """Value and tangent of a custom function, each output a `Dual`.

    Raises:
        NotImplementedError: the tangent, or a gradient through it that will be taken, would be wrong.
    """
    if function in TABLE:
        return TABLE[function](*args)
    if function.__name__ == "RegisterPostBackwardFunction" and function.__module__.startswith("torch.distributed.fsdp"):
        return _returned(function, args)
    region = _checkpointed(function, args)
    if region is not None:
        return checkpoint(region[0], *region[2], use_reentrant=False, preserve_rng_state=region[1])
    found = first_dual(args)
    if found is None:
        return function.apply(*values_of(args))
    _check_arguments(function, args)
    values = list(values_of(args))
    tangents = [a.tangent if isinstance(a, Dual) else None for a in args]
    traced = [x for x in (*values, *tangents) if isinstance(x, Tensor) and x.requires_grad]
    second = bool(traced) and run_tangent(found.detached, torch.is_grad_enabled)
    way, fault = trials.way_of(function, values, tangents, second)
    if way is None:
        raise NotImplementedError(_refusal(function, fault))
    if second:
        out, along = way(function, values, tangents)
        return _pairs(out, along, found.detached)
    numbers = SharedNumbers(values)
    out = function.apply(*values)
    apart = [[x.detach() if isinstance(x, Tensor) else x for x in xs] for xs in (values, tangents)]
    with numbers.again():
        _, along = way(function, *apart)
    return _pairs(out, [None if v is None else v.detach() for v in along], found.detached)


_carried = uncompiled(carry, "a torch.autograd.Function is carried through a derivative by Python alone")


def _pairs(out: Any, tangents: list[Any], detached: bool) -> Any:
    if not isinstance(out, tuple):
        return paired(out, tangents[0], detached)
    return tuple(paired(y, v, detached) if isinstance(y, Tensor) else y for y, v in zip(out, tangents, strict=True))


def _returned(function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """FSDP2's function, which returns its tensors and frees weights after their gradients: all in one call."""
    tensors = [[a.value, a.tangent][: 1 if a.tangent is None else 2] if isinstance(a, Dual) else [a] for a in args[1:]]
    out = iter(function.apply(args[0], *(x for pair in tensors for x in pair)))
    pairs = [[next(out) for _ in pair] for pair in tensors]
    return tuple(Dual(*p, detached=a.detached) if isinstance(a, Dual) else p[0]
                 for a, p in zip(args[1:], pairs, strict=True))  # fmt: skip


def _checkpointed(function: Any, args: tuple[Any, ...]) -> tuple[Any, bool, tuple[Any, ...]] | None:
    """The region of re-entrant checkpointing, whether it keeps the random state, and its inputs; of no other function.

    Beside torch's there is the one of guided-diffusion, which many U-Nets have copied: inputs, then parameters.
    """
    if function is CheckpointFunction:
        return args[0], args[1], args[2:]
    names = list(inspect.signature(function.forward).parameters)
    if function.__name__ == "CheckpointFunction" and names[1:3] == ["run_function", "length"]:
        return args[0], True, args[2 : 2 + cast(int, args[1])]
    return None


def _check_arguments(function: Any, args: tuple[Any, ...]) -> None:
    if any(callable(a) and not isinstance(a, (Tensor, Dual, type)) for a in args):
        raise NotImplementedError(
            _refusal(function, "it takes a function or module, whose parameters it may differentiate itself")
        )
    if _dual_in([a for a in args if not isinstance(a, Dual)]):
        raise NotImplementedError(_refusal(function, "it takes a Dual in a list or a dict"))
    if function is SyncBatchNorm:
        raise NotImplementedError(
            _refusal(function, "its backward pass averages over processes, and has no derivative")
        )


def _dual_in(x: Any) -> bool:
    if isinstance(x, dict):
        x = tuple(x.values())
    return any(isinstance(a, Dual) or (isinstance(a, (list, tuple, dict)) and _dual_in(a)) for a in x)


_REENTRANT = " (For torch.utils.checkpoint.checkpoint, pass use_reentrant=False.)"


def _refusal(function: Any, why: str) -> str:
    name = f"{function.__module__}.{function.__qualname__}"
    return (
        f"{name} is a torch.autograd.Function that cannot be carried through a derivative: {why}. Write it in torch's "
        f"own operations, add a rule with @dual.rule({function.__qualname__}) (the arguments of its apply, returning a "
        'Dual), or give the method engine="finite-difference".'
    )
