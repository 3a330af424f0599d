"""Writing into tensors: `x[...] = y`, `x.copy_(y)`, `zeros.index_add_(...)`, where either may be a `Dual`.

A `Dual` takes the result of an operation in place as a new pair. A plain tensor that a `Dual` is written into becomes a
`Written`: the value is written into its memory, and a tangent of its shape stands beside it, written in the same way.
When `jvp` returns, a `Written` that is still there is a plain tensor again.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from .core import (
    TABLE,
    WRITTEN,
    Dual,
    add_handler,
    look_up,
    pairs_of,
    rebind,
    tangent_or_zero,
    unpack,
    values_of,
)
from .sharing import Group, Shared

OPERATORS = {
    "__iadd__": torch.add,
    "__isub__": torch.sub,
    "__imul__": torch.mul,
    "__itruediv__": torch.div,
    "__ipow__": torch.pow,
}
PLAIN = ("__repr__", "__hash__", "__set__", "__format__", "untyped_storage", "_is_view", "data_ptr")
"""Methods that see the value alone."""


class Written(Tensor):
    """A plain tensor that a `Dual` was written into: its value in its own memory, and its tangent."""

    side: Tensor

    def as_pair(self) -> Dual:
        """The value and the tangent as they are now; views of them see what is written later."""
        pair = Dual(_plain(self), self.side)
        pair.shared = Shared(Group(pair, in_place=True), ())
        return pair

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return getattr(args[0].as_pair(), func.__self__.__name__)
        if name in PLAIN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if args and isinstance(args[0], Written) and (name == "__setitem__" or base_of(name) is not None):
            return write(args[0], name, *args[1:], **(kwargs or {}))
        pairs, named = pairs_of(args), pairs_of(kwargs or {})
        if look_up(func) is None and hasattr(Dual, name):
            return getattr(Dual, name)(*pairs, **named)
        return Dual.__torch_function__(func, types, pairs, named)


def _plain(x: Any) -> Tensor:
    """The value, which shares the memory of `x` and has its autograd graph."""
    if type(x) is Tensor:
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(Tensor)


def base_of(name: str) -> Any:
    """The function that an operation in place is named after, `None` if `name` is none."""
    if name in OPERATORS:
        return OPERATORS[name]
    if not name.endswith("_") or name.startswith("_"):
        return None
    return REPLACING.get(name) or getattr(Tensor, name[:-1], None)


def write(x: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Write into a plain tensor, which becomes a `Written`, or into one that is."""
    if type(x) is Tensor and not _become_written(x, name):
        return getattr(x, name)(*values_of(args), **values_of(kwargs))
    if type(x) is not Written:
        raise NotImplementedError(_no_place(name))
    value, args, kwargs = _plain(x), pairs_of(args), pairs_of(kwargs)
    if name == "__setitem__":
        with torch._C.DisableTorchFunctionSubclass():
            x[values_of(args[0])] = values_of(args[1])
        x.side[values_of(args[0])] = tangent_or_zero(args[1])
        return None
    base = base_of(name)
    new = Dual.__torch_function__(base, (), (Dual(value.clone(), x.side.clone()), *args), kwargs)
    if new.shape != x.shape:
        raise NotImplementedError(
            f"{name} gives a tensor that a Dual was written into another shape: {_no_place(name)}"
        )
    with torch._C.DisableTorchFunctionSubclass():
        x.copy_(values_of(new))
    x.side.copy_(tangent_or_zero(new))
    return x


def _become_written(x: Tensor, name: str) -> bool:
    """Turn a plain tensor into a `Written`; not one of integers, which has no tangent."""
    if not (x.is_floating_point() or x.is_complex()):
        return False
    shared = x._is_view() or torch._C._storage_Use_Count(x.untyped_storage()._cdata) > 2  # type: ignore[attr-defined]
    if torch.compiler.is_compiling() or shared:
        raise NotImplementedError(_no_place(name))
    side = torch.zeros_like(x)
    x.__class__ = Written
    x.side = side  # type: ignore[attr-defined]
    _note(x)
    return True


