"""Calling torch modules without changing them: in evaluation mode, with weights that take no gradient.

modules_of(fn)                    the modules that a callable uses, wherever it has them from
in_training_outside(*modules)     the modules outside of these that run in training mode while a context lasts
DetachedField(fn)                 fn with the weights of these modules detached, in evaluation mode
evaluating(*modules)              evaluation mode while a context lasts

So `velocities.FromTeacher` freezes a teacher; one that is a map may also be a frozen copy, `maps.Target`.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

MAX_DEPTH = 8
"""Levels of closures, arguments and attributes within which modules are looked for."""
_LIBRARIES = {"torch", "numpy", "scipy", *sys.stdlib_module_names}
"""Packages whose functions have no weights of a caller's."""
_OWN = __name__.partition(".")[0]
"""This package, whose functions have a caller's weights in their closures alone."""


@contextmanager
def evaluating(*modules: Any) -> Iterator[None]:
    """Context in which modules are in evaluation mode; each part gets its own mode back. What is no module is left."""
    parts = [part for module in modules if isinstance(module, nn.Module) for part in module.modules() if part.training]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


MODAL = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU, nn.MultiheadAttention, nn.RNNBase)
"""Layers of torch that compute something else in training mode."""


@contextmanager
def in_training_outside(*modules: nn.Module) -> Iterator[list[nn.Module]]:
    """Context that collects, in the list it yields, each module outside `modules` that is called in training mode;
    layers of torch for which the mode changes nothing are left out."""
    known = {id(part) for module in modules for part in module.modules()}
    found: list[nn.Module] = []

    def look(module: nn.Module, _: Any) -> None:
        plain = type(module).__module__.startswith("torch.nn.") and not isinstance(module, MODAL)
        if module.training and not plain and id(module) not in known:
            known.add(id(module))
            found.append(module)

    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield found
    finally:
        hook.remove()


def modules_of(fn: Any) -> list[nn.Module]:
    """The modules that a callable uses.

    They are looked for in what it is bound to, its closure, its defaults, its attributes, the arguments of a
    `functools.partial`, and the global names that its code reads.
    """
    return [value for value in _uses(fn) if isinstance(value, nn.Module)]


def _uses(fn: Any) -> list[nn.Module | Tensor]:
    """The modules, and the tensors outside of modules that take gradients."""
    found: list[nn.Module | Tensor] = []
    _look(fn, MAX_DEPTH, {}, found)
    return found


def _look(value: Any, depth: int, seen: dict[int, Any], found: list[nn.Module | Tensor]) -> None:
    if depth < 0 or id(value) in seen or value is None or isinstance(value, (str, bytes, int, float, complex, type)):
        return
    seen[id(value)] = value  # kept, so that no other value gets its id
    if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.requires_grad):
        found.append(value)
        return
    for part in _parts(value):
        _look(part, depth - 1, seen, found)


def _parts(value: Any) -> Iterator[Any]:
    """What a value has inside it."""
    if isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        if (value.__module__ or "").partition(".")[0] not in _LIBRARIES:
            yield from _of_function(value)
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from value
    elif not isinstance(value, (ModuleType, Tensor)):
        yield from getattr(value, "__dict__", {}).values()
        slots = (getattr(kind, "__slots__", ()) for kind in type(value).__mro__)
        names = [name for entry in slots for name in ((entry,) if isinstance(entry, str) else entry)]
        yield from (getattr(value, name, None) for name in names if name not in ("__dict__", "__weakref__"))
        yield vars(type(value)).get("__call__")
        if type(value).__module__.partition(".")[0] not in _LIBRARIES:
            kept = [entry for kind in type(value).__mro__[:-1] for entry in vars(kind).values()]
            yield from (entry for entry in kept if isinstance(entry, (nn.Module, Mapping, list, tuple, deque)))


