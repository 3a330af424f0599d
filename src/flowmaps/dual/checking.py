"""`check`: compare the derivatives of a network with central differences in float64, and name the module at fault.

    f'(0) ~ (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h,    for the tangent, and for the gradient of <w, tangent>

The network is checked as a whole first; only if it is wrong are its modules checked one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .core import Dual
from .engines import Engine, jvp

STEP = 1e-5


class Call(NamedTuple):
    """A module and the arguments it was called with."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def check(
    net: nn.Module,
    *inputs: Any,
    tolerance: float = 1e-5,
    engine: Engine = "dual",
    generator: torch.Generator | None = None,
) -> float:
    """Compare a network's value, derivative and gradient of the derivative with finite differences.

    It runs in float64 on a copy of the network. In the copy, parameters that are all zero, as last layers often are,
    get random values: otherwise all derivatives would be zero, and wrong ones would pass. Random layers draw the same
    numbers in each call. Functions with a kink (relu, max) may fail at an input near the kink: draw other inputs.

    Arguments:
        net: the module, called as `net(*inputs)`.
        inputs: its arguments: floating-point tensors (all get a random direction), integer tensors, `None`.
        tolerance: the largest relative error allowed.
        engine: how the derivative is taken, as in `jvp`.
        generator: draws the directions.

    Returns:
        The largest relative error found.

    Raises:
        ValueError: a derivative is wrong, or could not be taken; the message names the submodule at fault.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    copied = copy.deepcopy(net).double()
    _fill(copied, generator)
    call = Call("", copied, _double(inputs), {})
    if not _float_arguments(call):
        raise ValueError("check needs at least one floating-point tensor among the inputs, got none.")
    errors = _errors(call, engine, generator, tolerance)
    if not errors.text:
        return errors.largest
    fault = _fault(call, engine, generator, tolerance)
    raise ValueError(
        f"the derivative of {type(net).__name__} is wrong or missing at {fault.where}: {fault.text} "
        f"(engine={engine!r}, tolerance {tolerance:g})."
    )


class Errors(NamedTuple):
    """The result of a comparison: the largest error, a message if it is too large, and the module of the message."""

    largest: float
    text: str
    where: str = ""


def _double(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach().double() if x.is_floating_point() else x
    if isinstance(x, (list, tuple)):
        values = [_double(a) for a in x]
        return type(x)(*values) if hasattr(x, "_fields") else type(x)(values)
    return x


def _fill(net: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for p in net.parameters():
            if p.is_floating_point() and not p.any():
                p.copy_(_normal(p, generator) / max(p[0].numel(), 1) ** 0.5 if p.dim() else _normal(p, generator))


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=torch.float64, device=generator.device).to(x.device)


def _float_arguments(call: Call) -> list[Any]:
    """The positions, or names, of the floating-point tensors among the arguments."""
    places: list[Any] = [i for i, x in enumerate(call.args) if isinstance(x, Tensor) and x.is_floating_point()]
    return places + [k for k, x in call.kwargs.items() if isinstance(x, Tensor) and x.is_floating_point()]


def _function(call: Call) -> Callable[..., Any]:
    """The module as a function of its floating-point arguments, with the same random numbers in each call."""
    places = _float_arguments(call)

    def function(*moved: Any) -> Any:
        args, kwargs = list(call.args), dict(call.kwargs)
        for place, x in zip(places, moved, strict=True):
            if isinstance(place, int):
                args[place] = x
            else:
                kwargs[place] = x
        with torch.random.fork_rng(), _Float64():
            torch.manual_seed(0)
            return _floats(call.module(*args, **kwargs))

    return function


class _Float64(TorchFunctionMode):
    """Turns casts to float32, as in time embeddings, into casts to float64, for accurate differences."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **{k: torch.float64 if a is torch.float32 else a for k, a in (kwargs or {}).items()})


def _floats(out: Any) -> Any:
    """All floating-point entries of an output as one vector."""
    parts = list(out.values()) if isinstance(out, dict) else out if isinstance(out, (list, tuple)) else [out]
    floats: list[Any] = [p for p in parts if isinstance(p, (Tensor, Dual)) and p.is_floating_point()]  # type: ignore
    return torch.cat([p.reshape(-1) for p in floats])


