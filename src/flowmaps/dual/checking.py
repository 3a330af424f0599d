"""`check`: compare the derivatives of a network with differences in float64, and name the module at fault.

The value, the tangent, and the gradient of `<w, tangent>` in inputs and weights. The network is checked as a whole
first; only if it is wrong are its modules checked one by one. `copies` makes the copy, `differences` compares.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .copies import comparable, double, normal, on_tensors
from .core import Dual
from .differences import compare, difference, smooth
from .engines import Engine, jvp


class Call(NamedTuple):
    """A module, the arguments it was called with, and what it returned where that is known."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any = None


class Findings(NamedTuple):
    """The result of a comparison: the largest error, what is wrong in words, and how many outputs are at a kink."""

    largest: float
    fault: str
    kinks: int = 0
    outputs: int = 0


def check(
    net: nn.Module,
    *inputs: Any,
    tolerance: float = 1e-5,
    engine: Engine = "dual",
    generator: torch.Generator | None = None,
) -> float:
    """Compare a network's value, derivative and gradient of the derivative with finite differences.

    It runs in float64 on a copy of the network. In the copy, parameters that are all zero, as last layers often are,
    get random values: otherwise all derivatives would be zero, and wrong ones would pass. Weights that are computed
    (weight norm, spectral norm, orthogonal) are what they come to. Random layers draw the same numbers, and buffers are
    the same, in each call. Differences step round kinks (of relu, abs, max, ...); outputs that are at a kink themselves
    are left out with a warning.

    Arguments:
        net: the module, called as `net(*inputs)`.
        inputs: its arguments: floating-point or complex tensors (all get a random direction), integer tensors, `None`,
            and trees of tensors (dict, tuple, list), which stay fixed, as conditions do in training.
        tolerance: the largest relative error allowed.
        engine: how the derivative is taken, as in `jvp`.
        generator: draws the directions.

    Returns:
        The largest relative error found.

    Raises:
        ValueError: a derivative is wrong, or could not be taken; the message names the submodule at fault. Or two
            evaluations differ, or every output is at a kink.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    call = Call("", comparable(net, generator), on_tensors(inputs, double), {})
    if not _moving(call):
        raise ValueError("check needs at least one floating-point tensor among the inputs, got none.")
    _check_repeats(call)
    found = _compare(call, engine, generator, tolerance)
    if found.fault:
        where, found = _at_fault(call, engine, generator, tolerance)
        raise ValueError(_message(net, where, found.fault, engine, tolerance))
    if found.kinks:
        outputs = f"{found.kinks} of {found.outputs} outputs of {type(net).__name__}"
        text = f"{outputs} are at or near a kink (of relu, abs, max, ...)"
        if found.kinks == found.outputs:
            raise ValueError(f"{text}, where there is no derivative to compare with: draw other inputs.")
        warnings.warn(f"{text} and were left out: nothing is wrong there.", stacklevel=2)
    return found.largest


def _message(net: nn.Module, where: str, fault: str, engine: Engine, tolerance: float) -> str:
    other = "dual" if engine == "torch" else "finite-difference"
    if fault.startswith("the value") and engine == "dual":
        fault += " (isinstance(x, torch.Tensor) is false along a derivative; if it asks that, ask torch.is_tensor(x))"
    return (
        f"the derivative of {type(net).__name__} is wrong or missing at {where}: {fault} (engine={engine!r}, tolerance "
        f'{tolerance:g}). Mend that module, or give the method engine="{other}", as in fm.methods.lsd(flow_map, '
        f'engine="{other}"), or take a method without a derivative, such as psd.'
    )


def _moving(call: Call) -> list[Any]:
    """The positions, or names, of the floating-point and complex tensors among the arguments."""
    places: list[Any] = [i for i, x in enumerate(call.args) if _is_float(x)]
    return places + [k for k, x in call.kwargs.items() if _is_float(x)]


def _is_float(x: Any) -> bool:
    return isinstance(x, (Tensor, Dual)) and bool(x.is_floating_point() or x.is_complex())  # type: ignore[union-attr]


def _function(call: Call) -> Callable[..., Any]:
    """The module as a function of its moving arguments, with the same random numbers and buffers in each call."""
    places = _moving(call)
    buffers = [(m, name, x) for m in call.module.modules() for name, x in m._buffers.items() if x is not None]

    def function(*moved: Any) -> Any:
        args, kwargs = list(call.args), dict(call.kwargs)
        for place, x in zip(places, moved, strict=True):
            if isinstance(place, int):
                args[place] = x
            else:
                kwargs[place] = x
        for module, name, x in buffers:
            module._buffers[name] = x.clone()
        with torch.random.fork_rng(), _Float64():
            torch.manual_seed(0)
            return _entries(call.module(*args, **kwargs))

    return function


class _Float64(TorchFunctionMode):
    """Turns casts to float32, as in time embeddings, into casts to float64, for accurate differences."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = _WIDER.get(func, func)
        wider = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        args = tuple(wider.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        options = {k: wider.get(a, a) if isinstance(a, torch.dtype) else a for k, a in (kwargs or {}).items()}
        return func(*args, **options)


_WIDER: dict[Any, Any] = {
    getattr(Tensor, a): getattr(Tensor, b) for a, b in (("float", "double"), ("cfloat", "cdouble"))
}


def _entries(out: Any) -> Any:
    """All floating-point and complex entries of an output, as one vector of real numbers."""
    found: list[Any] = []

    def gather(x: Any) -> None:
        if isinstance(x, dict):
            x = list(x.values())
        if isinstance(x, (list, tuple)):
            for a in x:
                gather(a)
        elif _is_float(x):
            found.append((torch.view_as_real(x) if x.is_complex() else x).reshape(-1))

    gather(out)
    return torch.cat(found)


def _compare(call: Call, engine: Engine, generator: torch.Generator, tolerance: float) -> Findings:
    """Compare the value, the tangent, and the gradient of the tangent, of one module."""
    function = _function(call)
    inputs = [call.args[p] if isinstance(p, int) else call.kwargs[p] for p in _moving(call)]
    points = [x.detach().clone().requires_grad_() for x in inputs]
    directions = [normal(x, generator) for x in points]
    try:
        value, tangent = jvp(function, tuple(points), tuple(directions), engine=engine)
    except (ValueError, NotImplementedError, TypeError, RuntimeError) as error:
        return Findings(float("inf"), str(error))
    with torch.no_grad():
        plain = function(*points)
        floor = 1e-3 * float(plain.abs().amax())  # a derivative far below the value is rounding
        size = float(plain.abs().amax()) + 1e-12
        errors = {"the value": float((value.detach() - plain).abs().amax()) / size}
        line = lambda step: function(*_shifted(points, directions, step))  # noqa: E731
        errors["the tangent"], kinks = compare(tangent.detach(), line, floor, tolerance)
    gradient = Gradient(call, function, points, directions, engine, generator)
    errors["the gradient of the tangent"], more = gradient.error(tangent, tolerance, ~kinks)
    wrong = [f"{name} is off by {error:.2g} (relative)" for name, error in errors.items() if not error <= tolerance]
    return Findings(max(errors.values()), ", ".join(wrong), int((kinks | more).sum()), kinks.numel())


def _shifted(points: Any, directions: Any, step: float) -> list[Tensor]:
    return [x + step * v for x, v in zip(points, directions, strict=True)]


class Gradient:
    """The slope of `<w, tangent>` along a direction of inputs and weights, by reverse mode and by differences."""

    def __init__(
        self, call: Call, function: Any, points: Any, directions: Any, engine: Engine, generator: torch.Generator
    ) -> None:
        self.function, self.points, self.directions = function, points, directions
        self.engine: Engine = engine
        self.variables = [*points, *(p for p in call.module.parameters() if p.requires_grad)]
        self.along = [normal(x, generator) for x in self.variables]
        self.generator = generator

    def error(self, tangent: Tensor, tolerance: float, regular: Tensor) -> tuple[float, Tensor]:
        """The relative error over outputs with a derivative, and which outputs have none.

        Args:
            tangent: with its graph.
            tolerance: the error that is allowed.
            regular: the outputs that are not at a kink.
        """
        weight = normal(tangent, self.generator) * regular
        slope = self._slope(weight, tangent)  # first: a step writes into the variables
        with torch.no_grad():
            floor = 1e-3 * float((self.function(*self.points) * weight).abs().sum()) + 1e-12
            first = self._relative(slope, weight * difference(self._moved), floor)
        if first <= tolerance:
            return first, torch.zeros_like(regular)
        with torch.no_grad():
            step, same = smooth(lambda h: weight * self._moved(h), floor / max(1, weight.numel()))
            weight = weight * same
            change = weight * difference(self._moved, step)
        tangent = jvp(self.function, tuple(self.points), tuple(self.directions), engine=self.engine)[1]
        return self._relative(self._slope(weight, tangent), change, floor), regular & ~same

    def _slope(self, weight: Tensor, tangent: Tensor) -> Tensor:
        slopes: Any = [None] * len(self.variables)
        if tangent.requires_grad:
            total, run = (weight * tangent).sum(), torch.autograd.Variable._execution_engine.run_backward
            with _Float64():  # for checkpoints, which are recomputed here: torch.autograd.grad would leave it
                slopes = run((total,), (torch.ones_like(total),), False, False, tuple(self.variables), True, False)
        terms = [(g.conj() * v).real.sum() for g, v in zip(slopes, self.along, strict=True) if g is not None]
        return torch.stack(terms).sum().detach() if terms else torch.zeros((), dtype=torch.float64)

    def _moved(self, step: float) -> Tensor:
        """The tangent after a step of inputs and weights."""
        for x, v in zip(self.variables, self.along, strict=True):
            x.add_(v, alpha=step)
        out = jvp(self.function, tuple(self.points), tuple(self.directions), engine=self.engine)[1]
        for x, v in zip(self.variables, self.along, strict=True):
            x.sub_(v, alpha=step)
        return out

    @staticmethod
    def _relative(slope: Tensor, change: Tensor, floor: float) -> float:
        expected, scale = change.sum(), change.abs().sum()
        return float((slope - expected).abs() / (expected.abs() + 1e-2 * scale + floor))


def _at_fault(call: Call, engine: Engine, generator: torch.Generator, tolerance: float) -> tuple[str, Findings]:
    """The first leaf module that is wrong on its own, else the innermost module that is, else the whole."""
    calls = _calls(call)
    leaves = [c for c in calls if next(c.module.children(), None) is None]
    inner = [c for c in calls if next(c.module.children(), None) is not None]
    others = sorted(inner, key=lambda c: c.name.count(".") if c.name else -1, reverse=True)
    for one in (*leaves, *others):
        if _moving(one):
            found = _compare(one, engine, generator, tolerance)
            if found.fault:
                return _place(one), found
    return "the network's own forward", Findings(float("inf"), "no submodule is wrong on its own")


def _place(call: Call) -> str:
    return f"{call.name!r} ({type(call.module).__name__})" if call.name else "the network's own forward"


def _calls(call: Call) -> list[Call]:
    """The submodules in the order they finish, each with its arguments in a plain evaluation."""
    calls: list[Call] = []
    handles = [
        module.register_forward_hook(
            lambda m, args, kwargs, out, name=name: calls.append(
                Call(name, m, on_tensors(args, double), on_tensors(kwargs, double), out)
            ),
            with_kwargs=True,
        )
        for name, module in call.module.named_modules()
    ]
    with torch.no_grad():
        _function(call)(*[call.args[p] for p in _moving(call)])
    for handle in handles:
        handle.remove()
    return calls


def _check_repeats(call: Call) -> None:
    """Raise an error that names the first module that returns something else when it is called again."""
    with torch.no_grad():
        function, points = _function(call), [call.args[p] for p in _moving(call)]
        if torch.equal(function(*points).nan_to_num(), function(*points).nan_to_num()):
            return
        where = "the network's own forward"
        for a, b in zip(_calls(call), _calls(call), strict=False):
            if not torch.equal(_entries(a.out).nan_to_num(), _entries(b.out).nan_to_num()):
                where = _place(a)
                break
    raise ValueError(
        f"two evaluations at the same inputs differ at {where}: it changes its own state, or draws random numbers from "
        "a generator of its own, and has no derivative to compare. Call net.eval() if that stops it, and check again."
    )
