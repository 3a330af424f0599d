"""What makes other libraries take a `Dual` for a tensor: `torch.is_tensor`, `torch.as_tensor`, `vmap`, einops.

`isinstance(x, torch.Tensor)` stays false: a class that said otherwise would break `autograd.Function`, checkpointing
and compilation. A network that asks it takes its other branch; ask `torch.is_tensor(x)` there, which is true.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_gradtrackingtensor
from torch.jit._builtins import _register_builtin
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors

from .core import Dual

_plain_as_tensor = torch.as_tensor


def is_tensor(obj: Any, /) -> bool:
    """Whether `obj` is a tensor, or a `Dual`, which stands for one (`torch.is_tensor`)."""
    return isinstance(obj, (Tensor, Dual))


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Any:
    """`torch.as_tensor`, which takes a `Dual` for a tensor."""
    if isinstance(data, Dual):
        return _same(data, dtype, device)
    return _plain_as_tensor(data, dtype=dtype, device=device)


def _same(data: Any, dtype: Any = None, device: Any = None) -> Any:
    return data.to(device=device, dtype=dtype)


_device_constructors()  # a list, made once, of the functions that `with torch.device(...)` is about
_register_builtin(as_tensor, "aten::as_tensor")
torch.is_tensor, torch.as_tensor = is_tensor, as_tensor  # type: ignore[assignment]


def _flatten(x: Dual) -> tuple[list[Any], Any]:
    return ([x.value] if x.tangent is None else [x.value, x.tangent]), x.detached


def _unflatten(parts: Any, detached: Any) -> Dual:
    return Dual(*parts, detached=detached)


pytree.register_pytree_node(Dual, _flatten, _unflatten)


def _tracks_gradient(x: Any) -> bool:
    return not isinstance(x, Dual) and is_gradtrackingtensor(x)


def introduce() -> bool:
    """Make `Dual` known to einops, azula and torch's compiler, if these have been imported."""
    einops = sys.modules.get("einops._backends")
    if einops is not None and Dual not in einops._type2backend:
        einops._type2backend[Dual] = einops.get_backend(torch.empty(0))
    azula = sys.modules.get("azula.nn.utils")
    if azula is not None and getattr(azula, "is_gradtrackingtensor", None) is is_gradtrackingtensor:
        vars(azula)["is_gradtrackingtensor"] = _tracks_gradient  # its checkpointing asks it of all tensors
    compiler = sys.modules.get("torch._dynamo.variables.torch")
    if compiler is not None:
        _tell_compiler(compiler)
    return True


introduce._dynamo_marked_constant = True  # type: ignore[attr-defined]  # called by the compiler, not compiled


def _tell_compiler(compiler: Any) -> None:
    """The compiler answers `torch.is_tensor` and `torch.as_tensor` itself: let it take a `Dual` for a tensor there."""
    handlers = compiler.TorchInGraphFunctionVariable._get_handlers()
    plain = handlers.get(is_tensor)
    if plain is None or getattr(plain, "of_duals", False):
        return

    def answer(self: Any, tx: Any, arg: Any) -> Any:
        if isinstance(getattr(arg, "value", None), Dual):
            return compiler.ConstantVariable.create(True)
        return plain(self, tx, arg)

    def convert(self: Any, tx: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(data, "value", None), Dual):
            return compiler.VariableTracker.build(tx, _same).call_function(tx, [data, *args], kwargs)
        return None if plain_as_tensor is None else plain_as_tensor(self, tx, data, *args, **kwargs)

    plain_as_tensor = handlers.get(as_tensor)
    answer.of_duals = True  # type: ignore[attr-defined]
    handlers[is_tensor], handlers[as_tensor] = answer, convert