def _of_function(fn: FunctionType) -> Iterator[Any]:
    yield from (fn.__defaults__, fn.__kwdefaults__, vars(fn))
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it has none yet
            continue
    if (fn.__module__ or "").partition(".")[0] == _OWN:
        return
    read, attributes = _names(fn.__code__)
    for name in read:
        value = fn.__globals__.get(name)
        if isinstance(value, ModuleType):  # of a module of Python what the code takes from it
            if value.__name__.partition(".")[0] not in {_OWN, *_LIBRARIES}:
                yield from (getattr(value, attribute, None) for attribute in attributes)
        else:
            yield value


@functools.lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[set[str], set[str]]:
    """The global names that code reads, and the attributes; those of the functions within it too."""
    read, attributes = set[str](), set[str]()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more = _names(inner)
            read |= more[0]
            attributes |= more[1]
    return read, attributes


def accepts(fn: Any, number: int) -> bool:
    """Whether a callable takes so many positional arguments; true where Python cannot tell."""
    try:
        signature = inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * number)
    except TypeError:
        return False
    return True


def named(fn: Any) -> str:
    """A callable in words, with its arguments where Python can tell."""
    name = getattr(fn, "__qualname__", type(fn).__name__).rpartition("<locals>.")[2]
    try:
        return f"{name}{inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn)}"
    except (TypeError, ValueError):
        return name


class _Call(nn.Module):
    """A callable as a module, beside the modules that it uses: `functional_call` then gives them other weights."""

    def __init__(self, fn: Callable[..., Any], used: list[nn.Module]) -> None:
        super().__init__()
        self.used = nn.ModuleList(used)
        self.fn = fn
        self.training = False

    def forward(self, *arguments: Any) -> Any:
        return self.fn(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Call:
        return self  # a copy of a function would still call the modules of the first


class DetachedField:
    """A callable of tensors in which no gradient reaches a weight, and no layer is in training mode.

    Nothing of the modules that it uses is changed: each call takes their weights as they are then, detached, in
    evaluation mode, and puts the mode back. Gradients pass through to the arguments.

    Args:
        fn: the callable.
        modules: those that it uses; looked for unless given.

    Attributes:
        fn: as given.

    Raises:
        ValueError: it uses a tensor outside of modules that takes gradients, or a network of TorchScript that does.
    """

    def __init__(self, fn: Callable[..., Any], modules: Sequence[nn.Module] | None = None) -> None:
        found = _uses(fn) if modules is None else list(modules)
        if any(isinstance(value, Tensor) for value in found):
            raise ValueError(
                f"{named(fn)} uses a tensor that takes gradients: detach it, weight = weight.detach(), or put it into "
                "a torch.nn.Module."
            )
        self.fn, own = fn, [value for value in found if isinstance(value, nn.Module)]
        scripted = [part for used in own for part in used.modules() if isinstance(part, torch.jit.ScriptModule)]
        if any(part.training or any(value.requires_grad for value in part.parameters()) for part in scripted):
            raise ValueError(
                f"{named(fn)} uses a network of TorchScript, whose weights cannot be detached for a call: freeze it, "
                "net.requires_grad_(False).eval()."
            )
        self._call, self._moved = _Call(fn, own), dict[str, Tensor]()

    @property
    def used(self) -> list[nn.Module]:
        """The modules that `fn` uses; those themselves in a deep copy too, which calls the same function."""
        return list(self._call.used)

    def __call__(self, *arguments: Any) -> Any:
        if not self.used:
            return self.fn(*arguments)
        with evaluating(*self.used):
            return functional_call(self._call, self._moved or self._weights(), arguments, tie_weights=False)

    def _weights(self) -> dict[str, Tensor]:
        """The tensors of each module once, under one name, however many of the modules share them or the module."""
        return {
            f"{path}.{name}": value.detach()
            for path, module in self._call.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)
            for name, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None
        }

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Go on with copies of the weights on another device or of another type; the caller's stay as they are.

        Args:
            change: of a tensor, as `torch.nn.Module._apply` has it.
        """
        own = self._moved or self._weights()
        changed = {name: change(value) for name, value in own.items()}
        if any(changed[name].data_ptr() != value.data_ptr() for name, value in own.items()):
            self._moved = changed
