"""Ways to the tangent of a custom `torch.autograd.Function`, each tried out once, against finite differences.

    <w, J v> = d/dh <w, f(x + h v)>        d/dh <w, J(x + h a) (v + h b)> by reverse mode and by differences

with random directions, in float64 where the function takes it. A way that fails is not used, and a function for which
all fail is refused: a gradient that is lost in a custom backward pass raises no error of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

Way = Callable[[Any, list[Any], list[Any]], tuple[Any, list[Any]]]
"""`(function, values, tangents) -> (output of the function, tangent of each of its outputs)`."""


class Outcome(NamedTuple):
    """What the trials of a function found: a way that is right, or why there is none."""

    way: Way | None
    fault: str


_OUTCOMES: dict[Any, Outcome] = {}


def way_of(function: Any, values: list[Any], tangents: list[Any], second: bool) -> Outcome:
    """The way to the tangent of a function called with such arguments; tried out at the first such call.

    Args:
        function: the `torch.autograd.Function`.
        values: its arguments.
        tangents: the tangent of each, or `None`.
        second: whether a gradient through the tangent is needed too.
    """
    key = (function, second, *(_kind(x, v) for x, v in zip(values, tangents, strict=True)))
    if key not in _OUTCOMES:
        _OUTCOMES[key] = _tried(function, values, tangents, second)
    return _OUTCOMES[key]


def _kind(x: Any, tangent: Any) -> Any:
    if isinstance(x, Tensor):
        return x.dim(), x.dtype, x.device.type, x.requires_grad, tangent is not None
    if isinstance(x, float):  # one that is another in each call, such as a scale, is tried once
        return x if x in (0.0, 1.0) else float
    if isinstance(x, (tuple, list)):
        return type(x), *(_kind(one, None) for one in x)
    return x if isinstance(x, (bool, int, str, type(None), torch.dtype)) else type(x)


def double_backward(function: Any, values: list[Any], tangents: list[Any]) -> tuple[Any, list[Any]]:
    """`J v = d/dw <J^T w, v>`, the backward pass differentiated in what it is given."""
    with torch.enable_grad():
        moved = list(values)
        for place, (x, v) in enumerate(zip(values, tangents, strict=True)):
            if v is not None:  # a view of its own: no other argument is a function of it
                moved[place] = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        out = function.apply(*moved)
        outs = list(out) if isinstance(out, tuple) else [out]
        places = [i for i, y in enumerate(outs) if isinstance(y, Tensor) and y.requires_grad]
        seeds = [torch.zeros_like(outs[i]).requires_grad_() for i in places]
        sources = [x for x, v in zip(moved, tangents, strict=True) if v is not None]
        directions = [v for v in tangents if v is not None]
        along: list[Any] = [None] * len(outs)
        if places:
            grad = functools.partial(torch.autograd.grad, create_graph=True, allow_unused=True)
            pulled = grad([outs[i] for i in places], sources, seeds)
            total = [(g * v).sum() for g, v in zip(pulled, directions, strict=True) if g is not None]
            if total:
                pushed = grad(torch.stack(total).sum(), seeds)
                if all(v is None for v in pushed):
                    raise NotImplementedError("its backward pass cannot be differentiated")
                for i, v in zip(places, pushed, strict=True):
                    along[i] = v
    return out, along


def own_jvp(function: Any, values: list[Any], tangents: list[Any]) -> tuple[Any, list[Any]]:
    """`J v` by the `jvp` of the function."""
    with forward_ad.dual_level():
        moved = [x if v is None else forward_ad.make_dual(x, v) for x, v in zip(values, tangents, strict=True)]
        out = function.apply(*moved)
        outs = list(out) if isinstance(out, tuple) else [out]
        pairs = [forward_ad.unpack_dual(y) if isinstance(y, Tensor) else (y, None) for y in outs]
    plain = [pair[0] for pair in pairs]
    return tuple(plain) if isinstance(out, tuple) else plain[0], [pair[1] for pair in pairs]


def _tried(function: Any, values: list[Any], tangents: list[Any], second: bool) -> Outcome:
    ways: list[Way] = [double_backward]
    if function.jvp is not torch.autograd.Function.jvp:
        ways.insert(0, own_jvp)
    faults = []
    for way in ways:
        # in a region of checkpointing the trial must not count among the region's own tensors
        keep = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices), keep, torch.autocast(_device(values), enabled=False):
            try:
                fault = Trial(function, way, values, tangents).fault(second)
            except (RuntimeError, TypeError, NotImplementedError, ValueError) as error:
                fault = " ".join(str(error).split())[:200]
        if not fault:
            return Outcome(way, "")
        faults.append(f"{'by its jvp' if way is own_jvp else 'by its backward pass taken twice'}, {fault}")
    return Outcome(None, "; ".join(faults))


def _device(values: list[Any]) -> str:
    return next(x.device.type for x in values if isinstance(x, Tensor))


class Trial:
    """A function, a way to its tangent, and random directions at the arguments of a call."""

    def __init__(self, function: Any, way: Way, values: list[Any], tangents: list[Any]) -> None:
        self.function, self.way = function, way
        self.generator = torch.Generator().manual_seed(0)
        self.places = [i for i, x in enumerate(values) if isinstance(x, Tensor) and x.is_floating_point()]
        self.moving = [i for i in self.places if tangents[i] is not None]
        self.kind = torch.float64 if self._takes_float64(values) else torch.float32
        self.tolerance = 1e-4 if self.kind == torch.float64 else 3e-2
        self.steps = (1e-5, 1e-6, 1e-7) if self.kind == torch.float64 else (3e-2, 1e-2)
        self.points = self._cast(values)
        self.directions = {i: self._normal(self.points[i]) for i in self.moving}

    def _cast(self, values: list[Any]) -> list[Any]:
        return [x.detach().to(self.kind, copy=True) if i in self.places else x for i, x in enumerate(values)]

    def _takes_float64(self, values: list[Any]) -> bool:
        self.kind = torch.float64
        try:
            with torch.no_grad():
                outs = self._outputs(self.function.apply(*self._cast(values)))
        except (RuntimeError, TypeError, NotImplementedError, ValueError):
            return False
        return all(y.dtype == torch.float64 for y in outs)

    def _normal(self, x: Tensor) -> Tensor:
        """Random numbers of the shape of x, of its size."""
        size = float(x.square().mean().sqrt()) if x.numel() else 1.0
        return torch.randn(x.shape, generator=self.generator, dtype=torch.float64).to(x) * (size or 1.0)

    @staticmethod
    def _outputs(out: Any) -> list[Tensor]:
        outs = out if isinstance(out, tuple) else (out,)
        return [y for y in outs if isinstance(y, Tensor) and y.is_floating_point()]

    def _value(self, points: list[Any]) -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return torch.cat([y.reshape(-1) for y in self._outputs(self.function.apply(*points))])

    def _tangent(self, points: list[Any], directions: dict[int, Tensor]) -> Tensor:
        torch.manual_seed(0)
        out, along = self.way(self.function, points, [directions.get(i) for i in range(len(points))])
        outs = out if isinstance(out, tuple) else (out,)
        pairs = [(y, v) for y, v in zip(outs, along, strict=True) if isinstance(y, Tensor) and y.is_floating_point()]
        return torch.cat([(torch.zeros_like(y) if v is None else v).reshape(-1) for y, v in pairs])

    def _moved(self, step: float, along: dict[int, Tensor]) -> list[Any]:
        return [x + step * along[i] if i in along else x for i, x in enumerate(self.points)]

    def fault(self, second: bool) -> str:
        """What is wrong, in words; empty if nothing is."""
        before = [x._version for x in self.points if isinstance(x, Tensor)]
        value = self._value(self.points)
        if before != [x._version for x in self.points if isinstance(x, Tensor)]:
            return "it writes into its arguments"
        if not torch.equal(value, self._value(self.points)):
            return "two calls differ"
        tangent = self._tangent(self.points, self.directions).detach()
        weight = torch.randn(value.shape, generator=self.generator, dtype=torch.float64).to(value)
        floor = float(1e-3 * (weight * value).norm()) + 1e-12
        error = self._error(weight * tangent, lambda h: weight * self._value(self._moved(h, self.directions)), floor)
        if not error < self.tolerance:
            return f"the tangent is off by {error:.2g} (relative)"
        if second:
            error = self._gradient_error(weight, floor + float(1e-3 * (weight * tangent).norm()))
            if not error < self.tolerance:
                return f"the gradient of the tangent is off by {error:.2g} (relative)"
        return ""

    def _gradient_error(self, weight: Tensor, floor: float) -> float:
        points = [x.requires_grad_() if i in self.places else x for i, x in enumerate(self._moved(0.0, {}))]
        directions = {i: v.clone().requires_grad_() for i, v in self.directions.items()}
        variables = [*(points[i] for i in self.places), *directions.values()]
        tangent = (weight * self._tangent(points, directions)).sum()
        slopes: Any = [None] * len(variables)
        if tangent.requires_grad:
            slopes = torch.autograd.grad(tangent, variables, allow_unused=True)
        along = [self._normal(x.detach()) for x in variables]
        found = sum((g * a).sum() for g, a in zip(slopes, along, strict=True) if g is not None)
        for x in points:
            if isinstance(x, Tensor):
                x.requires_grad_(False)
        at = dict(zip(self.places, along, strict=False))
        turns = dict(zip(self.directions, along[len(self.places) :], strict=True))

        def moved(step: float) -> Tensor:
            turned = {i: v + step * turns[i] for i, v in self.directions.items()}
            return weight * self._tangent(self._moved(step, at), turned).detach()

        return self._error(torch.as_tensor(found, dtype=self.kind, device=weight.device), moved, floor)

    def _error(self, found: Tensor, function: Callable[[float], Tensor], floor: float) -> float:
        """The least relative error of a sum over steps: a kink lies within the larger ones, not within all."""
        errors = []
        for h in self.steps:
            near, far = function(h) - function(-h), function(2 * h) - function(-2 * h)
            change = (8 * near - far) / (12 * h)
            errors.append(float((found.sum() - change.sum()).abs() / (change.norm() + floor)))
        return min(errors)
