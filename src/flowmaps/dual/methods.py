"""Gives `Dual` the methods, attributes and operators of a tensor: each calls the rule of its torch function.

x.sin(), x + y, x[0], x.shape, x += y
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .core import TANGENT_DROPPED, Dual, add_handler, look_up, rebind, unpack
from .energy import requires_grad_
from .writing import write

ATTRIBUTES = (
    *("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "grad_fn", "itemsize", "nbytes"),
    *("is_cuda", "is_cpu", "is_meta", "is_mps", "is_sparse", "is_quantized", "is_nested", "is_xpu", "is_mkldnn"),
)
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "truediv": torch.div,
    "pow": torch.pow,
    "matmul": torch.matmul,
    "mod": torch.remainder,
    "floordiv": torch.floor_divide,
}
"""Operators of two operands; each is also there reflected and in place."""
OTHERS = {
    "__neg__": torch.neg,
    "__pos__": torch.positive,
    "__abs__": torch.abs,
    "__getitem__": torch.Tensor.__getitem__,
    "__eq__": torch.eq,
    "__ne__": torch.ne,
    "__lt__": torch.lt,
    "__le__": torch.le,
    "__gt__": torch.gt,
    "__ge__": torch.ge,
}
LAYOUT = (
    *("squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_", "as_strided_", "resize_", "resize_as_"),
    "detach_",
)
"""Methods that change how a tensor sees its memory, and write nothing."""
REFUSED = ("item", "tolist", "numpy", "data_ptr", "backward", "register_hook", "__array__")


def _attribute(name: str) -> property:
    def read(x: Dual) -> Any:
        return getattr(x.value, name)

    return property(read)


def _method(function: Any) -> Callable[..., Any]:
    def method(x: Dual, *args: Any, **kwargs: Any) -> Any:
        return Dual.__torch_function__(function, (), (x, *args), kwargs)

    return method


def _reflected(function: Any) -> Callable[..., Any]:
    def method(x: Dual, other: Any) -> Any:
        return look_up(function)(other, x)

    return method


def _in_place(function: Any) -> Callable[..., Any]:
    def method(x: Dual, *args: Any, **kwargs: Any) -> Any:
        return rebind(x, Dual.__torch_function__(function, (), (x, *args), kwargs))

    return method


def _refused(name: str) -> Callable[..., Any]:
    def method(x: Dual, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(TANGENT_DROPPED.format(f"x.{name}()"))

    return method


def _writes(name: str, function: Any) -> Callable[..., Any]:
    def method(x: Any, *args: Any, **kwargs: Any) -> Any:
        if name not in LAYOUT:
            return rebind(x, Dual.__torch_function__(function, (), (x, *args), kwargs))
        if x.shared is not None and x.shared.group.others(x):
            raise NotImplementedError(
                f"x.{name}() on a Dual that shares its memory with a view: write y = x.{name[:-1]}(), and use y."
            )
        x.value, x.tangent = unpack(Dual.__torch_function__(function, (), (x, *args), kwargs))
        x.shared = None
        return x

    return method


def give_methods() -> None:
    """Give `Dual` what a tensor has. `x += y`, `x.add_(y)` are computed out of place, and `x` takes the result."""
    for name in ATTRIBUTES:
        setattr(Dual, name, _attribute(name))
    for name, function in BINARY.items():
        setattr(Dual, f"__{name}__", _method(function))
        setattr(Dual, f"__r{name}__", _reflected(function))
        setattr(Dual, f"__i{name}__", _in_place(function))
    for name, function in OTHERS.items():
        setattr(Dual, name, _method(function))
    Dual.__hash__ = object.__hash__
    Dual.requires_grad_ = requires_grad_  # type: ignore[attr-defined]
    Dual.requires_grad = property(_attribute("requires_grad").fget, requires_grad_)  # type: ignore[attr-defined]
    Dual.data = property(lambda x: x.detach())  # type: ignore[attr-defined]
    for name in dir(torch.Tensor):
        function = getattr(torch.Tensor, name)
        if name.startswith("_") or hasattr(Dual, name) or not callable(function):
            continue
        if name in REFUSED:
            setattr(Dual, name, _refused(name))
        elif name.endswith("_") and hasattr(torch.Tensor, name[:-1]):
            setattr(Dual, name, _writes(name, getattr(torch.Tensor, name[:-1])))
        else:
            setattr(Dual, name, _method(function))
    _in_place_functions()


def _in_place_functions() -> None:
    """Register handlers of in-place functions that torch calls itself: `tensor.add_(dual)`, `F.relu_(dual)`."""
    for home in (torch.Tensor, torch.nn.functional, torch):
        for name in dir(home):
            base = getattr(home, name[:-1], None)
            if name.endswith("_") and not name.startswith("_") and look_up(base) is not None:
                add_handler(getattr(home, name), _writing(name, base))


def _writing(name: str, base: Any) -> Callable[..., Any]:
    def handler(x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, Dual):
            return rebind(x, look_up(base)(x, *args, **kwargs))
        return write(x, name, *args, **kwargs)

    return handler
