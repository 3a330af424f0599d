"""Each rule: torch's value, and tangent and gradient through the tangent equal to central differences, in float64."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import pytest
import torch
from dual_cases import CASES, CONSTANT, ELSEWHERE, HOMES, Case, Draw

from flowmaps import dual
from flowmaps.dual.core import METHODS, TABLE, Dual, look_up

STEP = 1e-5


def registered(name: str, args: Any = (), kwargs: Any = None) -> list[Any]:
    """The functions of this name that have a rule and take the arguments; a method is called as one."""
    found = [(home, getattr(home, name)) for home in HOMES if callable(getattr(home, name, None))]
    if name in ("where", "unfold", "searchsorted") or (args and not isinstance(args[0], Draw)):
        found = [(home, f) for home, f in found if home is not torch.Tensor]
    if kwargs:
        found = [(home, f) for home, f in found if home is not operator]
    return [_method(name) if home is torch.Tensor else f for home, f in found if look_up(f) is not None]


def _method(name: str) -> Any:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def drawn(args: Any, generator: torch.Generator) -> Any:
    if isinstance(args, (list, tuple)):
        return type(args)(drawn(a, generator) for a in args)
    return args.sample(generator) if isinstance(args, Draw) else args


def moving(args: Any) -> list[tuple[int, ...]]:
    """The places of the arguments that may carry a tangent; a list of tensors is one level deeper."""
    places = []
    for i, a in enumerate(args):
        inner = a if isinstance(a, list) else ()
        places += [(i,)] if isinstance(a, Draw) and not a.constant else []
        places += [(i, j) for j, b in enumerate(inner) if isinstance(b, Draw) and not b.constant]
    return places


def put(args: Any, places: list[tuple[int, ...]], new: Any) -> tuple[Any, ...]:
    out = [list(a) if isinstance(a, list) else a for a in args]
    for place, x in zip(places, new, strict=True):
        if len(place) == 1:
            out[place[0]] = x
        else:
            out[place[0]][place[1]] = x
    return tuple(out)


def floats(out: Any) -> torch.Tensor:
    """All floating-point entries of a result as one vector (a `Dual` where one is in it)."""
    parts = out if isinstance(out, (list, tuple)) else [out]
    parts = [torch.view_as_real(p.resolve_conj()) if p.is_complex() else p for p in parts]
    return torch.cat([p.reshape(-1) for p in parts if p.is_floating_point()])


def _direction(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random direction; of a matrix that is symmetric, a symmetric one (the kernels read one half)."""
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype if x.is_complex() else torch.float32).to(x.dtype)
    return v + v.mT if x.dim() == 2 and x.shape[0] == x.shape[1] and torch.equal(x, x.mT) else v


def check(function: Any, case: Case, subset: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    args = drawn(case.args, generator)
    places = [moving(case.args)[i] for i in subset]
    points = [args[p[0]] if len(p) == 1 else args[p[0]][p[1]] for p in places]
    points = [x.clone().requires_grad_() for x in points]
    directions, shifts = ([_direction(x, generator) for x in points] for _ in range(2))

    def call(*xs: Any) -> torch.Tensor:
        return floats(function(*put(args, places, xs), **case.kwargs))

    def tangent(*xs: torch.Tensor) -> torch.Tensor:
        return dual.jvp(call, xs, tuple(directions))[1]

    value, dot = dual.jvp(call, tuple(points), tuple(directions))
    torch.testing.assert_close(value, call(*points), rtol=1e-12, atol=1e-12)
    ahead, behind = (call(*[x + s * STEP * v for x, v in zip(points, directions, strict=True)]) for s in (1, -1))
    torch.testing.assert_close(dot, (ahead - behind) / (2 * STEP), rtol=1e-6, atol=1e-7)

    weights = torch.randn(dot.shape, generator=generator).double()
    slope = torch.autograd.grad((weights * dot).sum() + 0 * sum(x.real.sum() for x in points), points)
    predicted = sum((g.conj() * v).real.sum() for g, v in zip(slope, shifts, strict=True))
    with torch.no_grad():
        ahead, behind = (tangent(*[x + s * STEP * v for x, v in zip(points, shifts, strict=True)]) for s in (1, -1))
    torch.testing.assert_close(predicted, (weights * (ahead - behind)).sum() / (2 * STEP), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{i}-{case.name}" for i, case in enumerate(CASES)])
def test_rule(number: int) -> None:
    case = CASES[number]
    functions = registered(case.name, case.args, case.kwargs)
    assert functions, f"no rule is registered under the name {case.name}"
    count = len(moving(case.args))
    subsets = [(i,) for i in range(count)] + ([tuple(range(count))] if count > 1 else [])
    for function, subset in itertools.product(functions, subsets):
        check(function, case, subset)


@pytest.mark.parametrize("name", CONSTANT)
def test_no_tangent(name: str) -> None:
    x = 0.2 + 0.7 * torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    for function in registered(name):
        args = CONSTANT[name](x)
        pair = Dual(args[0], torch.ones_like(args[0]))
        torch.manual_seed(0)
        out = function(pair, *args[1:])
        assert not isinstance(out, Dual), name
        torch.manual_seed(0)
        expected = function(*args)
        if isinstance(expected, torch.Tensor) and name not in ("empty_like", "new_empty"):
            torch.testing.assert_close(out, expected)


def test_every_rule_has_a_case() -> None:
    known = {case.name for case in CASES} | set(CONSTANT) | set(ELSEWHERE)
    covered = {id(f) for name in known for home in HOMES if (f := getattr(home, name, None)) is not None}
    names = {f.__name__: f for f in TABLE if id(f) not in covered}
    missing = {n for n in names if n not in ELSEWHERE and not n.endswith("_") and not n.endswith("_with_indices")}
    missing |= {n for n in METHODS if n not in known and not n.endswith("_") and not n.startswith("__r")}
    assert not missing, sorted(missing)
