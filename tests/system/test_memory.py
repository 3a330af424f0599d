"""The peak of a computation is the greatest sum of its tensors that are alive at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowmaps.system import memory

CPU = torch.device("cpu")
A, B = 30_011, 50_021  # float32 numbers


def both() -> None:
    a = torch.zeros(A)
    b = torch.zeros(B)
    del a, b


def one_after_the_other() -> None:
    a = torch.zeros(B)
    del a
    b = torch.zeros(A)
    del b


@pytest.mark.parametrize("run, numbers", [(both, A + B), (one_after_the_other, B), (lambda: None, 0)])
def test_tensors_alive_at_once_add_up(run, numbers: int):
    for _ in range(2):  # the second time too
        assert memory.peak(run, CPU) == 4 * numbers


def test_what_is_there_before_does_not_count():
    there = torch.zeros(B)
    assert memory.peak(there.clone, CPU) == 4 * B


def test_a_step_keeps_each_activation_until_the_backward_pass():
    """k tanh layers keep k activations; the gradient adds one or two."""
    x = torch.randn(1013, 7, requires_grad=True)
    size = 4 * x.numel()

    def step(layers: int) -> int:
        net = nn.Sequential(*[nn.Tanh() for _ in range(layers)])
        x.grad = None
        needed = memory.peak(lambda: net(x).sum().backward(), CPU)
        assert needed is not None
        return needed

    assert step(9) - step(4) == 5 * size


def test_a_device_that_counts_nothing_has_no_peak():
    ran = []
    assert memory.peak(lambda: ran.append(1), torch.device("meta")) is None
    assert ran == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_law_on_cuda():
    device = torch.device("cuda")

    def run() -> None:
        a = torch.zeros(1 << 20, device=device)
        b = torch.zeros(1 << 21, device=device)
        del a, b

    assert memory.peak(run, device) == 4 * 3 * (1 << 20)
