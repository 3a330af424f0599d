"""The compiler's settings change the speed of a network, not what it computes."""

from __future__ import annotations

import pytest
import torch

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
def test_what_has_no_number_stays_so():
    fn = devices.compiled(torch.tanh, print)
    assert fn is not None
    out = fn(torch.tensor([float("nan"), float("inf"), float("-inf")] * 8))
    assert out[0].isnan()
    assert out[1:3].tolist() == [1, -1]
