"""Networks with a `torch.autograd.Function`: carried where it is right, refused by name where it is not."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowmaps import dual
from flowmaps.dual.core import TABLE


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Cube(torch.autograd.Function):
    """`(w x)^3` with a backward pass in its inputs, as a function of two arguments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return (w * x) ** 3

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w = ctx.saved_tensors
        slope = 3 * (w * x) ** 2 * grads[0]
        return slope * w, (slope * x).sum(0)


class Kept(torch.autograd.Function):
    """`sin(w x)` whose backward pass uses a cosine that forward computed: its second gradient is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.cosine = torch.cos(w * x)
        ctx.save_for_backward(x, w)
        return torch.sin(w * x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w = ctx.saved_tensors
        return grads[0] * ctx.cosine * w, (grads[0] * ctx.cosine * x).sum(0)


class Forward(torch.autograd.Function):
    """`sin(w x)` with a `jvp` of its own and a backward pass that cannot be differentiated."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return torch.sin(w * x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w = ctx.saved_tensors
        slope = grads[0] * torch.cos(w * x)
        return slope * w, (slope * x).sum(0)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        x, w = ctx.saved_tensors
        dx, dw = tangents
        along = (0.0 if dx is None else dx * w) + (0.0 if dw is None else dw * x)
        return torch.cos(w * x) * along


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return w * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w = ctx.saved_tensors
        return grads[0] * w, (grads[0] * x).sum(0)


class Surrogate(torch.autograd.Function):
    """Rounds, with the gradient of the identity: no derivative of its value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        return torch.round(4 * x) * w

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 4 * grads[0], None


class Several(torch.autograd.Function):
    """A sum and a difference of squares, and the place of the largest entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Any:
        ctx.save_for_backward(x, w)
        places = x.argmax(1)
        ctx.mark_non_differentiable(places)
        return x**2 + w**2, places, x**2 - w**2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w = ctx.saved_tensors
        return 2 * x * (grads[0] + grads[2]), (2 * w * (grads[0] - grads[2])).sum(0)


class Masked(torch.autograd.Function):
    """Dropout that draws its own mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.keep = (torch.rand(x.shape) < 0.5).to(x.dtype)
        ctx.save_for_backward(x, w)
        return x**2 * w * ctx.keep

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w = ctx.saved_tensors
        return 2 * x * w * ctx.keep * grads[0], (x**2 * ctx.keep * grads[0]).sum(0)


class Written(torch.autograd.Function):
    """Writes into its argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(w)
        return x.mul_(w)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.saved_tensors[0], None


