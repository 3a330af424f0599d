"""Engines of `jvp` beside `dual`: random numbers of finite differences, and what `torch.func.jvp` gets wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowmaps import dual
from flowmaps.dual import faults


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dropping() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2)).double()


@pytest.mark.parametrize("detach", [False, True])
def test_finite_differences_share_the_random_numbers(detach: bool) -> None:
    """The same masks as `dual` draws, in all evaluations; the generator is left as after one of them."""
    net, x, v = dropping(), draw(5, 3), draw(5, 3, seed=1)
    found = {}
    for engine in ("dual", "finite-difference"):
        torch.manual_seed(1)
        value, tangent = dual.jvp(net, (x,), (v,), engine=engine, detach_tangent=detach)  # type: ignore[arg-type]
        loss = (value * tangent).sum()
        found[engine] = [value, tangent, torch.rand(3), *torch.autograd.grad(loss, list(net.parameters()))]
    for a, b in zip(found["dual"], found["finite-difference"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_finite_differences_share_the_random_numbers_on_cuda() -> None:
    net, x, v = dropping().cuda(), draw(5, 3).cuda(), draw(5, 3, seed=1).cuda()
    found = {}
    for engine in ("dual", "finite-difference"):
        torch.manual_seed(1)
        pair = dual.jvp(net, (x,), (v,), engine=engine)  # type: ignore[arg-type]
        found[engine] = [*pair, torch.rand(3, device="cuda")]
    for a, b in zip(found["dual"], found["finite-difference"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_a_failing_network_leaves_the_generator_alone() -> None:
    calls = itertools.count()

    def fails(x: Tensor) -> Tensor:
        if next(calls):
            torch.rand(7)
            raise KeyError("second evaluation")
        return x

    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    with pytest.raises(KeyError):
        dual.jvp(fails, (draw(3),), (draw(3),), engine="finite-difference")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_compilation_leaves_finite_differences_to_python() -> None:
    net, x, v = dropping(), draw(5, 3), draw(5, 3, seed=1)

    def along(x: Tensor) -> Tensor:
        return dual.jvp(net, (x,), (v,), engine="finite-difference")[1]

    torch.compiler.reset()
    torch.manual_seed(3)
    compiled = torch.compile(along, backend="aot_eager")(x)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled, along(x))
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="finite differences set the state of torch's random"):
        torch.compile(along, backend="aot_eager", fullgraph=True)(x)


# torch.func.jvp -------------------------------------------------------------------------------------------------------

MATRIX = draw(3, 3) + 3 * torch.eye(3, dtype=torch.float64)
SIDE = draw(3, 2, seed=1)
WRONG: dict[str, Callable[[Tensor], Any]] = {
    "det": torch.linalg.det,
    "Tensor.det": lambda x: x.det(),
    "slogdet": lambda x: torch.linalg.slogdet(x)[1],
    "logdet": lambda x: torch.logdet(x @ x.mT),
    "solve": lambda x: torch.linalg.solve(x, SIDE),
    "solve, side": lambda x: torch.linalg.solve(MATRIX.sin(), x),
    "solve_ex": lambda x: torch.linalg.solve_ex(x, SIDE)[0],
    "tensorsolve": lambda x: torch.linalg.tensorsolve(x.reshape(3, 1, 3), SIDE[:, :1]),
    "householder_product": lambda x: torch.linalg.householder_product(x, SIDE[:, 0]),
    "eigh": lambda x: torch.linalg.eigh(x + x.mT)[1].square(),
}
RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "inv": torch.linalg.inv,
    "cholesky": lambda x: torch.linalg.cholesky(x @ x.mT),
    "qr": lambda x: torch.linalg.qr(x)[0],
    "svdvals": torch.linalg.svdvals,
    "eigvalsh": lambda x: torch.linalg.eigvalsh(x + x.mT),
    "solve_triangular": lambda x: torch.linalg.solve_triangular(x.tril(), SIDE, upper=False),
    "lu_solve": lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(x), SIDE),
    "lstsq": lambda x: torch.linalg.lstsq(x, SIDE)[0],
    "pinv": torch.linalg.pinv,
    "matrix_exp": torch.matrix_exp,
    "matrix_power": lambda x: torch.linalg.matrix_power(x, -2),
    "matrix_norm": lambda x: torch.linalg.matrix_norm(x, "nuc"),
    "normalize": F.normalize,
    "group_norm": lambda x: F.group_norm(x[None], 1),
}


def gradient_error(fn: Callable[[Tensor], Tensor]) -> float:
    """Relative error of the gradient through the tangent of engine="torch", along a direction."""
    v, move = draw(3, 3, seed=3), draw(3, 3, seed=4)

    def along(x: Tensor) -> Tensor:
        return torch.func.jvp(fn, (x,), (v,))[1]

    x = MATRIX.clone().requires_grad_()
    weight = draw(*along(x).shape, seed=5)
    if not along(x).requires_grad:
        return 1.0  # lost
    slope = torch.autograd.grad((weight * along(x)).sum(), x, materialize_grads=True, allow_unused=True)[0]
    change = (along(MATRIX + 1e-6 * move) - along(MATRIX - 1e-6 * move)) / 2e-6
    found, expected = (slope * move).sum(), (weight * change).sum()
    return float((found - expected).abs() / expected.abs())


@pytest.mark.parametrize("name", WRONG)
def test_what_torch_gets_wrong_is_refused(name: str) -> None:
    """With a gradient alone: the tangent itself is right. If torch mends one, this test says so."""
    fn, v = WRONG[name], draw(3, 3, seed=3)
    if name != "solve, side":  # right, but refused with the rest of solve
        assert not gradient_error(fn) < 1e-4
    with pytest.raises(ValueError, match=r'engine="torch" met .*gradient through the tangent.*engine="dual"'):
        dual.jvp(fn, (MATRIX,), (v,), engine="torch")
    tangent = dual.jvp(fn, (MATRIX,), (v,), engine="torch", detach_tangent=True)[1]
    ends = [fn(MATRIX + h * v) for h in (1e-6, -1e-6)]
    torch.testing.assert_close(tangent, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", RIGHT)
def test_what_torch_gets_right_goes_through(name: str) -> None:
    assert gradient_error(RIGHT[name]) < 1e-5
    dual.jvp(RIGHT[name], (MATRIX,), (draw(3, 3, seed=3),), engine="torch")


POINTS = draw(2, 3).abs() / 4
ZERO: dict[str, Callable[[Tensor], Tensor]] = {
    "bessel_j0": torch.special.bessel_j0,
    "modified_bessel_k1": torch.special.modified_bessel_k1,
    "airy_ai": torch.special.airy_ai,
    "chebyshev_polynomial_t": lambda x: torch.special.chebyshev_polynomial_t(x, 3),
    "legendre_polynomial_p": lambda x: torch.special.legendre_polynomial_p(x, 3),
    "scatter_reduce": lambda x: torch.ones(2, 3).double().scatter_reduce(1, torch.tensor([[0, 0, 1]] * 2), x, "prod"),
    "cholesky_inverse": lambda x: torch.cholesky_inverse((x @ x.mT + torch.eye(2)).tril()),
}


@pytest.mark.parametrize("name", ZERO)
def test_tangents_that_torch_gets_wrong_are_refused_without_a_gradient_too(name: str) -> None:
    fn, v = ZERO[name], draw(2, 3, seed=1)
    found = torch.func.jvp(fn, (POINTS,), (v,))[1]
    expected = (fn(POINTS + 1e-6 * v) - fn(POINTS - 1e-6 * v)) / 2e-6
    assert float((found - expected).abs().max()) > 1e-3
    for detach in (False, True):
        with pytest.raises(ValueError, match=rf'engine="torch" met .*{name}: the tangent'):
            dual.jvp(fn, (POINTS,), (v,), engine="torch", detach_tangent=detach)


def test_every_function_of_the_list_exists() -> None:
    assert len(faults.WRONG_GRADIENT) > 15
    assert len(faults.WRONG_TANGENT) > 20


def test_a_custom_function_is_refused_under_a_gradient() -> None:
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_forward(*inputs)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            return ctx.saved_tensors[0].cos() * tangents[0]

    x, v = draw(3), draw(3, seed=1)
    with pytest.raises(ValueError, match='engine="torch" met Sine'):
        dual.jvp(Sine.apply, (x,), (v,), engine="torch")
    tangent = dual.jvp(Sine.apply, (x,), (v,), engine="torch", detach_tangent=True)[1]
    torch.testing.assert_close(tangent, x.cos() * v)


@pytest.mark.parametrize("dim", [0, 1])
def test_cumprod_with_zeros(dim: int) -> None:
    x, v = draw(3, 5).requires_grad_(), draw(3, 5, seed=1)
    with torch.no_grad():
        x[0, 1] = x[2, 3] = x[2, 0] = 0.0
    value, tangent = dual.jvp(lambda x: x.cumprod(dim), (x,), (v,))
    torch.testing.assert_close(value, x.cumprod(dim))
    with torch.no_grad():
        ends = [(x + h * v).cumprod(dim) for h in (1e-6, -1e-6)]
    torch.testing.assert_close(tangent, (ends[0] - ends[1]) / 2e-6, rtol=1e-7, atol=1e-8)
    move, weight = draw(3, 5, seed=2), draw(3, 5, seed=3)
    slope = (torch.autograd.grad((weight * tangent).sum(), x)[0] * move).sum()
    ends = [dual.jvp(lambda x: x.cumprod(dim), (x + h * move,), (v,))[1] for h in (1e-6, -1e-6)]
    torch.testing.assert_close(slope, (weight * (ends[0] - ends[1])).sum() / 2e-6, rtol=1e-7, atol=1e-8)
