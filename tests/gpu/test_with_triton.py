"""What needs Triton, last because it takes the longest: the fused tangent of attention, and torch.compile."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import cuda_cases
import pytest
import torch
import torch.nn.functional as F
from cuda_cases import DEVICE, distance
from test_cuda_methods import teacher
from torch import Tensor

import flowmaps as fm
from flowmaps import dual
from flowmaps.dual import fused
from flowmaps.system.devices import can_compile

pytestmark = cuda_cases.gpu

needs_triton = pytest.mark.skipif(bool(cuda_cases.missing_for_triton()), reason=cuda_cases.missing_for_triton())
SHAPE = (3, 2, 96, 24)  # (rows, heads, tokens, size of a head), which is padded to 32
OUTPUTS = ("value", "tangent", "gradient")


# the fused tangent of attention ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel() -> Iterator[Callable[[bool], None]]:
    """Switches the kernel on and off; it is tried out once."""
    if importlib.util.find_spec("jvp_flash_attention") is None:
        pytest.skip("the package jvp_flash_attention is not installed")
    try:
        dual.flash()
    except ValueError as error:
        if error.__cause__ is None:
            raise
        pytest.xfail(str(error))  # a kernel that fails with this Triton is refused, as it should be
    loaded = fused._kernel
    assert loaded is not None

    def switch(on: bool) -> None:
        fused._kernel = loaded if on else None

    yield switch
    dual.flash(False)


def attended(dtype: torch.dtype, *, detach: bool) -> dict[str, Tensor]:
    """Attention's value, its tangent, and the gradient of the value (and of the tangent, where it has one)."""
    numbers = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    points = [x.clone().requires_grad_() for x in numbers[:3]]
    value, tangent = dual.jvp(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
        tuple(points),
        tuple(numbers[3:]),
        detach_tangent=detach,
    )
    loss = value.double().square().sum() + (0 if detach else tangent.double().square().sum())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, points)])
    return dict(zip(OUTPUTS, (value, tangent, gradient), strict=True))


@cuda_cases.needs_cuda
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_fused_tangent_is_that_of_the_rule(kernel: Callable[[bool], None], dtype: torch.dtype):
    """Both in half precision, against the rule in float64."""
    kernel(False)
    exact, written = attended(torch.float64, detach=True), attended(dtype, detach=True)
    kernel(True)
    found = attended(dtype, detach=True)
    assert found["tangent"].dtype == dtype
    assert not torch.equal(found["tangent"], written["tangent"]), "the kernel was not used"
    assert not found["tangent"].requires_grad
    close = 1e-2 if dtype == torch.float16 else 4e-2
    for name in OUTPUTS:
        assert distance([written[name]], [exact[name]]) < close, name
        assert distance([found[name]], [exact[name]]) < close, name


@cuda_cases.needs_cuda
@needs_triton
def test_the_rule_is_used_where_the_tangent_takes_a_gradient(kernel: Callable[[bool], None]):
    kernel(False)
    written = attended(torch.float16, detach=False)
    kernel(True)
    found = attended(torch.float16, detach=False)
    assert found["tangent"].requires_grad
    for name in OUTPUTS:
        assert torch.equal(found[name], written[name]) or distance([found[name]], [written[name]]) < 1e-3, name


@cuda_cases.needs_cuda
@needs_triton
def test_meanflow_of_a_transformer_with_the_fused_tangent(kernel: Callable[[bool], None]):
    """The loss and its gradient under autocast, with the kernel and without."""
    import image_nets

    net = fm.nn.DiT(2, 16, patch=2, width=32, depth=2, heads=1)  # 64 tokens
    image_nets.randomise(net)
    loss = fm.methods.meanflow(fm.maps.AverageVelocity(net)).to(DEVICE)
    x = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    results = []
    for used in (True, False):
        kernel(used)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = loss(x, generator=cuda_cases.generator(2)).value
        results.append([value.detach(), *image_nets.gradients(value, net)])
    kernel(False)
    assert distance(results[0][:1], results[1][:1]) < 3e-2
    assert distance(results[0][1:], results[1][1:]) < 1e-1


def test_attention_that_is_written_out_is_right_on_the_device():
    """In half precision against float64, with a gradient through the tangent; torch's own kernels have none."""
    exact = attended(torch.float64, detach=False)
    for dtype, close in ((torch.float32, 1e-4), (torch.bfloat16, 4e-2)):
        found = attended(dtype, detach=False)
        for name in OUTPUTS:
            assert distance([found[name]], [exact[name]]) < (5e-2 if close > 1e-3 and name == "gradient" else close)


# torch.compile --------------------------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.skipif(not can_compile(), reason="no C++ compiler, which torch.compile needs")
@pytest.mark.parametrize("name", ["lmd", "lsd"])
def test_a_compiled_loss_equals_the_eager_one(name: str):
    torch.compiler.reset()
    torch.manual_seed(0)
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(3, width=8, depth=1))
    loss = fm.methods.lsd(flow_map) if name == "lsd" else fm.methods.lmd(flow_map, teacher=teacher)
    loss = loss.to(DEVICE)
    rng = cuda_cases.generator(0)
    draw = loss.draw(torch.randn(14, 3, device=DEVICE, generator=rng), generator=rng)
    eager, compiled = loss.evaluate(draw), torch.compile(loss.evaluate, dynamic=False)(draw)
    weights = list(loss.parameters())
    assert distance([compiled.value], [eager.value]) < 1e-4
    found, wanted = (torch.autograd.grad(each.value, weights, materialize_grads=True) for each in (compiled, eager))
    assert distance(found, wanted) < 1e-4