class Net(nn.Module):
    """A function between two linear maps, with a weight of its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.into, self.out = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()
        self.weight = nn.Parameter(draw(5, seed=1))

    def forward(self, x: Any) -> Any:
        return self.out(self.function(self.into(x), self.weight))


def several(x: Any, w: Any) -> Any:
    a, places, b = Several.apply(x, w)  # type: ignore[misc]
    assert isinstance(places, Tensor)
    return a.sin() * b


PAIRS = {
    "backward pass": (Cube.apply, lambda x, w: (w * x) ** 3),
    "own jvp": (Forward.apply, lambda x, w: torch.sin(w * x)),
    "several outputs": (several, lambda x, w: (x**2 + w**2).sin() * (x**2 - w**2)),
}
X, V = draw(4, 3, seed=2), draw(4, 3, seed=3)


def results(net: Net, detach: bool = False) -> list[Tensor]:
    value, tangent = dual.jvp(net, (X,), (V,), detach_tangent=detach)
    gradient = torch.autograd.grad((value.sin() * (1 + tangent)).sum(), list(net.parameters()))
    return [value, tangent, *gradient]


@pytest.mark.parametrize("detach", [False, True], ids=["graph", "detached"])
@pytest.mark.parametrize("name", PAIRS)
def test_it_equals_the_same_network_in_plain_operations(name: str, detach: bool) -> None:
    custom, plain = (results(Net(f), detach) for f in PAIRS[name])
    for a, b in zip(custom, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert custom[1].requires_grad != detach


def test_check_finds_it_right() -> None:
    assert dual.check(Net(Cube.apply), X) < 1e-7


@pytest.mark.parametrize("function, words", [
    (Kept, "gradient of the tangent is off"), (Once, "its backward pass cannot be differentiated"),
    (Surrogate, "the tangent is off"), (Written, "writes into its arguments"),
])  # fmt: skip
def test_it_is_refused_by_name_where_it_is_wrong(function: Any, words: str) -> None:
    with pytest.raises(NotImplementedError, match=rf"{function.__name__} is a torch.autograd.Function.*{words}"):
        results(Net(function.apply))
    with pytest.raises(ValueError, match=rf"{function.__name__} is a torch.autograd.Function"):
        dual.check(Net(function.apply), X)


def test_a_tangent_without_a_gradient_needs_less() -> None:
    """The tangent of `Kept` is right; the gradient through it is what is lost."""
    for detached, plain in zip(
        results(Net(Kept.apply), True), results(Net(lambda x, w: torch.sin(w * x)), True), strict=True
    ):
        torch.testing.assert_close(detached, plain, rtol=1e-9, atol=1e-11)


def test_finite_differences_are_the_way_out() -> None:
    net, plain = Net(Kept.apply), Net(lambda x, w: torch.sin(w * x))
    along = [dual.jvp(n, (X,), (V,), engine="finite-difference")[1] for n in (net, plain)]
    slopes = [torch.autograd.grad(t.sin().sum(), n.weight)[0] for t, n in zip(along, (net, plain), strict=True)]
    torch.testing.assert_close(slopes[0], slopes[1])
    torch.testing.assert_close(along[0], dual.jvp(plain, (X,), (V,))[1], rtol=1e-7, atol=1e-8)


def test_a_rule_of_ones_own_is_asked_first() -> None:
    try:

        @dual.rule(Kept)
        def _(x: Any, w: Any) -> Any:
            return torch.sin(w * x)

        for a, b in zip(results(Net(Kept.apply)), results(Net(lambda x, w: torch.sin(w * x))), strict=True):
            torch.testing.assert_close(a, b)
    finally:
        TABLE.pop(Kept, None)


@pytest.mark.parametrize("detach", [False, True])
def test_random_numbers_are_drawn_once(detach: bool) -> None:
    net = Net(Masked.apply)
    results(net, detach)  # tried out
    torch.manual_seed(5)
    value, tangent = dual.jvp(net, (X,), (V,), detach_tangent=detach)
    after = torch.random.get_rng_state()
    torch.manual_seed(5)
    h, dh = net.into(X), V @ net.into.weight.T
    keep = torch.rand(h.shape) < 0.5
    assert torch.equal(torch.random.get_rng_state(), after)
    torch.testing.assert_close(value, net.out(h**2 * net.weight * keep))
    torch.testing.assert_close(tangent, (2 * h * dh * net.weight * keep) @ net.out.weight.T)


def test_a_trial_leaves_the_random_numbers_alone() -> None:
    class Fresh(Cube):
        pass

    net = Net(Fresh.apply)
    state = torch.random.get_rng_state()
    results(net)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_inside_a_checkpointed_region() -> None:
    """The trial at the first call must not count among the tensors that the region keeps."""

    class Fresh(Cube):
        pass

    net = Net(lambda x, w: checkpoint(lambda h: Fresh.apply(h, w).sin(), x, use_reentrant=False))  # type: ignore[misc]
    for a, b in zip(results(net), results(Net(lambda x, w: ((w * x) ** 3).sin())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


class CheckpointFunction(torch.autograd.Function):
    """The shape of guided-diffusion's: a function, how many inputs it has, the inputs, the parameters."""

    @staticmethod
    def forward(ctx: Any, run_function: Any, length: int, *args: Any) -> Any:
        ctx.run, ctx.inputs, ctx.parameters = run_function, list(args[:length]), list(args[length:])
        with torch.no_grad():
            return run_function(*ctx.inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        inputs = [x.detach().requires_grad_() for x in ctx.inputs]
        with torch.enable_grad():
            out = ctx.run(*[x.view_as(x) for x in inputs])
        return None, None, *torch.autograd.grad(out, inputs + ctx.parameters, grads, allow_unused=True)


class Opaque(torch.autograd.Function):
    """Takes a function to be called, and is no checkpointing that is known."""

    @staticmethod
    def forward(ctx: Any, run: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return run(x)


def inner(x: Any) -> Any:
    return torch.dropout(torch.tanh(x), 0.3, True)


def regions(kind: str) -> Callable[..., Any]:
    if kind == "torch":
        return lambda x, w: checkpoint(lambda h, u: inner(h * u), x, w, use_reentrant=True)
    return lambda x, w: CheckpointFunction.apply(lambda h: inner(h * w), 1, x, w)


@pytest.mark.parametrize("kind", ["torch", "guided-diffusion"])
def test_re_entrant_checkpointing_is_right(kind: str) -> None:
    torch.manual_seed(7)
    found = results(Net(regions(kind)))
    torch.manual_seed(7)
    for a, b in zip(found, results(Net(lambda x, w: inner(x * w))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_what_a_region_takes_from_outside_is_refused() -> None:
    def captures(x: Any, w: Any) -> Any:
        return checkpoint(lambda u: torch.tanh(u * x), w, use_reentrant=True)

    with pytest.raises(NotImplementedError, match=r"none of its arguments.*use_reentrant=False"):
        results(Net(captures))
    with pytest.raises(NotImplementedError, match=r"Opaque.*takes a function or module"):
        results(Net(lambda x, w: Opaque.apply(torch.tanh, x * w)))
    with pytest.raises(NotImplementedError, match=r"Forward.*inside torch.func"):
        results(Net(lambda x, w: torch.func.grad(lambda u: Forward.apply(x, u))(w)))


def test_fsdp_learns_once_when_the_gradients_are_there() -> None:
    """Its function returns what it is given; a value and its tangent go through the same call."""
    register = importlib.import_module("torch.distributed.fsdp._fully_shard._fsdp_param_group")
    calls: list[str] = []
    group = SimpleNamespace(post_backward=lambda *_: calls.append("freed"))

    def through(x: Any, w: Any) -> Any:
        h, u = register.RegisterPostBackwardFunction.apply(group, x, w)
        return (h * u) ** 3

    for a, b in zip(results(Net(through)), results(Net(lambda x, w: (w * x) ** 3)), strict=True):
        torch.testing.assert_close(a, b)
    assert calls == ["freed"]


@pytest.mark.slow
def test_compilation_leaves_it_to_python() -> None:
    """A function is carried by Python at a graph break; in one graph it is refused."""
    torch.compiler.reset()
    net, expected = Net(Cube.apply), results(Net(Cube.apply))

    def loss(x: Tensor) -> Tensor:
        value, tangent = dual.jvp(net, (x,), (V,))
        return (value.sin() * (1 + tangent)).sum()

    compiled = torch.compile(loss, backend="aot_eager")(X)
    for a, b in zip(torch.autograd.grad(compiled, list(net.parameters())), expected[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(loss, backend="aot_eager", fullgraph=True)(X)


def test_plain_tensors_are_as_before() -> None:
    x = X.clone().requires_grad_()
    torch.autograd.gradcheck(Cube.apply, (x, draw(3, seed=4).requires_grad_()))
