"""Micro-batches: the mean of their losses is the loss of the batch, so that a step in parts is the same step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from run_cases import SETTINGS, objective
from torch import Tensor

from flowmaps import methods
from flowmaps.data import Board
from flowmaps.maps import AverageVelocity, FlowMap
from flowmaps.nn import MLP
from flowmaps.objectives import Objective, SplitRows, Sum
from flowmaps.training.loop import train
from flowmaps.training.state import begin


def field(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    return torch.sin(x.flip(1)) * t[:, None]


def split(flow_map: FlowMap, share: float) -> Objective:
    return SplitRows(methods.flow_matching(flow_map), methods.lmd(flow_map, teacher=field), share)


def nested(flow_map: FlowMap) -> Objective:
    return SplitRows(split(flow_map, 0.5), methods.flow_matching(flow_map), 0.75)


CASES = {
    "plain": lambda m: methods.flow_matching(m),
    "split": lambda m: split(m, 0.75),
    "half": lambda m: split(m, 0.5),
    "nested": nested,
    "sum": lambda m: Sum([methods.lmd(m, teacher=field), methods.flow_matching(m)], [1.0, 0.3]),
    "sum-of-split": lambda m: Sum([split(m, 0.25), methods.flow_matching(m)]),
    "sum-of-splits": lambda m: Sum([split(m, 0.25), split(m, 0.5)]),
    "split-of-sum": lambda m: SplitRows(
        Sum([methods.lmd(m, teacher=field), methods.flow_matching(m)]), methods.flow_matching(m), 0.5
    ),
}


def made(name: str) -> Objective:
    torch.manual_seed(0)
    return CASES[name](AverageVelocity(MLP(2, width=8, depth=2)))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_parts_have_the_mean_of_the_whole(name: str, number: int):
    """Each row is in one part; loss and gradient of the parts, one after the other, add up to those of the batch."""
    loss, rows = made(name), 8 * number
    shares = loss.micro_batches(rows, number)
    assert shares.shape == (number, 8)
    assert sorted(shares.flatten().tolist()) == list(range(rows))
    draw = loss.draw(torch.randn(rows, 2), generator=torch.Generator().manual_seed(1))
    parameters = list(loss.parameters())
    whole = loss.evaluate(draw).value
    gradients = torch.autograd.grad(whole, parameters, materialize_grads=True)
    parts = [loss.evaluate(draw.micro_batch(part)).value for part in shares]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    summed = torch.autograd.grad(torch.stack(parts).mean(), parameters, materialize_grads=True)
    for one, other in zip(summed, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_batch_without_such_parts_is_refused():
    with pytest.raises(ValueError, match="a batch of 10 rows has no 4 equal parts: take a multiple of 4"):
        made("plain").micro_batches(10, 4)
    with pytest.raises(ValueError, match="has no 4 equal parts"):
        made("sum").micro_batches(10, 4)
    said = (
        "a batch of 12 rows, 9 of them for the first objective, has no 2 equal parts with the same share: take 14 rows"
    )
    for name, rows in (("split", 12), ("sum-of-split", 12)):
        first = 9 if name == "split" else 3
        with pytest.raises(ValueError, match=said.replace("9 of", f"{first} of")):
            made(name).micro_batches(rows, 2)


def test_each_term_of_a_sum_must_have_such_parts():
    """Here the first has them, of 6 rows in 12, and the second, of 3, has not."""
    torch.manual_seed(0)
    flow_map = AverageVelocity(MLP(2, width=8, depth=2))
    with pytest.raises(ValueError, match="12 rows, 3 of them for the first objective, has no 2 equal parts"):
        Sum([split(flow_map, 0.5), split(flow_map, 0.25)]).micro_batches(12, 2)


@pytest.mark.parametrize("number", [2, 4])
def test_a_step_in_parts_is_the_same_step(number: int):
    settings = dataclasses.replace(SETTINGS, batch=16)
    found = []
    for accumulate in (1, number):
        own = dataclasses.replace(settings, accumulate=accumulate)
        state = begin(objective(), own)
        steps = list(train(state, Board(), own, steps=3))
        found.append((steps, [p.detach().clone() for p in state.parameters.values()]))
    (whole, ours), (parts, theirs) = found
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other.loss.value, one.loss.value)
        torch.testing.assert_close(other.norm, one.norm, rtol=1e-4, atol=0)
        assert other.loss.parts.keys() == one.loss.parts.keys()
        for name, part in one.loss.parts.items():
            assert other.loss.parts[name].shape == part.shape
            torch.testing.assert_close(other.loss.parts[name].mean(), part.mean())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
