"""Each function that people bring: value, tangent, and gradients of both, against central differences in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from functions import BESIDE, ELSEWHERE, REFUSED, REFUSED_BESIDE, ROWS, WORDS

from flowmaps import dual

STEP = 1e-5


def sides(function: Any, points: Any, directions: Any) -> torch.Tensor:
    """The central difference of a function along the directions."""
    with torch.no_grad():
        ahead, behind = (
            function(*[x.detach() + s * STEP * v for x, v in zip(points, directions, strict=True)]) for s in (1, -1)
        )
    return (ahead.detach() - behind.detach()) / (2 * STEP)


@pytest.mark.parametrize("name", {**ROWS, **BESIDE})
def test_function(name: str) -> None:
    function, draws = {**ROWS, **BESIDE}[name]
    if name.startswith("einops"):
        pytest.importorskip("einops", reason="einops is not installed: pip install einops")
    generator = torch.Generator().manual_seed(0)
    points = [d.sample(generator).requires_grad_() for d in draws]
    v, w = ([torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in points] for _ in range(2))
    value, tangent = dual.jvp(function, tuple(points), tuple(v))
    torch.testing.assert_close(value, function(*points), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(tangent, sides(function, points, v), rtol=1e-6, atol=1e-7)

    weights = torch.randn(value.shape, generator=generator, dtype=value.dtype)
    for place, out in enumerate((value, tangent)):
        slopes = torch.autograd.grad(
            (weights * out).sum() + 0 * sum(x.sum() for x in points), points, retain_graph=True
        )
        found = sum((g * d).sum() for g, d in zip(slopes, w, strict=True))

        def of(*xs: torch.Tensor, place: int = place) -> torch.Tensor:
            return (weights * dual.jvp(function, xs, tuple(v))[place]).sum()

        torch.testing.assert_close(found, sides(of, points, w), rtol=1e-6, atol=1e-6)
    value, alone = dual.jvp(function, tuple(points), tuple(v), detach_tangent=True)
    assert value.requires_grad
    assert not alone.requires_grad
    torch.testing.assert_close(alone, tangent, rtol=1e-9, atol=1e-9)


def test_what_was_asked_for() -> None:
    """120 functions were asked for: 105 at least are right, the others are refused, or tested elsewhere."""
    assert len(ROWS) >= 105
    assert len({**ROWS, **REFUSED, **ELSEWHERE}) == len(ROWS) + len(REFUSED) + len(ELSEWHERE) == 120


def test_data_is_a_stop_gradient() -> None:
    x = torch.tensor([0.3, -0.7], dtype=torch.float64)
    value, tangent = dual.jvp(lambda x: x.data * x, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(value, x * x)
    torch.testing.assert_close(tangent, x)


@pytest.mark.parametrize("name", {**REFUSED, **REFUSED_BESIDE})
def test_refusal(name: str) -> None:
    function, draws = {**REFUSED, **REFUSED_BESIDE}[name]
    generator = torch.Generator().manual_seed(0)
    points = tuple(d.sample(generator) for d in draws)
    words = WORDS.get(name, "no forward-mode rule|use sum, mean or amax|use mode=")
    with pytest.raises(Exception, match=words):
        dual.jvp(function, points, tuple(torch.ones_like(x) for x in points))


@pytest.mark.parametrize("name", ["cumsum", "exp", "matmul"])
def test_a_result_into_a_tensor_that_is_given_is_refused_by_name(name: str):
    """`out=` would take the tangent's numbers, or none."""
    x = torch.randn(3, 3, dtype=torch.float64)
    given = {"cumsum": (1,), "matmul": (torch.eye(3, dtype=torch.float64),)}.get(name, ())
    with pytest.raises(NotImplementedError, match=rf"{name}\(\.\.\., out=y\) has no place for a tangent"):
        dual.jvp(lambda y: getattr(torch, name)(y, *given, out=torch.empty_like(x)), (x,), (x,))


def test_a_written_tensor_keeps_its_shape():
    def squeezed(x: torch.Tensor) -> torch.Tensor:
        w = torch.zeros(1, 3, dtype=x.dtype)
        w[0] = x
        w.squeeze_()
        return w

    x = torch.randn(3, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"squeeze_ gives a tensor .* another shape"):
        dual.jvp(squeezed, (x,), (x,))