def _no_place(name: str) -> str:
    if name == "__setitem__":
        return (
            "x[...] = y writes a Dual into a plain tensor, which has no place for its tangent (it is a view, has one, "
            "or is compiled): build the result with torch.cat, torch.where or F.pad."
        )
    base = name[2:-2] if name.startswith("__") else name[:-1]
    return (
        f"{name} writes a Dual into a plain tensor, which has no place for its tangent (it is a view, has one, or is "
        f"compiled): write y = {base}(x, ...) (or x = x + y for x += y)."
    )


_DEPTH: dict[int, int] = {}
"""By thread, how many contexts of `Writes` it is in."""


class Writes:
    """Context in which plain tensors may become `Written` in this thread; after it they are plain again."""

    def __enter__(self) -> Writes:
        self.thread = threading.get_ident()
        self.since = len(WRITTEN.get(self.thread, ()))
        _DEPTH[self.thread] = _DEPTH.get(self.thread, 0) + 1
        return self

    def __exit__(self, *error: Any) -> None:
        _DEPTH[self.thread] -= 1
        if not _DEPTH[self.thread]:
            del _DEPTH[self.thread]
        _make_plain(self.thread, self.since)

    def left(self) -> bool:
        """Whether a tensor that was written into is still there."""
        return any(reference() is not None for reference in WRITTEN.get(self.thread, [])[self.since :])


def _make_plain(thread: int, since: int) -> None:
    references = WRITTEN.get(thread, [])
    for reference in references[since:]:
        x = reference()
        if x is not None:
            x.__class__ = Tensor
            del x.side
    del references[since:]
    if not references:
        WRITTEN.pop(thread, None)


def _note(x: Tensor) -> None:
    """Note a tensor that becomes `Written`; in a backward pass, which recomputes checkpoints, until that ends."""
    thread = threading.get_ident()
    if thread not in WRITTEN and thread not in _DEPTH and torch._C._current_graph_task_id() != -1:
        torch.autograd.Variable._execution_engine.queue_callback(lambda: _make_plain(thread, 0))
    WRITTEN.setdefault(thread, []).append(weakref.ref(x))


def _filled(x: Any, value: Any) -> Any:
    return torch.zeros_like(values_of(x)) + value


def _copied(x: Any, source: Any, non_blocking: bool = False) -> Any:
    return torch.zeros_like(values_of(x)) + source.to(x.dtype)


def _zeroed(x: Any) -> Any:
    return torch.zeros_like(values_of(x))


REPLACING = {"fill_": _filled, "copy_": _copied, "zero_": _zeroed}
"""Operations in place that no function is named after."""
TABLE.update({base: base for base in REPLACING.values()})


def _set(x: Any, index: Any, value: Any) -> None:
    """`x[index] = value` for a `Dual` x, and for a plain one with a `Dual` value."""
    if not isinstance(x, Dual):
        return write(x, "__setitem__", index, value)
    index, side = values_of(index), tangent_or_zero(value)
    out, tangent = x.value.clone(), x.tangent
    out[index] = values_of(value)
    if tangent is not None or isinstance(side, Tensor):
        tangent = torch.zeros_like(out) if tangent is None else tangent.clone()
        tangent[index] = side.detach() if x.detached and isinstance(side, Tensor) else side
    rebind(x, Dual(out, tangent, x.detached))
    return None


add_handler(Tensor.__setitem__, _set)
Dual.__setitem__ = _set  # type: ignore[method-assign]


def _replacing(name: str) -> Any:
    def handler(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, Dual):
            return write(x, name, *args, **kwargs)
        return rebind(x, REPLACING[name](x, *args, **kwargs))

    return handler


for _name in REPLACING:
    add_handler(getattr(Tensor, _name), _replacing(_name))


def plain_result(x: Any) -> tuple[Any, Any]:
    """Return `(value, tangent)` of what a function returned, a `Written` too."""
    return unpack(pairs_of(x))
