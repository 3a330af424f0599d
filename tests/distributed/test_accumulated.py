"""Four parts of a batch, one after the other, make the step of the whole batch."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from shared_cases import FEW, NETS, ROWS, SETTINGS, draw, gap, gradients, objective, stages

from flowmaps.training.loop import train
from flowmaps.training.state import begin

PARTS = 4
CASES = [("mlp", name) for name in stages("mlp")] + [("mlp-guided", "lsd"), ("unet", "lsd"), ("dit", "lmd")]
STEPS = [
    pytest.param(net, name, marks=[] if net != "mlp" or name.partition("/")[0] in FEW else [pytest.mark.slow])
    for net, name in CASES
]
"""What follows a gradient is the same for all methods: those of one kind of loss each, and the others when slow."""


@pytest.mark.parametrize("net, name", CASES)
def test_the_gradient_of_four_parts_is_that_of_the_batch(net: str, name: str):
    made = objective(net, name)
    given, shares = draw(made, net), made.micro_batches(ROWS, PARTS)
    found = []
    for parts in (None, shares):
        state = begin(copy.deepcopy(made), SETTINGS)
        state.micro_batch_rows = parts
        loss = state.accumulate_gradient(given)
        found.append((gradients(state.objective), loss))
    (whole, expected), (summed, loss) = found
    assert gap(summed, whole) < 1e-6
    torch.testing.assert_close(loss.value, expected.value, rtol=1e-6, atol=1e-9)
    for part, rows in loss.parts.items():  # in the order of the draw
        torch.testing.assert_close(rows, expected.parts[part], rtol=1e-6, atol=1e-9)
    alone = begin(copy.deepcopy(made), SETTINGS)
    alone.accumulate_gradient(given.micro_batch(shares[0]))
    assert gap(gradients(alone.objective), whole) > 1e-2  # one part would not do


@pytest.mark.parametrize("net, name", STEPS)
def test_steps_of_four_parts_are_those_of_the_batch(net: str, name: str):
    """Weights, averages and moments after three steps."""
    made, source = objective(net, name), NETS[net].source()
    found = []
    for accumulate in (1, PARTS):
        settings = replace(SETTINGS, accumulate=accumulate)
        state = begin(copy.deepcopy(made), settings)
        norms = [float(step.norm) for step in train(state, source, settings, steps=3)]
        found.append((state.tensors(), norms))
    (expected, norms), (tensors, other) = found
    assert other == pytest.approx(norms, rel=1e-6)
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(tensors[key], value, rtol=1e-6, atol=1e-6, msg=key)
    moved = [float((tensors[f"parameter.{key}"] - value).detach().abs().max()) for key, value in made.named_parameters()
             if value.requires_grad]  # fmt: skip
    assert max(moved) > 1e-3
