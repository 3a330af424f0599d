"""The lines of docs/derivatives.md run: derivatives, a rule, a function of one's own, the check of a network."""

from __future__ import annotations

import re

import pytest
import torch
from places import ROOT

import flowmaps as fm

PAGE = (ROOT / "docs" / "derivatives.md").read_text(encoding="utf-8")
TAKE, ENERGY, RULE, OWN, CHECK, FLASH = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class Scores(torch.autograd.Function):
    """The weights of attention."""

    @staticmethod
    def forward(ctx, q, k):
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)

    @staticmethod
    def backward(ctx, *gradients):
        raise AssertionError("the rule is asked first")


@pytest.fixture
def names():
    """What the page takes for granted; rules that it adds are taken back."""
    before = dict(fm.dual.core.TABLE)
    torch.manual_seed(0)
    net = fm.nn.MLP(dim=2, width=8, depth=2)
    times = {"s": torch.rand(5), "t": torch.rand(5)}
    yield {"torch": torch, "fm": fm, "net": net, "x": torch.randn(5, 2), "Scores": Scores, **times}
    fm.dual.core.TABLE.clear()
    fm.dual.core.TABLE.update(before)


def test_a_derivative_is_taken_and_a_network_checked(names: dict):
    exec(TAKE, names)
    assert names["value"].shape == names["tangent"].shape == (5, 2)
    assert eval(CHECK.split("#")[0], names) < 1e-5


def test_the_energy_of_the_page_has_a_gradient_with_a_derivative(names: dict):
    exec(ENERGY, names)

    class Net(torch.nn.Module):
        forward = names["forward"]

        def energy(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return (t * x.square().sum(1)).sin()

    assert fm.dual.check(Net(), names["x"], names["t"]) < 1e-5


def test_the_rules_of_the_page_are_right(names: dict):
    exec(RULE + OWN, names)

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.gammainc(torch.full_like(x.detach(), 1.5), x.square() + 0.1)

    assert fm.dual.check(Net(), names["x"]) < 1e-5
    q = names["x"]
    value, tangent = fm.dual.jvp(lambda q: Scores.apply(q, q), (q,), (torch.ones_like(q),))
    expected = torch.func.jvp(lambda q: (q @ q.mT / 2**0.5).softmax(-1), (q,), (torch.ones_like(q),))
    torch.testing.assert_close((value, tangent), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no CUDA")
def test_the_fused_kernel_says_what_it_needs(names: dict):
    with pytest.raises((ValueError, ModuleNotFoundError), match=r"CUDA|jvp_flash_attention"):
        exec(FLASH, names)
