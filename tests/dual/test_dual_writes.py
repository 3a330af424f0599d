"""Writes in place into a `Dual` whose memory others share: value and tangent as torch's, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dual_cases import CASES, Case
from test_dual_rules import drawn, moving, registered
from torch import Tensor

from flowmaps import dual
from flowmaps.dual import Dual

X, V = (torch.randn(4, 6, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))


def under_a_view(h: Any) -> Any:
    rows = h.view(-1)
    h += h.tanh()
    return rows * h.reshape(-1)


def into_a_view(h: Any) -> Any:
    h[:, :3].add_(h[:, 3:].exp())
    return h.cos()


def into_a_part(h: Any) -> Any:
    h[:, 0] += h[:, 1]
    h[:, 1:3] *= 2
    h[1] = h[0].exp() + h[2]
    return h**2


def through_two_views(h: Any) -> Any:
    a, b = h.T.unsqueeze(0), h[1:, ::2]
    b.neg_()
    a[0, :2] = 3.0
    h.add_(1.0)
    return torch.cat([h.reshape(-1), a.reshape(-1), b.reshape(-1)])


def two_halves(h: Any) -> Any:
    first, second = h.narrow(1, 0, 3), h[:, 3:].mT.mT
    h += h.tanh()
    F.relu(h[:, 4:], inplace=True)
    return torch.cat([h, first * second], 1)


def copies_are_apart(h: Any) -> Any:
    turned, same, wide = h.T.reshape(4, 6), h.contiguous(), h.to(torch.complex128)
    picked = h[torch.tensor([0, 2])]
    h *= 2.5
    return torch.cat([turned, same, wide.real, picked, h])


def same_object(h: Any) -> Any:
    same, other, kept = h.to(torch.float64), F.dropout(h, 0.5, training=False), h.detach()
    h -= 0.5 * h.sigmoid()
    return same * other * kept


def of_an_einsum(h: Any) -> Any:
    turned = torch.einsum("ij->ji", h)
    turned.sub_(1.0)
    return h * turned.T


def into_a_written_one(h: Any) -> Any:
    out = torch.zeros(4, 6, dtype=h.dtype)
    out[0] = h[1]
    row = out[0]
    row += h[2]
    out[:, 2] += h[:, 3] ** 2
    out.T[1].mul_(3.0).add_(h[:, 0])
    return out + row


def dropped_views(h: Any) -> Any:
    h = h.view(2, 2, 6).flatten(1).T
    h += h.tanh()
    h.clamp_(min=-0.5)
    return h


def seen_anew(h: Any) -> Any:
    h.unsqueeze_(0)
    h.mul_(2.0).add_(h.exp())
    return h


PATTERNS: list[Callable[[Any], Any]] = [
    under_a_view, into_a_view, into_a_part, through_two_views, two_halves, copies_are_apart, same_object,
    of_an_einsum, into_a_written_one, dropped_views, seen_anew,
]  # fmt: skip
COMPILED = [into_a_part, through_two_views, copies_are_apart, same_object, dropped_views]


def on_a_copy(pattern: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A network's own tensor, which it may write into."""
    return lambda x: pattern(x * 1.0)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_others_see_what_is_written(pattern: Callable[[Any], Any], detach: bool) -> None:
    fn = on_a_copy(pattern)
    x = X.clone().requires_grad_()
    value, tangent = dual.jvp(fn, (x,), (V,), detach_tangent=detach)
    torch.testing.assert_close(value, fn(x), rtol=1e-12, atol=1e-12)
    if pattern is not same_object:  # a stop-gradient is none to differences
        ends = [fn(X + h * V).detach() for h in (1e-6, -1e-6)]
        torch.testing.assert_close(tangent, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)
    else:
        expected = torch.autograd.functional.jvp(fn, X, V)[1]
        torch.testing.assert_close(tangent, expected)
    slopes = [torch.autograd.grad((y * y.detach().cos()).sum(), x)[0] for y in (value, fn(x))]
    torch.testing.assert_close(*slopes)
    assert not (detach and tangent.requires_grad)
    if tangent.requires_grad:
        along = lambda x: (dual.jvp(fn, (x,), (V,))[1] * X.new_tensor(0.7)).sum()  # noqa: E731
        (slope,) = torch.autograd.grad(0.7 * dual.jvp(fn, (x,), (V,))[1].sum(), x)
        if pattern is not same_object:
            with torch.no_grad():
                change = (along(X + 1e-6 * V) - along(X - 1e-6 * V)) / 2e-6
            torch.testing.assert_close((slope * V).sum(), change, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_others_see_what_is_written_when_compiled() -> None:
    def step(x: Tensor) -> Tensor:
        pairs = [dual.jvp(on_a_copy(pattern), (x,), (V,)) for pattern in COMPILED]
        return torch.cat([y.reshape(-1) for pair in pairs for y in pair])

    torch.compiler.reset()
    x = X.clone().requires_grad_()
    found, expected = torch.compile(step, backend="aot_eager", fullgraph=True)(x), step(x)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_a_write_leaves_the_inputs_of_the_caller_alone() -> None:
    before = X.clone()
    dual.jvp(under_a_view, (X,), (V,))
    torch.testing.assert_close(X, before)


def test_a_write_keeps_shape_and_type() -> None:
    """As torch's own: the other tensor is cast, and cannot make this one larger."""
    assert dual.jvp(lambda x: (x * 1).add_(X), (X.float(),), (V.float(),))[0].dtype == torch.float32
    for write in (lambda h, y: h.add_(y), lambda h, y: h.__iadd__(y)):
        with pytest.raises((RuntimeError, NotImplementedError), match="shape"):
            dual.jvp(lambda x, write=write: write(x[0] * 1, x), (X,), (V,))


@pytest.mark.parametrize("case", [c for c in CASES if (0,) in moving(c.args)], ids=lambda c: c.name)
def test_results_that_share_memory_are_known_to(case: Case) -> None:
    """Where the result of a function is a view of its argument, or that itself, a `Dual` knows it too."""
    generator = torch.Generator().manual_seed(0)
    first, *rest = drawn(case.args, generator)
    for function in registered(case.name, case.args, case.kwargs):
        pair = Dual(first, torch.ones_like(first))
        out = function(pair, *rest, **case.kwargs)
        for y in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(y, Dual) and y is not pair and torch._C._is_alias_of(first, y.value):
                assert y.shared is not None
                assert y.shared.group is pair.shared.group