def _errors(call: Call, engine: Engine, generator: torch.Generator, tolerance: float) -> Errors:
    """Compare the value, the tangent, and the gradient of the tangent, of one module."""
    function = _function(call)
    points = [
        (call.args[p] if isinstance(p, int) else call.kwargs[p]).clone().requires_grad_()
        for p in _float_arguments(call)
    ]
    directions = [_normal(x, generator) for x in points]
    try:
        value, tangent = jvp(function, tuple(points), tuple(directions), engine=engine)
    except (ValueError, NotImplementedError, TypeError, RuntimeError) as error:
        return Errors(float("inf"), str(error))
    with torch.no_grad():
        plain = function(*points)
        expected = _difference(lambda step: function(*_shifted(points, directions, step)))
    floor = 1e-3 * float(plain.abs().amax())  # a derivative far below the value is rounding
    found = {
        "the value": _relative(value, plain, 0.0),
        "the tangent": _relative(tangent, expected, floor),
        "the gradient of the tangent": _gradient_error(call, function, points, directions, tangent, engine, generator),
    }
    wrong = [f"{name} is off by {error:.2g} (relative)" for name, error in found.items() if not error <= tolerance]
    return Errors(max(found.values()), ", ".join(wrong))


def _gradient_error(
    call: Call, function: Any, points: Any, directions: Any, tangent: Tensor, engine: Engine, generator: torch.Generator
) -> float:
    """The slope of `<w, tangent>` along a direction of inputs and parameters, by reverse mode and differences."""
    weight = _normal(tangent, generator)
    variables = [*points, *(p for p in call.module.parameters() if p.requires_grad)]
    along = [_normal(x, generator) for x in variables]
    if not tangent.requires_grad:
        slopes: Any = [None] * len(variables)
    else:
        slopes = torch.autograd.grad((weight * tangent).sum(), variables, allow_unused=True)
    terms = [(g * v).sum() for g, v in zip(slopes, along, strict=True) if g is not None]
    slope = torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)

    def moved(step: float) -> Tensor:
        for x, v in zip(variables, along, strict=True):
            x.add_(v, alpha=step)
        out = jvp(function, tuple(points), tuple(directions), engine=engine)[1] * weight
        for x, v in zip(variables, along, strict=True):
            x.sub_(v, alpha=step)
        return out

    with torch.no_grad():
        changes = _difference(moved)
        expected, scale = changes.sum(), changes.abs().sum()
        size = (function(*points) * weight).abs().sum()
    return float((slope.detach() - expected).abs() / (expected.abs() + 1e-2 * scale + 1e-3 * size + 1e-12))


def _difference(function: Callable[[float], Tensor]) -> Tensor:
    """The derivative at 0 to fourth order, `(8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h`."""
    near, far = function(STEP) - function(-STEP), function(2 * STEP) - function(-2 * STEP)
    return (8 * near - far) / (12 * STEP)


def _shifted(points: Any, directions: Any, step: float) -> list[Tensor]:
    return [x + step * v for x, v in zip(points, directions, strict=True)]


def _relative(found: Tensor, expected: Tensor, floor: float) -> float:
    return float((found.detach() - expected).abs().amax() / (expected.abs().amax() + floor + 1e-12))


def _fault(call: Call, engine: Engine, generator: torch.Generator, tolerance: float) -> Errors:
    """The first leaf module that is wrong on its own, else the innermost module that is, else the whole."""
    calls = _calls(call)
    leaves = [c for c in calls if next(c.module.children(), None) is None]
    inner = [c for c in calls if next(c.module.children(), None) is not None]
    others = sorted(inner, key=lambda c: c.name.count(".") if c.name else -1, reverse=True)
    for one in (*leaves, *others):
        if _float_arguments(one):
            found = _errors(one, engine, generator, tolerance)
            if found.text:
                where = f"{one.name!r} ({type(one.module).__name__})" if one.name else "the network's own forward"
                return Errors(found.largest, found.text, where)
    return Errors(float("inf"), "no submodule is wrong on its own", "the network's own forward")


def _calls(call: Call) -> list[Call]:
    """The submodules in the order they finish, each with its arguments in a plain evaluation."""
    calls: list[Call] = []
    handles = [
        module.register_forward_hook(
            lambda m, args, kwargs, out, name=name: calls.append(Call(name, m, _double(args), dict(kwargs))),
            with_kwargs=True,
        )
        for name, module in call.module.named_modules()
    ]
    with torch.no_grad():
        _function(call)(*[call.args[p] for p in _float_arguments(call)])
    for handle in handles:
        handle.remove()
    return calls
