"""The compiler's settings change the speed of a network, not what it computes."""

from __future__ import annotations

import pytest
import torch

import flowmaps as fm
from flowmaps.system import devices


@pytest.mark.skipif(not devices.can_compile(), reason="no C++ compiler")
@pytest.mark.parametrize("dtype, error", [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_a_compiled_tanh_is_right_to_the_last_digits(dtype: torch.dtype, error: float):
    said = list[str]()
    fn = devices.compiled(torch.tanh, said.append)
    assert fn is not None
    assert not said
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, -200.0, -1e-30, 0.0, 1e-30, 200.0, 1e30])])
    x = x.to(dtype)
    assert (fn(x).double() - torch.tanh(x.double())).abs().max() <= error


@pytest.mark.skipif(not devices.can_compile(), reason="no C++ compiler")
def test_a_loss_of_a_derivative_and_its_gradient_are_those_without_the_compiler():
    torch.manual_seed(0)
    net = fm.nn.MLP(dim=2, width=16, depth=2)  # tanh-GELU
    objective = fm.methods.lsd(fm.maps.AverageVelocity(net))
    draw = objective.draw(torch.randn(64, 2), generator=torch.Generator().manual_seed(0), progress=0.5)
    compiled = devices.compiled(objective.evaluate, print)
    assert compiled is not None
    found = []
    for evaluate in (compiled, objective.evaluate):
        net.zero_grad()
        loss = evaluate(draw).value
        loss.backward()
        found.append([loss.detach(), *(weights.grad.clone() for weights in net.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not devices.can_compile(), reason="no C++ compiler")
def test_what_has_no_number_stays_so():
    fn = devices.compiled(torch.tanh, print)
    assert fn is not None
    out = fn(torch.tensor([float("nan"), float("inf"), float("-inf")] * 8))
    assert out[0].isnan()
    assert out[1:3].tolist() == [1, -1]
